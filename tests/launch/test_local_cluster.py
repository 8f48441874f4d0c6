"""The chain on this machine alone: the products of ``hpc-cg run all``, bounded by the cores, cancelled, continued."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy import write_study

from hpc_cg.stages import claims
from hpc_cg.stages.product import State, read_seal
from hpc_cg.stages.study import Study, read_study
from jobs.run import run_stage
from launch.cluster import mark_of
from launch.local_cluster import CANCELLED, DONE, FAILED, LocalCluster, LocalJob, Runner, read_jobs, read_standing
from launch.site import Site, SiteConfig, StageWishes
from launch.submit import submit

STAGES = ("prepare", "kernel", "train", "simulate", "aggregate", "report")
SMALL = StageWishes(nodes=1, tasks_per_node=1, cpus_per_task=1, gpus_per_node=0, mem_gb=1)
ONE = dict.fromkeys((*STAGES, "gather"), SMALL)
SITE = Site(SiteConfig(python=sys.executable), {}, ONE)

pytestmark = pytest.mark.timeout(300)


def quiet(line: str) -> None:
    pass


def wait_for(happened: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def wait_for_end(study: Study) -> None:
    cluster = LocalCluster(study.run_folder)
    wait_for(lambda: not any(job.active for job in cluster.queue()))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study as one process makes it."""
    study = read_study(write_study(tmp_path_factory.mktemp("plain")))
    for stage in STAGES:
        assert run_stage(study, stage) == 0
    return study


def test_the_chain_of_this_machine_ends_with_the_products_of_one_command(plain: Study, tmp_path: Path) -> None:
    shutil.copytree(plain.root / "archive", tmp_path / "archive")
    study = read_study(write_study(tmp_path, archive=False))
    jobs = submit(study, STAGES, SITE, LocalCluster(study.run_folder, n_cores=2), quiet)
    assert [job.stage for job in jobs] == ["prepare", "kernel", "train", "simulate", "simulate", "aggregate", "report"]
    wait_for_end(study)
    for stage in STAGES:
        assert study.state(stage) == State.SEALED, (study.run_folder / "jobs/local/runner.log").read_text()
    for stage in ("prepare", "kernel", "simulate"):
        seal, other = (read_seal(one.folder(stage)) for one in (study, plain))
        assert seal is not None and other is not None and seal.content == other.content
    summary, other_summary = (read_seal(one.folder("aggregate")).summary for one in (study, plain))  # type: ignore[union-attr]
    assert summary == other_summary
    assert submit(study, STAGES, SITE, LocalCluster(study.run_folder, n_cores=2), quiet) == ()


def queued(folder: Path, *jobs: dict[str, Any]) -> Runner:
    """A queue of small commands, and its runner on two cores."""
    local = folder / "jobs" / "local"
    local.mkdir(parents=True)
    rows: dict[str, list[dict[str, Any]]] = {}
    for job in jobs:
        code = job.pop("code", "pass")
        plain = {
            "work": [sys.executable, "-c", code],
            "judge": [sys.executable, "-c", "import sys; sys.exit(int(sys.argv[sys.argv.index('--code') + 1]))"],
            "tasks": 1,
            "cores": 1,
            "after": [],
            "log": str(folder / f"{job['label']}.log"),
            "comment": f"{mark_of(folder)}:train:whole",
        }
        rows.setdefault(job["label"].partition("_")[0], []).append(plain | job)
    for number, content in rows.items():
        (local / f"{number}.json").write_text(json.dumps(content))
    return Runner(folder, 2)


def states(folder: Path) -> dict[str, str]:
    local = folder / "jobs" / "local"
    return {job.label: read_standing(local, job.label).state for job in read_jobs(local)}


def test_jobs_wait_for_those_before_them_and_end_when_these_fail(tmp_path: Path) -> None:
    runner = queued(
        tmp_path,
        {"label": "L1", "code": "raise SystemExit(3)"},
        {"label": "L2", "after": ["L1"]},
        {"label": "L3", "after": ["L2"]},
        {"label": "L4"},
        {"label": "L5", "after": ["L4"]},
    )
    runner.work_off()
    assert states(tmp_path) == {"L1": FAILED, "L2": CANCELLED, "L3": CANCELLED, "L4": DONE, "L5": DONE}


def test_no_more_run_at_once_than_there_are_cores(tmp_path: Path) -> None:
    """Each element writes when it began and ended; at no time do three of them run."""
    times = str(tmp_path / "times")
    code = f"import time as t; b = t.time(); t.sleep(.4); print(b, t.time(), file=open({times!r}, 'a'))"
    queued(tmp_path, *({"label": f"L1_{number}", "code": code} for number in range(5))).work_off()
    spans = [tuple(map(float, line.split())) for line in (tmp_path / "times").read_text().splitlines()]
    assert len(spans) == 5
    for began, _ in spans:
        assert sum(first <= began < last for first, last in spans) <= 2


def test_a_job_that_stopped_goes_on_with_the_next_attempt(tmp_path: Path) -> None:
    code = "import os, sys; n = os.environ['HPC_CG_ATTEMPT']; print(n); sys.exit(75 if n < '2' else 0)"
    queued(tmp_path, {"label": "L1", "code": code}).work_off()
    assert states(tmp_path) == {"L1": DONE}
    assert [line for line in (tmp_path / "L1.log").read_text().splitlines() if line.isdecimal()] == ["0", "1", "2"]


def test_a_cancelled_job_ends_and_those_after_it_never_begin(tmp_path: Path) -> None:
    runner = queued(tmp_path, {"label": "L1", "code": "import time; time.sleep(60)"}, {"label": "L2", "after": ["L1"]})
    (tmp_path / "jobs" / "local" / "CANCEL-L1").touch()
    began = time.monotonic()
    runner.work_off()
    assert states(tmp_path) == {"L1": CANCELLED, "L2": CANCELLED}
    assert time.monotonic() - began < 30


def test_what_a_dead_runner_left_has_failed_and_its_processes_end_before_more_is_submitted(
    plain: Study, tmp_path: Path
) -> None:
    shutil.copytree(plain.root / "archive", tmp_path / "archive")
    study = read_study(write_study(tmp_path, archive=False))
    queued(study.run_folder, {"label": "L1"}, {"label": "L2", "after": ["L1"]})
    local = study.run_folder / "jobs" / "local"
    orphan = subprocess.Popen(["sleep", "60"], start_new_session=True)
    ticks = claims.started_at(orphan.pid)
    (local / "L1.state").write_text(json.dumps({"state": "RUNNING", "began": 1.0, "pid": orphan.pid, "started": ticks}))
    first, second = LocalCluster(study.run_folder).queue()
    assert first.state == second.state == FAILED and "runner" in first.reason
    for path in (study.run_folder, study.run_folder / "jobs"):
        path.chmod(0o700)
    submit(study, ("prepare",), SITE, LocalCluster(study.run_folder, n_cores=2), quiet)
    assert orphan.wait(timeout=30) == -signal.SIGKILL
    wait_for_end(study)
    assert states(study.run_folder) == {"L1": FAILED, "L2": FAILED, "L3": DONE}


def test_one_runner_works_a_queue_off(tmp_path: Path) -> None:
    queued(tmp_path, {"label": "L1"})
    local = tmp_path / "jobs" / "local"
    claims.claim(local, "RUNNER")
    line = [sys.executable, "-m", "launch.local_cluster", str(tmp_path), "2"]
    assert subprocess.run(line, timeout=60).returncode == 0
    assert states(tmp_path) == {"L1": "PENDING"}
    claims.release_claim(local / "RUNNER")
    assert subprocess.run(line, timeout=60).returncode == 0
    assert states(tmp_path) == {"L1": DONE}


def test_a_job_in_a_file_is_the_job(tmp_path: Path) -> None:
    queued(tmp_path, {"label": "L1", "after": ["L7"]})
    (job,) = read_jobs(tmp_path / "jobs" / "local")
    assert isinstance(job, LocalJob) and job.after == ("L7",) and isinstance(job.work, tuple)
