"""Which frames of a store a training step holds, by arithmetic over the counts of the commit records: nothing is read.

A block is a chunk of the store. In each epoch the blocks are put in a random order, and the row of their frames to
train on is cut into equal stretches, the streams. A stream is cut into windows of some blocks, whose frames are
shuffled among one another. A step takes the next batch_size / n_streams frames of every stream, so

    frames of a step = f(seed, step)

whoever serves which streams. Frames at an epoch's end that fill no batch come again in other epochs. Streams whose
number is that of no process are the way of MosaicML's StreamingDataset (github.com/mosaicml/streaming).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64

from hpc_cg.errors import OutOfMemory, TooFewFrames
from hpc_cg.randomness import stream as random_stream
from hpc_cg.store.layout import StoreSpec

MOST_BLOCKS = 256
"""Blocks that a sample of frames is taken from."""


@dataclass(frozen=True)
class Pick:
    """Some frames of one block: the ``ranks``-th of those of one side, to train on or held out."""

    block: int
    ranks: Int64[np.ndarray, "frame"]


@dataclass(frozen=True)
class Window:
    """Frames of a stream that are shuffled together: those from ``begin`` to ``end`` of the stream's epoch."""

    epoch: int
    stream: int
    number: int
    begin: int
    end: int
    picks: tuple[Pick, ...]


@dataclass(frozen=True)
class Order:
    """Which frames come when, for all processes together; nothing is read for it.

    counts          frames to train on of each block
    window_blocks   blocks in a window
    """

    counts: Int64[np.ndarray, "block"]
    batch_size: int
    n_streams: int
    window_blocks: int
    seed: int
    _epochs: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        assert self.batch_size % self.n_streams == 0, "every stream has the same share of a batch"
        if self.steps_per_epoch == 0:
            raise TooFewFrames(
                f"batches of {self.batch_size} frames",
                f"{int(self.counts.sum())} frames to train on",
                "lower train.batch_size",
            )

    @property
    def share(self) -> int:
        """Frames of a stream in a step."""
        return self.batch_size // self.n_streams

    @property
    def steps_per_epoch(self) -> int:
        return int(self.counts.sum()) // self.batch_size

    def place(self, step: int) -> tuple[int, int]:
        """The epoch of a step, and how many frames of each stream came before it in that epoch."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return epoch, within * self.share

    def window(self, epoch: int, stream: int, place: int) -> Window:
        """The window that holds the ``place``-th frame of a stream in an epoch."""
        blocks, ends = self._row(epoch)
        length = self.steps_per_epoch * self.share
        start, stop = stream * length, (stream + 1) * length
        first, here, last = np.searchsorted(ends, [start, start + place, stop - 1], side="right").tolist()
        number = (here - first) // self.window_blocks
        low = first + number * self.window_blocks
        high = min(low + self.window_blocks, last + 1)
        before = ends[low:high] - self.counts[blocks[low:high]]
        begins, stops = np.maximum(before, start), np.minimum(ends[low:high], stop)
        picks = tuple(
            Pick(int(block), np.arange(a, b))
            for block, a, b in zip(blocks[low:high], begins - before, stops - before, strict=True)
        )
        return Window(epoch, stream, number, int(begins[0]) - start, int(stops[-1]) - start, picks)

    def after(self, window: Window) -> Window:
        """The window of the same stream that comes next, in the next epoch after the last of one."""
        if window.end < self.steps_per_epoch * self.share:
            return self.window(window.epoch, window.stream, window.end)
        return self.window(window.epoch + 1, window.stream, 0)

    def shuffled(self, window: Window) -> Int64[np.ndarray, "frame"]:
        """The place that each frame of a window is put at."""
        key = random_stream(self.seed, "window", window.epoch, window.stream, window.number)
        return key.permutation(window.end - window.begin)

    def _row(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The blocks of an epoch in their order, and the frames up to the end of each."""
        if epoch not in self._epochs:
            blocks = random_stream(self.seed, "blocks", epoch).permutation(np.flatnonzero(self.counts))
            for old in sorted(self._epochs)[:-1]:  # streams cross from one epoch into the next, not further
                del self._epochs[old]
            self._epochs[epoch] = (blocks, np.cumsum(self.counts[blocks]))
        return self._epochs[epoch]


def choose_window(spec: StoreSpec, names: Sequence[str], n_streams: int, memory_gb: float) -> int:
    """Blocks in a window such that two windows of each stream fit in ``memory_gb``; raises OutOfMemory.

    The same for any number of processes: one that serves all streams keeps within it, more of them need less each.
    """
    # beside the arrays: weight, number in the store, rank in its block, place in the window
    block = spec.chunk_frames * (12 * spec.system.n_beads * len(names) + 4 + 8 + 8 + 8)
    fit = int(memory_gb * 2**30) // (2 * n_streams * block)
    if fit < 1:
        raise OutOfMemory(
            f"shuffling the frames of {spec.molecule} in windows",
            f"{2 * n_streams * block / 2**30:.2g} GiB for one block in each for a limit of {memory_gb:g} GiB",
            "raise train.shuffle_gb and train.memory_limit_gb, or lower train.streams",
        )
    return fit


def spread(counts: Int64[np.ndarray, "block"], wanted: int, most_blocks: int = MOST_BLOCKS) -> tuple[Pick, ...]:
    """At most ``wanted`` frames, evenly spread over at most ``most_blocks`` blocks, which are evenly spread too.

    counts   frames of each block to choose from
    Raises TooFewFrames where there are none.
    """
    blocks = np.flatnonzero(counts)
    if not len(blocks):
        raise TooFewFrames("frames spread over a store", "none of that kind", "give longer trajectories")
    blocks = blocks[evenly(len(blocks), min(most_blocks, wanted))]
    ends = np.cumsum(counts[blocks])
    chosen = evenly(int(ends[-1]), wanted)
    owner = np.searchsorted(ends, chosen, side="right")
    ranks = chosen - (ends - counts[blocks])[owner]
    cuts = np.flatnonzero(np.diff(owner)) + 1
    return tuple(
        Pick(int(blocks[which[0]]), part)
        for which, part in zip(np.split(owner, cuts), np.split(ranks, cuts), strict=True)
    )


def evenly(n: int, wanted: int) -> Int64[np.ndarray, "chosen"]:
    """Up to ``wanted`` of the numbers below n, each in the middle of its stretch."""
    count = min(n, wanted)
    return (2 * np.arange(count) + 1) * n // (2 * count)
