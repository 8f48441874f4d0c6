"""A part of the frames to train on in the place of all of them, so that few frames can have as many draws as many.

Of k frames to train on that follow one another in a store, one is in the part, and takes the place of all k. Held-out
frames stay as they are.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hpc_cg.errors import TooFewFrames
from hpc_cg.store.dataset import read_frames, read_shard
from hpc_cg.store.layout import ShardFrames, StoreSpec
from hpc_cg.store.order import Pick
from hpc_cg.store.pairs import read_rows
from hpc_cg.store.stream import TRAIN, read_picks, usable_frames
from hpc_cg.store.writer import epoch_sums


@dataclass(frozen=True)
class Beside:
    """Arrays of another store with the same frames in the same rows, which may have other weights."""

    folder: Path
    spec: StoreSpec
    names: tuple[str, ...]

    def shard(self, shard: int) -> dict[str, np.ndarray]:
        return read_frames(self.folder, self.spec, *self.spec.frames_of(shard), self.names).arrays

    def rows(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return read_rows(self.folder, self.spec, rows, self.names)


def read_subset(
    folder: Path, spec: StoreSpec, shard: int, every: int, subset: int, beside: Beside | None = None
) -> ShardFrames:
    """A shard in which each frame to train on is that of the part which takes its place, with its weight.

    every, subset   one of so many frames is in the part, and which of the first ones
    beside          what more is wanted of these frames; where a name is in both stores, it is this one's that counts
    Raises TooFewFrames where the part is empty, DamagedProduct.
    """
    content = read_shard(folder, spec, shard)
    if beside is not None:
        content = replace(content, arrays=content.arrays | beside.shard(shard))
    if every == 1:
        return content
    counts = epoch_sums(folder, spec).counts[:, TRAIN]
    ends, first = np.cumsum(counts), shard * (spec.shard_frames // spec.chunk_frames)
    in_part = len(range(subset % every, int(ends[-1]), every))
    if not in_part:
        raise TooFewFrames(f"one frame of {every} of a store", f"{int(ends[-1])} frames", "choose a larger fraction")
    rows = usable_frames(content, spec, TRAIN)
    ranks = int(ends[first - 1]) * (first > 0) + np.arange(len(rows))
    ranks = subset % every + every * np.minimum(ranks // every, in_part - 1)
    blocks = np.searchsorted(ends, ranks, side="right")
    cuts = np.flatnonzero(np.diff(blocks)) + 1
    picks = [
        Pick(int(block[0]), part - int(ends[block[0]] - counts[block[0]]))
        for block, part in zip(np.split(blocks, cuts), np.split(ranks, cuts), strict=True)
        if len(block)
    ]
    own = tuple(name for name in content.arrays if beside is None or name not in beside.names)
    taken = read_picks(folder, spec, counts, TRAIN, picks, np.arange(len(rows)), own)
    found = taken.arrays if beside is None else taken.arrays | beside.rows(taken.index)
    arrays = {name: values.copy() for name, values in content.arrays.items()}
    for name, values in arrays.items():
        values[rows] = found[name]
    weights = content.weights.copy()
    weights[rows] = taken.weights
    return ShardFrames(arrays, content.frame_index, content.segment, weights)
