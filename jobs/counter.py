"""One counter for all MPI ranks: whoever is free takes the next number, so fast ranks take more.

The counter lives in the memory of rank 0 and is read and raised in one atomic step by one-sided communication
(MPI_Fetch_and_op; MPI 4.1, section 12.3.4), so no rank is spent on handing out work.
"""

import itertools
import logging
import time
from collections.abc import Iterator
from threading import Event, Thread
from typing import Any

from hpc_cg.share import Stop

logger = logging.getLogger(__name__)

ANSWER_EVERY_SECONDS = 0.005


def shared_counter(comm: Any) -> Any | None:
    """A counter that all ranks of ``comm`` share; None, on every rank, where one-sided MPI fails."""
    from mpi4py import MPI
    from mpi4py.util.sync import Counter

    counter, reason = None, ""
    try:
        counter = Counter(comm=comm)
        counter.next(0)
    except (MPI.Exception, NotImplementedError) as error:
        reason = str(error)
    reasons = [text for text in comm.allgather(reason) if text]
    if not reasons:
        return counter
    if comm.Get_rank() == 0:
        logger.warning("Items are divided beforehand, not on demand: one-sided MPI fails here (%s)", reasons[0])
    return None


class Round:
    """One handing out of the numbers below ``n_items``: every rank draws for itself, then all close it together.

    A rank that fails or leaves its loop waits for nobody: only ``close`` is collective. ``whole`` is that of
    ``hpc_cg.share.Team.take``.
    """

    def __init__(self, comm: Any, n_items: int, stop: Stop, whole: bool = True) -> None:
        self._comm, self._n_items, self._stop, self._whole = comm, n_items, stop, whole
        self._taken, self._asked = 0, False
        self._counter = shared_counter(comm)
        beforehand = itertools.count(comm.Get_rank(), comm.Get_size())
        self._numbers: Iterator[int] = beforehand if self._counter is None else self._counter
        self._answering = None if self._counter is None else Answering.where_needed(comm)

    def __iter__(self) -> Iterator[int]:
        longest_s = 0.0
        while True:
            self._asked = self._stop(longest_s)
            if self._asked or (number := next(self._numbers)) >= self._n_items:
                return
            self._taken += 1
            began = time.monotonic()
            yield number
            if self._whole:
                longest_s = max(longest_s, time.monotonic() - began)

    def close(self) -> bool:
        """Meet the other ranks when they have ended too; whether some were asked to stop and numbers are left over."""
        if self._answering is not None:
            self._answering.end()
        ends = self._comm.allgather((self._asked, self._taken))
        if self._counter is not None:
            self._counter.free()
        return any(asked for asked, _ in ends) and sum(taken for _, taken in ends) < self._n_items


class Answering:
    """A thread of rank 0, which holds the counter, that answers the others while rank 0 works on an item of its own.

    Without hardware for one-sided access, MPI serves the counter only while its holder is inside an MPI call,
    and a busy rank 0 makes all ranks wait for it. So the thread enters MPI every few milliseconds.
    """

    def __init__(self, comm: Any) -> None:
        self._comm, self._done = comm, Event()
        self._thread = Thread(target=self._answer, daemon=True)
        self._thread.start()

    @classmethod
    def where_needed(cls, comm: Any) -> "Answering | None":
        """On rank 0, where MPI allows threads."""
        from mpi4py import MPI

        needed = comm.Get_rank() == 0 and MPI.Query_thread() >= MPI.THREAD_MULTIPLE
        return cls(comm) if needed else None

    def end(self) -> None:
        self._done.set()
        self._thread.join()

    def _answer(self) -> None:
        from mpi4py import MPI

        while not self._done.wait(ANSWER_EVERY_SECONDS):
            self._comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG)
