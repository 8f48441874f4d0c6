"""Shapes and types of the library are checked while the tests run; fixtures that several folders share.

HPC_CG_REQUIRE names marks, e.g. ``mpi,slurm,compiler``, whose tests must run: a skip of one of them is a failure.
"""

import os
import shutil
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook
from virtual_slurm import running_slurm

os.environ.setdefault("OMP_NUM_THREADS", "1")
# what a shell starts in the background ignores Ctrl-C, and so would all that the tests start
signal.signal(signal.SIGINT, signal.default_int_handler)

_hook = install_import_hook("hpc_cg", "beartype.beartype")

REQUIRED = {mark for mark in os.environ.get("HPC_CG_REQUIRE", "").split(",") if mark}


SLURM = "tests/slurm/"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests on Slurm take longest: where several processes test, one begins with them."""
    items.sort(key=lambda item: not item.nodeid.startswith(SLURM))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of several processes each tests whole files, and one all that is on Slurm: there is one Slurm at a time."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return SLURM if nodeid.startswith(SLURM) else nodeid.partition("::")[0]

    return Scheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the skip of a test that must run into a failure."""
    report = yield
    needed = REQUIRED & {mark.name for mark in item.iter_markers()}
    if report.skipped and needed and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, though HPC_CG_REQUIRE asks for {', '.join(sorted(needed))}: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A file that skips as a whole hides its marks, so that is a failure too where tests must run."""
    report = yield
    if report.skipped and REQUIRED:
        report.outcome = "failed"
    return report


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data that HPC_CG_DATA names; its tests skip where there is none."""
    named = os.environ.get("HPC_CG_DATA")
    if not named or not Path(named).is_dir():
        pytest.skip("HPC_CG_DATA does not name a folder of real data")
    return Path(named)


@pytest.fixture(scope="session")
def mpiexec() -> Path:
    """The launcher of the MPI that mpi4py uses: the one beside this Python, else the one on the path."""
    pytest.importorskip("mpi4py")
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        pytest.skip("no mpiexec beside this Python or on the path")
    return Path(found)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real Slurm of two nodes on this machine; gives the environment in which its commands work.

    The nodes advertise more cores, memory and GPUs than there are, so that real batch scripts are accepted.
    """
    with running_slurm(tmp_path_factory.mktemp("slurm")) as environ:
        yield environ
