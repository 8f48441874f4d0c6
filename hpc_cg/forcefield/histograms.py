"""Weighted histograms of internal coordinates, on bins that are fixed in advance: those of any blocks add up.

Bond lengths lie in bins that grow with the length, so that a bond of 0.1 nm and a spring of 2 nm are seen equally
well; cosines, improper products and dihedrals in equal bins over all that they can be. No torch here.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

N_TORSION_BINS = 72
"""Bins of a dihedral's histogram, 5 degrees each."""

LENGTH_EDGES = np.geomspace(0.02, 5.0, 1105)
"""nm; a bin is half a percent wide."""

COSINE_EDGES = np.linspace(-1.0, 1.0, 401)
TORSION_EDGES = np.linspace(-np.pi, np.pi, N_TORSION_BINS + 1)

FINEST = 0.2
"""Bins are joined until they are as wide as this part of the standard deviation before two densities are compared."""


@dataclass(frozen=True)
class Evidence:
    """What a fit was made of, to be drawn where it failed.

    label      of the term, in words
    quantity   with its unit, e.g. "bond length (nm)"
    edges      of the bins
    counts     weighted frames in each bin, of any scale
    curve      values and relative density of what was tried; None where it did not come to that
    """

    label: str
    quantity: str
    edges: Float[np.ndarray, "edge"]
    counts: Float[np.ndarray, "bin"]
    curve: tuple[Float[np.ndarray, "point"], Float[np.ndarray, "point"]] | None = None


def count(
    values: Float[np.ndarray, "frame term"], weights: Float[np.ndarray, "frame"], edges: Float[np.ndarray, "edge"]
) -> Float[np.ndarray, "term bin"]:
    """Weight in each bin, of every term; what lies outside counts in the first or last bin, NaN nowhere."""
    n_terms, n_bins = values.shape[1], len(edges) - 1
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, n_bins - 1)
    weight = np.where(np.isfinite(values), weights[:, None], 0.0)
    flat = (place + n_bins * np.arange(n_terms)).ravel()
    return np.bincount(flat, weight.ravel(), n_terms * n_bins).astype(np.float64).reshape(n_terms, n_bins)


def overlap_with_gaussian(
    edges: Float[np.ndarray, "edge"], counts: Float[np.ndarray, "bin"], mean: float, deviation: float
) -> float:
    """The part of a histogram that a Gaussian of the given mean and standard deviation covers, 0 to 1.

    0.9 and more for one peak, some 0.6 for two peaks six of their widths apart, below 0.4 where a few outliers or two
    sharp peaks make the width.
    """
    from scipy.special import ndtr

    middle = int(np.clip(np.searchsorted(edges, mean) - 1, 0, len(counts) - 1))
    joined = max(1, int(np.ceil(FINEST * deviation / (edges[middle + 1] - edges[middle]))))
    starts = np.arange(middle % joined, len(counts), joined)
    starts = starts if starts[0] == 0 else np.append(0, starts)
    seen = np.add.reduceat(counts, starts) / counts.sum()
    cumulative = ndtr((np.append(edges[starts], np.inf) - mean) / deviation)
    cumulative[0] = 0.0
    return float(np.minimum(seen, np.diff(cumulative)).sum())
