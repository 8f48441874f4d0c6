"""What the terminal shows: the progress of a stage, the state of a study, the figures at the end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from hpc_cg.stages.product import State, read_seal
from hpc_cg.stages.progress import Reading, read_progress
from hpc_cg.stages.study import Study

QUIET_EVERY_S = 10.0
STYLE = {State.SEALED: "green", State.PARTIAL: "yellow", State.STALE: "magenta", State.ABSENT: "dim"}


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
        self.progress = Progress(
            TextColumn(f"  [bold]{stage:<10}[/]"),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            console=console,
        )
        self.task = self.progress.add_task("starting", total=1)
        self.last = time.time()

    def __call__(self, reading: Reading | None) -> None:
        if reading is None:
            return
        text = sentence(reading, time.time())
        if self.console.is_terminal:
            self.progress.update(self.task, description=escape(text), completed=reading.done, total=reading.total)
        elif time.time() - self.last > QUIET_EVERY_S:
            self.last = time.time()
            self.console.print(f"  {self.stage:<10} {text}", highlight=False, soft_wrap=True)


@contextmanager
def watching(console: Console, stage: str) -> Iterator[StageView]:
    """A view of a stage that is cleared when the stage has ended."""
    view = StageView(console, stage)
    if not console.is_terminal:
        yield view
        return
    with Live(view.progress, console=console, transient=True, refresh_per_second=4):
        yield view


def status_table(study: Study) -> Table:
    """Every stage of a study: its state, what is known of it."""
    table = Table(box=None, pad_edge=False, title=None)
    for name in ("stage", "state", "what is there"):
        table.add_column(name, overflow="fold")
    for stage in study.stages:
        state = study.state(stage)
        table.add_row(stage, f"[{STYLE[state]}]{state}[/]", escape(_known(study, stage, state)))
    return table


def _known(study: Study, stage: str, state: State) -> str:
    if state == State.ABSENT:
        return ""
    if state == State.PARTIAL:
        reading = read_progress(study.folder(stage))
        return (
            "begun"
            if reading is None
            else f"{reading.phase}: {reading.done:,.0f} of {reading.total:,.0f} {reading.unit}"
        )
    seal = read_seal(study.folder(stage))
    assert seal is not None, "sealed and stale products have a seal"
    text = one_line(seal.summary)
    if state == State.STALE:
        return f"made with other settings or inputs, will be made again ({text})"
    return text


def one_line(summary: dict[str, Any]) -> str:
    """The plain figures of a seal's summary in one line."""
    return ", ".join(
        f"{name.replace('_', ' ')} {_figure(value)}"
        for name, value in summary.items()
        if isinstance(value, int | float | str)
    )


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
