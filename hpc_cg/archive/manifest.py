"""Lists of source files: a path per line, relative to the folder of the list, which none may leave.

    # runs of March
    run1/traj.trr
    9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08  run2/traj.trr

Empty lines and lines that begin with ``#`` are passed over. Lines as ``sha256sum`` writes them are understood; the sums
are there for ``sha256sum -c`` and are not computed here. A list travels, and may have been written by somebody else: so
absolute paths, ``..`` and links that lead outside its folder are refused, which a path in the study is not.
"""

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from hpc_cg.archive.faults import explain_read_errors
from hpc_cg.errors import MissingInput, UnreadableFile

SUFFIXES = (".manifest", ".txt")
MAX_BYTES = 64 << 20

_SUM = re.compile(r"(?:[0-9a-fA-F]{64}) [ *](.+)")


def read_manifest(path: Path) -> tuple[Path, ...]:
    """The files that a list names, absolute, in its order.

    Raises UnreadableFile, which names the line, for a path that leaves the folder or a file that is no such list;
    MissingInput where a file is not there or the list is empty.
    """
    folder = path.resolve().parent
    inside = cache(lambda parent: Path(os.path.realpath(parent)))
    found = []
    for number, name in _lines(path):
        place = f"line {number} of {path}"
        relative = Path(name)
        if relative.is_absolute() or ".." in relative.parts:
            raise _refused(place, f"{name!r}, which leaves the folder of the list")
        with explain_read_errors(path):
            source = inside(folder / relative.parent) / relative.name
            target = Path(os.path.realpath(source)) if source.is_symlink() else source
            exists = target.is_file()
        if not target.is_relative_to(folder):
            raise _refused(place, f"{name!r}, a link that leads to {str(target)!r}")
        if not exists:
            raise MissingInput(place, f"no file {name!r} in {folder}", "correct the line, or take it out")
        found.append(source)
    if not found:
        raise MissingInput(f"the files that {path} lists", "no paths in it", "write a path per line")
    return tuple(found)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and path of each line that names one."""
    asked = f"reading the list of files {path}"
    with explain_read_errors(path), path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UnreadableFile(asked, f"more than {MAX_BYTES >> 20} MB", "split it, or name folders in the study")
    if b"\0" in content:
        raise UnreadableFile(asked, "NUL bytes, so it is no text", "give a text file with a path per line")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableFile(asked, f"text that is not UTF-8 ({error.reason})", "save it as UTF-8") from error
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        with_sum = _SUM.fullmatch(stripped)
        yield number, with_sum[1] if with_sum else stripped


def _refused(place: str, found: str) -> UnreadableFile:
    return UnreadableFile(place, found, "list files inside the folder of the list, or name others in the study itself")
