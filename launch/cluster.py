"""Where jobs go: a Slurm, or this machine alone. Both take the same chain and tell of their jobs in the same words."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from hpc_cg.errors import ConfigError
from hpc_cg.files import digest
from jobs.outcome import FOLDER
from jobs.task import GATHER, Task
from launch import ledger, slurm
from launch.ledger import Submittable
from launch.plan import Job
from launch.resources import Resources
from launch.slurm import Queued
from launch.templates import Extras, sbatch_text
from launch.transport import Sbatch, run_words

KINDS = ("slurm", "local")


class Queue(Protocol):
    """What tells of jobs."""

    @property
    def kind(self) -> str:
        """One of KINDS."""
        ...

    def queue(self) -> tuple[Queued, ...]:
        """The jobs of its run folders that the scheduler knows of; one question. Raises SchedulerFailed."""
        ...

    def ended(self, labels: Sequence[str]) -> Mapping[str, Queued] | None:
        """How jobs that have left the queue ended, as far as is known; None where nobody keeps accounts."""
        ...


class Cluster(Queue, Protocol):
    """What takes jobs and tells of them."""

    @property
    def n_live(self) -> int:
        """Jobs of this user in the queue when that was looked at last, of whatever run folder."""
        ...

    def submit(
        self, owner: Submittable, job: Job, tasks: Sequence[Task], after: Sequence[str], however: Sequence[str] = ()
    ) -> str:
        """Send a job that starts when some others have ended well, and some however; its number.

        Raises SchedulerFailed.
        """
        ...

    def cancel(self, labels: Sequence[str]) -> None:
        """End jobs, or elements of arrays."""
        ...

    def started(self) -> None:
        """Called when a whole chain was submitted."""
        ...


def mark_of(run_folder: Path) -> str:
    """By which this run folder's jobs are recognised in a queue."""
    return f"hpc-cg:{digest(str(run_folder))[:10]}"


def mark_in(comment: str) -> str:
    """The mark of the run folder in the comment of a job."""
    return comment.rsplit(":", 2)[0]


def script_of(study: Submittable, job: Job) -> str:
    """The batch script of a job; the same words whether it is shown or sent."""
    run_folder = study.run_folder
    payloads = run_folder / FOLDER / "payloads"
    return sbatch_text(
        job.stage,
        named(study, job),
        str(study.path),
        Extras(
            part=job.part,
            parts=job.parts,
            at_once=job.at_once,
            comment=f"{mark_of(run_folder)}:{job.stage}:{job.part}",
            run=run_words(payloads),
            before=("export SUBMITIT_EXECUTOR=slurm", guard(payloads)),
        ),
    )


def named(study: Submittable, job: Job) -> Resources:
    """The resources of a job with its name and the folder of its logs."""
    suffix = f"-{job.part}" if job.part == GATHER else ""
    name = f"{job.stage}{suffix}.{study.name}"[:100]
    return replace(job.resources, job_name=name, log_folder=str(study.run_folder / "logs").replace("%", "%%"))


def guard(folder: Path) -> str:
    """A shell line that ends a script whose folder of payloads others may write into: what lies there is run.

    The rule is that of ``hpc_cg.files.own_folder``.
    """
    place = shlex.quote(str(folder))
    return (
        f'[ -n "$(find {place} -maxdepth 0 -type d -user "$(id -u)" ! -perm /022)" ] || '
        f'{{ echo "hpc-cg: nothing is run from "{place}", where others may write" >&2; exit 1; }}'
    )


class SlurmCluster:
    """A Slurm, through its own programs and submitit.

    run_folders   whose jobs it tells of
    """

    kind = "slurm"

    def __init__(self, *run_folders: Path, accounting: bool = True, patience_s: float = slurm.PATIENCE_S):
        self.marks = frozenset(mark_of(folder) for folder in run_folders)
        self.accounting, self.patience_s = accounting, patience_s
        self.n_live = 0

    def queue(self) -> tuple[Queued, ...]:
        rows = slurm.queue(self.patience_s)
        self.n_live = sum(job.active for job in rows)
        return tuple(job for job in rows if mark_in(job.comment) in self.marks)

    def ended(self, labels: Sequence[str]) -> Mapping[str, Queued] | None:
        if not self.accounting:
            return None
        jobs = sorted({label.partition("_")[0] for label in labels}, key=int)
        return {job.label: job for job in slurm.accounts(jobs, self.patience_s)}

    def submit(
        self, owner: Submittable, job: Job, tasks: Sequence[Task], after: Sequence[str], however: Sequence[str] = ()
    ) -> str:
        folder = ledger.payloads(owner.run_folder)
        words = dependency_words(after, however)
        executor = Sbatch(folder, script_of(owner, job), words, job.resources.n_tasks, self.patience_s)
        return executor.send(tasks)

    def cancel(self, labels: Sequence[str]) -> None:
        slurm.cancel(labels, self.patience_s)

    def started(self) -> None:
        pass


def dependency_words(after: Sequence[str], however: Sequence[str] = ()) -> list[str]:
    """What sbatch is told of the jobs that must have ended well before, and of those that must have ended."""
    kinds = (("afterok", after), ("afterany", however))
    parts = [f"{word}:{':'.join(numbers)}" for word, numbers in kinds if numbers]
    return [f"--dependency={','.join(parts)}", "--kill-on-invalid-dep=yes"] if parts else []


def cluster_of(kind: str, *run_folders: Path, accounting: bool) -> Cluster:
    """The cluster of a kind, for the jobs of some run folders; raises ConfigError for a kind that there is not.

    The queue of this machine lies in the first of them.
    """
    if kind == "slurm":
        return SlurmCluster(*run_folders, accounting=accounting)
    if kind == "local":
        from launch.local_cluster import LocalCluster

        return LocalCluster(*run_folders)
    raise ConfigError("hpc-cg --cluster", [f"{kind} is no kind of cluster. Known: {', '.join(KINDS)}."])
