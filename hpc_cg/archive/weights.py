"""Statistical weights of an archive's frames, out of a file: how much each frame counts in every sum that follows.

    weights.npy    one number for each frame of the archive, segments in the order of the index
    weights.npz    an array for each trajectory, named by its file: "run3.xtc", or "long/run3.xtc" where names repeat
                   (for files that hold several trajectories "name.h5:place/inside")

Numbers are at or above zero; a frame of weight zero is kept in the store and used nowhere.
"""

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePath

import numpy as np
from jaxtyping import Float64

from hpc_cg.archive.catalogue import Catalogue, Piece
from hpc_cg.archive.index import Segment
from hpc_cg.errors import BadWeights, MissingInput

FrameWeights = Callable[[Piece], Float64[np.ndarray, "frame"]]
"""Weights of the frames of a piece."""


def equal(piece: Piece) -> Float64[np.ndarray, "frame"]:
    """Weights of an archive in which every frame counts the same."""
    return np.ones(piece.stop - piece.start)


def open_weights(path: Path | None, catalogue: Catalogue) -> FrameWeights:
    """The weights in a file, or equal ones where there is none; raises MissingInput, BadWeights."""
    if path is None:
        return equal
    if not path.is_file():
        raise MissingInput("weights of the frames", f"no file {path}", "correct prepare.weights")
    if path.suffix == ".npy":
        return _flat(path, catalogue)
    if path.suffix == ".npz":
        return _by_name(path, catalogue)
    raise BadWeights(f"weights from {path}", f"a file of type {path.suffix!r}", "give a .npy or a .npz file")


def _flat(path: Path, catalogue: Catalogue) -> FrameWeights:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BadWeights(f"weights from {path}", f"no readable npy file ({error})", "write it again") from error
    _check(path, values, catalogue.n_frames, "the archive")
    if not np.any(values > 0):
        raise BadWeights(f"weights from {path}", "only zeros", "give at least one frame a weight above zero")

    def weights(piece: Piece) -> Float64[np.ndarray, "frame"]:
        first = int(catalogue.first[piece.segment])
        return np.asarray(values[first + piece.start : first + piece.stop], dtype=np.float64)

    return weights


def _by_name(path: Path, catalogue: Catalogue) -> FrameWeights:
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BadWeights(f"weights from {path}", f"no readable npz file ({error})", "write it again") from error
    found: list[np.ndarray] = []
    for segment in catalogue:
        name = next((name for name in _names(segment) if name in arrays), None)
        if name is None:
            raise BadWeights(
                f"weights from {path}",
                f"none for {segment.path} (there are {', '.join(sorted(arrays)[:5]) or 'no arrays'})",
                f"add an array {_names(segment)[0]!r}",
            )
        _check(path, arrays[name], segment.n_frames, name)
        found.append(arrays[name].astype(np.float64))
    if not any(np.any(values > 0) for values in found):
        raise BadWeights(f"weights from {path}", "only zeros", "give at least one frame a weight above zero")

    def weights(piece: Piece) -> Float64[np.ndarray, "frame"]:
        return found[piece.segment][piece.start : piece.stop]

    return weights


def _names(segment: Segment) -> list[str]:
    """What an array for this segment may be called, shortest first."""
    parts = PurePath(segment.path).parts
    within = f":{segment.inside}" if segment.inside else ""
    return ["/".join(parts[-n:]) + within for n in range(1, len(parts))] + [segment.path + within]


def _check(path: Path, values: np.ndarray, n_frames: int, whose: str) -> None:
    if values.shape != (n_frames,) or not np.issubdtype(values.dtype, np.number):
        raise BadWeights(
            f"{n_frames} weights for {whose} from {path}",
            f"an array of shape {values.shape} and type {values.dtype}",
            "give one number for each frame that can be used (hpc-cg show lists how many those are)",
        )
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(bad):
        raise BadWeights(
            f"weights for {whose} from {path}",
            f"{values[bad[0]]} at place {bad[0]}, and {len(bad) - 1} more like it",
            "give numbers at or above zero",
        )
