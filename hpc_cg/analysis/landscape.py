"""Free energies on a grid, and how far two of them lie apart.

A histogram has ``n_bins`` bins per axis; the first and the last hold what falls outside the limits. With p
and q, the probabilities of the reference and of the model over all bins, and m = (p + q)/2:

  Jensen-Shannon divergence   ½ Σ p ln(p/m) + ½ Σ q ln(q/m)             (Lin 1991, doi 10.1109/18.61115)
  free-energy error           Σ m (ln q - ln p)² / Σ m,   in (kT)²      (as in arXiv 2407.01286)

The second sum runs over the bins that either occupies; the side that is empty there counts as the baseline
1e-6. Both depend on the number of frames and of bins: give them with every value, and beside the floor of
analysis/floor.py.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from hpc_cg.errors import TooFewFrames

ALPHA_PSI = (-2.0, 1.0)
"""The α basin of alanine: ψ between these, rad."""

BASELINE = 1e-6
"""Probability that stands for an empty bin in the free-energy error."""


@dataclass(frozen=True)
class Grid:
    """Square grid: ``n_bins`` bins per axis, two of them outside ``low`` and ``high``, the others between."""

    n_bins: int = 64
    low: float = -np.pi
    high: float = np.pi

    def __post_init__(self) -> None:
        assert self.n_bins > 2 and self.low < self.high, f"no grid: {self}"

    @property
    def edges(self) -> np.ndarray:
        """Edges of the bins inside the limits, shape (n_bins - 1,)."""
        return np.linspace(self.low, self.high, self.n_bins - 1)

    def bins(self, x: Float[np.ndarray, "frame"], y: Float[np.ndarray, "frame"]) -> np.ndarray:
        """The flat bin number of each frame, shape (frame,), from 0 to n_bins² - 1."""
        return np.digitize(x, self.edges) * self.n_bins + np.digitize(y, self.edges)


ANGLE_GRID = Grid()
"""The grid of a pair of dihedrals: 64 bins per axis, limits ±π."""


@dataclass(frozen=True)
class PmfError:
    """Free-energy error of a model: ``mean_square`` in (kT)² and its ``root`` in kT."""

    mean_square: float

    @property
    def root(self) -> float:
        return float(np.sqrt(self.mean_square))


def histogram(
    x: Float[np.ndarray, "frame"],
    y: Float[np.ndarray, "frame"],
    grid: Grid = ANGLE_GRID,
    weights: Float[np.ndarray, "frame"] | None = None,
) -> Float[np.ndarray, "bin bin"]:
    """Weighted counts on the grid, outlier bins included."""
    counts = np.bincount(grid.bins(x, y), weights=weights, minlength=grid.n_bins**2)
    return counts.astype(np.float64).reshape(grid.n_bins, grid.n_bins)


def free_energy(counts: Float[np.ndarray, "bin bin"]) -> Float[np.ndarray, "inner inner"]:
    """-ln p of the bins inside the limits, in kT above the lowest; NaN where no frame fell.

    Raises TooFewFrames.
    """
    inner = counts[1:-1, 1:-1]
    if not inner.any():
        raise TooFewFrames("a free energy", "no frame inside the limits", "check the frames and the limits of the grid")
    surface = np.full(inner.shape, np.nan)
    surface[inner > 0] = -np.log(inner[inner > 0] / inner.max())
    return surface


def js_divergence(reference: Float[np.ndarray, "*bin"], model: Float[np.ndarray, "*bin"]) -> float:
    """Jensen-Shannon divergence of two sets of (weighted) counts, natural logarithm: from 0 to ln 2."""
    p, q = _probabilities(reference), _probabilities(model)
    middle = (p + q) / 2
    return float(0.5 * _entropy_to(p, middle) + 0.5 * _entropy_to(q, middle))


def pmf_error(
    reference: Float[np.ndarray, "*bin"], model: Float[np.ndarray, "*bin"], baseline: float = BASELINE
) -> PmfError:
    """Mean squared difference of two free energies, weighted by the mean probability of each bin."""
    p, q = _probabilities(reference), _probabilities(model)
    either = (p > 0) | (q > 0)
    p, q = p[either], q[either]
    difference = np.log(np.where(q > 0, q, baseline)) - np.log(np.where(p > 0, p, baseline))
    return PmfError(float(np.average(difference**2, weights=p + q)))


def alpha_fraction(psi: Float[np.ndarray, "frame"], weights: Float[np.ndarray, "frame"] | None = None) -> float:
    """The share of frames in the α basin, by ψ in rad."""
    return _share(in_alpha(psi), weights)


def alpha_log_odds(psi: Float[np.ndarray, "frame"], weights: Float[np.ndarray, "frame"] | None = None) -> float:
    """ln(p_α / (1 - p_α)); a model's minus the reference's is its basin offset in kT. Raises TooFewFrames."""
    fraction = alpha_fraction(psi, weights)
    if not 0 < fraction < 1:
        raise TooFewFrames(
            "the free-energy difference of the α basin and the rest",
            f"a share of {fraction:g} in α",
            "simulate longer, or start replicas in both basins",
        )
    return float(np.log(fraction / (1 - fraction)))


def match_alpha_fraction(
    psi: Float[np.ndarray, "frame"], weights: Float[np.ndarray, "frame"], fraction: float
) -> Float[np.ndarray, "frame"]:
    """The weights with the α basin scaled to ``fraction``: what remains of a divergence is local shape."""
    odds = np.exp(alpha_log_odds(psi, weights))
    return weights * np.where(in_alpha(psi), fraction / (1 - fraction) / odds, 1.0)


def in_alpha(psi: Float[np.ndarray, "frame"]) -> np.ndarray:
    """Which frames lie in the α basin; shape (frame,), bool."""
    return (psi > ALPHA_PSI[0]) & (psi < ALPHA_PSI[1])


def _share(inside: np.ndarray, weights: np.ndarray | None) -> float:
    if not len(inside):
        raise TooFewFrames("the share of frames in a region", "no frame", "check what was selected or simulated")
    return float(np.average(inside, weights=weights))


def _probabilities(counts: np.ndarray) -> np.ndarray:
    total = counts.sum()
    if not total > 0:
        raise TooFewFrames("a comparison of two histograms", "an empty one", "check what was selected or simulated")
    return counts / total


def _entropy_to(p: np.ndarray, middle: np.ndarray) -> float:
    occupied = p > 0
    return float(np.sum(p[occupied] * np.log(p[occupied] / middle[occupied])))
