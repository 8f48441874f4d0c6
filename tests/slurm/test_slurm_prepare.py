"""The stage prepare as a Slurm job of two nodes writes the bytes that one process writes."""

import subprocess
import sys
from pathlib import Path

import pytest
from toy import write_study

from launch.resources import Resources
from launch.templates import sbatch_text

pytestmark = [pytest.mark.slurm, pytest.mark.mpi, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
PARTS = ("map.npz", "moments", "quarantine", "commits", "store.zarr")


def content(product: Path) -> dict[str, bytes]:
    """Every file of the product but what tells of its progress and its making."""
    files = [path for part in PARTS for path in (product / part, *product.glob(f"{part}/**/*")) if path.is_file()]
    return {str(path.relative_to(product)): path.read_bytes() for path in files}


def test_two_nodes_write_the_store_that_one_process_writes(slurm, mpiexec, tmp_path):
    environ = slurm | {"PYTHONPATH": str(ROOT), "UCX_LOG_LEVEL": "error", "OMP_NUM_THREADS": "1"}
    environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"
    alone = write_study(tmp_path / "alone", prepare={"shard_frames": 64})
    subprocess.run([sys.executable, "-m", "jobs", "prepare", alone], env=environ, cwd=ROOT, check=True, timeout=120)

    together = write_study(tmp_path / "together", prepare={"shard_frames": 64})
    ask = Resources(nodes=2, tasks_per_node=2, mem_gb=1, time_minutes=5, log_folder=str(tmp_path))
    script = tmp_path / "prepare.sbatch"
    script.write_text(sbatch_text("prepare", ask, str(together)))
    command = ["sbatch", "--wait", "--parsable", str(script)]
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=180)
    logs = "\n".join(path.read_text() for path in tmp_path.glob("*.err"))
    assert done.returncode == 0, done.stderr + logs

    one, many = (content(study.parent / "run" / "prepare") for study in (alone, together))
    assert (together.parent / "run" / "prepare" / "SEALED").exists()
    assert len([name for name in one if name.startswith("store.zarr")]) > 10
    assert many.keys() == one.keys()
    assert [name for name in one if one[name] != many[name]] == []
