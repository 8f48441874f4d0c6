"""Frames that do not fit in memory: each process reads its streams of the store's order, a window ahead.

The noise of a batch is keyed by (seed, purpose, step, stream), so it does not depend on who serves which stream.
"""

from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import starmap
from operator import add

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from hpc_cg.beads import BeadSystem
from hpc_cg.errors import BrokenLaunch, TooFewFrames
from hpc_cg.forcefield.coordinates import CoordinateMoments
from hpc_cg.learning.distributed import World
from hpc_cg.learning.feed import Labelled, as_tensor
from hpc_cg.learning.labels import LabelSource, labelled
from hpc_cg.randomness import stream
from hpc_cg.store.dataset import read_frames
from hpc_cg.store.order import Order, Pick, choose_window, spread
from hpc_cg.store.stream import HELD_OUT, TRAIN, Frames, StreamReader, read_picks
from hpc_cg.store.writer import epoch_sums


class Streaming:
    """Frames read from disk as they are needed, of a store of any size.

    n_streams           streams of the order: no more processes than these can take part
    shuffle_gb          memory of all windows, where one process serves all streams
    validation_frames   at most so many held-out frames are looked at
    prior_frames        at most so many frames priors are fitted on; both spread over the store
    Raises TooFewFrames, BrokenLaunch, OutOfMemory, DamagedProduct.
    """

    def __init__(
        self,
        source: LabelSource,
        seed: int,
        batch_size: int,
        n_streams: int,
        shuffle_gb: float,
        validation_frames: int,
        prior_frames: int,
        world: World,
        device: torch.device,
    ):
        if world.size > n_streams:
            raise BrokenLaunch(
                f"a stream of frames for each of {world.size} processes",
                f"{n_streams} streams",
                f"start fewer processes, or set train.streams to {world.size} or more, a divisor of train.batch_size",
            )
        self.source, self.seed, self.batch_size, self.world, self.device = source, seed, batch_size, world, device
        sums = epoch_sums(source.store, source.spec)
        self.counts, self._weight = sums.counts, float(sums.weights[:, TRAIN].sum())
        n_train, n_held_out = self.counts.sum(axis=0).tolist()
        if not n_train or not n_held_out:
            raise TooFewFrames(
                "frames to train on and frames held out",
                f"{n_train} to train on and {n_held_out} held out",
                "give longer trajectories, or shorten prepare.held_out_block_ps",
            )
        window = choose_window(source.spec, source.names, n_streams, shuffle_gb)
        self.order = Order(np.ascontiguousarray(self.counts[:, TRAIN]), batch_size, n_streams, window, seed)
        self.looked_at = spread(self.counts[:, HELD_OUT], validation_frames)
        self.fitted_on = spread(self.counts[:, TRAIN], prior_frames)
        streams = range(world.rank, n_streams, world.size)
        self._reader = StreamReader(source.store, source.spec, self.order, streams, source.names)
        self._validation: list[Labelled] = []

    @property
    def in_memory(self) -> bool:
        return False

    @property
    def n_train(self) -> int:
        return int(self.counts[:, TRAIN].sum())

    @property
    def mean_weight(self) -> float:
        return self._weight / self.n_train

    @property
    def n_held_out(self) -> int:
        return sum(len(pick.ranks) for pick in self.looked_at)

    def train(self, step: int) -> Labelled:
        found = self._reader.batch(step)
        parts = [
            self._label(frames, "training noise", step, number)
            for number, frames in zip(self._reader.streams, found, strict=True)
        ]
        tensors = (torch.cat(column) for column in zip(*parts, strict=True))
        return self._moved(np.concatenate([frames.index for frames in found]), tensors)

    def validation(self) -> Sequence[Labelled]:
        mine = range(self.world.rank, len(self.looked_at), self.world.size)
        if not self._validation and len(mine):
            found = [self._read(HELD_OUT, self.looked_at[number]) for number in mine]
            labels = [self._label(x, "validation noise", 0, n) for x, n in zip(found, mine, strict=True)]
            tensors = (torch.cat(column) for column in zip(*labels, strict=True))
            whole = self._moved(np.concatenate([frames.index for frames in found]), tensors)
            starts = range(0, len(whole.index), self.batch_size)
            self._validation = [whole.part(slice(start, start + self.batch_size)) for start in starts]
        return self._validation

    def same(self, n_frames: int) -> Labelled:
        frames = self._read(TRAIN, *spread(self.counts[:, TRAIN], n_frames))
        return self._moved(frames.index, self._label(frames, "self-test", 0))

    def moments(self, system: BeadSystem) -> CoordinateMoments:
        def of(number: int, pick: Pick) -> CoordinateMoments:
            positions, _, weights = self._label(self._read(TRAIN, pick), "prior noise", 0, number)
            return CoordinateMoments.of(positions.numpy(), system, weights.numpy())

        return reduce(add, starmap(of, enumerate(self.fitted_on)))

    def names(self, index: Int[np.ndarray, "frame"]) -> list[str]:
        found = [read_frames(self.source.store, self.source.spec, int(i), int(i) + 1, ()) for i in index]
        return [f"segment {content.segment[0]} frame {content.frame_index[0]}" for content in found]

    def close(self) -> None:
        self._reader.close()

    def _read(self, side: int, *picks: Pick) -> Frames:
        slots, source = np.arange(sum(len(pick.ranks) for pick in picks)), self.source
        return read_picks(source.store, source.spec, self.counts[:, side], side, picks, slots, source.names)

    def _label(self, frames: Frames, purpose: str, *place: int) -> tuple[Tensor, Tensor, Tensor]:
        """Positions, labels and weights; the noise is keyed by the purpose and the place."""
        kernel, noise = self.source.kernel, frames.arrays.get("noise")
        if kernel is not None:
            noise = kernel.draw(frames.arrays["positions"].shape, stream(self.seed, purpose, *place))
        positions, forces = labelled(kernel, frames.arrays["positions"], noise, frames.arrays.get("forces"))
        cpu = torch.device("cpu")
        return as_tensor(positions, cpu), as_tensor(forces, cpu), as_tensor(frames.weights, cpu)

    def _moved(self, index: np.ndarray, tensors: Iterable[Tensor]) -> Labelled:
        positions, forces, weights = (x.to(self.device) for x in tensors)
        return Labelled(index, positions, forces, weights)
