"""What predicts noise: from a noisy frame and its level, a scalar Φ and the noise ε̂ that its gradient says is there.

    ε̂(x, t) = −∇_x Φ(x, t)

as in Arts et al. (arXiv 2302.00600), so that ε̂ is conservative. At the minimum of the loss ε̂ = −√(1 − ᾱ_t) ∇ ln p_t:
Φ is √(1 − ᾱ_t) ln p_t up to a constant, large where frames are likely. Frames are centred and over the data's scale.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Level = int | Int[Tensor, "frame"]
"""The level of all frames, or that of each."""


class Predicted(NamedTuple):
    """Φ of every frame, and ε̂ = −∇Φ."""

    potential: Float[Tensor, "frame"]
    noise: Float[Tensor, "frame bead 3"]


class NoisePredictor(nn.Module, ABC):
    """Φ(x, t) and its gradient, for frames of a fixed number of beads.

    Where gradients are recorded both can be differentiated by frames and parameters, else they have no graph.
    """

    n_beads: int

    def forward(self, frames: Float[Tensor, "frame bead 3"], level: Level) -> Predicted:
        """Φ and the noise predicted."""
        if torch.is_grad_enabled():
            moving = frames if frames.requires_grad else frames.detach().requires_grad_()
            return self._differentiated(moving, level, True)
        with torch.inference_mode(False), torch.enable_grad():
            level = level.clone() if isinstance(level, Tensor) else level
            return self._differentiated(frames.detach().clone().requires_grad_(), level, False)

    def _differentiated(self, moving: Tensor, level: Level, twice: bool) -> Predicted:
        potential = self.potential(moving, level, twice)
        (gradient,) = torch.autograd.grad(potential.sum(), moving, create_graph=twice)
        return Predicted(potential if twice else potential.detach(), -gradient)

    @abstractmethod
    def potential(
        self, frames: Float[Tensor, "frame bead 3"], level: Level, twice: bool = True
    ) -> Float[Tensor, "frame"]:
        """Φ alone; the mean of the beads plays no part.

        twice   whether it is to be differentiated twice, or once at most
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """All that its weights do not hold, as JSON can hold it."""

    @classmethod
    @abstractmethod
    def from_description(cls, description: Mapping[str, Any]) -> "NoisePredictor":
        """A predictor of that description, with fresh weights."""
