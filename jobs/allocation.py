"""Who am I inside an allocation: one of several MPI ranks, of Slurm tasks, of torchrun workers, or alone.

``who_am_i`` reads the environment and nothing else: the variables of MPICH's hydra (``srun --mpi=pmi2`` sets
them too), of Open MPI, of Slurm (man srun, "OUTPUT ENVIRONMENT VARIABLES") and of torchrun. ``team_for``
makes the team in which a stage divides its items. ``abort_together`` lets a rank that fails end all of them.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from hpc_cg.errors import BrokenLaunch, HpcCgError, MissingExtra
from hpc_cg.files import digest
from hpc_cg.share import Alone, Share, Stop, Stopped, never
from jobs.counter import Round
from jobs.nodelist import expand_nodelist

T = TypeVar("T")
Kind = Literal["mpi", "slurm", "torchrun", "alone"]

FIRST_PORT, N_PORTS = 15000, 10000  # below Linux's ephemeral ports, which start at 32768
RESERVED_STEPS = 0xFFFFFFF0  # step ids from here on name the batch shell, an interactive shell, ...
LAUNCH_ADVICE = (
    "start the job with the launcher of the MPI that mpi4py uses: srun --mpi=pmi2 for MPICH, srun --mpi=pmix "
    "for Open MPI (srun --mpi=list tells what the site has), or mpiexec"
)


@dataclass(frozen=True)
class Allocation:
    """The place of this process among those that were started together.

    kind          who started it
    rank          0 to world_size - 1, over all nodes
    world_size    processes that were started together
    local_rank    rank among those on the same node
    master_addr   host on which rank 0 can be reached
    master_port   port that these processes may use to find one another; another one after a requeue
    job_id        Slurm's job id, or None
    attempt       how often Slurm has started this job before
    """

    kind: Kind
    rank: int
    world_size: int
    local_rank: int
    master_addr: str
    master_port: int
    job_id: str | None
    attempt: int


def who_am_i(environ: Mapping[str, str]) -> Allocation:
    """The place that ``environ`` describes; the innermost launcher wins.

    Raises BrokenLaunch where the variables contradict one another.
    """
    kind, rank, world_size, local_rank = _place(environ)
    if not (0 <= rank < world_size and 0 <= local_rank < world_size):
        raise BrokenLaunch(
            "finding this process among the others",
            f"rank {rank} (on its node: {local_rank}) of {world_size}",
            "start the job with srun, mpiexec or torchrun, and set none of their variables by hand",
        )
    job_id = environ.get("SLURM_JOB_ID") or None
    attempt = _number(environ, "SLURM_RESTART_COUNT", default=0)
    return Allocation(
        kind=kind,
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        master_addr=environ.get("MASTER_ADDR") or _first_host(environ, kind),
        master_port=_number(environ, "MASTER_PORT", default=_port(job_id, attempt)),
        job_id=job_id,
        attempt=attempt,
    )


def _place(environ: Mapping[str, str]) -> tuple[Kind, int, int, int]:
    """Who started this process, its rank, how many there are, its rank on the node."""
    if "TORCHELASTIC_RUN_ID" in environ:
        return _torchrun_place(environ)
    for rank, size in (("PMI_RANK", "PMI_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")):
        if rank in environ and size in environ:
            return "mpi", _number(environ, rank), _number(environ, size), _local_mpi_rank(environ)
    if _in_slurm_step(environ):
        local_rank = _number(environ, "SLURM_LOCALID", default=0)
        return "slurm", _number(environ, "SLURM_PROCID"), _number(environ, "SLURM_NTASKS"), local_rank
    if "RANK" in environ and "WORLD_SIZE" in environ:
        return _torchrun_place(environ)
    return "alone", 0, 1, 0


def _torchrun_place(environ: Mapping[str, str]) -> tuple[Kind, int, int, int]:
    rank = _number(environ, "RANK")
    return "torchrun", rank, _number(environ, "WORLD_SIZE"), _number(environ, "LOCAL_RANK", default=rank)


def _local_mpi_rank(environ: Mapping[str, str]) -> int:
    names = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")
    return next((_number(environ, name) for name in names if name in environ), 0)


def _in_slurm_step(environ: Mapping[str, str]) -> bool:
    """Whether srun started this process; the batch shell and an interactive shell are other kinds of step."""
    step = environ.get("SLURM_STEP_ID", "")
    named = "SLURM_PROCID" in environ and "SLURM_NTASKS" in environ
    return named and step.isdecimal() and int(step) < RESERVED_STEPS


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name, "")
    if not text and default is not None:
        return default
    if not text.isdecimal():
        raise BrokenLaunch(
            f"reading the variable {name}",
            repr(text),
            "unset it, and start the job with srun, mpiexec or torchrun",
        )
    return int(text)


def _first_host(environ: Mapping[str, str], kind: Kind) -> str:
    nodelist = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
    hosts = expand_nodelist(nodelist) if nodelist and kind != "alone" else []
    return hosts[0] if len(hosts) > 1 else "127.0.0.1"


def _port(job_id: str | None, attempt: int) -> int:
    return FIRST_PORT + int(digest([job_id, attempt]), 16) % N_PORTS


def team_for(environ: Mapping[str, str]) -> "Alone | MpiTeam":
    """The team that ``environ`` describes: an MpiTeam, or Alone for a process that was started alone.

    Raises BrokenLaunch where the processes do not know of one another, MissingExtra without mpi4py.
    """
    me = who_am_i(environ)
    if me.world_size == 1:
        return Alone()
    if me.kind == "torchrun":
        raise BrokenLaunch("dividing the work", "workers of torchrun", "use srun or mpiexec for this stage")
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py without an MPI library
        asked = f"dividing the work among {me.world_size} processes"
        raise MissingExtra(asked, f"no usable mpi4py ({error})", "pip install 'hpc-cg[mpi]'") from error
    check_world(environ, MPI.COMM_WORLD.Get_size())
    return MpiTeam(MPI.COMM_WORLD)


def check_world(environ: Mapping[str, str], comm_size: int) -> None:
    """Raise BrokenLaunch where MPI joined another number of processes than were started together.

    An MPI that does not speak its launcher's protocol starts N worlds of one rank each, and says nothing.
    """
    me = who_am_i(environ)
    if me.kind in ("mpi", "slurm") and me.world_size != comm_size:
        asked = f"joining the {me.world_size} processes of this job"
        raise BrokenLaunch(asked, f"an MPI world of {comm_size}", LAUNCH_ADVICE)


@dataclass
class MpiTeam:
    """The ranks of an mpi4py communicator; all must call ``take``, ``tell`` and ``barrier`` in the same order.

    ``stop`` is asked by each rank for itself: the others go on with the items that are left.
    """

    comm: Any
    stop: Stop = never
    _round: Round | None = field(default=None, init=False)

    @property
    def share(self) -> Share:
        return Share(self.comm.Get_rank(), self.comm.Get_size())

    def take(self, items: Sequence[T], whole: bool = True) -> Iterator[T]:
        """Whoever is free gets the next item, so put the largest first.

        Raises BrokenLaunch if the plans differ; Stopped, on every rank, as ``hpc_cg.share.Team`` says.
        """
        self._meet()
        counts = self.comm.allgather(len(items))
        if len(set(counts)) > 1:
            raise BrokenLaunch(
                f"dividing {len(items)} items",
                f"{min(counts)} to {max(counts)} items on the ranks",
                "check that all nodes see the same files, and run again",
            )
        self._round = Round(self.comm, len(items), self.stop, whole)
        return self._given(items, self._round)

    def _given(self, items: Sequence[T], numbers: Round) -> Iterator[T]:
        for number in numbers:
            yield items[number]
        self._meet()

    def _meet(self) -> None:
        """Close what was handed out last, if that is still open; raises Stopped."""
        last, self._round = self._round, None
        if last is not None and last.close():
            raise Stopped

    def tell(self, value: T) -> T:
        self._meet()
        return self.comm.bcast(value, root=0)

    def barrier(self) -> None:
        self._meet()
        self.comm.Barrier()


@contextmanager
def abort_together() -> Iterator[None]:
    """Let an exception of one rank end all ranks within seconds, with its exit code.

    MPI_Abort follows when Python leaves, after the exception was shown; without it the other ranks would wait
    for this one for ever. Where MPI is not in use the exception just passes.
    """
    try:
        yield
    except BaseException as error:
        if "mpi4py.MPI" in sys.modules:
            _abort_at_exit(error)
        raise


def _abort_at_exit(error: BaseException) -> None:
    from mpi4py import run

    if isinstance(error, HpcCgError):
        run.set_abort_status(error.exit_code)
    else:
        run.set_abort_status(error if isinstance(error, SystemExit | KeyboardInterrupt) else 1)
