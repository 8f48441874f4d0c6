"""The index of an archive on disk: made in parts by any number of members, merged once, mapped by all.

    sources.jsonl          a line per source file: path, path of its forces
    parts/000000.jsonl     segments of so many sources, and the sources that could not be read
    parts/000000.npy       where their frames are: rows of positions and of forces (source.Header.rows)
    segments.jsonl         all segments in order, a line each
    rows.npy               all rows, one segment after another
    columns.npz            for each segment: frames, atoms, first byte of its line, first of its rows (-1: none needed)

A million segments are a few hundred megabytes of text that every process maps and none parses: a segment becomes an
object when it is asked for.
"""

import json
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int64

from hpc_cg.archive.index import Described, Segment
from hpc_cg.errors import MissingInput, MissingStride, UnreadableFile
from hpc_cg.files import read_arrays, write_arrays, write_atomic

SOURCES_PER_PART = 64


@dataclass(frozen=True)
class Source:
    """One file of an archive, with the file of its forces where that is another."""

    path: str
    forces_path: str | None


@dataclass(frozen=True)
class Piece:
    """Frames start to stop of one segment."""

    segment: int
    start: int
    stop: int


class Catalogue(Sequence[Segment]):
    """The segments of one molecule, in order, as they lie on disk.

    first   global number of the first frame of each segment, and the number of all frames at the end
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        columns = read_arrays(folder / "columns.npz")
        self.n_frames_of: Int64[np.ndarray, "segment"] = columns["n_frames"]
        self.n_atoms_of: Int64[np.ndarray, "segment"] = columns["n_atoms"]
        self._line: Int64[np.ndarray, "line"] = columns["line"]
        self._row: Int64[np.ndarray, "segment"] = columns["row"]
        self.first: Int64[np.ndarray, "boundary"] = np.concatenate([[0], np.cumsum(self.n_frames_of)])
        self._rows = np.load(folder / "rows.npy", mmap_mode="r")
        with (folder / "segments.jsonl").open("rb") as file:
            self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if len(self) else b""

    def __len__(self) -> int:
        return len(self.n_frames_of)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        return Segment.from_json(json.loads(self._text[self._line[number] : self._line[number + 1]]))

    @property
    def n_frames(self) -> int:
        return int(self.first[-1])

    def table(self, number: int) -> Int64[np.ndarray, "frame 2"] | None:
        """Rows of positions and of forces of a segment's frames; None where they are simply counted."""
        start = int(self._row[number])
        return None if start < 0 else np.asarray(self._rows[start : start + int(self.n_frames_of[number])])

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """The parts of segments that global frames start to stop fall on."""
        number = int(np.searchsorted(self.first, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(self.first[number + 1]))
            if end > start:
                first = int(self.first[number])
                yield Piece(number, start - first, end - first)
            start, number = end, number + 1

    def places(self, frames: Int64[np.ndarray, "frame"]) -> Iterator[tuple[int, Int64[np.ndarray, "frame"]]]:
        """Ascending global frames as (segment, frames within it), segment after segment."""
        segment = np.searchsorted(self.first, frames, side="right") - 1
        bounds = np.flatnonzero(np.diff(segment, prepend=-1, append=-1))
        for low, high in pairwise(bounds):
            number = int(segment[low])
            yield number, frames[low:high] - self.first[number]


def begin(folder: Path, sources: Sequence[Source]) -> None:
    """Write down what is to be looked at; for one process, before anybody describes."""
    lines = [json.dumps([source.path, source.forces_path]) for source in sources]
    _write_lines(folder / "sources.jsonl", lines)


def sources_of(folder: Path) -> tuple[Source, ...]:
    """The sources that ``begin`` wrote down."""
    lines = (folder / "sources.jsonl").read_bytes().splitlines()
    return tuple(Source(*json.loads(line)) for line in lines)


def n_parts(sources: Sequence[Source]) -> int:
    return -(-len(sources) // SOURCES_PER_PART)


def part_path(folder: Path, part: int) -> Path:
    """The text of a part; it is written last, so a part is done when this file is there."""
    return folder / "parts" / f"{part:06d}.jsonl"


def describe_part(
    folder: Path, sources: Sequence[Source], part: int, describe: Callable[[Source], tuple[Described, ...]]
) -> None:
    """Describe the sources of one part; those that cannot be read are written down with the reason."""
    lines: list[str] = []
    tables: list[np.ndarray] = []
    for source in sources[part * SOURCES_PER_PART : (part + 1) * SOURCES_PER_PART]:
        try:
            described = describe(source)
        except MissingStride:
            raise
        except (UnreadableFile, MissingInput) as error:  # gone, or a link that leads nowhere
            lines.append(json.dumps({"path": source.path, "reason": str(error)}))
            continue
        for found in described:
            lines.append(json.dumps([found.segment.to_json(), found.table is not None]))
            if found.table is not None:
                tables.append(found.table.astype(np.int64))
    rows = np.concatenate(tables) if tables else np.zeros((0, 2), np.int64)
    write_atomic(part_path(folder, part).with_suffix(".npy"), lambda file: np.save(file, rows))
    _write_lines(part_path(folder, part), lines)


def is_done(folder: Path, part: int) -> bool:
    """Whether a part is there and every source of it could be read: those that could not are tried again."""
    path = part_path(folder, part)
    return path.exists() and not any(line.startswith(b"{") for line in path.read_bytes().splitlines())


def merge(folder: Path, sources: Sequence[Source]) -> list[dict[str, str]]:
    """Put the parts together; returns path and reason of each source that could not be read. For one process."""
    faults: list[dict[str, str]] = []
    columns: dict[str, list[int]] = {"n_frames": [], "n_atoms": [], "line": [0], "row": []}
    n_rows = 0

    def write_segments(file: BinaryIO) -> None:
        nonlocal n_rows
        for part in range(n_parts(sources)):
            for line in part_path(folder, part).read_bytes().splitlines():
                content = json.loads(line)
                if isinstance(content, dict):
                    faults.append(content)
                    continue
                fields, has_table = content
                text = json.dumps(fields).encode() + b"\n"
                file.write(text)
                columns["n_frames"].append(fields["n_frames"])
                columns["n_atoms"].append(fields["n_atoms"])
                columns["line"].append(columns["line"][-1] + len(text))
                columns["row"].append(n_rows if has_table else -1)
                n_rows += fields["n_frames"] if has_table else 0

    write_atomic(folder / "segments.jsonl", write_segments)
    write_atomic(folder / "rows.npy", lambda file: _write_rows(file, folder, n_parts(sources), n_rows))
    write_arrays(folder / "columns.npz", **{name: np.asarray(column, np.int64) for name, column in columns.items()})
    return faults


def _write_rows(file: BinaryIO, folder: Path, parts: int, n_rows: int) -> None:
    """All rows as one npy file, a part in memory at a time."""
    header = {"descr": "<i8", "fortran_order": False, "shape": (n_rows, 2)}
    np.lib.format.write_array_header_2_0(file, header)
    for part in range(parts):
        rows = np.load(part_path(folder, part).with_suffix(".npy"), mmap_mode="r")
        file.write(np.ascontiguousarray(rows, "<i8").tobytes())


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    def write(file: BinaryIO) -> None:
        for line in lines:
            file.write(line.encode() + b"\n")

    write_atomic(path, write)
