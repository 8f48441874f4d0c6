"""Numpy files are read as they were written, by name and in bounded memory, and never trusted."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from formats import check_any_order
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpc_cg.archive import index, readers
from hpc_cg.archive.arrays import NPY, NPZ
from hpc_cg.errors import HpcCgError, UnreadableFile

NM = {"molecule": "m", "length_unit": "nm", "force_unit": "kJ/mol/nm", "stride_ps": 1.0}
RANDOM = np.random.default_rng(0)
POSITIONS, OTHER = RANDOM.normal(size=(2, 23, 4, 3)).astype(np.float32)


def save(path, compressed=False, **arrays):
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def read(form, path, rows, atoms=None):
    with form.opened(path, "") as load:
        return load(np.asarray(rows), atoms, True, True)


@pytest.mark.parametrize("compressed", [False, True])
def test_frames_come_in_the_order_asked_for(tmp_path, compressed):
    path = save(tmp_path / "a.npz", compressed, positions=POSITIONS, forces=OTHER)
    for seed in range(12):
        check_any_order(NPZ, path, POSITIONS, seed, OTHER)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("names", [("positions", "forces"), ("coords", "Fs"), ("R", "F"), ("xyz", "force")])
def test_known_names_are_found_and_read_to_the_bit(tmp_path, compressed, names):
    path = save(
        tmp_path / "a.npz", compressed, **dict(zip(names, (POSITIONS, OTHER), strict=True)), energies=np.ones(23)
    )
    (header,) = NPZ.headers(path)
    assert header.n_frames == 23 and header.n_atoms == 4 and header.has_forces.all() and header.length_unit is None
    for rows in (range(23), [22], [0, 1, 5, 21], range(3, 23, 4)):
        for atoms in (None, np.array([1, 3])):
            frames = read(NPZ, path, list(rows), atoms)
            chosen = slice(None) if atoms is None else atoms
            np.testing.assert_array_equal(frames.positions, POSITIONS[list(rows)][:, chosen])
            np.testing.assert_array_equal(frames.forces, OTHER[list(rows)][:, chosen])


def test_blocks_in_one_opening_go_on_where_the_last_one_ended_and_may_go_back(tmp_path):
    path = save(tmp_path / "a.npz", True, positions=POSITIONS)
    with NPZ.opened(path, "") as load:
        for rows in (range(7), range(7, 14), range(14, 23), range(2, 4)):
            np.testing.assert_array_equal(load(np.array(rows), None, True, False).positions, POSITIONS[list(rows)])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
def test_npy_in_any_order_and_precision(tmp_path, order, dtype):
    stored = np.asarray(POSITIONS, dtype=dtype, order=order)
    np.save(tmp_path / "x_coordinates.npy", stored)
    for rows in (range(23), [0, 2, 22]):
        np.testing.assert_array_equal(
            read(NPY, tmp_path / "x_coordinates.npy", list(rows)).positions, stored[list(rows)]
        )
    (segment,) = index.scan(["."], tmp_path, **NM)
    frames = readers.read(segment, 0, 23)
    exact = stored.astype(np.float64)
    assert frames.positions.dtype == np.float32 and frames.positions.dtype.isnative
    np.testing.assert_allclose(frames.positions, exact - exact.mean(axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("cell", [np.eye(3), np.ones(3), np.ones((23, 3)), np.tile(np.eye(3), (23, 1, 1))])
def test_cells_of_any_shape_become_vectors_of_each_frame(tmp_path, cell):
    path = save(tmp_path / "a.npz", positions=POSITIONS, cell=cell)
    np.testing.assert_array_equal(read(NPZ, path, [3, 7]).cell, np.tile(np.eye(3), (2, 1, 1)))


def test_a_name_that_could_be_either_is_refused(tmp_path):
    path = save(tmp_path / "a.npz", positions=POSITIONS, coords=OTHER)
    with pytest.raises(UnreadableFile, match="'positions' and 'coords'"):
        NPZ.headers(path)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"energies": np.ones(3)}, "energies"),
        ({"positions": POSITIONS, "forces": OTHER[:-1]}, "22"),
        ({"positions": POSITIONS[:, :, :2]}, r"\(23, 4, 2\)"),
        ({"positions": POSITIONS.astype(int)}, "int64"),
        ({"positions": POSITIONS, "time": np.ones((23, 1))}, "time"),
        ({"positions": POSITIONS, "step": np.ones(23)}, "step"),
        ({"positions": POSITIONS, "cell": np.ones((23, 9))}, "cell"),
        ({"positions": np.array([{"a": 1}], dtype=object)}, "Python objects"),
    ],
)
def test_arrays_that_are_not_frames_are_refused_with_the_reason(tmp_path, arrays, said):
    path = save(tmp_path / "a.npz", **arrays)
    with pytest.raises(UnreadableFile, match=said), NPZ.opened(path, ""):
        NPZ.headers(path)


def npy_header(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize("shape", [(10**12, 4, 3), (2**62, 4, 3), (-1, 4, 3), (10**30, 1, 3)])
def test_frames_that_the_file_cannot_hold_are_refused_before_memory_is_asked_for(tmp_path, shape):
    content = npy_header(shape) + bytes(1000)
    (tmp_path / "x_coordinates.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("positions.npy", content)
    tracemalloc.start()
    for form, name in ((NPY, "x_coordinates.npy"), (NPZ, "x.npz")):
        with pytest.raises(UnreadableFile, match=name.replace(".", r"\.")):
            form.headers(tmp_path / name)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_compressed_array_is_never_held_whole(tmp_path):
    long = np.zeros((200_000, 4, 3), np.float32)
    path = save(tmp_path / "a.npz", True, positions=long, forces=long)
    tracemalloc.start()
    with NPZ.opened(path, "") as load:
        for start in range(0, 200_000, 1000):
            load(np.arange(start, start + 1000), None, True, True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < long.nbytes / 4


@pytest.mark.parametrize("compressed", [False, True])
def test_cut_at_any_byte_is_an_error_of_the_file(tmp_path, compressed):
    content = save(tmp_path / "a.npz", compressed, positions=POSITIONS[:3], forces=OTHER[:3]).read_bytes()
    for length in range(0, len(content), 7):
        (tmp_path / "cut.npz").write_bytes(content[:length])
        with pytest.raises(UnreadableFile, match=r"cut\.npz"):
            NPZ.headers(tmp_path / "cut.npz")
    np.save(tmp_path / "b_coordinates.npy", POSITIONS[:3])
    content = (tmp_path / "b_coordinates.npy").read_bytes()
    for length in range(len(content)):
        (tmp_path / "c_coordinates.npy").write_bytes(content[:length])
        with pytest.raises(UnreadableFile, match="c_coordinates"):
            NPY.headers(tmp_path / "c_coordinates.npy")


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_changed_bytes_give_frames_or_an_error_of_the_file(tmp_path, data):
    kind = data.draw(st.sampled_from(["npy", "stored", "deflated"]))
    path = tmp_path / ("fuzz_coordinates.npy" if kind == "npy" else "fuzz.npz")
    if kind == "npy":
        np.save(path, POSITIONS[:3])
    else:
        save(path, kind == "deflated", positions=POSITIONS[:3], time=np.arange(3.0))
    content = bytearray(path.read_bytes())
    places = st.integers(0, min(200, len(content) - 1)) | st.integers(max(0, len(content) - 300), len(content) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        for described in index.describe(path, **NM):
            frames = readers.read(described.segment, 0, described.segment.n_frames, described.table)
            assert frames.positions.nbytes <= 100 * len(content)
    except HpcCgError:
        pass


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([b"", b"\x93NUMPY\x01\x00v\x00", b"PK\x03\x04"]), st.binary(max_size=300))
def test_garbage_is_an_error_of_the_file(tmp_path, start, rest):
    for form, name in ((NPY, "g_coordinates.npy"), (NPZ, "g.npz")):
        (tmp_path / name).write_bytes(start + rest)
        with pytest.raises(HpcCgError):
            form.headers(tmp_path / name)


@pytest.mark.data
def test_published_arrays_are_described_and_read(data_folder):
    units = {"molecule": "m", "length_unit": "nm", "force_unit": "kJ/mol/nm"}
    (peptide,) = index.scan(["peptide_2olx"], data_folder, **units)
    assert (peptide.n_frames, peptide.n_atoms, peptide.even, peptide.has_forces) == (140, 65, False, True)
    frames = readers.read(peptide, 0, 140)
    with np.load(data_folder / "peptide_2olx/2olx-traj-arrays.npz") as whole:
        np.testing.assert_array_equal(frames.forces, whole["forces"])
        np.testing.assert_allclose(frames.time, whole["time"] - whole["time"][0], atol=1e-9)
        np.testing.assert_allclose(np.ptp(frames.positions, axis=1), np.ptp(whole["positions"], axis=1), atol=1e-6)
    (water,) = index.scan(["water_dimer"], data_folder, stride_ps=1.0, **units)
    assert (water.n_frames, water.n_atoms) == (500, 6)
    for segment in (peptide, water):
        assert index.force_scale_warning(readers.read(segment, 0, 100).forces) is None
