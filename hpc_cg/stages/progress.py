"""How far a stage is, told to whoever looks: each member of the team keeps one small file up to date.

The files are written at most twice a second and never synced: losing one costs nothing. Whoever shows progress adds
them up (``read_progress``); the stage knows nothing of terminals.
"""

import json
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = ".progress"
INTERVAL_S = 0.5


@dataclass(frozen=True)
class Reading:
    """The progress of a whole team: what it does, how many of how many ``unit`` are done, since when.

    before   how many were done already when this run of the phase began
    """

    phase: str
    done: float | int
    total: float | int
    unit: str
    started: float
    before: float | int
    note: str


@dataclass
class Heartbeat:
    """The progress file of one member: the only changing object of a stage, and nothing depends on it."""

    folder: Path
    member: int
    _last: float = field(default=0.0, init=False)
    _phase: str = field(default="", init=False)
    _started: float = field(default=0.0, init=False)
    _before: float = field(default=0.0, init=False)

    def __call__(self, phase: str, done: float | int, total: float | int, unit: str, note: str = "") -> None:
        """Say that ``done`` of ``total`` units of ``phase`` are done by this member (total is the team's).

        The first call of a phase starts its clock: make it before the work, with what is done already.
        """
        now = time.time()
        if phase != self._phase:
            self._phase, self._started, self._before, self._last = phase, now, done, 0.0
        if now - self._last < INTERVAL_S and done < total:
            return
        self._last = now
        path = self.folder / FOLDER / f"{self.member:05d}.json"
        text = json.dumps([phase, done, total, unit, self._started, self._before, note])
        with suppress(OSError):  # a full disk or a folder that is being cleared must not decide over the work
            path.parent.mkdir(exist_ok=True)
            beside = path.with_suffix(".new")
            beside.write_text(text, encoding="utf-8")
            beside.replace(path)


def clear_progress(folder: Path) -> None:
    """Forget the progress of an earlier run."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def read_progress(folder: Path) -> Reading | None:
    """Add up the progress files of a stage's folder; None where there are none."""
    rows = []
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            rows.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, json.JSONDecodeError):
            continue  # being replaced at this moment; the next look will find it
    if not rows:
        return None
    phase = max(rows, key=lambda row: row[4])[0]
    rows = [row for row in rows if row[0] == phase]
    note = next((row[6] for row in rows if row[6]), "")
    return Reading(
        phase=phase,
        done=sum(row[1] for row in rows),
        total=max(row[2] for row in rows),
        unit=rows[0][3],
        started=min(row[4] for row in rows),
        before=sum(row[5] for row in rows),
        note=note,
    )
