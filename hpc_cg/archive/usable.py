"""Which frames of a source can be used, where they are, and how they lie in time.

A frame can be used when it has positions and, where forces are wanted, forces of the same moment: in the same frame of
one file, or in a second file at the same step, else at the same time, or, where neither is kept,
at the same number.
Where a step comes twice, as after a restart that appends, the later frame is the one the run went on from.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64

from hpc_cg.archive.faults import unreadable
from hpc_cg.archive.source import Header
from hpc_cg.errors import MissingStride, UnreadableFile

UNEVEN = 0.01
"""Relative deviation from the median spacing above which frames are not evenly spaced."""


@dataclass(frozen=True, eq=False)
class Usable:
    """Frames that can be used, in the order of time.

    rows   places of positions and of forces (-1 where there are none), as arguments of source.Read
    time   ps, None where no file keeps it
    """

    rows: Int64[np.ndarray, "frame 2"]
    step: Int64[np.ndarray, "frame"] | None
    time: Float[np.ndarray, "frame"] | None
    has_forces: bool
    notes: tuple[str, ...]

    @property
    def counted(self) -> bool:
        """Whether frame i is simply row i, in each file."""
        numbers = np.arange(len(self.rows))
        return all(bool((column == numbers).all()) for column in self.rows.T[: 1 + self.has_forces])


@dataclass(frozen=True)
class Spacing:
    """Time between frames in ps, and whether it is the same for all."""

    stride_ps: float
    even: bool
    note: str


@dataclass(frozen=True, eq=False)
class _Column:
    """Frames of one file that carry one quantity, by their place, in the order of time."""

    rows: Int64[np.ndarray, "frame"]
    step: Int64[np.ndarray, "frame"] | None
    time: Float[np.ndarray, "frame"] | None
    notes: tuple[str, ...]

    def of(self, chosen: np.ndarray) -> "_Column":
        step = None if self.step is None else self.step[chosen]
        return _Column(self.rows[chosen], step, None if self.time is None else self.time[chosen], self.notes)


def in_one_file(path: Path, header: Header, want_forces: bool) -> Usable:
    """Frames with positions and, where wanted and there are any, with forces. Raises UnreadableFile."""
    both = header.has_positions & header.has_forces
    has_forces = want_forces and bool(both.any())
    kept = both if has_forces else header.has_positions
    column = _column(path, header, kept, "positions")
    left_out = int(header.has_positions.sum() - both.sum()) if has_forces else 0
    notes = (f"{left_out} frames without forces are left out",) if left_out else ()
    rows = np.stack([column.rows, column.rows if has_forces else np.full_like(column.rows, -1)], axis=1)
    return Usable(rows, column.step, column.time, has_forces, column.notes + notes)


def in_two_files(path: Path, header: Header, forces_path: Path, forces: Header, as_positions: bool) -> Usable:
    """Frames of one file with forces of another at the same moment.

    as_positions   the second file's format calls its forces positions
    Raises UnreadableFile where no frames meet, or where atoms or frames differ in number.
    """
    if forces.n_atoms != header.n_atoms:
        raise unreadable(forces_path, f"{forces.n_atoms} atoms beside {header.n_atoms} in {path.name}")
    first = _column(path, header, header.has_positions, "positions")
    second = _column(forces_path, forces, forces.has_positions if as_positions else forces.has_forces, "forces")
    if first.step is not None and second.step is not None:
        how = "steps"
        _, left, right = np.intersect1d(first.step, second.step, assume_unique=True, return_indices=True)
    elif first.time is not None and second.time is not None:
        how = "times"
        left, right = _same_times(first.time, second.time)
    else:
        how = "numbers"
        if len(first.rows) != len(second.rows):
            found = f"{len(second.rows)} frames of forces beside {len(first.rows)} of coordinates"
            raise unreadable(forces_path, f"{found}, and no steps or times to match them by")
        left = right = np.arange(len(first.rows))
    if not len(left):
        raise UnreadableFile(
            f"matching the forces in {forces_path} with {path}", f"no {how} in common", "name the files of one run"
        )
    lone = len(first.rows) - len(left)
    notes = (f"{lone} frames without forces in {forces_path.name} are left out",) if lone else ()
    met = first.of(left)
    rows = np.stack([met.rows, second.rows[right]], axis=1)
    return Usable(rows, met.step, met.time, True, first.notes + second.notes + notes)


def spacing(path: Path, usable: Usable, stated: float | None, asked: float | None, trusted: bool) -> Spacing:
    """How the frames lie in time.

    stated    ps, as the file states it in a number of its own
    asked     ps, as the study states it
    trusted   False for formats whose times are often made up: then the study's word counts, and a note is left
    Raises MissingStride where nobody says; UnreadableFile where file and study differ.
    """
    found = _found(path, usable, stated)
    if found is None and asked is None:
        raise MissingStride(f"the time between frames of {path}", "no times in the file", "state prepare.stride_ps")
    if found is None:
        assert asked is not None
        return Spacing(float(asked), usable.step is None or _is_even(usable.step.astype(np.float64)), "")
    if asked is None or abs(asked - found.stride_ps) <= UNEVEN * found.stride_ps:
        return found
    if not trusted:
        note = f"{found.stride_ps:g} ps between frames in the file, {asked:g} ps as the study says are taken"
        return Spacing(float(asked), found.even, note)
    raise UnreadableFile(
        f"reading {path} with {asked} ps between frames",
        f"{found.stride_ps:g} ps in the file",
        "correct stride_ps in the study",
    )


def _found(path: Path, usable: Usable, stated: float | None) -> Spacing | None:
    if stated is not None and not (np.isfinite(stated) and stated > 0):
        raise unreadable(path, f"{stated} ps between frames")
    if usable.time is None or len(usable.time) < 2:
        return None if stated is None else Spacing(float(stated), True, "")
    time = usable.time.astype(np.float64)
    even = _is_even(time)
    stride = (time[-1] - time[0]) / (len(time) - 1) if even else np.median(np.diff(time))
    if not stride > 0:
        raise unreadable(path, "times that do not grow with the steps")
    return Spacing(float(f"{stride:.6g}"), even, "")


def _is_even(time: Float[np.ndarray, "frame"]) -> bool:
    """Whether gaps differ by no more than 1 %, or than what single precision leaves of times so large."""
    gaps = np.diff(time)
    if not len(gaps):
        return True
    middle = np.median(gaps)
    rounding = np.finfo(np.float32).eps * np.abs(time).max()
    return bool((np.abs(gaps - middle) <= max(UNEVEN * abs(middle), rounding)).all())


def _column(path: Path, header: Header, kept: np.ndarray, quantity: str) -> _Column:
    """The kept frames of a file, those that hold a quantity, in order; the later one where one comes twice.

    Raises UnreadableFile where there are none.
    """
    if not kept.any():
        raise unreadable(path, f"{header.n_frames} frames, none of which holds {quantity}")
    if header.time is not None and not np.isfinite(header.time).all():
        raise unreadable(path, "times that are no numbers")
    step = None if header.step is None else _telling(header.step[kept])
    time = None if header.time is None else _telling(header.time[kept])
    note = (header.note,) if header.note else ()
    column = _Column(header.rows[kept], step, time, note)
    key = step if step is not None else time
    if key is None or (np.diff(key) > 0).all():
        return column
    _, last = np.unique(key[::-1], return_index=True)
    chosen = len(key) - 1 - last
    lost = len(key) - len(chosen)
    said = f"{lost} frames come again later in the file and are left out" if lost else "frames are put in order of time"
    ordered = column.of(chosen)
    return _Column(ordered.rows, ordered.step, ordered.time, (*note, said))


def _telling(values: np.ndarray) -> np.ndarray | None:
    """None for steps or times that are all the same: some tools write zeros where they know none."""
    return None if len(values) > 1 and (values == values[0]).all() else values


def _same_times(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of frames at the same time, to within 1 % of the spacing or single precision."""
    gaps = np.concatenate([np.diff(first), np.diff(second)])
    rounding = np.finfo(np.float32).eps * max(np.abs(first).max(), np.abs(second).max())
    near = max(UNEVEN * float(gaps.min(initial=np.inf)) if len(gaps) else 0.0, float(rounding))
    right = np.searchsorted(second, first).clip(0, len(second) - 1)
    left = (right - 1).clip(0)
    right = np.where(np.abs(second[left] - first) < np.abs(second[right] - first), left, right)
    met = np.abs(second[right] - first) <= near
    return np.flatnonzero(met), right[met]
