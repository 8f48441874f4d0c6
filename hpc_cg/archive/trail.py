"""Which file is being read, kept on disk while it is: so that a file that kills its reader is known by the next run.

The decoder of XTC files is C code that damaged data can make write past its memory; the process then ends without a
word. Looking for such damage takes as long as decoding, so it is done only for files that were open when a process
died: these are read with the check, and a file that fails it is quarantined like any other.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from hpc_cg.archive.index import Segment
from hpc_cg.files import read_json, write_json

FOLDER = ".reading"
CHECKED = {"xtc": "xtc-checked"}
"""Formats whose decoder can be killed by damaged data, and their careful readers."""


@dataclass(frozen=True)
class Trail:
    """Where one member of a team writes down what it reads; ``suspects`` are files that were open when one died."""

    folder: Path
    member: int
    suspects: frozenset[str] = field(default_factory=frozenset)

    @contextmanager
    def on(self, segment: Segment) -> Iterator[Segment]:
        """The segment as it should be read; while it is, its file stands in this member's record."""
        if segment.format not in CHECKED:
            yield segment
        elif segment.path in self.suspects:
            yield replace(segment, format=CHECKED[segment.format])
        else:
            record = self.folder / FOLDER / f"{self.member:05d}.{os.getpid()}"
            record.parent.mkdir(exist_ok=True)
            record.write_text(json.dumps(segment.path), encoding="utf-8")
            try:
                yield segment
            finally:
                with suppress(OSError):
                    record.unlink()


def suspects(folder: Path) -> list[str]:
    """The files that were open when a reader below ``folder`` died, now or before; for one process, before others."""
    kept = folder / FOLDER / "suspects.json"
    found = set(read_json(kept)) if kept.exists() else set()
    records = [path for path in (folder / FOLDER).glob("*.*") if path.suffix[1:].isdecimal()]
    for record in records:
        with suppress(ValueError):  # written in part: its reader had not begun to read
            found.add(json.loads(record.read_text(encoding="utf-8")))
    if records:
        write_json(kept, sorted(found))
        for record in records:
            record.unlink(missing_ok=True)
    return sorted(found)
