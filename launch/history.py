"""What became of jobs that are in the queue no more, and what it teaches for the next time.

Three witnesses, the nearest first: the word that a script left itself (jobs.outcome), the scheduler, which remembers a
job for some minutes (squeue) or, where accounts are kept, for good (sacct), and the job's log.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hpc_cg.errors import ConfigError, SchedulerFailed
from hpc_cg.stages.study import Study
from jobs.after import last_words
from jobs.nodelist import expand_nodelist
from jobs.outcome import Attempt, Outcomes
from launch.cluster import Queue
from launch.ledger import Submission, Submitted
from launch.plan import ELEMENT, Lesson
from launch.site import GATHER, Partition, Site
from launch.slurm import Queued

MEMORY, UNKNOWN = "memory", "unknown"
OUT_OF_MEMORY = re.compile(
    r"oom[-_]kill|Out Of Memory|out-of-memory handler|exceeded memory limit|\b_?(Array)?MemoryError\b"
)
ENDED_WELL = ("COMPLETED",)
WORDS = {
    "TIMEOUT": "its time limit came before it could stop",
    "PREEMPTED": "it was preempted",
    "CANCELLED": "it was cancelled",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "it ran out of memory",
    "DEADLINE": "its deadline passed before it began",
    "BOOT_FAIL": "its node did not start",
    "FAILED": "it failed",
}


@dataclass(frozen=True)
class End:
    """How a job that is not in the queue ended.

    label    its number, or that of an element
    state    the scheduler's word; "" where nobody knows
    cause    "memory", "node", "failed", "unknown", "" where it went well or never began
    why      a sentence or more, for the user
    nodes    that failed
    """

    label: str
    state: str
    cause: str
    why: str
    nodes: tuple[str, ...] = ()


def end_of(label: str, row: Queued | None, attempts: Sequence[Attempt], log: Path | None) -> End:
    """Put together what the witnesses say of a job that has ended."""
    last = attempts[-1] if attempts else None
    state = "" if row is None else row.state
    if last is not None and last.verdict == "done" and state in ("", *ENDED_WELL):
        return End(label, state or "COMPLETED", "", "")
    if last is None and (state in ENDED_WELL or (row is not None and state == "CANCELLED" and row.never_ran)):
        return End(label, state, "", "")
    if state == "OUT_OF_MEMORY" or (state in ("", "FAILED", "CANCELLED") and _ran_out(last, log)):
        return End(label, state, MEMORY, WORDS["OUT_OF_MEMORY"])
    if state == "NODE_FAIL":
        failed = tuple(expand_nodelist(row.failed_node or row.nodes)) if row and (row.failed_node or row.nodes) else ()
        failed = failed if len(failed) == 1 or (row and row.failed_node) else ()  # of several, it is not known which
        return End(label, state, "node", f"{WORDS[state]} ({', '.join(failed) or 'not known which'})", failed)
    said = last.why if last is not None and last.verdict in ("failed", "stopped") else ""
    if said and state in ("", "FAILED", "COMPLETED"):
        return End(label, state, "failed", said)
    if state:
        spoken = WORDS.get(state, f"it ended as {state}")
        more = last_words(log) if state == "FAILED" else ""
        return End(label, state, "failed", f"{spoken}: {more}" if more else spoken)
    if last is not None and last.verdict == "again":
        return End(label, "", "failed", "it was to go on, and is in the queue no more")
    return End(label, "", UNKNOWN, "how it ended is not known")


def _ran_out(last: Attempt | None, log: Path | None) -> bool:
    """Whether the memory of the node ran out; that of a GPU is another matter, and no job can ask for more of it."""
    text = f"{'' if last is None else last.why}\n{tail_of(log)}"
    lines = [line for line in text.splitlines() if "CUDA" not in line and "GPU" not in line]
    return any(OUT_OF_MEMORY.search(line) for line in lines)


def tail_of(log: Path | None, n_bytes: int = 4096) -> str:
    """The last words of a log as they stand there; empty where there is none."""
    if log is None:
        return ""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - n_bytes))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def log_of(run_folder: Path, job: Submitted, label: str) -> Path:
    """Where a job, or an element of an array, writes its log."""
    return run_folder / "logs" / f"{job.resources['job_name']}-{label}.log"


def latest(known: Sequence[Submission], stage: str) -> tuple[Submitted, ...]:
    """The jobs of a stage in the newest submission that had some."""
    for submission in reversed(known):
        found = tuple(job for job in submission.jobs if job.stage == stage)
        if found:
            return found
    return ()


def ends(
    run_folder: Path,
    jobs: Sequence[Submitted],
    rows: Mapping[str, Queued],
    left: Outcomes,
) -> tuple[End, ...]:
    """How the elements of some jobs ended; those that are in the queue, or ended well, are left out."""
    found = []
    for job in jobs:
        for label in job.labels:
            row = rows.get(label)
            well = left.verdicts.get(label) == "done" and (row is None or row.state in ENDED_WELL)
            if not well and (row is None or not row.active):
                found.append(end_of(label, row, left.get(label, ()), log_of(run_folder, job, label)))
    return tuple(found)


def lessons_of(
    study: Study,
    wanted: Sequence[str],
    site: Site,
    known: Sequence[Submission],
    left: Outcomes,
    queue: Sequence[Queued],
    cluster: Queue,
) -> dict[tuple[str, str], Lesson]:
    """What the newest jobs of each stage and part teach for submitting it again.

    Raises ConfigError where more memory is needed than the partition has.
    """
    jobs = [job for stage in wanted for job in latest(known, stage)]
    rows = {job.label: job for job in queue}
    unseen = [label for job in jobs for label in job.labels if label not in rows]
    if unseen:
        with suppress(SchedulerFailed):  # without accounts, logs and what scripts said of themselves are left
            rows = {**(cluster.ended(unseen) or {}), **rows}
    found = {}
    for stage, part in dict.fromkeys((job.stage, job.part) for job in jobs):
        of_part = [job for job in jobs if (job.stage, job.part) == (stage, part)]
        lesson = _lesson(site, of_part, ends(study.run_folder, of_part, rows, left))
        if lesson is not None:
            found[stage, part] = lesson
    return found


def _lesson(site: Site, jobs: Sequence[Submitted], found: Sequence[End]) -> Lesson | None:
    """More memory, doubled, where some job ran out of it; and the nodes that failed."""
    stage, part = jobs[0].stage, jobs[0].part
    nodes = tuple(sorted({node for end in found if end.cause == "node" for node in end.nodes}))
    hungry = [end for end in found if end.cause == MEMORY]
    asked = max(int(job.resources["mem_gb"]) for job in jobs)
    plain = site.resources(stage, ELEMENT if jobs[0].parts else GATHER if part == GATHER else "").mem_gb
    memory = asked if asked > plain else 0  # what an earlier lesson raised stays raised
    why = []
    if hungry:
        limit = site.partitions.get(str(jobs[0].resources["partition"]), Partition()).mem_gb_per_node
        memory = min(2 * asked, limit) if limit else 2 * asked
        if memory <= asked:
            raise ConfigError(
                site.file,
                [
                    f"{stage} ran out of {asked} GB (job {hungry[0].label}), and its partition has no more. "
                    "Name another partition in [stages], or make its parts smaller."
                ],
            )
        why.append(f"ran out of {asked} GB (job {hungry[0].label}), so it asks for {memory}")
    if nodes:
        why.append(f"keeps away from {', '.join(nodes)}, which failed")
    return Lesson(memory, nodes, "; ".join(why)) if memory or nodes else None
