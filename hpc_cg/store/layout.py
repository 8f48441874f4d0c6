"""THE schema: which arrays a store holds, how they are cut into shards, and what each shard's commit record says.

A store is a zarr v3 group per molecule. One shard row is one contiguous range of frames, the same range in every array:
the unit of work, of writing and of resuming. The frame axis is padded to whole shards and the true length stands in the
attributes; unwritten and padded frames read as NaN. Arrays are created once, then each shard has one writer.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from hpc_cg.beads import BeadSystem
from hpc_cg.files import PARTIAL, digest, explain_write_errors, fsync_folder, write_bytes

STORE = "store.zarr"
"""The name of a store inside the folder of the stage that wrote it."""

DESCRIPTION = "zarr.json"
"""The file that describes a group or an array."""

PACKED = BloscCodec(cname="lz4", clevel=5, shuffle="shuffle")
SCHEMA = 1
UNITS = {"positions": "nm", "noise": "nm", "forces": "kJ/mol/nm", "weights": "1", "masses": "u"}
SHARD_BYTES = 64 << 20
CHUNK_BYTES = 1 << 20
MIN_SHARDS = 16


@dataclass(frozen=True)
class StoreSpec:
    """Everything that decides the bytes of a store, apart from the frames themselves.

    arrays          which of positions, noise, forces it holds
    shard_frames    frames in a shard; a multiple of chunk_frames
    held_out        frames per block of trajectory, and one block in how many is held out from training
    kernel          words for the kernel whose labels ``forces`` are, e.g. "none"
    lineage         digests of what it was made from
    """

    molecule: str
    system: BeadSystem
    n_frames: int
    shard_frames: int
    chunk_frames: int
    arrays: tuple[str, ...]
    held_out: tuple[int, int]
    kernel: str
    temperature_K: float
    seed: int
    lineage: dict[str, str]

    @property
    def n_shards(self) -> int:
        return -(-self.n_frames // self.shard_frames)

    def frames_of(self, shard: int) -> tuple[int, int]:
        """First frame and one past the last of a shard."""
        start = shard * self.shard_frames
        return start, min(start + self.shard_frames, self.n_frames)

    def length(self, shard: int) -> int:
        """Frames of a shard."""
        start, stop = self.frames_of(shard)
        return stop - start

    def attributes(self) -> dict[str, Any]:
        """What the group's attributes say; also what the digest is made of."""
        return {
            "schema": SCHEMA,
            "molecule": self.molecule,
            "n_frames": self.n_frames,
            "kernel": self.kernel,
            "temperature_K": self.temperature_K,
            "seed": self.seed,
            "system": self.system.to_json(),
            "shard_frames": self.shard_frames,
            "chunk_frames": self.chunk_frames,
            "arrays": list(self.arrays),
            "held_out": list(self.held_out),
            "lineage": dict(sorted(self.lineage.items())),
        }

    @cached_property
    def digest(self) -> str:
        return digest(self.attributes())

    @staticmethod
    def from_attributes(attributes: dict[str, Any]) -> "StoreSpec":
        names = (
            "molecule",
            "n_frames",
            "shard_frames",
            "chunk_frames",
            "kernel",
            "temperature_K",
            "seed",
            "lineage",
        )
        return StoreSpec(
            system=BeadSystem.from_json(attributes["system"]),
            arrays=tuple(attributes["arrays"]),
            held_out=(attributes["held_out"][0], attributes["held_out"][1]),
            **{name: attributes[name] for name in names},
        )


@dataclass(frozen=True)
class ShardFrames:
    """The content of one shard: arrays (frame bead 3) by name, and where each frame came from."""

    arrays: dict[str, np.ndarray]
    frame_index: np.ndarray
    segment: np.ndarray
    weights: np.ndarray

    @staticmethod
    def joined(parts: "Sequence[ShardFrames]") -> "ShardFrames":
        """Parts that follow one another, as one."""
        return ShardFrames(
            arrays={name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays},
            frame_index=np.concatenate([part.frame_index for part in parts]),
            segment=np.concatenate([part.segment for part in parts]),
            weights=np.concatenate([part.weights for part in parts]),
        )


def choose_shards(n_frames: int, n_beads: int) -> tuple[int, int]:
    """Frames per shard and per chunk: shards of about 64 MB in each array, but several where there are frames for it.

    Chunks of about 1 MB, and at most a shard. A store of few frames is one shard.
    """
    frame_bytes = 12 * n_beads
    chunk = max(256, min(CHUNK_BYTES // frame_bytes, -(-n_frames // MIN_SHARDS)))
    chunks_per_shard = max(1, min(SHARD_BYTES // (chunk * frame_bytes), -(-n_frames // (MIN_SHARDS * chunk))))
    return chunk * chunks_per_shard, chunk


def create(folder: Path, spec: StoreSpec) -> None:
    """Create the arrays of a molecule, empty, unless those of this very spec are there.

    For one process, before anybody writes. The group appears whole or not at all, and takes the place of one that was
    begun for another spec. Of a group of this spec whose descriptions are torn, as after a power cut, these are written
    again and the shards stay. Raises DiskFull, FolderNotWritable.
    """
    place, wanted = folder / spec.molecule, _files(spec)
    with explain_write_errors(folder):
        if _parsed(folder / DESCRIPTION) is None:
            write_bytes(folder / DESCRIPTION, _root())
        group = _parsed(place / DESCRIPTION)
        if group is not None and group.get("attributes") == json.loads(wanted[DESCRIPTION])["attributes"]:
            torn = {name for name in wanted if not _there(place / name)}
            if all(name in torn or _same(place / name, content) for name, content in wanted.items()):
                for name in sorted(torn):
                    write_bytes(place / name, wanted[name])
                return
        shutil.rmtree(place, ignore_errors=True)
        beside = folder / f".{spec.molecule}{PARTIAL}"
        shutil.rmtree(beside, ignore_errors=True)
        for name, content in wanted.items():
            write_bytes(beside / name, content)
        beside.rename(place)
        fsync_folder(folder)


def torn(folder: Path, molecule: str) -> tuple[str, ...]:
    """A sentence for each description of a store and of a molecule's group that is missing or torn."""
    names = (DESCRIPTION, f"{molecule}/{DESCRIPTION}")
    return tuple(f"{name} is missing or cannot be read" for name in names if _parsed(folder / name) is None)


def damage(folder: Path, spec: StoreSpec) -> tuple[str, ...]:
    """A sentence for each description of an array that is missing, torn, or of another array than ``spec`` asks for.

    Shape, type, fill value and cuts are compared; how chunks are packed is the store's own affair.
    """
    place, faults = folder / spec.molecule, []
    for name, content in sorted(_files(spec).items()):
        if not _there(place / name):
            faults.append(f"{spec.molecule}/{name} is missing or cannot be read")
        elif name.endswith(f"/{DESCRIPTION}") and _cut(_parsed(place / name) or {}) != _cut(json.loads(content)):
            faults.append(f"{spec.molecule}/{name} describes another array than the store's")
    return tuple(faults)


def _files(spec: StoreSpec) -> dict[str, bytes]:
    """Every file of an empty group, by its place in it."""
    content: dict[str, Buffer] = {}
    _create_arrays(zarr.create_group(MemoryStore(content), zarr_format=3, attributes=spec.attributes()), spec)
    return {name: buffer.to_bytes() for name, buffer in content.items()}


def _root() -> bytes:
    content: dict[str, Buffer] = {}
    zarr.create_group(MemoryStore(content), zarr_format=3)
    return content[DESCRIPTION].to_bytes()


def _parsed(path: Path) -> dict[str, Any] | None:
    """What a description says; None where there is none, or one that is torn."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _there(path: Path) -> bool:
    return _parsed(path) is not None if path.name == DESCRIPTION else path.is_file()


def _same(path: Path, content: bytes) -> bool:
    return path.name != DESCRIPTION or _parsed(path) == json.loads(content)


def _cut(description: dict[str, Any]) -> list[Any]:
    """What of an array's description decides which frames lie where."""
    codecs = description.get("codecs")
    outer = codecs[0] if isinstance(codecs, list) and codecs and isinstance(codecs[0], dict) else {}
    packed = outer.get("configuration")
    chunk = packed.get("chunk_shape") if isinstance(packed, dict) else None
    return [*(description.get(key) for key in ("shape", "data_type", "chunk_grid", "fill_value")), chunk]


def _create_arrays(group: zarr.Group, spec: StoreSpec) -> None:
    padded = spec.n_shards * spec.shard_frames
    n_beads = spec.system.n_beads
    for name in spec.arrays:
        _create_array(group, name, (padded, n_beads, 3), "float32", np.nan, spec)
    _create_array(group, "weights", (padded,), "float32", np.nan, spec)
    _create_array(group, "frame_index", (padded,), "int64", -1, spec)
    _create_array(group, "segment", (padded,), "int32", -1, spec)
    for name, values, dtype in (
        ("bead_types", spec.system.types, "int32"),
        ("masses", spec.system.masses, "float64"),
    ):
        array = group.create_array(
            name, shape=(n_beads,), dtype=dtype, dimension_names=("bead",), attributes=_unit(name)
        )
        array[:] = np.asarray(values, dtype=dtype)


def _create_array(
    group: zarr.Group, name: str, shape: tuple[int, ...], dtype: str, fill: float | int, spec: StoreSpec
) -> None:
    rest = shape[1:]
    group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(spec.chunk_frames, *rest),
        shards=(spec.shard_frames, *rest),
        # noise has no structure that a compressor could find; a reader notices a flipped bit by the sum of each chunk
        compressors=[Crc32cCodec()] if name == "noise" else [PACKED, Crc32cCodec()],
        fill_value=fill,
        dimension_names=("frame", "bead", "axis")[: len(shape)],
        attributes=_unit(name),
        config={"write_empty_chunks": True},
    )


def _unit(name: str) -> dict[str, Any]:
    return {"unit": UNITS[name]} if name in UNITS else {}
