"""Claims about errors of estimates."""

import numpy as np
import pytest

from hpc_cg.analysis import estimate
from hpc_cg.errors import TooFewFrames

N = 4000
INDEPENDENT = np.random.default_rng(4).normal(3.0, 2.0, N)


def correlated(n_chains: int, n_frames: int, memory: float, seed: int = 5) -> np.ndarray:
    """Chains of unit variance in which each frame keeps ``memory`` of the one before."""
    random = np.random.default_rng(seed)
    chain = np.empty((n_chains, n_frames))
    chain[:, 0] = random.normal(size=n_chains)
    for t in range(1, n_frames):
        chain[:, t] = memory * chain[:, t - 1] + np.sqrt(1 - memory**2) * random.normal(size=n_chains)
    return chain


def test_bootstrap_error_of_a_mean_is_the_known_one():
    blocks = estimate.contiguous_blocks([N], 10)

    def mean(draw):
        return float(np.average(INDEPENDENT, weights=draw[blocks]))

    error = estimate.bootstrap_error(mean, [N // 10], seed=1, purpose="mean", n_resamples=400)
    assert error == pytest.approx(2 / np.sqrt(N), rel=0.15)


def test_blocks_see_the_correlation_that_single_frames_hide():
    memory = 0.9
    chain = correlated(100, 500, memory)
    known = np.sqrt((1 + memory) / (1 - memory) / chain.size)
    replicas = estimate.mean_estimate(chain.ravel(), estimate.replica_blocks(100, 500), "1", "x")
    frames = estimate.mean_estimate(chain.ravel(), np.arange(chain.size), "1", "x")
    assert replicas.error == pytest.approx(known, rel=0.2)
    assert frames.error < 0.3 * known
    assert replicas.n_effective == pytest.approx(chain.size * (1 - memory) / (1 + memory), rel=0.45)


def test_the_same_call_gives_the_same_error_and_another_purpose_another():
    def statistic(draw):
        return float(draw @ np.arange(20) / 20)

    first = estimate.bootstrap_error(statistic, [20], 7, "a")
    assert first == estimate.bootstrap_error(statistic, [20], 7, "a")
    assert first != estimate.bootstrap_error(statistic, [20], 7, "b")


def test_weighted_mean_is_the_mean_of_repeated_frames():
    repeats = np.random.default_rng(6).integers(0, 4, N)
    blocks = estimate.contiguous_blocks([N], 100)
    weighted = estimate.mean_estimate(INDEPENDENT, blocks, "1", "x", repeats.astype(float))
    repeated = estimate.mean_estimate(np.repeat(INDEPENDENT, repeats), np.repeat(blocks, repeats), "1", "x")
    assert weighted.value == pytest.approx(repeated.value)
    assert weighted.error == pytest.approx(repeated.error)


def test_blocks_never_cross_a_segment_and_none_is_tiny():
    blocks = estimate.contiguous_blocks([25, 7, 0, 30], 10)
    assert np.bincount(blocks).tolist() == [10, 15, 7, 10, 10, 10]
    assert blocks[24] != blocks[25]


def test_replicas_are_blocks_or_cut_into_parts():
    assert estimate.replica_blocks(2, 3).tolist() == [0, 0, 0, 1, 1, 1]
    assert estimate.replica_blocks(2, 5, parts=2).tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]


def test_one_block_gives_no_error_but_a_refusal():
    with pytest.raises(TooFewFrames, match="1 blocks"):
        estimate.bootstrap_error(lambda draw: 0.0, [1, 1], 0, "x")
    with pytest.raises(TooFewFrames, match="1 blocks"):
        estimate.mean_estimate(INDEPENDENT, np.zeros(N, dtype=int), "1", "x")


def test_a_share_of_none_is_uncertain_by_the_number_of_blocks():
    nothing = np.zeros(1000, dtype=bool)
    few = estimate.share_estimate(nothing, estimate.contiguous_blocks([1000], 100), "mirrored")
    many = estimate.share_estimate(nothing, estimate.contiguous_blocks([1000], 10), "mirrored")
    assert few.value == many.value == 0
    # the standard deviation of a Beta(1, B + 1) distribution
    assert few.error == pytest.approx(np.sqrt(11 / 13) / 12)
    assert many.error < 0.15 * few.error
