"""How much ridge the optimal force map needs, by cross-validation: fit on all folds of frames but one, judge on that.

In the turned coordinates of ``optimal.Constraints`` the free part of a fit is -(M + λ)⁻¹ R, with M and R from the
folds that are fitted on. One eigendecomposition of M for each fold serves every candidate λ.

Stone, J. R. Stat. Soc. B 36, 111 (1974), doi 10.1111/j.2517-6161.1974.tb00994.x.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from jaxtyping import Float, Float64
from scipy.linalg import eigh

from hpc_cg.errors import FitFailed, TooFewFrames
from hpc_cg.mapping.moments import ForceMoments, Groups, GroupSum
from hpc_cg.mapping.optimal import WORST_CONDITION, Constraints

RELATIVE = (0.0, *(10.0 ** (exponent / 2) for exponent in range(-12, 3)))
"""Candidates by default, times the mean square force per group: 0, and 1e-6 to 10 in steps of √10."""


@dataclass(frozen=True, eq=False)
class RidgeChoice:
    """The ridge whose maps had the least mean square force on frames they were not fitted on.

    ridge        λ per frame and axis, (kJ/mol/nm)², the smallest of equals
    candidates   what was tried, ascending
    scores       mean square force of each on held-out folds, averaged over beads and frames; inf where a fit failed
    n_folds      folds that hold frames
    """

    ridge: float
    candidates: Float64[np.ndarray, "candidate"]
    scores: Float64[np.ndarray, "candidate"]
    n_folds: int


def choose_ridge(
    coordinate: Float[np.ndarray, "bead atom"],
    groups: Groups,
    folds: Sequence[ForceMoments],
    candidates: Sequence[float] | None = None,
) -> RidgeChoice:
    """The candidate of least mean square force in cross-validation over ``folds`` (empty ones are left out).

    folds        moments of the forces on ``groups``, a part of the frames each; parts should lie apart in time
    candidates   λ per frame and axis, (kJ/mol/nm)²; by default RELATIVE times trace(⟨g gᵀ⟩) / n_groups
    Costs two eigendecompositions' worth of time per fold. Raises TooFewFrames for fewer than two folds with frames,
    FitFailed where no candidate could be fitted, InvalidMap where no map is valid.
    """
    folds = [fold for fold in folds if fold.count > 0]
    if len(folds) < 2:
        raise TooFewFrames(
            "choosing the ridge by cross-validation",
            f"{len(folds)} folds that hold frames",
            "give longer trajectories, or set the ridge to a number",
        )
    everything = reduce(add, folds)
    if candidates is None:
        candidates = [relative * float(everything.mean_square.mean()) for relative in RELATIVE]
    ridges = np.unique(np.asarray(candidates, dtype=np.float64))
    constraints = Constraints.of(coordinate, GroupSum(tuple(groups), coordinate.shape[1]))
    scores = np.zeros(len(ridges))
    for fold in folds:
        rest = ForceMoments(everything.count - fold.count, everything.gram - fold.gram)
        scores += fold.count / everything.count * _held_out(constraints, rest, fold, ridges)
    if not np.isfinite(scores).any():
        raise FitFailed(
            "choosing the ridge by cross-validation",
            f"{everything.count:g} frames in {len(folds)} folds that determine no map for λ up to {ridges[-1]:.3g}",
            "give more frames or larger candidates, or use the uniform map",
        )
    return RidgeChoice(float(ridges[scores.argmin()]), ridges, scores, len(folds))


def _held_out(constraints: Constraints, train: ForceMoments, held_out: ForceMoments, ridges: np.ndarray) -> np.ndarray:
    """Mean square force on ``held_out`` of the map fitted on ``train`` with each ridge, averaged over beads."""
    n_beads, fixed = constraints.n_beads, constraints.fixed
    fitted, seen = constraints.turned(train.mean), constraints.turned(held_out.mean)
    base = np.sum(fixed * (seen[:n_beads, :n_beads] @ fixed))
    if len(fitted) == n_beads:
        return np.full(len(ridges), base / n_beads)
    values, vectors = eigh(fitted[n_beads:, n_beads:], overwrite_a=True, driver="evd")
    right = vectors.T @ (fitted[n_beads:, :n_beads] @ fixed)
    cross = vectors.T @ (seen[n_beads:, :n_beads] @ fixed)
    seen = vectors.T @ seen[n_beads:, n_beads:] @ vectors
    scores = np.full(len(ridges), np.inf)
    # reciprocal condition numbers of the 1-norm, which the final fit is judged by, are at most n times smaller
    for i in np.flatnonzero(values[0] + ridges > len(values) * WORST_CONDITION * (values[-1] + ridges)):
        free = -right / (values + ridges[i])[:, None]
        scores[i] = (base + 2 * np.sum(free * cross) + np.sum(free * (seen @ free))) / n_beads
    return scores
