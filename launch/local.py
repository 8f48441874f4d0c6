"""Run a stage here and now, on the cores of this machine, and show how far it is.

Each stage is a command of its own, ``python -m jobs STAGE study.toml``, under mpiexec where there are several ranks. It
runs in a session of its own, so that Ctrl-C reaches this process alone, which then lets the stage save before it ends.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hpc_cg.errors import BrokenLaunch, FolderBusy
from hpc_cg.stages.claims import RUNNING, owner
from hpc_cg.stages.product import STOP, make_run_folder
from hpc_cg.stages.progress import Reading, clear_progress, read_progress
from hpc_cg.stages.study import Study
from jobs.alive import is_gone
from jobs.asked import WORLDS
from jobs.task import CAMPAIGN
from launch.family import family, kill
from launch.interrupts import Interrupts
from launch.tail import Tail

POLL_S = 0.3
SAVE_PATIENCE_S = 60.0
END_PATIENCE_S = 5.0
DONE, PARTIAL = 0, 75
"""Exit codes of a stage that is sealed, and of one that stopped at a safe place."""

SINGLE = ("aggregate", "report", CAMPAIGN)
"""What one process does: it folds what is there."""


class View(Protocol):
    """Who shows a stage: called now and then with its progress, told a sentence where there is one."""

    def __call__(self, reading: Reading | None) -> None: ...

    def say(self, sentence: str) -> None: ...


@dataclass(frozen=True)
class Ended:
    """How a stage ended here.

    code      its exit code
    message   what it said about a failure, or, last, about where it stopped; empty where it is sealed
    log       where all that it said lies; None where that could not be written
    """

    code: int
    message: str
    log: Path | None
    seconds: float


def command(study: Study, stage: str, n_ranks: int) -> list[str]:
    """The command line of a stage; raises BrokenLaunch where several ranks are asked for and nothing starts them."""
    alone = [sys.executable, "-m", "jobs", stage, str(study.path)]
    if n_ranks == 1 or stage in SINGLE:
        return alone
    mpiexec = find_mpiexec()
    if mpiexec is None:
        raise BrokenLaunch(
            f"{n_ranks} ranks for {stage}", "no mpiexec", "pip install 'hpc-cg[mpi]', or run with --ranks 1"
        )
    return [mpiexec, "-n", str(n_ranks), *alone]


def find_mpiexec() -> str | None:
    """The mpiexec of this Python's environment, or the one on the PATH."""
    return shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def environment(n_ranks: int) -> dict[str, str]:
    """This process's environment with the cores divided among the ranks; threads that a person has set stay."""
    quiet = {"UCX_LOG_LEVEL": "error", "PYTHONUNBUFFERED": "1"}
    port = {"MASTER_PORT": str(15000 + os.getpid() % 10000)}
    return os.environ | quiet | port | threads(len(os.sched_getaffinity(0)) // n_ranks)


def threads(n_cores: int) -> dict[str, str]:
    """Variables that give a process its threads, one a core; those that a person has set stay.

    Both, because MKL counts for itself: with more of its threads than cores, they wait for one another fifty times
    longer than they work.
    """
    openmp = os.environ.get("OMP_NUM_THREADS") or str(max(1, n_cores))
    return {"OMP_NUM_THREADS": openmp, "MKL_NUM_THREADS": os.environ.get("MKL_NUM_THREADS") or openmp}


def log_path(study: Study, stage: str) -> Path:
    """A log of its own for each start of a stage."""
    return study.run_folder / "logs" / f"{stage}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"


def refuse_if_busy(study: Study, stage: str) -> None:
    """Raise FolderBusy where somebody works on a stage, before anything of theirs is touched."""
    folder = study.folder(stage)
    other = owner(folder)
    if other is not None and not is_gone(other):
        raise FolderBusy(
            f"running {stage} in {folder}",
            f"another run there: {other}",
            f"wait for it or stop it; if it is no more, remove {folder / RUNNING}",
        )


def run_stage(study: Study, stage: str, n_ranks: int, view: View) -> Ended:
    """Run one stage to its end.

    Ctrl-C, SIGTERM and a closed terminal stop the stage with all its processes and raise KeyboardInterrupt: training
    is asked to save first. Raises FolderBusy, BrokenLaunch.
    """
    refuse_if_busy(study, stage)
    line, folder = command(study, stage, n_ranks), study.folder(stage)
    with suppress(OSError):  # the stage itself says where it cannot write
        make_run_folder(study.run_folder)
    clear_progress(folder)
    began, by_itself = time.time(), True
    with Interrupts() as interrupts:
        process = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(1 if stage in SINGLE else n_ranks),
            start_new_session=True,
        )
        assert process.stdout is not None, "a pipe was asked for"
        tail = Tail(process.stdout, log_path(study, stage))
        try:
            while not _ended_in(process, POLL_S) and not interrupts.asked:
                view(read_progress(folder))
            if interrupts.asked and process.returncode is None and stage in WORLDS:
                _ask_to_save(process, stage, folder, interrupts, view)
        finally:
            if process.returncode is None:
                by_itself = False
                _end(process, interrupts)
        tail.close()
        if interrupts.asked and (not by_itself or process.returncode in (DONE, PARTIAL)):
            raise KeyboardInterrupt
    view(read_progress(folder))
    return Ended(process.returncode, tail.message if process.returncode else "", tail.log, time.time() - began)


def _ask_to_save(process: subprocess.Popen, stage: str, folder: Path, interrupts: Interrupts, view: View) -> None:
    """Let training save at its next step; returns when it has ended, when patience has, or at a second Ctrl-C.

    Nothing is asked of a training that has not claimed its folder yet: it has nothing to save.
    """
    if owner(folder) is None:
        return
    view.say(f"stopping {stage} at the next step… (Ctrl-C again ends it at once)")
    before, deadline = interrupts.asked, time.monotonic() + SAVE_PATIENCE_S
    stop = folder / STOP
    try:
        while interrupts.asked == before and time.monotonic() < deadline:
            stop.touch()  # again each time: a training that only just starts removes what it finds
            if _ended_in(process, POLL_S):
                return
            view(read_progress(folder))
    except OSError as error:
        view.say(f"{stop} cannot be written ({error.strerror}), so {stage} is ended without saving")
    finally:
        with suppress(OSError):
            stop.unlink(missing_ok=True)


def _end(process: subprocess.Popen, interrupts: Interrupts) -> None:
    """End a stage and all its processes: politely, and at a further Ctrl-C or after some seconds by force."""
    members, before = family(process.pid), interrupts.asked
    if before < 2:
        _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + END_PATIENCE_S
        while interrupts.asked == before and time.monotonic() < deadline and not _ended_in(process, POLL_S):
            pass
    if process.returncode is None:
        members |= family(process.pid)
        _signal(process, signal.SIGKILL)
    kill(members)
    process.wait()


def _signal(process: subprocess.Popen, number: signal.Signals) -> None:
    """Send a signal to the group of a stage; mpiexec passes a SIGTERM on to its ranks."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _ended_in(process: subprocess.Popen, seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
