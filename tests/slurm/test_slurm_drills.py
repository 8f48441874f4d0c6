"""Whatever happens to a job, the product in the end is that of an undisturbed run, and little work is done twice.

Each drill disturbs one stage of a study on the real Slurm, whose processes are nearly held where it wants to meet them
(paced/sitecustomize.py). What was lost is counted in shards, steps and blocks; set HPC_CG_DRILLS to a file to have the
counts written there.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from drills import (
    CHECKPOINT_EVERY,
    HPC_CG,
    Process,
    ask,
    clean,
    hpc_cg,
    jobs_of,
    logs,
    node_of,
    of_study,
    pace,
    processes,
    product,
    study_in,
    unpace,
    wait_for,
    wait_for_end,
    with_products,
)

from hpc_cg.stages.product import State
from hpc_cg.stages.progress import read_progress
from hpc_cg.stages.study import Study, read_study

pytestmark = [pytest.mark.slurm, pytest.mark.mpi, pytest.mark.timeout(420)]

INTERVAL = {"prepare": 2, "train": CHECKPOINT_EVERY, "simulate": 2}
"""What may be lost: a shard of each of two ranks, steps between checkpoints, a block of each of two elements."""

BEFORE = {"prepare": 60, "train": CHECKPOINT_EVERY, "simulate": 3}
"""How much is done when the disturbance comes; in training some steps more, to come between two checkpoints."""

PACE = {"prepare": (40, 1.0), "train": (BEFORE["train"] + CHECKPOINT_EVERY // 3 + 2, 2.0), "simulate": (4, 6.0)}
"""From how many units on, and how long (s) each process pauses after each: enough is done before, much is left."""

Environ = dict[str, str]


@pytest.fixture(scope="module")
def environ(slurm: Environ) -> Environ:
    return clean(slurm)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drills")


@pytest.fixture(scope="module")
def undisturbed(place: Path, environ: Environ, mpiexec: Path) -> Study:
    """The study as one command on two ranks makes it."""
    study = study_in(place / "undisturbed")
    for stage in ("prepare", "kernel", "train", "simulate"):
        hpc_cg(environ, "run", stage, study, "--ranks", "2")
    return read_study(study)


LIMITED: dict[str, tuple[dict[str, dict[str, float]], int, float]] = {
    "prepare": ({}, 30, 3.0),
    "train": ({}, 20, 3.0),
    "simulate": ({"simulate": {"block_ps": 0.2, "n_replicas": 3}}, 2, 5.0),
}
"""Settings and pace of stages with a limit of a minute, of which half is kept free: far too slow for three times."""

STOPPED, TIMES = "stopped at a safe place", 3


@dataclass(frozen=True)
class Limited:
    """A study whose jobs have a minute, and its twin that one process made without a limit."""

    study: Study
    plain: Study


@pytest.fixture(scope="module")
def limited(environ: Environ, place: Path, undisturbed: Study) -> Iterator[dict[str, Limited]]:
    """Three studies at the same time, whose work is slow until they were stopped three times, and their twins."""
    found, twins = {}, []
    for stage, (changes, number, seconds) in LIMITED.items():
        study, plain = (
            with_products(study_in(place / f"{name}-{stage}", **changes), undisturbed.path, stage)
            for name in ("limited", "plain")
        )
        site = study.root / "site.toml"
        text = site.read_text()
        for old, new in {"time_minutes = 10": "time_minutes = 1", "nodes = 2": "nodes = 1"}.items():
            text = text.replace(f"\n{old}\n", f"\n{new}\n")
        site.write_text(text)
        pace(study, stage, number, seconds)
        hpc_cg(environ, "submit", stage, study.path)
        line = [*HPC_CG, "run", stage, str(plain.path), "--ranks", "1"]
        twins.append(subprocess.Popen(line, env=environ, stdout=subprocess.DEVNULL))
        found[stage] = Limited(study, plain)
    for twin in twins:
        assert twin.wait(300) == 0
    with ThreadPoolExecutor(len(found)) as pool:
        waits = [pool.submit(run_freely_after_stops, one.study) for one in found.values()]
        yield found
    for wait in waits:
        wait.result()


def run_freely_after_stops(study: Study) -> None:
    wait_for(lambda: logs(study).count(STOPPED) >= TIMES, 500, lambda: logs(study))
    unpace(study)


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def usr2(environ: Environ, study: Study, job: str) -> None:
    ask(environ, "scancel", "--signal=USR2", job)


def requeue(environ: Environ, study: Study, job: str) -> None:
    ask(environ, "scontrol", "requeue", job)


def kill_task(environ: Environ, study: Study, job: str) -> None:
    os.kill(max(of_study(study, "submitit.core._submit"), key=lambda one: one.pid).pid, signal.SIGKILL)


def kill_script(environ: Environ, study: Study, job: str) -> None:
    """The batch script itself: bash, whose child is srun."""
    for one in of_study(study, "srun --cpus-per-task"):
        parent = int(Path(f"/proc/{one.pid}/stat").read_text().rpartition(")")[2].split()[1])
        if "slurm_script" in Path(f"/proc/{parent}/cmdline").read_text():
            os.kill(parent, signal.SIGKILL)
            return
    raise AssertionError("no batch script found")


def preempt(environ: Environ, study: Study, job: str) -> None:
    """A job of the partition high takes both nodes for a moment, and Slurm puts ours back into the queue."""
    line = ["sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", "--time=1", "--output=/dev/null"]
    other = ask(environ, *line, "--wrap=sleep 3").strip()
    wait_for(lambda: other not in ask(environ, "squeue", "--noheader", "--format=%i").split(), 60)


def lose_node(environ: Environ, study: Study, job: str) -> None:
    """slurmd dies with all that runs there; the controller is told, as it would find out; then slurmd comes back."""
    node = node_of(environ, job)
    pid_file = Path(environ["SLURM_SANDBOX"]) / "pid" / f"slurmd-{node}.pid"
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    ask(environ, "scontrol", "update", f"nodename={node}", "state=down", "reason=drill")
    try:
        for one in processes():
            if "submitit.core._submit" in one.line and _runs_on(one, node):
                _send(one.pid, signal.SIGKILL)
        wait_for(lambda: node not in ask(environ, "squeue", "--noheader", "--jobs", job, "--format=%N"), 30)
    finally:
        subprocess.run(["slurmd", "-f", environ["SLURM_CONF"], "-N", node], env=environ, check=True, timeout=30)
        wait_for(lambda: _is_back(environ, node), 60, lambda: f"{node} did not come back")


def _runs_on(one: Process, node: str) -> bool:
    try:
        return f"SLURMD_NODENAME={node}\0".encode() in Path(f"/proc/{one.pid}/environ").read_bytes()
    except OSError:
        return False


def _is_back(environ: Environ, node: str) -> bool:
    states = ask(environ, "sinfo", "--noheader", "--nodes", node, "--format=%T").split()
    if any(state.startswith("down") for state in states):
        line = ["scontrol", "update", f"nodename={node}", "state=resume"]
        subprocess.run(line, env=environ, capture_output=True, timeout=30, check=False)  # it may be back by now
        return False
    return not any(state.endswith("*") for state in states)


def cancel_element(environ: Environ, study: Study, job: str) -> None:
    ask(environ, "scancel", job)


Disturb = Callable[[Environ, Study, str], None]
ITSELF: dict[str, tuple[Disturb, bool]] = {
    "usr2": (usr2, False),
    "requeue": (requeue, False),
    "preempt": (preempt, True),
    "node": (lose_node, True),
}
"""After these a job goes on by itself, under the same number; whether one of them hits all jobs at once."""

AGAIN: dict[str, Disturb] = {"task": kill_task, "script": kill_script}
"""After these the stage is submitted again."""


def done(study: Study, stage: str) -> int:
    counts = study.done(stage)
    return 0 if counts is None else counts[0]


def worked(study: Study, stage: str) -> int:
    """Units that the processes say they have done, sealed or not; for training the step."""
    if stage != "train":
        return done(study, stage)
    reading = read_progress(study.folder(stage))
    return 0 if reading is None or reading.phase != "training" else int(reading.done)


def note(drill: str, stage: str, lost: int) -> None:
    if os.environ.get("HPC_CG_DRILLS"):
        with Path(os.environ["HPC_CG_DRILLS"]).open("a", encoding="utf-8") as file:
            file.write(f"{drill:<10} {stage:<10} lost {lost} of at most {INTERVAL[stage]}\n")


def begun(environ: Environ, study: Study, stage: str) -> str:
    """Submit a stage, wait until some of it is done; the number of its job, or of an element of its array."""
    pace(study, stage, *PACE[stage])
    hpc_cg(environ, "submit", stage, study.path)
    first = jobs_of(study)[0]
    far = BEFORE[stage] + (CHECKPOINT_EVERY // 3 if stage == "train" else 0)
    wait_for(lambda: done(study, stage) >= BEFORE[stage] and worked(study, stage) >= far, 240, lambda: logs(study))
    return f"{first['id']}_0" if first["parts"] else first["id"]


Make = Callable[[str, str], Study]


@pytest.fixture
def study_before(place: Path, undisturbed: Study, request: pytest.FixtureRequest) -> Make:
    """Makes a study of this test on which everything before a stage is done, for a partition."""

    def make(stage: str, partition: str) -> Study:
        folder = place / f"{request.node.name.replace('[', '-').strip(']')}-{stage}"
        return with_products(study_in(folder, partition), undisturbed.path, stage)

    return make


@dataclass(frozen=True)
class Hit:
    """A job that is to be disturbed, and how far its processes said they were just before."""

    stage: str
    study: Study
    job: str
    at_most: int


def at_work(environ: Environ, study_before: Make, partition: str, disturb: Disturb | None = None) -> list[Hit]:
    """A job of each stage, of a study each, at the same time; each disturbed as soon as it is far enough."""

    def hit(stage: str, study: Study) -> Hit:
        job = begun(environ, study, stage)
        found = Hit(stage, study, job, worked(study, stage))
        if disturb is not None:
            disturb(environ, study, job)
        return found

    studies = {stage: study_before(stage, partition) for stage in INTERVAL}
    with ThreadPoolExecutor(len(studies)) as pool:
        return list(pool.map(hit, studies, studies.values()))


@pytest.mark.parametrize("drill", ITSELF)
def test_disturbed_jobs_go_on_by_themselves_to_the_same_products(
    environ: Environ, undisturbed: Study, study_before: Make, drill: str
) -> None:
    disturb, hits_all = ITSELF[drill]
    partition = "low" if drill == "preempt" else "debug"
    hits = at_work(environ, study_before, partition, None if hits_all else disturb)
    if hits_all:
        disturb(environ, hits[-1].study, hits[-1].job)
    for hit in hits:
        wait_for(lambda hit=hit: ", attempt 2, " in logs(hit.study), 120, lambda hit=hit: logs(hit.study))
        lost = max(0, hit.at_most - done(hit.study, hit.stage))
        note(drill, hit.stage, lost)
        assert lost <= INTERVAL[hit.stage]
        unpace(hit.study)
    for hit in hits:
        wait_for_end(environ, hit.study)
        assert hit.study.state(hit.stage) == State.SEALED, logs(hit.study)
        assert len(jobs_of(hit.study)) == (2 if hit.stage == "simulate" else 1)
        assert product(hit.study, hit.stage) == product(undisturbed, hit.stage)


@pytest.mark.parametrize("drill", AGAIN)
def test_after_a_kill_one_more_submit_gives_the_same_products(
    environ: Environ, undisturbed: Study, study_before: Make, drill: str
) -> None:
    hits = at_work(environ, study_before, "debug", AGAIN[drill])
    for hit in hits:
        wait_for_end(environ, hit.study)
        assert hit.study.state(hit.stage) != State.SEALED
        unpace(hit.study)
        lost = max(0, hit.at_most - done(hit.study, hit.stage))
        note(drill, hit.stage, lost)
        assert lost <= INTERVAL[hit.stage]
        told = hpc_cg(environ, "status", hit.study.path).stdout
        assert f"job {hit.job.partition('_')[0]}" in told, told
        hpc_cg(environ, "submit", hit.stage, hit.study.path)
    for hit in hits:
        wait_for_end(environ, hit.study)
        assert hit.study.state(hit.stage) == State.SEALED, logs(hit.study)
        assert product(hit.study, hit.stage) == product(undisturbed, hit.stage)


def test_an_element_that_was_cancelled_is_the_only_one_submitted_again(
    environ: Environ, undisturbed: Study, study_before: Make
) -> None:
    study = study_before("simulate", "debug")
    job = begun(environ, study, "simulate")
    cancel_element(environ, study, job)
    unpace(study)
    wait_for_end(environ, study)
    assert study.state("simulate") != State.SEALED
    hpc_cg(environ, "submit", "simulate", study.path)
    assert [one["parts"] for one in jobs_of(study)] == [["0", "1"], [], ["0"], []]
    wait_for_end(environ, study)
    assert product(study, "simulate") == product(undisturbed, "simulate")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", LIMITED)
def test_a_time_limit_of_a_minute_hit_three_times_loses_nothing(
    environ: Environ, limited: dict[str, Limited], stage: str
) -> None:
    one = limited[stage]
    wait_for_end(environ, one.study, 560)
    assert one.study.state(stage) == State.SEALED, logs(one.study)
    assert product(one.study, stage) == product(one.plain, stage)
    assert logs(one.study).count(STOPPED) >= TIMES
