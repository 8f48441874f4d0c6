"""What the tests on the real Slurm share: a study that leaves time to disturb it, a site, comparisons of products."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from toy import write_archive, write_study

from hpc_cg.learning.checkpoint import newest
from hpc_cg.stages.product import State, read_seal
from hpc_cg.stages.study import Study, read_study

ROOT = Path(__file__).parents[2]
PACED = Path(__file__).parent / "paced"
HPC_CG = [sys.executable, "-c", "from launch.cli import main; main()"]
UNSEALED = {"INTENT", "RUNNING", "SEALED", ".progress", "makers"}
CHECKPOINT_EVERY = 50
LONG: dict[str, dict[str, Any]] = {
    "prepare": {"shard_frames": 2},
    "train": {"steps": 300, "checkpoint_every": CHECKPOINT_EVERY, "validate_every": 100},
    "simulate": {"time_ps": 4.0, "block_ps": 0.4},
}
"""Settings with which each stage has enough units of work for a disturbance in their midst."""

PHASES = {"prepare": "mapping", "train": "training", "simulate": "simulating"}

SITE = """
[site]
partition = "{partition}"
accounting = {accounting}

[partitions.{partition}]
max_nodes = 2
cpus_per_node = 32
mem_gb_per_node = 128

[stages.prepare]
nodes = 2
tasks_per_node = {tasks}
mem_gb = 1
time_minutes = 10

[stages.kernel]
nodes = 2
tasks_per_node = {tasks}
mem_gb = 1
time_minutes = 10

[stages.train]
nodes = 2
tasks_per_node = {tasks}
cpus_per_task = 1
mem_gb = 1
time_minutes = 10

[stages.simulate]
cpus_per_task = 1
mem_gb = 1
time_minutes = 10

[stages.gather]
cpus_per_task = 1
mem_gb = 1

[stages.aggregate]
cpus_per_task = 1
mem_gb = 1

[stages.report]
mem_gb = 1
"""


def clean(environ: dict[str, str]) -> dict[str, str]:
    """The environment of a user's shell on the login node, with a pace for the work (paced/sitecustomize.py)."""
    found = environ | {"PYTHONPATH": f"{PACED}:{ROOT}", "UCX_LOG_LEVEL": "error", "COLUMNS": "80"}
    found |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return found | {"PATH": f"{Path(sys.executable).parent}:{found['PATH']}"}


def hpc_cg(
    environ: dict[str, str], *words: str | Path, check: bool = True, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """A command line of the program."""
    line = [*HPC_CG, *map(str, words)]
    done = subprocess.run(line, env=environ, capture_output=True, text=True, timeout=timeout)
    assert not check or done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done


def study_in(folder: Path, partition: str = "debug", accounting: bool = True, **changes: dict[str, Any]) -> Path:
    """A study in a folder of its own, with a site file, on the archive that all studies of a test share."""
    archive = folder.parent / "archive"
    if not archive.exists():
        write_archive(archive)
    folder.mkdir()
    tables = {name: {**table} for name, table in LONG.items()}
    for name, table in changes.items():
        tables.setdefault(name, {}).update(table)
    tables["prepare"] = {"archive": [str(archive)], **tables["prepare"]}
    write_site(folder, partition, accounting)
    return write_study(folder, archive=False, **tables)


def write_site(folder: Path, partition: str = "debug", accounting: bool = True, tasks: int = 1) -> None:
    """A site file that asks for two nodes with so many tasks each."""
    text = SITE.format(partition=partition, accounting=str(accounting).lower(), tasks=tasks)
    (folder / "site.toml").write_text(text, encoding="utf-8")


def with_products(study: Path, undisturbed: Path, before: str) -> Study:
    """Give a study all sealed products of another one that come before a stage."""
    found, other = read_study(study), read_study(undisturbed)
    found.run_folder.mkdir(mode=0o700, exist_ok=True)
    for stage in found.stages[: found.stages.index(before)]:
        shutil.copytree(other.folder(stage), found.folder(stage))
        assert found.state(stage) == State.SEALED
    return found


def pace(study: Study, stage: str, number: int, seconds: float) -> None:
    """From so many units of work on, each process of the stage pauses for so long after each; until ``unpace``."""
    beside = study.root / "paced.new"
    beside.write_text(json.dumps([PHASES[stage], number, seconds]), encoding="utf-8")
    beside.replace(study.root / "paced.json")


def unpace(study: Study) -> None:
    (study.root / "paced.json").unlink(missing_ok=True)


def ask(environ: dict[str, str], *words: str) -> str:
    """What one of Slurm's programs says."""
    return subprocess.run(words, env=environ, capture_output=True, text=True, timeout=60, check=True).stdout


def jobs_of(study: Study) -> list[dict[str, Any]]:
    """The jobs of every submission of a study, in order."""
    files = sorted((study.run_folder / "jobs").glob("submission-*.json"))
    return [job for path in files for job in json.loads(path.read_text())["jobs"]]


def queue(environ: dict[str, str]) -> list[str]:
    """Numbers of all jobs in the queue, elements of arrays each for itself."""
    return ask(environ, "squeue", "--noheader", "--array", "--format=%i").split()


def in_queue(environ: dict[str, str], study: Study) -> list[str]:
    own = {job["id"] for job in jobs_of(study)}
    return [label for label in queue(environ) if label.partition("_")[0] in own]


def wait_for(
    happened: Callable[[], Any], seconds: float = 120, what: Callable[[], str] = lambda: "waited in vain"
) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)
    return found


def wait_for_end(environ: dict[str, str], study: Study, seconds: float = 240) -> None:
    """Until none of a study's jobs is in the queue."""
    wait_for(lambda: not in_queue(environ, study), seconds, lambda: f"{logs(study)}\n{queue(environ)}")


def logs(study: Study) -> str:
    return "\n".join(
        f"--- {path.name}\n{path.read_text()}" for path in sorted((study.run_folder / "logs").glob("*.log"))
    )


def node_of(environ: dict[str, str], job: str) -> str:
    """The first node of a job."""
    return ask(environ, "squeue", "--noheader", "--jobs", job, "--format=%B").split()[0]


@dataclass(frozen=True)
class Process:
    """A process of this machine, with its command line."""

    pid: int
    line: str


def processes() -> list[Process]:
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdecimal() and int(path.name) != os.getpid():
            try:
                words = (path / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            found.append(Process(int(path.name), b" ".join(words).decode(errors="replace").strip()))
    return found


def of_study(study: Study, word: str) -> list[Process]:
    """Processes whose command line holds a word and the run folder of a study."""
    return [one for one in processes() if word in one.line and str(study.run_folder) in one.line]


def product(study: Study, stage: str) -> Any:
    """What a stage's product is, for comparison: the bytes of a store, the numbers of a model, the frames' digest."""
    folder = study.folder(stage)
    if stage == "prepare":
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and not UNSEALED & set(path.relative_to(folder).parts)
        }
    if stage == "train":
        return {name: tensor.numpy().tobytes() for name, tensor in model(study).items()}
    seal = read_seal(folder)
    return None if seal is None else seal.content


def model(study: Study) -> dict[str, torch.Tensor]:
    found = newest(study.folder("train"))
    assert found is not None
    return found.model
