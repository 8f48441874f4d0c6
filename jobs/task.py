"""What one job is to do: the study's path, a stage, which part of it. Small, plain, and the same at every attempt.

A task is what a batch script says on its command line and what submitit carries: an object that is called. It holds no
state of the work: what is done is read from the products, each time. Nothing that takes time is imported here, so that
signals are heard from the first moment on.
"""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from jobs import asked

WHOLE, GATHER = "whole", "gather"
CAMPAIGN = "campaign"
"""In place of a stage: the page of a campaign, whose file stands in place of a study's."""

PART = re.compile(r"whole|gather|\d+/\d+|\d+(-\d+)?(,\d+(-\d+)?)*")


@dataclass(frozen=True)
class Task:
    """One job's part of a stage.

    part        "whole"; "gather" to put together what others did; items as "0-3,7"; or "2/16", a share of all items
    submitted   copy of the study file as it was when this was submitted; empty where nothing is to be compared
    """

    study: str
    stage: str
    part: str = WHOLE
    submitted: str = ""

    def __post_init__(self) -> None:
        assert PART.fullmatch(self.part), f"part {self.part!r}"

    @property
    def words(self) -> list[str]:
        """The command line of this task, after ``python -m jobs``."""
        part = [] if self.part == WHOLE else ["--part", self.part]
        return [self.stage, self.study, *part, *(["--submitted", self.submitted] if self.submitted else [])]

    def items(self, n_items: int) -> tuple[int, ...]:
        """The items of this part, of ``n_items`` in all; none for the parts that have names."""
        if "/" in self.part:
            index, count = (int(number) for number in self.part.split("/"))
            return tuple(range(index, n_items, count))
        return tuple(item for item in expand(self.part) if item < n_items) if self.part[0].isdecimal() else ()

    def __call__(self) -> None:
        """Do it; a code other than zero leaves through SystemExit, which no transport takes for a result."""
        asked.listen(self.stage, os.environ)
        from jobs.__main__ import main  # takes seconds, in which signals are heard already

        code = main(self.words)
        if code:
            sys.exit(code)


def compress(items: Sequence[int]) -> str:
    """Item numbers in order, runs of them shortened: 0, 1, 2, 7 is "0-2,7"."""
    runs: list[list[int]] = []
    for item in items:
        if runs and item == runs[-1][1] + 1:
            runs[-1][1] = item
        else:
            runs.append([item, item])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)


def expand(text: str) -> tuple[int, ...]:
    """The numbers that ``compress`` shortened."""
    found: list[int] = []
    for run in text.split(","):
        first, _, last = run.partition("-")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)
