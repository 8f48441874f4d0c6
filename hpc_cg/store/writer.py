"""Write one shard, then say so: the commit record comes after all arrays of the shard, written beside and renamed.

A shard is done when its commit record is there and names this store's digest, never because a file exists.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from hpc_cg.errors import DamagedProduct
from hpc_cg.files import explain_write_errors, read_json, write_json
from hpc_cg.store.layout import ShardFrames, StoreSpec


@dataclass(frozen=True)
class Commit:
    """What is known of a finished shard.

    start, stop   its range of frames
    n_good        frames with weight above zero
    crc           CRC-32 of each array's bytes in that range
    spec          digest of the store's spec
    """

    shard: int
    start: int
    stop: int
    n_good: int
    crc: dict[str, int]
    spec: str


def commit_path(folder: Path, spec: StoreSpec, shard: int) -> Path:
    """Where the commit record of a shard lies: beside the store, ``commits/<molecule>/``."""
    return folder.parent / "commits" / spec.molecule / f"{shard:06d}.json"


def checksums(content: ShardFrames) -> dict[str, int]:
    """CRC-32 of each array of a shard, over the bytes that the store keeps."""
    arrays = content.arrays | {
        "weights": content.weights,
        "frame_index": content.frame_index,
        "segment": content.segment,
    }
    return {name: zlib.crc32(np.ascontiguousarray(values).tobytes()) for name, values in sorted(arrays.items())}


def write_shard(folder: Path, spec: StoreSpec, shard: int, content: ShardFrames) -> Commit:
    """Write all arrays of one shard and commit it; raises DiskFull, FolderNotWritable."""
    start, stop = spec.frames_of(shard)
    assert len(content.weights) == stop - start, "a shard is written whole"
    group = zarr.open_group(folder, mode="r+")[spec.molecule]
    assert isinstance(group, zarr.Group)
    content = ShardFrames(
        arrays={name: content.arrays[name].astype(np.float32) for name in spec.arrays},
        frame_index=content.frame_index.astype(np.int64),
        segment=content.segment.astype(np.int32),
        weights=content.weights.astype(np.float32),
    )
    padding = spec.shard_frames - (stop - start)
    columns: dict[str, tuple[np.ndarray, float]] = {name: (values, np.nan) for name, values in content.arrays.items()}
    columns |= {
        "weights": (content.weights, np.nan),
        "frame_index": (content.frame_index, -1),
        "segment": (content.segment, -1),
    }
    with explain_write_errors(folder):
        for name, (values, fill) in columns.items():
            widths = [(0, padding)] + [(0, 0)] * (values.ndim - 1)
            padded = np.pad(values, widths, constant_values=np.asarray(fill, dtype=values.dtype))
            # an old shard would be read before it is replaced, and a torn one cannot be
            (folder / spec.molecule / name / "c" / "/".join([str(shard), *"0" * (values.ndim - 1)])).unlink(
                missing_ok=True
            )
            group[name][start : start + spec.shard_frames] = padded  # type: ignore[index]
    commit = Commit(
        shard=shard,
        start=start,
        stop=stop,
        n_good=int(np.count_nonzero(content.weights > 0)),
        crc=checksums(content),
        spec=spec.digest,
    )
    write_json(commit_path(folder, spec, shard), vars(commit))
    return commit


def read_commit(folder: Path, spec: StoreSpec, shard: int) -> Commit | None:
    """The commit record of a shard of this very store, or None where it is not done."""
    path = commit_path(folder, spec, shard)
    if not path.exists():
        return None
    try:
        fields: dict[str, Any] = read_json(path)
        commit = Commit(**fields)
    except (DamagedProduct, TypeError):
        return None
    return commit if commit.spec == spec.digest and (commit.start, commit.stop) == spec.frames_of(shard) else None
