"""Harmonic priors that, alone, show the mean and the variance that were seen.

A term V(q) = k (q - q0)² / 2 alone gives q the density

    p(q) ∝ J(q) exp(-V(q) / kT),      J = r² for a bond length r,      J = 1 on [-1, 1] for the cosine of an angle

because d³r = r² dr d(cos θ) dφ. Without J a bond would come out longer than it was seen, by 2 kT / (k r0). k and q0
are those of the two moments: p is an exponential family in (q, q²), whose moments have the covariance of (q, q²) as
derivative by the natural parameters, so Newton's method on a convex problem finds them.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

N_POINTS = 801
REACH = 12.0
"""Standard deviations to either side over which densities are integrated."""

LARGEST_STEP = 0.5
MAX_STEPS = 200
TOLERANCE = 1e-10


class Harmonic(NamedTuple):
    """k (unit of kT over that of q²) and centre of every term, and whether Newton's method got there."""

    k: Float[np.ndarray, "term"]
    centre: Float[np.ndarray, "term"]
    converged: Bool[np.ndarray, "term"]


def fit_lengths(mean: Float[np.ndarray, "term"], variance: Float[np.ndarray, "term"], thermal: float) -> Harmonic:
    """The terms of bond lengths with the given moments (nm, nm²) at kT = ``thermal`` (kJ/mol).

    A bond so wide that its centre would be negative gets the centre 0 and the k that gives its mean.
    """
    k, centre, converged = _matched(mean, variance, thermal, (0.0, np.inf), 2)
    wide = (k <= 0) | (centre < 0)
    return Harmonic(np.where(wide, 8.0 * thermal / (np.pi * mean**2), k), np.where(wide, 0.0, centre), converged)


def fit_cosines(mean: Float[np.ndarray, "term"], variance: Float[np.ndarray, "term"], thermal: float) -> Harmonic:
    """The terms of cosines with the given moments at kT = ``thermal`` (kJ/mol).

    Cosines that pile up at an end, or spread wider than a centre within [-1, 1] can make them, get the nearer end as
    their centre and the k that gives their mean.
    """
    k, centre, converged = _matched(mean, variance, thermal, (-1.0, 1.0), 0)
    beyond = (k <= 0) | (np.abs(centre) > 1)
    k, centre = k.copy(), np.where(beyond, np.copysign(1.0, mean), centre)
    k[beyond] = _of_mean(mean[beyond], centre[beyond], thermal)
    return Harmonic(k, centre, converged)


def _matched(
    mean: np.ndarray, variance: np.ndarray, thermal: float, domain: tuple[float, float], power: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """k, centre and convergence by Newton's method in z = (q - mean) / deviation, all terms at once."""
    deviation = np.sqrt(variance)
    low = np.maximum(domain[0], mean - REACH * deviation)
    high = np.minimum(domain[1], mean + REACH * deviation)
    values = low[:, None] + (high - low)[:, None] * np.linspace(0.0, 1.0, N_POINTS)
    z = (values - mean[:, None]) / deviation[:, None]
    measure = power * np.log(np.maximum(values, 1e-300))
    first, second = np.zeros_like(mean), np.full_like(mean, -0.5)
    converged = np.zeros(len(mean), dtype=bool)
    for _ in range(MAX_STEPS):
        m1, m2, m3, m4 = _moments(z, measure + first[:, None] * z + second[:, None] * z**2)
        converged = np.maximum(np.abs(m1), np.abs(m2 - 1.0)) < TOLERANCE
        if converged.all():
            break
        a, b, c = m2 - m1**2, m3 - m1 * m2, m4 - m2**2
        determinant = a * c - b**2
        steps = np.stack(((b * (m2 - 1.0) - c * m1) / determinant, (b * m1 - a * (m2 - 1.0)) / determinant))
        steps *= np.minimum(1.0, LARGEST_STEP / np.maximum(np.abs(steps).max(axis=0), 1e-300))
        first, second = first + steps[0], second + steps[1]
    safe = np.where(second == 0, -1e-300, second)
    return -2.0 * second * thermal / variance, mean - deviation * first / (2.0 * safe), converged


def _moments(z: np.ndarray, logarithm: np.ndarray) -> tuple[np.ndarray, ...]:
    """The first four moments of z under a density known by its logarithm, by the trapezoidal rule."""
    weight = np.exp(logarithm - logarithm.max(axis=1, keepdims=True))
    weight[:, [0, -1]] *= 0.5
    weight /= weight.sum(axis=1, keepdims=True)
    return tuple((weight * z**order).sum(axis=1) for order in (1, 2, 3, 4))


def _of_mean(mean: np.ndarray, centre: np.ndarray, thermal: float) -> np.ndarray:
    """k of cosines that pile up at ``centre``, an end of [-1, 1], with the given mean: by bisection of ln k."""
    low, high = np.full_like(mean, np.log(1e-6)), np.full_like(mean, np.log(1e12))
    # of points that crowd towards the end, because the density does
    away = np.geomspace(1e-9, 2.0, 4 * N_POINTS)
    for _ in range(80):
        middle = (low + high) / 2
        weight = np.exp(-np.exp(middle)[:, None] * away**2 / 2)
        found = np.trapezoid(weight * away, away, axis=1) / np.trapezoid(weight, away, axis=1)
        loose = found > np.abs(mean - centre)
        low, high = np.where(loose, middle, low), np.where(loose, high, middle)
    return np.exp((low + high) / 2) * thermal
