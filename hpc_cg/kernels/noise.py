"""The noise kernel N(y; R, σ²), its score, and the mapped forces mixed in.

    η = −kT (y − R) / σ²     the score of the kernel, in force units
    F = η + W (F_at − η)     any constant W keeps the conditional mean; W = 0 is noise alone, W = 1 the mapped force

Source: Durumeric et al., arXiv 2407.01286; Klein et al., arXiv 2506.19628, eqs. 2-5. The formulas are plain arithmetic
and work on numpy arrays and on tensors alike.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from hpc_cg.errors import MissingForces
from hpc_cg.frames import BeadFrames
from hpc_cg.kernels.kernel import KernelSample
from hpc_cg.units import kT


def score_force(noise: Any, sigma_nm: float, temperature_K: float) -> Any:
    """−kT (y − R)/σ² in kJ/mol/nm for displacements ``noise`` = y − R in nm."""
    return noise * (-kT(temperature_K) / sigma_nm**2)


def mixed_force(score: Any, forces: Any, mixing: Any) -> Any:
    """η + W (F − η) for arrays (..., bead, 3) and W of shape (bead, bead)."""
    return score + mixing @ (forces - score)


@dataclass(frozen=True)
class MappedForces:
    """No kernel: positions as they are, labelled with the mapped forces."""

    def sample(self, condition: BeadFrames, key: np.random.Generator) -> KernelSample:
        """The condition itself; frames whose forces are no numbers have failed."""
        bad = ~np.isfinite(condition.forces).all(axis=(1, 2))
        zeros = np.zeros(condition.n_frames)
        return KernelSample(condition.positions, condition.forces, zeros, bad)


@dataclass(frozen=True)
class NoiseKernel:
    """Gaussian noise on every bead and axis.

    sigma_nm        standard deviation of the noise, nm (not a variance)
    temperature_K   of the data
    mixing          W of shape (bead, bead), or None for noise alone
    """

    sigma_nm: float
    temperature_K: float
    mixing: Float[np.ndarray, "bead bead"] | None

    def draw(self, shape: tuple[int, ...], key: np.random.Generator) -> Float[np.ndarray, "..."]:
        """Displacements y − R in nm, float32."""
        return key.standard_normal(shape, dtype=np.float32) * np.float32(self.sigma_nm)

    def label(self, noise: Any, forces: Any) -> Any:
        """The force label of displacements ``noise`` (..., bead, 3), given mapped forces (or None for noise alone)."""
        score = score_force(noise, self.sigma_nm, self.temperature_K)
        if self.mixing is None:
            return score
        if forces is None:
            raise MissingForces(
                "a kernel that mixes in mapped forces",
                "frames without forces",
                "use the noise kernel without forces",
            )
        return mixed_force(score, forces, self.mixing.astype(np.float32))

    def sample(self, condition: BeadFrames, key: np.random.Generator) -> KernelSample:
        """One noised copy of each frame with its label."""
        noise = self.draw(condition.positions.shape, key)
        positions = condition.positions + noise
        forces = self.label(noise, condition.forces)
        n_axes = noise[0].size if len(noise) else 0
        squares = np.square(noise.astype(np.float64) / self.sigma_nm).sum(axis=(1, 2))
        log_density = -0.5 * squares - n_axes * np.log(self.sigma_nm * np.sqrt(2 * np.pi))
        failed = ~(np.isfinite(positions).all(axis=(1, 2)) & np.isfinite(forces).all(axis=(1, 2)))
        return KernelSample(positions, forces, log_density, failed)
