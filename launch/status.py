"""The state of a study: each stage sealed with its figures, partial with its counts, stale, absent, or unreadable."""

from dataclasses import dataclass
from functools import partial

from rich.table import Table

from hpc_cg.errors import HpcCgError
from hpc_cg.stages.product import State, owner, read_seal, state
from hpc_cg.stages.study import Study
from launch.plain import plain
from launch.words import figures

STALE = "settings or inputs have changed: will be made again"
STYLE = {State.SEALED: "green", State.PARTIAL: "yellow", State.STALE: "magenta", State.ABSENT: "dim"}


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
            own = states.get(stage) or state(
                study.folder(stage), study.fingerprint(stage), partial(study.inputs, stage)
            )
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
        table.add_row(line.stage, f"[{style}]{line.word}[/]", plain(line.text))
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
