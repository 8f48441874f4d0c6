"""Quieter labels from control variates: sums of mean zero are added to a label, with the weights of least mean square.

A frame R is drawn through a chain of densities, S → R by κ(R|S), or S → S' → R by N(S'|S) and κ(R|S'). Its label is
kT ∇_R log κ, the score of the last. At every frame passed on the way what pulls it from both sides has mean zero given
R, because it integrates to a boundary term:

    at S'   Z₁ = kT ∇_{S'} [log N(S'|S) + log κ(R|S')]
    at S    Z₂ = F_at(S) + kT ∇_S log N(S'|S)            F_at a valid mapped force: ⟨F_at|S⟩ = kT ∇ log p(S)

So F = kT ∇_R log κ + W₁ Z₁ + W₂ Z₂ has the same conditional mean, the mean force of the density of R, for all constant
matrices W (bead by bead, alike on x, y and z). Those of least mean square follow from second moments, which add up over
frames. Z₁ needs no atomistic forces. Where the chain is the noise alone, S → R, the label is η, Z = F_at − η, and
F = η + W (F_at − η) as in ``mixing.py``, which does the averages over the noise exactly.

Exact: where S comes from the density that F_at belongs to, and every other frame was drawn from the very density whose
scores are used, be that a good model of anything or not. Approximate: where R is the later frame of a transition in a
trajectory and κ a model of the transition. Then already the label is the mean force only as far as the model is right,
and the mean of Z₂ is zero only as far as R says nothing of F_at(S) that S does not say: not where atoms that no bead
sees pull at S and are felt in R. ``transition.py`` has a variate that is free of this.

A kernel that keeps the mean over the beads (``centred``) has scores that sum to zero over the beads. All above holds in
the space without that mean, and the W are fitted there: labels keep a sum of zero, and that of F_at, which is zero on
average, does not count.

Sources: Klein et al., arXiv 2506.19628, eqs. 18-26 (the label); Durumeric et al., arXiv 2407.01286 (the noise kernel);
control variates: Owen, Monte Carlo theory, methods and examples (2013), chapter 8.9.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float, Float64
from scipy.linalg import null_space
from torch import Tensor

from hpc_cg.errors import FitFailed, TooFewFrames
from hpc_cg.frames import finite_frames
from hpc_cg.kernels.density import Draw
from hpc_cg.mapping.moments import ForceMoments
from hpc_cg.units import kT

RANK = 1e-13
"""A variate whose mean square, apart from what the others hold of it, is so much of the largest is another's copy."""


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of frames with their control variates, kJ/mol/nm.

    forces     kT ∇_R log κ
    variates   Z₁ first: in the order in which the chain's frames are met from its end
    failed     frames without a label: left out and counted
    centred    whether scores sum to zero over the beads
    """

    forces: Float64[np.ndarray, "frame bead 3"]
    variates: tuple[Float64[np.ndarray, "frame bead 3"], ...]
    failed: Bool[np.ndarray, "frame"]
    centred: bool

    def moments(self, weights: Float[np.ndarray, "frame"] | None = None) -> "LabelMoments":
        """Their second moments; ``weights`` of the frames are 1 by default, and 0 for those that failed."""
        counted = np.where(self.failed, 0.0, 1.0 if weights is None else weights)
        rows = np.concatenate([self.forces, *self.variates], axis=1)
        return LabelMoments(ForceMoments.of(rows, counted), self.forces.shape[1], self.centred)


@dataclass(frozen=True, eq=False)
class LabelMoments:
    """Second moments of labels and variates; ``a + b`` are those of both sets of frames.

    sums   of the label on each bead, then of each variate on each bead
    """

    sums: ForceMoments
    n_beads: int
    centred: bool

    def __add__(self, other: "LabelMoments") -> "LabelMoments":
        assert (self.n_beads, self.centred) == (other.n_beads, other.centred), "moments of other labels"
        return LabelMoments(self.sums + other.sums, self.n_beads, self.centred)

    @property
    def n_variates(self) -> int:
        return self.sums.n_groups // self.n_beads - 1

    @property
    def mean(self) -> Float64[np.ndarray, "number number"]:
        """⟨v vᵀ⟩ per frame and axis, (kJ/mol/nm)²; raises TooFewFrames for none."""
        if not self.sums.count > 0:
            raise TooFewFrames("second moments of labels", "no frame that has one", "give more frames")
        return self.sums.mean


@dataclass(frozen=True, eq=False)
class Controls:
    """The matrices W of each variate, zero for those that are not used."""

    matrices: Float64[np.ndarray, "variate bead bead"]

    def apply(self, labels: Labels) -> Float64[np.ndarray, "frame bead 3"]:
        """F = kT ∇_R log κ + Σ W Z, kJ/mol/nm."""
        return sum((w @ z for w, z in zip(self.matrices, labels.variates, strict=True)), labels.forces)

    def mean_square(self, moments: LabelMoments) -> Float64[np.ndarray, "bead"]:
        """⟨F²⟩ on each bead per frame and axis, (kJ/mol/nm)²; raises TooFewFrames for moments of no frames."""
        row = np.concatenate([np.eye(moments.n_beads), *self.matrices], axis=1)
        return np.einsum("bi,ij,bj->b", row, moments.mean, row)


def labels(
    links: Sequence[Draw], forces: Float[np.ndarray, "frame bead 3"] | None, temperature_K: float, centred: bool
) -> Labels:
    """The labels of frames drawn through a chain, with all control variates that there are.

    links     the draws in their order; the condition of each is the positions of the one before
    forces    mapped forces of the frames at which the chain begins; None leaves out the variate that needs them
    centred   whether the links keep the mean over the beads
    """
    scores = [kT(temperature_K) * _numpy(link.score) for link in links]
    felt = [kT(temperature_K) * _numpy(link.condition_score) for link in links]
    pulls = [forces, *scores[:-1]]
    variates = tuple(pull + after for pull, after in zip(pulls, felt, strict=True) if pull is not None)[::-1]
    failed = np.any([link.failed.cpu().numpy() for link in links], axis=0)
    if forces is not None:
        failed |= ~finite_frames(forces)
    return Labels(scores[-1], variates, failed, centred)


def fit(moments: LabelMoments, used: Sequence[int], ridge: float = 0.0) -> Controls:
    """The W of least mean square; of centred labels those that take and give no mean over the beads.

    used    numbers of the variates to use
    ridge   λ ≥ 0 in (kJ/mol/nm)² per frame and axis: what is made small is ⟨F²⟩ + λ Σ W²
    Raises FitFailed where a variate is a copy of others, TooFewFrames for moments of no frames.
    """
    n = moments.n_beads
    space = null_space(np.ones((1, n))) if moments.centred else np.eye(n)
    rows = np.concatenate([np.zeros(0, dtype=int), *(n * (1 + variate) + np.arange(n) for variate in used)])
    spaces = np.kron(np.eye(len(used)), space)
    mean = moments.mean
    square = spaces.T @ mean[np.ix_(rows, rows)] @ spaces + ridge * np.eye(spaces.shape[1])
    spread = np.linalg.eigvalsh(square)
    if len(spread) and not spread[0] > RANK * spread[-1]:
        raise FitFailed(
            "control variates of least mean square",
            "one that is a copy of others, or fewer frames than beads",
            "give more frames, a ridge above 0, or fewer variates",
        )
    matrices = np.zeros((moments.n_variates, n, n))
    found = -np.linalg.solve(square, spaces.T @ mean[rows, :n]).T @ spaces.T
    for place, variate in enumerate(used):
        matrices[variate] = found[:, place * n : (place + 1) * n]
    return Controls(matrices)


@dataclass(frozen=True, eq=False)
class Judged:
    """What some of the variates do for a label.

    used                 their numbers; none for the label alone
    train, held_out      mean square of the label per frame, bead and axis on frames fitted on and on others
    """

    used: tuple[int, ...]
    controls: Controls
    train: float
    held_out: float


def judge(train: LabelMoments, held_out: LabelMoments, ridge: float = 0.0) -> tuple[Judged, ...]:
    """Every choice of variates, fitted on some frames and measured on others: (), (0,), (1,), (0, 1) of two."""
    numbers = range(train.n_variates)
    found = []
    for used in (used for size in range(len(numbers) + 1) for used in combinations(numbers, size)):
        controls = fit(train, used, ridge)
        squares = [float(controls.mean_square(moments).mean()) for moments in (train, held_out)]
        found.append(Judged(used, controls, *squares))
    return tuple(found)


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()
