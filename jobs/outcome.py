"""How the attempts of a job ended, in JSON of our own: a small file per job below <run>/jobs/outcomes.

A process that stopped at a safe place leaves a mark before it goes, since a launcher may turn exit codes into others.
Whoever looks at a study reads these files; nothing that is done or not done depends on them.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpc_cg.errors import DamagedProduct, MissingInput
from hpc_cg.files import own_folder, read_json, write_json
from hpc_cg.stages.product import ATTEMPT, JOB

FOLDER = "jobs"
LATEST_KEPT = 50


@dataclass(frozen=True)
class JobName:
    """A job as its scheduler names it: ``12``, or ``31_5`` for task 5 of an array; and how often it began before."""

    label: str
    attempt: int


def job_of(environ: Mapping[str, str]) -> JobName | None:
    """The job that this process is part of, or None."""
    label = environ.get(JOB) or environ.get("SLURM_JOB_ID", "")
    if not environ.get(JOB) and environ.get("SLURM_ARRAY_JOB_ID"):
        label = f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    attempt = environ.get(ATTEMPT) or environ.get("SLURM_RESTART_COUNT") or "0"
    return JobName(label, int(attempt)) if label else None


@dataclass(frozen=True)
class Attempt:
    """One attempt of a job.

    attempt   0 for the first
    code      exit code of its processes
    verdict   "done", "again" (stopped, and put back into the queue), "stopped" or "failed"
    why       a sentence for the user; empty where it is done
    done      how much of the stage's units (or of the job's part) was there at its end, or None
    ended     seconds since 1970
    node      where its batch script ran
    """

    attempt: int
    code: int
    verdict: str
    why: str
    done: int | None
    ended: float
    node: str


def attempts_of(run_folder: Path, label: str) -> tuple[Attempt, ...]:
    """The attempts of a job that came to an end of their own, the oldest first."""
    try:
        return tuple(Attempt(**row) for row in read_json(_path(run_folder, label)))
    except (MissingInput, DamagedProduct, TypeError):
        return ()


def add_attempt(run_folder: Path, label: str, attempt: Attempt) -> None:
    own_folder(run_folder / FOLDER)
    earlier = [one for one in attempts_of(run_folder, label) if one.attempt != attempt.attempt]
    write_json(_path(run_folder, label), [asdict(one) for one in (*earlier, attempt)][-LATEST_KEPT:])


def mark_stopped(run_folder: Path, environ: Mapping[str, str] = os.environ) -> None:
    """Leave word that this attempt stopped at a safe place; nothing outside a job."""
    job = job_of(environ)
    if job is not None:
        own_folder(run_folder / FOLDER)
        write_json(_mark(run_folder, job), {})


def take_mark(run_folder: Path, job: JobName) -> bool:
    """Whether this attempt stopped at a safe place; the mark is gone afterwards."""
    with suppress(FileNotFoundError):
        _mark(run_folder, job).unlink()
        return True
    return False


def outcomes(run_folder: Path) -> dict[str, tuple[Attempt, ...]]:
    """The attempts of every job that left word, by its label."""
    found: dict[str, Any] = {}
    with suppress(FileNotFoundError):
        for path in sorted((run_folder / FOLDER / "outcomes").iterdir()):
            if path.suffix == ".json" and not path.name.startswith("."):
                found[path.stem] = attempts_of(run_folder, path.stem)
    return found


def _path(run_folder: Path, label: str) -> Path:
    return run_folder / FOLDER / "outcomes" / f"{label}.json"


def _mark(run_folder: Path, job: JobName) -> Path:
    return run_folder / FOLDER / "stopped" / f"{job.label}-{job.attempt}"
