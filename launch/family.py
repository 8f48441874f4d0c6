"""A process and all that descend from it, as Linux's /proc tells (man 5 proc, /proc/pid/stat).

mpiexec starts every rank in a session of its own, so a signal to its group does not reach them. A process is
remembered with the tick at which it started: a number that was given to somebody else since is not signalled.
"""

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PARENT, STARTED = 1, 19
"""Places in /proc/pid/stat, counted after the name in brackets."""


@dataclass(frozen=True)
class Member:
    """One process: its number, and when it started in the kernel's ticks."""

    pid: int
    started: str


def family(pid: int) -> frozenset[Member]:
    """Process ``pid`` and its descendants that are alive; empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    started: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(folder.name))
        if fields is not None:
            children.setdefault(int(fields[PARENT]), []).append(int(folder.name))
            started[int(folder.name)] = fields[STARTED]
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        if one in started:
            found.append(Member(one, started[one]))
        todo += children.get(one, [])
    return frozenset(found)


def kill(members: frozenset[Member]) -> None:
    """SIGKILL every member that is still alive."""
    for member in members:
        fields = _stat(member.pid)
        if fields is not None and fields[STARTED] == member.started:
            with suppress(ProcessLookupError):
                os.kill(member.pid, signal.SIGKILL)


def _stat(pid: int) -> list[str] | None:
    """The fields of a living process after its name; None for the dead, and for zombies."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields
