"""GROMACS XTC: compressed positions in nm, usually to 0.001 nm, no forces.

A frame is big-endian XDR: 1995, n_atoms, step, time, box (3 3), n_atoms, and then the positions as they are for up to
nine atoms, else precision, least and largest integer (3 each), index of the smallest step, number of bytes, and so many
bytes of compressed integers, padded to four. https://manual.gromacs.org/current/reference-manual/file-formats.html#xtc

MDTraj decompresses. Its decoder believes what a file says of sizes and runs, and writes beyond its memory where that is
damaged; so headers and runs are looked through before, which also tells damage that would pass as positions.
"""

import math
import struct
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt16

from hpc_cg.archive.faults import explain_read_errors, unreadable
from hpc_cg.archive.source import Format, Header, RawFrames, Read
from hpc_cg.archive.trr import Bytes, contiguous, unwrapped
from hpc_cg.errors import UnreadableFile

_PLAIN_ATOMS = 9
_HEAD = struct.Struct(">3if9fi")
_COMPRESSED = struct.Struct(">f8i")
_BEGIN_BYTES = 8
"""Magic number and atoms: the same in every frame."""

_SMALLEST, _LARGEST = 9, 72
"""Between which the index of the smallest step lies, in the table of integers that the compression is made with."""

_LEAST_BITS = 2
"""Bits that an atom takes at least: one of position, one of run length."""


CHECKED_BYTES = 1 << 24
"""Frames are looked through this much at a time."""

_CODES = np.arange(64)
_IS_NEW = _CODES >= 32
_CODE_BITS = np.where(_IS_NEW, 6, 1)
_RUN = (_CODES & 31) // 3
_CHANGE = np.where(_IS_NEW, (_CODES & 31) % 3 - 1, 0)
"""By the six bits after a position: whether the first says that a new length of run follows in the other five, so how
many bits are used; the atoms of that run; the change of the step index that is folded into it."""

_MOST_ATOMS = 1 + int(_RUN.max())
"""Of one position and its run."""


@dataclass(frozen=True, slots=True)
class _Frame:
    """What a header says; of a compressed frame also its bytes, the bits of a position outside runs, its step index."""

    n_atoms: int
    step: int
    time: float
    size: int
    n_bytes: int = 0
    bits: int = 0
    smallest: int = 0


def headers(path: Path) -> tuple[Header, ...]:
    """What each frame says of itself. Raises UnreadableFile."""
    with explain_read_errors(path), Bytes.of(path) as file:
        frames: list[_Frame] = []
        rows: list[int] = []
        place, note, begin = 0, "", file.at(0, _BEGIN_BYTES)
        while place < file.size and not note:
            frame = _frame(file, place, begin)
            if frame is None or place + frame.size > file.size:
                whole = "" if frame is None else f" of {frame.size:,}"
                note = f"the last frame is cut off: {file.size - place:,}{whole} bytes"
            else:
                frames.append(frame)
                rows.append(place)
                place += frame.size
    if not frames:
        raise unreadable(path, note.replace("last", "first"))
    return (
        Header(
            n_atoms=frames[0].n_atoms,
            rows=np.array(rows, np.int64),
            has_positions=np.ones(len(frames), bool),
            has_forces=np.zeros(len(frames), bool),
            step=unwrapped(np.array([frame.step for frame in frames], np.int64)),
            time=np.array([frame.time for frame in frames], np.float64),
            length_unit="nm",
            note=note,
        ),
    )


@contextmanager
def opened(path: Path, inside: str, checked: bool = False) -> Iterator[Read]:
    """The file, ready to be read. Raises UnreadableFile.

    checked   whether compressed positions are followed through before mdtraj decodes them: damaged ones can make its
              decoder write past its memory, which ends the process. It takes as long as decoding does, or longer.
    """
    from mdtraj.formats import XTCTrajectoryFile

    with ExitStack() as stack:
        with explain_read_errors(path):
            file = stack.enter_context(Bytes.of(path))
            begin = file.at(0, _BEGIN_BYTES)
            n_atoms = _whole_frame(file, 0, begin).n_atoms
            decoder = stack.enter_context(XTCTrajectoryFile(_plainly_named(path, stack)))

        def read(
            rows: Int64[np.ndarray, "frame"], atoms: Int64[np.ndarray, "atom"] | None, positions: bool, forces: bool
        ) -> RawFrames:
            with explain_read_errors(path):
                if forces:
                    raise unreadable(path, "no forces, which this format cannot keep")
                contiguous(atoms, n_atoms)
                frames = [_whole_frame(file, int(row), begin) for row in rows]
                if checked and n_atoms > _PLAIN_ATOMS:
                    _check_runs(file, rows, frames)
                ends = rows + np.array([frame.size for frame in frames], np.int64)
                return _read(path, decoder, rows, ends, atoms, n_atoms)

        yield read


XTC = Format("xtc", headers, opened)
XTC_CHECKED = Format("xtc-checked", headers, partial(opened, checked=True))


def _read(
    path: Path,
    decoder: Any,
    rows: Int64[np.ndarray, "frame"],
    ends: Int64[np.ndarray, "frame"],
    atoms: Int64[np.ndarray, "atom"] | None,
    n_atoms: int,
) -> RawFrames:
    """Frames that begin at rows and end at ends; those that follow upon one another are read in one go."""
    positions = np.empty((len(rows), n_atoms if atoms is None else len(atoms), 3), np.float32)
    cell: Float32[np.ndarray, "frame 3 3"] = np.zeros((len(rows), 3, 3), np.float32)
    decoder.offsets = rows  # otherwise seek looks through the whole file for them
    breaks = np.flatnonzero(rows[1:] != ends[:-1]) + 1
    for first, stop in zip([0, *breaks], [*breaks, len(rows)], strict=True):
        decoder.seek(int(first))
        found, _, _, box = decoder.read(n_frames=int(stop - first), atom_indices=atoms)
        if len(found) != stop - first:
            raise unreadable(path, f"{len(found)} whole frames of {stop - first} from byte {rows[first]:,} on")
        positions[first:stop] = found
        if box is not None:
            cell[first:stop] = box
    return RawFrames(positions, None, cell if cell.any() else None)


def _check_runs(file: Bytes, rows: Int64[np.ndarray, "frame"], frames: list[_Frame]) -> None:
    """Raises UnreadableFile where the runs of a compressed frame do not make up its atoms and its bytes."""
    ends = np.cumsum([frame.n_bytes for frame in frames])
    breaks = np.flatnonzero(np.diff(ends // CHECKED_BYTES)) + 1
    for first, stop in zip([0, *breaks], [*breaks, len(rows)], strict=True):
        bad = _first_bad_run(file, rows[first:stop], frames[first:stop])
        if bad is not None:
            raise unreadable(file.path, f"a damaged XTC frame at byte {bad:,}")


def _first_bad_run(file: Bytes, rows: Int64[np.ndarray, "frame"], frames: list[_Frame]) -> int | None:
    """Where a frame begins that is damaged, None where all are sound.

    A position, a bit that says whether the length of the run changes, the new length in five bits if so, and that many
    positions as steps from the one before; so on, in all frames at once, since each is a chain of its own.
    """
    lengths = np.array([frame.n_bytes for frame in frames])
    begins = np.concatenate([[0], np.cumsum(lengths)])
    data = np.zeros(begins[-1] + 2, np.uint8)
    for row, begin, length in zip(rows, begins, lengths, strict=False):
        file.fill(int(row) + _HEAD.size + _COMPRESSED.size, data[begin : begin + length])
    words = data[:-1].astype(np.uint16) << 8 | data[1:]
    chains = _Chains(
        rows=rows,
        bits=np.array([frame.bits for frame in frames]),
        end=8 * begins[1:],
        place=8 * begins[:-1],
        small=np.array([frame.smallest for frame in frames]),
        largest=np.array([frame.smallest for frame in frames]),
        left=np.full(len(rows), frames[0].n_atoms),
        run=np.zeros(len(rows), np.int64),
    )
    while len(chains.rows):
        chains.follow(words, max(int(chains.left.min()) // _MOST_ATOMS, 1))
        over = chains.left <= 0
        bad = (chains.place > chains.end) | (chains.largest > _LARGEST) | (chains.left < 0)
        bad |= over & (chains.place <= chains.end - 8)
        if bad.any():
            return int(chains.rows[bad][0])
        if over.any():
            chains = chains.only(~over)
    return None


@dataclass(frozen=True, eq=False)
class _Chains:
    """How far the runs of frames have been followed, in bits and in atoms that are left."""

    rows: Int64[np.ndarray, "frame"]
    bits: Int64[np.ndarray, "frame"]
    end: Int64[np.ndarray, "frame"]
    place: Int64[np.ndarray, "frame"]
    small: Int64[np.ndarray, "frame"]
    largest: Int64[np.ndarray, "frame"]
    left: Int64[np.ndarray, "frame"]
    run: Int64[np.ndarray, "frame"]

    def only(self, chosen: Bool[np.ndarray, "frame"]) -> "_Chains":
        return _Chains(**{name: values[chosen] for name, values in vars(self).items()})

    def follow(self, words: UInt16[np.ndarray, "place"], n_positions: int) -> None:
        """Go on by so many positions and their runs, all in place: this is done thousands of times per block.

        A step index below the table's makes the decoder stop by itself, so only the largest is kept.
        """
        place, small, run, left = self.place, self.small, self.run, self.left
        word = np.empty(len(place), np.uint16)
        code, part = np.empty_like(place), np.empty_like(place)
        is_new = np.empty(len(place), bool)
        for _ in range(n_positions):
            place += self.bits
            words.take(np.right_shift(place, 3, out=part), out=word, mode="clip")
            np.left_shift(word, np.bitwise_and(place, 7, out=part), out=word, casting="unsafe")
            np.right_shift(word, 10, out=code)
            np.copyto(run, _RUN.take(code, out=part, mode="clip"), where=np.greater_equal(code, 32, out=is_new))
            place += _CODE_BITS.take(code, out=part, mode="clip")
            place += np.multiply(run, small, out=part)
            small += _CHANGE.take(code, out=part, mode="clip")
            np.maximum(self.largest, small, out=self.largest)
            left -= run
        left -= n_positions


def _plainly_named(path: Path, stack: ExitStack) -> str:
    """The file's name, or a link to it where the decoder, which knows ASCII only, could not open it by its name."""
    if str(path).isascii():
        return str(path)
    link = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "linked.xtc"
    link.symlink_to(path.absolute())
    return str(link)


def _frame(file: Bytes, place: int, begin: bytes) -> _Frame | None:
    """The frame at a place, None where the file ends within its header.

    begin   how all frames of this file begin
    Raises UnreadableFile where no frame begins there that can be decoded.
    """
    head = file.at(place, _HEAD.size + _COMPRESSED.size)
    if head[:4] == struct.pack(">i", 2023):
        raise UnreadableFile(
            f"reading {file.path}",
            "the variant of XTC for more than 298,261,617 atoms",
            "write fewer atoms, or TRR: gmx trjconv -f old.xtc -o new.trr",
        )
    magic = struct.pack(">i", 1995)
    if head[:4] != magic[: len(head)] or head[:_BEGIN_BYTES] != begin[: len(head)]:
        raise unreadable(file.path, f"no XTC frame{' of as many atoms' if place else ''} at byte {place:,}")
    if len(head) < _HEAD.size:
        return None
    _, n_atoms, step, time, *_, n_coded = _HEAD.unpack_from(head)
    if n_atoms <= 0 or n_coded != n_atoms:
        raise unreadable(file.path, f"{n_atoms} atoms of which {n_coded} are there at byte {place:,}")
    if n_atoms <= _PLAIN_ATOMS:
        return _Frame(n_atoms, step, time, _HEAD.size + 12 * n_atoms)
    if len(head) < _HEAD.size + _COMPRESSED.size:
        return None
    precision, *bounds, smallest, n_bytes = _COMPRESSED.unpack_from(head, _HEAD.size)
    ranges = [high - low + 1 for low, high in zip(bounds[:3], bounds[3:], strict=True)]
    sound = (
        math.isfinite(precision)
        and precision > 0
        and all(0 < length < 1 << 31 for length in ranges)
        and _SMALLEST <= smallest <= _LARGEST
        and _LEAST_BITS * n_atoms <= 8 * n_bytes <= 8 * _decoder_bytes(n_atoms)
    )
    if not sound:
        raise unreadable(file.path, f"an XTC frame at byte {place:,} whose header is damaged")
    size = _HEAD.size + _COMPRESSED.size + n_bytes + -n_bytes % 4
    return _Frame(n_atoms, step, time, size, n_bytes, _bits(ranges), smallest)


def _bits(ranges: list[int]) -> int:
    """Bits of a position of three integers: of their product, or of each where one is large."""
    large = any(length > 0xFFFFFF for length in ranges)
    return sum(length.bit_length() for length in ranges) if large else math.prod(ranges).bit_length()


def _decoder_bytes(n_atoms: int) -> int:
    """Compressed bytes that fit the decoder's buffer: 1.2 integers per coordinate, less three it uses itself."""
    return 4 * (int(3 * n_atoms * 1.2) - 3)


def _whole_frame(file: Bytes, place: int, begin: bytes) -> _Frame:
    frame = _frame(file, place, begin) if 0 <= place < file.size else None
    if frame is None or place + frame.size > file.size:
        raise unreadable(file.path, f"no whole XTC frame at byte {place:,}")
    return frame
