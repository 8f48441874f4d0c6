"""Markov models: chains that are known, counts by hand, weights that bring equilibrium back from any starts."""

from functools import reduce
from itertools import pairwise

import mdtraj
import numpy as np
import pytest
from conftest import SIX_ATOMS

from hpc_cg import errors
from hpc_cg.analysis import markov, reweighting, timescales
from hpc_cg.analysis.features import dihedral, one_backbone
from hpc_cg.analysis.lagged import Timeline
from hpc_cg.analysis.landscape import histogram, js_divergence
from hpc_cg.analysis.markov import TransitionCounts, reversible
from hpc_cg.analysis.states import States, cluster

FLOW = np.array([[400.0, 4.0, 0.5], [4.0, 250.0, 2.0], [0.5, 2.0, 150.0]])
CHAIN = FLOW / FLOW.sum(axis=1, keepdims=True)
PI = FLOW.sum(axis=1) / FLOW.sum()
TRUE_TIMES = -1 / np.log(np.sort(np.linalg.eigvals(CHAIN).real)[-2::-1])


def walk(starts: np.ndarray, length: int, seed: int, chain: np.ndarray = CHAIN) -> np.ndarray:
    """Chains from given starts, shape (chain, frame)."""
    random, steps = np.random.default_rng(seed), np.cumsum(chain, axis=1)
    found = np.empty((len(starts), length), dtype=np.int64)
    found[:, 0] = starts
    for t in range(1, length):
        found[:, t] = np.sum(random.random(len(starts))[:, None] > steps[found[:, t - 1]], axis=1)
    return found


def counts(states: np.ndarray, lag: int = 1, n_states: int = 3) -> TransitionCounts:
    """Of chains, each of which is a block."""
    timeline = Timeline.of_lengths([states.shape[1]] * len(states))
    return TransitionCounts.of(states.ravel(), timeline, lag, n_states)


def test_counts_by_hand_never_cross_segments():
    found = TransitionCounts.of(np.array([0, 1, 1, 2, 0, 0]), Timeline.of_lengths([4, 2]), 1, 3)
    assert found.matrix().tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert found.matrix(np.array([0.0, 3.0])).tolist() == [[3, 0, 0], [0, 0, 0], [0, 0, 0]]
    wide = TransitionCounts.of(np.array([0, 1, 1, 2, 0, 0]), Timeline.of_lengths([4, 2]), 2, 3)
    assert wide.matrix().tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 0]]


def test_counts_of_parts_in_any_order_are_those_of_one_pass():
    states = walk(np.arange(30) % 3, 100, 1)
    timeline = Timeline.of_lengths([100] * 30)
    whole = TransitionCounts.of(states.ravel(), timeline, 7, 3)
    cuts = [0, 51, 1234, 1250, 3000]
    parts = [
        TransitionCounts.of(states.ravel(), timeline, 7, 3, n_blocks=30, start=a, stop=b) for a, b in pairwise(cuts)
    ]
    for order in (parts, parts[::-1], [parts[i] for i in (2, 0, 3, 1)]):
        total = reduce(TransitionCounts.__add__, order)
        assert np.array_equal(total.keys, whole.keys) and np.array_equal(total.counts, whole.counts)


def test_two_states_by_hand():
    """Two states are always reversible: T is the counts over their row."""
    model = reversible(np.array([[90.0, 10.0], [5.0, 15.0]]), 2)
    assert np.allclose(model.transitions, [[0.9, 0.1], [0.25, 0.75]])
    assert np.allclose(model.stationary, [5 / 7, 2 / 7])
    assert model.timescales == pytest.approx([-2 / np.log(0.65)])


def test_counts_that_balance_give_the_chain_itself():
    model = reversible(FLOW, 1)
    assert np.allclose(model.transitions, CHAIN, atol=1e-12) and np.allclose(model.stationary, PI, atol=1e-12)
    assert model.timescales == pytest.approx(TRUE_TIMES)


def test_no_reversible_model_is_likelier():
    random = np.random.default_rng(5)
    seen = random.integers(0, 40, (6, 6)).astype(float) + 500 * np.eye(6)
    model = reversible(seen, 1)
    flow = model.stationary[:, None] * model.transitions
    assert np.allclose(flow, flow.T, atol=1e-15) and np.allclose(model.transitions.sum(axis=1), 1, atol=1e-9)
    best = np.sum(seen * np.log(model.transitions))
    for _ in range(200):
        other = flow * np.exp(1e-3 * random.normal(size=flow.shape))
        other += other.T
        assert np.sum(seen * np.log(other / other.sum(axis=1, keepdims=True))) < best


def test_balance_is_that_of_the_fixed_point():
    random = np.random.default_rng(2)
    seen = random.integers(0, 30, (8, 8)).astype(float) + 300 * np.eye(8)
    model, x = reversible(seen, 1), seen.sum(axis=1)
    for _ in range(5000):
        x = np.sum((seen + seen.T) / (seen.sum(axis=1)[:, None] / x[:, None] + seen.sum(axis=1) / x), axis=1)
    assert np.allclose(model.stationary, x / x.sum(), rtol=1e-8)


def test_states_that_cannot_be_reached_from_one_another_are_left_out():
    seen = np.array([[5.0, 2, 1, 0], [3, 9, 0, 0], [0, 0, 4, 0], [0, 0, 0, 0]])
    model = reversible(seen, 1)
    assert model.active.tolist() == [0, 1] and model.stationary.sum() == pytest.approx(1)
    with pytest.raises(errors.TooFewFrames, match="no transition"):
        reversible(np.zeros((3, 3)), 1)


@pytest.mark.parametrize("lag", [1, 5, 20])
def test_timescales_of_a_known_chain_are_found_within_their_errors(lag):
    found = timescales.implied_timescales(counts(walk(np.arange(60) % 3, 4000, 3), lag), 0.5, "ps", 1, n_resamples=30)
    assert np.all(np.abs(found.values - 0.5 * TRUE_TIMES) < 4 * found.errors)
    assert np.all(found.errors < 0.1 * found.values) and np.all(found.lost == 0)
    assert [e.unit for e in found.estimates("reference")] == ["ps", "ps"]


def test_errors_of_timescales_are_the_scatter_of_repeats():
    seen = [counts(walk(np.arange(24) % 3, 1000, 100 + i), 5) for i in range(60)]
    scatter = np.std([reversible(one.matrix(), 5).timescales[0] for one in seen], ddof=1)
    found = [timescales.implied_timescales(one, 1.0, "ps", 1, 1, 12).errors[0] for one in seen[:8]]
    assert np.mean(found) == pytest.approx(scatter, rel=0.4)


def test_weights_bring_a_known_equilibrium_back_from_short_biased_starts():
    states = walk(np.repeat([0, 1, 2], [10, 100, 1890]), 40, 4)
    before = np.bincount(states.ravel(), minlength=3) / states.size
    model = reversible(counts(states).matrix(), 1)
    found = reweighting.frame_weights(model, states.ravel(), 3)
    after = np.bincount(states.ravel(), found.weights, minlength=3) / states.size
    assert np.abs(before - PI).max() > 0.3
    assert np.abs(after - PI).max() < 0.05
    assert np.allclose(after, model.stationary) and found.weights.mean() == pytest.approx(1)
    assert found.outside == 0 and found.n_effective < states.size


def test_frames_outside_the_model_weigh_nothing():
    model = reversible(np.array([[5.0, 2, 1], [3, 9, 0], [0, 0, 4]]), 1)
    found = reweighting.frame_weights(model, np.array([0, 1, 2, 2]), 3)
    assert found.outside == 0.5 and found.weights[2:].tolist() == [0, 0]
    assert found.weights[:2] == pytest.approx(4 * model.stationary)
    with pytest.raises(errors.TooFewFrames, match="1 of its 2 states without a frame"):
        reweighting.frame_weights(model, np.array([0, 0]), 3)


def test_weights_of_an_archive_have_a_place_for_every_frame():
    timeline = Timeline(np.array([0, 0, 2]), np.array([0, 2, 1]))
    found = reweighting.of_archive(np.array([1.0, 2.0, 3.0]), timeline, [3, 1, 2])
    assert found.tolist() == [1, 0, 2, 0, 0, 3]
    with pytest.raises(errors.BadWeights, match="frame 2 of segment 0"):
        reweighting.of_archive(np.ones(3), timeline, [2, 1, 2])


def faster(factor: int, seed: int) -> timescales.ImpliedTimescales:
    """A model whose time runs ``factor`` times as fast: a frame of it is so many steps of the chain."""
    chain = np.linalg.matrix_power(CHAIN, factor)
    return timescales.implied_timescales(
        counts(walk(np.arange(60) % 3, 3000, seed, chain), 2), 1.0, "ps", seed, n_resamples=30
    )


def test_time_scaling_is_the_factor_by_which_a_model_is_faster():
    found = timescales.time_scaling(faster(1, 1), faster(5, 2))
    assert all(abs(one.value - 5) < 4 * one.error for one in (*found.ratios, found.common))
    assert found.common.error <= min(one.error for one in found.ratios) and found.misfit < 5
    assert min(found.overlap) > 0.9


def test_a_model_that_speeds_up_one_process_has_no_one_factor():
    flow = FLOW + np.array([[0.0, 12, 0], [12, 0, 0], [0, 0, 0]])
    chain = flow / flow.sum(axis=1, keepdims=True)
    other = timescales.implied_timescales(
        counts(walk(np.arange(60) % 3, 3000, 7, chain), 2), 1.0, "ps", 3, n_resamples=30
    )
    assert timescales.time_scaling(faster(1, 1), other).misfit > 10


def test_too_little_for_timescales_is_said():
    states = walk(np.array([0, 1]), 50, 1)
    with pytest.raises(errors.TooFewFrames, match="transitions in 1 blocks"):
        timescales.implied_timescales(counts(states[:1]), 1.0, "ps", 1)
    once = np.array([[0] * 20, [0] * 20, [0] * 10 + [1] * 10, [1] * 10 + [0] * 10])
    with pytest.raises(errors.TooFewFrames, match="no such process in"):
        timescales.implied_timescales(counts(once, n_states=2), 1.0, "ps", 1, n_processes=1, n_resamples=30)
    with pytest.raises(errors.TooFewFrames, match="ask for fewer processes".capitalize()):
        timescales.implied_timescales(counts(states[:, :30]), 1.0, "ps", 1, n_processes=5)


def test_clusters_far_apart_are_found_in_order_and_again():
    random = np.random.default_rng(0)
    places = np.array([[3.0, 0.0], [-2.0, 1.0], [0.5, -4.0]])
    points = np.concatenate([place + 0.1 * random.normal(size=(200, 2)) for place in places])
    found, again = (cluster(points, 3, 7) for _ in range(2))
    assert np.array_equal(found.centres, again.centres)
    assert np.allclose(found.centres, places[[1, 2, 0]], atol=0.05)
    assert found.assign(places).tolist() == [2, 0, 1]


def test_centres_are_the_weighted_means_of_their_frames():
    random = np.random.default_rng(1)
    points, weights = random.normal(size=(500, 2)), random.random(500)
    states = cluster(points, 6, 1, weights)
    member = states.assign(points)
    means = [np.average(points[member == i], axis=0, weights=weights[member == i]) for i in range(6)]
    assert np.allclose(states.centres, means, atol=1e-7)
    assert states.n_states == 6


def test_more_states_than_different_frames_are_refused():
    with pytest.raises(errors.TooFewFrames, match="3 states: found 2 different frames"):
        cluster(np.array([[0.0], [0.0], [1.0]]), 3, 1)


def test_no_state_is_empty_though_seeds_may_be():
    points = np.concatenate([np.zeros((50, 1)), np.ones((2, 1)), 5 * np.ones((1, 1))])
    states = cluster(points, 3, 2)
    assert states.centres.ravel().tolist() == [0, 1, 5]
    assert States(np.array([[0.0], [9.0]])).assign(points).max() == 1


def test_connected_states_are_the_largest_set_by_counts():
    seen = np.zeros((5, 5))
    seen[np.ix_([0, 1, 2], [0, 1, 2])] = 1
    seen[np.ix_([3, 4], [3, 4])] = 100
    assert markov.connected(seen).tolist() == [3, 4]


@pytest.mark.data
def test_weights_bring_alanine_back_from_starts_far_from_equilibrium(data_folder, alanine, six):
    """80 runs of 150 ps, half of them at φ > 0, which the three runs of 10 ns never visit for long."""
    top, residue = data_folder / "ala2_all_atom" / "topology.pdb", one_backbone(six)
    files = sorted((data_folder / "ala2_seeded").glob("*.trr"))
    runs = [mdtraj.load(file, top=top, atom_indices=SIX_ATOMS).xyz for file in files]
    phi, psi = (dihedral(np.concatenate(runs), q) for q in (residue.phi, residue.psi))
    points = np.column_stack([np.cos(phi), np.sin(phi), np.cos(psi), np.sin(psi)])
    states = cluster(points, 20, 1).assign(points)
    seen = TransitionCounts.of(states, Timeline.of_lengths([len(run) for run in runs]), 10, 20)
    found = reweighting.frame_weights(reversible(seen.matrix(), 10), states, 20)
    truth = histogram(*(dihedral(alanine.beads, q) for q in (residue.phi, residue.psi)))
    before, after = (js_divergence(truth, histogram(phi, psi, weights=w)) for w in (None, found.weights))
    assert before > 0.2 and after < 0.02
    times = timescales.implied_timescales(seen, 0.5, "ps", 1, n_processes=1, n_resamples=20)
    assert abs(times.values[0] - 24) < 4 * times.errors[0]
