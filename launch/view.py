"""What the terminal shows while a stage runs: what, how many, how fast, how long still."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn

from hpc_cg.stages.progress import Reading
from launch.plain import plain

QUIET_EVERY_S = 10.0
WIDE = 110
"""Columns from which there is room for a bar beside the words."""


def pace(reading: Reading, now: float) -> tuple[float, float | None]:
    """Units per second so far, and seconds left (None before anything is known)."""
    elapsed = max(now - reading.started, 1e-9)
    rate = (reading.done - reading.before) / elapsed
    return rate, (reading.total - reading.done) / rate if rate > 0 else None


def sentence(reading: Reading, now: float) -> str:
    """One line of progress: what, how many, how fast, how long still, and a note."""
    rate, left = pace(reading, now)
    parts = [f"{reading.phase}: {reading.done:,.0f} of {reading.total:,.0f} {reading.unit}"]
    if left is not None:
        parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
        parts.append(f"{timedelta(seconds=round(left))} left")
    return ", ".join(parts) + (f"  ({reading.note})" if reading.note else "")


class StageView:
    """The progress of one stage: a live bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, stage: str):
        self.console, self.stage = console, stage
        bar = [BarColumn(bar_width=20)] if console.width >= WIDE else []
        self.progress = Progress(*bar, TextColumn(f"  [bold]{stage:<10}[/] {{task.description}}"), console=console)
        self.task = self.progress.add_task("starting", total=1)
        self.last = time.time()

    def __call__(self, reading: Reading | None) -> None:
        if reading is None:
            return
        text = sentence(reading, time.time())
        if self.console.is_terminal:
            self.progress.update(self.task, description=plain(text), completed=reading.done, total=reading.total)
        elif time.time() - self.last > QUIET_EVERY_S:
            self.last = time.time()
            self.console.print(f"  {self.stage:<10} {plain(text)}", highlight=False, soft_wrap=True)

    def say(self, sentence: str) -> None:
        """Print a sentence above the bar."""
        with suppress(OSError):  # a terminal that was closed hears nothing, and the stage still ends well
            self.console.print(f"  {self.stage:<10} {plain(sentence)}", highlight=False, soft_wrap=True)


@contextmanager
def watching(console: Console, stage: str) -> Iterator[StageView]:
    """A view of a stage that is cleared when the stage has ended."""
    view = StageView(console, stage)
    if not console.is_terminal:
        yield view
        return
    with Live(view.progress, console=console, transient=True, refresh_per_second=4):
        yield view
