"""The force field in a diffusion model: its score at a level of little noise, times kT.

    V(R) = −kT Φ(x, t)/√(1 − ᾱ_t),     F = −∇V = −kT ε̂(x, t)/(s √(1 − ᾱ_t)),     x = (R − R̄)/s

(Arts et al., arXiv 2302.00600). It is the mean force of the data blurred by noise of width σ_t = s √((1 − ᾱ_t)/ᾱ_t),
as the noise kernel's is, but for a shrinking by √ᾱ_t that the published form leaves out: noisy frames of the model are
x_t = √ᾱ_t y for blurred frames y, hence exactly

    V(R) = −kT Φ(√ᾱ_t x, t)/√(1 − ᾱ_t),     F = −kT √ᾱ_t ε̂(√ᾱ_t x, t)/(s √(1 − ᾱ_t)).

For Gaussian data the published force is too strong by 1/ᾱ_t: by 0.05 % at level 8, by 0.2 % at level 20.
"""

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hpc_cg.diffusion.model import DiffusionModel
from hpc_cg.forcefield.prediction import Prediction
from hpc_cg.kernels.density import centred
from hpc_cg.units import kT


class DiffusionForceField(nn.Module):
    """Energy and forces of one molecule at a level of noise. Units nm, kJ/mol, kJ/mol/nm.

    level           of the model's schedule
    temperature_K   of the data, at which the force field holds
    shrunk          whether √ᾱ_t is kept, so that forces are exactly those of blurred data; as published: False
    Raises UnfitLevel.
    """

    def __init__(self, model: DiffusionModel, level: int, temperature_K: float, shrunk: bool = False):
        super().__init__()
        self.model, self.level = model, model.schedule.checked(level)
        self.temperature_K, self.shrunk = temperature_K, shrunk

    @property
    def sigma_nm(self) -> float:
        """The width of the noise whose blurred data this is the force field of, nm."""
        return self.model.schedule.sigma_nm(self.level, self.model.scale_nm)

    def forward(self, positions: Float[Tensor, "frame bead 3"]) -> Prediction:
        """Energy, up to a constant, and forces; with a graph where gradients are recorded."""
        schedule, scale = self.model.schedule, self.model.scale_nm
        shrink = float(np.sqrt(schedule.signal[self.level])) if self.shrunk else 1.0
        found = self.model.predictor(centred(positions) * (shrink / scale), self.level)
        depth = -kT(self.temperature_K) / float(np.sqrt(schedule.noise[self.level]))
        return Prediction(depth * found.potential, depth * shrink / scale * found.noise)


def evaluator(forcefield: DiffusionForceField, dtype: torch.dtype = torch.float32) -> Callable[[Tensor], Prediction]:
    """A function of positions (replica bead 3; nm) that gives energies and forces in ``dtype`` and without a graph.

    The force field is copied: later training does not change what is returned.
    """
    own = deepcopy(forcefield).requires_grad_(False).to(dtype).eval()

    def evaluate(positions: Tensor) -> Prediction:
        with torch.inference_mode():
            return own(positions)

    return evaluate
