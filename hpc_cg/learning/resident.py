"""Frames that fit in memory: loaded once, drawn from by index.

The noise of a batch is keyed by (seed, purpose, step) and drawn for the whole of it; each process labels its part.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import islice
from operator import add

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from hpc_cg.beads import BeadSystem
from hpc_cg.forcefield.coordinates import CoordinateMoments
from hpc_cg.kernels.noise import mixed_force, score_force
from hpc_cg.learning.distributed import World
from hpc_cg.learning.feed import Labelled, as_tensor
from hpc_cg.learning.labels import Batch, Labels, labelled
from hpc_cg.store.dataset import batch_indices
from hpc_cg.store.order import evenly

PART_OF_DEVICE = 0.5
"""Of an accelerator's free memory, what a loaded store may take."""

BLOCK_FRAMES = 65_536
"""Frames that are labelled at once where all are looked at."""


class Resident:
    """Frames in memory; on an accelerator with room for them they lie in its memory.

    train, validation   indices into the frames of ``labels``
    on_device           whether to label on the device; None: where that is an accelerator with room
    """

    def __init__(
        self,
        labels: Labels,
        train: Int[np.ndarray, "train"],
        validation: Int[np.ndarray, "validation"],
        seed: int,
        batch_size: int,
        world: World,
        device: torch.device,
        on_device: bool | None = None,
    ):
        self.labels, self.indices, self.held_out = labels, train, validation
        self.seed, self.batch_size, self.world, self.device = seed, batch_size, world, device
        if on_device is None:
            on_device = device.type == "cuda" and _has_room(labels, device)
        self._on_device = _OnDevice(labels, device) if on_device else None
        self._validation: list[Labelled] = []
        self._mean_weight = float(labels.frames.weights[train].mean(dtype=np.float64))

    @property
    def in_memory(self) -> bool:
        return True

    @property
    def n_train(self) -> int:
        return len(self.indices)

    @property
    def mean_weight(self) -> float:
        return self._mean_weight

    @property
    def n_held_out(self) -> int:
        return len(self.held_out)

    def train(self, step: int) -> Labelled:
        index = self.indices[batch_indices(self.seed, step, len(self.indices), self.batch_size)]
        return self._labelled(index, "training noise", step, slice(self.world.rank, len(index), self.world.size))

    def validation(self) -> Sequence[Labelled]:
        if not self._validation:
            # one draw for all of them, cut into parts: whoever has which part, the noise is the same
            parts = self.labels.batches(self.held_out, "validation noise", 0, self.batch_size)
            self._validation = [self._moved(part) for part in islice(parts, self.world.rank, None, self.world.size)]
        return self._validation

    def same(self, n_frames: int) -> Labelled:
        chosen = self.indices[evenly(len(self.indices), n_frames)]
        return self._labelled(chosen, "self-test", 0, slice(None))

    def moments(self, system: BeadSystem) -> CoordinateMoments:
        parts = self.labels.batches(self.indices, "prior noise", 0, BLOCK_FRAMES)
        return reduce(add, (CoordinateMoments.of(part.positions, system, part.weights) for part in parts))

    def names(self, index: Int[np.ndarray, "frame"]) -> list[str]:
        frames = self.labels.frames
        return [f"segment {frames.segment[i]} frame {frames.frame_index[i]}" for i in index]

    def close(self) -> None:
        pass

    def _labelled(self, index: np.ndarray, purpose: str, step: int, part: slice) -> Labelled:
        if self._on_device is None:
            return self._moved(self.labels.batch(index, purpose, step, part))
        return Labelled(index[part], *self._on_device.batch(index, purpose, step, part))

    def _moved(self, batch: Batch) -> Labelled:
        positions, forces, weights = (as_tensor(x, self.device) for x in (batch.positions, batch.forces, batch.weights))
        return Labelled(batch.index, positions, forces, weights)


def _has_room(labels: Labels, device: torch.device) -> bool:
    frames = labels.frames
    needed = frames.positions.size * 4 * (1 if frames.forces is None else 2)
    return needed < PART_OF_DEVICE * torch.cuda.mem_get_info(device)[0]


class _OnDevice:
    """The frames as tensors on a device, and their labels: as ``Labels.batch``, to rounding."""

    def __init__(self, labels: Labels, device: torch.device):
        frames, self.labels, self.device = labels.frames, labels, device
        stored = frames.noise if labels.kernel is None else None
        labels.batch(np.arange(0), "check", 0)  # says so where forces are missing
        positions, forces = frames.positions, frames.forces
        if labels.kernel is None:
            positions, forces = labelled(None, positions, stored, forces)
        elif labels.kernel.mixing is None:
            forces = None
        self.positions, self.weights = as_tensor(positions, device), as_tensor(frames.weights, device)
        self.forces = None if forces is None else as_tensor(forces, device)
        mixing = None if labels.kernel is None else labels.kernel.mixing
        self.mixing = None if mixing is None else as_tensor(mixing, device)

    def batch(self, index: np.ndarray, purpose: str, step: int, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.from_numpy(np.ascontiguousarray(index[part], dtype=np.int64)).to(self.device)
        positions, weights = self.positions.index_select(0, rows), self.weights.index_select(0, rows)
        forces = None if self.forces is None else self.forces.index_select(0, rows)
        kernel, drawn = self.labels.kernel, self.labels.draw(len(index), purpose, step)
        if kernel is not None and drawn is not None:
            noise = as_tensor(drawn[part], self.device)
            positions, score = positions + noise, score_force(noise, kernel.sigma_nm, kernel.temperature_K)
            forces = score if self.mixing is None else mixed_force(score, forces, self.mixing)
        assert forces is not None, "missing forces are refused before"
        return positions, forces, weights
