"""How long submitting takes, how often the scheduler is asked, and what a chain costs on a Slurm.

    bench_submit.py            5,000 array elements against a stand-in for sbatch, beside submitit's own array; and the
                               questions that ``hpc-cg status --watch`` asks in a minute with 1,000 jobs in the queue
    bench_submit.py --slurm    a study on the Slurm of this shell, on two nodes with two tasks each: seconds until the
                               first job starts, and each stage beside ``hpc-cg run all --ranks 4``

The stand-ins answer at once, so what is timed is this program and the file system.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import submitit

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from toy import write_study  # noqa: E402

from hpc_cg.stages.study import Study, read_study  # noqa: E402
from jobs.task import Task  # noqa: E402
from launch.cluster import SlurmCluster, mark_of  # noqa: E402
from launch.site import Site, SiteConfig  # noqa: E402
from launch.slurm import Queued  # noqa: E402
from launch.submit import submit  # noqa: E402

HPC_CG = [sys.executable, "-c", "from launch.cli import main; main()"]
N_TASKS, N_LIVE, WATCHED_S = 5000, 1000, 60.0
COUNTING = "n=$(cat {0} 2>/dev/null || echo 0); n=$((n+1)); echo $n > {0}"


def fake(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def fakes(folder: Path) -> None:
    folder.mkdir()
    fake(
        folder, "sbatch", f"{COUNTING.format(folder / 'count')}; case $1 in --parsable) echo $n;; *) echo job $n;; esac"
    )
    fake(folder, "squeue", f"echo asked >> {folder}/asked; cat {folder}/rows 2>/dev/null; exit 0")
    for name in ("srun", "sacct", "scancel"):
        fake(folder, name, f"echo asked >> {folder}/asked; exit 0")
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"


def submit_many(work: Path) -> None:
    """A study of 5,000 groups of one replica, its whole chain; beside submitit's map_array of as many payloads."""
    study = read_study(write_study(work / "many", simulate={"n_replicas": N_TASKS, "group_size": 1}))
    cluster = SlurmCluster(study.run_folder, accounting=False)
    began = time.perf_counter()
    jobs = submit(study, study.stages, Site(SiteConfig()), cluster, lambda line: None)
    own = time.perf_counter() - began
    n_jobs = sum(len(job.parts) or 1 for job in jobs)
    executor = submitit.SlurmExecutor(folder=work / "submitit")
    executor.update_parameters(time=60)
    began = time.perf_counter()
    executor.map_array(Task, [str(study.path)] * N_TASKS, ["simulate"] * N_TASKS, [str(i) for i in range(N_TASKS)])
    other = time.perf_counter() - began
    print(f"submit {n_jobs:,} jobs in {len(jobs)} calls of sbatch: {own:.2f} s (aim 10)")
    print(f"submitit's map_array of {N_TASKS:,}, in 1 call: {other:.2f} s; ratio {own / other:.2f}")


def watch(work: Path, folder: Path) -> None:
    """Questions to the scheduler in a minute of ``status --watch``, and the time of one look."""
    study = read_study(write_study(work / "watched", simulate={"n_replicas": N_LIVE, "group_size": 1}))
    submit(study, study.stages, Site(SiteConfig()), SlurmCluster(study.run_folder, accounting=False), lambda line: None)
    rows = []
    for number, (stage, part) in enumerate([("prepare", "whole"), ("kernel", "whole"), ("train", "whole")], 1):
        rows.append(row(study, Queued(str(number), None, "PENDING", comment=f"{stage}:{part}")))
    rows += [row(study, Queued("4", task, "RUNNING", comment="simulate:whole")) for task in range(N_LIVE)]
    (folder / "rows").write_text("".join(rows))
    (folder / "asked").unlink(missing_ok=True)
    line = [*HPC_CG, "status", str(study.path), "--watch"]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    time.sleep(WATCHED_S - 1)
    process.kill()
    process.wait()
    asked = len((folder / "asked").read_text().splitlines())
    began = time.perf_counter()
    subprocess.run([*HPC_CG, "status", str(study.path)], stdout=subprocess.DEVNULL, check=False)
    print(f"status --watch, {N_LIVE:,} jobs in the queue: {asked} questions in a minute (aim 2)")
    print(f"one look: {time.perf_counter() - began:.2f} s, Python's start included")


def row(study: Study, job: Queued) -> str:
    task = "N/A" if job.task is None else str(job.task)
    cells = (f"{mark_of(study.run_folder)}:{job.comment}", job.job, task, job.state, "1:00", "1:00:00", "n1", "None")
    return "\t".join(cells) + "\n"


SITE = """
[site]
[stages.prepare]
nodes = 2
tasks_per_node = 2
mem_gb = 1
[stages.kernel]
nodes = 2
tasks_per_node = 2
mem_gb = 1
[stages.train]
nodes = 2
tasks_per_node = 2
cpus_per_task = 1
gpus_per_node = 0
mem_gb = 1
[stages.simulate]
cpus_per_task = 1
gpus_per_node = 0
mem_gb = 1
[stages.gather]
cpus_per_task = 1
mem_gb = 1
[stages.aggregate]
cpus_per_task = 1
mem_gb = 1
[stages.report]
mem_gb = 1
"""


def on_slurm(work: Path) -> None:
    """Each stage from the seal before it to its own, submitted and here; seconds."""
    here, there = (read_study(write_study(work / name)) for name in ("here", "there"))
    (there.root / "site.toml").write_text(SITE)
    began_here = time.time()
    subprocess.run([*HPC_CG, "run", "all", str(here.path), "--ranks", "4"], stdout=subprocess.DEVNULL, check=True)
    began = time.time()
    subprocess.run([*HPC_CG, "submit", "all", str(there.path)], stdout=subprocess.DEVNULL, check=True)
    submitted = time.time()
    log = there.run_folder / "logs"
    while not list(log.glob("prepare.*.log")):
        time.sleep(0.02)
    first = min(path.stat().st_ctime for path in log.glob("prepare.*.log"))
    while not (there.folder("report") / "SEALED").exists():
        time.sleep(0.2)
        assert time.time() < began + 600, "the chain does not come to an end"
    print(f"submit all: {submitted - began:.2f} s; first job started {first - began:.2f} s after the command")
    print(f"{'stage':<10} {'submitted':>9} {'here':>9} {'overhead':>9}  s")
    last_here, last_there = began_here, began
    for stage in here.stages:
        ends = [(study.folder(stage) / "SEALED").stat().st_mtime for study in (here, there)]
        spans = ends[1] - last_there, ends[0] - last_here
        print(f"{stage:<10} {spans[0]:>9.1f} {spans[1]:>9.1f} {spans[0] - spans[1]:>9.1f}")
        last_here, last_there = ends
    total = last_there - began, last_here - began_here
    print(f"{'all':<10} {total[0]:>9.1f} {total[1]:>9.1f} {total[0] - total[1]:>9.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slurm", action="store_true", help="a whole chain on the Slurm of this shell")
    found = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="bench-submit-"))
    try:
        for name in ("many", "watched", "here", "there"):
            (work / name).mkdir()
        if found.slurm:
            on_slurm(work)
        else:
            fakes(work / "fakes")
            submit_many(work)
            watch(work, work / "fakes")
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
