"""When to stop by ourselves: before the allocation ends, at a signal, or when the file STOP appears.

Slurm tells its tasks the end of the job in SLURM_JOB_END_TIME (man srun, from 23.02 on); older ones are asked for the
time that is left, ``squeue -o %L``. HPC_CG_END_TIME says it for other schedulers.
"""

import logging
import math
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FrameType

from hpc_cg.errors import BrokenLaunch
from hpc_cg.stages.product import STOP
from jobs import asked

logger = logging.getLogger("hpc-cg")

MARGIN_S = 30.0
"""Kept free before the end of the allocation, beside twice the longest item: to meet, to write, to leave."""

ASK_PATIENCE_S = 20.0
LOOK_EVERY_S = 1.0
UNLIMITED, UNKNOWN = "UNLIMITED", ("", "INVALID", "NOT_SET")
_LEFT = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)")


def end_of_allocation(environ: Mapping[str, str]) -> float | None:
    """When this allocation ends, in seconds since 1970; None where it does not end, or nobody knows.

    One process asks and tells the others: a scheduler must not be asked by thousands. Raises BrokenLaunch where
    HPC_CG_END_TIME or SLURM_JOB_END_TIME is no time.
    """
    for name in ("HPC_CG_END_TIME", "SLURM_JOB_END_TIME"):
        if environ.get(name):
            return _time(name, environ[name])
    job = environ.get("SLURM_JOB_ID")
    left_s = _ask_slurm(job) if job else None
    return None if left_s is None else time.time() + left_s


def _time(name: str, text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise BrokenLaunch(f"reading the variable {name}", repr(text), "set it to seconds since 1970, or unset it")
    return found


def _ask_slurm(job: str) -> float | None:
    line = ["squeue", "--noheader", "--jobs", job, "--format", "%L"]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=ASK_PATIENCE_S, check=False)
        answer, fault = done.stdout.partition("\n")[0].strip(), done.stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        answer, fault = "", str(error)
    if answer != UNLIMITED and seconds_left(answer) is None:
        logger.warning(
            "when job %s ends is not known (squeue: %s), so it will not stop by itself before", job, fault or answer
        )
    return seconds_left(answer)


def seconds_left(text: str) -> float | None:
    """The seconds of Slurm's ``[days-][hours:]minutes:seconds``; None for UNLIMITED, INVALID, NOT_SET."""
    found = _LEFT.fullmatch(text)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


class Deadline:
    """Says whether to stop at the next safe place.

    ends_at    when the allocation ends, in seconds since 1970, or None
    signals    that ask to stop when one arrives, or has since the process began; a second Ctrl-C stops at once
    folder     the stage's, where the file STOP asks to stop
    """

    def __init__(
        self,
        folder: Path,
        ends_at: float | None,
        signals: Iterable[signal.Signals],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._file, self._ends_at, self._clock = folder / STOP, ends_at, clock
        self._asked, self._longest_s, self._looked = bool(asked.heard), 0.0, -math.inf
        for number in signals:
            signal.signal(number, self._ask)

    def stop(self, longest_item_s: float = 0.0) -> bool:
        """Whether something asked to stop, or another item might not come to its end before the allocation does.

        An item is trusted to take no longer than twice the longest that was seen so far.
        """
        self._longest_s = max(self._longest_s, longest_item_s)
        return self._asked or self._too_late() or self._file_is_there()

    def _too_late(self) -> bool:
        return self._ends_at is not None and self._ends_at - self._clock() < 2 * self._longest_s + MARGIN_S

    def _file_is_there(self) -> bool:
        """The file is looked for at most once a second: a shared file system has better things to do."""
        now = time.monotonic()
        if now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            self._asked = self._asked or self._file.exists()
        return self._asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
