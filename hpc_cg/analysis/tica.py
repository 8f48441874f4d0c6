"""The slowest linear combinations of features: time-lagged independent component analysis (TICA), reversible.

Of features x at a frame and a lag τ later, about the mean of both,

    C(0) = ½ (⟨x_t x_tᵀ⟩ + ⟨x_{t+τ} x_{t+τ}ᵀ⟩),    C(τ) = ½ (⟨x_t x_{t+τ}ᵀ⟩ + its transpose),    C(τ) u = λ C(0) u

so every λ is in [−1, 1], and −τ / ln λ is the relaxation time of uᵀx, never longer than the true one in the limit of
many frames (Pérez-Hernández et al. 2013, doi 10.1063/1.4811489; reversible estimate: Wu et al. 2017, doi
10.1063/1.4979344). Symmetrising takes frames to be from equilibrium: short segments from chosen starts need weights.

Features are first scaled to variance 1, so units do not matter; directions in which they then vary by less than
RANK_CUT of the largest variance are left out, since distances of a chain depend on one another.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from hpc_cg.errors import TooFewFrames

RANK_CUT = 1e-6
"""Least variance of a direction that is kept, in parts of the largest, of features scaled to variance 1."""


@dataclass(frozen=True)
class Tica:
    """Fitted components, slowest first, as many as features are independent.

    lag          frames
    mean         of the features
    components   columns u with uᵀ C(0) u = 1; the largest part (in standard deviations) of each is positive
    eigenvalues  λ
    n_pairs      frames that it was fitted on
    """

    lag: int
    mean: Float64[np.ndarray, "feature"]
    components: Float64[np.ndarray, "feature component"]
    eigenvalues: Float64[np.ndarray, "component"]
    n_pairs: int

    @property
    def timescales(self) -> Float64[np.ndarray, "component"]:
        """−lag / ln λ, frames; NaN where λ is not above 0."""
        return timescales_of(self.eigenvalues, self.lag)

    def project(self, features: Float[np.ndarray, "frame feature"], n: int = 2) -> Float64[np.ndarray, "frame {n}"]:
        """Frames on the ``n`` slowest components. Raises TooFewFrames where so many are not independent."""
        if n > self.components.shape[1]:
            raise TooFewFrames(
                f"{n} slow components",
                f"{self.components.shape[1]} independent features",
                "ask for fewer components or give more features",
            )
        return (features.astype(np.float64) - self.mean) @ self.components[:, :n]


@dataclass(frozen=True, eq=False)
class LaggedMoments:
    """Moments of pairs (x_t, x_{t+τ}) of feature vectors; ``a + b`` are those of both sets of pairs.

    n_pairs   with a weight above 0
    weight    Σ w
    mean      of x_t and then x_{t+τ}
    scatter   Σ w (z − mean)(z − mean)ᵀ of both together: C00, C0τ; Cτ0, Cττ times the weight
    """

    n_pairs: int
    weight: float
    mean: Float64[np.ndarray, "both"]
    scatter: Float64[np.ndarray, "both both"]

    @staticmethod
    def of(
        earlier: Float[np.ndarray, "pair feature"],
        later: Float[np.ndarray, "pair feature"],
        weights: Float[np.ndarray, "pair"] | None = None,
    ) -> "LaggedMoments":
        """Of pairs that lie a lag apart; weights are those of the earlier frames, 1 by default."""
        both = np.concatenate([earlier, later], axis=1).astype(np.float64)
        w = np.ones(len(both)) if weights is None else weights.astype(np.float64)
        total = float(w.sum())
        mean = w @ both / total if total > 0 else np.zeros(both.shape[1])
        apart = both - mean
        return LaggedMoments(int(np.count_nonzero(w)), total, mean, apart.T @ (w[:, None] * apart))

    def __add__(self, other: "LaggedMoments") -> "LaggedMoments":
        weight = self.weight + other.weight
        if weight == 0:
            return self
        apart = other.mean - self.mean
        mean = self.mean + other.weight / weight * apart
        scatter = self.scatter + other.scatter + self.weight * other.weight / weight * np.outer(apart, apart)
        return LaggedMoments(self.n_pairs + other.n_pairs, weight, mean, scatter)

    @property
    def n_features(self) -> int:
        return len(self.mean) // 2

    def fit(self, lag: int, rank_cut: float = RANK_CUT) -> Tica:
        """The components; raises TooFewFrames with fewer pairs than features, or features that do not vary."""
        n = self.n_features
        if self.n_pairs <= n:
            raise TooFewFrames(
                f"the slow components of {n} features",
                f"{self.n_pairs} pairs of frames {lag} frames apart",
                "give more frames, a shorter lag or fewer features",
            )
        mean, equal, lagged = self._symmetric()
        width = np.sqrt(np.diag(equal))
        moving = width > 1e-9 * np.abs(mean)
        if not moving.any():
            raise TooFewFrames(
                f"the slow components of {n} features", "none that varies", "check the frames and the features"
            )
        scale = np.where(moving, 1 / np.where(moving, width, 1), 0)
        variances, axes = np.linalg.eigh(scale[:, None] * equal * scale)
        kept = variances > rank_cut * variances[-1]
        whiten = scale[:, None] * axes[:, kept] / np.sqrt(variances[kept])
        values, turns = np.linalg.eigh(whiten.T @ lagged @ whiten)
        components = whiten @ turns[:, ::-1]
        loading = width[:, None] * components
        leading = loading[np.argmax(np.abs(loading), axis=0), np.arange(components.shape[1])]
        return Tica(lag, mean, components * np.sign(leading), np.clip(values[::-1], -1, 1), self.n_pairs)

    def _symmetric(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The mean of both ends, C(0) and C(τ) about it."""
        n = self.n_features
        mean = (self.mean[:n] + self.mean[n:]) / 2
        off = self.mean - np.concatenate([mean, mean])
        moments = self.scatter / self.weight + np.outer(off, off)
        lagged = moments[:n, n:]
        return mean, (moments[:n, :n] + moments[n:, n:]) / 2, (lagged + lagged.T) / 2


def timescales_of(eigenvalues: Float[np.ndarray, "process"], lag: int) -> Float64[np.ndarray, "process"]:
    """−lag / ln λ, frames; NaN where λ is not above 0, infinite where it is 1."""
    decaying = eigenvalues > 0
    with np.errstate(divide="ignore"):
        return np.where(decaying, -lag / np.log(np.where(decaying, eigenvalues, 0.5)), np.nan)
