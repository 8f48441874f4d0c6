"""What every trajectory format offers: a header that costs no coordinates, and frames by their place in the file.

A format is one module with two functions, listed in ``index.FORMATS``:

    headers(path)          what the file holds: a Header for each trajectory inside it
    opened(path, inside)   a context in which ``read(rows, atoms, forces)`` gives frames in the file's own units

``rows`` say where frames are, as the header listed them: byte offsets where frames vary in size (XTC, TRR), numbers
elsewhere. Readers hold no more than the frames they are asked for.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int64


@dataclass(frozen=True, eq=False)
class Header:
    """What a file says of one trajectory before a coordinate is read.

    rows              where each frame is; argument of ``Read``
    has_positions     for each frame, whether it carries positions
    has_forces        for each frame, whether it carries forces
    step              step number of each frame, None where the format keeps none
    time              ps, None where the format keeps none
    stride_ps         ps between frames where the file states it as a number of its own, None elsewhere
    temperature_K     None where the file does not say
    length_unit       key of units.LENGTH that the format or the file states, None where the study has to
    force_unit        key of units.FORCE, likewise
    inside            the trajectory's place within the file; empty where a file is one trajectory
    note              what is wrong with the file though its frames can be used, e.g. a last frame that is cut off
    """

    n_atoms: int
    rows: Int64[np.ndarray, "frame"]
    has_positions: Bool[np.ndarray, "frame"]
    has_forces: Bool[np.ndarray, "frame"]
    step: Int64[np.ndarray, "frame"] | None = None
    time: Float[np.ndarray, "frame"] | None = None
    stride_ps: float | None = None
    temperature_K: float | None = None
    length_unit: str | None = None
    force_unit: str | None = None
    inside: str = ""
    note: str = ""

    @property
    def n_frames(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class RawFrames:
    """Frames in the units of their file; None where the file has none or none were asked for.

    cell   the three box vectors of each frame, in rows
    """

    positions: Float[np.ndarray, "frame atom 3"] | None
    forces: Float[np.ndarray, "frame atom 3"] | None
    cell: Float[np.ndarray, "frame 3 3"] | None = field(default=None)


@runtime_checkable
class Read(Protocol):
    """Reads the frames at ``rows``: the given atoms (ascending; None for all), positions or forces or both."""

    def __call__(
        self, rows: Int64[np.ndarray, "frame"], atoms: Int64[np.ndarray, "atom"] | None, positions: bool, forces: bool
    ) -> RawFrames: ...


@dataclass(frozen=True)
class Format:
    """One trajectory format: its name, and the two functions described above."""

    name: str
    headers: Callable[[Path], tuple[Header, ...]]
    opened: Callable[[Path, str], AbstractContextManager[Read]]
