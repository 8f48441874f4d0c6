"""Slow components: exact eigenvalues of an Ornstein-Uhlenbeck process, pairs within segments, parts that add up."""

from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
from scipy.signal import lfilter

from hpc_cg import errors
from hpc_cg.analysis.choice import Choice
from hpc_cg.analysis.lagged import Timeline
from hpc_cg.analysis.tica import LaggedMoments

TIMES = np.array([50.0, 8.0, 1.0])
LENGTHS = (70_000, 50_000, 80_000)


def ornstein_uhlenbeck(times: np.ndarray, n: int, random: np.random.Generator) -> np.ndarray:
    """Independent processes of variance 1 with these correlation times in frames, started in equilibrium."""
    keep = np.exp(-1 / times)
    noise = random.normal(size=(n, len(times)))
    noise[1:] *= np.sqrt(1 - keep**2)
    return np.column_stack([lfilter([1], [1, -k], column) for k, column in zip(keep, noise.T, strict=True)])


@pytest.fixture(scope="module")
def process() -> np.ndarray:
    random = np.random.default_rng(1)
    return np.concatenate([ornstein_uhlenbeck(TIMES, n, random) for n in LENGTHS])


TIMELINE = Timeline.of_lengths(LENGTHS)
MIXING = np.array([[1.0, 0.3, -2.0], [50.0, 4.0, 1.0], [0.0, 1e-3, 1e-3]])


def moments(x: np.ndarray, lag: int, start: int = 0, stop: int | None = None) -> LaggedMoments:
    early = TIMELINE.earlier(lag, start, stop)
    return LaggedMoments.of(x[early], x[early + lag])


@pytest.mark.parametrize("lag", [1, 5, 20])
def test_eigenvalues_of_an_ornstein_uhlenbeck_process_are_exponentials_of_the_lag(process, lag):
    tica = moments(process @ MIXING.T + 7.0, lag).fit(lag)
    error = 4 * np.sqrt(2 * TIMES / len(process))
    assert np.all(np.abs(tica.eigenvalues - np.exp(-lag / TIMES)) < error)
    assert tica.timescales[0] == pytest.approx(TIMES[0], rel=0.1)


def test_slow_components_are_the_processes_that_were_mixed(process):
    tica = moments(process @ MIXING.T, 5).fit(5)
    found = tica.project(process @ MIXING.T, 3)
    assert np.all(np.abs(np.corrcoef(found.T, process.T)[:3, 3:].diagonal()) > 0.99)
    assert np.allclose(np.cov(found.T), np.eye(3), atol=0.02)


def test_units_of_the_features_do_not_matter(process):
    here, there = (moments(process * scale, 5).fit(5) for scale in (1.0, np.array([1e6, 1e-6, 1.0])))
    assert here.eigenvalues == pytest.approx(there.eigenvalues, abs=1e-10)
    assert np.allclose(here.project(process), there.project(process * [1e6, 1e-6, 1.0]), atol=1e-7)


def test_features_that_follow_from_others_or_do_not_vary_are_left_out(process):
    wide = np.column_stack([process, process[:, 0] + process[:, 1], np.full(len(process), 3.0)])
    assert moments(wide, 5).fit(5).eigenvalues == pytest.approx(moments(process, 5).fit(5).eigenvalues, abs=1e-8)


def test_parts_in_any_order_add_up_to_one_pass(process):
    whole = moments(process, 20)
    cuts = [0, 13, 69_990, 70_001, 120_000, 150_000, 200_000]
    parts = [moments(process, 20, *cut) for cut in pairwise(cuts)]
    for order in (parts, parts[::-1], [parts[i] for i in (3, 0, 5, 1, 4, 2)]):
        total = reduce(LaggedMoments.__add__, order)
        assert total.n_pairs == whole.n_pairs == sum(LENGTHS) - 3 * 20
        assert np.allclose(total.scatter, whole.scatter, rtol=1e-10, atol=1e-7)
        assert np.allclose(total.fit(20).components, whole.fit(20).components, atol=1e-9)


def test_offsets_that_dwarf_the_motion_do_not_spoil_it(process):
    near, far = moments(process, 5), moments(process + 1e6, 5)
    assert near.fit(5).eigenvalues == pytest.approx(far.fit(5).eigenvalues, abs=1e-6)


def test_moments_by_hand():
    found = LaggedMoments.of(np.array([[0.0], [2.0]]), np.array([[2.0], [6.0]]), np.array([3.0, 1.0]))
    assert found.mean.tolist() == [0.5, 3.0]
    assert found.scatter.tolist() == [[3.0, 6.0], [6.0, 12.0]]


def test_reversible_eigenvalues_by_hand():
    """Pairs (1, -1), (-1, 1), (1, 1): about the mean 1/3 of both ends, C(0) is 8/9 and C(τ) is -4/9."""
    tica = LaggedMoments.of(np.array([[1.0], [-1.0], [1.0]]), np.array([[-1.0], [1.0], [1.0]])).fit(1)
    assert tica.eigenvalues == pytest.approx([-0.5])
    assert np.isnan(tica.timescales[0])


def test_pairs_never_cross_segments_or_gaps():
    timeline = Timeline(np.array([0, 0, 0, 0, 1, 1, 1]), np.array([0, 1, 3, 4, 0, 1, 2]))
    assert timeline.earlier(1).tolist() == [0, 2, 4, 5]
    assert timeline.earlier(2).tolist() == [4]
    assert timeline.earlier(1, 1, 5).tolist() == [2, 4]


def test_a_lag_beyond_every_segment_is_refused_in_words():
    with pytest.raises(errors.UnfitLag, match="segments of at most 4 frames. Shorten the lag"):
        Timeline.of_lengths([4, 3]).check(4)
    with pytest.raises(errors.TooFewFrames, match="a gap between any two such frames"):
        Timeline(np.zeros(4, dtype=int), np.array([0, 2, 4, 6])).check(1)


def test_fewer_frames_than_features_are_refused():
    x = np.random.default_rng(0).normal(size=(9, 9))
    with pytest.raises(errors.TooFewFrames, match="slow components of 9 features: found 9 pairs"):
        LaggedMoments.of(x, x).fit(1)
    with pytest.raises(errors.TooFewFrames, match="none that varies"):
        LaggedMoments.of(np.ones((9, 2)), np.ones((9, 2))).fit(1)
    with pytest.raises(errors.TooFewFrames, match="2 slow components: found 1 independent"):
        LaggedMoments.of(x[:, :1], x[:, :1]).fit(1).project(x[:, :1])


def test_features_are_distances_and_turned_dihedrals(peptide, six):
    phi, psi = np.array([-1.0, 3.1]), np.array([2.0, -3.1])
    positions = peptide(phi, psi)
    chosen = Choice(((0, 1), (1, 2)), ((0, 1, 2, 4), (1, 2, 4, 5)))
    found = chosen.of(positions)
    assert found.shape == (2, chosen.n_features) == (2, 6)
    expected = np.column_stack([[0.133] * 2, [0.146] * 2, np.cos(phi), np.sin(phi), np.cos(psi), np.sin(psi)])
    assert np.allclose(found, expected)
    raw = Choice((), ((0, 1, 2, 4),), raw=True)
    assert raw.of(positions)[:, 0] == pytest.approx(phi) and raw.n_features == 1
    assert Choice.every(six).n_features == 15 + 2 * len(six.dihedrals)


def test_features_of_beads_that_are_not_there_are_refused():
    with pytest.raises(errors.UnknownBeads, match="beads 0 to 3"):
        Choice(((0, 4),)).of(np.zeros((1, 4, 3)))
    with pytest.raises(errors.UnknownBeads, match="neither a pair nor a dihedral"):
        Choice(())
