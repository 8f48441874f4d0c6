"""H5MD: trajectories of groups of particles in HDF5, positions and forces each with steps and times of their own.

    /particles/<group>/position/{value (frame atom 3), step, time}   `force` likewise; `step` and `time` are a number
                                                                     for each frame, or one, from frame to frame
    /particles/<group>/box/edges   (3) or (3 3), fixed; or {value, step, time} per frame
    attribute `unit` on each value

P. de Buyl, P. H. Colberg, F. Höfling, H5MD: a structured, efficient, and portable file format for molecular data,
Comput. Phys. Commun. 185, 1546 (2014), doi 10.1016/j.cpc.2014.01.018.

A row is the number of a frame of positions; its forces and its box are those of the same step, or time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float, Int64

from hpc_cg import units
from hpc_cg.archive import h5file
from hpc_cg.archive.faults import check_array, explain_read_errors, unreadable
from hpc_cg.archive.moments import UNEVEN, rounding
from hpc_cg.archive.parts import Part, joined
from hpc_cg.archive.source import Format, Header, Read


@dataclass(frozen=True, eq=False)
class _Element:
    """A quantity that depends on time."""

    value: h5py.Dataset
    step: Int64[np.ndarray, "frame"] | None
    time: Float[np.ndarray, "frame"] | None


def headers(path: Path) -> tuple[Header, ...]:
    """A header for each group of particles that has positions; ``inside`` is empty where it is the only one.

    Raises UnreadableFile, UnknownUnit.
    """
    with h5file.opened(path) as file, explain_read_errors(path):
        names = _groups(path, file)
        return tuple(_header(path, file, name, name if len(names) > 1 else "") for name in names)


@contextmanager
def opened(path: Path, inside: str) -> Iterator[Read]:
    """One group of particles, ready to be read. Raises UnreadableFile."""
    with h5file.opened(path) as file:
        with explain_read_errors(path):
            name = inside or _groups(path, file)[0]
            position, force = _element(path, file, name, "position"), _element(path, file, name, "force")
            assert position is not None, "groups without positions are no trajectories"
            of_forces = None if force is None else _forces_of(path, position, force)
            boxes = _boxes(path, file, name, position)

        yield joined(path, partial(h5file.read_rows, position.value), of_forces, boxes)


H5MD = Format("h5md", headers, opened)


def _groups(path: Path, file: h5py.File) -> list[str]:
    """The groups of particles with positions that depend on time. Raises UnreadableFile."""
    particles = h5file.group(path, file, "particles")
    names = [] if particles is None else h5file.names(particles)
    found = [name for name in names if h5file.dataset(path, file, f"particles/{name}/position/value") is not None]
    if not found:
        raise unreadable(path, "no group of particles with position/value, in a file that is H5MD")
    return found


def _header(path: Path, file: h5py.File, name: str, inside: str) -> Header:
    position = _element(path, file, name, "position")
    assert position is not None, "groups without positions are no trajectories"
    n_frames, n_atoms = position.value.shape[:2]
    force = _element(path, file, name, "force")
    if force is not None:
        check_array(path, f"force of {name}", force.value, n_atoms)
    return Header(
        n_atoms=n_atoms,
        rows=np.arange(n_frames),
        has_positions=np.ones(n_frames, bool),
        has_forces=np.zeros(n_frames, bool) if force is None else _rows_at(path, position, force) >= 0,
        step=position.step,
        time=position.time,
        length_unit=_unit(position.value, units.length_named),
        force_unit=None if force is None else _unit(force.value, units.force_named),
        inside=inside,
    )


def _element(path: Path, file: h5py.File, name: str, quantity: str) -> _Element | None:
    """A quantity of a group of particles, None where it has none. Raises UnreadableFile, UnknownUnit."""
    place = h5file.group(path, file, f"particles/{name}/{quantity}")
    value = None if place is None else h5file.frames(path, place, "value")
    if place is None or value is None:
        return None
    return _depending(path, place, value)


def _depending(path: Path, place: h5py.Group, value: h5py.Dataset) -> _Element:
    """The value of a group with the steps and times beside it. Raises UnreadableFile, UnknownUnit."""
    step, time = (_moments(path, place, kind, len(value)) for kind in ("step", "time"))
    unit = None if time is None else _unit(place["time"], units.time_named)
    return _Element(
        value,
        None if step is None else step.astype(np.int64),
        None if time is None else time.astype(np.float64) * units.TIME[unit or "ps"],
    )


def _moments(path: Path, place: h5py.Group, kind: str, n_frames: int) -> np.ndarray | None:
    """Steps or times of the frames; one number stands for their spacing, with an offset. Raises UnreadableFile."""
    found = h5file.dataset(path, place, kind)
    if found is None:
        return None
    if found.shape != ():
        return h5file.vector(path, place, kind, n_frames)
    if found.dtype.kind not in "iuf":
        raise unreadable(path, f"{found.name} of type {found.dtype}, not a number")
    return (h5file.number(found, "offset") or 0) + np.arange(n_frames) * found[()]


def _rows_at(path: Path, position: _Element, other: _Element) -> Int64[np.ndarray, "frame"]:
    """For each frame of positions, the row of another quantity at the same moment, -1 where there is none.

    By steps, else by times, each where both have them; where neither is kept of either, the same number of frames is
    taken to mean the same frames. Raises UnreadableFile where moments cannot be compared, or contradict each other.
    """
    alike = _alike(position.step, other.step), _alike(position.time, other.time)
    if False not in alike and True in alike:
        return np.arange(len(position.value))
    if position.step is not None and other.step is not None:
        rows = _rows_of(position.step, other.step, 0.0)
        times = position.time, other.time
        if times[0] is not None and times[1] is not None and not _same_moments(times[0], times[1], rows):
            raise unreadable(path, f"{position.value.name} and {other.value.name} at the same steps and other times")
        return rows
    if position.time is not None and other.time is not None:
        gaps = np.concatenate([np.diff(position.time), np.diff(other.time)])
        near = max(rounding(position.time), rounding(other.time))
        if len(gaps) and not gaps.min() > 2 * near:
            raise unreadable(path, f"times of {position.value.name} or {other.value.name} that tell no frames apart")
        return _rows_of(position.time, other.time, max(near, UNEVEN * float(gaps.min()) if len(gaps) else 0.0))
    kept = [values is not None for of in (position, other) for values in (of.step, of.time)]
    if any(kept) or len(position.value) != len(other.value):
        raise unreadable(path, f"neither steps nor times by which {other.value.name} could belong to the positions")
    return np.arange(len(position.value))


def _alike(first: np.ndarray | None, second: np.ndarray | None) -> bool | None:
    """Whether all steps, or all times, are the same; None where they cannot be compared."""
    return None if first is None or second is None else bool(np.array_equal(first, second))


def _rows_of(wanted: np.ndarray, there: np.ndarray, near: float) -> Int64[np.ndarray, "frame"]:
    """For each value the row of one that lies near it, the last of equal ones; -1 where there is none."""
    order = np.argsort(there, kind="stable")
    place = np.searchsorted(there[order], wanted + near, side="right") - 1
    rows = order[place.clip(0)]
    return np.where((place >= 0) & (np.abs(there[rows] - wanted) <= near), rows, -1)


def _same_moments(wanted: np.ndarray, there: np.ndarray, rows: Int64[np.ndarray, "frame"]) -> bool:
    met = rows >= 0
    gaps = np.abs(np.diff(wanted))
    near = max(rounding(wanted), rounding(there), UNEVEN * float(np.median(gaps)) if len(gaps) else 0.0)
    return bool((np.abs(there[rows] - wanted)[met] <= near).all())


def _forces_of(path: Path, position: _Element, force: _Element) -> Part:
    rows_of_forces = _rows_at(path, position, force)
    return lambda rows, atoms: h5file.read_rows(force.value, rows_of_forces[rows], atoms)


class _Boxes:
    """Cell vectors of frames: fixed, or a row for each frame of positions."""

    def __init__(self, edges: h5py.Dataset, rows: Int64[np.ndarray, "frame"] | None, factor: float) -> None:
        self._edges, self._rows, self._factor = edges, rows, factor

    def __call__(self, rows: Int64[np.ndarray, "frame"]) -> Float[np.ndarray, "frame 3 3"]:
        if self._rows is None:
            edges = np.repeat(self._edges[:][None], len(rows), axis=0)
        else:
            edges = h5file.read_rows(self._edges, self._rows[rows])
        vectors = edges if edges.ndim == 3 else edges[:, :, None] * np.eye(3)
        return vectors.astype(np.float64) * self._factor


def _boxes(path: Path, file: h5py.File, name: str, position: _Element) -> _Boxes | None:
    """The cells of a group of particles, None where it is not periodic. Raises UnreadableFile, UnknownUnit."""
    place = f"particles/{name}/box/edges"
    length_unit = _unit(position.value, units.length_named)
    fixed = h5file.dataset(path, file, place)
    if fixed is not None:
        if fixed.shape not in ((3,), (3, 3)) or fixed.dtype.kind != "f":
            raise unreadable(path, f"{place} of shape {fixed.shape}, not (3, 3)")
        return _Boxes(fixed, None, _factor(fixed, length_unit))
    group = h5file.group(path, file, place)
    value = None if group is None else h5file.dataset(path, group, "value")
    if group is None or value is None:
        return None
    if value.shape[1:] not in ((3,), (3, 3)) or value.dtype.kind != "f":
        raise unreadable(path, f"{place}/value of shape {value.shape}, not (frame, 3, 3)")
    rows = _rows_at(path, position, _depending(path, group, value))
    if (rows < 0).any():
        raise unreadable(path, f"{place} at other steps than the positions")
    return _Boxes(value, rows, _factor(value, length_unit))


def _factor(edges: h5py.Dataset, length_unit: str | None) -> float:
    """From the unit of the box to that of the positions; one that is not stated is the same."""
    unit = _unit(edges, units.length_named)
    return 1.0 if unit is None or length_unit is None else units.LENGTH[unit] / units.LENGTH[length_unit]


def _unit(found: h5py.Dataset, named: Callable[[str], str]) -> str | None:
    unit = h5file.text(found, "unit")
    return None if unit is None else named(unit)
