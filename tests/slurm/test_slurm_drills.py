"""Whatever happens to a job, the product in the end is that of an undisturbed run, and little work is done twice.

Each drill disturbs one stage of a study on the real Slurm. What was lost is counted in shards, steps and blocks; set
HPC_CG_DRILLS to a file to have the counts written there.
"""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from drills import (
    CHECKPOINT_EVERY,
    HPC_CG,
    ask,
    clean,
    hpc_cg,
    jobs_of,
    logs,
    node_of,
    of_study,
    product,
    study_in,
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
"""How much is done when the disturbance comes."""

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
    hpc_cg(environ, "run", "all", study, "--ranks", "2")
    return read_study(study)


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
    """slurmd dies; the controller finds that out after its patience, here it is told; then slurmd comes back."""
    node = node_of(environ, job)
    pid_file = Path(environ["SLURM_SANDBOX"]) / "pid" / f"slurmd-{node}.pid"
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    ask(environ, "scontrol", "update", f"nodename={node}", "state=down", "reason=drill")
    try:
        wait_for(lambda: node not in ask(environ, "squeue", "--noheader", "--jobs", job, "--format=%N"), 30)
        for one in of_study(study, "submitit.core._submit"):  # what a lost node takes with it
            os.kill(one.pid, signal.SIGKILL)
    finally:
        subprocess.run(["slurmd", "-f", environ["SLURM_CONF"], "-N", node], env=environ, check=True, timeout=30)
        wait_for(lambda: _is_back(environ, node), 60, f"{node} did not come back")


def _is_back(environ: Environ, node: str) -> bool:
    states = ask(environ, "sinfo", "--noheader", "--nodes", node, "--format=%T").split()
    if any(state.startswith("down") for state in states):
        line = ["scontrol", "update", f"nodename={node}", "state=resume"]
        subprocess.run(line, env=environ, capture_output=True, timeout=30, check=False)  # it may be back by now
        return False
    return not any(state.endswith("*") for state in states)


def cancel_element(environ: Environ, study: Study, job: str) -> None:
    ask(environ, "scancel", job)


ITSELF: dict[str, Callable[[Environ, Study, str], None]] = {
    "usr2": usr2,
    "requeue": requeue,
    "preempt": preempt,
    "node": lose_node,
}
"""After these a job goes on by itself, under the same number."""

AGAIN: dict[str, Callable[[Environ, Study, str], None]] = {"task": kill_task, "script": kill_script}
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
    hpc_cg(environ, "submit", stage, study.path)
    first = jobs_of(study)[0]
    far = BEFORE[stage] + (CHECKPOINT_EVERY // 3 if stage == "train" else 0)  # between two checkpoints
    wait_for(lambda: done(study, stage) >= BEFORE[stage] and worked(study, stage) >= far, 120, logs(study))
    return f"{first['id']}_0" if first["parts"] else first["id"]


Make = Callable[[str, str], Study]


@pytest.fixture
def study_before(place: Path, undisturbed: Study, request: pytest.FixtureRequest) -> Make:
    """Makes a study of this test on which everything before a stage is done, for a partition."""

    def make(stage: str, partition: str) -> Study:
        folder = place / request.node.name.replace("[", "-").strip("]")
        return with_products(study_in(folder, partition), undisturbed.path, stage)

    return make


@pytest.mark.parametrize("stage", INTERVAL)
@pytest.mark.parametrize("drill", ITSELF)
def test_a_disturbed_job_goes_on_by_itself_to_the_same_product(
    environ: Environ,
    undisturbed: Study,
    study_before: Make,
    stage: str,
    drill: str,
) -> None:
    study = study_before(stage, "low" if drill == "preempt" else "debug")
    job = begun(environ, study, stage)
    at_most = worked(study, stage)
    ITSELF[drill](environ, study, job)
    # how much is there when the next attempt begins
    again = f": job {job}, attempt 2, "
    wait_for(lambda: again in logs(study), 120, logs(study))
    left = done(study, stage)
    wait_for_end(environ, study)
    assert study.state(stage) == State.SEALED, logs(study)
    assert len({one["id"] for one in jobs_of(study) if one["stage"] == stage}) <= 2
    assert product(study, stage) == product(undisturbed, stage)
    lost = max(0, at_most - left)
    note(drill, stage, lost)
    assert lost <= INTERVAL[stage]


@pytest.mark.parametrize("stage", INTERVAL)
@pytest.mark.parametrize("drill", AGAIN)
def test_after_a_kill_one_more_submit_gives_the_same_product(
    environ: Environ,
    undisturbed: Study,
    study_before: Make,
    stage: str,
    drill: str,
) -> None:
    study = study_before(stage, "debug")
    job = begun(environ, study, stage)
    at_most = worked(study, stage)
    AGAIN[drill](environ, study, job)
    wait_for_end(environ, study)
    assert study.state(stage) != State.SEALED
    left = done(study, stage)
    told = hpc_cg(environ, "status", study.path).stdout
    assert f"job {job.partition('_')[0]}" in told, told
    hpc_cg(environ, "submit", stage, study.path)
    wait_for_end(environ, study)
    assert study.state(stage) == State.SEALED, logs(study)
    assert product(study, stage) == product(undisturbed, stage)
    lost = max(0, at_most - left)
    note(drill, stage, lost)
    assert lost <= INTERVAL[stage]


def test_an_element_that_was_cancelled_is_the_only_one_submitted_again(
    environ: Environ, undisturbed: Study, study_before: Make
) -> None:
    study = study_before("simulate", "debug")
    job = begun(environ, study, "simulate")
    cancel_element(environ, study, job)
    wait_for_end(environ, study)
    assert study.state("simulate") != State.SEALED
    hpc_cg(environ, "submit", "simulate", study.path)
    assert [one["parts"] for one in jobs_of(study)] == [["0", "1"], [], ["0"], []]
    wait_for_end(environ, study)
    assert product(study, "simulate") == product(undisturbed, "simulate")


ENOUGH = {
    "prepare": {"prepare": {"shard_frames": 1}},
    "train": {"train": {"steps": 1600, "checkpoint_every": 100, "validate_every": 1000}},
    "simulate": {"simulate": {"time_ps": 24.0, "n_replicas": 3}},
}
"""Work for several minutes, as it is shared with five others on two cores."""


@pytest.mark.timeout(600)
def test_time_limits_of_a_minute_lose_nothing(environ: Environ, place: Path, undisturbed: Study) -> None:
    """Three studies, one for each stage, at the same time, beside what three undisturbed processes make of them."""
    limited, plain, twins = {}, {}, []
    for stage, changes in ENOUGH.items():
        for name, studies in (("limited", limited), ("plain", plain)):
            study = study_in(place / f"{name}-{stage}", **changes)
            studies[stage] = with_products(study, undisturbed.path, stage)
        site = limited[stage].root / "site.toml"
        small = {"time_minutes = 10": "time_minutes = 1", "nodes = 2\n": "nodes = 1\n"}
        text = site.read_text()
        for old, new in small.items():
            text = text.replace(f"\n{old}", f"\n{new}")
        site.write_text(text)
        hpc_cg(environ, "submit", stage, limited[stage].path)
        twins.append(subprocess.Popen([*HPC_CG, "run", stage, str(plain[stage].path), "--ranks", "1"], env=environ))
    for stage, study in limited.items():
        wait_for_end(environ, study, 500)
        assert study.state(stage) == State.SEALED, logs(study)
    for twin in twins:
        assert twin.wait(300) == 0
    for stage, study in limited.items():
        assert product(study, stage) == product(plain[stage], stage)
        attempts = logs(study).count(", attempt ")
        assert attempts >= 4, f"{stage}: {attempts} attempts"
