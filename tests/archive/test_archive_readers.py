"""Readers give the frames asked for, in nm and kJ/mol/nm, and refuse a file that is not the one indexed."""

from itertools import pairwise

import h5py
import numpy as np
import pytest

from hpc_cg.archive import index, readers
from hpc_cg.errors import ChangedFile, MissingInput, UnreadableFile

NM = {"molecule": "ala2", "length_unit": "nm", "force_unit": "kJ/mol/nm", "stride_ps": 0.5}
ANGSTROM = {**NM, "length_unit": "angstrom", "force_unit": "kcal/mol/angstrom"}


def test_h5_in_nm_is_read_as_it_stands(tmp_path, make_h5):
    positions, forces = make_h5(tmp_path / "a.h5")
    (segment,) = index.scan(["a.h5"], tmp_path, **NM)
    frames = readers.read(segment, 0, segment.n_frames)
    np.testing.assert_array_equal(frames.positions, positions)
    np.testing.assert_array_equal(frames.forces, forces)
    np.testing.assert_allclose(frames.time[:3], [0.0, 0.5, 1.0])


@pytest.mark.parametrize("units", [NM, ANGSTROM])
def test_blocks_put_together_equal_the_whole(tmp_path, make_h5, make_npy, units):
    make_h5(tmp_path / "a.h5")
    make_npy(tmp_path, "b")
    for segment in index.scan(["."], tmp_path, **units):
        whole = readers.read(segment, 0, segment.n_frames)
        edges = [0, 1, 9, 9, segment.n_frames]
        parts = [readers.read(segment, a, b) for a, b in pairwise(edges)]
        np.testing.assert_array_equal(np.concatenate([p.positions for p in parts]), whole.positions)
        np.testing.assert_array_equal(np.concatenate([p.forces for p in parts]), whole.forces)
        np.testing.assert_array_equal(np.concatenate([p.time for p in parts]), whole.time)


def test_angstrom_and_kcal_become_nm_and_kilojoule(tmp_path, make_h5):
    positions, forces = make_h5(tmp_path / "a.h5")
    (segment,) = index.scan(["a.h5"], tmp_path, **ANGSTROM)
    frames = readers.read(segment, 3, 8)
    np.testing.assert_allclose(frames.positions, positions[3:8] * 0.1, rtol=1e-6)
    np.testing.assert_allclose(frames.forces, forces[3:8] * 41.84, rtol=1e-6)
    assert frames.positions.dtype == np.float32


def test_npy_positions_far_away_are_centred_without_loss(tmp_path, make_npy):
    coordinates, forces = make_npy(tmp_path, "ala2")
    (segment,) = index.scan(["."], tmp_path, **ANGSTROM)
    frames = readers.read(segment, 0, segment.n_frames)
    exact = coordinates.astype(np.float64) * 0.1
    exact -= exact.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(frames.positions, exact, atol=1e-7)
    np.testing.assert_allclose(frames.positions.mean(axis=1), 0, atol=1e-7)
    np.testing.assert_allclose(frames.forces, forces * 41.84, rtol=1e-6)


def test_source_without_forces_gives_none(tmp_path, make_npy):
    make_npy(tmp_path, "ala2")
    (tmp_path / "ala2_forces.npy").unlink()
    (segment,) = index.scan(["."], tmp_path, **ANGSTROM)
    assert readers.read(segment, 0, 5).forces is None


@pytest.mark.parametrize("n_frames", [30, 29])
def test_file_with_another_content_than_the_one_indexed_is_refused(tmp_path, make_h5, make_npy, n_frames):
    make_h5(tmp_path / "a.h5", n_frames=30)
    make_npy(tmp_path, "b", n_frames=30)
    segments = index.scan(["."], tmp_path, **NM)
    make_h5(tmp_path / "a.h5", n_frames=n_frames, seed=1)
    make_npy(tmp_path, "b", n_frames=n_frames)
    np.save(tmp_path / "b_forces.npy", np.ones((n_frames, 5, 3), np.float32))
    for segment in segments:
        with pytest.raises(ChangedFile, match="run prepare again"):
            readers.read(segment, 0, 5)
        with pytest.raises(ChangedFile, match="run prepare again"):
            next(readers.blocks(segment, 0, 5, block_frames=2))


def test_file_truncated_after_the_scan_is_refused(tmp_path, make_h5, make_npy):
    make_h5(tmp_path / "a.h5")
    make_npy(tmp_path, "b")
    segments = index.scan(["."], tmp_path, **NM)
    for segment, name in zip(segments, ("a.h5", "b_forces.npy"), strict=True):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-200])
        with pytest.raises(ChangedFile, match=name):
            readers.read(segment, 0, 5)


def test_file_that_shrinks_while_it_is_read_is_refused(tmp_path, make_npy):
    make_npy(tmp_path, "b")
    (segment,) = index.scan(["."], tmp_path, **NM)
    found = readers.blocks(segment, 0, 20, block_frames=5)
    next(found)
    with (tmp_path / "b_coordinates.npy").open("r+b") as file:
        file.truncate(800)
    with pytest.raises(UnreadableFile, match="b_coordinates"):
        list(found)


def test_damaged_chunk_is_refused_and_the_others_are_read(tmp_path, make_h5):
    make_h5(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        place = file["positions"].id.get_chunk_info(2)
    content = bytearray((tmp_path / "a.h5").read_bytes())
    content[place.byte_offset : place.byte_offset + place.size] = bytes(place.size)
    (tmp_path / "a.h5").write_bytes(content)
    (segment,) = index.scan(["a.h5"], tmp_path, **NM)
    assert readers.read(segment, 0, 14).n_frames == 14
    with pytest.raises(UnreadableFile, match=r"a\.h5"):
        readers.read(segment, 14, 21)


def test_other_molecule_and_missing_file_are_refused(tmp_path, make_h5):
    make_h5(tmp_path / "a.h5", n_atoms=4)
    (segment,) = index.scan(["a.h5"], tmp_path, **NM)
    make_h5(tmp_path / "a.h5", n_atoms=5)
    with pytest.raises(ChangedFile, match=r"a\.h5"):
        readers.read(segment, 0, 5)
    (tmp_path / "a.h5").unlink()
    with pytest.raises(MissingInput, match=r"a\.h5"):
        readers.read(segment, 0, 5)


@pytest.mark.parametrize("block_frames", [1, 4, 7, 100])
@pytest.mark.parametrize("atoms", [None, np.array([0, 3])])
def test_blocks_of_any_size_are_the_same_to_the_bit(tmp_path, make_h5, make_npy, block_frames, atoms):
    make_h5(tmp_path / "a.h5")
    make_npy(tmp_path, "b")
    np.savez_compressed(tmp_path / "c.npz", positions=np.random.default_rng(0).normal(50, 1, (20, 5, 3)))
    for segment in index.scan(["."], tmp_path, **ANGSTROM):
        whole = readers.read(segment, 2, 19, atoms=atoms)
        parts = list(readers.blocks(segment, 2, 19, atoms=atoms, block_frames=block_frames))
        assert [part.n_frames for part in parts][:-1] == [block_frames] * (len(parts) - 1)
        np.testing.assert_array_equal(np.concatenate([part.positions for part in parts]), whole.positions)
        np.testing.assert_array_equal(np.concatenate([part.time for part in parts]), whole.time)
        if whole.forces is not None:
            np.testing.assert_array_equal(np.concatenate([part.forces for part in parts]), whole.forces)


def test_frames_far_apart_are_those_of_the_whole(tmp_path, make_h5, make_npy):
    make_h5(tmp_path / "a.h5")
    make_npy(tmp_path, "b")
    for segment in index.scan(["."], tmp_path, **ANGSTROM):
        chosen = np.array([0, 3, 4, 5, 11, 19])
        whole, found = readers.read(segment, 0, segment.n_frames), readers.every(segment, chosen)
        for name in ("positions", "forces", "time"):
            np.testing.assert_array_equal(getattr(found, name), getattr(whole, name)[chosen])


def test_forces_not_asked_for_are_not_given(tmp_path, make_h5):
    make_h5(tmp_path / "a.h5")
    (segment,) = index.scan(["a.h5"], tmp_path, **NM)
    assert readers.read(segment, 0, 3, forces=False).forces is None
    assert readers.read(segment, 3, 3, forces=True).forces.shape == (0, 4, 3)


def test_double_precision_far_from_the_origin_is_centred_before_it_is_rounded(tmp_path):
    exact = np.random.default_rng(0).normal(1000, 0.1, (4, 6, 3))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["positions"] = exact
    (segment,) = index.scan(["a.h5"], tmp_path, **NM)
    found = readers.read(segment, 0, 4).positions
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact - exact.mean(axis=1, keepdims=True), atol=2e-8)


def test_frames_of_two_files_meet_with_a_table_and_slowly_without(tmp_path):
    positions, forces = np.random.default_rng(5).normal(size=(2, 12, 3, 3)).astype(np.float32)
    step = np.arange(12) * 10
    np.savez(tmp_path / "x.npz", positions=positions, step=step, time=step * 0.1)
    np.savez_compressed(tmp_path / "f.npz", forces=forces[1::3], step=step[1::3])
    units = {key: value for key, value in NM.items() if key != "stride_ps"}
    (found,) = index.describe(tmp_path / "x.npz", forces_path=tmp_path / "f.npz", **units)
    for table in (found.table, None):
        frames = readers.every(found.segment, np.array([0, 2, 3]), table=table)
        np.testing.assert_array_equal(frames.forces, forces[[1, 7, 10]])
        np.testing.assert_allclose(
            frames.positions, (positions - positions.mean(1, keepdims=True))[[1, 7, 10]], atol=1e-6
        )
        np.testing.assert_allclose(frames.time, [0.0, 6.0, 9.0])


@pytest.mark.data
def test_published_forces_of_alanine_dipeptide_keep_their_size(data_folder):
    (segment,) = index.scan(["ala2_5bead"], data_folder, **{**ANGSTROM, "stride_ps": 10.0})
    frames = readers.read(segment, 0, segment.n_frames)
    assert np.sqrt((frames.forces.astype(np.float64) ** 2).mean()) / 41.84 == pytest.approx(27.0007, abs=1e-3)
    bonds = np.linalg.norm(np.diff(frames.positions, axis=1), axis=2)
    np.testing.assert_allclose(bonds.mean(axis=0), [0.13293, 0.14653, 0.15436, 0.13354], atol=5e-4)


@pytest.mark.data
def test_real_trajectories_of_gromacs_are_read(data_folder):
    (found,) = index.describe(data_folder / "ala2_seeded/seed_000.trr", molecule="ala2")
    frames = readers.read(found.segment, 100, 200, found.table)
    assert index.force_scale_warning(frames.forces) is None and frames.finite.all()
    np.testing.assert_array_equal(readers.read(found.segment, 100, 200).forces, frames.forces)
    np.testing.assert_allclose(frames.time, 0.5 * np.arange(100, 200))
