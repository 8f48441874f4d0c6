"""GROMACS TRR: positions, velocities and forces in nm, nm/ps and kJ/mol/nm, as many of them as each frame was given.

A frame is a header of big-endian XDR words, then what the header states the size of, in this order:

    1993, 13, 12, "GMX_trn_file", sizes of ir, e, box, vir, pres, top, sym, x, v, f, then n_atoms, step, nre, t, lambda
    box (3 3), virial (3 3), pressure (3 3), x (atom 3), v (atom 3), f (atom 3)

Reals are single or double precision, told by the sizes. nstxout and nstfout may differ, so frames without forces among
frames with them are usual. https://manual.gromacs.org/current/reference-manual/file-formats.html#trr

A file is read at places (pread), not mapped: one that is cut while it is read is then an error, not a killed process.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64, UInt8

from hpc_cg.archive.faults import explain_read_errors, unreadable
from hpc_cg.archive.source import Format, Header, RawFrames, Read

PIECE_BYTES = 1 << 22
"""Frames that lie close are read this much at a time: few calls, and what was read is still in the cache."""

SPARSE_BYTES = 1 << 16
"""In frames larger than this, parts that nobody asked for are left out, where they are more than half."""

_WORDS = struct.Struct(">3i12s13i")
_BEGIN = struct.pack(">3i12s", 1993, 13, 12, b"GMX_trn_file")
_HEAD_BYTES = _WORDS.size + 16
_STEP, _STEP_AT = struct.Struct(">i"), _WORDS.size - 8
_TIMES = {4: struct.Struct(">f"), 8: struct.Struct(">d")}


@dataclass(frozen=True)
class Bytes:
    """An open file of which any part can be read."""

    path: Path
    descriptor: int
    size: int

    @staticmethod
    @contextmanager
    def of(path: Path) -> Iterator["Bytes"]:
        """The file, open. Raises UnreadableFile for an empty one, OSError."""
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                raise unreadable(path, "an empty file")
            yield Bytes(path, file.fileno(), size)

    def at(self, place: int, n_bytes: int) -> bytes:
        """Bytes at a place, fewer where the file ends."""
        return os.pread(self.descriptor, n_bytes, place)

    def fill(self, place: int, into: UInt8[np.ndarray, "byte"]) -> None:
        """Fill an array from a place. Raises UnreadableFile where the file ends before."""
        view, done = into.data, 0
        while done < len(view):
            got = os.preadv(self.descriptor, [view[done:]], place + done)
            if not got:
                raise unreadable(self.path, f"{len(view) - done:,} bytes less than its frames take")
            done += got


def pieces(
    file: Bytes, starts: Int64[np.ndarray, "frame"], spans: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, UInt8[np.ndarray, "piece byte"]]]:
    """The bytes of frames, several frames at a time where they lie evenly: number of the first one, and a view of them.

    starts   where frames begin in the file
    spans    ascending parts of a frame, from and up to which byte of it: no other byte of the view is sure to be filled
    The view is valid until the next one is asked for. Raises UnreadableFile where the file ends before.
    """
    size = spans[-1][1]
    sparse = size > SPARSE_BYTES and 2 * sum(high - low for low, high in spans) < size
    buffer = np.empty(size, np.uint8)
    gaps = np.diff(starts)
    first = 0
    while first < len(starts):
        gap = int(gaps[first]) if first < len(gaps) else size
        n_frames = 1
        if not sparse and size <= gap <= 2 * size:
            others = gaps[first : first + max(PIECE_BYTES // gap, 1) - 1] != gap
            n_frames += int(others.argmax()) if others.any() else len(others)
        length = (n_frames - 1) * gap + size
        if length > len(buffer):
            buffer = np.empty(length, np.uint8)
        for low, high in spans if sparse else [(0, length)]:
            file.fill(int(starts[first]) + low, buffer[low:high])
        yield first, np.lib.stride_tricks.as_strided(buffer, (n_frames, size), (gap, 1), writeable=False)
        first += n_frames


def contiguous(atoms: Int64[np.ndarray, "atom"] | None, n_atoms: int) -> tuple[int, int, np.ndarray | slice]:
    """First and last atom (left out) of those wanted, and where the wanted ones are from there on."""
    if atoms is None or not len(atoms):
        return 0, n_atoms, slice(None) if atoms is None else slice(0)
    low, high = int(atoms.min()), int(atoms.max()) + 1
    if not 0 <= low < high <= n_atoms:
        raise IndexError(f"atoms {low} to {high - 1} of {n_atoms}")
    return low, high, slice(None) if high - low == len(atoms) else atoms - low


def take(
    piece: UInt8[np.ndarray, "piece byte"], span: tuple[int, int], real: np.dtype, chosen: np.ndarray | slice
) -> Float[np.ndarray, "piece atom 3"]:
    """The chosen of the atoms that fill a span of each frame, still as the file has them."""
    atoms = piece[:, slice(*span)].view(real).reshape(len(piece), -1, 3)
    return atoms[:, chosen] if isinstance(chosen, slice) else atoms.take(chosen, axis=1)


def unwrapped(step: Int64[np.ndarray, "frame"]) -> Int64[np.ndarray, "frame"]:
    """Steps that were written in 32 bits, counted on where they went past 2³¹."""
    return step + (np.concatenate([[0], np.cumsum(np.diff(step) < -(1 << 31))]).astype(np.int64) << 32)


@dataclass(frozen=True, slots=True)
class _Frame:
    """What the header of one frame says; places are from its beginning, -1 for what it does not hold."""

    n_atoms: int
    real: np.dtype
    size: int
    box_at: int
    x_at: int
    f_at: int


def headers(path: Path) -> tuple[Header, ...]:
    """What each frame holds, from its header. Raises UnreadableFile."""
    with explain_read_errors(path), Bytes.of(path) as file:
        frames: list[_Frame] = []
        rows: list[int] = []
        steps: list[int] = []
        times: list[float] = []
        place, note, layout, frame = 0, "", b"", None
        while place < file.size and not note:
            head = file.at(place, _HEAD_BYTES)
            if head[:_STEP_AT] != layout:  # most frames are laid out like the one before
                frame, layout = _frame(file, place, frames[0].n_atoms if frames else None), head[:_STEP_AT]
            if frame is None or place + frame.size > file.size:
                whole = "" if frame is None else f" of {frame.size:,}"
                note = f"the last frame is cut off: {file.size - place:,}{whole} bytes"
            else:
                frames.append(frame)
                rows.append(place)
                steps.append(_STEP.unpack_from(head, _STEP_AT)[0])
                times.append(_TIMES[frame.real.itemsize].unpack_from(head, _WORDS.size)[0])
                place += frame.size
    if not frames:
        raise unreadable(path, note.replace("last", "first"))
    return (
        Header(
            n_atoms=frames[0].n_atoms,
            rows=np.array(rows, np.int64),
            has_positions=np.array([frame.x_at >= 0 for frame in frames]),
            has_forces=np.array([frame.f_at >= 0 for frame in frames]),
            step=unwrapped(np.array(steps, np.int64)),
            time=np.array(times, np.float64),
            length_unit="nm",
            force_unit="kJ/mol/nm",
            note=note,
        ),
    )


@contextmanager
def opened(path: Path, inside: str) -> Iterator[Read]:
    """The file, ready to be read in its own precision. Raises UnreadableFile."""
    with ExitStack() as stack:
        with explain_read_errors(path):
            file = stack.enter_context(Bytes.of(path))
            n_atoms = _whole_frame(file, 0, None).n_atoms

        def read(
            rows: Int64[np.ndarray, "frame"], atoms: Int64[np.ndarray, "atom"] | None, positions: bool, forces: bool
        ) -> RawFrames:
            with explain_read_errors(path):
                return _read(file, n_atoms, rows, atoms, positions, forces)

        yield read


TRR = Format("trr", headers, opened)


def _frame(file: Bytes, place: int, n_atoms: int | None) -> _Frame | None:
    """The frame at a place, None where the file ends within its header.

    n_atoms   as the frames before have it, None for the first
    Raises UnreadableFile where no frame begins there.
    """
    head = file.at(place, _HEAD_BYTES)
    if head[: len(_BEGIN)] != _BEGIN[: len(head)]:
        raise unreadable(file.path, f"no TRR frame at byte {place:,}")
    if len(head) < _WORDS.size:
        return None
    *_, ir, e, box, vir, pres, top, sym, x, v, f, found_atoms, _, _ = _WORDS.unpack_from(head)
    if found_atoms <= 0 or found_atoms != (n_atoms or found_atoms):
        raise unreadable(file.path, f"{found_atoms} atoms{f' beside {n_atoms}' if n_atoms else ''} at byte {place:,}")
    width = box // 9 or max(x, v, f) // (3 * found_atoms)
    cells, vectors = (0, 9 * width), (0, 3 * found_atoms * width)
    whole = all(part in cells for part in (box, vir, pres)) and all(part in vectors for part in (x, v, f))
    if width not in (4, 8) or not whole or any((ir, e, top, sym)):
        raise unreadable(file.path, f"a TRR frame at byte {place:,} whose sizes are not those of {found_atoms} atoms")
    if len(head) < _WORDS.size + 2 * width:
        return None
    box_at = _WORDS.size + 2 * width
    x_at = box_at + box + vir + pres
    return _Frame(
        n_atoms=found_atoms,
        real=np.dtype(f">f{width}"),
        size=x_at + x + v + f,
        box_at=box_at if box else -1,
        x_at=x_at if x else -1,
        f_at=x_at + x + v if f else -1,
    )


def _whole_frame(file: Bytes, place: int, n_atoms: int | None) -> _Frame:
    frame = _frame(file, place, n_atoms) if 0 <= place < file.size else None
    if frame is None or place + frame.size > file.size:
        raise unreadable(file.path, f"no whole TRR frame at byte {place:,}")
    return frame


def _read(
    file: Bytes,
    n_atoms: int,
    rows: Int64[np.ndarray, "frame"],
    atoms: Int64[np.ndarray, "atom"] | None,
    positions: bool,
    forces: bool,
) -> RawFrames:
    low, high, chosen = contiguous(atoms, n_atoms)
    shape = (len(rows), n_atoms if atoms is None else len(atoms), 3)
    # what has more digits keeps them here: far from the origin they are needed until frames are centred
    real = _whole_frame(file, int(rows[0]), n_atoms).real.newbyteorder("=") if len(rows) else np.dtype(np.float32)
    found_positions = np.empty(shape, real) if positions else None
    found_forces = np.empty(shape, real) if forces else None
    cell = np.zeros((len(rows), 3, 3), np.float32)
    compared = _compared(positions, forces)
    done = 0
    while done < len(rows):
        frame = _whole_frame(file, int(rows[done]), n_atoms)
        begins = [(frame.x_at, found_positions)] * positions + [(frame.f_at, found_forces)] * forces
        if any(at < 0 for at, _ in begins):
            raise unreadable(file.path, f"a frame at byte {rows[done]:,} that lacks the positions or forces it had")
        atom_bytes = 3 * frame.real.itemsize
        parts = [((at + atom_bytes * low, at + atom_bytes * high), found) for at, found in begins]
        cell_part = (frame.box_at, frame.box_at + 3 * atom_bytes)
        head = (0, max(_WORDS.size, cell_part[1]))
        alike_head = np.frombuffer(file.at(int(rows[done]), _WORDS.size), np.uint8)[compared]
        for _, piece in pieces(file, rows[done:], [head, *(part for part, _ in parts)]):
            others = (piece[:, compared] != alike_head).any(axis=1)
            piece_alike = piece[: int(others.argmax())] if others.any() else piece
            target = slice(done, done + len(piece_alike))
            for part, found in parts:
                assert found is not None
                found[target] = take(piece_alike, part, frame.real, chosen)
            if frame.box_at >= 0:
                cell[target] = take(piece_alike, cell_part, frame.real, slice(None))
            done = target.stop
            if len(piece_alike) < len(piece):
                break
    return RawFrames(found_positions, found_forces, cell if cell.any() else None)


def _compared(positions: bool, forces: bool) -> Int64[np.ndarray, "byte"]:
    """Bytes of a header in which frames agree whose parts, those wanted, lie at the same places."""
    words = [*range(7), *([7] if positions or forces else []), *([8, 9] if forces else []), 10]
    begin = len(_BEGIN)
    return np.concatenate([np.arange(begin), *(begin + 4 * word + np.arange(4) for word in words)])
