"""A denoising diffusion model of the frames of one molecule, and what it is trained on.

A centred frame R (nm) is turned, taken over the data's scale s and made noisy at a level t drawn for it,

    x = Q (R − R̄)/s,     x_t = √ᾱ_t x + √(1 − ᾱ_t) ε,     L = ⟨|ε − ε̂(x_t, t)|²⟩

(Ho, Jain, Abbeel 2020, arXiv 2006.11239), with ε standard normal without its mean over the beads and Q a rotation
drawn evenly. The minimiser at every level is ε̂ = −√(1 − ᾱ_t) ∇ ln p_t. Levels of little noise, which force fields are
read off, are drawn more often (Arts et al., arXiv 2302.00600); this changes how well each level is learnt, not what its
minimiser is.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from hpc_cg.diffusion.predictor import NoisePredictor
from hpc_cg.diffusion.schedule import CosineSchedule
from hpc_cg.diffusion.transformer import GraphTransformer
from hpc_cg.errors import TooFewFrames, UnfitLevel
from hpc_cg.kernels.density import centred, normals


@dataclass(frozen=True)
class Spread:
    """Sums over frames that give the scale of the data; ``a + b`` are those of both sets of frames.

    count     sum of the frames' weights, times coordinates
    squares   Σ weight · |R − R̄|², nm²
    """

    count: float
    squares: float

    @staticmethod
    def of(positions: Float[np.ndarray, "frame bead 3"], weights: Float[np.ndarray, "frame"] | None = None) -> "Spread":
        """Of positions in nm; frames of weight 0 are not looked at."""
        weights = np.ones(len(positions)) if weights is None else weights.astype(np.float64)
        frames = positions[weights > 0].astype(np.float64)
        frames -= frames.mean(axis=1, keepdims=True)
        squares = (frames**2).sum(axis=(1, 2)) @ weights[weights > 0]
        return Spread(float(weights.sum()) * positions.shape[1] * 3, float(squares))

    def __add__(self, other: "Spread") -> "Spread":
        return Spread(self.count + other.count, self.squares + other.squares)

    @property
    def scale_nm(self) -> float:
        """s: root mean square of all coordinates of centred frames, nm; raises TooFewFrames."""
        if not self.squares > 0:
            raise TooFewFrames(
                "the scale of frames", "none, or beads all in one place", "give frames of two or more beads"
            )
        return (self.squares / self.count) ** 0.5


@dataclass(frozen=True)
class LevelDraws:
    """How levels are drawn for training: those below ``few`` make up ``share`` of all draws, evenly on either side."""

    few: int = 100
    share: float = 0.5

    def check(self, n_levels: int) -> None:
        """Raise UnfitLevel where a schedule of so many levels cannot be drawn from like this."""
        if not (0 < self.few < n_levels and 0 < self.share < 1):
            raise UnfitLevel(
                "draws of noise levels",
                f"a share of {self.share:g} for the first {self.few} of {n_levels}",
                "choose a share between 0 and 1, and fewer levels than there are",
            )

    def of(self, uniform: Float64[np.ndarray, "frame"], n_levels: int) -> Int[np.ndarray, "frame"]:
        """Levels from numbers evenly drawn in [0, 1)."""
        low = uniform < self.share
        part = np.where(low, uniform / self.share, (uniform - self.share) / (1 - self.share))
        return np.where(low, part * self.few, self.few + part * (n_levels - self.few)).astype(np.int64)


class DiffusionModel(nn.Module):
    """A network that predicts noise, and the frames that it is for.

    scale_nm   s of the data, nm; see ``Spread``
    """

    def __init__(
        self,
        predictor: NoisePredictor,
        scale_nm: float,
        schedule: CosineSchedule | None = None,
        draws: LevelDraws | None = None,
    ):
        super().__init__()
        self.predictor, self.scale_nm = predictor, scale_nm
        self.schedule, self.draws = schedule or CosineSchedule(), draws or LevelDraws()
        self.draws.check(self.schedule.n_levels)

    def loss(self, positions: Float[Tensor, "frame bead 3"], key: np.random.Generator) -> Float[Tensor, "frame"]:
        """The loss of each frame (nm), per bead and axis, at a level, rotation and noise drawn for it."""
        levels = self.draws.of(key.random((len(positions),)), self.schedule.n_levels)
        turned = centred(positions) / self.scale_nm @ rotations(normals(key, positions.new_empty(len(positions), 4))).mT
        return self.loss_at(turned, torch.from_numpy(levels).to(positions.device), key)

    def loss_at(
        self, frames: Float[Tensor, "frame bead 3"], levels: Int[Tensor, "frame"], key: np.random.Generator
    ) -> Float[Tensor, "frame"]:
        """The loss of centred frames in units of s, each at its level, at noise drawn for it."""
        noise = centred(normals(key, frames))
        found = self.predictor(self.blurred(frames, noise, levels), levels).noise
        return (noise - found).square().mean((1, 2))

    def blurred(
        self, frames: Float[Tensor, "frame bead 3"], noise: Float[Tensor, "frame bead 3"], levels: Int[Tensor, "frame"]
    ) -> Float[Tensor, "frame bead 3"]:
        """√ᾱ_t x + √(1 − ᾱ_t) ε."""
        of_frame, of_noise = (
            torch.from_numpy(np.sqrt(part)).to(frames)[levels][:, None, None]
            for part in (self.schedule.signal, self.schedule.noise)
        )
        return of_frame * frames + of_noise * noise

    def describe(self) -> dict[str, Any]:
        """All but the trained weights, as plain JSON that ``from_description`` reads."""
        return {
            "predictor": self.predictor.describe(),
            "scale_nm": self.scale_nm,
            "schedule": asdict(self.schedule),
            "draws": asdict(self.draws),
        }

    @staticmethod
    def from_description(content: Mapping[str, Any]) -> "DiffusionModel":
        """A model of that description by a graph transformer with freshly drawn weights; load a state dict into it."""
        return DiffusionModel(
            GraphTransformer.from_description(content["predictor"]),
            content["scale_nm"],
            CosineSchedule(**content["schedule"]),
            LevelDraws(**content["draws"]),
        )


def rotations(normal: Float[Tensor, "frame 4"]) -> Float[Tensor, "frame 3 3"]:
    """Rotations, evenly drawn where the quaternions are of standard normal numbers (Shoemake 1992)."""
    w, x, y, z = (normal / normal.norm(dim=1, keepdim=True)).unbind(1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
