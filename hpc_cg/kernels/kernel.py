"""What every kernel is: a conditional density κ(y | frame) that can be sampled, and whose score gives forces.

kT ∇_y log κ(y | R) averaged over the frames that lead to y is the mean force of the density of y: each draw is one
noisy label of it. A kernel may mix the atomistic forces of its condition into the label, as long as the conditional
mean stays (Durumeric et al., arXiv 2407.01286; Klein et al., arXiv 2506.19628, eqs. 18-26).
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from hpc_cg.frames import BeadFrames


@dataclass(frozen=True)
class KernelSample:
    """Draws of a kernel, one per frame of the condition.

    positions     where the label holds, nm
    forces        the label, kJ/mol/nm
    log_density   log κ(positions | condition); zeros where the kernel moves nothing
    failed        frames without a label: left out and counted, never filled in
    """

    positions: Float[np.ndarray, "frame bead 3"]
    forces: Float[np.ndarray, "frame bead 3"]
    log_density: Float[np.ndarray, "frame"]
    failed: Bool[np.ndarray, "frame"]


@runtime_checkable
class Kernel(Protocol):
    """A fitted kernel."""

    def sample(self, condition: BeadFrames, key: np.random.Generator) -> KernelSample:
        """One draw for each frame of the condition; the same key gives the same draws."""
        ...
