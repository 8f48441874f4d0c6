"""The folder of one stage: begun, worked in, sealed; or found sealed, stale, or busy.

    <run>/<stage>/INTENT    the fingerprint of what this folder is to become; written first
    <run>/<stage>/RUNNING   who works here now; RUNNING-<part> for each of several that do different parts at once
    <run>/<stage>/STOP      asks whoever works here to save and stop (training looks for it between steps)
    <run>/<stage>/SEALED    the fingerprint of what it became, its inputs, every file, versions, figures; written last

A folder whose fingerprint is not the one asked for is moved to <run>/superseded/, never deleted.
"""

import json
import os
import platform
import random
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any

from hpc_cg.errors import DamagedProduct, FolderBusy, MissingInput, NotSealed
from hpc_cg.files import (
    digest,
    digest_content,
    explain_write_errors,
    fsync_folder,
    read_json,
    sweep_partial,
    write_json,
)

INTENT, RUNNING, SEALED, STOP = "INTENT", "RUNNING", "SEALED", "STOP"
UNSEALED = {INTENT, RUNNING, SEALED, STOP}
"""Files that are no part of the product; what begins with RUNNING- is none either."""

SELF_CHECKED = "store.zarr"
"""The store keeps checksums of its own, in the commit records: it is not hashed a second time."""

MAKERS = "makers"
"""Folder of who did which part, where several did."""

JOB, ATTEMPT = "HPC_CG_JOB", "HPC_CG_ATTEMPT"
"""Variables that name the job and count its earlier attempts, where that is not Slurm's."""

BEGIN_PATIENCE_S, ASK_AFTER_S = 300.0, 30.0
"""How long one of several that begin at once waits for the others, and after which time it asks whether they live."""

ADDED = "was not there when the product was sealed"

PACKAGES = ("hpc-cg", "numpy", "zarr", "torch", "mdtraj", "mpi4py", "openmm")


class State(StrEnum):
    """What a stage's folder is."""

    ABSENT = "absent"
    PARTIAL = "partial"
    SEALED = "sealed"
    STALE = "stale"


@dataclass(frozen=True)
class Seal:
    """What a finished stage says of itself.

    fingerprint   digest of the settings and of everything before them that decided the product
    inputs        identity of each upstream seal
    content       digest of what was produced
    manifest      digest of each file of the product, by its path in the folder
    summary       figures a person wants to see
    made          when, where, by which versions
    """

    stage: str
    fingerprint: str
    inputs: dict[str, str]
    content: str
    manifest: dict[str, str]
    settings: dict[str, Any]
    summary: dict[str, Any]
    made: dict[str, Any]

    @property
    def identity(self) -> str:
        """The same for the same product, whenever and wherever it was made."""
        return digest([self.stage, self.fingerprint, self.inputs, self.content])


def read_seal(folder: Path) -> Seal | None:
    """The seal of a stage's folder, or None; raises DamagedProduct.

    A seal with other fields was written by another version: it is given as one that fits no study, so that its product
    counts as stale.
    """
    try:
        content = read_json(folder / SEALED)
    except MissingInput:
        return None
    if not isinstance(content, dict) or content.keys() != Seal.__dataclass_fields__.keys():
        return Seal(folder.name, "another version", {}, "", {}, {}, {}, {})
    return Seal(**content)


def need_seal(folder: Path, asked_by: str) -> Seal:
    """The seal of a stage that another needs; raises NotSealed."""
    seal = read_seal(folder)
    if seal is None:
        raise NotSealed(
            f"{asked_by} reads the product of {folder.name}",
            f"{folder} is not sealed",
            f"run the stage {folder.name} of this study first",
        )
    return seal


def state(folder: Path, fingerprint: str, inputs: Callable[[], dict[str, str]]) -> State:
    """Compare a folder with what the study asks for now; ``inputs`` are asked for only where it is sealed."""
    seal = read_seal(folder)
    if seal is not None:
        return State.SEALED if seal.fingerprint == fingerprint and seal.inputs == inputs() else State.STALE
    return State.PARTIAL if (folder / INTENT).exists() else State.ABSENT


def nothing() -> None:
    """Lay out nothing."""


def begin(
    folder: Path,
    fingerprint: str,
    inputs: dict[str, str],
    lay_out: Callable[[], None] = nothing,
    gone: "Gone | None" = None,
) -> None:
    """Make the folder ready to work in: move aside what was meant to be something else, keep what was half done.

    lay_out   makes what must be there before the work begins
    gone      asked of a claim of another host whether its process is no more; by default it is taken for alive
    Raises FolderBusy where another run works here, FolderNotWritable, DiskFull.
    """
    with explain_write_errors(folder), _beginning(folder, gone):
        folder.mkdir(exist_ok=True)
        _claim(folder, gone)
        try:
            _make_ready(folder, {"fingerprint": fingerprint, "inputs": inputs}, lay_out)
        except BaseException:
            release(folder)
            raise


def join(
    folder: Path,
    fingerprint: str,
    inputs: dict[str, str],
    part: str,
    lay_out: Callable[[], None] = nothing,
    gone: "Gone | None" = None,
) -> None:
    """Make the folder ready for one of several that do different parts of the work at once.

    part   its name: digits and letters; nobody else does this part meanwhile
    Whoever comes first does what ``begin`` does, the others wait for it. Arguments and errors are those of ``begin``.
    """
    intent = {"fingerprint": fingerprint, "inputs": inputs}
    with explain_write_errors(folder):
        if not may_continue(folder, fingerprint, inputs):
            with _beginning(folder, gone):
                folder.mkdir(exist_ok=True)
                if not _is_meant_for(folder, intent):
                    _claim(folder, gone)
                    try:
                        _make_ready(folder, intent, lay_out)
                    finally:
                        release(folder)
        _claim(folder, gone, part)


@contextmanager
def _beginning(folder: Path, gone: "Gone | None") -> Iterator[None]:
    """The right to make a stage's folder ready: a claim beside it, since the folder itself may be moved aside.

    It is held for moments, so others wait; whether its holder is gone is asked only of one who holds it long.
    """
    make_run_folder(folder.parent)
    name, began = f".{folder.name}.BEGINNING", time.monotonic()
    while True:
        try:
            claim(folder.parent, name, gone if time.monotonic() - began > ASK_AFTER_S else None)
            break
        except FolderBusy:
            if time.monotonic() - began > BEGIN_PATIENCE_S:
                raise
        time.sleep(random.uniform(0.05, 0.3))
    try:
        yield
    finally:
        release_claim(folder.parent / name)


def make_run_folder(run_folder: Path) -> None:
    """Make a run folder; a new one is its user's alone."""
    run_folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        run_folder.mkdir(mode=0o700)
        run_folder.chmod(0o700)


def _make_ready(folder: Path, intent: dict[str, Any], lay_out: Callable[[], None]) -> None:
    """For the one who holds the folder."""
    sweep_partial(folder)
    (folder / STOP).unlink(missing_ok=True)
    if (folder / INTENT).exists() and not _is_meant_for(folder, intent):
        aside = _moved_aside(folder)
        (aside / RUNNING).rename(_remade(folder) / RUNNING)
    lay_out()
    if not _is_meant_for(folder, intent):
        write_json(folder / INTENT, intent)


def may_continue(folder: Path, fingerprint: str, inputs: dict[str, str]) -> bool:
    """Whether what lies half done in a folder was begun for this, so that it counts."""
    return _is_meant_for(folder, {"fingerprint": fingerprint, "inputs": inputs})


def _is_meant_for(folder: Path, intent: dict[str, Any]) -> bool:
    try:
        return read_json(folder / INTENT) == intent
    except MissingInput:
        return False


def seal(
    folder: Path,
    stage: str,
    fingerprint: str,
    inputs: dict[str, str],
    content: str,
    settings: dict[str, Any],
    summary: dict[str, Any],
    made_by: Mapping[str, Any] | None = None,
) -> Seal:
    """Say that the product is whole, and give the folder free.

    made_by   more to say of who made it, beside the time, the host, the job with its attempt, and the versions
    """
    parts = [read_json(path) for path in sorted((folder / MAKERS).glob("*.json"))]
    made = maker() | {"python": platform.python_version(), "versions": _versions()} | dict(made_by or {})
    made |= {"parts": parts} if parts else {}
    value = Seal(stage, fingerprint, inputs, content, manifest_of(folder), settings, summary, made)
    write_json(folder / SEALED, vars(value))
    release(folder)
    return value


def maker() -> dict[str, Any]:
    """Who makes something now: when, on which host, in which job and which attempt of it."""
    me = _me()
    when = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return {"when": when, "host": me.host, "job": me.job, "attempt": int(me.attempt or 0) + 1}


def sign(folder: Path, part: str) -> None:
    """Leave word of who did a part of the work, for the seal."""
    write_json(folder / MAKERS / f"{part}.json", maker() | {"part": part})


@contextmanager
def unsealed(folder: Path) -> Iterator[None]:
    """Hold a sealed folder while parts of its product are taken back, then take back the seal: it is half done.

    The seal goes last, so that a kill in between leaves a sealed product with holes, which an audit finds, and never a
    half-made one with parts that pass for good. Raises FolderBusy, DamagedProduct, FolderNotWritable.
    """
    with _held(folder):
        found = read_seal(folder)
        assert found is not None, "only what is sealed is unsealed"
        yield
        with explain_write_errors(folder):
            (folder / SEALED).unlink()
            fsync_folder(folder)


def set_aside(folder: Path) -> Path:
    """Move a folder to superseded/, whatever is in it; returns where it is. Raises FolderBusy, FolderNotWritable."""
    with _held(folder), explain_write_errors(folder):
        aside = _moved_aside(folder)
        (aside / RUNNING).unlink(missing_ok=True)
        fsync_folder(folder.parent)
    return aside


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Claim a folder, and give it free in the end."""
    with explain_write_errors(folder):
        _claim(folder)
    try:
        yield
    finally:
        release(folder)


def _moved_aside(folder: Path) -> Path:
    aside = folder.parent / "superseded" / f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    aside.parent.mkdir(exist_ok=True)
    folder.rename(aside)
    return aside


def release(folder: Path, part: str = "") -> None:
    """Give the folder, or a part of its work, free for the next run, if it is this process that works there."""
    release_claim(_claim_path(folder, part))


def release_claim(path: Path) -> None:
    """Take back what ``claim`` wrote, if it is this process's."""
    found = _read_owner(path)
    if found is not None and found.is_me:
        path.unlink(missing_ok=True)


def manifest_of(folder: Path) -> dict[str, str]:
    """Digest of each file of a product, by its path in the folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not (
            parts[0] in UNSEALED
            or parts[0].startswith(f"{RUNNING}-")
            or any(part.startswith(".") or part == SELF_CHECKED for part in parts)
        ):
            found["/".join(parts)] = digest_content(path)
    return found


def differences(folder: Path, seal: Seal) -> dict[str, str]:
    """Compare the files of a sealed product with what was sealed; a sentence for each that differs, by its path."""
    now = manifest_of(folder)
    found = {name: "is missing" for name in seal.manifest if name not in now}
    found |= {
        name: "holds other bytes than were sealed" for name, was in seal.manifest.items() if now.get(name, was) != was
    }
    found |= {name: ADDED for name in now if name not in seal.manifest}
    return {name: f"{name} {what}" for name, what in found.items()}


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


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
        return self == _me()

    @property
    def gone(self) -> bool:
        """Whether that process is certainly no more: dead on this host, or of an earlier attempt of this very job.

        An earlier attempt on a node that was lost may go on unseen: what it writes are the same bytes.
        """
        me = _me()
        if self.job and self.job == me.job and self.attempt != me.attempt:
            return True
        return self.host == me.host and started_at(self.pid) != self.started


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


def _me() -> Owner:
    job = job_label(os.environ)
    attempt = os.environ.get(ATTEMPT) or os.environ.get("SLURM_RESTART_COUNT", "")
    return Owner(socket.gethostname(), os.getpid(), started_at(os.getpid()), job, attempt)


def _claim_path(folder: Path, part: str) -> Path:
    return folder / (f"{RUNNING}-{part}" if part else RUNNING)


def _claim(folder: Path, gone: Gone | None = None, part: str = "") -> None:
    """Write RUNNING, or that of a part, unless somebody alive works there.

    It appears with its content, by a link, so no rival can misread it. Whoever holds the folder excludes those who do
    parts, and the other way round: each writes first and then looks, so that of two at least one sees the other.
    """
    claim(folder, _claim_path(folder, part).name, gone)
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
    mine.write_text(json.dumps(asdict(_me())), encoding="utf-8")
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


def _remade(folder: Path) -> Path:
    folder.mkdir()
    return folder


def started_at(pid: int) -> str | None:
    """When a process started, in the kernel's ticks: with its number it names the process. None for the dead.

    Where there is no /proc, nobody counts as dead and a claim that was left behind is removed by hand.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except FileNotFoundError:
        return None
    return None if fields[0] == "Z" else fields[19]
