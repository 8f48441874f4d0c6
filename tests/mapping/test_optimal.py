"""Force maps give the mean force exactly; the optimal one with the least noise."""

from functools import reduce
from operator import add

import numpy as np
import pytest

from hpc_cg.errors import FitFailed, InvalidMap, TooFewFrames
from hpc_cg.mapping import maps
from hpc_cg.mapping.constraints import DistanceMoments, candidate_pairs, group_matrix, rigid_groups
from hpc_cg.mapping.moments import FitMoments, ForceMoments, GroupSum
from hpc_cg.mapping.optimal import (
    bead_second_moment,
    check_map,
    mean_square,
    optimal_force_map,
    slice_force_map,
    uniform_force_map,
)

KCAL_PER_ANGSTROM = 41.84


def in_memory(coordinate: np.ndarray, groups: tuple, forces: np.ndarray, ridge: float) -> np.ndarray:
    """The optimal map as least squares over all frames at once, through the KKT matrix."""
    K = group_matrix(groups, forces.shape[1])
    rows = forces.transpose(0, 2, 1).reshape(-1, forces.shape[1]) @ K
    P, A = rows.T @ rows / len(rows) + ridge * K.T @ K, coordinate @ K
    kkt = np.block([[P, A.T], [A, np.zeros((len(A), len(A)))]])
    right = np.concatenate([np.zeros((len(P), len(A))), np.eye(len(A))])
    return (K @ np.linalg.solve(kkt, right)[: len(P)]).T


def free(n_atoms: int) -> tuple[tuple[int, ...], ...]:
    return tuple((atom,) for atom in range(n_atoms))


def random_moments(n_atoms: int, n_frames: int = 200, seed: int = 0) -> ForceMoments:
    generator = np.random.default_rng(seed)
    mix = generator.normal(size=(n_atoms, n_atoms))
    return ForceMoments.of(500 * np.einsum("ab,tbx->tax", mix, generator.normal(size=(n_frames, n_atoms, 3))))


def summed(moments: ForceMoments, groups: tuple[tuple[int, ...], ...]) -> ForceMoments:
    """Moments of the forces on groups from those of the forces on atoms."""
    K = group_matrix(groups, moments.n_groups)
    return ForceMoments(moments.count, K.T @ moments.gram @ K)


def harmonic_moments(stiffness: np.ndarray, kT: float) -> ForceMoments:
    """Exact moments of f = -K x at temperature T: ⟨f fᵀ⟩ = kT K per axis."""
    return ForceMoments(count=1.0, gram=3 * kT * stiffness)


def test_optimal_weight_of_a_free_atom_is_minus_its_regression_coefficient():
    moments = random_moments(2)
    g = moments.mean
    force_map = optimal_force_map(np.array([[1.0, 0.0]]), free(2), moments)
    np.testing.assert_allclose(force_map, [[1.0, -g[0, 1] / g[1, 1]]], rtol=1e-10)
    assert mean_square(force_map, free(2), moments)[0] == pytest.approx(g[0, 0] - g[0, 1] ** 2 / g[1, 1])


def test_ridge_is_per_frame_and_axis():
    moments = random_moments(2)
    g, ridge = moments.mean, 3e5
    expected = [[1.0, -g[0, 1] / (g[1, 1] + ridge)]]
    coordinate = np.array([[1.0, 0.0]])
    np.testing.assert_allclose(optimal_force_map(coordinate, free(2), moments, ridge), expected, rtol=1e-10)
    np.testing.assert_allclose(optimal_force_map(coordinate, free(2), moments + moments, ridge), expected, rtol=1e-10)


def test_optimal_map_of_a_harmonic_molecule_is_its_mean_force_without_noise():
    generator = np.random.default_rng(3)
    root = generator.normal(size=(8, 8))
    stiffness, kT = root @ root.T + np.eye(8), 2.494
    coordinate = np.eye(8)[[0, 3, 5]]
    force_map = optimal_force_map(coordinate, free(8), harmonic_moments(stiffness, kT))
    # B f = -B K x must be -K_eff C x for every x, where K_eff = (C K⁻¹ Cᵀ)⁻¹ is that of the mean force.
    effective = np.linalg.inv(coordinate @ np.linalg.inv(stiffness) @ coordinate.T)
    np.testing.assert_allclose(force_map @ stiffness, effective @ coordinate, atol=1e-8)
    second = bead_second_moment(force_map, free(8), harmonic_moments(stiffness, kT))
    np.testing.assert_allclose(second, kT * effective, atol=1e-8)


def test_every_valid_map_gives_the_same_mean_force_in_a_harmonic_molecule():
    generator = np.random.default_rng(4)
    root = generator.normal(size=(6, 6))
    stiffness, kT = root @ root.T + np.eye(6), 2.494
    covariance = kT * np.linalg.inv(stiffness)
    coordinate = np.array([[0.5, 0.5, 0, 0, 0, 0], [0, 0, 0, 1.0, 0, 0]])
    groups = ((0, 1), (2,), (3, 4), (5,))
    effective = kT * np.linalg.inv(coordinate @ covariance @ coordinate.T)
    for force_map in (
        slice_force_map(coordinate),
        uniform_force_map(coordinate, groups),
        optimal_force_map(coordinate, groups, summed(harmonic_moments(stiffness, kT), groups)),
    ):
        slope = (force_map @ -stiffness @ covariance @ coordinate.T) @ np.linalg.inv(
            coordinate @ covariance @ coordinate.T
        )
        np.testing.assert_allclose(slope, -effective, atol=1e-8)


def test_optimal_map_respects_rigid_groups_and_orthogonality():
    coordinate = np.eye(10)[[0, 4, 7]]
    groups = ((0, 1, 2), (3,), (4, 5), (6,), (7,), (8, 9))
    force_map = optimal_force_map(coordinate, groups, summed(random_moments(10), groups))
    np.testing.assert_allclose(coordinate @ force_map.T, np.eye(3), atol=1e-12)
    for group in groups:
        assert np.ptp(force_map[:, list(group)], axis=1).max() == 0
    check_map(coordinate, force_map, groups)


def test_no_other_valid_map_has_a_smaller_mean_square():
    coordinate, groups = np.eye(6)[[0, 2]], ((0, 1), (2,), (3,), (4, 5))
    moments = summed(random_moments(6), groups)
    best = optimal_force_map(coordinate, groups, moments)
    generator = np.random.default_rng(5)
    for _ in range(20):
        change = np.zeros((2, 6))
        change[:, 3] = generator.normal(size=2)
        change[:, 4:] = generator.normal(size=(2, 1))
        assert (mean_square(best + 0.1 * change, groups, moments) > mean_square(best, groups, moments)).all()


@pytest.mark.parametrize("ridge", [0.0, 0.3, 1e4])
def test_map_from_moments_in_pieces_is_the_map_from_all_frames_in_memory(ridge):
    generator = np.random.default_rng(8)
    groups = ((0, 1, 2), (3,), (4, 7), (5,), (6,), (8, 9, 10, 11))
    forces = generator.normal(size=(300, 12, 3))
    coordinate = np.zeros((3, 12))
    coordinate[[0, 1, 1, 2], [0, 4, 5, 8]] = [1.0, 0.25, 0.75, 1.0]
    pieces = [ForceMoments.of(piece, groups=GroupSum(groups, 12)) for piece in np.split(forces, [1, 77, 200])]
    force_map = optimal_force_map(coordinate, groups, reduce(add, pieces), ridge)
    np.testing.assert_allclose(force_map, in_memory(coordinate, groups, forces, ridge), rtol=1e-12, atol=1e-13)


def test_map_with_nothing_left_to_choose_is_the_only_one():
    coordinate = np.eye(4)[[0, 2]]
    groups = ((0, 1), (2, 3))
    force_map = optimal_force_map(coordinate, groups, summed(random_moments(4), groups))
    np.testing.assert_allclose(force_map, [[1, 1, 0, 0], [0, 0, 1, 1]], atol=1e-14)


def test_uniform_map_takes_all_atoms_bound_to_a_bead_and_no_other():
    coordinate = np.eye(6)[[0, 4]]
    force_map = uniform_force_map(coordinate, ((0, 1, 2), (3,), (4, 5)))
    np.testing.assert_array_equal(force_map, [[1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1]])


def test_uniform_map_of_a_centre_of_mass_sums_the_molecule():
    coordinate = np.array([[16.0, 1.0, 1.0]]) / 18
    np.testing.assert_allclose(uniform_force_map(coordinate, free(3)), np.ones((1, 3)))


def test_mean_square_is_that_of_the_mapped_forces():
    forces = np.random.default_rng(7).normal(size=(50, 4, 3))
    force_map = np.array([[1.0, 0.5, 0, 0], [0, 0, 1.0, -0.3]])
    mapped = force_map @ forces
    np.testing.assert_allclose(
        mean_square(force_map, free(4), ForceMoments.of(forces)), (mapped**2).mean(axis=(0, 2)), rtol=1e-12
    )
    with pytest.raises(InvalidMap, match="atoms 0, 1"):
        mean_square(force_map, ((0, 1), (2, 3)), ForceMoments.of(forces[:, :2]))


def test_beads_in_one_rigid_group_have_no_map():
    coordinate, groups = np.eye(4)[[0, 1]], ((0, 1), (2,), (3,))
    with pytest.raises(InvalidMap, match="bead"):
        uniform_force_map(coordinate, groups)
    with pytest.raises(InvalidMap, match="rigidly"):
        optimal_force_map(coordinate, groups, summed(random_moments(4), groups))


def test_check_refuses_maps_that_give_wrong_mean_forces():
    coordinate, groups = np.eye(3)[[0]], ((0, 1), (2,))
    with pytest.raises(InvalidMap, match="atoms 0, 1"):
        check_map(coordinate, slice_force_map(coordinate), groups)
    with pytest.raises(InvalidMap, match=r"= 1"):
        check_map(coordinate, np.array([[2.0, 2.0, 0.0]]), groups)
    with pytest.raises(InvalidMap, match="nan"):
        check_map(coordinate, np.full((1, 3), np.nan), groups)


def test_too_few_frames_are_said_and_a_ridge_mends_it():
    coordinate = np.eye(30)[[0, 10]]
    few = random_moments(30, n_frames=5)
    with pytest.raises(FitFailed, match="5 frames that do not determine it"):
        optimal_force_map(coordinate, free(30), few)
    assert np.isfinite(optimal_force_map(coordinate, free(30), few, ridge=1.0)).all()
    with pytest.raises(TooFewFrames):
        optimal_force_map(coordinate, free(30), ForceMoments.empty(30))


@pytest.fixture(scope="module")
def alanine(data_folder):
    """Coordinate map, rigid groups, moments of runs 1 + 2 and of run 3; of groups, and of the slice map's beads."""
    import h5py

    folder = data_folder / "ala2_all_atom"
    runs = []
    for number in (1, 2, 3):
        with h5py.File(folder / f"300K_{number}.h5") as file:
            runs.append((file["positions"][::200], file["forces"][...]))
    sampled = np.concatenate([positions for positions, _ in runs])
    groups = rigid_groups(DistanceMoments.of(sampled, candidate_pairs(sampled[0])), 22)
    coordinate, _ = maps.slice_map(maps.load_topology(folder / "topology.pdb"), "alanine-six")
    sums, sliced = GroupSum(groups, 22), slice_force_map(coordinate)
    of_groups = [ForceMoments.of(forces, groups=sums) for _, forces in runs]
    of_beads = [ForceMoments.of(sliced @ forces) for _, forces in runs]
    train = (of_groups[0] + of_groups[1], of_beads[0] + of_beads[1])
    return coordinate, groups, FitMoments(train[0], of_groups[2], train[1], of_beads[2])


@pytest.mark.data
def test_optimal_map_is_less_noisy_than_uniform_and_slice_on_a_run_it_has_not_seen(alanine):
    coordinate, groups, moments = alanine
    candidates = {
        "uniform": uniform_force_map(coordinate, groups),
        "optimal": optimal_force_map(coordinate, groups, moments.train),
    }
    fitted = {name: mean_square(matrix, groups, moments.train).mean() for name, matrix in candidates.items()}
    assert fitted | {"slice": moments.slice_train.mean_square.mean()} == {
        "slice": pytest.approx(1_143_235, rel=1e-5),
        "uniform": pytest.approx(1_024_095, rel=1e-5),
        "optimal": pytest.approx(688_241, rel=1e-5),
    }
    seen = {name: mean_square(matrix, groups, moments.held_out).mean() for name, matrix in candidates.items()}
    assert seen["optimal"] / seen["uniform"] == pytest.approx(0.671, abs=0.005)
    assert seen["optimal"] / moments.slice_held_out.mean_square.mean() == pytest.approx(0.603, abs=0.005)
    assert seen["optimal"] / fitted["optimal"] < 1.05
    assert np.abs(coordinate @ candidates["optimal"].T - np.eye(6)).max() < 1e-12


@pytest.mark.data
def test_slice_of_alanine_breaks_rigid_bonds_and_is_refused(alanine):
    coordinate, groups, _ = alanine
    with pytest.raises(InvalidMap, match="move as one"):
        check_map(coordinate, slice_force_map(coordinate), groups)


@pytest.mark.data
def test_peptide_of_four_residues_gives_the_known_mean_squares(data_folder):
    arrays = np.load(data_folder / "peptide_2olx" / "2olx-traj-arrays.npz")
    topology = maps.load_topology(data_folder / "peptide_2olx" / "2olx-traj-state0.pdb")
    coordinate, _ = maps.slice_map(topology, "calpha")
    moments = ForceMoments.of(arrays["forces"].astype(np.float64) / KCAL_PER_ANGSTROM)
    assert mean_square(slice_force_map(coordinate), free(65), moments).mean() == pytest.approx(943.125, abs=1e-2)
    for total_ridge, expected in ((0.0, 85.80), (10.0, 85.802), (1e3, 89.61), (1e4, 149.59)):
        ridge = total_ridge / (3 * moments.count)
        force_map = optimal_force_map(coordinate, free(65), moments, ridge)
        assert mean_square(force_map, free(65), moments).mean() == pytest.approx(expected, abs=1e-2)


@pytest.mark.data
def test_two_waters_give_the_known_mean_squares(data_folder):
    arrays = np.load(data_folder / "water_dimer" / "waterdimer.npz")
    moments = ForceMoments.of(arrays["Fs"].astype(np.float64) / KCAL_PER_ANGSTROM)
    coordinate = np.eye(6)[[0, 3]]
    optimal = optimal_force_map(coordinate, free(6), moments)
    assert mean_square(slice_force_map(coordinate), free(6), moments).mean() == pytest.approx(557.15, abs=1e-2)
    molecules = np.repeat(np.eye(2), 3, axis=1)
    assert mean_square(molecules, free(6), moments).mean() == pytest.approx(5.6424, abs=1e-4)
    assert mean_square(optimal, free(6), moments).mean() == pytest.approx(5.6271, abs=1e-4)
