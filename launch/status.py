"""The state of a study: what is there of each stage, and what its jobs do, with one question to the scheduler.

A stage is sealed (with its figures), partial (with counts), stale, absent or unreadable. Below it stand its jobs: which
run and since when, why others wait, how some ended and what they said last. The store is never walked: counts come from
one listing of a folder.
"""

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hpc_cg.errors import HpcCgError, SchedulerFailed
from hpc_cg.stages.claims import owner
from hpc_cg.stages.product import State, may_continue, read_seal, state
from hpc_cg.stages.study import Study
from jobs.outcome import Attempt, Outcomes
from launch import history, ledger
from launch.cluster import Queue, cluster_of
from launch.history import End
from launch.ledger import Submitted
from launch.plain import plain
from launch.site import Site
from launch.slurm import Queued
from launch.words import figures

STALE = "settings or inputs have changed: will be made again"
STYLE = {State.SEALED: "green", State.PARTIAL: "yellow", State.STALE: "magenta", State.ABSENT: "dim"}
SHOWN_ENDS = 3
INDENT = 22
"""Columns before what is known of a stage: its name and its state."""

REASONS = {
    "Dependency": "waits for the job before it",
    "DependencyNeverSatisfied": "can never start: what it waits for failed",
    "Priority": "waits: others come first",
    "Resources": "waits for free nodes",
    "BeginTime": "goes on soon: back in the queue",
    "JobArrayTaskLimit": "waits: as many of its array run as may at once",
    "QOSMaxSubmitJobPerUserLimit": "waits: this user has as many jobs as the QOS allows",
    "AssocGrpCPUMinutesLimit": "waits: the account's budget is used up",
    "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions": "waits: its nodes "
    "are down or taken",
}


@dataclass(frozen=True)
class Line:
    """What is known of one stage.

    state   sealed, stale, partial, absent; None where its folder cannot be read
    text    its figures, how far it is, or why it cannot be read
    live    its jobs in the queue
    ends    of its newest jobs, those that did not end well
    """

    stage: str
    state: State | None
    text: str
    live: tuple[Queued, ...] = ()
    ends: tuple[End, ...] = ()

    @property
    def word(self) -> str:
        return "unreadable" if self.state is None else str(self.state)


@dataclass(frozen=True)
class Report:
    """What there is to tell of a study.

    unknown    what could not be found out, in sentences
    attempts   of each job that left word, by its label
    """

    name: str
    lines: tuple[Line, ...]
    unknown: tuple[str, ...] = ()
    attempts: Mapping[str, tuple[Attempt, ...]] = field(default_factory=dict)

    @property
    def at_rest(self) -> bool:
        """Whether nothing is in the queue, as far as is known."""
        return not self.unknown and not any(line.live for line in self.lines)

    @property
    def unreadable(self) -> bool:
        """Whether there is a folder that cannot be read."""
        return any(line.state is None for line in self.lines)


def report(study: Study, site: Site) -> Report:
    """Everything: the products, and the jobs where some were ever submitted."""
    lines, known = survey(study), ledger.submissions(study.run_folder)
    kinds = {one.cluster for one in known}
    return with_jobs(
        study, lines, known, [cluster_of(kind, study.run_folder, accounting=site.site.accounting) for kind in kinds]
    )


def with_jobs(
    study: Study, lines: tuple[Line, ...], known: Sequence[ledger.Submission], clusters: Sequence[Queue]
) -> Report:
    """What is known of the products, with what the clusters that a study was submitted to tell of its jobs."""
    if not known:
        return Report(study.study.name, lines)
    left = Outcomes(study.run_folder)
    try:
        queue = [job for cluster in clusters for job in cluster.queue()]
    except SchedulerFailed as error:
        return Report(study.study.name, lines, (f"what is in the queue is not known: {error}",), left)
    jobs = {line.stage: history.latest(known, line.stage) for line in lines if line.state != State.SEALED}
    rows = {job.label: job for job in queue}
    unknown = tuple(sentence for cluster in clusters for sentence in _ask_for_the_lost(cluster, jobs, rows, left))
    told = tuple(_line_with_jobs(study, line, jobs.get(line.stage, ()), rows, left) for line in lines)
    return Report(study.study.name, told, unknown, left)


def _ask_for_the_lost(
    cluster: Queue,
    jobs: Mapping[str, Sequence[Submitted]],
    rows: dict[str, Queued],
    left: Outcomes,
) -> tuple[str, ...]:
    """Where jobs have left the queue without a word, ask the accounts, if there are some; add to ``rows``."""
    lost = [
        label
        for of_stage in jobs.values()
        for job in of_stage
        for label in job.labels
        if label.startswith("L") == (cluster.kind == "local")
        and label not in rows
        and left.verdicts.get(label) in (None, "again")
    ]
    if not lost:
        return ()
    try:
        found = cluster.ended(lost)
    except SchedulerFailed as error:
        return (f"how some jobs ended is not known: {error}",)
    if found is None:
        return (f"how {len(lost)} jobs ended is not known: no accounts are kept here ({', '.join(lost[:SHOWN_ENDS])})",)
    rows |= {label: found[label] for label in lost if label in found}
    return ()


def _line_with_jobs(
    study: Study,
    line: Line,
    jobs: Sequence[Submitted],
    rows: Mapping[str, Queued],
    left: Outcomes,
) -> Line:
    live = tuple(row for job in jobs for label in job.labels if (row := rows.get(label)) is not None and row.active)
    found = history.ends(study.run_folder, jobs, rows, left)
    told = tuple(end for end in found if end.cause not in ("", history.UNKNOWN))
    return Line(line.stage, line.state, line.text, live, told)


def survey(study: Study, looked: dict[tuple[Any, ...], State] | None = None) -> tuple[Line, ...]:
    """A line for each stage of a study; a folder that cannot be read is told of and hides no other.

    looked   as in ``Study.states``: for studies that share products
    """
    lines: list[Line] = []
    try:
        states = study.states(looked)
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


def status_lines(told: Report, width: int) -> list[str]:
    """The report as lines of rich markup: a line for each stage, below it its jobs."""
    found: list[str] = []
    indent = " " * INDENT
    for line in told.lines:
        style = "red" if line.state is None else STYLE[line.state]
        first, *rest = wrapped(line.text, width - INDENT)
        found.append(f"{line.stage:<10} [{style}]{line.word:<10}[/] {plain(first)}".rstrip())
        below = [
            *rest,
            *(part for text in _live_texts(line.live, told.attempts) for part in wrapped(text, width - INDENT)),
        ]
        found += [f"{indent}{plain(part)}" for part in below]
        for text in _end_texts(line.ends):
            found += [f"{indent}[red]{plain(part)}[/]" for part in wrapped(text, width - INDENT)]
    found += [f"[yellow]{plain(part)}[/]" for sentence in told.unknown for part in wrapped(sentence, width)]
    return found


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most so many columns; a longer word stays whole."""
    wide = max(30, width)
    return [
        part
        for line in text.splitlines()
        for part in textwrap.wrap(line, wide, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    ] or [""]


def _live_texts(live: Sequence[Queued], attempts: Mapping[str, tuple[Attempt, ...]]) -> list[str]:
    """A sentence for each job in the queue; elements of an array are counted."""
    found = []
    for job in live:
        if job.task is None:
            found.append(f"job {job.label} {doing(job)}{_attempt(attempts.get(job.label, ()))}")
    for number in dict.fromkeys(job.job for job in live if job.task is not None):
        tasks = [job for job in live if job.job == number and job.task is not None]
        counts = Counter("run" if job.nodes and job.state != "PENDING" else doing(job) for job in tasks)
        words = ", ".join(f"{count:,} {word}" for word, count in counts.items())
        found.append(f"array {number}: {words}")
    return found


def doing(job: Queued) -> str:
    if job.state == "PENDING":
        return REASONS.get(job.reason, f"waits ({job.reason})" if job.reason not in ("", "None") else "waits")
    where = f" on {job.nodes}" if job.nodes else ""
    limit = f" of {job.limit}" if job.limit else ""
    return f"{'runs' if job.state == 'RUNNING' else job.state.lower()}{where}, {job.elapsed}{limit}"


def _attempt(attempts: Sequence[Attempt]) -> str:
    again = sum(one.verdict == "again" for one in attempts)
    return f", attempt {attempts[-1].attempt + 2}" if again else ""


def _end_texts(ends: Sequence[End]) -> list[str]:
    """Of jobs that did not end well: their numbers, and what they said, once where several said the same."""
    by_words: dict[str, list[str]] = {}
    for end in ends:
        by_words.setdefault(end.why, []).append(end.label)
    found = []
    for words, labels in list(by_words.items())[:SHOWN_ENDS]:
        more = f" and {len(labels) - SHOWN_ENDS} more" if len(labels) > SHOWN_ENDS else ""
        found.append(f"job {', '.join(labels[:SHOWN_ENDS])}{more}: {words}")
    if len(by_words) > SHOWN_ENDS:
        found.append(f"{len(by_words) - SHOWN_ENDS} more ends: hpc-cg status --json")
    return found


def as_json(told: Report) -> dict[str, Any]:
    """The report for scripts."""
    stages = {
        line.stage: {
            "state": line.word,
            "text": line.text,
            "jobs": [
                {"job": job.label, "state": job.state, "reason": job.reason, "nodes": job.nodes, "elapsed": job.elapsed}
                for job in line.live
            ],
            "ends": [{"job": end.label, "state": end.state, "cause": end.cause, "why": end.why} for end in line.ends],
        }
        for line in told.lines
    }
    return {"study": told.name, "stages": stages, "unknown": list(told.unknown)}


def known(study: Study, stage: str, found: State) -> str:
    """What there is to say of a stage in the state ``found``."""
    if found == State.SEALED:
        seal = read_seal(study.folder(stage))
        return "" if seal is None else figures(study, stage, seal)
    other = owner(study.folder(stage))
    if found == State.PARTIAL and not may_continue(study.folder(stage), study.fingerprint(stage), study.intent(stage)):
        return "begun with other settings or inputs: will be set aside"
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
