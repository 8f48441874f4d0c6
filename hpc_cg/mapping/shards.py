"""Parts of an archive as work: sampled frames, ranges of frames to fit maps on, shards to map.

Everything here is a function of the archive and of a range of its frames, so a part is the same whoever does it. Frames
are read in blocks of bounded memory. A frame that is no number, or a file that can no longer be read, is left out and
said so; a file that has changed since it was indexed is an error.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from hpc_cg.archive import readers
from hpc_cg.archive.catalogue import Catalogue, Piece
from hpc_cg.archive.index import force_scale_warning
from hpc_cg.archive.trail import Trail
from hpc_cg.archive.weights import FrameWeights
from hpc_cg.errors import BadFrames, UnreadableFile
from hpc_cg.frames import AtomFrames, finite_frames
from hpc_cg.mapping.constraints import DistanceMoments, candidate_pairs
from hpc_cg.mapping.fitting import Reduction
from hpc_cg.mapping.maps import CGMap
from hpc_cg.mapping.moments import FitMoments
from hpc_cg.mapping.whole import Whole
from hpc_cg.store.dataset import held_out
from hpc_cg.store.layout import ShardFrames, StoreSpec

BLOCK_BYTES = 8 << 20
"""Bytes of positions, and as many of forces, that are held at once."""

BLOCK_FRAMES = 4096
RIGID_FRAMES = 200
"""Frames, spread over the archive, in which rigid groups are looked for; constraints.SAFE_FRAMES would do."""

RIGID_PARTS = 8
PAIR_FRAMES = 5
"""Frames, spread over the whole archive, in which atoms near one another are looked for."""

FEWEST_FIT_PARTS, FIT_PARTS, MOST_FIT_PARTS = 10, 64, 1024
SMALL_FIT_PART, LARGEST_FIT_PART = 2048, 65536

NOT_FINITE = "positions or forces that are no numbers"
COLLAPSED = "all beads in one place"
TOO_STRONG = "forces beyond prepare.force_limit"


@dataclass(frozen=True)
class Archive:
    """One molecule's frames, and what is looked at of them.

    atoms     numbers in the files of the atoms that are looked at, ascending; None for all
    weights   of the frames
    trail     where it is written down which file is being read
    whole     puts the atoms that are looked at next to one another where the cell is periodic
    """

    catalogue: Catalogue
    atoms: Int64[np.ndarray, "atom"] | None
    weights: FrameWeights
    trail: Trail
    whole: Whole

    @property
    def n_atoms(self) -> int:
        """How many atoms are looked at."""
        return int(self.catalogue.n_atoms_of[0]) if self.atoms is None else len(self.atoms)

    def in_file(self, chosen: Int64[np.ndarray, "chosen"]) -> Int64[np.ndarray, "chosen"] | None:
        """Numbers in the files of some of the atoms that are looked at; None for all atoms of the files."""
        if self.atoms is not None:
            return self.atoms[chosen]
        return None if len(chosen) == self.n_atoms else chosen


@dataclass(frozen=True)
class Lost:
    """Frames of one segment that could not be read, and why."""

    piece: Piece
    reason: str


def blocks(
    archive: Archive, start: int, stop: int, atoms: Int64[np.ndarray, "atom"] | None, forces: bool
) -> Iterator[tuple[Piece, AtomFrames] | Lost]:
    """Global frames start to stop, a block at a time; ``atoms`` are numbers in the files. Raises ChangedFile."""
    catalogue = archive.catalogue
    n_atoms = int(catalogue.n_atoms_of[0]) if atoms is None else len(atoms)
    block_frames = max(1, min(BLOCK_FRAMES, BLOCK_BYTES // (12 * n_atoms)))
    for piece in catalogue.pieces(start, stop):
        segment, table, place = catalogue[piece.segment], catalogue.table(piece.segment), piece.start
        try:
            with archive.trail.on(segment) as source:
                for frames in readers.blocks(
                    source, piece.start, piece.stop, table=table, atoms=atoms, forces=forces, block_frames=block_frames
                ):
                    yield Piece(piece.segment, place, place + frames.n_frames), frames
                    place += frames.n_frames
        except UnreadableFile as error:
            yield Lost(Piece(piece.segment, place, piece.stop), str(error))


def spread(n_frames: int, wanted: int) -> Int64[np.ndarray, "frame"]:
    """Up to ``wanted`` of ``n_frames`` frames, evenly spread."""
    return np.unique(np.linspace(0, n_frames - 1, min(wanted, n_frames)).astype(np.int64))


def sampled(archive: Archive, frames: Int64[np.ndarray, "frame"], forces: bool = False) -> Iterator[AtomFrames]:
    """The given global frames, whole, a segment at a time: those that can be read and are numbers."""
    for number, within in archive.catalogue.places(frames):
        segment, table = archive.catalogue[number], archive.catalogue.table(number)
        try:
            with archive.trail.on(segment) as source:
                found = readers.every(source, within, table=table, atoms=archive.atoms, forces=forces)
        except UnreadableFile:
            continue  # the pass that maps meets the same file and lists it
        good = found.finite
        if good.any():
            yield AtomFrames(
                positions=archive.whole.apply(found.positions[good], None if found.cell is None else found.cell[good]),
                forces=None if found.forces is None else found.forces[good],
                cell=None,
                time=found.time[good],
            )


def near_pairs(archive: Archive) -> Int64[np.ndarray, "pair 2"]:
    """Pairs of atoms that may be rigid: those near one another in any of a few frames. Raises BadFrames."""
    n_frames = archive.catalogue.n_frames
    for wanted in (PAIR_FRAMES, RIGID_FRAMES):
        found = [
            candidate_pairs(positions)
            for frames in sampled(archive, spread(n_frames, wanted))
            for positions in frames.positions[:PAIR_FRAMES]
        ]
        if found:
            return np.unique(np.concatenate(found), axis=0)
    raise BadFrames(
        f"positions from {archive.catalogue[0].path} and the files after it",
        f"no numbers in any of {min(n_frames, RIGID_FRAMES)} frames spread over them",
        "make the archive again, or take the bad files out of prepare.archive",
    )


def unit_warning(archive: Archive) -> str:
    """A sentence where the size of the forces speaks for another unit than the one stated; empty otherwise."""
    found = [frames.forces for frames in sampled(archive, spread(archive.catalogue.n_frames, PAIR_FRAMES), forces=True)]
    forces = [block for block in found if block is not None]
    return (force_scale_warning(np.concatenate(forces)) or "") if forces else ""


def rigid_parts(n_frames: int) -> tuple[Int64[np.ndarray, "frame"], ...]:
    """The frames in which rigid groups are looked for, in parts that follow one another."""
    frames = spread(n_frames, RIGID_FRAMES)
    return tuple(part for part in np.array_split(frames, min(RIGID_PARTS, len(frames))) if len(part))


def distances(
    archive: Archive, frames: Int64[np.ndarray, "frame"], pairs: Int64[np.ndarray, "pair 2"]
) -> DistanceMoments:
    """Moments of the distances of ``pairs`` over the given global frames."""
    total = DistanceMoments.empty(pairs)
    for found in sampled(archive, frames):
        total = total + DistanceMoments.of(found.positions, pairs)
    return total


def fit_ranges(n_frames: int, wanted: int) -> tuple[tuple[int, int], ...]:
    """Ranges of frames to fit maps on: spread over the archive, ``wanted`` frames together (0 for all of them)."""
    used = n_frames if wanted == 0 else min(wanted, n_frames)
    few, many = min(FEWEST_FIT_PARTS, used // 64), min(FIT_PARTS, used // SMALL_FIT_PART)
    count = min(MOST_FIT_PARTS, max(1, few, many, used // LARGEST_FIT_PART))
    firsts = [n_frames * i // count for i in range(count + 1)]
    length = -(-used // count)
    return tuple((start, min(start + length, end)) for start, end in pairwise(firsts))


def measure(
    archive: Archive,
    rule: tuple[int, int],
    reduction: Reduction,
    frames: tuple[int, int],
    force_limit: float = np.inf,
) -> tuple[FitMoments, int]:
    """Weighted moments of the forces of the good frames in a range, and how many frames could not be read.

    rule          which frames are held out (StoreSpec.held_out)
    force_limit   as of ``mapped``
    """
    total, lost = reduction.empty, 0
    for found in blocks(archive, *frames, archive.atoms, forces=True):
        if isinstance(found, Lost):
            lost += found.piece.stop - found.piece.start
            continue
        piece, block = found
        assert block.forces is not None, "segments without forces are refused before"
        weights = archive.weights(piece)
        used = block.finite & ~_too_strong(block.forces, force_limit) & (weights > 0)
        out = _held_out(piece, rule)
        total = total + reduction.moments(block.forces, weights, used & ~out, used & out)
    return total, lost


def _held_out(piece: Piece, rule: tuple[int, int]) -> Bool[np.ndarray, "frame"]:
    index = np.arange(piece.start, piece.stop)
    return held_out(np.full(len(index), piece.segment), index, *rule)


@dataclass(frozen=True)
class Mapping:
    """A map, and what has to be read for it.

    atoms       numbers in the files of the atoms that have a weight in it, and of those that join them; None for all
                atoms of the files
    forces      the map over these atoms
    anchors     which of these have a weight in positions, or join those that have
    positions   the map over the anchors
    whole       puts the anchors next to one another
    """

    atoms: Int64[np.ndarray, "atom"] | None
    forces: CGMap
    anchors: Int64[np.ndarray, "anchor"]
    positions: CGMap
    whole: Whole


def mapping_of(archive: Archive, cg_map: CGMap, forces: bool, whole: Callable[[np.ndarray], Whole]) -> Mapping:
    """What has to be read for ``cg_map``, which is over the atoms that are looked at.

    whole   makes the Whole of some of these atoms; the atoms between that it needs are read as well
    """
    anchors = np.flatnonzero(np.any(cg_map.coordinate != 0, axis=0))
    pulled = np.flatnonzero(np.any(cg_map.force != 0, axis=0)) if forces else anchors
    looked_at = np.arange(archive.n_atoms) if archive.atoms is None else archive.atoms
    tree = whole(anchors)
    joined = np.union1d(looked_at[anchors], tree.between)
    needed = np.union1d(joined, looked_at[pulled])
    return Mapping(
        atoms=None if len(needed) == archive.catalogue.n_atoms_of[0] else needed,
        forces=_cut(cg_map, looked_at, needed),
        anchors=np.searchsorted(needed, joined),
        positions=_cut(cg_map, looked_at, joined),
        whole=tree,
    )


def _cut(cg_map: CGMap, looked_at: Int64[np.ndarray, "looked_at"], atoms: Int64[np.ndarray, "atom"]) -> CGMap:
    """The map over ``atoms``, of which those that it does not look at have no weight; all by number in the files."""
    column = np.searchsorted(looked_at, atoms).clip(max=len(looked_at) - 1)
    known = looked_at[column] == atoms
    coordinate, force = (np.where(known, matrix[:, column], 0.0) for matrix in (cg_map.coordinate, cg_map.force))
    return CGMap(coordinate, force, cg_map.system)


def mapped(
    archive: Archive, spec: StoreSpec, mapping: Mapping, shard: int, force_limit: float = np.inf
) -> tuple[ShardFrames, list[dict[str, Any]]]:
    """The mapped frames of a shard, and which frames are quarantined and why; those are NaN with weight zero.

    force_limit   largest component of an atomic force, kJ/mol/nm, that a frame may have
    """
    first, stop = spec.frames_of(shard)
    content = _nothing(stop - first, spec)
    quarantine: list[dict[str, Any]] = []
    place = 0
    for found in blocks(archive, first, stop, mapping.atoms, "forces" in spec.arrays):
        piece = found.piece if isinstance(found, Lost) else found[0]
        rows = slice(place, place + piece.stop - piece.start)
        place = rows.stop
        content.frame_index[rows] = np.arange(piece.start, piece.stop)
        content.segment[rows] = piece.segment
        if isinstance(found, Lost):
            quarantine.append(_row(archive, piece, found.reason, again=True))
            continue
        arrays, faults = _mapped_block(found[1], mapping, spec, force_limit)
        kept = ~np.any(list(faults.values()), axis=0)
        for name, values in arrays.items():
            content.arrays[name][rows] = values if kept.all() else np.where(kept[:, None, None], values, np.nan)
        content.weights[rows] = np.where(kept, archive.weights(piece), 0)
        quarantine += [_row(archive, run, reason) for reason, bad in faults.items() for run in _runs(piece, bad)]
    return content, quarantine


def _mapped_block(
    frames: AtomFrames, mapping: Mapping, spec: StoreSpec, force_limit: float
) -> tuple[dict[str, np.ndarray], dict[str, Bool[np.ndarray, "frame"]]]:
    """Arrays of the store by name, single precision, and which frames are not to be used, by reason."""
    anchors = frames.positions if len(mapping.anchors) == frames.n_atoms else frames.positions[:, mapping.anchors]
    positions = mapping.positions.apply_positions(mapping.whole.apply(anchors, frames.cell))
    finite = frames.finite
    faults = {COLLAPSED: finite & _in_one_place(positions), TOO_STRONG: np.zeros(len(finite), bool)}
    # centred in double precision: absolute coordinates far from the origin would cost digits
    positions -= positions.mean(axis=1, keepdims=True)
    arrays = {"positions": positions.astype(np.float32, order="C")}
    with np.errstate(over="ignore"):
        if "forces" in spec.arrays:
            assert frames.forces is not None, "segments without forces are refused before"
            faults[TOO_STRONG] = finite & _too_strong(frames.forces, force_limit)
            arrays["forces"] = mapping.forces.apply_forces(frames.forces).astype(np.float32, order="C")
    for values in arrays.values():
        finite = finite & finite_frames(values)
    return arrays, faults | {NOT_FINITE: ~finite & ~faults[TOO_STRONG]}


def _too_strong(forces: Float[np.ndarray, "frame atom 3"], limit: float) -> Bool[np.ndarray, "frame"]:
    """Frames with a force beyond the limit: of a molecule that blew up, or of a file in another unit."""
    flat = forces.reshape(len(forces), -1)
    with np.errstate(invalid="ignore"):
        return ~((flat.max(axis=1) <= limit) & (flat.min(axis=1) >= -limit))


def _in_one_place(positions: Float[np.ndarray, "frame bead 3"]) -> Bool[np.ndarray, "frame"]:
    """Frames in which all of several beads lie in one place, as where a writer left zeros."""
    found = np.zeros(len(positions), bool)
    if positions.shape[1] > 1:
        suspect = np.flatnonzero((positions[:, -1] == positions[:, 0]).all(axis=1))
        found[suspect] = (positions[suspect] == positions[suspect, :1]).all(axis=(1, 2))
    return found


def _runs(piece: Piece, chosen: Bool[np.ndarray, "frame"]) -> Iterator[Piece]:
    """The chosen frames of a piece as runs that follow one another."""
    edges = np.flatnonzero(np.diff(chosen.astype(np.int8), prepend=0, append=0))
    for low, high in zip(edges[::2], edges[1::2], strict=True):
        yield Piece(piece.segment, piece.start + int(low), piece.start + int(high))


def _row(archive: Archive, piece: Piece, reason: str, again: bool = False) -> dict[str, Any]:
    """A line of the quarantine; ``again`` where reading may succeed another time."""
    segment = archive.catalogue[piece.segment]
    row = {
        "molecule": segment.molecule,
        "path": segment.path,
        "frame": piece.start,
        "frames": piece.stop - piece.start,
        "reason": reason,
    }
    return row | ({"inside": segment.inside} if segment.inside else {}) | ({"again": True} if again else {})


def _nothing(n_frames: int, spec: StoreSpec) -> ShardFrames:
    """A shard in which no frame is known yet."""
    shape = (n_frames, spec.system.n_beads, 3)
    return ShardFrames(
        arrays={name: np.full(shape, np.nan, np.float32) for name in spec.arrays},
        frame_index=np.full(n_frames, -1, np.int64),
        segment=np.full(n_frames, -1, np.int32),
        weights=np.zeros(n_frames, np.float32),
    )
