"""Write one shard, then say so: the commit record comes after all arrays of the shard, written beside and renamed.

A shard is done when its commit record is there and names this store's digest, and its files have the sizes that the
record says; never because a file exists. All bytes of a shard are on disk before its record is.
"""

import json
import os
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import starmap
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from hpc_cg.errors import DamagedProduct, UnreadableFile
from hpc_cg.files import explain_write_errors, fsync_folder, read_arrays, write_arrays, write_text
from hpc_cg.store.dataset import held_out, open_arrays
from hpc_cg.store.layout import ShardFrames, StoreSpec

COUNTS = "counts.npz"
READERS = 8
"""Records are read by so many threads: on a network's file system each is a wait."""


@dataclass(frozen=True)
class Commit:
    """What is known of a finished shard.

    start, stop   its range of frames
    n_good        frames with weight above zero
    crc           CRC-32 of each array's bytes in that range
    spec          digest of the store's spec
    sizes         bytes of each array's shard file
    usable        for each chunk of the shard: frames to train on, and frames held out, by weight and StoreSpec.held_out
    weight        of the whole shard: the sum of the weights of these and of those
    """

    shard: int
    start: int
    stop: int
    n_good: int
    crc: dict[str, int]
    spec: str
    sizes: dict[str, int]
    usable: tuple[tuple[int, int], ...]
    weight: tuple[float, float]


@dataclass(frozen=True)
class Sums:
    """What the commit records of a store say together; columns: to train on, held out.

    counts    frames of each chunk
    weights   sum of the weights of each shard's frames
    """

    counts: Int64[np.ndarray, "chunk 2"]
    weights: Float64[np.ndarray, "shard 2"]


def commit_path(folder: Path, spec: StoreSpec, shard: int) -> Path:
    """Where the commit record of a shard lies: beside the store, ``commits/<molecule>/``."""
    return folder.parent / "commits" / spec.molecule / f"{shard:06d}.json"


def shard_files(folder: Path, spec: StoreSpec, shard: int) -> dict[str, Path]:
    """The file of a shard in each array."""
    place = folder / spec.molecule
    wide = {name: place / name / "c" / str(shard) / "0" / "0" for name in spec.arrays}
    return wide | {name: place / name / "c" / str(shard) for name in ("weights", "frame_index", "segment")}


def checksums(content: ShardFrames) -> dict[str, int]:
    """CRC-32 of each array of a shard, over the bytes that the store keeps."""
    return {name: zlib.crc32(np.ascontiguousarray(values).data) for name, values in sorted(_columns(content).items())}


def write_shard(folder: Path, spec: StoreSpec, shard: int, content: ShardFrames) -> Commit:
    """Write all arrays of one shard and commit it; raises DiskFull, FolderNotWritable, MissingInput, DamagedProduct."""
    start, stop = spec.frames_of(shard)
    assert len(content.weights) == stop - start, "a shard is written whole"
    content = ShardFrames(
        arrays={name: content.arrays[name].astype(np.float32, copy=False) for name in spec.arrays},
        frame_index=content.frame_index.astype(np.int64, copy=False),
        segment=content.segment.astype(np.int32, copy=False),
        weights=content.weights.astype(np.float32, copy=False),
    )
    arrays, files = open_arrays(folder, spec, "r+"), shard_files(folder, spec, shard)
    withdraw(folder, spec, shard)  # a half-replaced shard must not pass for the one that was committed
    with explain_write_errors(folder):
        for name, values in _columns(content).items():
            # an old shard would be read before it is replaced, and a torn one cannot be
            files[name].unlink(missing_ok=True)
            arrays[name][start : start + spec.shard_frames] = _padded(values, spec.shard_frames)
        sizes = {name: _to_disk(path, folder / spec.molecule / name) for name, path in files.items()}
    usable, weight = _usable(spec, content)
    commit = Commit(
        shard=shard,
        start=start,
        stop=stop,
        n_good=int(np.count_nonzero(content.weights > 0)),
        crc=checksums(content),
        spec=spec.digest,
        sizes=sizes,
        usable=usable,
        weight=weight,
    )
    write_text(commit_path(folder, spec, shard), json.dumps(vars(commit), sort_keys=True) + "\n")
    return commit


def read_commit(folder: Path, spec: StoreSpec, shard: int) -> Commit | None:
    """The commit record of a shard of this very store, or None where it is not done."""
    return _checked(_bytes(commit_path(folder, spec, shard)), shard, spec, spec.digest)


def committed(folder: Path, spec: StoreSpec) -> dict[int, Commit]:
    """The commit records of this very store by shard, in order: one look at the folder, and each record read."""
    place, digest = commit_path(folder, spec, 0).parent, spec.digest
    if not place.is_dir():
        return {}
    with os.scandir(place) as entries:
        names = sorted(entry.name for entry in entries if entry.name.endswith(".json"))
    shards = [int(name[:-5]) for name in names if name[:-5].isdecimal()]
    found: dict[int, Commit] = {}
    with ThreadPoolExecutor(READERS) as pool:
        paths = (f"{place}/{shard:06d}.json" for shard in shards)
        for shard, content in zip(shards, pool.map(_bytes, paths, chunksize=64), strict=True):
            commit = _checked(content, shard, spec, digest)
            if commit is not None:
                found[shard] = commit
    return dict(sorted(found.items()))


def present(folder: Path, spec: StoreSpec, commit: Commit) -> bool:
    """Whether the files of a committed shard are there, with the sizes that were committed."""
    files = shard_files(folder, spec, commit.shard)
    try:
        return commit.sizes == {name: path.stat().st_size for name, path in files.items()}
    except FileNotFoundError:
        return False


def holes(folder: Path, spec: StoreSpec) -> list[int]:
    """The shards that are not done, in order."""
    whole = {shard for shard, commit in committed(folder, spec).items() if present(folder, spec, commit)}
    return [shard for shard in range(spec.n_shards) if shard not in whole]


def withdraw(folder: Path, spec: StoreSpec, shard: int) -> None:
    """Take back the commit record of a shard, and the summary of all; nothing where there is none."""
    path = commit_path(folder, spec, shard)
    with explain_write_errors(path):
        was_there = path.exists()
        for gone in (path, path.with_name(COUNTS)):
            gone.unlink(missing_ok=True)
        if was_there:
            fsync_folder(path.parent)


def summarise(folder: Path, spec: StoreSpec) -> Sums:
    """Add up what the records of a finished store say, and keep it in one file for every process that trains.

    Raises DamagedProduct where a shard has no record.
    """
    sums = _from_records(folder, spec)
    small = sums.counts.astype(np.min_scalar_type(spec.chunk_frames))  # every process of a training reads all of it
    path = commit_path(folder, spec, 0).with_name(COUNTS)
    write_arrays(path, counts=small, weights=sums.weights, spec=np.asarray(spec.digest))
    return sums


def epoch_sums(folder: Path, spec: StoreSpec) -> Sums:
    """Frames to train on and frames held out of a store, chunk by chunk and in order, without reading a frame.

    From the summary, or from all records where there is none. Raises DamagedProduct where a shard has no record.
    """
    path = commit_path(folder, spec, 0).with_name(COUNTS)
    if path.exists():
        with suppress(UnreadableFile, KeyError):  # the records say the same
            found = read_arrays(path)
            if str(found["spec"]) == spec.digest:
                return Sums(found["counts"].astype(np.int64), found["weights"])
    return _from_records(folder, spec)


def _from_records(folder: Path, spec: StoreSpec) -> Sums:
    commits = committed(folder, spec)
    missing = [shard for shard in range(spec.n_shards) if shard not in commits]
    if missing:
        raise DamagedProduct(
            f"the store {folder / spec.molecule}",
            f"no commit record of {len(missing)} of {spec.n_shards} shards, the first {missing[0]}",
            "run the stage that writes it again: it makes these shards",
        )
    found = [commits[shard] for shard in range(spec.n_shards)]
    counts = np.concatenate([np.asarray(commit.usable, dtype=np.int64) for commit in found])
    return Sums(counts, np.asarray([commit.weight for commit in found], dtype=np.float64))


def _columns(content: ShardFrames) -> dict[str, np.ndarray]:
    rest = {"weights": content.weights, "frame_index": content.frame_index, "segment": content.segment}
    return content.arrays | rest


def _padded(values: np.ndarray, n_frames: int) -> np.ndarray:
    """Values with rows that say "no frame" up to a whole shard."""
    if len(values) == n_frames:
        return values
    whole = np.full((n_frames, *values.shape[1:]), np.nan if values.dtype.kind == "f" else -1, dtype=values.dtype)
    whole[: len(values)] = values
    return whole


def _usable(spec: StoreSpec, content: ShardFrames) -> tuple[tuple[tuple[int, int], ...], tuple[float, float]]:
    """Frames of each chunk, and the weight of all: to train on, held out."""
    used = content.weights > 0
    out = held_out(content.segment, content.frame_index, *spec.held_out)
    starts = np.arange(0, len(used), spec.chunk_frames)
    sides = (used & ~out, used & out)
    counts = (np.add.reduceat(which.astype(np.int64), starts).tolist() for which in sides)
    train, held = (float(content.weights[which].sum(dtype=np.float64)) for which in sides)
    return tuple(zip(*counts, strict=True)), (train, held)


def _to_disk(path: Path, array: Path) -> int:
    """Make a shard's file durable, and the folders between it and its array; returns its bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        size = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    for folder in _between(path, array):
        fsync_folder(folder)
    return size


def _between(path: Path, array: Path) -> Iterable[Path]:
    return [folder for folder in path.parents if folder.is_relative_to(array)]


def _bytes(path: Path | str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a Path for each of 10^5 records takes seconds
            return file.readall()
    except FileNotFoundError:
        return b""


@lru_cache(maxsize=1 << 16)
def _pair(train: int, held: int) -> tuple[int, int]:
    """One object for the many chunks that say the same."""
    return train, held


def _checked(content: bytes, shard: int, spec: StoreSpec, digest: str) -> Commit | None:
    """The record in ``content`` where it is one of this shard of this store."""
    try:
        fields = json.loads(content)
        train, held = fields["weight"]
        pairs = {"usable": tuple(starmap(_pair, fields["usable"])), "weight": (train, held)}
        commit = Commit(**fields | pairs)
    except (ValueError, TypeError, KeyError):
        return None
    told = (commit.shard, commit.start, commit.stop, commit.spec)
    return commit if shard < spec.n_shards and told == (shard, *spec.frames_of(shard), digest) else None
