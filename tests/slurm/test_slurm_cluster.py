"""A real Slurm of two nodes: ranks find one another, singletons are noticed, batch scripts run."""

import json
import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest
from toy import write_study

from hpc_cg.stages.claims import owner
from launch.resources import Resources
from launch.templates import DEFAULTS, sbatch_text

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
TWO_BY_TWO = ("-N2", "--ntasks-per-node=2", "--mem-per-cpu=200")
TELL_RANK = """
import json, os, sys, time
from dataclasses import asdict
from jobs.allocation import team_for, who_am_i
me, team = who_am_i(os.environ), team_for(os.environ)
taken = []
for item in team.take(range(20)):
    taken.append(item)
    time.sleep(0.02)
sys.stdout.write(json.dumps(asdict(me) | {"taken": taken, "node": os.environ["SLURMD_NODENAME"]}) + chr(10))
"""


def run(slurm: dict[str, str], *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a Slurm command from the checkout, never longer than a minute."""
    environ = slurm | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "UCX_LOG_LEVEL": "error"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.mark.mpi
def test_two_nodes_by_two_tasks_are_one_team_and_take_each_item_once(slurm, mpiexec):
    done = run(slurm, "srun", "--mpi=pmi2", *TWO_BY_TWO, sys.executable, "-c", TELL_RANK)
    ranks = sorted((json.loads(line) for line in done.stdout.splitlines()), key=lambda one: one["rank"])
    assert [(one["rank"], one["world_size"], one["local_rank"], one["node"]) for one in ranks] == [
        (0, 4, 0, "node1"),
        (1, 4, 1, "node1"),
        (2, 4, 0, "node2"),
        (3, 4, 1, "node2"),
    ]
    assert {one["master_addr"] for one in ranks} == {"node1"}
    assert len({one["master_port"] for one in ranks}) == 1
    assert sorted(item for one in ranks for item in one["taken"]) == list(range(20))


@pytest.mark.mpi
def test_a_launch_without_mpi_is_noticed_by_every_process(slurm, mpiexec):
    done = run(slurm, "srun", "--mpi=none", *TWO_BY_TWO, sys.executable, "-c", TELL_RANK, check=False)
    assert done.returncode != 0
    assert done.stderr.count("BrokenLaunch: joining the 4 processes of this job: found an MPI world of 1") == 4
    assert "srun --mpi=pmi2 for MPICH" in done.stderr
    assert done.stdout == ""


@pytest.mark.mpi
def test_a_stage_whose_srun_leaves_mpi_to_a_site_without_it_touches_nothing(slurm, mpiexec, tmp_path):
    study = write_study(tmp_path)
    here = slurm | {"SLURM_MPI_TYPE": "none"}  # stands for MpiDefault=none in slurm.conf
    done = run(here, "srun", *TWO_BY_TWO, sys.executable, "-m", "jobs", "prepare", str(study), check=False)
    assert done.returncode != 0
    assert "hpc-cg: joining the 4 processes of this job: found an MPI world of 1." in done.stderr
    assert "srun --mpi=pmi2 for MPICH" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.mpi
def test_of_two_jobs_in_one_folder_the_second_is_refused_and_told_of_the_first(slurm, mpiexec, tmp_path):
    study = write_study(tmp_path)
    folder = tmp_path / "run" / "prepare"
    hold = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from hpc_cg.stages import product\n"
        "product.begin(Path(sys.argv[1]), '', {})\n"
        "time.sleep(60)\n"
    )
    line = ["srun", "-N1", "-n1", "--mem=200", sys.executable, "-c", hold, str(folder)]
    environ = slurm | {"PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(line, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        job = wait_for_owner(folder)
        ranks = ("srun", "--mpi=pmi2", "--kill-on-bad-exit=1", *TWO_BY_TWO)
        second = run(slurm, *ranks, sys.executable, "-m", "jobs", "prepare", str(study), check=False)
    finally:
        first.terminate()
        first.wait(timeout=30)
    assert second.returncode != 0
    sentence = f"working in {folder}: found another run there: process "
    assert second.stderr.count(sentence) == 1, second.stderr
    assert f", job {job}. Wait for it or stop it" in second.stderr
    assert "Traceback" not in second.stderr


def wait_for_owner(folder: Path) -> str:
    """The job that works in a folder, as soon as one does."""
    deadline = time.monotonic() + 30
    while (found := owner(folder)) is None:
        assert time.monotonic() < deadline, f"nobody has begun to work in {folder}"
        time.sleep(0.1)
    return found.job


def test_a_job_knows_when_it_ends(slurm):
    """Whether this Slurm sets SLURM_JOB_END_TIME or is asked for the time that is left."""
    tell = (
        "import os, subprocess, sys\n"
        "from jobs.deadline import end_of_allocation\n"
        "line = ['squeue', '-h', '-j', os.environ['SLURM_JOB_ID'], '-o', '%e']\n"
        "ends = subprocess.run(line, capture_output=True, text=True, check=True).stdout\n"
        "sys.stdout.write(f'{end_of_allocation(os.environ)} {ends}')\n"
    )
    done = run(slurm, "srun", "-n1", "--mem=200", "--time=7", sys.executable, "-c", tell)
    found, ends = done.stdout.split()
    assert float(found) == pytest.approx(datetime.fromisoformat(ends).timestamp(), abs=3)


@pytest.mark.parametrize("stage", DEFAULTS)
def test_slurm_accepts_the_committed_scripts(slurm, stage):
    done = run(slurm, "sbatch", "--test-only", f"slurm_templates/{stage}.sbatch", "study.toml")
    assert "to start at" in done.stderr


def test_a_batch_script_runs_its_srun_line_on_every_task_and_names_its_log(slurm, tmp_path):
    python, logs = tmp_path / "bin" / "python", tmp_path / "my logs"
    python.parent.mkdir()
    logs.mkdir()
    python.write_text('#!/bin/sh\necho "$SLURM_PROCID: $*"\n')
    python.chmod(0o755)
    ask = Resources(nodes=2, tasks_per_node=2, mem_gb=1, time_minutes=2, log_folder=str(logs), job_name="try")
    script = tmp_path / "prepare.sbatch"
    script.write_text(sbatch_text("prepare", ask, "my study.toml"))
    here = slurm | {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    job = run(here, "sbatch", "--wait", "--parsable", str(script)).stdout.strip()
    log = logs / f"try-{job}.log"
    first, *tasks, judged = log.read_text().splitlines()
    assert first.startswith(f"=== hpc-cg prepare: job {job}, attempt 1, ") and first.endswith(" on node[1-2]")
    assert sorted(tasks) == [f"{rank}: -m jobs prepare my study.toml" for rank in range(4)]
    assert judged.endswith(f": -m jobs.after prepare my study.toml --code 0 --max-attempts 20 --log {log}")
    shown = run(slurm, "scontrol", "show", "job", job).stdout
    assert "Requeue=1" in shown
    assert "TimeLimit=00:02:00" in shown


@pytest.mark.mpi
def test_one_failing_task_ends_the_step(slurm, mpiexec):
    script = (
        "import os\n"
        "from hpc_cg.errors import BadFrames\n"
        "from jobs.allocation import abort_together, team_for\n"
        "with abort_together():\n"
        "    team = team_for(os.environ)\n"
        "    if team.share.index == 3: raise BadFrames('reading a.trr', 'no numbers', 'remove it')\n"
        "    team.barrier()\n"
    )
    done = run(
        slurm,
        "srun",
        "--mpi=pmi2",
        "--kill-on-bad-exit=1",
        *TWO_BY_TWO,
        sys.executable,
        "-c",
        script,
        check=False,
    )
    assert done.returncode != 0
    assert "reading a.trr: found no numbers. Remove it." in done.stderr
