"""Frames out of a segment, in nm and kJ/mol/nm, by block or one by one.

This is the border at which units are converted; everything after speaks nm, ps, kJ/mol. Only the frames asked for are
read, so memory is bounded by the block, and the formats whose frames lie apart read only the atoms asked for.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int64

from hpc_cg import units
from hpc_cg.archive import index
from hpc_cg.archive.faults import explain_read_errors, unreadable
from hpc_cg.archive.formats import FORCES_AS_POSITIONS, format_named, format_of
from hpc_cg.archive.index import Segment
from hpc_cg.archive.source import Format, RawFrames, Read
from hpc_cg.errors import ChangedFile
from hpc_cg.frames import AtomFrames

CENTRED = ("npy", "npz")
"""Formats whose frames are centred: such arrays come unwrapped, hundreds of Angstrom from the origin."""


def blocks(
    segment: Segment,
    start: int,
    stop: int,
    *,
    table: Int64[np.ndarray, "frame 2"] | None = None,
    atoms: Int64[np.ndarray, "atom"] | None = None,
    forces: bool = True,
    block_frames: int,
) -> Iterator[AtomFrames]:
    """Frames start..stop, stop left out, ``block_frames`` at a time; each file is opened once.

    table    where the frames are, as ``index.describe`` gave it; where it is needed and missing (segment.counted is
             False) the file is described again, which is slow for formats that have to be looked through
    atoms    the atoms wanted, ascending; None for all
    forces   whether forces are wanted; where the segment has none they are None in any case
    Gives positions in nm, forces in kJ/mol/nm or None, cell in nm or None, time in ps since the segment's first frame.
    Positions that the source keeps in double precision, and those of numpy arrays, are centred on the mean of the atoms
    wanted before they are rounded to single precision.
    Raises ChangedFile where the file is not the one described, UnreadableFile where it is damaged, MissingInput where
    it is gone.
    """
    assert 0 <= start <= stop <= segment.n_frames, f"frames {start}..{stop} of {segment.n_frames}"
    assert block_frames > 0
    index.check_unchanged(segment)
    places = _Places.of(segment, table)
    forces = forces and segment.has_forces
    with _opened(segment, forces) as load:
        for low in range(start, stop, block_frames):
            yield _frames(segment, places, np.arange(low, min(low + block_frames, stop)), atoms, load, forces)


def read(
    segment: Segment,
    start: int,
    stop: int,
    table: Int64[np.ndarray, "frame 2"] | None = None,
    atoms: Int64[np.ndarray, "atom"] | None = None,
    forces: bool = True,
) -> AtomFrames:
    """Frames start..stop, stop left out, all at once; arguments, units and errors as for ``blocks``."""
    assert 0 <= start <= stop <= segment.n_frames, f"frames {start}..{stop} of {segment.n_frames}"
    return every(segment, np.arange(start, stop), table=table, atoms=atoms, forces=forces)


def every(
    segment: Segment,
    numbers: Int64[np.ndarray, "chosen"],
    *,
    table: Int64[np.ndarray, "frame 2"] | None = None,
    atoms: Int64[np.ndarray, "atom"] | None = None,
    forces: bool = True,
) -> AtomFrames:
    """The frames of the given ascending numbers, all at once; arguments, units and errors as for ``blocks``."""
    index.check_unchanged(segment)
    places = _Places.of(segment, table)
    forces = forces and segment.has_forces
    with _opened(segment, forces) as load:
        return _frames(segment, places, numbers, atoms, load, forces)


_Load: TypeAlias = Callable[[np.ndarray, np.ndarray | None], tuple[RawFrames, np.ndarray | None]]
"""Raw frames and their forces, by rows (frame, 2) in each file, of the atoms given."""


class _Places:
    """Where frames are in their files, and when they are: by counting, or as the index has them."""

    def __init__(
        self, segment: Segment, table: Int64[np.ndarray, "frame 2"] | None, time: Float[np.ndarray, "frame"] | None
    ) -> None:
        self._stride_ps, self._table, self._time = segment.stride_ps, table, time

    @staticmethod
    def of(segment: Segment, table: Int64[np.ndarray, "frame 2"] | None) -> "_Places":
        """From what the caller has; the file is described again for what is needed and missing."""
        if segment.even and (segment.counted or table is not None):
            return _Places(segment, table, None)
        found = _described_again(segment)
        return _Places(segment, found.table, found.time)

    def rows(self, numbers: Int64[np.ndarray, "chosen"]) -> Int64[np.ndarray, "chosen 2"]:
        return np.stack([numbers, numbers], axis=1) if self._table is None else self._table[numbers]

    def time(self, numbers: Int64[np.ndarray, "chosen"]) -> Float[np.ndarray, "chosen"]:
        return numbers * self._stride_ps if self._time is None else self._time[numbers]


def _described_again(segment: Segment) -> index.Described:
    found = index.describe(
        Path(segment.path),
        molecule=segment.molecule,
        want_forces=segment.has_forces,
        forces_path=None if segment.forces_path is None else Path(segment.forces_path),
        length_unit=segment.length_unit,
        force_unit=segment.force_unit,
        stride_ps=segment.stride_ps,
    )
    for described in found:
        if described.segment.inside == segment.inside and described.segment.n_frames == segment.n_frames:
            return described
    raise ChangedFile(
        f"reading {segment.path}",
        f"no trajectory of {segment.n_frames} frames where the index found one",
        "the file changed after the scan: run prepare again",
    )


@contextmanager
def _opened(segment: Segment, forces: bool) -> Iterator[_Load]:
    """A function that loads frames from one file, or from two that are open together."""
    forces_path = Path(segment.forces_path) if forces and segment.forces_path else None
    with ExitStack() as stack:
        first = _entered(stack, format_named(segment.format), Path(segment.path), segment.inside)
        if forces_path is None:
            yield _from_one(Path(segment.path), first, forces)
        else:
            form = format_of(forces_path)
            second = _entered(stack, form, forces_path, segment.inside)
            yield _from_two(Path(segment.path), first, forces_path, second, form.name in FORCES_AS_POSITIONS)


def _entered(stack: ExitStack, form: Format, path: Path, inside: str) -> Read:
    with explain_read_errors(path):
        return stack.enter_context(form.opened(path, inside))


def _from_one(path: Path, read_frames: Read, forces: bool) -> _Load:
    def load(rows: np.ndarray, atoms: np.ndarray | None) -> tuple[RawFrames, np.ndarray | None]:
        with explain_read_errors(path):
            raw = read_frames(rows[:, 0], atoms, True, forces)
        return raw, raw.forces

    return load


def _from_two(path: Path, read_positions: Read, forces_path: Path, read_forces: Read, as_positions: bool) -> _Load:
    def load(rows: np.ndarray, atoms: np.ndarray | None) -> tuple[RawFrames, np.ndarray | None]:
        with explain_read_errors(path):
            raw = read_positions(rows[:, 0], atoms, True, False)
        with explain_read_errors(forces_path):
            beside = read_forces(rows[:, 1], atoms, as_positions, not as_positions)
        return raw, beside.positions if as_positions else beside.forces

    return load


def _frames(
    segment: Segment,
    places: _Places,
    numbers: Int64[np.ndarray, "chosen"],
    atoms: Int64[np.ndarray, "atom"] | None,
    load: _Load,
    wanted: bool,
) -> AtomFrames:
    """One block, converted; ``wanted`` where it has to hold forces."""
    shape = (len(numbers), segment.n_atoms if atoms is None else len(atoms), 3)
    time = places.time(numbers)
    if not len(numbers):
        nothing = np.zeros(shape, np.float32)
        return AtomFrames(nothing, nothing if wanted else None, None, time)
    raw, forces = load(places.rows(numbers), atoms)
    if wanted and forces is None:
        raise unreadable(Path(segment.forces_path or segment.path), "no forces where the index found some")
    for name, array in (("positions", raw.positions), ("forces", forces)):
        if array is not None and array.shape != shape:
            raise unreadable(Path(segment.path), f"{name} of shape {array.shape} where the index says {shape}")
    assert raw.positions is not None, "the index counts frames with positions"
    to_nm = units.length_factor(segment.length_unit)
    return AtomFrames(
        positions=_positions(raw.positions, to_nm, segment.format in CENTRED),
        forces=None if forces is None else _converted(forces, units.force_factor(segment.force_unit or "")),
        cell=None if raw.cell is None else _converted(raw.cell, to_nm),
        time=time,
    )


def _positions(
    block: Float[np.ndarray, "frame atom 3"], factor: float, centre: bool
) -> Float[np.ndarray, "frame atom 3"]:
    """Positions in nm and single precision, centred in double precision where they would lose digits."""
    if block.dtype.itemsize < 8 and not centre:
        return _converted(block, factor)
    with np.errstate(invalid="ignore", over="ignore"):  # what is no number stays none, and is left to the caller
        exact = block.astype(np.float64) * factor
        return (exact - exact.mean(axis=1, keepdims=True)).astype(np.float32)


def _converted(block: np.ndarray, factor: float) -> np.ndarray:
    """Single precision, multiplied in double precision; as it stands where there is nothing to do."""
    with np.errstate(invalid="ignore", over="ignore"):
        if factor == 1.0:
            return block.astype(np.float32, copy=False)
        return (block.astype(np.float64) * factor).astype(np.float32)
