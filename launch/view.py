"""What the terminal shows: the progress of a stage, the state of a study, the figures at the end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from hpc_cg.errors import HpcCgError
from hpc_cg.stages.product import State, owner, read_seal, state
from hpc_cg.stages.progress import Reading
from hpc_cg.stages.study import Study
from launch.words import figures

QUIET_EVERY_S = 10.0
STALE = "settings or inputs have changed: will be made again"
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
            self.console.print(f"  {self.stage:<10} {escape(text)}", highlight=False, soft_wrap=True)

    def say(self, sentence: str) -> None:
        """Print a sentence above the bar."""
        with suppress(OSError):  # a terminal that was closed hears nothing, and the stage still ends well
            self.console.print(f"  {self.stage:<10} {escape(sentence)}", highlight=False, soft_wrap=True)


@contextmanager
def watching(console: Console, stage: str) -> Iterator[StageView]:
    """A view of a stage that is cleared when the stage has ended."""
    view = StageView(console, stage)
    if not console.is_terminal:
        yield view
        return
    with Live(view.progress, console=console, transient=True, refresh_per_second=4):
        yield view


@dataclass(frozen=True)
class Line:
    """What is known of one stage.

    state   sealed, stale, partial, absent; None where its folder cannot be read
    text    its figures, how far it is, or why it cannot be read
    """

    stage: str
    state: State | None
    text: str

    @property
    def word(self) -> str:
        return "unreadable" if self.state is None else str(self.state)


def survey(study: Study) -> tuple[Line, ...]:
    """A line for each stage of a study; a folder that cannot be read is told of and hides no other."""
    lines: list[Line] = []
    try:
        states = study.states()
    except (HpcCgError, OSError):
        states = {}  # look at each alone, to find which it is
    for stage in study.stages:
        try:
            own = states.get(stage) or state(study.folder(stage), study.fingerprint(stage), study.inputs(stage))
            line = Line(stage, own, known(study, stage, own))
        except (HpcCgError, OSError) as error:
            fault = explain(error)
            told = next((earlier.stage for earlier in lines if earlier.text == fault), None)
            line = Line(stage, None, fault if told is None else f"as {told}")
        lines.append(line)
    return tuple(lines)


def status_table(lines: tuple[Line, ...]) -> Table:
    """Every stage of a study: its state, what is known of it."""
    table = Table(box=None, pad_edge=False, title=None)
    for name in ("stage", "state", "what is there"):
        table.add_column(name, overflow="fold")
    for line in lines:
        style = "red" if line.state is None else STYLE[line.state]
        table.add_row(line.stage, f"[{style}]{line.word}[/]", escape(line.text))
    return table


def known(study: Study, stage: str, found: State) -> str:
    """What there is to say of a stage in the state ``found``."""
    if found == State.SEALED:
        seal = read_seal(study.folder(stage))
        return "" if seal is None else figures(study, stage, seal)
    other = owner(study.folder(stage))
    if found == State.PARTIAL:
        done = study.done(stage)
        count = "begun" if done is None else f"{done[0]:,} of {done[1]:,} {done[2]}"
        return f"{count}; {'stopped' if other is None else f'running: {other}'}"
    if other is not None:
        return f"running: {other}"
    return STALE if found == State.STALE else ""


def explain(error: HpcCgError | OSError) -> str:
    """A failure in one sentence; the operating system's too."""
    if isinstance(error, HpcCgError) or error.filename is None:
        return str(error)
    return f"{error.filename}: {error.strerror}. Check that folder, its disk and its rights."
