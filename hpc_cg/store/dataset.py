"""Read a store back: shard by shard, or whole where it fits in memory; and say which frames are held out.

Held-out frames are whole blocks of trajectory, because neighbouring frames are nearly copies of one another: shuffled
frames would let a model be judged on what it was trained on.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import zarr
from jaxtyping import Bool, Float, Int

from hpc_cg.errors import MissingInput, OutOfMemory, TooFewFrames
from hpc_cg.randomness import stream
from hpc_cg.store.layout import ShardFrames, StoreSpec


@dataclass(frozen=True)
class StoreFrames:
    """Usable frames of one molecule in memory: those with weight above zero, in the order of the store.

    noise and forces are None where the store has none; units nm and kJ/mol/nm.
    """

    positions: Float[np.ndarray, "frame bead 3"]
    noise: Float[np.ndarray, "frame bead 3"] | None
    forces: Float[np.ndarray, "frame bead 3"] | None
    weights: Float[np.ndarray, "frame"]
    segment: Int[np.ndarray, "frame"]
    frame_index: Int[np.ndarray, "frame"]

    @property
    def n_frames(self) -> int:
        return len(self.positions)


def open_spec(folder: Path, molecule: str) -> StoreSpec:
    """The spec of a store on disk; raises MissingInput."""
    try:
        group = zarr.open_group(folder, mode="r")[molecule]
    except (FileNotFoundError, KeyError) as error:
        raise MissingInput(
            f"the molecule {molecule} of the store {folder}", "no such group", "run the stage that writes it"
        ) from error
    return StoreSpec.from_attributes(dict(group.attrs))


def read_shard(folder: Path, spec: StoreSpec, shard: int) -> ShardFrames:
    """The frames of one shard, without the padding."""
    start, stop = spec.frames_of(shard)
    group = zarr.open_group(folder, mode="r")[spec.molecule]

    def column(name: str) -> np.ndarray:
        return np.asarray(group[name][start:stop])  # type: ignore[index]

    return ShardFrames(
        arrays={name: column(name) for name in spec.arrays},
        frame_index=column("frame_index"),
        segment=column("segment"),
        weights=column("weights"),
    )


def load(folder: Path, molecule: str, memory_limit_gb: float = 8.0) -> StoreFrames:
    """All usable frames of a molecule; raises OutOfMemory where they would not fit."""
    spec = open_spec(folder, molecule)
    needed = spec.n_frames * spec.system.n_beads * 12 * len(spec.arrays) / 2**30
    if needed > memory_limit_gb:
        raise OutOfMemory(
            f"loading {folder}",
            f"{needed:.3g} GiB of frames for a limit of {memory_limit_gb:g} GiB",
            "raise train.memory_limit_gb",
        )
    content = ShardFrames.joined([read_shard(folder, spec, shard) for shard in range(spec.n_shards)])
    used = content.weights > 0

    def whole(name: str) -> np.ndarray | None:
        return content.arrays[name][used] if name in spec.arrays else None

    positions = whole("positions")
    assert positions is not None, "every store holds positions"
    return StoreFrames(
        positions=positions,
        noise=whole("noise"),
        forces=whole("forces"),
        weights=content.weights[used],
        segment=content.segment[used],
        frame_index=content.frame_index[used],
    )


def held_out(
    segment: Int[np.ndarray, "frame"], frame_index: Int[np.ndarray, "frame"], block_frames: int, period: int
) -> Bool[np.ndarray, "frame"]:
    """Which frames are held out: every ``period``-th block of ``block_frames`` frames, staggered over the segments."""
    block = frame_index // block_frames
    return (block + segment) % period == period - 1


def split(frames: StoreFrames, rule: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the frames to train on and of those held out by ``rule`` (StoreSpec.held_out).

    Raises TooFewFrames where either is empty.
    """
    block_frames, period = rule
    out = held_out(frames.segment, frames.frame_index, block_frames, period)
    train, validation = np.flatnonzero(~out), np.flatnonzero(out)
    if not len(train) or not len(validation):
        raise TooFewFrames(
            f"one block of {block_frames} frames in {period} to be held out",
            f"{len(train)} frames to train on and {len(validation)} held out",
            "give longer trajectories, or shorten prepare.held_out_block_ps",
        )
    return train, validation


def batch_indices(seed: int, step: int, n_frames: int, batch_size: int) -> Int[np.ndarray, "batch"]:
    """Which of ``n_frames`` frames the global batch of a step holds: a function of seed and step alone.

    Each epoch is a fresh permutation, cut into whole batches; the frames left over at its end come again in others.
    Raises TooFewFrames where there is not one batch.
    """
    per_epoch = n_frames // batch_size
    if per_epoch == 0:
        raise TooFewFrames(
            f"batches of {batch_size} frames", f"{n_frames} frames to train on", "lower train.batch_size"
        )
    epoch, batch = divmod(step, per_epoch)
    return _order(seed, epoch, n_frames)[batch * batch_size : (batch + 1) * batch_size]


@lru_cache(maxsize=1)
def _order(seed: int, epoch: int, n_frames: int) -> np.ndarray:
    return stream(seed, "epoch", epoch).permutation(n_frames)
