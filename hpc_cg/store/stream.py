"""Read a store of any size for training: the frames of each step, in the order of ``order.py``, with bounded memory.

A process serves some of the streams and reads nothing of the others. Of each stream it holds the window that is used
and the one after it, which a thread reads meanwhile. A training resumes at any step without reading what came before.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import numpy as np
from jaxtyping import Float, Int64

from hpc_cg.store.dataset import damaged, held_out, read_frames
from hpc_cg.store.layout import ShardFrames, StoreSpec
from hpc_cg.store.order import Order, Pick, Window

TRAIN, HELD_OUT = 0, 1
"""Columns of the counts: frames to train on, frames held out."""


@dataclass(frozen=True)
class Frames:
    """Frames of a store; ``index`` numbers them from its start, arrays (frame bead 3) in nm and kJ/mol/nm."""

    index: Int64[np.ndarray, "frame"]
    arrays: dict[str, np.ndarray]
    weights: Float[np.ndarray, "frame"]

    def __getitem__(self, rows: slice | Int64[np.ndarray, "chosen"]) -> "Frames":
        arrays = {name: values[rows] for name, values in self.arrays.items()}
        return Frames(self.index[rows], arrays, self.weights[rows])

    @staticmethod
    def joined(parts: "Sequence[Frames]") -> "Frames":
        """Parts that follow one another, as one; always a copy, so that no window is kept for a few of its frames."""
        return Frames(
            np.concatenate([part.index for part in parts]),
            {name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays},
            np.concatenate([part.weights for part in parts]),
        )


@dataclass
class _Place:
    """Where a stream is: the window that is used up, and the one that is being read."""

    window: Window
    frames: Frames
    next_window: Window
    next_frames: "Future[Frames]"


class StreamReader:
    """The frames of some streams, step by step; the next windows are read by a thread meanwhile.

    streams   which of the order's streams to serve
    names     which of positions, noise, forces to read
    Close it, or use it as a context: then the thread ends, whatever happened.
    """

    def __init__(self, folder: Path, spec: StoreSpec, order: Order, streams: Sequence[int], names: tuple[str, ...]):
        self.folder, self.spec, self.order, self.names = folder, spec, order, names
        self.streams = tuple(streams)
        self._places: dict[int, _Place] = {}
        self._closed = Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reads the store")

    def __enter__(self) -> "StreamReader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading; windows that were not asked for yet are dropped."""
        self._closed.set()
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._places.clear()

    def batch(self, step: int) -> tuple[Frames, ...]:
        """The frames of a step, a stream each; any step may be asked for, the next one is the cheapest.

        Raises DamagedProduct where the store is not what its commit records say.
        """
        epoch, first = self.order.place(step)
        self._go_to(epoch, first)
        return tuple(self._take(stream, epoch, first) for stream in self.streams)

    def _go_to(self, epoch: int, first: int) -> None:
        """Ask for the windows of all streams that are not at hand, before waiting for one of them."""
        asked: dict[int, tuple[Window, Future[Frames]]] = {}
        for stream in self.streams:
            place = self._places.get(stream)
            if place is not None and any(_holds(w, epoch, first) for w in (place.window, place.next_window)):
                continue
            if place is not None:
                place.next_frames.cancel()
                del self._places[stream], place
            window = self.order.window(epoch, stream, first)
            asked[stream] = (window, self._ask(window))
        for stream, (window, frames) in asked.items():
            self._places[stream] = self._arrive(window, frames)

    def _take(self, stream: int, epoch: int, first: int) -> Frames:
        end, parts = first + self.order.share, []
        while first < end:
            place = self._places[stream]
            if not _holds(place.window, epoch, first):
                window, frames = place.next_window, place.next_frames
                del self._places[stream], place  # the old window goes before another is read
                place = self._places[stream] = self._arrive(window, frames)
            until = min(end, place.window.end)
            parts.append(place.frames[first - place.window.begin : until - place.window.begin])
            first = until
        return Frames.joined(parts)

    def _arrive(self, window: Window, frames: "Future[Frames]") -> _Place:
        found, after = frames.result(), self.order.after(window)
        return _Place(window, found, after, self._ask(after))

    def _ask(self, window: Window) -> "Future[Frames]":
        return self._thread.submit(self._read, window)

    def _read(self, window: Window) -> Frames:
        picks = (pick for pick in window.picks if not self._closed.is_set())
        slots = self.order.shuffled(window)
        return read_picks(self.folder, self.spec, self.order.counts, TRAIN, picks, slots, self.names)


def _holds(window: Window, epoch: int, place: int) -> bool:
    return window.epoch == epoch and window.begin <= place < window.end


def read_picks(
    folder: Path,
    spec: StoreSpec,
    counts: Int64[np.ndarray, "block"],
    side: int,
    picks: Iterable[Pick],
    slots: Int64[np.ndarray, "frame"],
    names: tuple[str, ...],
) -> Frames:
    """The frames that ``picks`` name.

    counts   frames of that side of each block, which the store is held to
    side     TRAIN or HELD_OUT
    slots    where each frame is put among those returned
    Raises DamagedProduct where a block is missing, cannot be decoded, or holds other frames than its record says.
    """
    n_frames = len(slots)
    found = Frames(
        index=np.empty(n_frames, dtype=np.int64),
        arrays={name: np.empty((n_frames, spec.system.n_beads, 3), dtype=np.float32) for name in names},
        weights=np.empty(n_frames, dtype=np.float32),
    )
    place = 0
    for pick in picks:
        start = pick.block * spec.chunk_frames
        content = read_frames(folder, spec, start, min(start + spec.chunk_frames, spec.n_frames), names)
        usable = usable_frames(content, spec, side)
        if len(usable) != counts[pick.block]:
            raise damaged(
                folder,
                spec,
                start // spec.shard_frames,
                f"{len(usable)} frames in a chunk whose commit record says {counts[pick.block]}",
            )
        rows, end = usable[pick.ranks], place + len(pick.ranks)
        found.index[slots[place:end]] = start + rows
        found.weights[slots[place:end]] = content.weights[rows]
        for name, values in content.arrays.items():
            found.arrays[name][slots[place:end]] = values[rows]
        place = end
    return found


def usable_frames(content: ShardFrames, spec: StoreSpec, side: int) -> Int64[np.ndarray, "usable"]:
    """Rows of the frames of one side, to train on or held out, by the rule of the store."""
    out = held_out(content.segment, content.frame_index, *spec.held_out)
    return np.flatnonzero((content.weights > 0) & (out == (side == HELD_OUT)))
