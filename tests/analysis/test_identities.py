"""Identities of scores on densities that are known, and on scores that are slightly wrong."""

import numpy as np
import pytest
import torch

from hpc_cg.analysis.identities import ScoreSums, effective_labels, stretch_ratios
from hpc_cg.errors import TooFewFrames
from hpc_cg.kernels.gaussian import GaussianKernel
from hpc_cg.randomness import stream
from hpc_cg.units import kT

SIGMA = 0.3
N_BEADS = 4


def draws(centred: bool, n: int = 20_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score, positions and conditions of draws that undo noise on a Gaussian network."""
    root = np.random.default_rng(0).normal(size=(3 * N_BEADS, 3 * N_BEADS))
    covariance = np.linalg.inv(root @ root.T + np.eye(3 * N_BEADS))
    kernel = GaussianKernel.reverse(np.zeros((N_BEADS, 3)), covariance, SIGMA, centred)
    condition = torch.from_numpy(np.random.default_rng(1).normal(size=(n, N_BEADS, 3)))
    draw = kernel.draw(condition, stream(0, "draws"))
    return draw.score.numpy(), draw.positions.numpy(), condition.numpy()


@pytest.mark.parametrize(("centred", "dimension"), [(False, 12), (True, 9)])
def test_a_true_score_has_mean_zero_and_the_virial_of_its_dimension(centred: bool, dimension: int) -> None:
    sums = ScoreSums.of(*draws(centred), centred)
    assert sums.misfit == pytest.approx(1, abs=5 * np.sqrt(2 / dimension))
    assert np.abs(sums.mean_score / sums.mean_score_error).max() < 4
    assert sums.dimension == dimension and sums.virial.error < 0.1
    assert sums.virial.value == pytest.approx(-dimension, abs=4 * sums.virial.error)


def test_errors_are_those_of_independent_draws() -> None:
    score, positions, condition = draws(False)
    sums = ScoreSums.of(score, positions, condition, False)
    virial = np.sum(score * (positions - condition), axis=(1, 2))
    np.testing.assert_allclose(sums.mean_score, score.mean(0), atol=1e-12)
    np.testing.assert_allclose(sums.mean_score_error, score.std(0, ddof=1) / np.sqrt(len(score)), rtol=1e-9)
    assert sums.virial.error == pytest.approx(virial.std(ddof=1) / np.sqrt(len(score)), rel=1e-9)
    assert sums.mean_square.value == pytest.approx(np.mean(score**2), rel=1e-12)


def test_a_score_that_lacks_three_percent_is_found_out() -> None:
    score, positions, condition = draws(False)
    virial = ScoreSums.of(0.97 * score, positions, condition, False).virial
    assert virial.value + 12 > 4 * virial.error


def test_a_score_of_other_draws_is_found_out() -> None:
    score, positions, condition = draws(False)
    sums = ScoreSums.of(score + 0.05 * np.abs(score).mean(), positions, condition, False)
    assert sums.misfit > 10


def test_sums_of_parts_are_those_of_the_whole_and_weights_count_draws() -> None:
    score, positions, condition = draws(True, 500)
    weights = np.random.default_rng(2).integers(0, 3, 500).astype(np.float64)
    score[weights == 0] = np.nan
    parts = [
        ScoreSums.of(score[rows], positions[rows], condition[rows], True, weights[rows])
        for rows in (slice(0, 77), slice(77, 500))
    ]
    times = np.repeat(np.arange(500), weights.astype(int))
    repeated = ScoreSums.of(score[times], positions[times], condition[times], True)
    found = parts[0] + parts[1]
    np.testing.assert_allclose(found.mean_score, repeated.mean_score, rtol=1e-9)
    assert found.virial.value == pytest.approx(repeated.virial.value)
    assert found.n_draws == np.count_nonzero(weights) and found.virial.error > repeated.virial.error


def test_one_draw_has_no_error() -> None:
    with pytest.raises(TooFewFrames, match="1 draws"):
        _ = ScoreSums.of(*(a[:1] for a in draws(False, 2)), False).virial


def test_effective_labels_of_the_one_dimensional_case() -> None:
    """p = N(0, 1), kT = 1: η has mean square 1/σ², the label of the reverse kernel 1/σ² + 1."""
    noise, label = 1 / SIGMA**2, 1 / SIGMA**2 + 1
    assert effective_labels(label, noise) == pytest.approx(0.917, abs=1e-3)
    assert effective_labels(label, noise, mean_force=1.0) == pytest.approx((noise - 1) * SIGMA**2)
    assert effective_labels(1.73, noise, mean_force=1.0) == pytest.approx(13.9, abs=0.1)


def test_labels_that_are_right_tell_how_stiff_bonds_are_and_soft_ones_are_found_out() -> None:
    """Two Gaussian beads: the identity holds for every density, whatever its bond is like."""
    _, positions, _ = draws(False)
    covariance = np.cov(positions.reshape(len(positions), -1).T)
    exact = -kT(300.0) * (positions.reshape(len(positions), -1) @ np.linalg.inv(covariance)).reshape(positions.shape)
    weights = np.random.default_rng(5).integers(0, 3, len(exact)).astype(np.float64)
    exact[weights == 0] = np.nan
    bonds = ((0, 1), (1, 3))
    right, soft = (stretch_ratios(f * exact, positions, bonds, 300.0, weights) for f in (1.0, 0.7))
    assert (np.abs(right[:, 0] - 1) < 4 * right[:, 1]).all() and (right[:, 1] < 0.05).all()
    np.testing.assert_allclose(soft[:, 0], 0.7 * right[:, 0])
