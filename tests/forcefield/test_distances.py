"""Distances of beads that are not bonded, and what is taken for the size of a bead."""

import numpy as np
import pytest

from hpc_cg.beads import BeadSystem, bead_system
from hpc_cg.forcefield.coordinates import CoordinateMoments
from hpc_cg.forcefield.distances import FARTHEST, PairDistances, bonds_between, pair_groups
from hpc_cg.forcefield.fitting import Repulsion, fit_priors


def chain(n_beads: int = 8, types: tuple[int, ...] | None = None) -> BeadSystem:
    names, bonds = [f"A{i}:CA" for i in range(n_beads)], [(i, i + 1) for i in range(n_beads - 1)]
    return bead_system(names, types or range(n_beads), [12.0] * n_beads, bonds)


def coil(n_frames: int, seed: int = 0) -> np.ndarray:
    """Frames of eight beads along loose, bent chains; nm."""
    random = np.random.default_rng(seed)
    steps = random.normal([0.25, 0.1, 0.0], 0.12, (n_frames, 7, 3))
    return np.concatenate((np.zeros((n_frames, 1, 3)), np.cumsum(steps, axis=1)), axis=1)


def test_bonds_between_beads_are_counted_along_the_shortest_way() -> None:
    ring = bead_system("abcdefg", range(7), [12.0] * 7, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0), (5, 6)])
    between = bonds_between(ring)
    assert between[0, 3] == 2 and between[1, 3] == 2 and between[0, 1] == 1
    assert np.isinf(between[0, 5])


def test_pairs_of_two_molecules_repel_and_close_ones_along_bonds_do_not() -> None:
    two = bead_system("abcdef", range(6), [12.0] * 6, [(0, 1), (1, 2), (3, 4), (4, 5)])
    groups = pair_groups(two)
    far = {tuple(pair) for pair in groups.pairs[groups.kinds[groups.group, 2] == FARTHEST].tolist()}
    assert far == {(i, j) for i in range(3) for j in range(3, 6)}
    moments = CoordinateMoments.of(np.random.default_rng(0).uniform(0, 1, (50, 6, 3)), two)
    fitted = fit_priors(moments, 300.0, repulsion=Repulsion())
    assert {tuple(pair) for pair in fitted.repulsion_pairs.tolist()} == far


def test_in_a_chain_pairs_at_least_four_bonds_apart_repel() -> None:
    fitted = fit_priors(CoordinateMoments.of(coil(400), chain()), 300.0, repulsion=Repulsion())
    assert {tuple(pair) for pair in fitted.repulsion_pairs.tolist()} == {
        (i, j) for i in range(8) for j in range(i + 4, 8)
    }
    assert len(fit_priors(CoordinateMoments.of(coil(400), chain()), 300.0).repulsion_sigma) == 0


def test_sigma_of_percentile_zero_is_the_smallest_distance_of_the_two_types() -> None:
    types = (0, 1, 0, 1, 0, 1, 0, 1)
    frames, system = coil(300), chain(8, (0, 1, 0, 1, 0, 1, 0, 1))
    choice = Repulsion(percentile=0.0, largest_nm=9.0)
    fitted = fit_priors(CoordinateMoments.of(frames, system), 300.0, repulsion=choice)
    pairs = fitted.repulsion_pairs
    lengths = np.linalg.norm(frames[:, pairs[:, 1]] - frames[:, pairs[:, 0]], axis=-1).min(axis=0)
    kinds = [tuple(sorted((types[i], types[j]))) for i, j in pairs]
    smallest = {kind: min(x for x, other in zip(lengths, kinds, strict=True) if other == kind) for kind in kinds}
    assert len(smallest) == 3
    assert fitted.repulsion_sigma == pytest.approx([smallest[kind] for kind in kinds], rel=1e-12)


def test_sigma_of_a_percentile_is_that_of_the_weighted_distances() -> None:
    frames, weights = coil(20_000), np.random.default_rng(3).integers(0, 4, 20_000).astype(np.float64)
    choice = Repulsion(percentile=2.0, largest_nm=9.0)
    fitted = fit_priors(CoordinateMoments.of(frames, chain(), weights), 300.0, repulsion=choice)
    i, j = fitted.repulsion_pairs[0]
    lengths = np.linalg.norm(frames[:, j] - frames[:, i], axis=-1)
    repeated = np.repeat(lengths, weights.astype(int))
    assert fitted.repulsion_sigma[0] == pytest.approx(np.quantile(repeated, 0.02), abs=2e-3)


def test_beads_that_were_never_seen_close_repel_no_further_than_the_largest_sigma() -> None:
    frames = coil(100) * 9
    for percentile in (0.0, 0.1):
        fitted = fit_priors(
            CoordinateMoments.of(frames, chain()), 300.0, repulsion=Repulsion(percentile=percentile, largest_nm=0.6)
        )
        assert fitted.repulsion_sigma.max() == 0.6


def test_distances_of_blocks_add_up_and_frames_without_weight_do_not_count() -> None:
    frames, system = coil(100), chain()
    weights = np.where(np.arange(100) < 60, 1.0, 0.0)
    whole = PairDistances.of(frames[:60], system, weights[:60])
    parts = [
        PairDistances.of(x, system, w)
        for x, w in zip(np.split(frames, [7, 30]), np.split(weights, [7, 30]), strict=True)
    ]
    total = parts[1] + parts[2] + parts[0]
    assert np.array_equal(total.shortest, whole.shortest)
    assert np.allclose(total.counts, whole.counts)
