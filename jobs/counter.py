"""One counter for all MPI ranks: whoever is free takes the next number, so fast ranks take more.

The counter lives in the memory of rank 0 and is read and raised in one atomic step by one-sided communication
(MPI_Fetch_and_op; MPI 4.1, section 12.3.4), so no rank is spent on handing out work.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any, TypeVar

T = TypeVar("T")
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
    logger.warning("Items are divided beforehand, not on demand: one-sided MPI fails here (%s)", reasons[0])
    return None


def count_through(items: Sequence[T], counter: Any, comm: Any) -> Iterator[T]:
    """The items whose numbers this rank draws; ends when all ranks of ``comm`` have ended."""
    with _answering(comm):
        try:
            while (index := counter.next()) < len(items):
                yield items[index]
        except GeneratorExit:  # a rank that leaves its loop early still has to meet the others below
            pass
    counter.free()


@contextmanager
def _answering(comm: Any) -> Iterator[None]:
    """Let rank 0, which holds the counter, answer the others while it works on an item of its own.

    Without hardware for one-sided access, MPI serves the counter only while its holder is inside an MPI call,
    and a busy rank 0 makes all ranks wait for it. So a thread of rank 0 enters MPI every few milliseconds.
    """
    from mpi4py import MPI

    if comm.Get_rank() != 0 or MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        yield
        return
    done = Event()

    def answer() -> None:
        while not done.wait(ANSWER_EVERY_SECONDS):
            comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG)

    thread = Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
