"""Who does which part of the work: a share of the items, and the team that the share belongs to.

A stage plans its items, takes its share, works, and meets the others at a barrier. It does not know whether the
others are MPI ranks, tasks of an array, or nobody.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


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
    """Members that divide items among themselves and can wait for one another."""

    @property
    def share(self) -> Share:
        """Which member this is, of how many."""
        ...

    def take(self, items: Sequence[T]) -> Iterator[T]:
        """Items for this member, one after another; each item goes to exactly one member of the team."""
        ...

    def barrier(self) -> None:
        """Return when every member has come here."""
        ...


@dataclass(frozen=True)
class Alone:
    """A team of one: a laptop, a test."""

    share: Share = Share(0, 1)

    def take(self, items: Sequence[T]) -> Iterator[T]:
        return iter(items)

    def barrier(self) -> None:
        pass
