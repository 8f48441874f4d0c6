"""Run a stage here and now, on the cores of this machine, and show how far it is.

Each stage is a command of its own, ``python -m jobs STAGE study.toml``, under mpiexec where there are several ranks. It
is watched through its progress files alone, so the terminal can go away and come back.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hpc_cg.errors import BrokenLaunch
from hpc_cg.files import explain_write_errors
from hpc_cg.stages.progress import FOLDER, Reading, read_progress
from hpc_cg.stages.study import Study

POLL_S = 0.3
SINGLE = ("aggregate", "report", "reference")
"""Stages that one process does: OpenMM uses the cores by itself, and the last two fold what is there."""


@dataclass(frozen=True)
class Ended:
    """How a stage ended here: its exit code, what it said about it, and where its log lies."""

    code: int
    message: str
    log: Path
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
    """This process's environment with the cores divided among the ranks."""
    cores = len(os.sched_getaffinity(0))
    threads = str(max(1, cores // n_ranks))
    quiet = {"UCX_LOG_LEVEL": "error", "PYTHONUNBUFFERED": "1"}
    port = {"MASTER_PORT": str(15000 + os.getpid() % 10000)}
    return os.environ | quiet | port | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}


def run_stage(study: Study, stage: str, n_ranks: int, show: Callable[[Reading | None], None]) -> Ended:
    """Run one stage to its end; ``show`` is called now and then with its progress.

    Ctrl-C and SIGTERM stop the stage too, and raise KeyboardInterrupt.
    """
    log = study.run_folder / "logs" / f"{stage}.log"
    with explain_write_errors(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(study.folder(stage) / FOLDER, ignore_errors=True)
        began = time.time()
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                command(study, stage, n_ranks),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment(1 if stage in SINGLE else n_ranks),
            )
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while process.poll() is None:
            show(read_progress(study.folder(stage)))
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        _stop(process)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    show(read_progress(study.folder(stage)))
    return Ended(process.returncode, _message(log) if process.returncode else "", log, time.time() - began)


def _stop(process: subprocess.Popen, patience_s: float = 20.0) -> None:
    """Give a stage the time to save, then end it."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _message(log: Path) -> str:
    """What a failed stage said: its own sentence where there is one, the end of its log otherwise."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    sentences = dict.fromkeys(line.removeprefix("hpc-cg: ") for line in lines if line.startswith("hpc-cg: "))
    return "\n".join(sentences) or "\n".join(lines[-15:]) or "no message"
