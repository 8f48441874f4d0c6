"""Amber NetCDF: positions in Angstrom, forces in kcal/mol/Angstrom, times in ps; often forces in a file of their own.

Variables coordinates and forces (frame atom spatial), time (frame), cell_lengths and cell_angles (frame 3), temp0
(frame), each with its unit, and with a scale_factor where its numbers are to be multiplied
(https://ambermd.org/netcdf/nctraj.xhtml). The files are NetCDF-3, or NetCDF-4, which is HDF5.

The NetCDF-3 header is read here (https://docs.unidata.ucar.edu/netcdf-c/current/file_format_specifications.html), as
libraries refuse a file of which the last frame is cut off, or map it: one cut while it is read then ends the process.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float, Int64

from hpc_cg import units
from hpc_cg.archive import h5file
from hpc_cg.archive.cells import box_vectors
from hpc_cg.archive.faults import explain_read_errors, unreadable
from hpc_cg.archive.source import Format, Header, RawFrames, Read
from hpc_cg.archive.trr import Bytes, contiguous, pieces, take
from hpc_cg.errors import UnreadableFile

HEADER_BYTES = 1 << 20
"""Headers are some kB; one that is not over by here is not one of a trajectory."""

SAME_TEMPERATURE_K = 0.01

_WANTED = ("coordinates", "forces", "time", "cell_lengths", "cell_angles", "temp0")
_BLANK = "\0 "
_TYPES = {1: "i1", 2: "S1", 3: ">i2", 4: ">i4", 5: ">f4", 6: ">f8", 7: "u1", 8: ">u2", 9: ">u4", 10: ">i8", 11: ">u8"}
_DIMENSIONS, _VARIABLES, _ATTRIBUTES = 10, 11, 12


@dataclass(frozen=True, eq=False)
class _Variable:
    """One quantity of all frames: shape, unit (empty where none is stated), scale, and how rows of it are read."""

    shape: tuple[int, ...]
    kind: str
    unit: str
    scale: float
    offset: float
    rows: Callable[[Int64[np.ndarray, "frame"], Int64[np.ndarray, "atom"] | None], np.ndarray]

    def values(
        self, rows: Int64[np.ndarray, "frame"], atoms: Int64[np.ndarray, "atom"] | None = None
    ) -> Float[np.ndarray, "frame *rest"]:
        """Rows of it, all atoms or those given, times its scale."""
        found = self.rows(rows, atoms)
        return found if self.scale == 1.0 else found * found.dtype.type(self.scale)


@dataclass(frozen=True, eq=False)
class _Contents:
    variables: dict[str, _Variable]
    n_frames: int
    n_atoms: int
    note: str


def headers(path: Path) -> tuple[Header, ...]:
    """What the file says of its frames. Raises UnreadableFile, UnknownUnit."""
    with ExitStack() as stack, explain_read_errors(path):
        contents = _contents(path, stack)
        found = contents.variables
        numbers = np.arange(contents.n_frames)
        time = found.get("time")
        in_ps = 1.0 if time is None else units.TIME[units.time_named(time.unit or "ps")]
        return (
            Header(
                n_atoms=contents.n_atoms,
                rows=numbers,
                has_positions=np.full(contents.n_frames, "coordinates" in found),
                has_forces=np.full(contents.n_frames, "forces" in found),
                time=None if time is None else time.values(numbers).astype(np.float64) * in_ps,
                temperature_K=_temperature(path, found.get("temp0"), numbers),
                length_unit=units.length_named(found["coordinates"].unit or "angstrom")
                if "coordinates" in found
                else None,
                force_unit=units.force_named(found["forces"].unit or "kcal/mol/angstrom")
                if "forces" in found
                else None,
                note=contents.note,
            ),
        )


@contextmanager
def opened(path: Path, inside: str) -> Iterator[Read]:
    """The file, ready to be read in its own precision. Raises UnreadableFile."""
    with ExitStack() as stack:
        with explain_read_errors(path):
            contents = _contents(path, stack)

        def read(
            rows: Int64[np.ndarray, "frame"], atoms: Int64[np.ndarray, "atom"] | None, positions: bool, forces: bool
        ) -> RawFrames:
            with explain_read_errors(path):
                if len(rows) and not (rows.min() >= 0 and rows.max() < contents.n_frames):
                    raise IndexError(f"frames {rows.min()} to {rows.max()} of {contents.n_frames}")
                return RawFrames(
                    positions=contents.variables["coordinates"].values(rows, atoms) if positions else None,
                    forces=contents.variables["forces"].values(rows, atoms) if forces else None,
                    cell=_cell(contents.variables, rows),
                )

        yield read


NETCDF = Format("netcdf", headers, opened)


def _cell(variables: dict[str, _Variable], rows: Int64[np.ndarray, "frame"]) -> Float[np.ndarray, "frame 3 3"] | None:
    if not {"cell_lengths", "cell_angles"} <= variables.keys():
        return None
    lengths, angles = (variables[name].values(rows) for name in ("cell_lengths", "cell_angles"))
    return box_vectors(lengths, angles) if lengths.any() else None


def _temperature(path: Path, found: _Variable | None, rows: Int64[np.ndarray, "frame"]) -> float | None:
    """The one temperature of all frames, None where the file knows none. Raises UnreadableFile for several."""
    if found is None:
        return None
    kelvin = found.values(rows)
    if not np.ptp(kelvin) <= SAME_TEMPERATURE_K:
        raise UnreadableFile(
            f"reading {path}",
            f"frames at temperatures from {kelvin.min():g} to {kelvin.max():g} K, as replica exchange writes them",
            "sort them by temperature into files of one each, e.g. with cpptraj's ensemble and remdtraj",
        )
    return float(kelvin[0]) if kelvin[0] > 0 else None


def _contents(path: Path, stack: ExitStack) -> _Contents:
    """What is needed of a file, checked: shapes agree, and the file is as large as they say. Raises UnreadableFile."""
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"\x89HDF":
        variables, note = _hdf5(path, stack.enter_context(h5file.opened(path))), ""
    else:
        variables, note = _classic(stack.enter_context(Bytes.of(path)))
    frames = {name: variables[name].shape for name in ("coordinates", "forces") if name in variables}
    if not frames:
        raise unreadable(path, "neither coordinates nor forces in it")
    shapes = set(frames.values())
    shape = shapes.pop()
    if shapes or len(shape) != 3 or shape[2] != 3 or shape[1] < 1:
        raise unreadable(path, f"{' and '.join(f'{name} of shape {shape}' for name, shape in frames.items())}")
    if not shape[0]:
        raise unreadable(path, note.replace("last", "first") or "no frames in it")
    wanted = {"time": shape[:1], "temp0": shape[:1], "cell_lengths": (shape[0], 3), "cell_angles": (shape[0], 3)}
    for name, found in variables.items():
        if found.kind != "f" or found.shape != wanted.get(name, shape):
            raise unreadable(path, f"{name} of shape {found.shape}, not {wanted.get(name, shape)} of floats")
        if found.offset or not 0 < found.scale < np.inf:
            raise unreadable(path, f"{name} times {found.scale:g} plus {found.offset:g}, which is not supported")
    unit_of = {name: found.unit for name, found in variables.items()}
    if unit_of.get("cell_lengths") not in (None, "", unit_of.get("coordinates", unit_of.get("cell_lengths"))):
        raise unreadable(path, f"cell_lengths in {unit_of['cell_lengths']}, unlike coordinates")
    if not (unit_of.get("cell_angles") or "degree").startswith("deg"):
        raise unreadable(path, f"cell_angles in {unit_of['cell_angles']}, not in degrees")
    return _Contents(variables, shape[0], shape[1], note)


def _hdf5(path: Path, file: h5py.File) -> dict[str, _Variable]:
    """The variables of a NetCDF-4 file. Raises UnreadableFile."""
    found = {}
    for name in _WANTED:
        of_atoms = name in ("coordinates", "forces")
        values = h5file.frames(path, file, name) if of_atoms else h5file.dataset(path, file, name)
        if values is not None:
            found[name] = _Variable(
                shape=values.shape,
                kind=values.dtype.kind,
                unit=(h5file.text(values, "units") or "").strip(_BLANK),
                scale=_or_default(h5file.number(values, "scale_factor"), 1.0),
                offset=_or_default(h5file.number(values, "add_offset"), 0.0),
                rows=partial(_hdf5_rows, values),
            )
    return found


def _or_default(stated: float | None, default: float) -> float:
    return default if stated is None else stated


def _hdf5_rows(
    values: h5py.Dataset, rows: Int64[np.ndarray, "frame"], atoms: Int64[np.ndarray, "atom"] | None
) -> np.ndarray:
    if values.ndim < 2:
        return np.asarray(values[:])[rows]
    found = h5file.read_rows(values, rows, atoms)
    return found.astype(found.dtype.newbyteorder("="), copy=False)


@dataclass(frozen=True)
class _Place:
    """A variable as a NetCDF-3 header describes it; the first length of its shape is 0 where it is in records."""

    shape: tuple[int, ...]
    dtype: np.dtype
    attributes: dict[str, Any]
    begin: int

    @property
    def in_records(self) -> bool:
        return self.shape[:1] == (0,)

    @property
    def frame_bytes(self) -> int:
        return prod(self.shape[1:]) * self.dtype.itemsize


def _classic(file: Bytes) -> tuple[dict[str, _Variable], str]:
    """The variables of a NetCDF-3 file, and what is wrong with its end. Raises UnreadableFile."""
    n_declared, places = _ClassicHeader(file).contents()
    records = [place for place in places.values() if place.in_records]
    padded = [place.frame_bytes + -place.frame_bytes % 4 for place in records]
    record_bytes = sum(padded) if len(records) != 1 else records[0].frame_bytes
    begin = min((place.begin for place in records), default=0)
    n_whole, cut_bytes = divmod(max(file.size - begin, 0), max(record_bytes, 1))
    n_records = n_whole if n_declared is None else min(n_whole, n_declared)
    found = {}
    for name in [name for name in _WANTED if name in places]:
        place = places[name]
        shape = (n_records, *place.shape[1:]) if place.in_records else place.shape
        end = place.begin + (place.frame_bytes if place.in_records else prod(shape) * place.dtype.itemsize)
        if end > (begin + record_bytes if place.in_records else file.size):
            raise unreadable(file.path, f"{name} at bytes {place.begin:,} to {end:,}, where it cannot be")
        found[name] = _Variable(
            shape=shape,
            kind=place.dtype.kind,
            unit=place.attributes.get("units", b"").decode("utf-8", "replace").strip(_BLANK),
            scale=float(place.attributes.get("scale_factor", np.ones(1)).item()),
            offset=float(place.attributes.get("add_offset", np.zeros(1)).item()),
            rows=partial(_classic_rows, file, place, record_bytes if place.in_records else place.frame_bytes),
        )
    notes = []
    if cut_bytes and (n_declared is None or n_whole < n_declared):
        notes.append(f"the last frame is cut off: {cut_bytes:,} of {record_bytes:,} bytes")
    if n_declared is not None and n_whole + bool(cut_bytes) < n_declared:
        notes.append(f"{n_whole:,} frames are there, {n_declared:,} as its header says")
    return found, "; ".join(notes)


def _classic_rows(
    file: Bytes,
    place: _Place,
    stride: int,
    rows: Int64[np.ndarray, "frame"],
    atoms: Int64[np.ndarray, "atom"] | None,
) -> np.ndarray:
    starts = place.begin + stride * rows
    if len(place.shape) != 3:
        values = np.empty((len(rows), *place.shape[1:]), place.dtype.newbyteorder("="))
        for first, piece in pieces(file, starts, [(0, place.frame_bytes)]):
            values[first : first + len(piece)] = piece.view(place.dtype).reshape(-1, *place.shape[1:])
        return values
    low, high, chosen = contiguous(atoms, place.shape[1])
    atom_bytes = 3 * place.dtype.itemsize
    span = (0, atom_bytes * (high - low))
    block = np.empty((len(rows), place.shape[1] if atoms is None else len(atoms), 3), place.dtype.newbyteorder("="))
    for first, piece in pieces(file, starts + atom_bytes * low, [span]):
        block[first : first + len(piece)] = take(piece, span, place.dtype, chosen)
    return block


class _ClassicHeader:
    """A NetCDF-3 header, read word by word."""

    def __init__(self, file: Bytes) -> None:
        self._path, self._head, self._at = file.path, file.at(0, HEADER_BYTES), 4
        if self._head[:3] != b"CDF" or self._head[3:4] not in (b"\1", b"\2", b"\5"):
            raise unreadable(file.path, "neither NetCDF-3 nor NetCDF-4")
        self._count_bytes = 8 if self._head[3] == 5 else 4
        self._place_bytes = 4 if self._head[3] == 1 else 8

    def contents(self) -> tuple[int | None, dict[str, _Place]]:
        """Number of records, None where the header leaves it open, and the variables."""
        n_records = self._count()
        lengths = [self._dimension() for _ in range(self._list(_DIMENSIONS))]
        self._attributes()
        places = dict(self._variable(lengths) for _ in range(self._list(_VARIABLES)))
        return None if n_records == (1 << 8 * self._count_bytes) - 1 else n_records, places

    def _dimension(self) -> int:
        """Length of a dimension, 0 for that of records."""
        self._name()
        return self._count()

    def _variable(self, lengths: list[int]) -> tuple[str, _Place]:
        name = self._name()
        dimensions = [self._count() for _ in range(self._count())]
        if any(dimension >= len(lengths) for dimension in dimensions):
            raise self._damaged()
        attributes, dtype = self._attributes(), self._type()
        self._count()  # its size, which follows from its shape, and which large files have no room for
        shape = tuple(lengths[dimension] for dimension in dimensions)
        return name, _Place(shape, dtype, attributes, self._number(self._place_bytes))

    def _attributes(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(self._list(_ATTRIBUTES)):
            name, dtype, n_values = self._name(), self._type(), self._count()
            values = self._padded(n_values * dtype.itemsize)
            found[name] = values if dtype.kind == "S" else np.frombuffer(values, dtype)
        return found

    def _list(self, tag: int) -> int:
        """Length of a list of dimensions, attributes or variables."""
        found, length = self._number(4), self._count()
        if found != tag and (found or length):
            raise self._damaged()
        return length

    def _type(self) -> np.dtype:
        code = self._number(4)
        if code not in _TYPES:
            raise self._damaged()
        return np.dtype(_TYPES[code])

    def _name(self) -> str:
        return self._padded(self._count()).decode("utf-8", "replace")

    def _count(self) -> int:
        return self._number(self._count_bytes)

    def _number(self, n_bytes: int) -> int:
        return int.from_bytes(self._padded(n_bytes), "big")

    def _padded(self, n_bytes: int) -> bytes:
        """The next bytes; what follows begins at a multiple of four."""
        found = self._head[self._at : self._at + n_bytes]
        if len(found) < n_bytes:
            raise unreadable(self._path, "a NetCDF header that is cut off")
        self._at += n_bytes + -n_bytes % 4
        return found

    def _damaged(self) -> UnreadableFile:
        return unreadable(self._path, f"a NetCDF header that is damaged at byte {self._at:,}")
