"""The folder of one stage: begun, worked in, sealed; or found sealed, stale, or busy.

    <run>/<stage>/INTENT    the fingerprint of what this folder is to become; written first
    <run>/<stage>/RUNNING   who works here now; RUNNING-<part> for each of several that do different parts at once
    <run>/<stage>/STOP      asks whoever works here to save and stop (training looks for it between steps)
    <run>/<stage>/SEALED    the fingerprint of what it became, its inputs, every file, versions, figures; written last

A folder whose fingerprint is not the one asked for is moved to <run>/superseded/, never deleted.
"""

import os
import platform
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any

from hpc_cg.errors import FolderBusy, MissingInput, NotSealed
from hpc_cg.files import (
    digest,
    digest_content,
    explain_write_errors,
    fsync_folder,
    read_json,
    sweep_partial,
    write_json,
)
from hpc_cg.stages.claims import RUNNING, Gone, claim, claim_folder, release, release_claim, this_process

INTENT, SEALED, STOP = "INTENT", "SEALED", "STOP"
UNSEALED = {INTENT, RUNNING, SEALED, STOP}
"""Files that are no part of the product; what begins with RUNNING- is none either."""

SELF_CHECKED = "store.zarr"
"""The store keeps checksums of its own, in the commit records: it is not hashed a second time."""

MAKERS = "makers"
"""Folder of who did which part, where several did."""

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
        stage = folder.name.partition("-")[0]  # a product that studies share has a digest behind its stage
        raise NotSealed(
            f"{asked_by} reads the product of {stage}",
            f"{folder} is not sealed",
            f"run the stage {stage} of this study first",
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
    gone: Gone | None = None,
) -> None:
    """Make the folder ready to work in: move aside what was meant to be something else, keep what was half done.

    lay_out   makes what must be there before the work begins
    gone      asked of a claim of another host whether its process is no more; by default it is taken for alive
    Raises FolderBusy where another run works here, FolderNotWritable, DiskFull.
    """
    with explain_write_errors(folder), _beginning(folder, gone):
        folder.mkdir(exist_ok=True)
        claim_folder(folder, gone)
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
    gone: Gone | None = None,
) -> None:
    """Make the folder ready for one of several that do different parts of the work at once.

    part   its name: digits and letters; nobody else does this part meanwhile
    Whoever comes first does what ``begin`` does, the others wait for it. Arguments and errors are those of ``begin``.
    """
    intent = {"fingerprint": fingerprint, "inputs": inputs}
    with explain_write_errors(folder):
        # whoever makes it ready says what it is meant for, and holds it a moment longer
        if not may_continue(folder, fingerprint, inputs) or _beginning_of(folder).exists():
            with _beginning(folder, gone):
                folder.mkdir(exist_ok=True)
                if not _is_meant_for(folder, intent):
                    claim_folder(folder, gone)
                    try:
                        _make_ready(folder, intent, lay_out)
                    finally:
                        release(folder)
        claim_folder(folder, gone, part)


def _beginning_of(folder: Path) -> Path:
    """The claim of whoever makes a folder ready: beside it, since the folder itself may be moved aside."""
    return folder.parent / f".{folder.name}.BEGINNING"


@contextmanager
def _beginning(folder: Path, gone: Gone | None) -> Iterator[None]:
    """The right to make a stage's folder ready.

    It is held for moments, so others wait; whether its holder is gone is asked only of one who holds it long.
    """
    make_run_folder(folder.parent)
    path, began = _beginning_of(folder), time.monotonic()
    while True:
        try:
            claim(path.parent, path.name, gone if time.monotonic() - began > ASK_AFTER_S else None)
            break
        except FolderBusy:
            if time.monotonic() - began > BEGIN_PATIENCE_S:
                raise
        time.sleep(random.uniform(0.05, 0.3))
    try:
        yield
    finally:
        release_claim(path)


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
    me = this_process()
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
        claim_folder(folder)
    try:
        yield
    finally:
        release(folder)


def _moved_aside(folder: Path) -> Path:
    now = f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9:09d}"
    aside = folder.parent / "superseded" / f"{folder.name}-{now}-{os.getpid()}"
    aside.parent.mkdir(exist_ok=True)
    folder.rename(aside)
    return aside


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


def _remade(folder: Path) -> Path:
    folder.mkdir()
    return folder
