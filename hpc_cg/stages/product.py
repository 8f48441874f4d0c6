"""The folder of one stage: begun, worked in, sealed; or found sealed, stale, or busy.

    <run>/<stage>/INTENT    the fingerprint of what this folder is to become; written first
    <run>/<stage>/RUNNING   who works here now
    <run>/<stage>/SEALED    the fingerprint of what it became, its inputs' seals, versions, figures; written last

A folder whose fingerprint is not the one asked for is moved to <run>/superseded/, never deleted.
"""

import json
import os
import platform
import socket
import time
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any

from hpc_cg.errors import DamagedProduct, FolderBusy, MissingInput, NotSealed
from hpc_cg.files import digest, explain_write_errors, read_json, sweep_partial, write_json

INTENT, RUNNING, SEALED = "INTENT", "RUNNING", "SEALED"
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
    summary       figures a person wants to see
    made          when, where, by which versions
    """

    stage: str
    fingerprint: str
    inputs: dict[str, str]
    content: str
    settings: dict[str, Any]
    summary: dict[str, Any]
    made: dict[str, Any]

    @property
    def identity(self) -> str:
        """The same for the same product, whenever and wherever it was made."""
        return digest([self.stage, self.fingerprint, self.inputs, self.content])


def read_seal(folder: Path) -> Seal | None:
    """The seal of a stage's folder, or None; raises DamagedProduct."""
    try:
        return Seal(**read_json(folder / SEALED))
    except MissingInput:
        return None
    except TypeError as error:
        raise DamagedProduct(
            f"the seal {folder / SEALED}",
            f"other fields than expected ({error})",
            "remove the folder and run again",
        ) from error


def need_seal(folder: Path, asked_by: str) -> Seal:
    """The seal of a stage that another needs; raises NotSealed."""
    seal = read_seal(folder)
    if seal is None:
        raise NotSealed(
            f"{asked_by} reads the product of {folder.name}",
            f"{folder} is not sealed",
            f"run `hpc-cg run {folder.name}` first",
        )
    return seal


def state(folder: Path, fingerprint: str, inputs: dict[str, str]) -> State:
    """Compare a folder with what the study asks for now."""
    seal = read_seal(folder)
    if seal is not None:
        return State.SEALED if (seal.fingerprint, seal.inputs) == (fingerprint, inputs) else State.STALE
    return State.PARTIAL if (folder / INTENT).exists() else State.ABSENT


def begin(folder: Path, fingerprint: str, inputs: dict[str, str]) -> None:
    """Make the folder ready to work in: move aside what was meant to be something else, keep what was half done.

    Raises FolderBusy where another run works here, FolderNotWritable, DiskFull.
    """
    intent = {"fingerprint": fingerprint, "inputs": inputs}
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _claim(folder)
        sweep_partial(folder)
        if (folder / INTENT).exists() and read_json(folder / INTENT) != intent:
            aside = folder.parent / "superseded" / f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
            aside.parent.mkdir(exist_ok=True)
            folder.rename(aside)
            (aside / RUNNING).unlink(missing_ok=True)
            folder.mkdir()
            _claim(folder)
    write_json(folder / INTENT, intent)


def seal(
    folder: Path,
    stage: str,
    fingerprint: str,
    inputs: dict[str, str],
    content: str,
    settings: dict[str, Any],
    summary: dict[str, Any],
) -> Seal:
    """Say that the product is whole, and give the folder free."""
    made = {
        "when": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "versions": _versions(),
    }
    value = Seal(stage, fingerprint, inputs, content, settings, summary, made)
    write_json(folder / SEALED, vars(value))
    release(folder)
    return value


def release(folder: Path) -> None:
    """Give the folder free for the next run."""
    (folder / RUNNING).unlink(missing_ok=True)


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _claim(folder: Path) -> None:
    """Write RUNNING, unless somebody alive has."""
    path = folder / RUNNING
    me = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID", ""),
    }
    for _ in range(2):
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            other = _owner(path)
            if other is not None and not _gone(other, me):
                raise FolderBusy(
                    f"working in {folder}",
                    f"another run there: process {other['pid']} on {other['host']}"
                    + (f", job {other['job']}" if other["job"] else ""),
                    f"wait for it or stop it; if it is no more, remove {path}",
                ) from None
            path.unlink(missing_ok=True)
        else:
            with os.fdopen(descriptor, "w") as file:
                json.dump(me, file)
            return
    raise FolderBusy(f"working in {folder}", "another run that started at the same moment", "run again later")


def _owner(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except (MissingInput, DamagedProduct):
        return None  # a claim that was killed before it was written says nothing about anybody alive


def _gone(other: dict[str, Any], me: dict[str, Any]) -> bool:
    """Whether the owner of a claim is certainly no more: same job again, or a dead process on this host."""
    if other["job"] and other["job"] == me["job"]:
        return True
    if other["host"] != me["host"]:
        return False
    return other["pid"] == me["pid"] or _started(other["pid"]) != other["started"]


def _started(pid: int) -> str | None:
    """When a process started, in the kernel's ticks: with its number it names the process. None for the dead.

    Where there is no /proc, nobody counts as dead and a claim that was left behind is removed by hand.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except FileNotFoundError:
        return None
    return None if fields[0] == "Z" else fields[19]
