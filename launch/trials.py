"""Jobs of seconds that let nodes speak: submitted together, waited for with patience, cancelled if they do not start.

A probe is a folder with a copy of probes.py and a script of one line for each job; the answers appear there as JSON.
Each job has the probe's own name, so that what is cancelled is never somebody else's.
"""

import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from hpc_cg.errors import SchedulerFailed
from launch import probes, slurm

TIME_MINUTES = 6
RUN_S = 60.0 * TIME_MINUTES + 60.0
"""After that a job that has started is given up: its own time limit, and as much for Slurm to end it."""

GRACE_S = 35.0
"""For what a job wrote to be seen here after it has ended: NFS remembers a folder for half a minute."""

N_SILENT = 3
"""So often in a row squeue may fail before a job is given up."""

WAITING = frozenset(["PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"])
ANSWERS: Mapping[str, TypeAdapter[probes.Node] | TypeAdapter[probes.Gpu]] = {
    "batch": TypeAdapter(probes.Node),
    "gpu": TypeAdapter(probes.Gpu),
}


@dataclass(frozen=True)
class Trial:
    """A job to try: its kind, what it asks of sbatch, and the line that it runs."""

    kind: str
    wishes: tuple[str, ...]
    line: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What came of a job: its answer, or in words why there is none, and what to do about that."""

    answer: probes.Node | probes.Gpu | None = None
    why: str = ""
    advice: str = ""


@contextmanager
def probe_folder(work: Path) -> Iterator[Path]:
    """A folder below ``work`` for one examination, removed afterwards; raises OSError where none can be made."""
    folder = Path(tempfile.mkdtemp(prefix=".hpc-cg-doctor-", dir=work)).resolve()
    try:
        shutil.copyfile(probes.__file__, folder / "probe.py")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def batch_trial(folder: Path, n_nodes: int, cpus: int, flavours: Sequence[str]) -> Trial:
    """A job of two processes, on two nodes where ``n_nodes`` is 2, with ``cpus`` for each."""
    tasks = 2 // n_nodes
    shape = (f"--nodes={n_nodes}", f"--ntasks-per-node={tasks}", f"--cpus-per-task={cpus}", "--mem=1G")
    return Trial("batch", shape, (*_probe(folder, "batch"), str(Path.cwd()), *flavours))


def gpu_trial(folder: Path, gpu: str) -> Trial:
    """A job that has one GPU."""
    shape = ("--nodes=1", "--ntasks=1", "--cpus-per-task=1", f"--gres={gpu}:1", "--mem=4G")
    return Trial("gpu", shape, ("srun", "--mpi=none", *_probe(folder, "gpu")))


def _probe(folder: Path, kind: str) -> tuple[str, ...]:
    return (sys.executable, str(folder / "probe.py"), kind, str(folder))


@dataclass
class Waiting:
    """A job that was submitted: since when it is waited for, when it was first seen running or ended."""

    job: str
    since: float
    started: float | None = None
    ended: float | None = None
    silent: int = 0


@dataclass
class Trials:
    """Jobs of one probe folder.

    wait_s       patience for each to start
    patience_s   patience with each program of Slurm
    """

    folder: Path
    wait_s: float
    patience_s: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    jobs: dict[str, Waiting] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    n_asked: int = 0

    def submit(self, trial: Trial, where: Sequence[str]) -> str:
        """Submit a job with more words for sbatch, e.g. its partition; its number, or empty where it was refused."""
        script = self.folder / f"{trial.kind}.sh"
        script.write_text(f"#!/bin/bash\nexec {shlex.join(trial.line)}\n", encoding="utf-8")
        log = str(self.folder / f"{trial.kind}.log").replace("%", "%%")  # which sbatch would fill in
        words = [
            f"--job-name={self.folder.name}",
            f"--comment={probes.COMMENT}",
            f"--chdir={self.folder}",
            f"--output={log}",
        ]
        words += [f"--time={TIME_MINUTES}", *trial.wishes, *where]
        self.n_asked += 1
        try:
            answer = slurm.ask(["sbatch", "--parsable", *words, str(script)], self.patience_s)
        except SchedulerFailed as error:
            refused = error.found.startswith("exit code")
            advice = "name a partition and an account that take small jobs: --partition, --account"
            advice = advice if refused else error.change
            self.outcomes[trial.kind] = Outcome(None, f"not submitted: {error.found}", advice)
            return ""
        job = answer.strip().rpartition("\n")[2].partition(";")[0]
        self.jobs[trial.kind] = Waiting(job, self.clock())
        return job

    def collect(self) -> Mapping[str, Outcome]:
        """Wait until each job has answered, ended, or used up its patience."""
        pause_s = 0.5
        while self.jobs:
            for kind, waiting in tuple(self.jobs.items()):
                if outcome := self._look(kind, waiting):
                    self.outcomes[kind] = outcome
                    del self.jobs[kind]
            if self.jobs:
                self.sleep(pause_s)
                pause_s = min(1.5 * pause_s, 5.0)
        return self.outcomes

    def cancel(self) -> None:
        """End what this probe has left in the queue; a job that has answered ends by itself."""
        if sum(outcome.answer is not None for outcome in self.outcomes.values()) == self.n_asked:
            return
        with suppress(SchedulerFailed):
            slurm.ask(["scancel", f"--name={self.folder.name}"], self.patience_s)

    def _look(self, kind: str, waiting: Waiting) -> Outcome | None:
        """What came of a job by now; None while it may still answer."""
        answer = self.folder / f"{kind}.json"
        if answer.name in {path.name for path in self.folder.iterdir()}:  # a listing, so that NFS looks again
            return _read(kind, answer.read_text(encoding="utf-8"))
        try:
            state, reason = self._state(waiting.job)
        except SchedulerFailed as error:
            waiting.silent += 1
            advice = "see that squeue answers here, and examine again"
            return Outcome(None, error.found, advice) if waiting.silent >= N_SILENT else None
        waiting.silent = 0
        return self._judge(kind, waiting, state, reason)

    def _judge(self, kind: str, waiting: Waiting, state: str, reason: str) -> Outcome | None:
        now = self.clock()
        if state in WAITING:
            why = f"job {waiting.job} did not start within {self.wait_s:g} s ({reason}); it was cancelled"
            advice = "try a partition that is less busy (--partition), or wait longer (--wait-s)"
            return Outcome(None, why, advice) if now - waiting.since > self.wait_s else None
        if state in slurm.ACTIVE:
            waiting.started = waiting.started or now
            late = now - waiting.started > RUN_S
            return Outcome(None, f"job {waiting.job} did not end in time", "look at its node") if late else None
        waiting.ended = waiting.ended or now
        return _without_answer(self.folder, kind, waiting.job, state) if now - waiting.ended > GRACE_S else None

    def _state(self, job: str) -> tuple[str, str]:
        """The scheduler's words for the state of a job and why it waits; raises SchedulerFailed."""
        words = ["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T|%r"]
        try:
            row = slurm.ask(words, self.patience_s).strip()
        except SchedulerFailed as error:
            if "Invalid job id" in error.found:
                return "gone", ""
            raise
        state, _, reason = row.partition("|")
        return state or "gone", reason


def _read(kind: str, text: str) -> Outcome:
    try:
        return Outcome(ANSWERS[kind].validate_json(text))
    except ValidationError as error:
        return Outcome(None, f"an answer that cannot be read: {str(error).splitlines()[0]}", "examine again")


def _without_answer(folder: Path, kind: str, job: str, state: str) -> Outcome:
    """Why a job that has ended left no answer: its log tells, or is not there at all."""
    try:
        lines = (folder / f"{kind}.log").read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        why = f"job {job} ended ({state}) and left no log in {folder.parent}"
        return Outcome(None, why, "name a folder that the nodes share with this machine: --work")
    told = next((line.strip() for line in reversed(lines) if line.strip()), "nothing in its log")
    return Outcome(None, f"job {job} ended ({state}): {told[:160]}", f"see that {sys.executable} runs on the nodes")
