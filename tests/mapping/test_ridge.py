"""The ridge is what frames that were not fitted on ask for: none where frames abound, some where they are few."""

from functools import reduce
from operator import add

import numpy as np
import pytest

from hpc_cg.errors import FitFailed, InvalidMap, TooFewFrames
from hpc_cg.mapping import maps
from hpc_cg.mapping.constraints import DistanceMoments, candidate_pairs, rigid_groups
from hpc_cg.mapping.moments import ForceMoments, Groups, GroupSum
from hpc_cg.mapping.optimal import mean_square, optimal_force_map
from hpc_cg.mapping.ridge import RELATIVE, choose_ridge


def free(n_atoms: int) -> tuple[tuple[int, ...], ...]:
    return tuple((atom,) for atom in range(n_atoms))


def correlated(n_frames: int, n_atoms: int, seed: int = 0) -> np.ndarray:
    mix = np.random.default_rng(9).normal(size=(n_atoms, n_atoms)) / np.sqrt(n_atoms) + np.eye(n_atoms)
    return np.einsum("ab,tbx->tax", mix, np.random.default_rng(seed).normal(size=(n_frames, n_atoms, 3)))


def folds_of(forces: np.ndarray, n_folds: int, groups: Groups) -> list[ForceMoments]:
    sums = GroupSum(tuple(groups), forces.shape[1])
    return [ForceMoments.of(part, groups=sums) for part in np.array_split(forces, n_folds)]


def by_brute_force(coordinate: np.ndarray, groups: Groups, folds: list[ForceMoments], ridge: float) -> float:
    total, count = 0.0, sum(fold.count for fold in folds)
    for i, fold in enumerate(folds):
        rest = reduce(add, folds[:i] + folds[i + 1 :])
        force_map = optimal_force_map(coordinate, groups, rest, ridge)
        total += fold.count / count * mean_square(force_map, groups, fold).mean()
    return total


def test_scores_are_those_of_fitting_every_candidate_on_every_fold():
    groups = ((0, 1, 2), (3,), (4, 7), (5,), (6,), (8, 9, 10, 11))
    coordinate = np.zeros((3, 12))
    coordinate[[0, 1, 1, 2], [0, 4, 5, 8]] = [1.0, 0.25, 0.75, 1.0]
    folds = folds_of(correlated(103, 12), 4, groups)
    choice = choose_ridge(coordinate, groups, folds, [10.0, 0.0, 0.1, 1.0])
    assert choice.candidates.tolist() == [0.0, 0.1, 1.0, 10.0] and choice.n_folds == 4
    expected = [by_brute_force(coordinate, groups, folds, float(ridge)) for ridge in choice.candidates]
    np.testing.assert_allclose(choice.scores, expected, rtol=1e-10)
    assert choice.ridge == choice.candidates[np.argmin(expected)]


def test_few_frames_of_many_atoms_want_a_ridge_and_it_helps_on_frames_not_seen():
    coordinate, groups = np.eye(40)[[0, 20]], free(40)
    forces, unseen = correlated(15, 40, seed=1), ForceMoments.of(correlated(4000, 40, seed=2))
    folds = folds_of(forces, 5, groups)
    choice = choose_ridge(coordinate, groups, folds)
    assert choice.ridge > 0
    every = reduce(add, folds)
    chosen, none = (
        mean_square(optimal_force_map(coordinate, groups, every, ridge), groups, unseen).mean()
        for ridge in (choice.ridge, 0.0)
    )
    assert chosen < 0.7 * none


def test_frames_that_abound_want_next_to_no_ridge():
    coordinate, groups = np.eye(10)[[0, 5]], free(10)
    folds = folds_of(correlated(20_000, 10), 5, groups)
    choice = choose_ridge(coordinate, groups, folds)
    assert choice.ridge <= 1e-3 * reduce(add, folds).mean_square.mean()
    assert choice.scores[0] / choice.scores.min() < 1.001


def test_candidate_that_cannot_be_fitted_counts_as_infinite():
    coordinate, groups = np.eye(40)[[0, 20]], free(40)
    folds = folds_of(correlated(8, 40), 2, groups)
    choice = choose_ridge(coordinate, groups, folds)
    assert choice.scores[0] == np.inf and np.isfinite(choice.scores[-1]) and choice.ridge > 0
    with pytest.raises(FitFailed, match="8 frames in 2 folds"):
        choose_ridge(coordinate, groups, folds, [0.0])
    optimal_force_map(coordinate, groups, folds[0] + folds[1], choice.ridge)


def test_equal_scores_go_to_the_smallest_ridge():
    coordinate, groups = np.eye(4)[[0, 2]], ((0, 1), (2, 3))
    choice = choose_ridge(coordinate, groups, folds_of(correlated(30, 4), 3, groups), [5.0, 1.0, 2.0])
    assert choice.ridge == 1.0 and np.ptp(choice.scores) == 0


def test_folds_without_frames_are_left_out():
    coordinate, groups = np.eye(6)[[0]], free(6)
    folds = folds_of(correlated(90, 6), 3, groups)
    with_empty = choose_ridge(coordinate, groups, [folds[0], ForceMoments.empty(6), *folds[1:]])
    assert with_empty.n_folds == 3
    np.testing.assert_array_equal(with_empty.scores, choose_ridge(coordinate, groups, folds).scores)
    assert len(with_empty.candidates) == len(RELATIVE)
    with pytest.raises(TooFewFrames, match="1 folds"):
        choose_ridge(coordinate, groups, [folds[0], ForceMoments.empty(6)])


def test_beads_in_one_rigid_group_have_no_ridge():
    groups = ((0, 1), (2,), (3,))
    with pytest.raises(InvalidMap, match="rigidly"):
        choose_ridge(np.eye(4)[[0, 1]], groups, folds_of(correlated(30, 4), 3, groups))


@pytest.mark.data
def test_ridge_of_a_peptide_with_140_frames(data_folder):
    arrays = np.load(data_folder / "peptide_2olx" / "2olx-traj-arrays.npz")
    topology = maps.load_topology(data_folder / "peptide_2olx" / "2olx-traj-state0.pdb")
    coordinate, _ = maps.slice_map(topology, "calpha")
    folds = folds_of(arrays["forces"], 5, free(65))
    choice = choose_ridge(coordinate, free(65), folds)
    expected = [by_brute_force(coordinate, free(65), folds, float(ridge)) for ridge in choice.candidates[::5]]
    np.testing.assert_allclose(choice.scores[::5], expected, rtol=1e-9)
    scale = reduce(add, folds).mean_square.mean()
    assert choice.ridge <= 1e-3 * scale and choice.scores[0] / choice.scores.min() < 1.01
    # its first 30 frames hold little more rows than there are atoms: judged on the other 110
    few, rest = ForceMoments.of(arrays["forces"][:30]), ForceMoments.of(arrays["forces"][30:])
    chosen = choose_ridge(coordinate, free(65), folds_of(arrays["forces"][:30], 5, free(65))).ridge
    fits = [optimal_force_map(coordinate, free(65), few, ridge) for ridge in (chosen, 0.0)]
    with_ridge, without = (mean_square(force_map, free(65), rest).mean() for force_map in fits)
    assert chosen > 0.01 * scale and with_ridge < 0.75 * without


@pytest.mark.data
def test_ridge_of_chignolin_and_of_water(data_folder):
    import h5py

    with h5py.File(data_folder / "chignolin_all_atom" / "340K_1.h5") as file:
        positions, forces = file["positions"][::20], file["forces"][...]
    groups = rigid_groups(DistanceMoments.of(positions, candidate_pairs(positions[0])), 166)
    coordinate, _ = maps.slice_map(maps.load_topology(data_folder / "chignolin_all_atom" / "topology.pdb"), "calpha")
    choice = choose_ridge(coordinate, groups, folds_of(forces, 5, groups))
    assert choice.scores[0] / choice.scores.min() < 1.02

    waters = np.load(data_folder / "water_dimer" / "waterdimer.npz")["Fs"].astype(np.float64)
    choice = choose_ridge(np.eye(6)[[0, 3]], free(6), folds_of(waters, 5, free(6)))
    assert choice.scores[0] / choice.scores.min() < 1.001
