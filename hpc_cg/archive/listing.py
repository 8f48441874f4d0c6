"""The source files that a person names: files, folders, globs and lists of files; nothing is opened but the lists.

What was typed into the study is followed wherever it leads. Folders are read entry by entry without asking after each
one (a `stat` each is minutes on a parallel file system).
"""

import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from hpc_cg.archive import manifest
from hpc_cg.archive.faults import explain_read_errors
from hpc_cg.archive.formats import FORCES_ALONE, SUFFIXES
from hpc_cg.errors import MissingInput

COORDINATES, FORCES = "_coordinates.npy", "_forces.npy"


def find(paths: Sequence[str], root: Path) -> tuple[Path, ...]:
    """The source files that ``paths`` name: absolute, sorted, each once, npy pairs by their coordinates.

    paths   files, folders, globs or lists of files (manifest), relative to ``root`` or absolute
    root    the folder that relative paths start from
    Raises MissingInput where a path matches nothing; UnreadableFile for a list that may not be followed.
    """
    resolved = cache(Path.resolve)
    found: set[str] = set()
    for pattern in paths:
        # A link keeps its own name: archives link to stores whose names say nothing of the format.
        found.update(os.path.join(resolved(Path(folder)), name) for folder, name in _matches(pattern, root))  # noqa: PTH118
    return tuple(Path(path) for path in sorted(found) if not _is_second_of_pair(path, found))


def files_of(source: Path) -> tuple[Path, ...]:
    """The files that one source of ``find`` consists of: itself, and the forces beside coordinates."""
    beside = forces_beside(source)
    return (source,) if beside is None else (source, beside)


def forces_beside(source: Path) -> Path | None:
    """The forces X_forces.npy that lie beside X_coordinates.npy; None where there are none, or for other files."""
    beside = source.with_name(source.name.removesuffix(COORDINATES) + FORCES)
    return beside if source.name.endswith(COORDINATES) and beside.exists() else None


def _matches(pattern: str, root: Path) -> list[tuple[str, str]]:
    """Folder and name of each file that one typed path means."""
    literal = root / pattern
    with explain_read_errors(literal):
        if literal.is_dir():
            hits = list(_in_folder(literal))
        elif literal.exists():
            hits = list(_expanded(literal))
        else:
            # Only what was typed is a pattern: brackets in the name of the root mean themselves.
            start = Path(Path(pattern).anchor) if Path(pattern).is_absolute() else root
            typed = str(Path(pattern).relative_to(start)) if start is not root else pattern
            hits = [hit for path in start.glob(typed) if _is_source(path) for hit in _expanded(path)]
    if not hits:
        raise MissingInput(
            f"trajectories at {pattern!r}",
            f"nothing there (looked from {root})",
            f"name files ({', '.join(SUFFIXES)}), a folder that holds some, a glob, or a list of files",
        )
    return hits


def _in_folder(folder: Path) -> Iterator[tuple[str, str]]:
    wanted = tuple(suffix for suffix in SUFFIXES if suffix not in FORCES_ALONE)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.lower().endswith(wanted) and not entry.name.startswith("."):
                yield str(folder), entry.name


def _expanded(path: Path) -> Iterator[tuple[str, str]]:
    sources = manifest.read_manifest(path) if path.suffix in manifest.SUFFIXES else (path,)
    for source in sources:
        yield str(source.parent), source.name


def _is_source(path: Path) -> bool:
    """Whether a glob's hit is meant: what ends like a trajectory is not asked whether it is a file."""
    return not path.name.startswith(".") and (path.suffix.lower() in SUFFIXES or path.is_file())


def _is_second_of_pair(path: str, found: set[str]) -> bool:
    return path.endswith(FORCES) and path.removesuffix(FORCES) + COORDINATES in found
