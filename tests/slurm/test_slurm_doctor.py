"""The doctor on a real Slurm of two nodes: what it measures there, and what it writes is what a site file may say."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import trials
from launch.doctor import Report, examine, site_text, write_site
from launch.site import read_site
from launch.verdicts import Finding

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]


@pytest.fixture
def here(slurm, monkeypatch):
    """This process as one of a user of that Slurm."""
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return slurm


def look(work: Path, partition: str = "", wait_s: float = 60.0) -> Report:
    return examine(work, partition, "", wait_s, lambda line: None)


def found(report: Report, what: str) -> Finding:
    (one,) = (finding for finding in report.findings if finding.what == what)
    return one


def queued(slurm: dict[str, str], *more: str) -> list[str]:
    line = ["squeue", "--noheader", "--format=%j", *more]
    return subprocess.run(line, env=slurm, capture_output=True, text=True, check=True, timeout=60).stdout.split()


def wait_until_running(slurm: dict[str, str], job: str) -> None:
    deadline = time.monotonic() + 30
    while not queued(slurm, f"--jobs={job}", "--states=running"):
        assert time.monotonic() < deadline, f"job {job} does not start"
        time.sleep(0.2)


def wait_until_gone(slurm: dict[str, str]) -> None:
    """A job that has answered, or was cancelled, is out of the queue in a moment."""
    deadline = time.monotonic() + 20
    while any("hpc-cg-doctor" in name for name in queued(slurm)):
        assert time.monotonic() < deadline, "a probe is still in the queue"
        time.sleep(0.2)


@pytest.mark.mpi
def test_a_cluster_is_measured_and_its_site_file_is_read_back(here, mpiexec, tmp_path):
    work = tmp_path / "a work folder of 100%j"
    work.mkdir()
    report = look(work)
    assert report.fit, [one for one in report.findings if one.unfit]
    assert "one world of 2 on 2 nodes" in found(report, "MPI, srun --mpi=pmi2").found
    assert "2 worlds of one process" in found(report, "MPI, srun --mpi=cray_shasta").found
    assert found(report, "accounting").found.startswith("sacct answers")
    assert "with a warning" in found(report, "preemption").found
    assert found(report, "work folder, from node1").advice == ""
    assert "hpc_cg is there" in found(report, "Python").found
    assert "comments are kept" in found(report, "scontrol on a node").found
    gpu = found(report, "GPU in debug")
    assert "CUDA_VISIBLE_DEVICES=" in gpu.found
    assert "sees none" in gpu.found
    assert gpu.advice
    assert list(work.iterdir()) == []
    wait_until_gone(here)

    write_site(report, tmp_path / "site.toml")
    site = read_site(tmp_path / "site.toml")
    assert (site.site.name, site.site.partition, site.site.mpi, site.site.gpu) == ("hpccg", "debug", "pmi2", "gpu")
    assert (site.site.accounting, site.site.max_array_size, site.site.max_submit_jobs) == (True, 1001, 0)
    assert set(site.partitions) == {"debug", "low", "high"}
    low = site.partitions["low"]
    assert (low.max_minutes, low.max_nodes, low.cpus_per_node, low.mem_gb_per_node, low.gpus_per_node) == (
        0,
        2,
        32,
        125,  # 128,000 MB are not 128 of Slurm's G
        4,
    )


def test_what_is_written_is_accepted_by_sbatch(here, tmp_path):
    from launch.templates import sbatch_text

    report = look(tmp_path, "low")
    (tmp_path / "site.toml").write_text(site_text(report))
    site = read_site(tmp_path / "site.toml")
    for stage in ("prepare", "train", "aggregate"):
        script = tmp_path / f"{stage}.sbatch"
        script.write_text(sbatch_text(stage, site.resources(stage), "study.toml"))
        done = subprocess.run(
            ["sbatch", "--test-only", str(script)], env=here, capture_output=True, text=True, check=True, timeout=60
        )
        assert "partition low" in done.stderr


def test_a_probe_that_does_not_start_is_taken_out_of_the_queue(here, tmp_path):
    hold = ["sbatch", "--parsable", "--exclusive", "--nodes=2", "--partition=high", "--time=5", "--output=/dev/null"]
    words = [*hold, "--wrap=sleep 120"]
    job = subprocess.run(words, env=here, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    try:
        wait_until_running(here, job)
        report = look(tmp_path, "high", wait_s=5.0)
    finally:
        subprocess.run(["scancel", job], env=here, check=True, timeout=60)
    one = found(report, "probe of a node")
    assert one.unfit
    assert "did not start within 5 s (" in one.found
    wait_until_gone(here)
    assert not list(tmp_path.iterdir())


def test_the_limit_of_a_user_is_found(here, tmp_path):
    change = ["sacctmgr", "--immediate", "modify", "user", "root", "set"]
    subprocess.run([*change, "MaxSubmitJobs=4000"], env=here, check=True, timeout=60, capture_output=True)
    try:
        report = look(tmp_path, "low")
    finally:
        subprocess.run([*change, "MaxSubmitJobs=-1"], env=here, check=True, timeout=60, capture_output=True)
    assert "max_submit_jobs = 4000" in site_text(report)
    assert found(report, "jobs in the queue").found == "at most 4000 (account root)"


def test_a_python_that_nodes_do_not_have_is_told_from_the_log(here, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    monkeypatch.setattr(trials, "GRACE_S", 2.0)
    one = found(look(tmp_path, "low"), "probe of a node")
    assert one.unfit
    assert "/no/such/python" in one.found


@pytest.mark.mpi
def test_the_command_prints_a_table_and_its_exit_code_says_whether_it_is_fit(here, mpiexec, tmp_path):
    code = "import sys; from launch.cli import main; sys.exit(main())"
    line = [sys.executable, "-c", code, "doctor", "--work", str(tmp_path), "--output", str(tmp_path / "s.toml")]
    done = subprocess.run(
        line, cwd=ROOT, env=dict(os.environ, COLUMNS="80"), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "found, and what to do" in done.stdout
    assert (tmp_path / "s.toml").exists()
