"""Readers give the frames asked for, in nm and kJ/mol/nm, and refuse a file that is not the one indexed."""

from itertools import pairwise

import h5py
import numpy as np
import pytest

from hpc_cg.archive import index, readers
from hpc_cg.errors import MissingInput, UnreadableFile

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


def test_file_that_shrank_after_the_scan_is_refused(tmp_path, make_h5, make_npy):
    make_h5(tmp_path / "a.h5", n_frames=30)
    make_npy(tmp_path, "b", n_frames=20)
    h5, npy = index.scan(["."], tmp_path, **NM)
    make_h5(tmp_path / "a.h5", n_frames=29)
    make_npy(tmp_path, "b", n_frames=19)
    with pytest.raises(UnreadableFile, match="29 frames of positions where the index counted 30"):
        readers.read(h5, 0, 5)
    with pytest.raises(UnreadableFile, match="19 frames of coordinates"):
        readers.read(npy, 0, 5)


def test_file_truncated_after_the_scan_is_refused(tmp_path, make_h5, make_npy):
    make_h5(tmp_path / "a.h5")
    make_npy(tmp_path, "b")
    segments = index.scan(["."], tmp_path, **NM)
    for segment, name in zip(segments, ("a.h5", "b_forces.npy"), strict=True):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-200])
        with pytest.raises(UnreadableFile, match=name):
            readers.read(segment, 0, 5)


def test_damaged_chunk_is_refused_and_the_others_are_read(tmp_path, make_h5):
    make_h5(tmp_path / "a.h5")
    (segment,) = index.scan(["a.h5"], tmp_path, **NM)
    with h5py.File(tmp_path / "a.h5") as file:
        place = file["positions"].id.get_chunk_info(2)
    content = bytearray((tmp_path / "a.h5").read_bytes())
    content[place.byte_offset : place.byte_offset + place.size] = bytes(place.size)
    (tmp_path / "a.h5").write_bytes(content)
    assert readers.read(segment, 0, 14).n_frames == 14
    with pytest.raises(UnreadableFile, match=r"a\.h5"):
        readers.read(segment, 14, 21)


def test_other_molecule_and_missing_file_are_refused(tmp_path, make_h5):
    make_h5(tmp_path / "a.h5", n_atoms=4)
    (segment,) = index.scan(["a.h5"], tmp_path, **NM)
    make_h5(tmp_path / "a.h5", n_atoms=5)
    with pytest.raises(UnreadableFile, match=r"not \(frame, 4, 3\)"):
        readers.read(segment, 0, 5)
    (tmp_path / "a.h5").unlink()
    with pytest.raises(MissingInput, match=r"a\.h5"):
        readers.read(segment, 0, 5)


@pytest.mark.data
def test_published_forces_of_alanine_dipeptide_keep_their_size(data_folder):
    (segment,) = index.scan(["ala2_5bead"], data_folder, **{**ANGSTROM, "stride_ps": 10.0})
    frames = readers.read(segment, 0, segment.n_frames)
    assert np.sqrt((frames.forces.astype(np.float64) ** 2).mean()) / 41.84 == pytest.approx(27.0007, abs=1e-3)
    bonds = np.linalg.norm(np.diff(frames.positions, axis=1), axis=2)
    np.testing.assert_allclose(bonds.mean(axis=0), [0.13293, 0.14653, 0.15436, 0.13354], atol=5e-4)
