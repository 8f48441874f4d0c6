"""Who am I, from environments as the launchers write them; the team, with real ranks under a real mpiexec."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpc_cg.errors import BrokenLaunch
from hpc_cg.share import Alone, Share
from jobs.allocation import abort_together, check_world, team_for, who_am_i

ROOT = Path(__file__).parents[2]
STEP = {
    "SLURM_JOB_ID": "41",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "2",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "0",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_STEP_NODELIST": "node[1-2]",
}


@pytest.mark.parametrize(
    ("environ", "kind", "place"),
    [
        ({}, "alone", (0, 1, 0)),
        ({"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1"}, "mpi", (3, 4, 1)),
        (
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
            "mpi",
            (1, 2, 1),
        ),
        (STEP, "slurm", (2, 4, 0)),
        (STEP | {"PMI_RANK": "2", "PMI_SIZE": "4"}, "mpi", (2, 4, 0)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, "torchrun", (5, 8, 1)),
        (
            STEP | {"TORCHELASTIC_RUN_ID": "x", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"},
            "torchrun",
            (5, 8, 1),
        ),
    ],
    ids=["laptop", "hydra", "openmpi", "srun", "srun-pmi2", "torchrun", "torchrun-in-srun"],
)
def test_each_launcher_tells_the_place(environ, kind, place):
    me = who_am_i(environ)
    assert (me.kind, (me.rank, me.world_size, me.local_rank)) == (kind, place)


@pytest.mark.parametrize("step", ["", "batch", "4294967290"])
def test_a_batch_shell_or_an_interactive_shell_is_alone(step):
    assert who_am_i(STEP | {"SLURM_STEP_ID": step}).kind == "alone"


def test_ranks_on_several_nodes_meet_on_the_first_one():
    assert who_am_i(STEP).master_addr == "node1"
    assert who_am_i(STEP | {"MASTER_ADDR": "login"}).master_addr == "login"
    assert who_am_i(STEP | {"SLURM_STEP_NODELIST": "node2"}).master_addr == "127.0.0.1"
    assert who_am_i({}).master_addr == "127.0.0.1"


def test_all_ranks_agree_on_a_port_and_a_requeued_job_takes_another():
    ports = {who_am_i(STEP | {"SLURM_PROCID": rank}).master_port for rank in "0123"}
    again = who_am_i(STEP | {"SLURM_RESTART_COUNT": "1"})
    assert len(ports) == 1
    assert again.attempt == 1
    assert again.master_port not in ports
    assert all(15000 <= port < 25000 for port in (*ports, again.master_port))
    assert who_am_i(STEP | {"MASTER_PORT": "29500"}).master_port == 29500


@pytest.mark.parametrize("change", [{"SLURM_PROCID": "4"}, {"SLURM_NTASKS": "four"}, {"MASTER_PORT": "-1"}])
def test_a_place_that_makes_no_sense_is_refused(change):
    with pytest.raises(BrokenLaunch):
        who_am_i(STEP | change)


def test_a_process_alone_needs_no_mpi():
    team = team_for({})
    assert isinstance(team, Alone)
    assert (team.share, list(team.take([1, 2]))) == (Share(0, 1), [1, 2])


def test_singletons_are_noticed():
    check_world(STEP, 4)
    with pytest.raises(BrokenLaunch, match=r"4 processes of this job: found an MPI world of 1.*--mpi="):
        check_world(STEP, 1)


def test_torchrun_workers_are_no_team():
    with pytest.raises(BrokenLaunch, match="srun or mpiexec"):
        team_for({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"})


def test_without_mpi_an_exception_just_passes():
    with pytest.raises(BrokenLaunch), abort_together():
        raise BrokenLaunch("a", "b", "c")


def run_ranks(mpiexec: Path, n_ranks: int, body: str, **environ: str) -> subprocess.CompletedProcess:
    """Run ``body`` on some ranks; it finds ``team`` and ``rank`` defined. Hanging fails the test."""
    head = (
        "import os, sys, time\n"
        "import jobs.allocation as allocation, jobs.counter as counter\n"
        "from hpc_cg.errors import BadFrames\n"
        "team = allocation.team_for(os.environ); rank = team.share.index\n"
    )
    return subprocess.run(
        [mpiexec, "-n", str(n_ranks), sys.executable, "-c", head + body],
        cwd=ROOT,
        env=os.environ | {"UCX_LOG_LEVEL": "error", "PYTHONPATH": str(ROOT)} | environ,
        capture_output=True,
        text=True,
        timeout=60,
    )


def items_by_rank(done: subprocess.CompletedProcess) -> dict[int, list[int]]:
    """Lines ``rank: items`` of standard output."""
    assert done.returncode == 0, done.stderr
    lines = [line.split(":") for line in done.stdout.splitlines() if ":" in line]
    return {int(rank): [int(item) for item in items.split()] for rank, items in lines}


TELL = "sys.stdout.write(f'{rank}: ' + ' '.join(map(str, mine)) + chr(10))\n"
BROKEN_RMA = """
from mpi4py import MPI
import mpi4py.util.sync as sync
def broken(comm): raise MPI.Exception(MPI.ERR_RMA_SYNC)
sync.Counter = broken
"""


@pytest.mark.mpi
@pytest.mark.parametrize("slow", [0, 1])
def test_four_ranks_take_each_item_once_and_a_slow_one_takes_fewer(mpiexec, slow):
    body = f"""
mine = []
for item in team.take(range(20)):
    mine.append(item)
    time.sleep(0.6 if rank == {slow} else 0.05)
{TELL}"""
    taken = items_by_rank(run_ranks(mpiexec, 4, body))
    assert sorted(item for items in taken.values() for item in items) == list(range(20))
    assert len(taken[slow]) <= min(len(items) for items in taken.values())


@pytest.mark.mpi
def test_static_shares_where_one_sided_communication_fails(mpiexec):
    body = f"""{BROKEN_RMA}
mine = list(team.take(range(10)))
team.barrier()
{TELL}"""
    done = run_ranks(mpiexec, 2, body)
    assert items_by_rank(done) == {0: list(range(0, 10, 2)), 1: list(range(1, 10, 2))}
    assert "one-sided MPI fails here" in done.stderr


@pytest.mark.mpi
def test_a_rank_may_leave_its_loop_early(mpiexec):
    body = f"""
mine = []
for item in team.take(range(12)):
    mine.append(item)
    if rank == 0: break
    time.sleep(0.02)
mine += [100 + item for item in team.take(range(2))]
{TELL}"""
    taken = items_by_rank(run_ranks(mpiexec, 3, body))
    assert sorted(item for items in taken.values() for item in items) == [*range(12), 100, 101]


@pytest.mark.mpi
@pytest.mark.parametrize("counter", ["", BROKEN_RMA], ids=["shared-counter", "static-shares"])
def test_a_team_that_is_asked_to_stop_ends_on_every_rank_with_whole_items(mpiexec, counter):
    body = f"""{counter}
from dataclasses import replace
from hpc_cg.share import Stopped
mine = []
team = replace(team, stop=lambda longest: len(mine) == 2)
try:
    for item in team.take(range(12)):
        mine.append(item)
        time.sleep(0.02)
    mine = ['not stopped']
except Stopped:
    pass
team.barrier()
{TELL}"""
    taken = items_by_rank(run_ranks(mpiexec, 3, body))
    assert [len(items) for items in taken.values()] == [2, 2, 2]
    assert len({item for items in taken.values() for item in items}) == 6


@pytest.mark.mpi
def test_what_one_rank_leaves_the_others_take_and_that_is_no_stop(mpiexec):
    body = f"""
from dataclasses import replace
mine, longest_seen = [], []
def stop(longest):
    longest_seen.append(longest)
    return rank == 0 and len(mine) == 1
for item in replace(team, stop=stop).take(range(12)):
    mine.append(item)
    time.sleep(0.05)
assert longest_seen[0] == 0 and longest_seen[-1] >= 0.05
{TELL}"""
    taken = items_by_rank(run_ranks(mpiexec, 3, body))
    assert len(taken[0]) == 1
    assert sorted(item for items in taken.values() for item in items) == list(range(12))


@pytest.mark.mpi
def test_a_rank_that_left_its_loop_hears_of_the_stop_at_its_next_call(mpiexec):
    body = f"""
from dataclasses import replace
from hpc_cg.share import Stopped
mine = []
team = replace(team, stop=lambda longest: rank == 1)
for item in team.take(range(12)) if rank == 0 else ():
    mine.append(item)
    break
try:
    if rank == 1:
        for item in team.take(range(12)): pass
    team.barrier()
    mine = ['not stopped']
except Stopped:
    mine.append(99)
{TELL}"""
    assert items_by_rank(run_ranks(mpiexec, 2, body)) == {0: [0, 99], 1: [99]}


@pytest.mark.mpi
def test_all_ranks_hear_what_the_first_one_knows(mpiexec):
    body = f"""
mine = team.tell([3, 1, 4] if rank == 0 else [])
{TELL}"""
    assert items_by_rank(run_ranks(mpiexec, 3, body)) == {member: [3, 1, 4] for member in range(3)}


@pytest.mark.mpi
@pytest.mark.parametrize("failing", [0, 1])
def test_a_failing_rank_does_not_wait_for_the_work_of_the_others(mpiexec, failing):
    body = f"""
with allocation.abort_together():
    for item in team.take(range(1000)):
        if rank == {failing}: raise BadFrames("reading a.trr", "no numbers in frame 7", "remove that frame")
        time.sleep(0.1)
    team.barrier()
"""
    start = time.monotonic()
    done = run_ranks(mpiexec, 3, body)
    assert time.monotonic() - start < 10
    assert done.returncode != 0
    assert "reading a.trr: found no numbers in frame 7. Remove that frame." in done.stderr


@pytest.mark.mpi
def test_one_failing_rank_ends_all_with_its_sentence(mpiexec):
    body = """
with allocation.abort_together():
    for item in team.take(range(8)):
        if item == 5: raise BadFrames("reading a.trr", "no numbers in frame 7", "remove that frame")
        time.sleep(0.05)
    team.barrier()
"""
    start = time.monotonic()
    done = run_ranks(mpiexec, 4, body)
    assert time.monotonic() - start < 15
    assert done.returncode != 0
    assert "reading a.trr: found no numbers in frame 7. Remove that frame." in done.stderr


@pytest.mark.mpi
def test_ranks_with_different_plans_are_refused(mpiexec):
    body = """
with allocation.abort_together():
    team.take(range(3 + rank))
"""
    done = run_ranks(mpiexec, 2, body)
    assert done.returncode != 0
    assert "3 to 4 items" in done.stderr


@pytest.mark.mpi
def test_processes_that_srun_started_without_mpi_are_noticed():
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PMI_", "SLURM_"))}
    command = "import os; from jobs.allocation import team_for; team_for(os.environ)"
    done = subprocess.run(
        [sys.executable, "-c", command],
        cwd=ROOT,
        env=environ | {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "found an MPI world of 1" in done.stderr
