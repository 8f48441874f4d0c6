"""Frames of one ensemble as the comparison takes them.

Positions, weights, and the blocks that errors resample.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Sample:
    """Frames of one ensemble.

    Positions in nm, their weights, and the block that each belongs to (0, 1, 2, ...).
    """

    positions: Float[np.ndarray, "frame bead 3"]
    weights: Float[np.ndarray, "frame"]
    blocks: Int[np.ndarray, "frame"]

    @property
    def n_frames(self) -> int:
        return len(self.positions)

    @property
    def n_blocks(self) -> int:
        return int(self.blocks.max()) + 1 if len(self.blocks) else 0
