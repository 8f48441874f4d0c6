"""Slow motion of an ensemble beside the reference: a chain of beads whose end hops between two places."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.signal import lfilter

from hpc_cg import errors
from hpc_cg.analysis.choice import Choice, apart
from hpc_cg.analysis.lagged import Timeline
from hpc_cg.analysis.sample import Sample
from hpc_cg.analysis.slow import (
    Run,
    SlowSettings,
    compare_slow,
    fit_tica,
    lagged_moments,
    plane_cells,
    plane_edges,
    project,
)

FOLDED = np.array([[0.0, 0, 0], [0.4, 0, 0], [0.8, 0.1, 0], [0.6, 0.5, 0.0]])
CHOICE = Choice(apart(4, 1), ((0, 1, 2, 3),))
SETTINGS = SlowSettings(CHOICE, apart(4, 2), FOLDED, n_states=4, n_bins=20, contact_nm=0.7, n_resamples=20)
LENGTH, RUNS = 1500, 12


def hopping(time: float, seed: int, opened: float = 0.5, stride_ps: float = 1.0, runs: int = RUNS) -> Run:
    """Runs of four beads whose last is near or far; the hop relaxes in ``time`` frames, the noise in three."""
    random = np.random.default_rng(seed)
    leave = (1 - np.exp(-1 / time)) * np.array([opened, 1 - opened])
    far = np.empty((runs, LENGTH), dtype=np.int64)
    far[:, 0] = random.random(runs) < opened
    for t in range(1, LENGTH):
        far[:, t] = far[:, t - 1] ^ (random.random(runs) < leave[far[:, t - 1]])
    noise = random.normal(size=(runs, LENGTH, 4, 3))
    keep = np.exp(-1 / 3)
    noise[:, 1:] *= np.sqrt(1 - keep**2)
    positions = FOLDED + 0.02 * lfilter([1], [1, -keep], noise, axis=1)
    positions[..., 3, 0] += 0.5 * far
    block = np.repeat(np.arange(runs), LENGTH)
    sample = Sample(positions.reshape(-1, 4, 3), np.ones(runs * LENGTH), block)
    return Run(sample, Timeline.of_lengths([LENGTH] * runs), stride_ps, 5)


@pytest.fixture(scope="module")
def reference() -> Run:
    return hopping(25.0, 1)


def rows(comparison) -> dict:
    return {row.estimate.label: row for row in comparison.rows.judged}


def test_an_ensemble_like_the_reference_is_at_the_floor_and_runs_in_its_time(reference):
    found = compare_slow(reference, hopping(25.0, 2), SETTINGS)
    assert found.rows.left_out == ()
    for label, row in rows(found).items():
        if row.floor is not None:
            assert row.excess < 5 * (row.floor.spread + row.estimate.error), label
    assert abs(found.scaling.ratios[0].value - 1) < 4 * found.scaling.ratios[0].error
    assert found.tica.timescales[0] == pytest.approx(25, rel=0.15)


def test_an_ensemble_that_prefers_another_place_is_above_every_floor(reference):
    found = rows(compare_slow(reference, hopping(25.0, 3, opened=0.9), replace(SETTINGS, n_states=0)))
    assert len(found) == 5
    for label, row in found.items():
        assert row.excess > 5 * row.floor.spread, label


def test_a_model_that_hops_faster_has_its_time_scaling_told(reference):
    """Hops relax in 25 ps, and in 10 frames of 0.1 ps: a factor of 25."""
    fast = hopping(10.0, 4, stride_ps=0.1)
    found = compare_slow(reference, fast, replace(SETTINGS, n_processes=1))
    (ratio,) = found.scaling.ratios
    assert abs(ratio.value - 25) < 4 * ratio.error and ratio.error < 5
    assert found.scaling.overlap[0] > 0.95 and found.scaling.misfit is None
    times = rows(found)
    assert times["implied timescale 1 of the reference"].estimate.value == pytest.approx(25, rel=0.2)
    assert times["implied timescale 1 of the model"].estimate.value == pytest.approx(1.0, rel=0.2)


def test_parts_of_a_run_add_up_to_its_components(reference):
    n = reference.sample.n_frames
    parts = [lagged_moments(reference, CHOICE, *cut) for cut in ((12_000, n), (0, 777), (777, 12_000))]
    whole, summed = fit_tica(reference, CHOICE), (parts[0] + parts[1] + parts[2]).fit(5)
    assert np.allclose(summed.eigenvalues, whole.eigenvalues, atol=1e-9)
    one, other = (project(tica, CHOICE, reference.sample, 2) for tica in (whole, summed))
    assert np.allclose(one, other, atol=1e-6)


def test_what_lies_outside_the_references_range_is_counted_apart():
    reference = np.array([[0.0, 0.0], [1.0, 2.0], [50.0, 50.0]])
    weights = np.array([1.0, 1.0, 0.0])
    (cells,) = plane_cells(reference, weights, [np.array([[-1.0, 1.0], [0.0, 0.0], [1.0, 2.0], [2.0, 3.0]])], 10)
    assert cells.tolist() == [0 * 10 + 5, 1 * 10 + 1, 8 * 10 + 8, 9 * 10 + 9]
    edges = np.stack([np.linspace(0, 1, 9), np.linspace(0, 2, 9)])
    assert plane_edges(reference, weights, 10) == pytest.approx(edges, abs=1e-6)


def test_no_processes_leave_a_sentence_and_the_other_rows(reference):
    found = compare_slow(reference, hopping(25.0, 5), replace(SETTINGS, n_processes=9))
    assert found.scaling is None and len(found.rows.judged) == 5
    assert "9 implied timescales with errors: found 4 of 4 states" in found.rows.left_out[0]


def test_a_lag_beyond_the_segments_is_refused(reference):
    with pytest.raises(errors.UnfitLag, match=f"segments of at most {LENGTH} frames"):
        compare_slow(replace(reference, lag=LENGTH), reference, SETTINGS)
    with pytest.raises(errors.UnfitLag, match=f"pairs of frames {LENGTH} frames apart"):
        compare_slow(reference, replace(reference, lag=LENGTH), SETTINGS)


def test_few_blocks_leave_rows_out_in_words(reference):
    few = hopping(25.0, 6, runs=3)
    found = compare_slow(few, reference, replace(SETTINGS, n_states=0))
    assert found.rows.judged == () and len(found.rows.left_out) == 5
    assert all("3 blocks. Use shorter blocks" in text for text in found.rows.left_out)
