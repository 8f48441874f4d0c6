"""The same chain on this machine, without Slurm: a queue in files, and one runner that works it off in the background.

Jobs wait for one another, elements of an array run side by side as far as the cores reach, and a job that stopped at a
safe place goes on. What a job runs is what a batch script runs, ``python -m jobs`` and then ``python -m jobs.after``,
under mpiexec where it has several tasks. The runner belongs to no terminal, so a closed one does not end it.

    <run>/jobs/local/L<number>.json  a job: its command, cores, the jobs that it waits for
    <run>/jobs/local/<label>.state   how it stands: state, attempt, times; written by the runner
    <run>/jobs/local/CANCEL-<label>  asks the runner to end it

The members of a campaign have one queue: their folders are links to that of the campaign.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from hpc_cg.errors import DamagedProduct, FolderBusy, MissingInput
from hpc_cg.files import own_folder, read_json, write_json, write_text
from hpc_cg.stages import claims
from hpc_cg.stages.claims import ATTEMPT, JOB
from jobs.outcome import FOLDER
from jobs.task import Task
from launch.cluster import mark_in, mark_of, named
from launch.ledger import Submittable
from launch.local import PARTIAL, SINGLE, find_mpiexec, threads
from launch.plan import Job
from launch.slurm import Queued

POLL_S = 0.2
END_PATIENCE_S = 30.0
WAITING, RUNS, DONE, FAILED, CANCELLED = "PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED"
RUNNER, CANCEL, LOCAL = "RUNNER", "CANCEL-", "local"
NO_RUNNER = "the runner of this machine's queue is no more"


@dataclass(frozen=True)
class LocalJob:
    """A job, or an element of an array, in the queue of this machine.

    label   its number, with the element's
    work    words of the command that does it; ``judge`` those of what is said afterwards, without the code
    tasks   processes, started by mpiexec where there are several
    cores   that it takes
    after   numbers of jobs that must have ended well, and ``however`` of those that must have ended
    """

    label: str
    work: tuple[str, ...]
    judge: tuple[str, ...]
    tasks: int
    cores: int
    after: tuple[str, ...]
    log: str
    comment: str
    however: tuple[str, ...] = ()


@dataclass
class Standing:
    """How a job stands; kept in a file, so that whoever looks can read it."""

    state: str = WAITING
    attempt: int = 0
    began: float = 0.0
    ended: float = 0.0
    pid: int = 0
    started: str | None = None
    reason: str = ""


def queue_folder(run_folder: Path) -> Path:
    """Where the queue of a run folder lies."""
    return (run_folder / FOLDER / LOCAL).resolve()


class LocalCluster:
    """This machine as a cluster of one node.

    run_folders   whose jobs it tells of; its queue is that of the first
    """

    kind = "local"
    n_live = 0

    def __init__(self, *run_folders: Path, n_cores: int = 0):
        self.run_folder, self._looked = run_folders[0], False
        self.marks = frozenset(mark_of(folder) for folder in run_folders)
        self.n_cores = n_cores or len(os.sched_getaffinity(0))
        self.folder = queue_folder(self.run_folder)

    def queue(self) -> tuple[Queued, ...]:
        alive = claims.claimed_by(self.folder / RUNNER) is not None
        found = []
        for job in read_jobs(self.folder):
            if mark_in(job.comment) not in self.marks:
                continue
            standing = read_standing(self.folder, job.label)
            state, reason = standing.state, standing.reason
            if state in (WAITING, RUNS) and not alive:
                state, reason = FAILED, NO_RUNNER
            number, _, task = job.label.partition("_")
            now = time.time() if state == RUNS else standing.ended
            seconds = now - standing.began if standing.began else 0.0
            elapsed = time.strftime("%H:%M:%S", time.gmtime(max(0.0, seconds)))
            node = "this machine" if state == RUNS else ""
            place = int(task) if task else None
            found.append(Queued(number, place, state, elapsed, "", node, reason, job.comment))
        return tuple(found)

    def ended(self, labels: Sequence[str]) -> Mapping[str, Queued] | None:
        rows = {job.label: job for job in self.queue()}
        return {label: rows[label] for label in labels if label in rows}

    def submit(
        self, owner: Submittable, job: Job, tasks: Sequence[Task], after: Sequence[str], however: Sequence[str] = ()
    ) -> str:
        own_folder(self.folder)
        self._share_with(owner.run_folder)
        if not self._looked:
            self._bury()
        number = f"L{max((_number(path) for path in _job_files(self.folder)), default=0) + 1}"
        ask, wide = named(owner, job), find_mpiexec() is not None and job.stage not in SINGLE
        count = min(ask.n_tasks, max(1, self.n_cores // ask.cpus_per_task)) if wide and not job.parts else 1
        cores = min(self.n_cores, count * ask.cpus_per_task)
        rows = []
        for place, task in enumerate(tasks):
            label = f"{number}_{place}" if job.parts else number
            log = str(Path(ask.log_folder) / f"{ask.job_name}-{label}.log")
            judged = Task(task.study, task.stage, task.part).words
            rows.append(
                LocalJob(
                    label=label,
                    work=(sys.executable, "-m", "jobs", *task.words),
                    judge=(sys.executable, "-m", "jobs.after", *judged, "--max-attempts", str(ask.max_attempts)),
                    tasks=count,
                    cores=cores,
                    after=tuple(after),
                    log=log,
                    comment=f"{mark_of(owner.run_folder)}:{job.stage}:{job.part}",
                    however=tuple(however),
                )
            )
        write_json(self.folder / f"{number}.json", [asdict(row) for row in rows])
        return number

    def _share_with(self, run_folder: Path) -> None:
        """Let another run folder have this queue, too: whoever looks at it alone sees its jobs."""
        if queue_folder(run_folder) == self.folder:
            return
        link = own_folder(run_folder / FOLDER) / LOCAL
        if link.is_symlink():
            link.unlink()
        elif link.exists():  # nothing in it is live: that was looked at before anything was submitted
            link.rename(link.with_name(f"{LOCAL}-{time.strftime('%Y%m%d-%H%M%S')}"))
        link.symlink_to(os.path.relpath(self.folder, link.parent), target_is_directory=True)

    def _bury(self) -> None:
        """What a runner that is no more left unfinished has failed, and its processes are ended."""
        self._looked = True
        if claims.claimed_by(self.folder / RUNNER) is not None:
            return
        for job in read_jobs(self.folder):
            standing = read_standing(self.folder, job.label)
            if standing.state in (WAITING, RUNS):
                if standing.started and claims.started_at(standing.pid) == standing.started:
                    with suppress(ProcessLookupError):
                        os.killpg(standing.pid, signal.SIGKILL)
                buried = Standing(FAILED, standing.attempt, standing.began, time.time(), reason=NO_RUNNER)
                write_json(self.folder / f"{job.label}.state", asdict(buried))

    def cancel(self, labels: Sequence[str]) -> None:
        for label in labels:
            write_text(self.folder / f"{CANCEL}{label}", "")

    def started(self) -> None:
        """Let a runner work the queue off, unless one does."""
        with (self.folder / "runner.log").open("ab") as log:
            subprocess.Popen(
                [sys.executable, "-m", "launch.local_cluster", str(self.run_folder), str(self.n_cores)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + END_PATIENCE_S
        while claims.claimed_by(self.folder / RUNNER) is None and time.monotonic() < deadline:
            if not any(
                read_standing(self.folder, job.label).state in (WAITING, RUNS) for job in read_jobs(self.folder)
            ):
                return
            time.sleep(0.05)


def read_jobs(folder: Path) -> tuple[LocalJob, ...]:
    """Every job of a queue, in order; elements of arrays each for itself."""
    return tuple(_job(path, row) for path in sorted(_job_files(folder), key=_number) for row in read_json(path))


def _job_files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("L*.json") if path.stem[1:].isdecimal()]


def _number(path: Path) -> int:
    return int(path.stem[1:])


def _job(path: Path, row: dict[str, Any]) -> LocalJob:
    settings: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    try:
        return LocalJob(**settings)
    except TypeError as error:
        raise DamagedProduct(f"reading {path}", f"no job of this version ({error})", "move that file away") from error


def read_standing(folder: Path, label: str) -> Standing:
    try:
        return Standing(**read_json(folder / f"{label}.state"))
    except (MissingInput, DamagedProduct, TypeError):
        return Standing()


@dataclass
class Running:
    """A job that runs now."""

    job: LocalJob
    process: subprocess.Popen
    log: IO[bytes]
    cancelled: bool = False
    asked: float = field(default=0.0)


class Runner:
    """Works a queue off, job by job, as the cores allow. It alone writes how jobs stand."""

    def __init__(self, run_folder: Path, n_cores: int):
        self.folder, self.n_cores = queue_folder(run_folder), n_cores
        self.running: dict[str, Running] = {}
        self.jobs: dict[str, LocalJob] = {}
        self.standings: dict[str, Standing] = {}
        self.cancelled: set[str] = set()

    def work_off(self) -> None:
        """Until nothing is left that could run."""
        while True:
            self._look_after_running()
            self._look_for_orders()
            before = self._states_of_numbers()
            for label in [label for label, one in self.standings.items() if one.state == WAITING]:
                self._start_if_possible(self.jobs[label], before)
            if not self.running and not any(one.state == WAITING for one in self.standings.values()):
                return
            time.sleep(POLL_S)

    def _look_for_orders(self) -> None:
        """New jobs, and those that are to be ended: one listing of the queue's folder."""
        names = {path.name for path in self.folder.iterdir()}
        self.cancelled = {name.removeprefix(CANCEL) for name in names if name.startswith(CANCEL)}
        known = {label.partition("_")[0] for label in self.jobs}
        if {path.stem for path in _job_files(self.folder)} - known:
            for job in read_jobs(self.folder):
                if job.label not in self.jobs:
                    self.jobs[job.label] = job
                    self.standings[job.label] = read_standing(self.folder, job.label)

    def _states_of_numbers(self) -> dict[str, set[str]]:
        """The states that the elements of each job are in."""
        found: dict[str, set[str]] = {}
        for label, one in self.standings.items():
            found.setdefault(label.partition("_")[0], set()).add(one.state)
        return found

    def _start_if_possible(self, job: LocalJob, states: Mapping[str, set[str]]) -> None:
        label, standing = job.label, self.standings[job.label]
        before: set[str] = set().union(*(states.get(number, set()) for number in job.after))
        others: set[str] = set().union(*(states.get(number, set()) for number in job.however))
        if self._is_cancelled(label):
            self._stands(label, Standing(CANCELLED, standing.attempt, ended=time.time()))
        elif before & {FAILED, CANCELLED}:
            self._stands(label, Standing(CANCELLED, reason="DependencyNeverSatisfied", ended=time.time()))
        elif before - {DONE} or others - {DONE, FAILED, CANCELLED}:
            self._stands_if_new(label, standing, "Dependency")
        elif sum(one.job.cores for one in self.running.values()) + job.cores > self.n_cores:
            self._stands_if_new(label, standing, "Resources")
        else:
            self._start(job, standing)

    def _stands_if_new(self, label: str, standing: Standing, reason: str) -> None:
        if standing.reason != reason:
            standing.reason = reason
            self._stands(label, standing)

    def _start(self, job: LocalJob, standing: Standing) -> None:
        log = Path(job.log).open("ab")  # noqa: SIM115  # closed when the job has ended
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        log.write(f"=== hpc-cg job {job.label}, attempt {standing.attempt + 1}, {when}, on this machine\n".encode())
        log.flush()
        mpiexec = find_mpiexec()
        launcher = [mpiexec, "-n", str(job.tasks)] if mpiexec and job.tasks > 1 else []
        process = subprocess.Popen(
            [*launcher, *job.work],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=self._environment(job, standing.attempt),
            start_new_session=True,
        )
        self.running[job.label] = Running(job, process, log)
        ticks = claims.started_at(process.pid)
        self._stands(job.label, Standing(RUNS, standing.attempt, time.time(), pid=process.pid, started=ticks))

    def _environment(self, job: LocalJob, attempt: int) -> dict[str, str]:
        port = {"MASTER_PORT": str(15000 + (os.getpid() + 7 * attempt) % 10000)}
        names = {JOB: job.label, ATTEMPT: str(attempt), "UCX_LOG_LEVEL": "error", "PYTHONUNBUFFERED": "1"}
        outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        return outside | port | threads(job.cores // job.tasks) | names

    def _look_after_running(self) -> None:
        for label, one in list(self.running.items()):
            if one.process.poll() is not None:
                del self.running[label]
                self._ended(one)
            elif one.cancelled:
                if time.monotonic() > one.asked:
                    _signal(one.process, signal.SIGKILL)
            elif self._is_cancelled(label):
                one.cancelled, one.asked = True, time.monotonic() + END_PATIENCE_S
                _signal(one.process, signal.SIGTERM)

    def _ended(self, one: Running) -> None:
        standing = self.standings[one.job.label]
        _signal(one.process, signal.SIGKILL)  # whoever of its processes is left
        code = one.process.returncode if one.process.returncode >= 0 else 128 - one.process.returncode
        if not one.cancelled:
            words = [*one.job.judge, "--code", str(code), "--log", one.job.log]
            judged = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=one.log,
                stderr=subprocess.STDOUT,
                env=self._environment(one.job, standing.attempt),
                check=False,
            )
            code = judged.returncode
        one.log.close()
        now = time.time()
        if one.cancelled:
            self._stands(one.job.label, Standing(CANCELLED, standing.attempt, standing.began, now))
        elif code == PARTIAL:
            self._stands(one.job.label, Standing(WAITING, standing.attempt + 1, reason="BeginTime"))
        else:
            self._stands(one.job.label, Standing(FAILED if code else DONE, standing.attempt, standing.began, now))

    def _is_cancelled(self, label: str) -> bool:
        return bool(self.cancelled & {label, label.partition("_")[0]})

    def _stands(self, label: str, standing: Standing) -> None:
        self.standings[label] = standing
        write_json(self.folder / f"{label}.state", asdict(standing))


def _signal(process: subprocess.Popen, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def main(arguments: Sequence[str]) -> int:
    """Entry point of the runner: a run folder, and how many cores it may use."""
    run_folder, n_cores = Path(arguments[0]), int(arguments[1])
    folder = queue_folder(run_folder)
    while True:
        try:
            claims.claim(folder, RUNNER)
        except FolderBusy:
            return 0  # another works this queue off, and looks for new jobs also when it has left
        try:
            Runner(run_folder, n_cores).work_off()
        finally:
            claims.release_claim(folder / RUNNER)
        if not any(read_standing(folder, job.label).state == WAITING for job in read_jobs(folder)):
            return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
