"""Steps and times of the frames of one file, and which frames of two files are of one moment.

A step is what the program counted, a time what it derived from it, often in single precision: t is then known to
ε |t|, with ε = 2⁻²³, so that late in a long run neighbouring frames can share a time. Neither is always right: tools
number frames anew, restarts count from zero, and files are put one behind another. Where the two of them contradict
each other and no rule decides which is right, a file is refused.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int64

from hpc_cg.errors import UnreadableFile

UNEVEN = 0.01
"""Part of the spacing of frames by which times may differ and be the same."""

MOST_REPEATS = 0.05
"""Part of a file's frames that a restart may have made again."""

SPLIT = "split it into files of one run each, or join the runs anew so that their times go on"


@dataclass(frozen=True, eq=False)
class Moments:
    """Frames of one file by their place, with what is known of when they are.

    step, time   None where the file keeps none, or none that tell frames apart; time in ps
    redone       whether a frame was made again after a restart, the earlier one being left out
    goes_back    whether times fell from one frame to the next before frames were put in order
    """

    rows: Int64[np.ndarray, "frame"]
    step: Int64[np.ndarray, "frame"] | None
    time: Float[np.ndarray, "frame"] | None
    redone: Bool[np.ndarray, "frame"]
    goes_back: bool = False
    notes: tuple[str, ...] = ()

    def of(self, chosen: np.ndarray) -> "Moments":
        """The chosen frames, in the order of the choice."""
        step, time = (None if values is None else values[chosen] for values in (self.step, self.time))
        return replace(self, rows=self.rows[chosen], step=step, time=time, redone=self.redone[chosen])


def rounding(time: Float[np.ndarray, "frame"]) -> float:
    """ps by which two times may differ for single precision alone."""
    return float(np.finfo(np.float32).eps * np.abs(time).max(initial=0.0))


def telling(values: np.ndarray | None) -> np.ndarray | None:
    """None for steps or times that are all the same: some tools write zeros where they know none."""
    return None if values is None or (len(values) > 1 and (values == values[0]).all()) else values


def ordered(path: Path, found: Moments) -> Moments:
    """The frames in the order of time, each moment once, the later frame where one comes again.

    A frame comes again where its step does, at the same time. Where steps go back while times go on, times count.
    Raises UnreadableFile where steps and times contradict each other, or where too many frames come again.
    """
    time = found.time
    found = replace(found, goes_back=time is not None and bool((np.diff(time) < -rounding(time)).any()))
    if found.step is None:
        return found if time is None else _by_time(path, found)
    kept = _without_repeats(path, found, found.step, np.zeros(len(found.rows)) if time is None else time)
    step, time = kept.step, kept.time
    assert step is not None
    if (np.diff(step) > 0).all():
        chosen = kept
    elif time is not None and (np.diff(time) >= 0).all():
        return replace(kept, step=None, notes=(*kept.notes, "steps go back where times go on: times count"))
    elif len(np.unique(step)) < len(step):
        raise UnreadableFile(f"reading {path}", "steps that come again at other times, which go back too", SPLIT)
    else:
        said = () if len(kept.rows) < len(found.rows) else ("frames are put in order of time",)
        chosen = replace(kept.of(np.argsort(step)), notes=(*kept.notes, *said))
    if chosen.time is not None and _both_ways(chosen.time):
        raise UnreadableFile(f"reading {path}", "times that go back while steps go on", SPLIT)
    return chosen


def matched(
    path: Path, first: Moments, other_path: Path, other: Moments
) -> tuple[Int64[np.ndarray, "pair"], Int64[np.ndarray, "pair"], str]:
    """Indices of the frames of one moment in each of two files, ascending, and what they were matched by.

    By steps where both have them and times, where both have those, agree; else by times, where they are ascending in
    both; by number where neither is kept. Raises UnreadableFile where none of it is sure.
    """
    asked = f"matching the frames of {other_path} with {path}"
    by_step = None
    if first.step is not None and other.step is not None:
        _, left, right = np.intersect1d(first.step, other.step, assume_unique=True, return_indices=True)
        by_step = left, right
    if first.time is None or other.time is None:
        if by_step is not None:
            return *_same_copies(asked, first, other, *by_step), "steps"
        if len(first.rows) != len(other.rows):
            found = f"{len(other.rows)} frames of forces beside {len(first.rows)} of coordinates"
            raise UnreadableFile(asked, f"{found}, and no steps or times to match them by", "name the files of one run")
        return np.arange(len(first.rows)), np.arange(len(first.rows)), "numbers"
    by_time = _same_times(first.time, other.time)
    if by_step is not None:
        gap = first.time[by_step[0]] - other.time[by_step[1]]
        agree = bool((np.abs(gap) <= _near(first.time, other.time)).all())
        if agree and (by_time is None or len(by_time[0]) <= len(by_step[0])):
            return *_same_copies(asked, first, other, *by_step), "steps"
        shifted = len(gap) > 1 and not agree and float(np.ptp(gap)) <= 2 * _near(first.time, other.time)
        if by_time is None or shifted or first.goes_back or other.goes_back:
            raise UnreadableFile(
                asked, "steps and times of the two files contradict each other", "name the files of one run"
            )
    elif first.goes_back or other.goes_back:
        raise UnreadableFile(asked, "times that go back, and no steps", "join the runs as separate files")
    if by_time is None:
        if first.time.shape == other.time.shape and (first.time == other.time).all():
            return np.arange(len(first.rows)), np.arange(len(first.rows)), "times"
        raise UnreadableFile(asked, "times that are rounded more than frames lie apart", "keep steps in both files")
    return *_same_copies(asked, first, other, *by_time), "times"


def _by_time(path: Path, found: Moments) -> Moments:
    """Frames of which only times are known, in their order; equal ones are repeats unless rounding makes them equal."""
    time = found.time
    assert time is not None
    forward = bool((np.diff(time) >= 0).all())
    if forward and rounding(time) > 0.5 * (time[-1] - time[0]) / max(len(time) - 1, 1):
        return found
    _, number = np.unique(time, return_inverse=True)
    kept = _without_repeats(path, found, number, time)
    assert kept.time is not None
    if (np.diff(kept.time) > 0).all():
        return kept
    said = () if len(kept.rows) < len(time) else ("frames are put in order of time",)
    return replace(kept.of(np.argsort(kept.time)), notes=(*kept.notes, *said))


def _without_repeats(path: Path, found: Moments, step: np.ndarray, time: np.ndarray) -> Moments:
    """The frames less those that come again later in the file. Raises UnreadableFile for too many."""
    if (np.diff(step) > 0).all():
        return found
    _, last, group = np.unique(step[::-1], return_index=True, return_inverse=True)
    later = (len(step) - 1 - last)[group[::-1]]
    repeats = (later != np.arange(len(step))) & (np.abs(time - time[later]) <= _near(time, time))
    lost = int(repeats.sum())
    if not lost:
        return found
    if lost > max(1, MOST_REPEATS * len(step)):
        said = f"{lost} of {len(step)} frames at steps or times that come again later in the file"
        advice = "the file seems to hold several trajectories one after another: split it"
        raise UnreadableFile(f"reading {path}", said, advice)
    # what a restart writes again at once is the state it began from, and no frame made anew
    redone = np.zeros(len(step), bool)
    redone[later[repeats & (later - np.arange(len(step)) > 1)]] = True
    note = f"{lost} frames come again later in the file and are left out"
    return replace(found, redone=redone, notes=(*found.notes, note)).of(np.flatnonzero(~repeats))


def _both_ways(time: np.ndarray) -> bool:
    """Whether times go on and go back; those that only fall are seen where their spacing is asked for."""
    gaps = np.diff(time)
    return bool((gaps < -rounding(time)).any() and (gaps > 0).any())


def _near(first: np.ndarray, second: np.ndarray) -> float:
    """ps by which times may differ and be the same."""
    gaps = np.abs(np.concatenate([np.diff(first), np.diff(second)]))
    gaps = gaps[gaps > 0]
    return max(UNEVEN * float(np.median(gaps)) if len(gaps) else 0.0, rounding(first), rounding(second))


def _same_times(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Indices of frames at the same time; None where times do not ascend, or are rounded too much to tell."""
    gaps = np.concatenate([np.diff(first), np.diff(second)])
    smallest = float(gaps.min(initial=np.inf))
    rounded = max(rounding(first), rounding(second))
    if not smallest > 2 * rounded:
        return None
    near = max(UNEVEN * smallest if len(gaps) else 0.0, rounded)
    right = np.searchsorted(second, first).clip(0, len(second) - 1)
    left = (right - 1).clip(0)
    right = np.where(np.abs(second[left] - first) < np.abs(second[right] - first), left, right)
    met = np.abs(second[right] - first) <= near
    assert (np.diff(right[met]) > 0).all(), "two frames cannot both be so near to a third one"
    return np.flatnonzero(met), right[met]


def _same_copies(
    asked: str, first: Moments, other: Moments, left: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The pairs; raises UnreadableFile where a restart made frames anew in one of the files and not in the other."""
    if (first.redone[left] != other.redone[right]).any():
        raise UnreadableFile(
            asked,
            "a restart that made frames again in one of the files and not in the other",
            "join the runs as separate files",
        )
    return left, right
