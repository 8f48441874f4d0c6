"""What a node says of itself: the file that doctor's jobs run there, with the standard library alone.

It is copied into the probe's folder and run by path, so that it also speaks where the package is not installed:

    probe.py batch FOLDER CWD FLAVOUR...   from the batch shell: disks, Python, scontrol, and an srun of each flavour
    probe.py gpu FOLDER                    what an allocation of one GPU shows
    probe.py rank | step                   one process of an srun, which tells of itself on its output

An answer is a JSON file in FOLDER that appears whole. Programs are ended when their time is up.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PATIENCE_S = 30.0
"""For each program that a probe starts; all of them together stay below the job's time limit."""

COMMENT = "hpc-cg-doctor"
"""A probe's job bears it, as other jobs of hpc-cg bear theirs; some sites replace it."""

N_WRITES = 5
LOCAL = frozenset(["ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "overlay", "tmpfs", "ramfs"])
"""Kinds of file systems that one node has for itself; the last two are its memory."""


@dataclass(frozen=True)
class Disk:
    """A folder that was written into; ``error`` says what failed, and empty that nothing did.

    kind       of file system, e.g. "lustre"
    write_ms   to write beside, fsync and rename one small file: the median of some
    links      whether a hard link is made, and refused where its name is taken
    private    whether a folder there keeps the mode 0700
    """

    kind: str = ""
    write_ms: float = 0.0
    links: bool = False
    private: bool = False
    error: str = ""


@dataclass(frozen=True)
class Scratch:
    """A node's TMPDIR, or /tmp where that is not set (``named`` is false)."""

    path: str
    named: bool
    kind: str
    free_bytes: int
    error: str = ""

    @property
    def local(self) -> bool:
        return self.kind in LOCAL


@dataclass(frozen=True)
class Step:
    """What a process of an srun without --cpus-per-task sees: cores it may run on, and what the variable says."""

    cores: int = 0
    variable: str = ""
    error: str = ""


@dataclass(frozen=True)
class Rank:
    """One of the two processes of an MPI probe: its place, whom it met, and whether one-sided MPI counts right."""

    rank: int
    size: int
    met: tuple[str, ...]
    cores: int
    counts: bool
    library: str


@dataclass(frozen=True)
class Node:
    """The answer of the batch probe.

    name       of the node
    python     its version
    package    why this project cannot be imported there; empty where it can
    disk       the work folder, as the node writes into it
    scontrol   why it cannot be asked about the job; empty where it can
    comment    whether the job bears the comment that it was submitted with
    ends       SLURM_JOB_END_TIME; empty where that is not set
    cores      that the batch shell may run on
    mpi        for each flavour of srun what the ranks told, and why they failed
    """

    name: str
    python: str
    package: str
    disk: Disk
    scratch: Scratch
    scontrol: str
    comment: bool
    ends: str
    cores: int
    step: Step
    mpi: dict[str, tuple[tuple[Rank, ...], str]]


@dataclass(frozen=True)
class Gpu:
    """The answer of the GPU probe.

    name        of the node
    visible     CUDA_VISIBLE_DEVICES; empty where that is not set
    available   whether torch computed something on a GPU
    count       of GPUs that torch sees
    torch       its version; empty where it cannot be imported
    error       why no GPU could be used; empty where one was
    """

    name: str
    visible: str
    available: bool
    count: int
    torch: str
    error: str = ""


def try_folder(folder: Path) -> Disk:
    """Do what runs do with a folder: write, fsync, rename, link, keep to oneself."""
    kind = file_system(folder)
    inside = folder / f".try-{platform.node()}-{os.getpid()}"
    try:
        inside.mkdir(mode=0o700)
        try:
            found = inside.stat()
            private = found.st_mode & 0o777 == 0o700 and found.st_uid == os.getuid()
            times = [_write_s(inside) for _ in range(N_WRITES)]
            return Disk(kind, 1000 * statistics.median(times), _links(inside), private)
        finally:
            for path in inside.iterdir():
                path.unlink()
            inside.rmdir()
    except OSError as error:
        return Disk(kind, error=f"{folder}: {error.strerror or error}")


def _write_s(folder: Path) -> float:
    """Seconds to put a small file in the place of another, so that it lasts."""
    began = time.perf_counter()
    beside = folder / ".beside"
    with beside.open("wb") as file:
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())
    beside.replace(folder / "file")
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return time.perf_counter() - began


def _links(folder: Path) -> bool:
    try:
        (folder / "link").hardlink_to(folder / "file")
    except OSError:
        return False
    try:
        (folder / "link").hardlink_to(folder / "file")
    except FileExistsError:
        return True
    return False


def file_system(path: Path) -> str:
    """The kind of file system that a path lies on, from Linux's table of mounts; "unknown" elsewhere."""
    real, best, kind = os.path.realpath(path), "", "unknown"
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            left, _, right = line.partition(" - ")
            point = left.split()[4].replace("\\040", " ")
            if len(point) >= len(best) and Path(real).is_relative_to(point):
                best, kind = point, right.split()[0]
    return kind


def call(words: Sequence[str], cwd: str | None = None, patience_s: float = PATIENCE_S) -> tuple[str, str]:
    """The output of a program, and in words why it failed; empty where it did not."""
    try:
        with subprocess.Popen(
            words,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as process:
            try:
                out, told = process.communicate(timeout=patience_s)
            except subprocess.TimeoutExpired:
                _end(process)
                return "", f"no end within {patience_s:g} s"
    except OSError as error:
        return "", str(error)
    if process.returncode:
        lines = [line for line in told.splitlines() if line.strip()]
        return out, _telling(lines) or f"exit code {process.returncode}"
    return out, ""


def _end(process: subprocess.Popen[str]) -> None:
    """End a program, first so that srun can end its step; children of its own may hold its output open."""
    for stop in (process.terminate, process.kill):
        stop()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
            break
    for pipe in filter(None, (process.stdout, process.stderr)):
        pipe.close()


def _telling(lines: Sequence[str]) -> str:
    """The line of a program's complaints that tells most: Python's own, else the first of srun's, else the last."""
    errors = [line for line in lines if "Error" in line.partition(":")[0]]
    return (errors or [line for line in lines if "error:" in line][:1] or list(lines[-1:]) or [""])[-1].strip()[:200]


def ask_ranks(flavour: str) -> tuple[tuple[Rank, ...], str]:
    """What two processes under one flavour of srun tell, and why they failed."""
    cores = os.environ.get("SLURM_CPUS_PER_TASK", "1")
    words = ["srun", f"--mpi={flavour}", "--ntasks=2", f"--cpus-per-task={cores}", "--kill-on-bad-exit=1"]
    out, error = call([*words, sys.executable, __file__, "rank"])
    return tuple(Rank(**answer) for answer in _answers(out)), error


def ask_step() -> Step:
    """What one process of an srun without --cpus-per-task sees."""
    out, error = call(["srun", "--mpi=none", "--ntasks=1", "--nodes=1", sys.executable, __file__, "step"])
    answers = _answers(out)
    return Step(**answers[0]) if answers else Step(error=error or "no answer")


def _answers(text: str) -> list[dict]:
    """The lines that are JSON objects; a prolog may print others."""
    found = []
    for line in text.splitlines():
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return [answer for answer in found if isinstance(answer, dict)]


def rank() -> Rank:
    """Join MPI, meet the other process, draw from a shared counter."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    met = comm.allgather(_name())
    return Rank(
        rank=comm.Get_rank(),
        size=comm.Get_size(),
        met=tuple(met),
        cores=_cores(),
        counts=_counts(comm),
        library=MPI.Get_library_version().split("\n")[0].strip()[:60],
    )


def _counts(comm: Any) -> bool:
    from mpi4py import MPI

    try:
        from mpi4py.util.sync import Counter

        counter = Counter(comm=comm)
        drawn = comm.allgather(counter.next())
        counter.free()
    except (ImportError, MPI.Exception, NotImplementedError):
        return False
    return sorted(drawn) == list(range(comm.Get_size()))


def scratch() -> Scratch:
    """The folder for files of this node alone, and what is free there."""
    named = os.environ.get("TMPDIR", "")
    path = Path(named or "/tmp")
    try:
        room = os.statvfs(path)
        file = path / f".hpc-cg-{os.getpid()}"
        file.write_bytes(bytes(4096))
        file.unlink()
    except OSError as error:
        return Scratch(str(path), bool(named), file_system(path), 0, error.strerror or str(error))
    return Scratch(str(path), bool(named), file_system(path), room.f_bavail * room.f_frsize)


def batch(folder: Path, cwd: str, flavours: Sequence[str]) -> Node:
    """Everything that a job of two processes can find out on its first node."""
    job = os.environ.get("SLURM_JOB_ID", "")
    here = cwd if Path(cwd).is_dir() else None
    shown, error = call(["scontrol", "show", "job", job])
    return Node(
        name=_name(),
        python=platform.python_version(),
        package=call([sys.executable, "-c", "import hpc_cg, jobs.run"], here)[1],
        disk=try_folder(folder),
        scratch=scratch(),
        scontrol=error,
        comment=f"Comment={COMMENT}" in shown,
        ends=os.environ.get("SLURM_JOB_END_TIME", ""),
        cores=_cores(),
        step=ask_step(),
        mpi={flavour: ask_ranks(flavour) for flavour in flavours},
    )


def gpu() -> Gpu:
    """What one GPU of Slurm's is to torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    try:
        import torch
    except (ImportError, OSError) as error:
        return Gpu(_name(), visible, False, 0, "", str(error)[:200])
    try:
        count = torch.cuda.device_count()
        if torch.cuda.is_available():
            torch.zeros(1, device="cuda").sum().item()
            return Gpu(_name(), visible, True, count, torch.__version__)
    except RuntimeError as error:
        return Gpu(_name(), visible, False, 0, torch.__version__, str(error).split("\n")[0][:200])
    why = "this torch is built without CUDA" if torch.version.cuda is None else "no CUDA device that works"
    return Gpu(_name(), visible, False, count, torch.__version__, why)


def _name() -> str:
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _write(path: Path, answer: Node | Gpu) -> None:
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps(asdict(answer)), encoding="utf-8")
    beside.replace(path)


def main(words: Sequence[str]) -> None:
    kind, *rest = words
    if kind == "batch":
        _write(Path(rest[0]) / "batch.json", batch(Path(rest[0]), rest[1], rest[2:]))
    elif kind == "gpu":
        _write(Path(rest[0]) / "gpu.json", gpu())
    else:
        told = rank() if kind == "rank" else Step(_cores(), os.environ.get("SLURM_CPUS_PER_TASK", ""))
        sys.stdout.write(json.dumps(asdict(told)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
