"""One shard of a store, from the segments of an archive: what it consists of, its moments, its mapped frames.

A shard is a contiguous range of global frames, segments following one another; it is read in blocks of bounded memory.
Both functions are pure apart from reading, so a shard is the same whoever makes it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from hpc_cg.archive import readers
from hpc_cg.archive.index import Segment
from hpc_cg.errors import BadFrames
from hpc_cg.frames import AtomFrames
from hpc_cg.mapping.constraints import DistanceMoments, candidate_pairs
from hpc_cg.mapping.maps import CGMap
from hpc_cg.mapping.optimal import ForceMoments
from hpc_cg.store.dataset import held_out
from hpc_cg.store.layout import ShardFrames, StoreSpec

BLOCK_BYTES = 32 << 20
CONSTRAINT_SAMPLES = 2000
"""Frames, spread over the whole archive, in which rigid groups are looked for."""


@dataclass(frozen=True)
class Piece:
    """Frames start to stop of one segment, as part of a shard."""

    segment: int
    start: int
    stop: int


@dataclass(frozen=True)
class ShardMoments:
    """What the fit of the maps needs of a shard: distances of atoms that may be rigid, forces of frames that are
    trained on and of frames held out (none where the archive has no forces). ``a + b`` is the moments of both.
    """

    distances: DistanceMoments
    train: ForceMoments
    held_out: ForceMoments

    def __add__(self, other: "ShardMoments") -> "ShardMoments":
        return ShardMoments(self.distances + other.distances, self.train + other.train, self.held_out + other.held_out)

    def arrays(self) -> dict[str, np.ndarray]:
        """The moments as named arrays, to be kept in a file."""
        return {
            "pairs": self.distances.pairs,
            "distance_count": np.asarray(self.distances.count),
            "distance_mean": self.distances.mean,
            "distance_m2": self.distances.m2,
            "train_count": np.asarray(self.train.count),
            "train_gram": self.train.gram,
            "held_out_count": np.asarray(self.held_out.count),
            "held_out_gram": self.held_out.gram,
        }

    @staticmethod
    def from_arrays(content: dict[str, np.ndarray]) -> "ShardMoments":
        names = ("distance_mean", "distance_m2")
        return ShardMoments(
            DistanceMoments(content["pairs"], int(content["distance_count"]), *(content[name] for name in names)),
            ForceMoments(int(content["train_count"]), content["train_gram"]),
            ForceMoments(int(content["held_out_count"]), content["held_out_gram"]),
        )


def pieces_of(lengths: tuple[int, ...], start: int, stop: int) -> tuple[Piece, ...]:
    """The parts of segments (of the given lengths, one after another) that global frames start to stop fall on."""
    pieces, first = [], 0
    for number, length in enumerate(lengths):
        low, high = max(start, first), min(stop, first + length)
        if low < high:
            pieces.append(Piece(number, low - first, high - first))
        first += length
    return tuple(pieces)


def blocks(segments: Sequence[Segment], spec: StoreSpec, shard: int) -> Iterator[tuple[Piece, AtomFrames]]:
    """The frames of a shard, read in blocks of bounded memory; raises UnreadableFile."""
    lengths = tuple(segment.n_frames for segment in segments)
    for piece in pieces_of(lengths, *spec.frames_of(shard)):
        segment = segments[piece.segment]
        step = max(1, BLOCK_BYTES // (24 * segment.n_atoms))
        for start in range(piece.start, piece.stop, step):
            stop = min(start + step, piece.stop)
            yield Piece(piece.segment, start, stop), readers.read(segment, start, stop)


def near_pairs(segments: Sequence[Segment]) -> Int[np.ndarray, "pair 2"]:
    """Pairs of atoms that may be rigid: those near one another in the first good frame. Raises BadFrames."""
    frames = readers.read(segments[0], 0, min(segments[0].n_frames, 100))
    good = np.flatnonzero(frames.finite)
    if not len(good):
        raise BadFrames(
            f"positions and forces from {segments[0].path}",
            f"no numbers in any of its first {frames.n_frames} frames",
            "leave that file out, or make it again",
        )
    return candidate_pairs(frames.positions[good[0]])


def measure(segments: Sequence[Segment], spec: StoreSpec, pairs: Int[np.ndarray, "pair 2"], shard: int) -> ShardMoments:
    """Moments of the good frames of a shard; ``pairs`` are those of ``near_pairs``."""
    every = max(1, spec.n_frames // CONSTRAINT_SAMPLES)
    nothing = ForceMoments.empty(segments[0].n_atoms)
    total = ShardMoments(DistanceMoments.empty(pairs), nothing, nothing)
    for piece, frames in blocks(segments, spec, shard):
        index = np.arange(piece.start, piece.stop)
        good = frames.finite
        out = held_out(np.full(len(index), piece.segment), index, *spec.held_out)
        forces = frames.forces if frames.forces is not None else np.zeros_like(frames.positions[:0])
        sides = (good & ~out, good & out) if len(forces) else (slice(0, 0), slice(0, 0))
        total = total + ShardMoments(
            DistanceMoments.of(frames.positions[good & (index % every == 0)], pairs),
            *(ForceMoments.of(forces[side]) for side in sides),
        )
    return total


def mapped(
    segments: Sequence[Segment], spec: StoreSpec, cg_map: CGMap, shard: int
) -> tuple[ShardFrames, list[dict[str, Any]]]:
    """The mapped frames of a shard, and which frames are quarantined and why; those are NaN with weight zero."""
    parts: list[ShardFrames] = []
    quarantine: list[dict[str, Any]] = []
    for piece, frames in blocks(segments, spec, shard):
        good = frames.finite
        positions = cg_map.apply_positions(frames.positions)
        # centred in double precision: absolute coordinates far from the origin would cost digits
        positions = positions - positions.mean(axis=1, keepdims=True)
        index = np.arange(piece.start, piece.stop)
        kept = good[:, None, None]
        arrays = {"positions": np.where(kept, positions, np.nan)}
        if "forces" in spec.arrays:
            assert frames.forces is not None, "segments without forces are refused before"
            arrays["forces"] = np.where(kept, cg_map.apply_forces(frames.forces), np.nan)
        parts.append(ShardFrames(arrays, index, np.full(len(index), piece.segment), good.astype(np.float32)))
        reason = "positions or forces that are no numbers"
        path = segments[piece.segment].path
        quarantine += [{"path": path, "frame": int(frame), "reason": reason} for frame in index[~good]]
    return ShardFrames.joined(parts), quarantine
