"""Statistical weights of an archive's frames, out of a file: how much each frame counts in every sum that follows.

    weights.npy    one number for each frame of the archive, segments in the order of the index
    weights.npz    an array for each trajectory, named by its file: "run3.xtc", or "long/run3.xtc" where names repeat
                   (for files that hold several trajectories "name.h5:place/inside")

Numbers are at or above zero, and keep their digits in single precision, as the store has them; only their ratios count.
A frame of weight zero is kept in the store and used nowhere.

Whoever maps opens the file and reads what a piece needs; one process looks at all of it before (``check_weights``).
"""

import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

import numpy as np
from jaxtyping import Float64

from hpc_cg.archive.catalogue import Catalogue, Piece, sources_of
from hpc_cg.archive.index import Segment
from hpc_cg.errors import BadWeights, MissingInput

FrameWeights = Callable[[Piece], Float64[np.ndarray, "frame"]]
"""Weights of the frames of a piece."""

BLOCK = 1 << 20
"""Weights that are looked at at once."""

SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
NAMED = 5
"""Names of arrays that an error lists."""


def equal(piece: Piece) -> Float64[np.ndarray, "frame"]:
    """Weights of an archive in which every frame counts the same."""
    return np.ones(piece.stop - piece.start)


def open_weights(path: Path | None, catalogue: Catalogue) -> FrameWeights:
    """The weights in a file, or equal ones where there is none, without looking at the numbers.

    Raises MissingInput, BadWeights; what is returned raises BadWeights where an array is missing, torn or too short.
    """
    if path is None:
        return equal
    if _suffix(path) == ".npy":
        values = _flat(path, catalogue)

        def flat(piece: Piece) -> Float64[np.ndarray, "frame"]:
            first = int(catalogue.first[piece.segment])
            return np.asarray(values[first + piece.start : first + piece.stop], dtype=np.float64)

        return flat
    arrays = _Arrays(path)

    def named(piece: Piece) -> Float64[np.ndarray, "frame"]:
        segment = catalogue[piece.segment]
        return np.asarray(arrays.read(arrays.name_of(segment), segment)[piece.start : piece.stop], dtype=np.float64)

    return named


def check_weights(path: Path | None, catalogue: Catalogue) -> None:
    """Look at every weight of an archive once, a bounded part of them at a time. For one process.

    Raises MissingInput; BadWeights where a number is none that can be kept, where all are zero, where an array would
    serve two trajectories, or none.
    """
    if path is None:
        return
    if _suffix(path) == ".npy":
        any_used = _check_numbers(path, _flat(path, catalogue), "the archive")
    else:
        any_used = _check_named(path, catalogue)
    if not any_used:
        raise BadWeights(f"weights from {path}", "only zeros", "give at least one frame a weight above zero")


def _suffix(path: Path) -> str:
    if not path.is_file():
        raise MissingInput("weights of the frames", f"no file {path}", "correct prepare.weights")
    if path.suffix not in (".npy", ".npz"):
        raise BadWeights(f"weights from {path}", f"a file of type {path.suffix!r}", "give a .npy or a .npz file")
    return path.suffix


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what numpy says of a file that it cannot read into this project's sentence."""
    try:
        yield
    except BadWeights:
        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise BadWeights(
            f"weights from {path}", f"no readable {path.suffix[1:]} file ({error})", "write it again"
        ) from error


def _flat(path: Path, catalogue: Catalogue) -> np.ndarray:
    """All weights of an archive, mapped and not read."""
    with _explained(path):
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(values, np.ndarray):
        values.close()
        raise BadWeights(f"weights from {path}", "an npz archive under the name of npy", "rename it to .npz")
    _check_shape(path, values, catalogue.n_frames, "the archive")
    return values


class _Arrays:
    """The arrays of an npz file: its list of names, and the one array that was read last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _explained(path):
            content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            raise BadWeights(f"weights from {path}", "an npy array under the name of npz", "rename it to .npy")
        self.content = content
        self.names = frozenset(content.files)
        self.last: tuple[str, np.ndarray] | None = None

    def name_of(self, segment: Segment) -> str:
        """The array that serves a segment: of those that may, the one whose name says most."""
        names = _names(segment)
        found = next((name for name in reversed(names) if name in self.names), None)
        if found is None:
            raise BadWeights(
                f"weights from {self.path}",
                f"none for {segment.path} (there are {_listed(self.names) or 'no arrays'})",
                f"add an array {names[0]!r}",
            )
        return found

    def read(self, name: str, segment: Segment) -> np.ndarray:
        """The weights of one segment."""
        if self.last is None or self.last[0] != name:
            with _explained(self.path):
                self.last = name, self.content[name]
        _check_shape(self.path, self.last[1], segment.n_frames, name)
        return self.last[1]


def _check_named(path: Path, catalogue: Catalogue) -> bool:
    arrays, any_used = _Arrays(path), False
    served: dict[str, str] = {}
    for segment in catalogue:
        name, where = arrays.name_of(segment), segment.path + (f":{segment.inside}" if segment.inside else "")
        if name in served:
            raise BadWeights(
                f"an array of weights for each trajectory from {path}",
                f"{name!r} for both {served[name]} and {where}",
                "name the arrays with the folders in which the files differ, e.g. "
                + " and ".join(repr(one) for one in _apart(served[name], where)),
            )
        served[name] = where
        any_used |= _check_numbers(path, arrays.read(name, segment), name)
    idle = arrays.names.difference(served)
    idle -= _of_unused_files(idle, catalogue)
    if idle:
        raise BadWeights(
            f"weights from {path}",
            f"{len(idle)} arrays that belong to no trajectory of the archive: {_listed(idle)}",
            "take them out, or name them like their files",
        )
    return any_used


def _of_unused_files(idle: frozenset[str], catalogue: Catalogue) -> frozenset[str]:
    """The arrays of files that were named, and of which no trajectory could be read."""
    if not idle:
        return idle
    used = {segment.path for segment in catalogue}
    unused = {end for source in sources_of(catalogue.folder) if source.path not in used for end in _ends(source.path)}
    return frozenset(name for name in idle if name in unused or name.split(":")[0] in unused)


def _names(segment: Segment) -> list[str]:
    """What an array for this segment may be called, shortest first."""
    return [end + (f":{segment.inside}" if segment.inside else "") for end in _ends(segment.path)]


def _ends(path: str) -> list[str]:
    """The name of a file, and with more and more of its folders."""
    parts = PurePath(path).parts
    return ["/".join(parts[-n:]) for n in range(1, len(parts))] + [path]


def _apart(one: str, other: str) -> tuple[str, str]:
    """The shortest ends of two paths that differ."""
    first, second = PurePath(one).parts, PurePath(other).parts
    ends = (("/".join(first[-n:]), "/".join(second[-n:])) for n in range(1, max(len(first), len(second)) + 1))
    return next((pair for pair in ends if pair[0] != pair[1]), (one, other))


def _listed(names: frozenset[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(sorted(names)[:NAMED]) + more


def _check_shape(path: Path, values: np.ndarray, n_frames: int, whose: str) -> None:
    real = any(np.issubdtype(values.dtype, kind) for kind in (np.floating, np.integer, np.bool_))
    if values.shape != (n_frames,) or not real:
        raise BadWeights(
            f"{n_frames} weights for {whose} from {path}",
            f"an array of shape {values.shape} and type {values.dtype}",
            "give one real number for each frame that can be used (hpc-cg show --all lists how many those are)",
        )


def _check_numbers(path: Path, values: np.ndarray, whose: str) -> bool:
    """Whether any weight is above zero; raises BadWeights at the first that cannot be kept."""
    any_used = False
    for start in range(0, len(values), BLOCK):
        block = np.asarray(values[start : start + BLOCK], dtype=np.float64)
        wrong = np.flatnonzero(~(np.isfinite(block) & (block >= 0)))
        if len(wrong):
            raise _bad(path, whose, block, wrong, start, "give numbers at or above zero")
        lost = np.flatnonzero((block > LARGEST) | ((block > 0) & (block < SMALLEST)))
        if len(lost):
            raise _bad(
                path, whose, block, lost, start,
                f"scale all of them by one number, since only their ratios count, to lie between {SMALLEST:.2g} and "
                f"{LARGEST:.2g} as single precision needs, and set those to 0 that are still too small",
            )  # fmt: skip
        any_used |= bool(np.any(block > 0))
    return any_used


def _bad(path: Path, whose: str, block: np.ndarray, bad: np.ndarray, start: int, change: str) -> BadWeights:
    more = f", and {len(bad) - 1} more like it" if len(bad) > 1 else ""
    return BadWeights(f"weights for {whose} from {path}", f"{block[bad[0]]} at place {start + bad[0]}{more}", change)
