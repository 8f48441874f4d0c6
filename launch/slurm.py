"""Slurm's own programs, asked with patience: each call ends in time, and what it says is read strictly.

One call tells of all jobs, however many there are: squeue while they are in the queue, sacct afterwards, where a site
keeps accounts. Formats are those of man squeue and man sacct.
"""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from hpc_cg.errors import SchedulerFailed

PATIENCE_S = 60.0
ACTIVE = frozenset(
    [
        "PENDING",
        "RUNNING",
        "COMPLETING",
        "CONFIGURING",
        "SUSPENDED",
        "STOPPED",
        "REQUEUED",
        "REQUEUE_HOLD",
        "REQUEUE_FED",
        "RESIZING",
        "SIGNALING",
        "SPECIAL_EXIT",
        "STAGE_OUT",
    ]
)
"""States of jobs that are in the queue; all others have ended."""

DEFAULTS_OF = ("SBATCH_", "SQUEUE_", "SCANCEL_", "SACCT_", "SINFO_")
_COLUMNS = ("%k", "%F", "%K", "%T", "%M", "%l", "%N", "%r")
_ACCOUNTED = ("JobID", "State", "Elapsed", "Timelimit", "NodeList", "FailedNode")
_PER_CALL = 500


@dataclass(frozen=True)
class Queued:
    """A job as the scheduler tells of it.

    job      its number, that of the array for an element
    task     the element's number in the array, or None
    state    the scheduler's word, e.g. PENDING
    elapsed, limit   as the scheduler writes times
    nodes    where it runs; empty while it waits
    reason   why it waits, or ended
    comment  what the job was marked with
    failed_node   whose failure ended it
    """

    job: str
    task: int | None
    state: str
    elapsed: str = ""
    limit: str = ""
    nodes: str = ""
    reason: str = ""
    comment: str = ""
    failed_node: str = ""

    @property
    def label(self) -> str:
        return self.job if self.task is None else f"{self.job}_{self.task}"

    @property
    def never_ran(self) -> bool:
        return not self.elapsed.strip("0:")

    @property
    def active(self) -> bool:
        return self.state in ACTIVE


def ask(words: Sequence[str], patience_s: float = PATIENCE_S) -> str:
    """What a program prints; raises SchedulerFailed where it is not there, fails, or does not end in time."""
    try:
        done = subprocess.run(
            words,
            env=plain_environment(),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=patience_s,
            check=False,
        )
    except FileNotFoundError as error:
        raise SchedulerFailed(
            f"asking Slurm ({words[0]})", f"no program {words[0]} here", "run this on a login node, or --cluster local"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SchedulerFailed(
            f"asking Slurm ({' '.join(words[:2])})",
            f"no answer within {patience_s:g} s",
            "try again later; what is queued goes on by itself",
        ) from error
    except OSError as error:
        raise SchedulerFailed(f"asking Slurm ({words[0]})", str(error), "check that program") from error
    if done.returncode:
        told = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise SchedulerFailed(
            f"asking Slurm ({' '.join(words[:2])})",
            f"exit code {done.returncode}: {told[-1]}",
            "see that Slurm works here (sinfo), and try again",
        )
    return done.stdout


def plain_environment() -> dict[str, str]:
    """The environment without what would change the meaning of a call: defaults of a user's shell for these programs.

    Account, partition and QOS stay: scripts name them where a site does, and the command line goes before.
    """
    kept = ("SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_QOS")
    return {name: value for name, value in os.environ.items() if name in kept or not name.startswith(DEFAULTS_OF)}


def queue(patience_s: float = PATIENCE_S) -> tuple[Queued, ...]:
    """All of this user's jobs that Slurm still knows of, elements of arrays each for itself; one call."""
    words = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}"]
    rows = ask([*words, "--format=" + "\t".join(_COLUMNS)], patience_s).splitlines()
    found = []
    for row in rows:
        cells = row.split("\t")
        if len(cells) == len(_COLUMNS):
            comment, job, task, state, elapsed, limit, nodes, reason = (cell.strip() for cell in cells)
            number = int(task) if task.isdecimal() else None
            found.append(Queued(job, number, state, elapsed, limit, nodes, reason, comment))
    return tuple(found)


def accounts(jobs: Sequence[str], patience_s: float = PATIENCE_S) -> tuple[Queued, ...]:
    """What sacct knows of jobs, elements each for itself; raises SchedulerFailed where there are no accounts."""
    found: list[Queued] = []
    for first in range(0, len(jobs), _PER_CALL):
        words = ["sacct", "--noheader", "--parsable2", "--allocations", "--array", "--duplicates"]
        names = ",".join(jobs[first : first + _PER_CALL])
        text = ask([*words, f"--format={','.join(_ACCOUNTED)}", f"--jobs={names}"], patience_s)
        for row in text.splitlines():
            cells = row.split("|")
            if len(cells) != len(_ACCOUNTED) or not cells[1].strip():
                continue  # a job that is not accounted yet
            label, state, elapsed, limit, nodes, failed = cells
            job, _, task = label.partition("_")
            number = int(task) if task.isdecimal() else None
            nodes = "" if nodes == "None assigned" else nodes
            found.append(Queued(job, number, state.split()[0], elapsed, limit, nodes, failed_node=failed))
    return tuple(found)


def cancel(labels: Sequence[str], patience_s: float = PATIENCE_S) -> None:
    """End jobs, and elements of arrays; raises SchedulerFailed."""
    for first in range(0, len(labels), _PER_CALL):
        ask(["scancel", *labels[first : first + _PER_CALL]], patience_s)
