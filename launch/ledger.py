"""What was submitted: a JSON file per submission below <run>/jobs, and who is submitting now.

The ledger tells which items each element of an array was given, with which resources, in which job; what is done and
what is not is never read from it. It is the user's own folder, mode 0700: what lies there is run.

    <run>/jobs/submission-0003.json   one call of ``hpc-cg submit``: its jobs with their numbers
    <run>/jobs/studies/<digest>.toml  the study file as it was submitted
    <run>/jobs/payloads/              submitit's folder
    <run>/jobs/SUBMITTING             who submits now
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from hpc_cg.errors import AlreadySubmitted, DamagedProduct, FolderBusy
from hpc_cg.files import own_folder, read_json, write_bytes, write_json
from hpc_cg.stages import claims
from jobs.outcome import FOLDER

FORMAT = 1
SUBMITTING_PATIENCE_S = 60.0
_NAME = re.compile(r"submission-(\d{4,})\.json")


class Submittable(Protocol):
    """What jobs are submitted for: a study, or a campaign."""

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> Path:
        """Its file."""
        ...

    @property
    def digest(self) -> str:
        """That of the file."""
        ...

    @property
    def run_folder(self) -> Path: ...


@dataclass(frozen=True)
class Submitted:
    """A job that was submitted.

    id         its number; empty where the scheduler did not give one
    part       "whole" or "gather"; ``parts`` of each element where it is an array
    resources  what it asked for
    after      numbers of the jobs that it waits for
    """

    id: str
    stage: str
    part: str
    parts: tuple[str, ...]
    resources: dict[str, Any]
    after: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The job's number, or that of each element."""
        return tuple(f"{self.id}_{number}" for number in range(len(self.parts))) or (self.id,)


@dataclass(frozen=True)
class Submission:
    """One call of ``hpc-cg submit``: when, of which study, by which code, to which cluster, and its jobs."""

    number: int
    when: str
    cluster: str
    study: str
    study_digest: str
    code: dict[str, str]
    jobs: tuple[Submitted, ...] = field(default=())

    def with_job(self, job: Submitted) -> "Submission":
        return replace(self, jobs=(*self.jobs, job))


def folder_of(run_folder: Path) -> Path:
    """The ledger's folder, made or checked. Raises UnsafeFolder, FolderNotWritable."""
    own_folder(run_folder)
    return own_folder(run_folder / FOLDER)


def submissions(run_folder: Path) -> tuple[Submission, ...]:
    """Every submission, the oldest first. Raises DamagedProduct."""
    found = []
    for path in _paths(run_folder):
        content = read_json(path)
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise DamagedProduct(f"reading {path}", "no submission of this version", "move that file away")
        jobs = tuple(
            Submitted(**{**row, "parts": tuple(row["parts"]), "after": tuple(row["after"])}) for row in content["jobs"]
        )
        found.append(Submission(**{**content, "jobs": jobs}))
    return tuple(found)


def save(run_folder: Path, submission: Submission) -> None:
    path = run_folder / FOLDER / f"submission-{submission.number:04d}.json"
    write_json(path, asdict(submission) | {"format": FORMAT})


def begin(study: Submittable, cluster: str, code: dict[str, str]) -> Submission:
    """A new submission of a study, without jobs so far."""
    last = max((int(_NAME.fullmatch(path.name)[1]) for path in _paths(study.run_folder)), default=0)  # type: ignore[index]
    when = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return Submission(last + 1, when, cluster, str(study.path), study.digest, code)


def keep_study(study: Submittable) -> Path:
    """A copy of the study file as it is now; a job compares with it what it finds when it starts."""
    path = folder_of(study.run_folder) / "studies" / f"{study.digest}.toml"
    if not path.exists():
        write_bytes(path, study.path.read_bytes())
    return path


def payloads(run_folder: Path) -> Path:
    """submitit's folder."""
    return own_folder(folder_of(run_folder) / "payloads")


def logs(run_folder: Path) -> Path:
    return own_folder(run_folder / "logs")


@contextmanager
def submitting(run_folder: Path, patience_s: float = SUBMITTING_PATIENCE_S) -> Iterator[None]:
    """Hold the right to submit; a second caller waits until the first is through, to see what that one submitted.

    Raises AlreadySubmitted where the first takes too long.
    """
    folder, deadline = folder_of(run_folder), time.monotonic() + patience_s
    while True:
        try:
            claims.claim(folder, SUBMITTING)
            break
        except FolderBusy as error:
            if time.monotonic() > deadline:
                raise AlreadySubmitted(
                    f"submitting from {run_folder}",
                    f"another hpc-cg submit there ({error.found})",
                    f"wait for it; if it is no more, remove {folder / SUBMITTING}",
                ) from error
            time.sleep(0.2)
    try:
        yield
    finally:
        claims.release_claim(folder / SUBMITTING)


SUBMITTING = "SUBMITTING"


def _paths(run_folder: Path) -> list[Path]:
    folder = run_folder / FOLDER
    return sorted(path for path in folder.glob("submission-*.json") if _NAME.fullmatch(path.name))
