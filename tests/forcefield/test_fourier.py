"""Torsion series: the histogram is their Boltzmann factor, and noise does not buy terms."""

import numpy as np
import pytest

from hpc_cg.forcefield.fourier import fit_series
from hpc_cg.forcefield.histograms import N_TORSION_BINS

CENTRES = (np.arange(N_TORSION_BINS) + 0.5) * 2 * np.pi / N_TORSION_BINS - np.pi
THERMAL = 2.0


def histogram(n_frames: int, seed: int = 0) -> np.ndarray:
    """Frames drawn from V = kT (1.5 cos θ + 0.8 sin 3θ)."""
    weight = np.exp(-1.5 * np.cos(CENTRES) - 0.8 * np.sin(3 * CENTRES))
    return np.random.default_rng(seed).multinomial(n_frames, weight / weight.sum())[None].astype(float)


def test_a_series_is_the_potential_that_frames_were_drawn_from() -> None:
    sine, cosine, order = fit_series(histogram(1_000_000), THERMAL, 6)
    assert order.tolist() == [6]
    assert cosine[0] == pytest.approx([1.5 * THERMAL, 0, 0, 0, 0, 0], abs=0.03)
    assert sine[0] == pytest.approx([0, 0, 0.8 * THERMAL, 0, 0, 0], abs=0.03)


def test_the_best_order_is_that_of_the_potential() -> None:
    orders = [int(fit_series(histogram(20_000, seed), THERMAL, 12, best=True).order[0]) for seed in range(20)]
    assert min(orders) == 3
    assert orders.count(3) >= 15


def test_a_free_torsion_gets_no_terms_by_the_best_order() -> None:
    flat = np.random.default_rng(1).poisson(500, (20, N_TORSION_BINS)).astype(float)
    series = fit_series(flat, THERMAL, 8, best=True)
    assert (series.order == 0).sum() >= 15
    assert not series.sine[series.order == 0].any() and not series.cosine[series.order == 0].any()


def test_terms_beyond_the_best_order_are_zero_and_the_others_as_without_choice() -> None:
    counts = histogram(20_000)
    chosen, whole = fit_series(counts, THERMAL, 12, best=True), fit_series(counts, THERMAL, 12)
    n = int(chosen.order[0])
    assert np.array_equal(chosen.sine[:, :n], whole.sine[:, :n]) and not chosen.sine[:, n:].any()
    assert np.array_equal(chosen.cosine[:, :n], whole.cosine[:, :n]) and not chosen.cosine[:, n:].any()
