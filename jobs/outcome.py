"""How the attempts of a job ended, in JSON of our own: a small file per job below <run>/jobs/outcomes.

A process that stopped at a safe place leaves a mark before it goes, since a launcher may turn exit codes into others.
Whoever looks at a study reads these files; nothing that is done or not done depends on them.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from hpc_cg.errors import DamagedProduct, MissingInput
from hpc_cg.files import own_folder, read_json, write_json
from hpc_cg.stages.claims import ATTEMPT, job_label

FOLDER = "jobs"
ENDED = "outcomes"
BEGUN, STOPPED = "begun", "stopped"
"""Words that a process leaves before its script judges the attempt."""

VERDICTS = ("again", "stopped", "failed", "done")
LATEST_KEPT = 50


@dataclass(frozen=True)
class JobName:
    """A job as its scheduler names it: ``12``, or ``31_5`` for task 5 of an array; and how often it began before."""

    label: str
    attempt: int


def job_of(environ: Mapping[str, str]) -> JobName | None:
    """The job that this process is part of, or None."""
    label = job_label(environ)
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
    """The attempts of a job that came to an end of their own, the oldest first; no folder is listed for it."""
    found = [attempt for verdict in VERDICTS for attempt in _read(_path(run_folder, label, verdict))]
    return tuple(sorted(found, key=lambda one: one.attempt))


def add_attempt(run_folder: Path, label: str, attempt: Attempt) -> None:
    """Leave word of an attempt, beside those before it. Raises DiskFull, FolderNotWritable, UnsafeFolder."""
    own_folder(run_folder / FOLDER)
    earlier = [one for one in attempts_of(run_folder, label) if one.attempt != attempt.attempt]
    rows = [asdict(one) for one in (*earlier, attempt)][-LATEST_KEPT:]
    write_json(_path(run_folder, label, attempt.verdict), rows)
    for verdict in VERDICTS:
        if verdict != attempt.verdict:
            _path(run_folder, label, verdict).unlink(missing_ok=True)


def _path(run_folder: Path, label: str, verdict: str) -> Path:
    return run_folder / FOLDER / ENDED / f"{label}.{verdict}"


def _read(path: Path) -> tuple[Attempt, ...]:
    try:
        return tuple(Attempt(**row) for row in read_json(path))
    except (MissingInput, DamagedProduct, TypeError):
        return ()  # being replaced at this moment, or torn: nothing depends on it


class Outcomes(Mapping[str, tuple[Attempt, ...]]):
    """The attempts of every job that left word, by its label.

    The last verdict stands in a file's name, so one listing tells how thousands of jobs ended; a file is read only for
    whoever asks for its attempts.

    verdicts   the last word on each job
    """

    def __init__(self, run_folder: Path):
        self._folder = run_folder / FOLDER / ENDED
        self.verdicts: dict[str, str] = {}
        with suppress(FileNotFoundError):
            names = [path.name.rpartition(".") for path in self._folder.iterdir()]
            # of two, as after a kill between writing and removing, the one that says more is taken
            found = [(VERDICTS.index(verdict), label) for label, _, verdict in names if verdict in VERDICTS]
            self.verdicts = {label: VERDICTS[place] for place, label in sorted(found)}

    def __getitem__(self, label: str) -> tuple[Attempt, ...]:
        return _read(self._folder / f"{label}.{self.verdicts[label]}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.verdicts)

    def __len__(self) -> int:
        return len(self.verdicts)


def mark(run_folder: Path, word: str, environ: Mapping[str, str] = os.environ) -> None:
    """Leave word that this attempt has begun (its processes found one another), or stopped at a safe place.

    Nothing outside a job. Raises DiskFull, FolderNotWritable, UnsafeFolder.
    """
    job = job_of(environ)
    if job is not None:
        own_folder(run_folder / FOLDER)
        write_json(_mark(run_folder, job, word), {})


def take_mark(run_folder: Path, job: JobName, word: str) -> bool:
    """Whether this attempt left that word; it is gone afterwards."""
    with suppress(FileNotFoundError):
        _mark(run_folder, job, word).unlink()
        return True
    return False


def _mark(run_folder: Path, job: JobName, word: str) -> Path:
    return run_folder / FOLDER / word / f"{job.label}-{job.attempt}"
