"""HDF5 trajectories of two kinds: those that this project writes, and those of MDTraj.

    this project   `positions` (frame atom 3), `forces` (the same, optional), `potential` and `time` (frame, optional);
                   attributes, all optional: `stride_ps`, `temperature_K`, `units` ("nm, ps, kJ/mol/nm": length, time
                   and force, in any order) and `written`, the number of frames that are complete
    MDTraj         `coordinates` (frame atom 3) in nm, `time` (frame) in ps, `cell_lengths`, `cell_angles` (frame 3),
                   attributes `units` on each; `forces`, which the convention does not know and some tools add
                   (https://mdtraj.org/latest/hdf5_format.html)

Which of the kinds, or of those in h5md.py and mdcath.py, a file is, is told by what it holds.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpc_cg import units
from hpc_cg.archive import h5file
from hpc_cg.archive.cells import box_vectors
from hpc_cg.archive.faults import check_array, explain_read_errors, unreadable
from hpc_cg.archive.parts import joined
from hpc_cg.archive.source import Format, Header, Read
from hpc_cg.errors import UnknownUnit


def layout(path: Path) -> str:
    """The format (formats.format_named) of an HDF5 file; "h5" also where it is none. Raises UnreadableFile."""
    from hpc_cg.archive.mdcath import trajectories

    with h5file.opened(path) as file, explain_read_errors(path):
        if h5file.has(file, "positions") or h5file.has(file, "coordinates"):
            return "h5"
        if h5file.has(file, "h5md"):
            return "h5md"
        return "mdcath" if next(trajectories(path, file), None) else "h5"


def headers(path: Path) -> tuple[Header, ...]:
    """What the file says of its one trajectory. Raises UnreadableFile, UnknownUnit."""
    with h5file.opened(path) as file, explain_read_errors(path):
        return (_own(path, file) if h5file.has(file, "positions") else _mdtraj(path, file),)


@contextmanager
def opened(path: Path, inside: str) -> Iterator[Read]:
    """The file, ready to be read. Raises UnreadableFile."""
    with h5file.opened(path) as file:
        with explain_read_errors(path):
            positions = _positions(path, file)
            forces = h5file.dataset(path, file, "forces")
            cell = None if h5file.has(file, "positions") else _cell(path, file, len(positions))

        yield joined(
            path,
            partial(h5file.read_rows, positions),
            None if forces is None else partial(h5file.read_rows, forces),
            None if cell is None else lambda rows: box_vectors(*(h5file.read_rows(part, rows) for part in cell)),
        )


HDF5 = Format("h5", headers, opened)


def _own(path: Path, file: h5py.File) -> Header:
    positions = _positions(path, file)
    n_frames, n_atoms = positions.shape[:2]
    stated_frames = h5file.number(file, "written")
    written = n_frames if stated_frames is None else int(stated_frames)
    if not 0 < written <= n_frames:
        raise unreadable(path, f"{written} written frames, as its attribute says, of {n_frames}")
    length_unit, time_unit, force_unit = _own_units(h5file.text(file, "units") or "")
    time = h5file.vector(path, file, "time", n_frames)
    if time is not None:
        time_unit = _stated(file["time"], units.time_named) or time_unit or "ps"
        time = time[:written].astype(np.float64) * units.TIME[time_unit]
    h5file.frames(path, file, "positions", n_frames=written)
    return _header(
        n_atoms=n_atoms,
        n_frames=written,
        has_forces=_has_forces(path, file, n_atoms, n_frames, written),
        stride_ps=h5file.number(file, "stride_ps"),
        temperature_K=h5file.number(file, "temperature_K"),
        time=time,
        length_unit=length_unit,
        force_unit=force_unit,
    )


def _own_units(text: str) -> tuple[str | None, str | None, str | None]:
    """Units of length, time and force out of a list of words in any order. Raises UnknownUnit for any other word."""
    found: dict[str, str] = {}
    for word in filter(None, (word.strip() for word in text.split(","))):
        kind, unit = _meant(word)
        if found.setdefault(kind, unit) != unit:
            raise UnknownUnit(f"the {kind} unit of a source", f"both {found[kind]!r} and {word!r}", "state one of them")
    return found.get("length"), found.get("time"), found.get("force")


def _meant(word: str) -> tuple[str, str]:
    """Which quantity a word is a unit of, and the unit. Raises UnknownUnit."""
    for kind, named in (("length", units.length_named), ("time", units.time_named), ("force", units.force_named)):
        with suppress(UnknownUnit):
            return kind, named(word)
    known = ", ".join((*units.LENGTH, *units.TIME, *units.FORCE))
    raise UnknownUnit("the units of a source", f"{word!r}", f"use some of {known}")


def _mdtraj(path: Path, file: h5py.File) -> Header:
    coordinates = _positions(path, file)
    n_frames, n_atoms = coordinates.shape[:2]
    h5file.frames(path, file, "coordinates")
    has_forces = _has_forces(path, file, n_atoms, n_frames, n_frames)
    time = h5file.vector(path, file, "time", n_frames)
    time_unit = "ps" if time is None else _stated(file["time"], units.time_named) or "ps"
    return _header(
        n_atoms=n_atoms,
        n_frames=n_frames,
        has_forces=has_forces,
        time=None if time is None else time.astype(np.float64) * units.TIME[time_unit],
        length_unit=_length_unit(coordinates),
        force_unit=_stated(file["forces"], units.force_named) if has_forces else None,
    )


def _header(n_atoms: int, n_frames: int, has_forces: bool, **stated: Any) -> Header:
    return Header(
        n_atoms=n_atoms,
        rows=np.arange(n_frames),
        has_positions=np.ones(n_frames, bool),
        has_forces=np.full(n_frames, has_forces),
        **stated,
    )


def _positions(path: Path, file: h5py.File) -> h5py.Dataset:
    name = "positions" if h5file.has(file, "positions") else "coordinates"
    found = h5file.dataset(path, file, name)
    if found is None:
        there = ", ".join(h5file.names(file)[:10]) or "nothing"
        raise unreadable(path, f"no dataset 'positions' or 'coordinates' (there is {there})")
    check_array(path, name, found)
    return found


def _has_forces(path: Path, file: h5py.File, n_atoms: int, n_frames: int, used: int) -> bool:
    found = h5file.frames(path, file, "forces", n_atoms, used)
    if found is not None and len(found) != n_frames:
        raise unreadable(path, f"{n_frames} frames of positions and {len(found)} of forces")
    return found is not None


def _stated(found: h5py.Dataset, named: Callable[[str], str]) -> str | None:
    unit = h5file.text(found, "units")
    return None if unit is None else named(unit)


def _length_unit(coordinates: h5py.Dataset) -> str | None:
    """The unit stated, or nanometres where the file declares that it follows the convention."""
    convention = h5file.text(coordinates.file, "conventions") or ""
    return _stated(coordinates, units.length_named) or ("nm" if "Pande" in convention else None)


def _cell(path: Path, file: h5py.File, n_frames: int) -> tuple[h5py.Dataset, h5py.Dataset] | None:
    """Lengths and angles, None where the file has no cell. Raises UnreadableFile."""
    lengths, angles = (h5file.dataset(path, file, name) for name in ("cell_lengths", "cell_angles"))
    if lengths is None or angles is None:
        return None
    for found in (lengths, angles):
        if found.shape != (n_frames, 3) or found.dtype.kind != "f":
            raise unreadable(path, f"{found.name} of shape {found.shape}, not ({n_frames}, 3)")
    if _stated(lengths, units.length_named) != _stated(file["coordinates"], units.length_named):
        raise unreadable(path, "cell lengths in another unit than coordinates")
    return lengths, angles
