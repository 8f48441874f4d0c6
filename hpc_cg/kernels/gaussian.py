"""Gaussian kernels: everything about them is known in closed form.

    κ(y | c) = N(y; A c + b, V)        ∇_y log κ = −V⁻¹ r,   ∇_c log κ = Aᵀ V⁻¹ r,   r = y − A c − b

Blurring is A = 1, b = 0, V = σ². What undoes it for data N(μ, Σ) is the law of y given c = y + σξ,

    A = Σ (Σ + σ²)⁻¹,   b = (1 − A) μ,   V = σ² A

and the transitions of an Ornstein–Uhlenbeck process are of this form too. Other kernels are tested against these.
Fitted to the moments of real frames the reverse kernel can be used as it is where these are superposed and stay near
one structure: it knows a single orientation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hpc_cg.errors import FitFailed, TooFewFrames
from hpc_cg.kernels.density import ConditionalDensity, Draw, centred, finite, normals

RANK = 1e-12
"""A variance below so much of the largest is none."""


@dataclass(frozen=True, eq=False)
class PositionMoments:
    """Sums over frames that give mean and covariance of positions; ``a + b`` are those of both sets of frames.

    count   sum of the frames' weights
    total   Σ weight · x, nm, x with the axes of a bead one after another
    gram    Σ weight · x xᵀ, nm²
    """

    count: float
    total: Float64[np.ndarray, "coordinate"]
    gram: Float64[np.ndarray, "coordinate coordinate"]

    @staticmethod
    def of(
        positions: Float[np.ndarray, "frame bead 3"], weights: Float[np.ndarray, "frame"] | None = None
    ) -> "PositionMoments":
        """Moments of positions in nm; frames of weight 0 are not looked at."""
        weights = np.ones(len(positions)) if weights is None else weights.astype(np.float64)
        rows = positions.reshape(len(positions), 3 * positions.shape[1])[weights > 0].astype(np.float64)
        weighted = rows * weights[weights > 0, None]
        return PositionMoments(float(weights.sum()), weighted.sum(axis=0), rows.T @ weighted)

    def __add__(self, other: "PositionMoments") -> "PositionMoments":
        return PositionMoments(self.count + other.count, self.total + other.total, self.gram + other.gram)

    @property
    def mean(self) -> Float64[np.ndarray, "bead 3"]:
        """⟨x⟩, nm; raises TooFewFrames."""
        if not self.count > 0:
            raise TooFewFrames("a Gaussian kernel", "no frames", "give frames with weights above 0")
        return self.total.reshape(-1, 3) / self.count

    @property
    def covariance(self) -> Float64[np.ndarray, "coordinate coordinate"]:
        """⟨x xᵀ⟩ − ⟨x⟩⟨x⟩ᵀ, nm²; raises TooFewFrames."""
        mean = self.mean.ravel()
        return self.gram / self.count - np.outer(mean, mean)


class GaussianKernel(ConditionalDensity):
    """N(y; A c + b, V), with coordinates numbered axis by axis within bead by bead.

    gain         A
    offset       b, nm
    covariance   V, nm²
    centred      whether y keeps the mean of c over the beads and moves in the other 3n − 3 dimensions only; A, b and V
                 then act on what is left of c without its mean
    Raises FitFailed where V leaves no room to move in some direction.
    """

    gain: Tensor
    offset: Tensor
    covariance: Tensor

    def __init__(
        self,
        gain: Float[np.ndarray, "coordinate coordinate"],
        offset: Float[np.ndarray, "coordinate"],
        covariance: Float[np.ndarray, "coordinate coordinate"],
        centred: bool,
    ):
        super().__init__()
        self.centred = centred
        keep = _kept(len(offset), centred)
        matrices = {"gain": keep @ gain @ keep, "offset": keep @ offset, "covariance": keep @ covariance @ keep}
        for name, values in matrices.items():
            self.register_buffer(name, torch.from_numpy(values.astype(np.float64)))
        self._modes()

    @staticmethod
    def noise(n_beads: int, sigma_nm: float, centred: bool) -> "GaussianKernel":
        """N(y; c, σ²), σ a standard deviation in nm."""
        one = np.eye(3 * n_beads)
        return GaussianKernel(one, np.zeros(3 * n_beads), sigma_nm**2 * one, centred)

    @staticmethod
    def reverse(
        mean: Float[np.ndarray, "bead 3"],
        covariance: Float[np.ndarray, "coordinate coordinate"],
        sigma_nm: float,
        centred: bool,
    ) -> "GaussianKernel":
        """The law of y given y + σξ for data of that mean (nm) and covariance (nm²)."""
        one, keep = np.eye(len(covariance)), _kept(len(covariance), centred)
        covariance = keep @ covariance @ keep
        gain = np.linalg.solve(covariance + sigma_nm**2 * one, covariance)
        return GaussianKernel(gain, (one - gain) @ mean.ravel(), sigma_nm**2 * gain, centred)

    def loss(
        self,
        target: Float[Tensor, "frame bead 3"],
        condition: Float[Tensor, "frame bead 3"],
        key: np.random.Generator,
    ) -> Float[Tensor, "frame"]:
        """−log κ; it has no parameters to be fitted by it."""
        return -self.at(target, condition, key).log_density

    def draw(self, condition: Float[Tensor, "frame bead 3"], key: np.random.Generator) -> Draw:
        """y = A c + b + V^½ ξ."""
        variances, modes = self._modes()
        random = normals(key, condition).flatten(1).to(variances)[:, : len(variances)]
        step = (random * variances.sqrt()) @ modes.T
        return self.at((self._middle(condition) + step).reshape(condition.shape).to(condition), condition, key)

    def at(
        self,
        positions: Float[Tensor, "frame bead 3"],
        condition: Float[Tensor, "frame bead 3"],
        key: np.random.Generator,
    ) -> Draw:
        """Density and scores, exact; nothing is random."""
        variances, modes = self._modes()
        rest = (positions.flatten(1).to(variances) - self._middle(condition)) @ modes
        pull = (rest / variances) @ modes.T
        log_density = -0.5 * ((rest**2 / variances).sum(1) + torch.log(2 * torch.pi * variances).sum())
        score, condition_score = (values.reshape(condition.shape).to(condition) for values in (-pull, pull @ self.gain))
        failed = ~finite(positions, condition, score)
        return Draw(positions, score, condition_score, log_density.to(condition), failed)

    def _middle(self, condition: Tensor) -> Tensor:
        """A c + b."""
        whole = condition.to(self.gain)
        shift = whole - centred(whole) if self.centred else torch.zeros_like(whole)
        return (whole - shift).flatten(1) @ self.gain.T + self.offset + shift.flatten(1)

    def _modes(self) -> tuple[Tensor, Tensor]:
        """Variance and direction of all modes in which y can move."""
        variances, modes = torch.linalg.eigh(self.covariance)
        fixed = 3 if self.centred else 0
        if not float(variances[fixed]) > RANK * float(variances[-1]):
            raise FitFailed(
                "a Gaussian kernel",
                "a direction in which the frames do not vary",
                "give more frames; of frames whose mean over the beads is fixed make a centred kernel",
            )
        return variances[fixed:], modes[:, fixed:]

    def describe(self) -> dict[str, Any]:
        return {"n_beads": len(self.offset) // 3, "centred": self.centred}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> "GaussianKernel":
        """A kernel of that size which blurs by 1 nm, until its state is loaded."""
        one = np.eye(3 * description["n_beads"])
        return GaussianKernel(one, np.zeros(len(one)), one, description["centred"])


def _kept(n_coordinates: int, centred: bool) -> Float64[np.ndarray, "coordinate coordinate"]:
    """What takes the mean over the beads out of positions, where that is wanted."""
    n_beads = n_coordinates // 3
    return np.kron(np.eye(n_beads) - (1 / n_beads if centred else 0.0), np.eye(3))
