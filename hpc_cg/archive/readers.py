"""Blocks of frames out of a segment, in nm and kJ/mol/nm: one function per format, chosen by a table.

This is the border at which units are converted; everything after speaks nm, ps, kJ/mol. A reader touches only
the frames it is asked for, so memory is bounded by the block.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float

from hpc_cg import units
from hpc_cg.archive.index import Segment, check_array, explain_read_errors
from hpc_cg.errors import UnreadableFile
from hpc_cg.frames import AtomFrames


def read(segment: Segment, start: int, stop: int) -> AtomFrames:
    """Frames start..stop, stop left out: positions in nm, forces in kJ/mol/nm or None, time in ps.

    Raises UnreadableFile where the file is truncated or not as indexed, MissingInput where it is gone.
    """
    assert 0 <= start <= stop <= segment.n_frames, f"frames {start}..{stop} of {segment.n_frames}"
    return READERS[segment.format](segment, start, stop)


def read_h5(segment: Segment, start: int, stop: int) -> AtomFrames:
    """Frames of an HDF5 source; positions as they stand in the file, times the unit."""
    path = Path(segment.path)
    with explain_read_errors(path), h5py.File(path, "r") as file:
        _check_index(path, "positions", file["positions"], segment)
        positions = file["positions"][start:stop]
        forces = None
        if segment.has_forces:
            _check_index(path, "forces", file["forces"], segment)
            forces = file["forces"][start:stop]
    return AtomFrames(
        positions=_converted(positions, units.length_factor(segment.length_unit)),
        forces=None if forces is None else _converted(forces, units.force_factor(segment.force_unit)),
        cell=None,
        time=_times(segment, start, stop),
    )


def read_npy(segment: Segment, start: int, stop: int) -> AtomFrames:
    """Frames of a pair of npy files; each frame centred on the mean of its positions, in float32.

    Such arrays come unwrapped, hundreds of Angstrom from the origin, where float32 leaves 4 to 5 bits fewer
    for the molecule itself. They are therefore converted and centred in float64 before they are rounded.
    Forces do not change under a translation.
    """
    positions = _npy_block(Path(segment.path), "coordinates", segment, start, stop)
    positions = positions * units.length_factor(segment.length_unit)
    forces = None
    if segment.has_forces:
        assert segment.forces_path is not None
        forces = _npy_block(Path(segment.forces_path), "forces", segment, start, stop)
        forces = (forces * units.force_factor(segment.force_unit)).astype(np.float32)
    return AtomFrames(
        positions=(positions - positions.mean(axis=1, keepdims=True)).astype(np.float32),
        forces=forces,
        cell=None,
        time=_times(segment, start, stop),
    )


READERS: dict[str, Callable[[Segment, int, int], AtomFrames]] = {"h5": read_h5, "npy": read_npy}
"""The reader of each format that the index knows."""


def _npy_block(path: Path, name: str, segment: Segment, start: int, stop: int) -> Float[np.ndarray, "frame atom 3"]:
    with explain_read_errors(path):
        whole = np.load(path, mmap_mode="r")
        _check_index(path, name, whole, segment)
        return np.array(whole[start:stop], dtype=np.float64)


def _converted(block: np.ndarray, factor: float) -> np.ndarray:
    return block if factor == 1.0 else (block.astype(np.float64) * factor).astype(block.dtype)


def _times(segment: Segment, start: int, stop: int) -> Float[np.ndarray, "frame"]:
    return np.arange(start, stop, dtype=np.float64) * segment.stride_ps


def _check_index(path: Path, name: str, array: Any, segment: Segment) -> None:
    n_frames, _ = check_array(path, name, array, segment.n_atoms)
    if n_frames < segment.n_frames:
        raise UnreadableFile(
            f"reading {path}",
            f"{n_frames} frames of {name} where the index counted {segment.n_frames}",
            "the file changed after the scan: run prepare again",
        )
