"""Harmonic priors alone show the mean and the variance they were fitted to: by quadrature finer than the fit's."""

import numpy as np
import pytest

from hpc_cg.forcefield.harmonic import fit_cosines, fit_lengths

THERMAL = 2.5


def alone(k: float, centre: float, low: float, high: float, power: int) -> tuple[float, float]:
    """Mean and standard deviation of q under q^power exp(-k (q - centre)² / 2 kT) on [low, high]."""
    q = np.linspace(low, high, 400_001)
    weight = q**power * np.exp(-k * (q - centre) ** 2 / (2 * THERMAL))
    mean = np.sum(weight * q) / weight.sum()
    return mean, np.sqrt(np.sum(weight * (q - mean) ** 2) / weight.sum())


@pytest.mark.parametrize(("mean", "deviation"), [(0.15, 0.003), (0.38, 0.015), (0.5, 0.15), (0.3, 0.1)])
def test_a_bond_prior_alone_shows_the_length_and_the_width_seen(mean: float, deviation: float) -> None:
    k, centre, converged = (x[0] for x in fit_lengths(np.array([mean]), np.array([deviation**2]), THERMAL))
    assert converged
    found = alone(k, centre, max(0.0, mean - 12 * deviation), mean + 12 * deviation, 2)
    assert found == pytest.approx((mean, deviation), rel=1e-6)


def test_the_centre_of_a_stiff_bond_lies_below_its_mean_by_twice_the_thermal_energy() -> None:
    k, centre, _ = (x[0] for x in fit_lengths(np.array([0.15]), np.array([0.003**2]), THERMAL))
    assert 0.15 - centre == pytest.approx(2 * THERMAL / (k * 0.15), rel=2e-3)
    assert k == pytest.approx(THERMAL / 0.003**2, rel=1e-3)


def test_a_bond_too_wide_for_a_positive_centre_keeps_its_mean() -> None:
    k, centre, _ = (x[0] for x in fit_lengths(np.array([0.2]), np.array([0.1**2]), THERMAL))
    assert centre == 0.0
    assert alone(k, centre, 0.0, 2.0, 2)[0] == pytest.approx(0.2, rel=1e-6)


@pytest.mark.parametrize(("mean", "deviation"), [(-0.5, 0.04), (-0.3, 0.25), (-0.5, 0.35), (-0.9, 0.04), (0.1, 0.5)])
def test_an_angle_prior_alone_shows_mean_and_width_though_cosines_end_at_one(mean: float, deviation: float) -> None:
    k, centre, converged = (x[0] for x in fit_cosines(np.array([mean]), np.array([deviation**2]), THERMAL))
    assert converged and k > 0
    assert alone(k, centre, -1.0, 1.0, 0) == pytest.approx((mean, deviation), rel=2e-5)


@pytest.mark.parametrize(("mean", "deviation"), [(-0.97, 0.03), (0.99, 0.02), (-0.5, 0.6), (0.02, 0.7)])
def test_cosines_that_pile_up_at_an_end_or_spread_over_all_keep_their_mean(mean: float, deviation: float) -> None:
    k, centre, _ = (x[0] for x in fit_cosines(np.array([mean]), np.array([deviation**2]), THERMAL))
    assert abs(centre) == 1.0 and k >= 0
    assert alone(k, centre, -1.0, 1.0, 0)[0] == pytest.approx(mean, abs=1e-4)


def test_many_terms_are_fitted_as_each_alone() -> None:
    mean, variance = np.array([0.15, 0.38, 0.2]), np.array([0.003, 0.02, 0.1]) ** 2
    together = fit_lengths(mean, variance, THERMAL)
    for term in range(3):
        alone_ = fit_lengths(mean[term : term + 1], variance[term : term + 1], THERMAL)
        assert alone_.k[0] == pytest.approx(together.k[term], rel=1e-8)
        assert alone_.centre[0] == pytest.approx(together.centre[term], rel=1e-8)
