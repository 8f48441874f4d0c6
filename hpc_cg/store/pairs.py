"""Pairs of frames a lag apart in one segment, (x_t, x_{t+τ}), read window by window from a store of any size.

A frame and the one ``lag`` frames later are a pair where all frames between them are there too: rows of the store that
follow one another, of one segment, each frame one later than the one before, none of weight zero. So the later frame
lies exactly ``lag`` rows on. The rows of a window need those of the window ``lag`` rows on and the numbering of the
rows between; shards do not matter, and the pairs of a window are the same whoever reads it. What a trajectory did
while a frame was lost or quarantined is not known, so no pair reaches across.
"""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int64

from hpc_cg.errors import TooFewFrames, UnfitLag
from hpc_cg.store.dataset import held_out, read_frames
from hpc_cg.store.layout import ShardFrames, StoreSpec

WHOLE = 1e-5
"""By how much of itself a lag may miss a whole number of frames: strides are known to six digits."""


@dataclass(frozen=True)
class FramePairs:
    """Pairs of frames, in the order of the store.

    index      row of the earlier frame in the store
    earlier    arrays (pair bead 3) of x_t by name, nm and kJ/mol/nm
    later      the same of x_{t+τ}
    weights    of the earlier frame: what follows it is the molecule's own doing
    held_out   of the earlier and of the later frame, whether it is held out from training
    """

    index: Int64[np.ndarray, "pair"]
    earlier: dict[str, np.ndarray]
    later: dict[str, np.ndarray]
    weights: Float[np.ndarray, "pair"]
    held_out: Bool[np.ndarray, "pair 2"]

    @property
    def train(self) -> Bool[np.ndarray, "pair"]:
        """Pairs to train on: neither frame is held out."""
        return ~(self.held_out[:, 0] | self.held_out[:, 1])

    @property
    def judge(self) -> Bool[np.ndarray, "pair"]:
        """Pairs to judge by: the later frame, which a kernel is to give, is held out."""
        return self.held_out[:, 1]


def lag_frames(lag_ps: float, stride_ps: float) -> int:
    """The lag in frames that lie ``stride_ps`` apart; raises UnfitLag where it is no whole number of them."""
    frames = max(1, round(lag_ps / stride_ps))
    if abs(lag_ps - frames * stride_ps) > WHOLE * frames * stride_ps:
        raise UnfitLag(
            f"pairs of frames {lag_ps:g} ps apart",
            f"frames every {stride_ps:g} ps",
            f"choose a multiple of that, e.g. {frames * stride_ps:g} ps",
        )
    return frames


def read_pairs(
    folder: Path,
    spec: StoreSpec,
    lag: int,
    start: int,
    stop: int,
    names: tuple[str, ...] = ("positions",),
    uneven: Collection[int] = (),
) -> FramePairs:
    """The pairs whose earlier frame is one of the rows ``start`` to ``stop`` of a store.

    lag      frames from one to the other, at least 1
    names    which of positions, noise, forces to read
    uneven   segments whose frames are not evenly spaced in time, where no number of frames is a lag: they have no pairs
    Raises DamagedProduct.
    """
    numbering = _numbering(folder, spec, lag, start, stop)
    places = _places(numbering, lag, stop - start, uneven)
    earlier, later = (read_rows(folder, spec, start + rows, names) for rows in (places, places + lag))
    return FramePairs(start + places, earlier, later, numbering.weights[places], _sides(numbering, spec, places, lag))


def count_pairs(folder: Path, spec: StoreSpec, lag: int, uneven: Collection[int] = ()) -> Int64[np.ndarray, "chunk 2"]:
    """Pairs to train on, and to judge by, whose earlier frame is in each chunk of a store; no positions are read.

    Raises UnfitLag where no segment is longer than the lag, TooFewFrames where gaps or ``uneven`` leave no pair,
    DamagedProduct.
    """
    counts = np.zeros((-(-spec.n_frames // spec.chunk_frames), 2), dtype=np.int64)
    n_pairs, longest = 0, 0
    for shard in range(spec.n_shards):
        start, stop = spec.frames_of(shard)
        numbering = _numbering(folder, spec, lag, start, stop)
        places = _places(numbering, lag, stop - start, uneven)
        early, late = _sides(numbering, spec, places, lag).T
        chunk = (start + places) // spec.chunk_frames
        for side, chosen in enumerate((~(early | late), late)):
            counts[:, side] += np.bincount(chunk[chosen], minlength=len(counts))
        n_pairs += len(places)
        longest = max(longest, int(numbering.frame_index.max()) + 1)
    if not n_pairs:
        asked = f"pairs of frames {lag} frames apart in {spec.molecule}"
        if longest <= lag:
            raise UnfitLag(asked, f"segments of at most {longest} frames", "shorten the lag or give longer segments")
        raise TooFewFrames(asked, "a gap, or uneven times, between any two such frames", "shorten the lag")
    return counts


def _numbering(folder: Path, spec: StoreSpec, lag: int, start: int, stop: int) -> ShardFrames:
    """Where the frames of a window and of ``lag`` rows after it come from, and their weights."""
    end = min(stop + lag, spec.n_frames)
    cuts = [start, *range((start // spec.shard_frames + 1) * spec.shard_frames, end, spec.shard_frames), end]
    return ShardFrames.joined([read_frames(folder, spec, low, high, ()) for low, high in pairwise(cuts)])


def _places(numbering: ShardFrames, lag: int, n_rows: int, uneven: Collection[int]) -> Int64[np.ndarray, "pair"]:
    """Which of the first ``n_rows`` rows are the earlier frame of a pair."""
    segment, frame = numbering.segment, numbering.frame_index
    bad = ~(numbering.weights > 0) | np.isin(segment, list(uneven))
    begins = np.ones(len(bad), dtype=bool)
    begins[1:] = (np.diff(segment) != 0) | (np.diff(frame) != 1) | bad[1:] | bad[:-1]
    begin = np.maximum.accumulate(np.where(begins, np.arange(len(bad)), 0))
    early = np.arange(min(n_rows, max(len(bad) - lag, 0)))
    return early[begin[early + lag] <= early]


def _sides(numbering: ShardFrames, spec: StoreSpec, places: np.ndarray, lag: int) -> Bool[np.ndarray, "pair 2"]:
    out = held_out(numbering.segment, numbering.frame_index, *spec.held_out)
    return np.stack([out[places], out[places + lag]], axis=1)


def read_rows(folder: Path, spec: StoreSpec, rows: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Arrays of the given rows of a store, which do not descend; chunks that hold none are not read, others in turn."""
    found = {name: np.empty((len(rows), spec.system.n_beads, 3), dtype=np.float32) for name in names}
    chunk = rows // spec.chunk_frames
    for number in np.unique(chunk):
        low, high = np.searchsorted(chunk, [number, number + 1])
        start = int(rows[low])
        content = read_frames(folder, spec, start, int(rows[high - 1]) + 1, names)
        for name, values in content.arrays.items():
            found[name][low:high] = values[rows[low:high] - start]
    return found
