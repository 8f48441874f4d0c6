"""A real Slurm of two nodes on this machine, started for tests and ended after them."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

SLURM_FOLDER = Path(__file__).parent / "slurm"
SLURM_PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "sbatch", "srun")


def free_ports() -> int:
    """The first of a thousand ports that nobody listens on: two test runs on one machine do not meet."""
    for first in range(24000, 32000, 1000):
        used = False
        for port in (first, first + 1, first + 2, first + 11):
            with socket.socket() as one:
                used |= one.connect_ex(("127.0.0.1", port)) == 0
        if not used:
            return first
    pytest.fail("no free range of ports for a Slurm between 24000 and 32000")


def mapped_files() -> set[str]:
    """The files of shared memory that any process has in its memory."""
    found = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            found |= {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if "/dev/shm/" in line}
    return found


@contextmanager
def running_slurm(sandbox: Path, accounting: bool = True) -> Iterator[dict[str, str]]:
    """Start a Slurm in a folder of its own, and end it; skips where it cannot be."""
    missing = [name for name in SLURM_PROGRAMS if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and the Slurm packages (not found: {', '.join(missing) or 'root'})")
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "PMI"))}
    environ = outside | {"SLURM_SANDBOX": str(sandbox), "SLURM_CONF": str(sandbox / "etc" / "slurm.conf")}
    size = {
        "PORT_BASE": str(free_ports()),
        "NODES": "2",
        "CPUS_PER_NODE": "32",
        "MEM_PER_NODE": "128000",
        "GPUS_PER_NODE": "4",
        "ACCOUNTING": str(int(accounting)),
        "CLEAN": "1",
    }
    # MPICH names its shared memory after job and step, numbers that begin anew with each of these Slurms
    mapped = mapped_files()
    for left in Path("/dev/shm").glob("mpich_shm_*"):
        if str(left) not in mapped:
            left.unlink(missing_ok=True)
    try:
        subprocess.run(["bash", SLURM_FOLDER / "start_slurm.sh"], env=environ | size, check=True, timeout=400)
        yield environ
    finally:
        subprocess.run(["bash", SLURM_FOLDER / "stop_slurm.sh"], env=environ | size, check=True, timeout=120)
