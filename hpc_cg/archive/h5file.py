"""HDF5 files that others wrote, opened so that they can do no harm.

An HDF5 file can point at other files (external links, external storage, virtual datasets), and so make a reader open
whatever its rights allow: these are refused. Arrays may be declared larger than anything that was written: sizes are
compared with the file's before memory is asked for. What remains is the library's own: strings of variable length that
were tampered with can make it ask for up to 4 GB, or never return.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Int64

from hpc_cg.archive.faults import check_array, explain_read_errors, unreadable

MAX_EXPANSION = 1100
"""Bytes that one byte of a file can stand for: deflate, the densest of the usual filters, reaches 1,032."""

MAX_ATTRIBUTE_BYTES = 1 << 20
PLAIN = (h5py.h5t.TypeStringID, h5py.h5t.TypeIntegerID, h5py.h5t.TypeFloatID)
"""Types of attributes that are read."""

MAX_CHUNK_BYTES = 1 << 30
"""A chunk is decompressed as a whole, so its size bounds the memory of a reader."""


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """The file, for reading. Raises UnreadableFile where it cannot be opened; what comes later is the caller's."""
    with explain_read_errors(path):
        file = h5py.File(path, "r")
    try:
        yield file
    finally:
        file.close()


def member(path: Path, parent: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
    """The object at ``name`` below ``parent``, None where there is none.

    Raises UnreadableFile where the way there leads out of the file.
    """
    return _followed(path, parent, name, links_left=8)


def group(path: Path, parent: h5py.Group, name: str) -> h5py.Group | None:
    """The group at ``name``, None where there is no such group."""
    found = member(path, parent, name)
    return found if isinstance(found, h5py.Group) else None


def names(parent: h5py.Group) -> list[str]:
    """Names of what a group holds, but for those that are no text."""
    return [name for name in parent if isinstance(name, str)]


def has(parent: h5py.Group, name: str) -> bool:
    """Whether a link of that name is there; follows none, which ``in`` does."""
    return parent.get(name, getlink=True, default=None) is not None


def dataset(path: Path, parent: h5py.Group, name: str) -> h5py.Dataset | None:
    """The dataset at ``name``, of a size that the file can hold; None where there is no such dataset."""
    found = member(path, parent, name)
    if not isinstance(found, h5py.Dataset):
        return None
    if found.is_virtual or found.external:
        raise unreadable(path, f"{found.name}, whose values lie in other files, which is not followed")
    declared = prod(found.shape or ()) * found.dtype.itemsize
    if declared > MAX_EXPANSION * path.stat().st_size:
        raise unreadable(path, f"{found.name} of {declared:,} bytes in a file of {path.stat().st_size:,}")
    if found.chunks and prod(found.chunks) * found.dtype.itemsize > MAX_CHUNK_BYTES:
        raise unreadable(path, f"{found.name} in chunks of more than {MAX_CHUNK_BYTES >> 20} MB")
    return found


def frames(
    path: Path, parent: h5py.Group, name: str, n_atoms: int | None = None, n_frames: int | None = None
) -> h5py.Dataset | None:
    """A dataset of (frame, atom, 3) floats whose first ``n_frames`` frames (None for all) were written."""
    found = dataset(path, parent, name)
    if found is None:
        return None
    length, _ = check_array(path, str(found.name).lstrip("/"), found, n_atoms)
    if found.chunks:
        n_used = min(length, n_frames or length)
        needed = prod(-(-n // chunk) for n, chunk in zip((n_used, *found.shape[1:]), found.chunks, strict=True))
        written = found.id.get_num_chunks() >= needed
    else:
        written = found.id.get_storage_size() >= found.nbytes
    if not written:
        raise unreadable(path, f"frames of {found.name} that were never written")
    return found


def read_rows(
    found: h5py.Dataset, rows: Int64[np.ndarray, "frame"], atoms: Int64[np.ndarray, "atom"] | None = None
) -> np.ndarray:
    """Frames at rows in any order, all atoms or those given; each chunk is read once, whole."""
    if rows.min() < 0 or rows.max() >= len(found):
        raise IndexError(f"frames {rows.min()} to {rows.max()} of {len(found)}")
    if (np.diff(rows) < 0).any():
        ascending, places = np.unique(rows, return_inverse=True)
        return read_rows(found, ascending, atoms)[places]
    low, high = (0, found.shape[1]) if atoms is None else (int(atoms[0]), int(atoms[-1]) + 1)
    chosen = slice(None) if atoms is None else atoms - low
    if (np.diff(rows) == 1).all():
        return found[rows[0] : rows[-1] + 1, low:high][:, chosen]
    length = found.chunks[0] if found.chunks else 1
    parts = np.split(rows, np.flatnonzero(np.diff(rows // length)) + 1)
    return np.concatenate([found[part[0] : part[-1] + 1, low:high][part - part[0]][:, chosen] for part in parts])


def vector(path: Path, parent: h5py.Group, name: str, length: int) -> np.ndarray | None:
    """A dataset of ``length`` finite numbers, None where there is none; raises UnreadableFile for another shape."""
    found = dataset(path, parent, name)
    if found is None:
        return None
    if found.shape != (length,) or found.dtype.kind not in "iuf":
        raise unreadable(path, f"{found.name} of shape {found.shape} and type {found.dtype}, not {length} numbers")
    return np.asarray(found[:])


def text(place: h5py.Group | h5py.Dataset, name: str) -> str | None:
    """An attribute that is a string, in one of the many ways that HDF5 keeps them; None where there is none."""
    value = _attribute(place, name)
    if isinstance(value, np.ndarray):
        value = value.item() if value.size == 1 else ""
    return None if value is None else _decoded(value)


def number(place: h5py.Group | h5py.Dataset, name: str) -> float | None:
    """An attribute that is a number, None where there is none."""
    value = _attribute(place, name)
    return None if value is None else float(np.asarray(value).item())


def document(found: h5py.Dataset) -> str:
    """A dataset that is one string."""
    if found.shape != () or not isinstance(found.id.get_type(), h5py.h5t.TypeStringID):
        raise TypeError(f"{found.name} is no text")
    return _decoded(found[()])


def _decoded(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _attribute(place: h5py.Group | h5py.Dataset, name: str) -> Any:
    """An attribute of a plain type: the library crashes on some that a damaged file makes up."""
    if name not in place.attrs:
        return None
    found = place.attrs.get_id(name)
    kind = found.get_type()
    if not isinstance(kind, PLAIN) or prod(found.shape or ()) * kind.get_size() > MAX_ATTRIBUTE_BYTES:
        raise TypeError(f"attribute {name} of {place.name} is no text or number")
    return place.attrs[name]


def _followed(path: Path, parent: h5py.Group, name: str, links_left: int) -> h5py.Group | h5py.Dataset | None:
    place: Any = parent.file if name.startswith("/") else parent
    for part in [part for part in name.split("/") if part not in ("", ".")]:
        if not isinstance(place, h5py.Group) or not has(place, part):
            return None
        link = place.get(part, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise unreadable(path, f"a link {part!r} to {link.filename!r}, which is not followed")
        if isinstance(link, h5py.SoftLink):
            if not links_left:
                raise unreadable(path, f"links that lead to links at {part!r}")
            place = _followed(path, place, link.path, links_left - 1)
        else:
            place = place[part]
    return place if isinstance(place, h5py.Group | h5py.Dataset) else None  # a type can have a name, too
