"""Claims about distances between samples of one coordinate."""

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from hpc_cg.analysis import geometry
from hpc_cg.errors import TooFewFrames

RANDOM = np.random.default_rng(3)
LEFT, RIGHT = RANDOM.normal(0.15, 0.003, 400), RANDOM.normal(0.151, 0.004, 700)


def test_distance_of_a_shifted_sample_is_the_shift():
    assert geometry.wasserstein(LEFT, LEFT + 0.002) == pytest.approx(0.002)
    assert geometry.wasserstein(LEFT, LEFT) == pytest.approx(0, abs=1e-16)


def test_distance_of_widened_sample_is_the_mean_distance_of_quantiles():
    assert geometry.wasserstein(LEFT, 3 * LEFT) == pytest.approx(2 * LEFT.mean())


def test_weighted_distance_is_that_of_scipy():
    left, right = RANDOM.uniform(size=400), RANDOM.uniform(size=700)
    expected = wasserstein_distance(LEFT, RIGHT, left, right)
    assert geometry.wasserstein(LEFT, RIGHT, left, right) == pytest.approx(expected, rel=1e-10)


def test_weights_equal_repeated_frames_in_distance_and_width():
    repeats = RANDOM.integers(0, 4, 400)
    weights = repeats.astype(float)
    repeated = np.repeat(LEFT, repeats)
    assert geometry.wasserstein(LEFT, RIGHT, weights) == pytest.approx(geometry.wasserstein(repeated, RIGHT))
    assert geometry.width(LEFT, weights) == pytest.approx(repeated.std())


def test_density_integrates_to_the_share_inside_its_edges():
    edges = geometry.common_edges(LEFT, RIGHT)
    inside = geometry.density(LEFT, edges)
    assert np.sum(inside.density * np.diff(inside.edges)) == pytest.approx(1, abs=5e-3)
    half = geometry.density(LEFT, np.array([np.median(LEFT), 1.0]))
    assert half.density[0] * np.diff(half.edges)[0] == pytest.approx(0.5)


def test_an_empty_sample_is_refused():
    with pytest.raises(TooFewFrames, match="an empty sample"):
        geometry.wasserstein(LEFT, LEFT[:0])
