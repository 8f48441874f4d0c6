"""What the scores of every conditional density obey, checked on draws: no reference is needed.

Because κ(y | c) vanishes far out, integration by parts gives for y ~ κ(· | c), dim the dimensions in which y can move
and any centre m that c alone decides,

    ⟨∇_y log κ⟩ = 0,      ⟨(y − m) · ∇_y log κ⟩ = −dim

The draws are independent given their conditions, and both hold for each condition by itself, so errors need no blocks
even where the conditions are frames of a trajectory. Everything is a sum over draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from hpc_cg.analysis.estimate import Estimate
from hpc_cg.errors import TooFewFrames
from hpc_cg.units import kT


@dataclass(frozen=True, eq=False)
class ScoreSums:
    """Sums over draws of the score, of (y − m) · score and of |score|²; ``a + b`` are those of both sets of draws.

    dimension   in which y can move: 3n, or 3n − 3 where it keeps the mean over the beads
    n_draws     with a weight above 0
    sums        Σ w, Σ w x, Σ w x², Σ w², Σ w² x, Σ w² x², for x each of the 3n + 2 numbers of a draw
    """

    dimension: int
    n_draws: int
    sums: Float64[np.ndarray, "6 number"]

    @staticmethod
    def of(
        score: Float[np.ndarray, "frame bead 3"],
        positions: Float[np.ndarray, "frame bead 3"],
        centre: Float[np.ndarray, "frame bead 3"],
        centred: bool,
        weights: Float[np.ndarray, "frame"] | None = None,
    ) -> "ScoreSums":
        """Of draws at ``positions`` (nm) with their score (1/nm).

        centre    m, nm: the nearer to the mean of y, the smaller the error; the condition will do
        centred   whether y keeps the mean of its condition over the beads
        weights   of the draws, 1 by default; those of weight 0, which failed, are not looked at
        """
        w = np.ones(len(score)) if weights is None else weights.astype(np.float64)
        used = w > 0
        s, w = score[used].astype(np.float64), w[used]
        n_numbers = score.shape[1] * 3
        virial, square = (np.sum(s * other, axis=(1, 2)) for other in (positions[used] - centre[used], s))
        x = np.column_stack([s.reshape(len(s), n_numbers), virial, square])
        powers = np.stack([np.ones_like(x), x, x**2])
        sums = np.concatenate([np.einsum("f,pfn->pn", factor, powers) for factor in (w, w**2)])
        return ScoreSums(n_numbers - (3 if centred else 0), len(w), sums)

    def __add__(self, other: "ScoreSums") -> "ScoreSums":
        assert self.dimension == other.dimension, "sums of draws in other dimensions"
        return ScoreSums(self.dimension, self.n_draws + other.n_draws, self.sums + other.sums)

    @property
    def mean_score(self) -> Float64[np.ndarray, "bead 3"]:
        """⟨∇ log κ⟩ on each bead, 1/nm: zero within its error. Raises TooFewFrames."""
        return self._means()[0][:-2].reshape(-1, 3)

    @property
    def mean_score_error(self) -> Float64[np.ndarray, "bead 3"]:
        """One standard error of ``mean_score``, 1/nm."""
        return self._means()[1][:-2].reshape(-1, 3)

    @property
    def misfit(self) -> float:
        """Mean over beads and axes of (mean score / its error)²: about 1 for a true score, larger for another."""
        return float(np.mean((self.mean_score / self.mean_score_error) ** 2))

    @property
    def virial(self) -> Estimate:
        """⟨(y − m) · ∇ log κ⟩, which is −dimension for a true score."""
        return self._estimate(-2, "1", f"virial of the score, {-self.dimension} if true")

    @property
    def mean_square(self) -> Estimate:
        """⟨|∇ log κ|²⟩ per dimension, 1/nm²; times (kT)² it is the mean square of the label."""
        whole = self._estimate(-1, "1/nm²", "mean square of the score")
        scale = 1 / self.dimension
        return Estimate(scale * whole.value, scale * whole.error, whole.n_effective, whole.unit, whole.label)

    def _estimate(self, number: int, unit: str, label: str) -> Estimate:
        mean, error = self._means()
        weight, squares = self.sums[0, 0], self.sums[3, 0]
        return Estimate(float(mean[number]), float(error[number]), float(weight**2 / squares), unit, label)

    def _means(self) -> tuple[np.ndarray, np.ndarray]:
        if self.n_draws < 2:
            raise TooFewFrames("the mean of a score with its error", f"{self.n_draws} draws", "draw more")
        weight, first, _, squares, cross, second = self.sums
        mean = first / weight
        spread = second - 2 * mean * cross + mean**2 * squares
        return mean, np.sqrt(spread.clip(0) * self.n_draws / (self.n_draws - 1)) / weight


def stretch_ratios(
    forces: Float[np.ndarray, "frame bead 3"],
    positions: Float[np.ndarray, "frame bead 3"],
    bonds: Sequence[tuple[int, int]],
    temperature_K: float,
    weights: Float[np.ndarray, "frame"] | None = None,
) -> Float64[np.ndarray, "bond 2"]:
    """How stiff labels (kJ/mol/nm) tell each bond to be, over how stiff it is; and one standard error of that.

    It is 1 for the mean force F of the density of the frames themselves: by parts, with u the direction of a bond of
    length r and r̄ any constant, ⟨(r − r̄) u · (F_a − F_b)/2⟩ = −kT ⟨1 + 2 (r − r̄)/r⟩. That tells what the virial of
    all coordinates together does not: a density fitted by likelihood has that right whatever its shape.
    """
    w = np.ones(len(forces)) if weights is None else weights.astype(np.float64)
    used = w > 0
    w, found = w[used] / w[used].sum(), []
    for a, b in bonds:
        vector, pull = (x[used, a].astype(np.float64) - x[used, b] for x in (positions, forces))
        length = np.linalg.norm(vector, axis=1)
        off = length - w @ length
        work = 0.5 * off * np.sum(vector * pull, axis=1) / length
        wanted = -kT(temperature_K) * (w @ (1 + 2 * off / length))
        found.append((w @ work / wanted, np.sqrt(np.sum((w * (work - w @ work)) ** 2)) / abs(wanted)))
    return np.asarray(found).reshape(-1, 2)


def effective_labels(label: float, noise: float, mean_force: float = 0.0) -> float:
    """How many labels of the noise kernel at the same σ one label is worth: the ratio of their variances.

    label, noise   mean squares per dimension; of the noise kernel it is (kT/σ)²
    mean_force     mean square of the mean force, which is no noise; left out, the answer is nearer to 1 than the truth
    """
    return (noise - mean_force) / (label - mean_force)
