"""Which frames lie a lag apart: pairs (x_t, x_{t+τ}) of frames in memory, never across segments or gaps.

A pair is there where both frames are of one segment and the later is exactly ``lag`` frames later. Pairs are taken at
every frame (sliding), so that those of parts of the frames, each by its earlier frame, are those of all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int64

from hpc_cg.errors import TooFewFrames, UnfitLag


@dataclass(frozen=True)
class Timeline:
    """Where each frame comes from: its segment (or replica), and its number there, which grows from frame to frame."""

    segment: Int[np.ndarray, "frame"]
    frame_index: Int[np.ndarray, "frame"]

    @staticmethod
    def of_lengths(lengths: Sequence[int]) -> "Timeline":
        """Of whole segments laid one after another."""
        segment = np.repeat(np.arange(len(lengths)), lengths)
        index = np.concatenate([np.arange(length) for length in lengths]) if len(lengths) else np.zeros(0, dtype=int)
        return Timeline(segment, index)

    @property
    def n_frames(self) -> int:
        return len(self.segment)

    def earlier(self, lag: int, start: int = 0, stop: int | None = None) -> Int64[np.ndarray, "pair"]:
        """Places of the earlier frame of each pair, among frames ``start`` to ``stop``; the later is ``lag`` places on.

        None where there is no pair: ``check`` says why.
        """
        assert lag >= 1, f"a lag of {lag} frames"
        last = max(min(self.n_frames if stop is None else stop, self.n_frames - lag), start)
        near, far = slice(start, last), slice(start + lag, last + lag)
        pair = self.segment[near] == self.segment[far]
        pair &= self.frame_index[far] - self.frame_index[near] == lag
        return start + np.flatnonzero(pair)

    def check(self, lag: int) -> None:
        """Raises UnfitLag where no segment is longer than the lag, TooFewFrames where gaps leave no pair."""
        if len(self.earlier(lag)):
            return
        asked = f"pairs of frames {lag} frames apart"
        longest = int(np.unique(self.segment, return_counts=True)[1].max()) if self.n_frames else 0
        if longest <= lag:
            raise UnfitLag(asked, f"segments of at most {longest} frames", "shorten the lag or give longer segments")
        raise TooFewFrames(asked, "a gap between any two such frames", "shorten the lag")
