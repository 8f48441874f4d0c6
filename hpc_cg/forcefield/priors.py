"""Priors: harmonic in bonds, angle cosines and improper products, torsions, repulsion; their forces in closed form.

V = k (q - q0)^2 / 2 for every harmonic term (hpc_cg.forcefield.coordinates says which q). All terms are written in
unit vectors u = v / |v| along differences v of bead positions; with g = dV/du the chain rule is dV/dv = (g -
(g.u) u) / |v|. Differences are one product with a constant matrix, and the forces one product with its
transpose.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hpc_cg.beads import BeadSystem
from hpc_cg.forcefield.fitting import PriorParameters
from hpc_cg.forcefield.prediction import Prediction
from hpc_cg.forcefield.repulsion import RepulsionPrior
from hpc_cg.forcefield.torsions import TorsionPrior

TINY = 1e-9
"""Lengths (nm) below this count as this, so that two beads in one place give a number."""


class Prior(nn.Module):
    """The fixed terms of one bead system; it has buffers and no trainable parameters."""

    incidence: Tensor
    k: Tensor
    centre: Tensor

    def __init__(self, system: BeadSystem, parameters: PriorParameters):
        super().__init__()
        self.n_bonds, self.n_angles, self.n_impropers = (
            len(system.bonds),
            len(system.angles),
            len(system.impropers),
        )
        arrows = list(system.bonds)
        arrows += [(centre, i) for i, centre, _ in system.angles] + [(centre, k) for _, centre, k in system.angles]
        arrows += [(quad[0], quad[place]) for place in (1, 2, 3) for quad in system.impropers]
        incidence = torch.zeros(len(arrows), system.n_beads, dtype=torch.float64)
        for row, (tail, head) in enumerate(arrows):
            incidence[row, tail], incidence[row, head] = -1.0, 1.0
        p = parameters
        self._constant("incidence", incidence)
        self._constant("k", torch.tensor([*p.bond_k, *p.angle_k, *p.improper_k], dtype=torch.float64))
        self.torsions, self.repulsion = TorsionPrior(system, parameters), RepulsionPrior(system, parameters)
        self._constant("centre", torch.tensor([*p.bond_0, *p.angle_0, *p.improper_0], dtype=torch.float64))

    def _constant(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value.to(torch.get_default_dtype()), persistent=False)

    def forward(self, positions: Float[Tensor, "frame bead 3"]) -> Prediction:
        """Energy and forces of the prior terms (positions in nm)."""
        n_frames, n_beads, _ = positions.shape
        flat = positions.transpose(0, 1).reshape(n_beads, 3 * n_frames)
        vectors = (self.incidence @ flat).view(len(self.incidence), n_frames, 3)
        length = vectors.square().sum(-1, keepdim=True).clamp_min(TINY**2).sqrt()
        energy, gradient = self._along(vectors / length, length)
        forces = -(self.incidence.T @ gradient.reshape(len(gradient), 3 * n_frames)).view(n_beads, n_frames, 3)
        total = Prediction(energy, forces.transpose(0, 1))
        total = total + self.torsions(positions) if self.torsions.n_torsions else total
        return total + self.repulsion(positions) if self.repulsion.n_pairs else total

    def _along(self, unit: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Energy (frame) and its gradient by the vectors (vector frame 3), which are unit * length."""
        sizes = [self.n_bonds, self.n_angles, self.n_angles] + [self.n_impropers] * 3
        bond, u, w, a, b, c = unit.split(sizes)
        ab, bc, ca = torch.linalg.cross(a, b), torch.linalg.cross(b, c), torch.linalg.cross(c, a)
        q = torch.cat((length[: self.n_bonds, :, 0], (u * w).sum(-1), (ab * c).sum(-1)))
        deviation = q - self.centre[:, None]
        slope = self.k[:, None] * deviation
        energy = 0.5 * (slope * deviation).sum(0)
        on_bond, on_angle, on_improper = slope[..., None].split([self.n_bonds, self.n_angles, self.n_impropers])
        turning = torch.cat((on_angle * w, on_angle * u, on_improper * bc, on_improper * ca, on_improper * ab))
        around = unit[self.n_bonds :]
        turning = (turning - (turning * around).sum(-1, keepdim=True) * around) / length[self.n_bonds :]
        return energy, torch.cat((on_bond * bond, turning))
