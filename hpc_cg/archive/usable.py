"""Which frames of a source can be used, where they are, and how they lie in time.

A frame can be used when it has positions and, where forces are wanted, forces of the same moment: in the same frame of
one file, or in a second file at the same step or time, or, where neither is kept, at the same number (moments.py).
Where a step comes twice, as after a restart that appends, the later frame is the one the run went on from.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64

from hpc_cg.archive.faults import unreadable
from hpc_cg.archive.moments import UNEVEN, Moments, matched, ordered, rounding, telling
from hpc_cg.archive.source import Header
from hpc_cg.errors import MissingStride, UnreadableFile


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


def in_two_files(
    path: Path,
    header: Header,
    forces_path: Path,
    forces: Header,
    as_positions: bool,
    made_up: tuple[bool, bool] = (False, False),
) -> Usable:
    """Frames of one file with forces of another at the same moment.

    as_positions   the second file's format calls its forces positions
    made_up        for each file, whether its format is one in which steps and times are often made up
    Raises UnreadableFile where no frames meet, or where atoms or frames differ in number.
    """
    if forces.n_atoms != header.n_atoms:
        raise unreadable(forces_path, f"{forces.n_atoms} atoms beside {header.n_atoms} in {path.name}")
    first = _column(path, header, header.has_positions, "positions")
    second = _column(forces_path, forces, forces.has_positions if as_positions else forces.has_forces, "forces")
    if all(made_up):
        _check_counted_alike(path, first, forces_path, second)
        left, right, how = matched(path, replace(first, time=None), forces_path, replace(second, time=None))
    else:
        left, right, how = matched(path, first, forces_path, second)
    if not len(left):
        raise UnreadableFile(
            f"matching the forces in {forces_path} with {path}", f"no {how} in common", "name the files of one run"
        )
    if any(made_up) and not all(made_up) and len(left) < min(len(first.rows), len(second.rows)):
        raise UnreadableFile(
            f"matching the forces in {forces_path} with {path}",
            f"{len(left)} {how} in common of {len(first.rows)} and {len(second.rows)}, often made up in one format",
            "write both files in one format, or with the same frames",
        )
    lone = len(first.rows) - len(left)
    notes: tuple[str, ...] = (f"{lone} frames without forces in {forces_path.name} are left out",) if lone else ()
    if how == "times" and first.step is not None and second.step is not None:
        notes += (f"steps differ from those in {forces_path.name}: frames are matched by time",)
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
    unsure = _unsure(usable)
    if asked is None:
        vague = unsure > UNEVEN * found.stride_ps and stated is None
        note = f"times so late that {found.stride_ps:g} ps between frames is known to {unsure:.2g} ps only"
        return replace(found, note=note) if vague else found
    if abs(asked - found.stride_ps) <= max(UNEVEN * found.stride_ps, unsure):
        return replace(found, stride_ps=float(asked))
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
    # times that single precision blurs cannot show a gap, which steps still do
    blurred = usable.step is not None and rounding(time) > UNEVEN * abs(time[-1] - time[0]) / (len(time) - 1)
    even = _is_even(time) and (not blurred or usable.step is None or _is_even(usable.step.astype(np.float64)))
    stride = (time[-1] - time[0]) / (len(time) - 1) if even else np.median(np.diff(time))
    if not stride > 0:
        raise unreadable(path, "times that do not grow with the steps")
    if stated is not None:
        if abs(stated - stride) > max(UNEVEN * stride, _unsure(usable)):
            raise unreadable(path, f"{stated:g} ps between frames as it states, {stride:g} ps by its times")
        stride = stated
    return Spacing(float(f"{stride:.6g}"), even, "")


def _unsure(usable: Usable) -> float:
    """ps by which single precision leaves the spacing of frames open; 0 for times that have more digits."""
    if usable.time is None or len(usable.time) < 2 or (usable.time != usable.time.astype(np.float32)).any():
        return 0.0
    return rounding(usable.time) / (len(usable.time) - 1)


def _is_even(time: Float[np.ndarray, "frame"]) -> bool:
    """Whether gaps differ by no more than 1 %, or than what single precision leaves of times so large."""
    gaps = np.diff(time)
    if not len(gaps):
        return True
    middle = np.median(gaps)
    # a gap and the median are each known to the rounding of times
    return bool((np.abs(gaps - middle) <= max(UNEVEN * abs(middle), 2 * rounding(time))).all())


def _column(path: Path, header: Header, kept: np.ndarray, quantity: str) -> Moments:
    """The kept frames of a file, those that hold a quantity, in order of time. Raises UnreadableFile for none."""
    if not kept.any():
        raise unreadable(path, f"{header.n_frames} frames, none of which holds {quantity}")
    if header.time is not None and not np.isfinite(header.time).all():
        raise unreadable(path, "times that are no numbers")
    step, time = (None if values is None else telling(values[kept]) for values in (header.step, header.time))
    notes = (header.note,) if header.note else ()
    return ordered(path, Moments(header.rows[kept], step, time, np.zeros(int(kept.sum()), bool), notes=notes))


def _check_counted_alike(path: Path, first: Moments, forces_path: Path, second: Moments) -> None:
    """Raises UnreadableFile where steps of two files, if they mean anything, do not begin and go on alike."""
    counted = [None if of.step is None else of.step[:2].tolist() for of in (first, second)]
    meaningless = counted[0] is None or counted[0] == [0, 1]
    if counted[0] != counted[1] or (meaningless and len(first.rows) != len(second.rows)):
        raise UnreadableFile(
            f"matching the forces in {forces_path} with {path}",
            f"{len(first.rows)} and {len(second.rows)} frames whose first steps are {counted[0]} and {counted[1]}",
            "write both files alike, with steps as the run counted them",
        )
