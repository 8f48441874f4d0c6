"""Rigid groups are what never changes its shape, however the frames come in."""

import numpy as np
import pytest

from hpc_cg.errors import BadFrames, TooFewFrames
from hpc_cg.mapping import constraints
from hpc_cg.mapping.constraints import DistanceMoments, candidate_pairs, group_matrix, rigid_groups


def turned_water(n_frames: int, n_molecules: int, seed: int = 0) -> np.ndarray:
    """Rigid triangles, turned and moved at random; float32, atoms O H H of each."""
    generator = np.random.default_rng(seed)
    body = np.array([[0, 0, 0], [0.0957, 0, 0], [-0.024, 0.0927, 0]])
    turns = np.linalg.qr(generator.normal(size=(n_frames, n_molecules, 3, 3)))[0]
    places = np.arange(n_molecules)[:, None] * 0.4 + generator.normal(size=(n_frames, n_molecules, 3)) * 0.02
    waters = np.einsum("tmij,aj->tmai", turns, body) + places[:, :, None]
    return waters.reshape(n_frames, 3 * n_molecules, 3).astype(np.float32)


def test_rigid_molecules_are_found_and_free_atoms_stand_alone():
    positions = turned_water(100, 2)
    free = np.random.default_rng(1).normal(size=(100, 1, 3)).astype(np.float32)
    positions = np.concatenate([positions, free], axis=1)
    moments = DistanceMoments.of(positions, candidate_pairs(positions[0]))
    assert rigid_groups(moments, 7) == ((0, 1, 2), (3, 4, 5), (6,))


def test_bond_that_vibrates_is_not_rigid():
    positions = turned_water(200, 1)
    positions[:, 1] += np.random.default_rng(2).normal(scale=2e-3, size=(200, 3)).astype(np.float32)
    moments = DistanceMoments.of(positions, candidate_pairs(positions[0]))
    assert rigid_groups(moments, 3) == ((0, 2), (1,))
    assert rigid_groups(moments, 3, threshold_nm=0.01) == ((0, 1, 2),)


def test_moments_added_in_pieces_equal_moments_at_once():
    positions = turned_water(700, 2)
    pairs = candidate_pairs(positions[0])
    total = DistanceMoments.empty(pairs)
    for piece in np.split(positions, [0, 1, 13, 400]):
        total = total + DistanceMoments.of(piece, pairs)
    wide = positions.astype(np.float64)
    distances = np.linalg.norm(wide[:, pairs[:, 0]] - wide[:, pairs[:, 1]], axis=2)
    assert total.count == 700
    np.testing.assert_allclose(total.mean, distances.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(total.deviation, distances.std(axis=0), atol=1e-12)


def test_moments_do_not_depend_on_how_many_frames_are_looked_at_together(monkeypatch):
    positions = turned_water(300, 2)
    pairs = candidate_pairs(positions[0])
    at_once = DistanceMoments.of(positions, pairs)
    monkeypatch.setattr(constraints, "BLOCK_BYTES", 10_000)
    in_pieces = DistanceMoments.of(positions, pairs)
    np.testing.assert_allclose(in_pieces.mean, at_once.mean, rtol=1e-13)
    np.testing.assert_allclose(in_pieces.deviation, at_once.deviation, atol=1e-12)


def test_no_frames_add_nothing():
    positions = turned_water(5, 1)
    pairs = candidate_pairs(positions[0])
    moments = DistanceMoments.of(positions, pairs)
    same = DistanceMoments.empty(pairs) + moments + DistanceMoments.of(positions[:0], pairs)
    np.testing.assert_array_equal(same.mean, moments.mean)
    np.testing.assert_array_equal(same.m2, moments.m2)


def test_large_system_watches_near_pairs_only_and_finds_the_same_groups():
    positions = turned_water(50, 100)
    pairs = candidate_pairs(positions[0])
    assert len(pairs) < 2000 and (pairs[:, 0] < pairs[:, 1]).all()
    groups = rigid_groups(DistanceMoments.of(positions, pairs), 300)
    assert groups == tuple((3 * i, 3 * i + 1, 3 * i + 2) for i in range(100))


def test_one_frame_is_too_few():
    positions = turned_water(1, 1)
    with pytest.raises(TooFewFrames, match="1 frames"):
        rigid_groups(DistanceMoments.of(positions, candidate_pairs(positions[0])), 3)


def test_group_matrix_gives_atoms_the_weight_of_their_group():
    matrix = group_matrix([(0, 2), (1,)], 3)
    np.testing.assert_array_equal(matrix @ [5.0, 7.0], [5.0, 7.0, 5.0])
    with pytest.raises(AssertionError):
        group_matrix([(0, 1), (1, 2)], 3)


@pytest.mark.data
def test_bonds_to_hydrogen_are_the_only_rigid_ones_of_alanine(data_folder):
    import h5py

    with h5py.File(data_folder / "ala2_all_atom" / "300K_1.h5") as file:
        positions = file["positions"][::200]
    moments = DistanceMoments.of(positions, candidate_pairs(positions[0]))
    groups = [group for group in rigid_groups(moments, 22) if len(group) > 1]
    assert groups == [(0, 1, 2, 3), (6, 7), (8, 9), (10, 11, 12, 13), (16, 17), (18, 19, 20, 21)]
    deviation = np.sort(moments.deviation)
    assert deviation[11] < 1e-6 and deviation[12] > 1e-3


@pytest.mark.data
@pytest.mark.parametrize("name", ["ala2_all_atom/300K_1.h5", "chignolin_all_atom/340K_1.h5"])
def test_ten_frames_tell_rigid_bonds_from_vibrating_ones(data_folder, name):
    import h5py

    with h5py.File(data_folder / name) as file:
        positions = file["positions"][:2500]
    pairs, n_atoms = candidate_pairs(positions[0]), positions.shape[1]
    every = rigid_groups(DistanceMoments.of(positions[::10], pairs), n_atoms)
    generator = np.random.default_rng(0)
    for _ in range(100):
        few = positions[generator.choice(len(positions), constraints.SAFE_FRAMES, replace=False)]
        assert rigid_groups(DistanceMoments.of(few, pairs), n_atoms) == every


@pytest.mark.data
def test_rounded_positions_need_a_wider_threshold(data_folder):
    import h5py

    with h5py.File(data_folder / "chignolin_all_atom" / "340K_1.h5") as file:
        positions = file["positions"][::25]
    pairs = candidate_pairs(positions[0])
    groups = rigid_groups(DistanceMoments.of(positions, pairs), 166)
    rounded = DistanceMoments.of(np.round(positions, 3), pairs)
    assert rounded.grid == 1e-3 and rigid_groups(rounded, 166) == groups


@pytest.mark.parametrize("grid", [1e-2, 2e-3, 1e-3, 5e-4, 1e-4])
def test_the_grid_of_rounded_positions_is_found_wherever_they_are_shifted(grid):
    positions = np.random.default_rng(3).normal(size=(20, 10, 3))
    rounded = np.rint(positions / grid) * grid
    pairs = candidate_pairs(rounded[0])
    assert constraints.grid_of(rounded.astype(np.float32), pairs) == pytest.approx(grid)
    centred = rounded - rounded.mean(axis=1, keepdims=True)
    assert constraints.grid_of(centred.astype(np.float32), pairs) == pytest.approx(grid)
    assert constraints.grid_of(positions.astype(np.float32), pairs) == 0


def test_what_cannot_show_a_grid_shows_none():
    pairs = candidate_pairs(np.zeros((10, 3)))
    assert constraints.grid_of(np.zeros((5, 10, 3)), pairs) == 0
    far = np.round(np.random.default_rng(0).normal(size=(5, 10, 3)), 3) + 1e5
    assert constraints.grid_of(far.astype(np.float32), pairs) == 0


def test_of_mixed_files_the_coarsest_grid_counts_in_any_order():
    positions = turned_water(50, 4)
    pairs = candidate_pairs(positions[0])
    fine, coarse = DistanceMoments.of(positions, pairs), DistanceMoments.of(np.round(positions, 3), pairs)
    assert (fine.grid, coarse.grid) == (0, pytest.approx(1e-3))
    for total in (fine + coarse, coarse + fine, DistanceMoments.empty(pairs) + coarse):
        assert total.grid == coarse.grid
        assert DistanceMoments.from_arrays(pairs, total.arrays()).grid == coarse.grid
    assert len(rigid_groups(fine + coarse, 12)) == 4


def test_positions_too_coarse_to_tell_are_refused():
    positions = turned_water(50, 4)
    with pytest.raises(BadFrames, match=r"rounded to 0\.01 nm"):
        rigid_groups(DistanceMoments.of(np.round(positions, 2), candidate_pairs(positions[0])), 12)
