"""Who works in a folder now: a claim in a file, which one process holds, or several for different parts of the work.

    RUNNING          held by the one who works there
    RUNNING-<part>   held by each of several that do different parts at once

A claim appears whole, by a link, and names its process so that nobody can take another for it: host, number, when the
kernel started it, job and attempt. A claim whose process is certainly no more is taken over.
"""

import json
import os
import socket
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from hpc_cg.errors import DamagedProduct, FolderBusy, MissingInput
from hpc_cg.files import read_json

RUNNING = "RUNNING"
JOB, ATTEMPT = "HPC_CG_JOB", "HPC_CG_ATTEMPT"
"""Variables that name the job and count its earlier attempts, where that is not Slurm's."""


@dataclass(frozen=True)
class Owner:
    """Who works in a folder: a process of a host, since when (the kernel's ticks), of which job and which attempt."""

    host: str
    pid: int
    started: str | None
    job: str
    attempt: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" + (f", job {self.job}" if self.job else "")

    @property
    def is_me(self) -> bool:
        return self == this_process()

    @property
    def gone(self) -> bool:
        """Whether that process is certainly no more: dead on this host, or of an earlier attempt of this very job.

        An earlier attempt on a node that was lost may go on unseen: what it writes are the same bytes.
        """
        own = this_process()
        if self.job and self.job == own.job and self.attempt != own.attempt:
            return True
        return self.host == own.host and started_at(self.pid) != self.started


Gone = Callable[[Owner], bool]


def owner(folder: Path) -> Owner | None:
    """Who works in a folder now; None where nobody alive does, and the first of them where several do."""
    return next(iter(owners(folder)), None)


def owners(folder: Path) -> tuple[Owner, ...]:
    """All who work in a folder now."""
    paths = [folder / RUNNING, *sorted(folder.glob(f"{RUNNING}-*"))]
    return tuple(found for path in paths if (found := claimed_by(path)) is not None)


def claimed_by(path: Path) -> Owner | None:
    """Who holds a claim, if anybody alive does."""
    found = _read_owner(path)
    return None if found is None or found.gone else found


def job_label(environ: Mapping[str, str]) -> str:
    """The job that a process is part of, as its scheduler names it: ``12``, ``31_5`` in an array; empty outside."""
    if environ.get(JOB):
        return environ[JOB]
    if environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ.get('SLURM_ARRAY_TASK_ID', '')}"
    return environ.get("SLURM_JOB_ID", "")


def this_process() -> Owner:
    """Who this is."""
    job = job_label(os.environ)
    attempt = os.environ.get(ATTEMPT) or os.environ.get("SLURM_RESTART_COUNT", "")
    return Owner(socket.gethostname(), os.getpid(), started_at(os.getpid()), job, attempt)


def release(folder: Path, part: str = "") -> None:
    """Give the folder, or a part of its work, free for the next run, if it is this process that works there."""
    release_claim(claim_path(folder, part))


def release_claim(path: Path) -> None:
    """Take back what ``claim`` wrote, if it is this process's."""
    found = _read_owner(path)
    if found is not None and found.is_me:
        path.unlink(missing_ok=True)


def claim_path(folder: Path, part: str) -> Path:
    return folder / (f"{RUNNING}-{part}" if part else RUNNING)


def claim_folder(folder: Path, gone: Gone | None = None, part: str = "") -> None:
    """Write RUNNING, or that of a part, unless somebody alive works there.

    It appears with its content, by a link, so no rival can misread it. Whoever holds the folder excludes those who do
    parts, and the other way round: each writes first and then looks, so that of two at least one sees the other.
    """
    claim(folder, claim_path(folder, part).name, gone)
    try:
        for other in [folder / RUNNING] if part else sorted(folder.glob(f"{RUNNING}-*")):
            if other.exists():
                found = _read_owner(other)
                _refuse_if_alive(folder, other, found, gone)
                _take_away(other, found)
    except FolderBusy:
        release(folder, part)
        raise


def claim(folder: Path, name: str, gone: Gone | None = None) -> None:
    """Write who this is into the file ``name`` of a folder, unless somebody alive has; raises FolderBusy."""
    path = folder / name
    mine = folder / f".{name}.{uuid.uuid4().hex[:8]}"
    mine.write_text(json.dumps(asdict(this_process())), encoding="utf-8")
    try:
        for _ in range(5):
            try:
                os.link(mine, path)
                return
            except FileExistsError:
                found = _read_owner(path)
                _refuse_if_alive(folder, path, found, gone)
                _take_away(path, found)
    finally:
        mine.unlink(missing_ok=True)
    raise FolderBusy(f"working in {folder}", "other runs that start at the same moment", "run again later")


def _refuse_if_alive(folder: Path, path: Path, found: Owner | None, gone: Gone | None) -> None:
    if found is None or found.gone or (gone is not None and gone(found)):
        return
    raise FolderBusy(
        f"working in {folder}",
        f"another run there: {found}",
        f"wait for it or stop it; if it is no more, remove {path}",
    )


def _take_away(path: Path, dead: Owner | None) -> None:
    """Remove the claim of a dead process; put it back where it turns out to be somebody else's by now."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if _read_owner(aside) != dead:
        with suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)


def _read_owner(path: Path) -> Owner | None:
    try:
        return Owner(**read_json(path))
    except (MissingInput, DamagedProduct, TypeError):
        return None


def started_at(pid: int) -> str | None:
    """When a process started, in the kernel's ticks: with its number it names the process. None for the dead.

    Where there is no /proc, nobody counts as dead and a claim that was left behind is removed by hand.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except FileNotFoundError:
        return None
    return None if fields[0] == "Z" else fields[19]
