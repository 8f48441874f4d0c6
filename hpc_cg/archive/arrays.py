"""Numpy arrays of frames: a npy file of one quantity, or a npz file with several under names that tell them apart.

    npy   (frame, atom, 3) of positions or of forces, as X_coordinates.npy and X_forces.npy lie beside one another
    npz   positions, coordinates, coords, xyz or R; forces, force, Fs or F (optional), both (frame, atom, 3);
          time (frame; ps), step (frame), cell (frame 3 3), (3 3), (frame 3) or (3) (optional)

Neither says its units. Objects are never unpickled, and what a header claims is compared with the size of the file
before memory is asked for. Arrays that lie in the file as they are get mapped; compressed ones are decompressed in
order, so that no more is held than a block, and frames that are passed over cost their decompression only.
"""

import struct
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64

from hpc_cg.archive.faults import check_array, explain_read_errors, unreadable
from hpc_cg.archive.parts import CellPart, Part, joined
from hpc_cg.archive.source import Format, Header, Read

POSITIONS = ("positions", "coordinates", "coords", "xyz", "R")
FORCES = ("forces", "force", "Fs", "F")
MAX_EXPANSION = 1100
"""Bytes that one compressed byte can stand for: deflate reaches 1,032."""

LOCAL_HEADER = 30
"""Bytes of a zip member's header before its name; lengths of name and extra field are its last two numbers."""


@dataclass(frozen=True)
class _Shape:
    """What the header of an array says, and the byte at which its numbers begin."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    start: int

    @property
    def n_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def npy_headers(path: Path) -> tuple[Header, ...]:
    """The one quantity of a npy file; it is called positions here whatever it is. Raises UnreadableFile."""
    with explain_read_errors(path):
        n_frames, n_atoms = check_array(path, "the array", _mapped(path))
    return (_header(n_atoms, n_frames, has_positions=True, has_forces=False),)


@contextmanager
def npy_opened(path: Path, inside: str) -> Iterator[Read]:
    """A npy file, ready to be read. Raises UnreadableFile."""
    with explain_read_errors(path):
        array = _mapped(path)
        check_array(path, "the array", array)
    yield joined(path, partial(_picked, array), None, None)


def npz_headers(path: Path) -> tuple[Header, ...]:
    """What a npz file holds. Raises UnreadableFile."""
    with explain_read_errors(path), zipfile.ZipFile(path) as archive:
        members = _members(path, archive)
        sizes = [
            check_array(path, name, _member_shape(path, archive, members[name])) if name else None
            for name in _both_names(path, members)
        ]
        known = [size for size in sizes if size is not None]
        if known[0] != known[-1]:
            raise unreadable(path, f"positions of {known[0]} frames and atoms, forces of {known[-1]}")
        n_frames, n_atoms = known[0]
        time, step = (_vector(path, archive, members, name, n_frames) for name in ("time", "step"))
    return (
        _header(
            n_atoms,
            n_frames,
            has_positions=sizes[0] is not None,
            has_forces=sizes[1] is not None,
            time=None if time is None else time.astype(np.float64),
            step=None if step is None else step.astype(np.int64),
        ),
    )


@contextmanager
def npz_opened(path: Path, inside: str) -> Iterator[Read]:
    """A npz file, ready to be read; each array is decompressed once if rows ascend from call to call."""
    with ExitStack() as stack:
        with explain_read_errors(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            members = _members(path, archive)
            names = _both_names(path, members)
            positions, forces = (
                None if name is None else _frames(path, archive, members[name], stack) for name in names
            )
            cell = _cell(path, archive, members)
        yield joined(path, positions, forces, cell)


NPY = Format("npy", npy_headers, npy_opened)
NPZ = Format("npz", npz_headers, npz_opened)


def _header(
    n_atoms: int,
    n_frames: int,
    *,
    has_positions: bool,
    has_forces: bool,
    time: np.ndarray | None = None,
    step: np.ndarray | None = None,
) -> Header:
    return Header(
        n_atoms=n_atoms,
        rows=np.arange(n_frames),
        has_positions=np.full(n_frames, has_positions),
        has_forces=np.full(n_frames, has_forces),
        time=time,
        step=step,
    )


def _read_shape(path: Path, name: str, file: Any, size: int) -> _Shape:
    """The header of an array that begins where ``file`` stands and has ``size`` bytes, header and all.

    Raises UnreadableFile where the header claims more than follows, or asks for Python objects.
    """
    begin = file.tell()
    version = np.lib.format.read_magic(file)
    parsers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in parsers:
        raise unreadable(path, f"{name} in version {version} of the npy format, which is not known")
    try:
        shape, fortran, dtype = parsers[version](file)
    except (MemoryError, TokenError) as error:  # of Python's parser: nested too deeply, or never closed
        raise unreadable(path, f"{name} with a header that cannot be read") from error
    if dtype.hasobject:
        raise unreadable(path, f"{name} of Python objects, which are not loaded")
    found = _Shape(shape, dtype, fortran, file.tell() - begin)
    left = size - found.start
    if min(shape, default=1) < 0 or found.n_bytes > left:
        raise unreadable(path, f"{name} of shape {shape}, {found.n_bytes:,} bytes where {left:,} follow")
    return found


def _mapped(path: Path, begin: int = 0, size: int | None = None, name: str = "the array") -> np.memmap:
    """An array that lies in a file as it is: a view that reads what is looked at. Raises UnreadableFile."""
    with path.open("rb") as file:
        file.seek(begin)
        found = _read_shape(path, name, file, path.stat().st_size - begin if size is None else size)
    if not found.n_bytes:
        raise unreadable(path, f"{name} of shape {found.shape}, with nothing in it")
    order: Literal["C", "F"] = "F" if found.fortran else "C"
    return np.memmap(path, found.dtype, "r", offset=begin + found.start, shape=found.shape, order=order)


def _picked(array: Any, rows: Int64[np.ndarray, "frame"], atoms: Int64[np.ndarray, "atom"] | None) -> np.ndarray:
    """Frames of a mapped array, in memory."""
    if rows[0] < 0 or rows[-1] >= len(array):
        raise IndexError(f"frames {rows[0]} to {rows[-1]} of {len(array)}")
    if not array.flags.c_contiguous:
        return np.array(array[rows] if atoms is None else array[rows[:, None], atoms])
    # read and not copied from the map: a file that shrinks meanwhile is an error then, and not the end of the process
    parts = []
    for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
        wanted = (len(run), *array.shape[1:])
        start = array.offset + int(run[0]) * array[0].nbytes
        part = np.fromfile(array.filename, array.dtype, prod(wanted), offset=start)
        if part.size < prod(wanted):
            raise EOFError(f"it ends before frame {run[-1]}")
        part = part.reshape(wanted)
        parts.append(part if atoms is None else part[:, atoms])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The arrays of a npz file by name; raises UnreadableFile for what numpy does not write."""
    entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
    members = {entry.filename.removesuffix(".npy"): entry for entry in entries}
    if len(members) < len(entries):
        raise unreadable(path, "two arrays of one name")
    for name, entry in members.items():
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise unreadable(path, f"{name} compressed by method {entry.compress_type}, which numpy does not write")
        if entry.file_size > MAX_EXPANSION * path.stat().st_size:
            raise unreadable(path, f"{name} of {entry.file_size:,} bytes in a file of {path.stat().st_size:,}")
    return members


def _named(path: Path, members: dict[str, zipfile.ZipInfo], candidates: tuple[str, ...]) -> str | None:
    """The one of the names that is there, None where none is. Raises UnreadableFile where two are."""
    found = [name for name in candidates if name in members]
    if len(found) > 1:
        raise unreadable(path, f"both {found[0]!r} and {found[1]!r}, of which only one can be meant")
    return found[0] if found else None


def _both_names(path: Path, members: dict[str, zipfile.ZipInfo]) -> tuple[str | None, str | None]:
    """The names of positions and of forces; raises UnreadableFile where there are neither."""
    found = _named(path, members, POSITIONS), _named(path, members, FORCES)
    if found == (None, None):
        raise unreadable(path, f"no array {' or '.join(POSITIONS)} (there is {', '.join(members) or 'nothing'})")
    return found


def _member_shape(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> _Shape:
    with archive.open(entry) as file:
        return _read_shape(path, entry.filename, file, entry.file_size)


def _frames(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, stack: ExitStack) -> Part:
    """Frames of one member: mapped where it is stored, decompressed as they come where it is not."""
    if entry.compress_type == zipfile.ZIP_STORED:
        array = _mapped(path, _begin(path, archive, entry), entry.file_size, entry.filename)
        return partial(_picked, array)
    file = stack.enter_context(archive.open(entry))
    found = _read_shape(path, entry.filename, file, entry.file_size)
    if found.fortran:
        raise unreadable(path, f"{entry.filename} compressed in Fortran order, of which no frame can be read by itself")
    _, n_atoms, _ = found.shape
    frame_bytes = n_atoms * 3 * found.dtype.itemsize

    def frames(rows: np.ndarray, atoms: np.ndarray | None) -> np.ndarray:
        parts = []
        for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
            file.seek(found.start + int(run[0]) * frame_bytes)
            content = file.read(len(run) * frame_bytes)
            if len(content) < len(run) * frame_bytes:
                raise EOFError(f"{entry.filename} ends before frame {run[-1]}")
            part = np.frombuffer(content, found.dtype).reshape(-1, n_atoms, 3)
            parts.append(part if atoms is None else part[:, atoms])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    return frames


def _begin(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> int:
    """The byte at which a stored member begins. Raises UnreadableFile."""
    archive.open(entry).close()  # compares the two headers that a zip file keeps of a member
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        lengths = struct.unpack("<HH", file.read(LOCAL_HEADER)[-4:])
    begin = entry.header_offset + LOCAL_HEADER + sum(lengths)
    if begin + entry.file_size > path.stat().st_size:
        raise unreadable(path, f"{entry.filename} cut off")
    return begin


def _vector(
    path: Path, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], name: str, n_frames: int
) -> np.ndarray | None:
    """A number per frame, None where there is none of that name. Raises UnreadableFile for another shape."""
    if name not in members:
        return None
    found = _small(path, archive, members[name], n_frames)
    if found.shape != (n_frames,) or found.dtype.kind not in ("iu" if name == "step" else "iuf"):
        raise unreadable(path, f"{name} of shape {found.shape} and type {found.dtype}, not a number for each frame")
    return found


def _cell(path: Path, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> CellPart | None:
    """Cell vectors of frames, None where there are none. Raises UnreadableFile for another shape."""
    if "cell" not in members:
        return None
    first = next(name for name in _both_names(path, members) if name)
    n_frames = _member_shape(path, archive, members[first]).shape[0]
    found = _small(path, archive, members["cell"], 9 * n_frames)
    if found.dtype.kind != "f" or found.shape not in ((3, 3), (3,), (n_frames, 3, 3), (n_frames, 3)):
        raise unreadable(path, f"cell of shape {found.shape}, not ({n_frames}, 3, 3) or (3, 3)")
    lengths = found.shape != (3, 3) and found.ndim < 3
    vectors = found.reshape(-1, 3)[:, :, None] * np.eye(3) if lengths else found.reshape(-1, 3, 3)
    return lambda rows: vectors[rows if len(vectors) > 1 else np.zeros_like(rows)]


def _small(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, most: int) -> np.ndarray:
    """A whole array of no more than ``most`` numbers (9 at least). Raises UnreadableFile."""
    with archive.open(entry) as file:
        found = _read_shape(path, entry.filename, file, entry.file_size)
        if prod(found.shape) > max(most, 9) or found.dtype.itemsize > 16:
            raise unreadable(path, f"{entry.filename} of shape {found.shape}, more than there are frames")
        content = file.read(found.n_bytes)
    if len(content) < found.n_bytes:
        raise unreadable(path, f"{entry.filename} cut off")
    return np.frombuffer(content, found.dtype).reshape(found.shape, order="F" if found.fortran else "C")
