"""What a training step is fed with: this process's part of the global batch, wherever the frames are.

For any number of processes a batch is a function of the seed and the step. A store that fits in memory is loaded once
(``resident.py``), a larger one is read as it is needed (``streaming.py``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hpc_cg.beads import BeadSystem
from hpc_cg.forcefield.coordinates import CoordinateMoments


@dataclass(frozen=True)
class Labelled:
    """Labelled frames as tensors of float32, nm and kJ/mol/nm.

    index   which frames they are, for ``Feed.names``
    """

    index: Int[np.ndarray, "frame"]
    positions: Float[Tensor, "frame bead 3"]
    forces: Float[Tensor, "frame bead 3"]
    weights: Float[Tensor, "frame"]

    def part(self, part: slice) -> "Labelled":
        return Labelled(self.index[part], self.positions[part], self.forces[part], self.weights[part])


@runtime_checkable
class Feed(Protocol):
    """Frames to train on and frames held out, as one process of a world sees them."""

    @property
    def in_memory(self) -> bool:
        """Whether the frames are loaded once, or read as they are needed."""
        ...

    @property
    def n_train(self) -> int:
        """Frames to train on, of all processes."""
        ...

    @property
    def mean_weight(self) -> float:
        """Of the frames to train on, of all processes."""
        ...

    @property
    def n_held_out(self) -> int:
        """Frames held out from training that errors are measured on, of all processes."""
        ...

    def train(self, step: int) -> Labelled:
        """This process's part of the global batch of a step."""
        ...

    def validation(self) -> Sequence[Labelled]:
        """This process's share of the held-out frames, in parts; the same frames and noise at every call."""
        ...

    def same(self, n_frames: int) -> Labelled:
        """Up to ``n_frames`` frames to train on, spread over all of them, the same ones on every process."""
        ...

    def moments(self, system: BeadSystem) -> CoordinateMoments:
        """Moments of the distribution trained on, the same on every process."""
        ...

    def names(self, index: Int[np.ndarray, "frame"]) -> list[str]:
        """Where frames come from, in words."""
        ...

    def close(self) -> None:
        """End what reads in the background."""
        ...


def as_tensor(values: np.ndarray, device: torch.device) -> Tensor:
    """The values as float32 on a device."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(device)
