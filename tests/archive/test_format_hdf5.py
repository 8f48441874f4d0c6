"""HDF5 of this project and of MDTraj is read as it was written; ways out of a file are not followed."""

import sys

import h5py
import mdtraj
import numpy as np
import pytest
from formats import check_any_order
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpc_cg.archive import index, readers
from hpc_cg.archive.cells import box_vectors
from hpc_cg.archive.formats import format_of
from hpc_cg.archive.hdf5 import HDF5
from hpc_cg.errors import HpcCgError, UnknownUnit, UnreadableFile

NM = {"molecule": "m", "length_unit": "nm", "force_unit": "kJ/mol/nm", "stride_ps": 1.0}
POSITIONS, FORCES = np.random.default_rng(1).normal(size=(2, 20, 4, 3)).astype(np.float32)


def write_mdtraj(path, **extra):
    """An HDF5 trajectory as the convention of MDTraj has it."""
    with h5py.File(path, "w") as file:
        file.attrs["conventions"] = "Pande"
        for name, values, unit in (
            ("coordinates", POSITIONS, "nanometers"),
            ("time", np.arange(20, dtype=np.float32) * 2, "picoseconds"),
            ("cell_lengths", np.tile(np.float32([3, 4, 5]), (20, 1)), "nanometers"),
            ("cell_angles", np.tile(np.float32([90, 90, 60]), (20, 1)), "degrees"),
            *((name, values, unit) for name, (values, unit) in extra.items()),
        ):
            file[name] = values
            file[name].attrs["units"] = unit
    return path


@pytest.mark.parametrize("rows", [range(20), [19], [0, 1, 8, 13, 14], range(1, 20, 3)])
@pytest.mark.parametrize("atoms", [None, [0, 3], [2]])
def test_any_frames_and_atoms_are_those_written(tmp_path, make_h5, rows, atoms):
    positions, forces = make_h5(tmp_path / "a.h5", n_frames=20)
    atoms = None if atoms is None else np.array(atoms)
    chosen = slice(None) if atoms is None else atoms
    with HDF5.opened(tmp_path / "a.h5", "") as load:
        frames = load(np.array(rows), atoms, True, True)
    np.testing.assert_array_equal(frames.positions, positions[list(rows)][:, chosen])
    np.testing.assert_array_equal(frames.forces, forces[list(rows)][:, chosen])


@pytest.mark.parametrize("seed", range(12))
def test_frames_come_in_the_order_asked_for(tmp_path, make_h5, seed):
    positions, forces = make_h5(tmp_path / "a.h5", n_frames=20)
    check_any_order(HDF5, tmp_path / "a.h5", positions, seed, forces)


@pytest.mark.parametrize("times", [[0, 2, 1, 3, 4, 5], [3, 4, 5, 0, 1, 2], [5, 4, 3, 2, 1, 0]])
def test_frames_out_of_order_are_put_in_order(tmp_path, times):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["positions"], file["time"] = POSITIONS[times], np.array(times) * 2.0
    (described,) = index.describe(tmp_path / "a.h5", **{**NM, "stride_ps": 2.0})
    frames = readers.read(described.segment, 0, 6, described.table)
    np.testing.assert_array_equal(frames.positions, POSITIONS[:6])


def test_times_of_own_files_count_and_agree_with_the_spacing_stated(tmp_path, make_h5):
    make_h5(tmp_path / "a.h5", n_frames=20, units="nm, fs, kJ/mol/nm")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["time"] = np.arange(20) * 500.0
    assert index.scan(["a.h5"], tmp_path, molecule="m")[0].stride_ps == 0.5
    for stated, right in ((0.5, True), (1.0, False)):
        with h5py.File(tmp_path / "a.h5", "a") as file:
            file.attrs["stride_ps"] = stated
        if right:
            assert index.scan(["a.h5"], tmp_path, molecule="m")[0].stride_ps == 0.5
        else:
            with pytest.raises(UnreadableFile, match=r"1 ps between frames as it states, 0\.5 ps by its times"):
                index.scan(["a.h5"], tmp_path, molecule="m")


def test_units_of_own_files_are_known_by_any_of_their_names(tmp_path, make_h5):
    make_h5(tmp_path / "a.h5", stride_ps=1.0, units="Angstrom, ps, kcal/mol/Angstrom")
    (segment,) = index.scan(["a.h5"], tmp_path, molecule="m")
    assert (segment.length_unit, segment.force_unit) == ("angstrom", "kcal/mol/angstrom")
    for stated, said in (("nm, ps, hartree/bohr", "hartree/bohr"), ("nm, angstrom", "both 'nm' and 'angstrom'")):
        make_h5(tmp_path / "a.h5", stride_ps=1.0, units=stated)
        with pytest.raises(UnknownUnit, match=said):
            index.scan(["a.h5"], tmp_path, **{**NM, "stride_ps": None})


def test_mdtraj_files_state_time_cell_and_units(tmp_path):
    path = write_mdtraj(tmp_path / "a.h5", forces=(FORCES, "kilojoules/mole/nanometer"))
    (described,) = index.describe(path, molecule="m")
    segment = described.segment
    assert (segment.format, segment.stride_ps, segment.length_unit, segment.force_unit) == (
        "h5",
        2.0,
        "nm",
        "kJ/mol/nm",
    )
    frames = readers.read(segment, 5, 15)
    np.testing.assert_array_equal(frames.positions, POSITIONS[5:15])
    np.testing.assert_array_equal(frames.forces, FORCES[5:15])
    np.testing.assert_allclose(frames.cell[0], [[3, 0, 0], [2, 4 * 0.75**0.5, 0], [0, 0, 5]], atol=1e-6)


def test_what_mdtraj_writes_is_what_is_read(tmp_path):
    topology = mdtraj.Topology()
    residue = topology.add_residue("ALA", topology.add_chain())
    for name in ("N", "CA", "C", "O"):
        topology.add_atom(name, None, residue)
    mdtraj.Trajectory(POSITIONS, topology, time=np.arange(20.0)).save_hdf5(str(tmp_path / "a.h5"))
    (segment,) = index.scan(["a.h5"], tmp_path, molecule="m")
    np.testing.assert_array_equal(readers.read(segment, 0, 20).positions, POSITIONS)


def test_a_unit_that_is_not_known_is_said_with_the_file(tmp_path):
    write_mdtraj(tmp_path / "a.h5", forces=(FORCES, "hartree/bohr"))
    with pytest.raises(UnknownUnit, match=r"a\.h5.*hartree"):
        index.scan(["a.h5"], tmp_path, molecule="m")


def test_cell_vectors_have_the_lengths_and_angles_they_are_made_of():
    random = np.random.default_rng(2)
    lengths, angles = random.uniform(2, 5, (50, 3)), random.uniform(70, 110, (50, 3))
    a, b, c = np.moveaxis(box_vectors(lengths, angles), 1, 0)
    np.testing.assert_allclose(np.stack([np.linalg.norm(v, axis=1) for v in (a, b, c)], 1), lengths)
    for i, (v, w) in enumerate(((b, c), (a, c), (a, b))):
        cosine = (v * w).sum(1) / np.linalg.norm(v, axis=1) / np.linalg.norm(w, axis=1)
        np.testing.assert_allclose(np.degrees(np.arccos(cosine)), angles[:, i])
    np.testing.assert_array_equal(box_vectors(np.ones((1, 3)), np.full((1, 3), 90.0)), np.eye(3)[None])


def way_out(path, other, kind):
    with h5py.File(path, "w") as file:
        if kind == "external link":
            file["positions"] = h5py.ExternalLink(str(other), "positions")
        elif kind == "soft link through one":
            file["beside"] = h5py.ExternalLink(str(other), "/")
            file["positions"] = h5py.SoftLink("/beside/positions")
        elif kind == "links in a ring":
            file["positions"], file["forces"] = h5py.SoftLink("/forces"), h5py.SoftLink("/positions")
        elif kind == "virtual dataset":
            virtual = h5py.VirtualLayout((20, 4, 3), np.float32)
            virtual[:] = h5py.VirtualSource(str(other), "positions", (20, 4, 3))
            file.create_virtual_dataset("positions", virtual)
        else:
            file.create_dataset("positions", (20, 4, 3), np.float32, external=[(str(other), 0, 960)])


KINDS = ["external link", "soft link through one", "links in a ring", "virtual dataset", "external storage"]


@pytest.mark.parametrize("kind", KINDS)
def test_ways_out_of_a_file_are_refused(tmp_path, make_h5, kind):
    make_h5(tmp_path / "secret.h5", n_frames=20)
    way_out(tmp_path / "a.h5", tmp_path / "secret.h5", kind)
    with pytest.raises(UnreadableFile, match=r"a\.h5"):
        index.describe(tmp_path / "a.h5", **NM)
    with pytest.raises(UnreadableFile, match=r"a\.h5"), HDF5.opened(tmp_path / "a.h5", ""):
        pass


def test_links_within_a_file_are_followed(tmp_path, make_h5):
    positions, _ = make_h5(tmp_path / "a.h5", n_frames=20)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file.move("positions", "data/first")
        file["positions"] = h5py.SoftLink("/data/first")
    (segment,) = index.scan(["a.h5"], tmp_path, **NM)
    np.testing.assert_array_equal(readers.read(segment, 0, 20).positions, positions)


def test_frames_that_were_never_written_are_no_zeros(tmp_path):
    for name, chunks in (("chunked", (5, 4, 3)), ("plain", None)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            data = file.create_dataset("positions", (20, 4, 3), np.float32, chunks=chunks)
            if chunks:
                data[:10] = POSITIONS[:10]
        with pytest.raises(UnreadableFile, match="never written"):
            index.scan([f"{name}.h5"], tmp_path, **NM)
    with h5py.File(tmp_path / "chunked.h5", "a") as file:
        file.attrs["written"] = 10
    assert index.scan(["chunked.h5"], tmp_path, **NM)[0].n_frames == 10


def test_frames_and_chunks_that_the_file_cannot_hold_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("positions", (10**10, 4, 3), np.float32, chunks=(100, 4, 3))
    with pytest.raises(UnreadableFile, match="bytes in a file of"):
        index.scan(["a.h5"], tmp_path, **NM)


def test_cut_at_any_byte_is_an_error_of_the_file(tmp_path, make_h5):
    make_h5(tmp_path / "a.h5", n_frames=20)
    content = (tmp_path / "a.h5").read_bytes()
    for length in range(0, len(content), 61):
        (tmp_path / "cut.h5").write_bytes(content[:length])
        with pytest.raises(UnreadableFile, match=r"cut\.h5"):
            index.describe(tmp_path / "cut.h5", **NM)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_give_frames_or_an_error_of_the_file(tmp_path, make_h5, changes):
    whole = tmp_path / "whole.h5"
    if not whole.exists():
        make_h5(whole, n_frames=20)
    content = bytearray(whole.read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    path = tmp_path / "fuzz.h5"
    path.write_bytes(content)
    try:
        for described in index.describe(path, **NM):
            frames = readers.read(described.segment, 0, described.segment.n_frames, described.table)
            assert frames.positions.nbytes <= 1100 * len(content)
    except HpcCgError:
        pass


@pytest.mark.data
def test_real_archives_read_as_h5py_reads_them(data_folder):
    for path in sorted(data_folder.glob("*_all_atom/*.h5")):
        (described,) = index.describe(path, molecule="m")
        frames = readers.every(described.segment, np.arange(0, 2000, 37))
        with h5py.File(path) as file:
            np.testing.assert_array_equal(frames.positions, file["positions"][:2000:37])
            np.testing.assert_array_equal(frames.forces, file["forces"][:2000:37])
        assert index.force_scale_warning(frames.forces) is None
        assert format_of(path).name == "h5" and sys.getsizeof(described.table) < 100
