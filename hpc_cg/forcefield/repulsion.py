"""Repulsion of beads that are not bonded, with its forces in closed form.

    V = Σ over pairs ε (σ / r)^6,      ε = 4.184 kJ/mol

(as CGSchNet's priors have it; Husic et al. 2020, doi 10.1063/5.0026133). Closer than σ / 4, where V is 4096 ε and no
thermal motion leads, V goes on as its tangent, so that beads in one place give numbers.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hpc_cg.beads import BeadSystem
from hpc_cg.forcefield.fitting import REPULSION_ENERGY, PriorParameters
from hpc_cg.forcefield.prediction import Prediction

INNER = 0.25
"""Part of σ below which V is a straight line."""

TINY = 1e-9
"""Lengths (nm) below this count as this."""


class RepulsionPrior(nn.Module):
    """The repulsion of one bead system; it has buffers and no trainable parameters."""

    incidence: Tensor
    sigma: Tensor

    def __init__(self, system: BeadSystem, parameters: PriorParameters):
        super().__init__()
        self.n_pairs = len(parameters.repulsion_pairs)
        incidence = torch.zeros(self.n_pairs, system.n_beads, dtype=torch.float64)
        rows, pairs = torch.arange(self.n_pairs), torch.as_tensor(parameters.repulsion_pairs)
        incidence[rows, pairs[:, 0]], incidence[rows, pairs[:, 1]] = -1.0, 1.0
        for name, value in (("incidence", incidence), ("sigma", torch.as_tensor(parameters.repulsion_sigma)[:, None])):
            self.register_buffer(name, value.to(torch.get_default_dtype()), persistent=False)

    def forward(self, positions: Float[Tensor, "frame bead 3"]) -> Prediction:
        """Energy and forces of all pairs (positions in nm)."""
        n_frames, n_beads, _ = positions.shape
        flat = positions.transpose(0, 1).reshape(n_beads, 3 * n_frames)
        vectors = (self.incidence @ flat).view(self.n_pairs, n_frames, 3)
        distance = vectors.square().sum(-1).clamp_min(TINY**2).sqrt()
        outside = torch.maximum(distance, INNER * self.sigma)
        energy = REPULSION_ENERGY * (self.sigma / outside) ** 6
        slope = -6.0 * energy / outside
        energy = energy + slope * (distance - outside)
        along = (slope / distance)[..., None] * vectors
        forces = -(self.incidence.T @ along.reshape(self.n_pairs, 3 * n_frames)).view(n_beads, n_frames, 3)
        return Prediction(energy.sum(0), forces.transpose(0, 1))
