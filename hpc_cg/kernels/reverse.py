"""A learnt kernel in use: a frame is displaced by noise, and a frame that may have led there is drawn.

    S → S' by N(S'|S) = N(S'; S, σ²),   S' → R by κ(R|S')

Where κ is the law of what was displaced, R has the density of S: labels are of the clean density, not of the noised
one, and the frames that they are at need not be in the archive (Klein et al., arXiv 2506.19628, eqs. 6-8).
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float

from hpc_cg.frames import BeadFrames
from hpc_cg.kernels import control
from hpc_cg.kernels.density import ConditionalDensity, Draw
from hpc_cg.kernels.fitted import Reach
from hpc_cg.kernels.gaussian import GaussianKernel
from hpc_cg.kernels.kernel import KernelSample


@dataclass(frozen=True, eq=False)
class ReverseKernel:
    """Noise of width σ and a density that undoes it.

    sigma_nm       of the noise, a standard deviation
    temperature_K  of the data
    with_forces    whether mapped forces of the condition are mixed in
    controls       weights of the control variates; None for the label alone
    device         that draws are made on
    reach          of the density: displaced frames beyond have failed; None where it is not known
    """

    density: ConditionalDensity
    sigma_nm: float
    temperature_K: float
    with_forces: bool
    controls: control.Controls | None
    device: torch.device
    reach: Reach | None = None

    def links(self, positions: Float[np.ndarray, "frame bead 3"], key: np.random.Generator) -> tuple[Draw, Draw]:
        """A step by the noise and one back, for each frame (nm)."""
        clean = torch.from_numpy(np.ascontiguousarray(positions, dtype=np.float32)).to(self.device)
        noise = GaussianKernel.noise(clean.shape[1], self.sigma_nm, self.density.centred).to(self.device)
        displaced = noise.draw(clean, key)
        if self.reach is not None:
            beyond = ~self.reach.holds(displaced.positions)
            displaced = replace(displaced, failed=displaced.failed | beyond)
        return displaced, self.density.draw(displaced.positions, key)

    def labels(self, condition: BeadFrames, links: tuple[Draw, Draw]) -> control.Labels:
        """The labels of draws with their control variates, kJ/mol/nm."""
        forces = condition.forces if self.with_forces else None
        return control.labels(links, forces, self.temperature_K, self.density.centred)

    def sample(self, condition: BeadFrames, key: np.random.Generator) -> KernelSample:
        """One draw for each frame of the condition; the same key gives the same draws."""
        links = self.links(condition.positions, key)
        found = self.labels(condition, links)
        forces = found.forces if self.controls is None else self.controls.apply(found)
        positions = links[1].positions.cpu().numpy()
        failed = found.failed | ~np.isfinite(forces).all(axis=(1, 2)) | ~np.isfinite(positions).all(axis=(1, 2))
        log_density = links[1].log_density.double().cpu().numpy()
        return KernelSample(positions, forces.astype(np.float32), log_density, failed)
