"""Torsion priors from histograms: the Fourier series of -kT ln of the counts, of a given order or of the best.

    V(θ) = Σ_n a_n sin nθ + b_n cos nθ ≈ -kT ln(count + ½),      n = 1 .. order

by least squares over equal bins, where the functions are orthogonal. Dihedrals need no Jacobian: the element of volume
is dφ. The half count stands for what a bin that was never visited may hold; counts are of frames, so weights must have
been scaled to them.

The best order is that of the smallest Akaike criterion with the correction for few points,

    n ln(RSS / n) + 2 p + 2 p (p + 1) / (n - p - 1),      n bins, p = 2 order + 2 parameters

(Hurvich and Tsai 1989, doi 10.1093/biomet/76.2.297): more terms are taken only where they follow more than noise.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Series(NamedTuple):
    """Coefficients (kJ/mol), zero beyond the order of each torsion."""

    sine: Float[np.ndarray, "torsion order"]
    cosine: Float[np.ndarray, "torsion order"]
    order: Int[np.ndarray, "torsion"]


def fit_series(counts: Float[np.ndarray, "torsion bin"], thermal: float, order: int, best: bool = False) -> Series:
    """The series of each histogram at kT = ``thermal`` (kJ/mol).

    best   take the order of the smallest criterion, up to ``order``, for each torsion; else ``order`` for all
    """
    if not order:
        return Series(np.zeros((0, 0)), np.zeros((0, 0)), np.zeros(0, dtype=np.int64))
    energy = -thermal * np.log(counts + 0.5)
    n_torsions, n_bins = counts.shape
    centres = (np.arange(n_bins) + 0.5) * 2 * np.pi / n_bins - np.pi
    multiples = np.outer(np.arange(1, order + 1), centres)
    # on equal bins the functions are orthogonal, so the projection is the least-squares answer
    sine, cosine = (energy @ wave.T * (2 / n_bins) for wave in (np.sin(multiples), np.cos(multiples)))
    chosen = np.full(n_torsions, order)
    if best:
        chosen = _criterion(energy, sine**2 + cosine**2, thermal).argmin(axis=1)
        kept = np.arange(1, order + 1) <= chosen[:, None]
        sine, cosine = sine * kept, cosine * kept
    return Series(sine, cosine, chosen)


def _criterion(energy: np.ndarray, power: np.ndarray, thermal: float) -> np.ndarray:
    """The criterion of every order from 0, for each torsion; ``power`` holds a_n² + b_n²."""
    n_bins = energy.shape[1]
    total = (energy - energy.mean(axis=1, keepdims=True)) ** 2
    explained = np.concatenate((np.zeros((len(power), 1)), np.cumsum(power, axis=1)), axis=1) * n_bins / 2
    left = np.maximum(total.sum(axis=1, keepdims=True) - explained, n_bins * (1e-6 * thermal) ** 2)
    p = 2.0 * np.arange(power.shape[1] + 1) + 2.0
    return n_bins * np.log(left / n_bins) + 2 * p + 2 * p * (p + 1) / (n_bins - p - 1)
