"""DCD of CHARMM, NAMD, X-PLOR and OpenMM: positions in Angstrom; or forces, as NAMD writes them, in the same layout.

Fortran records, each between two 4-byte marks of its length, in either byte order:

    "CORD", 20 words: [0] n_frames, [1] first step, [2] steps between frames, [8] fixed atoms, [9] time step in AKMA
                      units, [10] whether there is a cell, [11] whether there is a fourth dimension, [19] version of
                      CHARMM, 0 for X-PLOR, which has the time step in double precision in [9] and [10]
    titles
    n_atoms
    for each frame: a cell of six doubles, where there is one; x of all atoms, y, z, in single precision

Nobody specified the layout; this is what these programs write and VMD reads
(https://www.ks.uiuc.edu/Research/vmd/plugins/molfile/dcdplugin.html).
"""

import math
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64, UInt8

from hpc_cg.archive.cells import box_vectors
from hpc_cg.archive.faults import explain_read_errors, unreadable
from hpc_cg.archive.source import Format, Header, RawFrames, Read
from hpc_cg.archive.trr import Bytes, contiguous, pieces
from hpc_cg.errors import UnreadableFile

AKMA_PS = 0.04888821
"""ps in the unit of time that Angstrom, kcal/mol and u give."""

TIME_STEPS_PS = (1e-5, 0.025)
"""Between which a time step is believed. Many tools write 1 AKMA (0.049 ps) where they know none."""

_FIRST = struct.Struct("i4s20ii")
_CELL_BYTES = 48


@dataclass(frozen=True)
class _Layout:
    """Where things are in a file; planes_at are where x, y, z begin within a frame."""

    order: str
    n_atoms: int
    n_frames: int
    n_declared: int
    first_step: int
    steps_between: int
    step_ps: float | None
    has_cell: bool
    begin: int
    frame_bytes: int
    cut_bytes: int

    @property
    def planes_at(self) -> tuple[int, int, int]:
        x_at = (_CELL_BYTES + 8) * self.has_cell + 4
        return x_at, x_at + 4 * self.n_atoms + 8, x_at + 8 * self.n_atoms + 16

    @property
    def between(self) -> list[tuple[int, int]]:
        """What is not positions: the cell and the marks."""
        ends = [at + 4 * self.n_atoms for at in self.planes_at]
        return list(zip([0, *ends], [*self.planes_at, self.frame_bytes], strict=True))


def headers(path: Path) -> tuple[Header, ...]:
    """What the file says of its frames. Raises UnreadableFile."""
    with explain_read_errors(path), Bytes.of(path) as file:
        layout = _layout(file)
    numbers = np.arange(layout.n_frames)
    step = layout.first_step + layout.steps_between * numbers if layout.steps_between > 0 else None
    notes = []
    if layout.cut_bytes:
        notes.append(f"the last frame is cut off: {layout.cut_bytes:,} of {layout.frame_bytes:,} bytes")
    if layout.n_declared != layout.n_frames:
        notes.append(f"{layout.n_frames:,} frames are there, {layout.n_declared:,} as its header says")
    return (
        Header(
            n_atoms=layout.n_atoms,
            rows=numbers,
            has_positions=np.ones(layout.n_frames, bool),
            has_forces=np.zeros(layout.n_frames, bool),
            step=step,
            time=None if step is None or layout.step_ps is None else step * layout.step_ps,
            length_unit="angstrom",
            note="; ".join(notes),
        ),
    )


@contextmanager
def opened(path: Path, inside: str) -> Iterator[Read]:
    """The file, ready to be read; where it holds forces, they are what it gives as positions. Raises UnreadableFile."""
    with ExitStack() as stack:
        with explain_read_errors(path):
            file = stack.enter_context(Bytes.of(path))
            layout = _layout(file)

        def read(
            rows: Int64[np.ndarray, "frame"], atoms: Int64[np.ndarray, "atom"] | None, positions: bool, forces: bool
        ) -> RawFrames:
            with explain_read_errors(path):
                if forces:
                    raise unreadable(path, "no forces beside positions, which this format cannot keep")
                return _read(file, layout, rows, atoms)

        yield read


DCD = Format("dcd", headers, opened)


def _read(
    file: Bytes, layout: _Layout, rows: Int64[np.ndarray, "frame"], atoms: Int64[np.ndarray, "atom"] | None
) -> RawFrames:
    if len(rows) and not (rows.min() >= 0 and rows.max() < layout.n_frames):
        raise IndexError(f"frames {rows.min()} to {rows.max()} of {layout.n_frames}")
    low, high, chosen = contiguous(atoms, layout.n_atoms)
    positions = np.empty((len(rows), layout.n_atoms if atoms is None else len(atoms), 3), np.float32)
    cell = np.zeros((len(rows), 6)) if layout.has_cell else None
    planes = [(at + 4 * low, at + 4 * high) for at in layout.planes_at]
    starts = layout.begin + layout.frame_bytes * rows
    for first, piece in pieces(file, starts, sorted([*layout.between, *planes])):
        _check_marks(file, layout, piece)
        target = slice(first, first + len(piece))
        for axis, (begin, end) in enumerate(planes):
            positions[target, :, axis] = piece[:, begin:end].view(f"{layout.order}f4")[:, chosen]
        if cell is not None:
            cell[target] = piece[:, 4 : 4 + _CELL_BYTES].view(f"{layout.order}f8")
    return RawFrames(positions, None, _vectors(cell) if cell is not None and cell.any() else None)


def _vectors(cell: Float[np.ndarray, "frame 6"]) -> Float[np.ndarray, "frame 3 3"]:
    """Cell vectors from A, γ, B, β, α, C, the angles in degrees or as their cosines (NAMD), or from a symmetric matrix
    xx, xy, yy, xz, yz, zz (newer CHARMM).

    No file says which it holds. Angles are taken to lie between 30 and 150 degrees, cosines within 1; what is neither
    is the matrix. A matrix that is diagonal to within 1 Angstrom, yet not diagonal, would be taken for cosines.
    """
    lengths, others = cell[:, [0, 2, 5]], cell[:, [4, 3, 1]]
    if ((others >= 30) & (others <= 150)).all():
        return box_vectors(lengths, others)
    if (np.abs(others) <= 1).all():
        angles = np.where(others == 0, 90.0, np.degrees(np.arccos(others)))
        return box_vectors(lengths, angles)
    return cell[:, [[0, 1, 3], [1, 2, 4], [3, 4, 5]]]


def _layout(file: Bytes) -> _Layout:
    """From the first three records and the file's size. Raises UnreadableFile."""
    path = file.path
    head = file.at(0, _FIRST.size)
    if len(head) == _FIRST.size and head[8:12] == b"CORD":
        raise _unsupported(path, "records with 8-byte marks")
    order = next((o for o in "<>" if head[:8] == struct.pack(f"{o}i4s", 84, b"CORD")), None)
    if order is None or len(head) < _FIRST.size:
        raise unreadable(path, "no DCD header, or one that is cut off")
    control = struct.unpack_from(f"{order}20i", head, 8)
    is_charmm = control[19] != 0
    if control[8]:
        raise _unsupported(path, f"{control[8]} fixed atoms")
    if is_charmm and control[11]:
        raise _unsupported(path, "a fourth dimension")
    n_atoms, begin = _atoms(file, order)
    has_cell = is_charmm and control[10] != 0
    frame_bytes = (_CELL_BYTES + 8) * has_cell + 3 * (4 * n_atoms + 8)
    n_frames, cut_bytes = divmod(file.size - begin, frame_bytes)
    if not n_frames:
        raise unreadable(path, f"the first frame is cut off: {cut_bytes:,} of {frame_bytes:,} bytes")
    delta = struct.unpack_from(f"{order}{'f' if is_charmm else 'd'}", head, 44)[0]
    step_ps = delta * AKMA_PS
    layout = _Layout(
        order=order,
        n_atoms=n_atoms,
        n_frames=n_frames,
        n_declared=control[0],
        first_step=control[1],
        steps_between=control[2],
        step_ps=step_ps if math.isfinite(delta) and TIME_STEPS_PS[0] <= step_ps <= TIME_STEPS_PS[1] else None,
        has_cell=has_cell,
        begin=begin,
        frame_bytes=frame_bytes,
        cut_bytes=cut_bytes,
    )
    for number in {0, n_frames - 1}:
        start = np.array([begin + number * frame_bytes])
        _check_marks(file, layout, next(pieces(file, start, layout.between))[1])
    return layout


def _atoms(file: Bytes, order: str) -> tuple[int, int]:
    """Number of atoms, and where frames begin. Raises UnreadableFile."""
    title_bytes = _word(file, order, _FIRST.size)
    if title_bytes >= 4:
        atoms_at = _FIRST.size + title_bytes + 8
        ends = [_word(file, order, place) for place in (_FIRST.size - 4, atoms_at - 4, atoms_at, atoms_at + 8)]
        n_atoms = _word(file, order, atoms_at + 4)
        if ends == [84, title_bytes, 4, 4] and n_atoms > 0:
            return n_atoms, atoms_at + 12
    raise unreadable(file.path, "a DCD header that is damaged")


def _check_marks(file: Bytes, layout: _Layout, piece: UInt8[np.ndarray, "piece byte"]) -> None:
    """Raises UnreadableFile where records do not begin and end with their lengths."""
    marks = [(at + side, 4 * layout.n_atoms) for at in layout.planes_at for side in (-4, 4 * layout.n_atoms)]
    if layout.has_cell:
        marks += [(0, _CELL_BYTES), (_CELL_BYTES + 4, _CELL_BYTES)]
    if any((piece[:, at : at + 4].view(f"{layout.order}i4") != length).any() for at, length in marks):
        raise unreadable(file.path, f"records that are not those of frames of {layout.n_atoms:,} atoms")


def _word(file: Bytes, order: str, place: int) -> int:
    found = file.at(place, 4)
    return int(struct.unpack(f"{order}i", found)[0]) if len(found) == 4 else -1


def _unsupported(path: Path, what: str) -> UnreadableFile:
    return UnreadableFile(
        f"reading {path}", f"{what}, which is not supported", f"convert it: mdconvert {path.name} -o {path.stem}.nc"
    )
