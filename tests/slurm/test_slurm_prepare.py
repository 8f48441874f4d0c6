"""The stage prepare as a Slurm job of two nodes: the bytes that one process writes, also after it was asked to stop."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from toy import write_archive, write_study

from launch.resources import Resources
from launch.templates import sbatch_text

pytestmark = [pytest.mark.slurm, pytest.mark.mpi, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
UNSEALED = {"INTENT", "RUNNING", "SEALED", ".progress"}


def content(product: Path) -> dict[str, bytes]:
    """Every file of the product but what tells of its progress and its making."""
    return {
        str(path.relative_to(product)): path.read_bytes()
        for path in product.rglob("*")
        if path.is_file() and not UNSEALED & set(path.relative_to(product).parts)
    }


@pytest.fixture
def environ(slurm: dict[str, str]) -> dict[str, str]:
    """What a user's shell holds when the batch script is submitted."""
    found = slurm | {"PYTHONPATH": str(ROOT), "UCX_LOG_LEVEL": "error", "OMP_NUM_THREADS": "1"}
    return found | {"PATH": f"{Path(sys.executable).parent}:{found['PATH']}"}


def study_in(folder: Path, shard_frames: int) -> Path:
    """A study in a folder of its own, on the archive that all studies of a test share."""
    archive = folder.parent / "archive"
    if not archive.exists():
        write_archive(archive)
    folder.mkdir()
    return write_study(folder, archive=False, prepare={"archive": [str(archive)], "shard_frames": shard_frames})


def alone(folder: Path, environ: dict[str, str], shard_frames: int) -> dict[str, bytes]:
    """What one process makes of a study."""
    study = study_in(folder, shard_frames)
    subprocess.run([sys.executable, "-m", "jobs", "prepare", study], env=environ, cwd=ROOT, check=True, timeout=120)
    return content(folder / "run" / "prepare")


def submit(study: Path, environ: dict[str, str], nodes: int, tasks_per_node: int) -> str:
    """The number of a job that prepares a study; its logs lie beside the study."""
    ask = Resources(nodes=nodes, tasks_per_node=tasks_per_node, mem_gb=1, time_minutes=5, log_folder=str(study.parent))
    script = study.with_name("prepare.sbatch")
    script.write_text(sbatch_text("prepare", ask, str(study)))
    line = ["sbatch", "--parsable", str(script)]
    done = subprocess.run(line, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def shown(job: str, environ: dict[str, str]) -> dict[str, str]:
    """What Slurm says of a job."""
    line = ["scontrol", "show", "job", job]
    done = subprocess.run(line, env=environ, capture_output=True, text=True, timeout=60, check=True)
    return dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)


def wait_for(happened: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def ended(job: str, environ: dict[str, str]) -> bool:
    return shown(job, environ)["JobState"] not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")


def test_two_nodes_write_the_store_that_one_process_writes(environ, mpiexec, tmp_path):
    one = alone(tmp_path / "alone", environ, shard_frames=64)
    study = study_in(tmp_path / "together", shard_frames=64)
    job = submit(study, environ, nodes=2, tasks_per_node=2)
    wait_for(lambda: ended(job, environ))
    assert shown(job, environ)["ExitCode"] == "0:0", logs(study)
    many = content(study.parent / "run" / "prepare")
    assert (study.parent / "run" / "prepare" / "SEALED").exists()
    assert len([name for name in one if name.startswith("store.zarr")]) > 10
    assert many.keys() == one.keys()
    assert [name for name in one if one[name] != many[name]] == []


def logs(study: Path) -> str:
    return "\n".join(path.read_text() for path in study.parent.glob("hpc-cg-prepare-*.log"))


def test_a_job_that_slurm_asks_to_end_stops_at_a_safe_place_and_goes_on(environ, mpiexec, tmp_path):
    one = alone(tmp_path / "alone", environ, shard_frames=4)
    study = study_in(tmp_path / "asked", shard_frames=4)
    commits, before = study.parent / "run" / "prepare" / "commits" / "toy", 0
    job = submit(study, environ, nodes=2, tasks_per_node=2)
    for number, name in enumerate(("TERM", "USR2"), 1):  # at the time limit, a preemption; and as a site may warn
        wait_for(lambda enough=before: len(list(commits.glob("*.json"))) > enough + 5)
        subprocess.run(["scancel", f"--signal={name}", job], env=environ, timeout=60, check=True)
        wait_for(lambda times=number: int(shown(job, environ)["Restarts"]) == times)
        assert not (commits.parents[1] / "SEALED").exists()
        before = len(list(commits.glob("*.json")))
    wait_for(lambda: ended(job, environ))
    assert logs(study).count("hpc-cg: prepare stopped at a safe place with ") == 2
    assert shown(job, environ)["ExitCode"] == "0:0", logs(study)
    many = content(commits.parents[1])
    assert many.keys() == one.keys()
    assert [name for name in one if one[name] != many[name]] == []
