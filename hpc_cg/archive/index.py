"""What an archive holds, found without reading a coordinate.

A segment is one contiguous source trajectory. Scanning opens each file for its shapes and attributes only, so
an archive of terabytes is indexed in the time its headers take.

    h5    datasets `positions` (frame atom 3), `forces` (the same, optional), `potential` (frame, optional);
          attributes, all optional: `stride_ps`, `temperature_K`, `units` ("nm, ps, kJ/mol/nm") and `written`,
          the number of frames that are complete
    npy   a pair `X_coordinates.npy`, `X_forces.npy` (optional), each (frame atom 3)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc_cg import files, units
from hpc_cg.errors import HpcCgError, MissingInput, UnknownUnit, UnreadableFile

COORDINATES, FORCES = "_coordinates.npy", "_forces.npy"
FORMATS = {".h5": "h5", ".hdf5": "h5", ".npy": "npy"}


@dataclass(frozen=True)
class Segment:
    """One contiguous source trajectory, as the index knows it.

    path            absolute; of the coordinates where forces lie in a file of their own
    format          key of readers.READERS
    stride_ps       time between frames, ps
    temperature_K   as the source states it, None where it does not
    digest          hash of the file (of both files where there are two)
    length_unit     key of units.LENGTH in which the source is written
    force_unit      key of units.FORCE in which the source is written
    forces_path     absolute; None where the forces lie in ``path`` or nowhere
    """

    molecule: str
    path: str
    format: str
    n_frames: int
    n_atoms: int
    stride_ps: float
    temperature_K: float | None
    has_forces: bool
    digest: str
    length_unit: str
    force_unit: str
    forces_path: str | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(fields: dict[str, Any]) -> "Segment":
        return Segment(**fields)


def scan(
    paths: Sequence[str],
    root: Path,
    *,
    molecule: str,
    length_unit: str,
    force_unit: str,
    stride_ps: float | None = None,
) -> tuple[Segment, ...]:
    """The segments that ``paths`` name, sorted by path; reads no coordinates.

    paths       files, folders or globs, relative to ``root`` or absolute
    root        the folder that relative paths start from
    length_unit, force_unit   the units the sources are written in
    stride_ps   time between frames in ps, for sources that do not state it
    Raises MissingInput where a path matches nothing or a source lacks its stride; UnreadableFile, which names
    the file, for one that is truncated, of another format or of another shape; UnknownUnit.
    """
    return tuple(
        describe(path, molecule=molecule, length_unit=length_unit, force_unit=force_unit, stride_ps=stride_ps)
        for path in find(paths, root)
    )


def find(paths: Sequence[str], root: Path) -> tuple[Path, ...]:
    """The source files that ``paths`` name (as in scan): absolute, sorted, each once, pairs by coordinates.

    Raises MissingInput where a path matches nothing.
    """
    found = {path for pattern in paths for path in _matches(pattern, root)}
    return tuple(sorted(path for path in found if not _is_second_of_pair(path)))


def describe(
    path: Path, *, molecule: str, length_unit: str, force_unit: str, stride_ps: float | None = None
) -> Segment:
    """The segment of one source file; arguments and errors as for scan."""
    units.length_factor(length_unit)
    units.force_factor(force_unit)
    kind = FORMATS.get(path.suffix)
    if kind is None:
        raise UnreadableFile(f"reading {path}", f"no format known for {path.suffix!r}", f"give {', '.join(FORMATS)}")
    with explain_read_errors(path):
        header = _h5_header(path, length_unit, force_unit) if kind == "h5" else _npy_header(path)
    return Segment(
        molecule=molecule,
        path=str(path),
        format=kind,
        n_frames=header.n_frames,
        n_atoms=header.n_atoms,
        stride_ps=_stride(path, header.stride_ps, stride_ps),
        temperature_K=header.temperature_K,
        has_forces=header.has_forces,
        digest=_digest(path, header.forces_path),
        length_unit=length_unit,
        force_unit=force_unit,
        forces_path=None if header.forces_path is None else str(header.forces_path),
    )


@contextmanager
def explain_read_errors(path: Path) -> Iterator[None]:
    """Turn what h5py and numpy say about a bad file into UnreadableFile with the file's name."""
    try:
        yield
    except HpcCgError:
        raise
    except FileNotFoundError as error:
        raise MissingInput(f"reading {path}", "no such file", "restore it, or take it out of the study") from error
    except PermissionError as error:
        raise UnreadableFile(f"reading {path}", "no permission to read it", "change its rights") from error
    except (OSError, KeyError, RuntimeError, EOFError, ValueError) as error:
        raise _unreadable(path, str(error)) from error


def check_array(path: Path, name: str, array: Any, n_atoms: int | None = None) -> tuple[int, int]:
    """Frames and atoms of an array; raises UnreadableFile unless it is (frame, n_atoms, 3) of floats."""
    shape: tuple[int, ...] = getattr(array, "shape", ())
    dtype = getattr(array, "dtype", None)
    whole = len(shape) == 3 and shape[2] == 3 and min(shape) > 0
    if not whole or n_atoms not in (None, shape[1]) or not np.issubdtype(dtype, np.floating):
        wanted = f"(frame, {'atom' if n_atoms is None else n_atoms}, 3) of floats"
        raise _unreadable(path, f"{name} of shape {shape} and type {dtype}, not {wanted}")
    return int(shape[0]), int(shape[1])


@dataclass(frozen=True)
class _Header:
    """What the header of a source says."""

    n_frames: int
    n_atoms: int
    has_forces: bool
    stride_ps: float | None = None
    temperature_K: float | None = None
    forces_path: Path | None = None


def _h5_header(path: Path, length_unit: str, force_unit: str) -> _Header:
    import h5py  # here, because listing files needs to be quick

    with h5py.File(path, "r") as file:
        if "positions" not in file:
            raise _unreadable(path, f"no dataset 'positions' (there is {', '.join(file) or 'nothing'})")
        n_frames, n_atoms = check_array(path, "positions", file["positions"])
        if "forces" in file and check_array(path, "forces", file["forces"], n_atoms)[0] != n_frames:
            raise _unreadable(path, f"{n_frames} frames of positions and {len(file['forces'])} of forces")
        _check_units(path, file.attrs.get("units", ""), length_unit, force_unit)
        written = int(file.attrs.get("written", n_frames))
        if not 0 < written <= n_frames:
            raise _unreadable(path, f"{written} written frames, as its attribute says, of {n_frames}")
        return _Header(
            n_frames=written,
            n_atoms=n_atoms,
            has_forces="forces" in file,
            stride_ps=_number(file.attrs.get("stride_ps")),
            temperature_K=_number(file.attrs.get("temperature_K")),
        )


def _npy_header(path: Path) -> _Header:
    if not path.name.endswith(COORDINATES):
        raise _unreadable(path, f"a name that does not end in {COORDINATES}")
    n_frames, n_atoms = check_array(path, "coordinates", np.load(path, mmap_mode="r"))
    beside = path.with_name(path.name.removesuffix(COORDINATES) + FORCES)
    if not beside.exists():
        return _Header(n_frames, n_atoms, has_forces=False)
    with explain_read_errors(beside):
        n_forces, _ = check_array(beside, "forces", np.load(beside, mmap_mode="r"), n_atoms)
    if n_forces != n_frames:
        raise _unreadable(beside, f"{n_forces} frames of forces beside {n_frames} of coordinates")
    return _Header(n_frames, n_atoms, has_forces=True, forces_path=beside)


def _matches(pattern: str, root: Path) -> list[Path]:
    literal = root / pattern
    with explain_read_errors(literal):
        if literal.is_dir():
            hits = [path for path in literal.iterdir() if path.suffix in FORMATS and not _hidden(path)]
        elif literal.exists():
            hits = [literal]
        else:
            # Only what was typed is a pattern: brackets in the name of the root mean themselves.
            start = Path(Path(pattern).anchor) if Path(pattern).is_absolute() else root
            typed = str(Path(pattern).relative_to(start)) if start is not root else pattern
            hits = [path for path in start.glob(typed) if path.is_file() and not _hidden(path)]
        # A link keeps its own name: archives link to stores whose names say nothing of the format.
        hits = [path.parent.resolve() / path.name for path in hits]
    if not hits:
        raise MissingInput(
            f"trajectories at {pattern!r}",
            f"nothing there (looked from {root})",
            f"name files ({', '.join(FORMATS)}), a folder that holds some, or a glob",
        )
    return hits


def files_of(source: Path) -> tuple[Path, ...]:
    """The files that one source of ``find`` consists of: itself, and the forces beside coordinates."""
    beside = source.with_name(source.name.removesuffix(COORDINATES) + FORCES)
    return (source, beside) if source.name.endswith(COORDINATES) and beside.exists() else (source,)


def _hidden(path: Path) -> bool:
    return path.name.startswith(".")


def _is_second_of_pair(path: Path) -> bool:
    first = path.with_name(path.name.removesuffix(FORCES) + COORDINATES)
    return path.name.endswith(FORCES) and first.exists()


def _digest(path: Path, forces_path: Path | None) -> str:
    with explain_read_errors(path):
        parts = [files.digest_file(part) for part in (path, forces_path) if part is not None]
    return parts[0] if len(parts) == 1 else files.digest(parts)


def _stride(path: Path, stated: float | None, asked: float | None) -> float:
    stride = stated if stated is not None else asked
    if stride is None:
        raise MissingInput(
            f"the time between frames of {path}",
            "no attribute stride_ps in the file",
            "state stride_ps in the study",
        )
    if asked is not None and not np.isclose(asked, stride):
        raise UnreadableFile(
            f"reading {path} with {asked} ps between frames",
            f"{stride} ps in the file",
            "correct stride_ps in the study",
        )
    return float(stride)


def _check_units(path: Path, stated: Any, length_unit: str, force_unit: str) -> None:
    """A file that states its units must state the ones the study names."""
    text = stated.decode() if isinstance(stated, bytes) else str(stated)
    words = [word.strip() for word in text.split(",")]
    for asked, known in ((length_unit, units.LENGTH), (force_unit, units.FORCE)):
        told = [word for word in words if word in known]
        if told and asked not in told:
            raise UnknownUnit(
                f"reading {path} in {asked}",
                f"the unit {told[0]} in the file",
                f"write {told[0]} in the study",
            )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _unreadable(path: Path, found: str) -> UnreadableFile:
    return UnreadableFile(f"reading {path}", found, "copy the file again from its source, or take it out of the study")
