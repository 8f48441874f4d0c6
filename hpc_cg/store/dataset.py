"""Read a store back: shard by shard, or whole where it fits in memory; and say which frames are held out.

Held-out frames are whole blocks of trajectory, because neighbouring frames are nearly copies of one another: shuffled
frames would let a model be judged on what it was trained on.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from jaxtyping import Bool, Float, Int

from hpc_cg.errors import DamagedProduct, MissingInput, OutOfMemory, TooFewFrames
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
        raise _no_group(folder, molecule) from error
    return StoreSpec.from_attributes(dict(group.attrs))


def open_arrays(folder: Path, spec: StoreSpec, mode: Literal["r", "r+"] = "r") -> dict[str, Any]:
    """The zarr arrays of a store by name, opened once for as long as it is the same store.

    Raises MissingInput, and DamagedProduct where the store there is one of another spec.
    """
    try:
        found = (folder / spec.molecule / "zarr.json").stat()
    except FileNotFoundError as error:
        raise _no_group(folder, spec.molecule) from error
    return _opened(folder, spec.molecule, spec.digest, mode, (found.st_ino, found.st_mtime_ns))


@lru_cache(maxsize=64)
def _opened(
    folder: Path, molecule: str, digest: str, mode: Literal["r", "r+"], made: tuple[int, int]
) -> dict[str, Any]:
    group = zarr.open_group(folder, mode=mode, path=molecule)
    spec = StoreSpec.from_attributes(dict(group.attrs))
    if spec.digest != digest:
        raise DamagedProduct(
            f"the molecule {molecule} of the store {folder}",
            "a store of other settings or inputs than the one asked for",
            "run the stage that writes it again",
        )
    # a setting of who opens, not of the store: a chunk of nothing but frames left out must be a chunk all the same
    names = (*spec.arrays, "weights", "frame_index", "segment")
    return {name: group[name].with_config({"write_empty_chunks": True}) for name in names}  # type: ignore[union-attr]


def _no_group(folder: Path, molecule: str) -> MissingInput:
    return MissingInput(
        f"the molecule {molecule} of the store {folder}", "no such group", "run the stage that writes it"
    )


def read_shard(folder: Path, spec: StoreSpec, shard: int, check: bool = True) -> ShardFrames:
    """The frames of one shard, without the padding; raises DamagedProduct as ``read_frames``."""
    return read_frames(folder, spec, *spec.frames_of(shard), check=check)


def read_frames(
    folder: Path, spec: StoreSpec, start: int, stop: int, names: tuple[str, ...] | None = None, check: bool = True
) -> ShardFrames:
    """Frames start to stop of a store; cheap where they are whole chunks of one shard.

    names   which of positions, noise, forces to read; None for all that the store has
    check   False for who looks at the numbers by itself
    Raises DamagedProduct, naming store and shard, where a chunk is missing or cannot be decoded, or where a frame that
    counts holds no number.
    """
    opened = open_arrays(folder, spec)
    names = spec.arrays if names is None else names
    shard = start // spec.shard_frames
    try:
        read = {name: np.asarray(opened[name][start:stop]) for name in (*names, "weights", "frame_index", "segment")}
    except (OSError, ValueError, RuntimeError) as error:
        raise damaged(folder, spec, shard, f"bytes that cannot be read ({error})") from error
    content = ShardFrames(
        arrays={name: read[name] for name in names},
        frame_index=read["frame_index"],
        segment=read["segment"],
        weights=read["weights"],
    )
    if not check:
        return content
    # what was never written reads as these
    if np.isnan(content.weights).any() or (content.frame_index < 0).any() or (content.segment < 0).any():
        raise damaged(folder, spec, shard, "frames that were never written")
    used = content.weights > 0
    for name, values in content.arrays.items():
        # one sum tells of any number that is none; only where it does is it looked for
        if not np.isfinite(values.sum(dtype=np.float64)) and not np.isfinite(values[used]).all():
            raise damaged(folder, spec, shard, f"{name} that are no numbers, or a part of them is missing")
    return content


def damaged(folder: Path, spec: StoreSpec, shard: int, found: str) -> DamagedProduct:
    """The error that says what is wrong with a shard, and what to do."""
    return DamagedProduct(
        f"shard {shard} of the store {folder / spec.molecule}",
        found,
        "hpc-cg audit --repair withdraws such shards; then run the stage that writes them",
    )


def store_gib(spec: StoreSpec) -> float:
    """Memory that all frames of a store take, GiB."""
    return spec.n_frames * spec.system.n_beads * 12 * len(spec.arrays) / 2**30


def load(folder: Path, molecule: str, memory_limit_gb: float = 8.0, part: bool = False) -> StoreFrames:
    """All usable frames of a molecule, in the order of the store.

    part   where they do not all fit, load those of some chunks, evenly spread, that do
    Raises OutOfMemory where they do not fit, DamagedProduct.
    """
    spec = open_spec(folder, molecule)
    fitting = store_gib(spec) <= memory_limit_gb
    ranges = [spec.frames_of(shard) for shard in range(spec.n_shards)] if fitting else _spread(spec, memory_limit_gb)
    if not fitting and not (part and ranges):
        raise OutOfMemory(
            f"loading {folder}",
            f"{store_gib(spec):.3g} GiB of frames for a limit of {memory_limit_gb:g} GiB",
            "raise train.memory_limit_gb",
        )
    n_frames = sum(stop - start for start, stop in ranges)
    columns: dict[str, np.ndarray] = {
        "weights": np.empty(n_frames, dtype=np.float32),
        "segment": np.empty(n_frames, dtype=np.int32),
        "frame_index": np.empty(n_frames, dtype=np.int64),
    }
    for name in spec.arrays:
        columns[name] = np.empty((n_frames, spec.system.n_beads, 3), dtype=np.float32)
    place = 0
    for start, stop in ranges:
        content = read_frames(folder, spec, start, stop)
        used = content.weights > 0
        end = place + int(used.sum())
        for name, values in columns.items():
            values[place:end] = (content.arrays[name] if name in spec.arrays else getattr(content, name))[used]
        place = end
    usable = {name: values[:place] for name, values in columns.items()}
    return StoreFrames(**{name: usable.get(name) for name in StoreFrames.__dataclass_fields__})  # type: ignore[arg-type]


def _spread(spec: StoreSpec, memory_limit_gb: float) -> list[tuple[int, int]]:
    """The frames of as many chunks as fit, evenly spread over the store."""
    n_chunks = -(-spec.n_frames // spec.chunk_frames)
    count = min(n_chunks, int(spec.n_frames * memory_limit_gb / store_gib(spec)) // spec.chunk_frames)
    starts = [(2 * i + 1) * n_chunks // (2 * count) * spec.chunk_frames for i in range(count)]
    return [(start, min(start + spec.chunk_frames, spec.n_frames)) for start in starts]


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
