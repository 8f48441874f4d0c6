"""Whatever happens to a run of prepare, and however many ranks make it: the product is the same, byte for byte.

HPC_CG_KILLS says how many times a run of four ranks is killed; the suite's few keep it quick.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from toy import write_archive, write_study

from hpc_cg.stages.claims import RUNNING, owner
from hpc_cg.stages.product import SEALED
from launch.family import Member, family, kill

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(1800)]

KILLS = int(os.environ.get("HPC_CG_KILLS", "6"))
NOT_OF_THE_PRODUCT = {RUNNING, SEALED, "INTENT", ".progress"}


class Run:
    """A study in a folder of its own, on the archive that all studies here share."""

    def __init__(self, folder: Path, archive: Path, mpiexec: Path, run_folder: Path | None = None) -> None:
        folder.mkdir(exist_ok=True)
        place = {} if run_folder is None else {"folder": str(run_folder)}
        self.study = write_study(
            folder, archive=False, study=place, prepare={"archive": [str(archive)], "shard_frames": 16}
        )
        self.product = (run_folder or folder / "run") / "prepare"
        self.mpiexec = mpiexec

    def start(self, ranks: int, **environ: str) -> subprocess.Popen[str]:
        """Begin to prepare; mpiexec always, so that one rank of many and the only rank are started alike."""
        return subprocess.Popen(
            [self.mpiexec, "-n", str(ranks), sys.executable, "-m", "jobs", "prepare", str(self.study)],
            env=os.environ | {"UCX_LOG_LEVEL": "error"} | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def work(self, ranks: int, **environ: str) -> tuple[int, str]:
        """Prepare to the end, whichever it is: the exit code, and what was said."""
        process = self.start(ranks, **environ)
        said, _ = process.communicate(timeout=120)
        return process.returncode, said

    def content(self) -> dict[str, bytes]:
        """Every file of a sealed product, by its path."""
        assert (self.product / SEALED).exists()
        return {
            str(path.relative_to(self.product)): path.read_bytes()
            for path in self.product.rglob("*")
            if path.is_file() and not NOT_OF_THE_PRODUCT & set(path.relative_to(self.product).parts)
        }

    def n_commits(self) -> int:
        return len(list(self.product.glob("commits/toy/*.json")))


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Return when something has happened or the process has ended."""
    deadline = time.monotonic() + 60
    while process.poll() is None and not happened():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def ranks_of(process: subprocess.Popen[str]) -> list[Member]:
    """The Python processes below an mpiexec, by process id."""
    found = []
    for member in family(process.pid):
        try:
            line = Path(f"/proc/{member.pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"jobs\0prepare" in line and b"mpiexec" not in line:
            found.append(member)
    return sorted(found, key=lambda member: member.pid)


def different(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """Names of files that only one product has, or that hold other bytes."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("survival") / "archive")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, archive: Path, mpiexec: Path) -> dict[str, bytes]:
    """What one process makes that nobody disturbs."""
    run = Run(tmp_path_factory.mktemp("whole"), archive, mpiexec)
    code, said = run.work(1)
    assert code == 0, said
    content = run.content()
    assert run.n_commits() == 77
    for part in ("store.zarr/toy/positions", "store.zarr/toy/forces", "moments/toy", "maps/toy", "quarantine"):
        assert any(name.startswith(part) for name in content), f"nothing in {part}"
    return content


@pytest.fixture
def run(tmp_path: Path, archive: Path, mpiexec: Path) -> Run:
    return Run(tmp_path / "a run", archive, mpiexec)  # a path with a space


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_any_number_of_ranks_writes_the_bytes_of_one(run: Run, whole: dict[str, bytes], ranks: int) -> None:
    code, said = run.work(ranks)
    assert code == 0, said
    assert different(whole, run.content()) == []


def test_four_ranks_that_are_killed_again_and_again_write_the_bytes_of_one(run: Run, whole: dict[str, bytes]) -> None:
    dice, killed, finished = random.Random(7), 0, 0
    while killed < KILLS:
        process = run.start(4)
        wait_for(lambda: owner(run.product) is not None, process)
        time.sleep(dice.uniform(0, 2.0))
        members = family(process.pid)
        if process.poll() is None:
            kill(members)
            killed += 1
        process.communicate(timeout=60)
        if process.returncode == 0:  # it was done before the kill: looked at, and made again
            assert different(whole, run.content()) == []
            shutil.rmtree(run.product)
            finished += 1
    code, said = run.work(4)
    assert code == 0, said
    assert different(whole, run.content()) == []


@pytest.mark.parametrize("victim", [0, 2])
def test_one_rank_that_is_killed_ends_the_job_and_the_next_run_ends_the_work(
    run: Run, whole: dict[str, bytes], victim: int
) -> None:
    process = run.start(3)
    wait_for(lambda: run.n_commits() > 5, process)
    kill(frozenset({ranks_of(process)[victim]}))
    began = time.monotonic()
    process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert process.returncode != 0
    assert not (run.product / SEALED).exists()
    code, said = run.work(2)
    assert code == 0, said
    assert different(whole, run.content()) == []


def test_a_run_whose_time_is_over_stops_at_a_safe_place_and_other_ranks_go_on(
    run: Run, whole: dict[str, bytes]
) -> None:
    code, said = run.work(2, HPC_CG_END_TIME=str(time.time() + 5))
    assert (code, said.strip()) == (75, "hpc-cg: prepare stopped at a safe place; run it again to continue")
    process = run.start(3)
    wait_for(lambda: run.n_commits() > 5, process)
    for rank in ranks_of(process):
        os.kill(rank.pid, signal.SIGUSR2)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "hpc-cg: prepare stopped at a safe place with " in said and "Traceback" not in said
    assert not (run.product / SEALED).exists() and owner(run.product) is None
    assert 5 < run.n_commits() < 77
    code, said = run.work(4)
    assert code == 0, said
    assert different(whole, run.content()) == []


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting a small disk needs root")
def test_a_disk_that_fills_up_again_and_again_is_told_in_one_sentence_and_costs_nothing(
    tmp_path: Path, archive: Path, mpiexec: Path, whole: dict[str, bytes]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    mounted = subprocess.run(line, check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    try:
        run = Run(tmp_path / "a run", archive, mpiexec, disk / "run")
        for size in ("64k", "256k", "1m"):
            subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
            code, said = run.work(2)
            assert code == 1, said
            assert "no space left" in said and "Traceback" not in said
        subprocess.run(["mount", "-o", "remount,size=32m", str(disk)], check=True)
        code, said = run.work(3)
        assert code == 0, said
        assert different(whole, run.content()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
