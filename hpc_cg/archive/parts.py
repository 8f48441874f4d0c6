"""A reader of frames put together from functions that read one quantity each."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Int64

from hpc_cg.archive.faults import explain_read_errors
from hpc_cg.archive.source import RawFrames, Read

Part: TypeAlias = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
"""(frame, atom, 3) of the frames at given ascending rows, and of the atoms given (None for all)."""

CellPart: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""Cell vectors (frame, 3, 3) of the frames at given rows."""


def joined(path: Path, of_positions: Part | None, of_forces: Part | None, of_cell: CellPart | None) -> Read:
    """The reader of one file; what goes wrong in it is UnreadableFile with the file's name."""

    def read(
        rows: Int64[np.ndarray, "frame"], atoms: Int64[np.ndarray, "atom"] | None, positions: bool, forces: bool
    ) -> RawFrames:
        with explain_read_errors(path):
            return RawFrames(
                positions=of_positions(rows, atoms) if positions and of_positions is not None else None,
                forces=of_forces(rows, atoms) if forces and of_forces is not None else None,
                cell=None if of_cell is None else of_cell(rows),
            )

    return read
