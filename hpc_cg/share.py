"""Who does which part of the work: a share of the items, and the team that the share belongs to.

A stage plans its items, takes its share, works, and meets the others at a barrier. It does not know whether the
others are MPI ranks, tasks of an array, or nobody. Whoever makes the team may ask it to stop; a stage then leaves by
``Stopped``, with whole items behind it and none half done.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")
Stop = Callable[[float], bool]
"""Asked before each item whether to stop, with the seconds that the longest item of this member took so far."""


class Stopped(Exception):
    """The team was asked to stop before all items were handed out; what is done stays."""


def never(longest_item_s: float) -> bool:
    """Asks nobody to stop."""
    return False


@dataclass(frozen=True)
class Share:
    """Part ``index`` of ``count`` equal parts."""

    index: int
    count: int

    def __post_init__(self) -> None:
        assert 0 <= self.index < self.count, f"share {self.index} of {self.count}"

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """Every count-th item, from index on: disjoint over the shares, and together all items."""
        return items[self.index :: self.count]


@runtime_checkable
class Team(Protocol):
    """Members that divide items among themselves and can wait for one another.

    All members call ``take``, ``tell`` and ``barrier`` in the same order.
    """

    @property
    def share(self) -> Share:
        """Which member this is, of how many."""
        ...

    @property
    def stop(self) -> Stop:
        """Asked by this member whether to stop at the next safe place."""
        ...

    def take(self, items: Sequence[T], whole: bool = True) -> Iterator[T]:
        """Items for this member, one after another; each item goes to exactly one member of the team.

        whole   an item is done in one go; where not, its doer asks ``stop`` between its parts, and leaves the loop
                where it says so

        Where members were asked to stop and items are left over, raises Stopped on every member: at the end of its
        loop, or at its next call of the team where it left the loop early.
        """
        ...

    def tell(self, value: T) -> T:
        """The value of the first member, on every member; the others' are not looked at.

        It travels pickled in one piece: for flags, paths and lists of items, not for arrays of many megabytes.
        """
        ...

    def barrier(self) -> None:
        """Return when every member has come here."""
        ...


@dataclass(frozen=True)
class Alone:
    """A team of one: a laptop, a test."""

    share: Share = Share(0, 1)
    stop: Stop = never

    def take(self, items: Sequence[T], whole: bool = True) -> Iterator[T]:
        longest_s = 0.0
        for item in items:
            if self.stop(longest_s):
                raise Stopped
            began = time.monotonic()
            yield item
            if whole:
                longest_s = max(longest_s, time.monotonic() - began)

    def tell(self, value: T) -> T:
        return value

    def barrier(self) -> None:
        pass
