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
    def n_atoms(self) -> int:
        return self.positions.shape[1]

    @property
    def finite(self) -> np.ndarray:
        """Which frames hold numbers only; shape (frame,), bool."""
        good = finite_frames(self.positions)
        return good if self.forces is None else good & finite_frames(self.forces)


def finite_frames(values: np.ndarray) -> np.ndarray:
    """Which frames (first axis) are numbers only; a sum that is a number has only such terms, and is quickly made."""
    with np.errstate(invalid="ignore", over="ignore"):
        good = np.isfinite(values.reshape(len(values), -1).sum(axis=1))
    suspect = np.flatnonzero(~good)
    good[suspect] = np.isfinite(values[suspect]).all(axis=(1, 2))
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
