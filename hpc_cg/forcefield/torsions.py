"""Torsion priors: a Fourier series of each dihedral about a bond, with its forces in closed form.

    V(θ) = Σ_n a_n sin nθ + b_n cos nθ,   n = 1 .. order

Cosine and sine of θ come from the bond vectors b1, b2, b3 alone, with m = b1 × b2 and n = b2 × b3:

    cos θ = m·n / (|m||n|),   sin θ = |b2| b1·n / (|m||n|),
    ∂θ/∂b1 = |b2| m / m²,   ∂θ/∂b3 = |b2| n / n²,   ∂θ/∂b2 = −(b1·b2) m / (m²|b2|) − (b3·b2) n / (n²|b2|)

(Blondel and Karplus 1996, doi 10.1002/(SICI)1096-987X(19960715)17:9<1132::AID-JCC5>3.0.CO;2-T).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hpc_cg.beads import BeadSystem
from hpc_cg.forcefield.coordinates import torsions_of
from hpc_cg.forcefield.fitting import PriorParameters
from hpc_cg.forcefield.prediction import Prediction

TINY = 1e-12
"""Squared lengths (nm², nm⁴) below this count as this, so that three beads in a line give a number."""


class TorsionPrior(nn.Module):
    """The torsion terms of one bead system; it has buffers and no trainable parameters."""

    incidence: Tensor
    sine: Tensor
    cosine: Tensor

    def __init__(self, system: BeadSystem, parameters: PriorParameters):
        super().__init__()
        quads = torsions_of(system) if parameters.torsion_sin.size else ()
        incidence = torch.zeros(3 * len(quads), system.n_beads, dtype=torch.float64)
        for place in range(3):
            for row, quad in enumerate(quads):
                tail, head = quad[place], quad[place + 1]
                incidence[place * len(quads) + row, tail], incidence[place * len(quads) + row, head] = -1.0, 1.0
        self.n_torsions = len(quads)
        for name, value in (
            ("incidence", incidence),
            ("sine", torch.as_tensor(parameters.torsion_sin)),
            ("cosine", torch.as_tensor(parameters.torsion_cos)),
        ):
            self.register_buffer(name, value.to(torch.get_default_dtype()), persistent=False)

    def forward(self, positions: Float[Tensor, "frame bead 3"]) -> Prediction:
        """Energy and forces of the torsion terms (positions in nm)."""
        n_frames, n_beads, _ = positions.shape
        flat = positions.transpose(0, 1).reshape(n_beads, 3 * n_frames)
        b1, b2, b3 = (self.incidence @ flat).view(3, self.n_torsions, n_frames, 3)
        m, n = torch.linalg.cross(b1, b2), torch.linalg.cross(b2, b3)
        axis = b2.square().sum(-1).clamp_min(TINY).sqrt()
        m2, n2 = m.square().sum(-1).clamp_min(TINY), n.square().sum(-1).clamp_min(TINY)
        scale = (m2 * n2).rsqrt()
        energy, slope = self._series((m * n).sum(-1) * scale, axis * (b1 * n).sum(-1) * scale)
        m, n = (slope / m2)[..., None] * m, (slope / n2)[..., None] * n
        along, back = ((b1 * b2).sum(-1) / axis)[..., None], ((b3 * b2).sum(-1) / axis)[..., None]
        gradient = torch.stack((axis[..., None] * m, -along * m - back * n, axis[..., None] * n))
        forces = -(self.incidence.T @ gradient.reshape(3 * self.n_torsions, 3 * n_frames)).view(n_beads, n_frames, 3)
        return Prediction(energy.sum(0), forces.transpose(0, 1))

    def _series(self, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
        """V and dV/dθ of each torsion and frame; multiples of the angle by the addition theorem."""
        energy, slope = torch.zeros_like(cosine), torch.zeros_like(cosine)
        c, s = cosine, sine
        for order in range(1, self.sine.shape[1] + 1):
            a, b = self.sine[:, order - 1, None], self.cosine[:, order - 1, None]
            energy = energy + a * s + b * c
            slope = slope + order * (a * c - b * s)
            c, s = c * cosine - s * sine, s * cosine + c * sine
        return energy, slope
