"""The two kinds of frames that flow: of atoms, from a reader to the map; of beads, everywhere after.

Arrays may be float32 (as read and stored) or float64; units nm, kJ/mol/nm, ps.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class AtomFrames:
    """Consecutive frames of one segment as a reader gives them.

    positions in nm, forces in kJ/mol/nm (None where the source has none), cell vectors in nm (None where not periodic),
    time in ps.
    """

    positions: Float[np.ndarray, "frame atom 3"]
    forces: Float[np.ndarray, "frame atom 3"] | None
    cell: Float[np.ndarray, "frame 3 3"] | None
    time: Float[np.ndarray, "frame"]

    @property
    def n_frames(self) -> int:
        return len(self.positions)

    @property
    def finite(self) -> np.ndarray:
        """Which frames hold numbers only; shape (frame,), bool."""
        good = np.isfinite(self.positions).all(axis=(1, 2))
        if self.forces is not None:
            good &= np.isfinite(self.forces).all(axis=(1, 2))
        return good


@dataclass(frozen=True)
class BeadFrames:
    """Frames of coarse-grained beads with their statistical weights (1 where every frame counts the same)."""

    positions: Float[np.ndarray, "frame bead 3"]
    forces: Float[np.ndarray, "frame bead 3"]
    weights: Float[np.ndarray, "frame"]

    @property
    def n_frames(self) -> int:
        return len(self.positions)
