"""A stage stops by itself before its allocation ends, at a signal, or when the file STOP appears."""

import os
import signal
import time
from pathlib import Path

import pytest

from hpc_cg.errors import BrokenLaunch
from hpc_cg.stages.product import STOP
from jobs.asked import signals_of
from jobs.deadline import MARGIN_S, Deadline, end_of_allocation, seconds_left


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0:45", 45),
        ("29:58", 1798),
        ("1:00:00", 3600),
        ("2-03:04:05", 2 * 86400 + 3 * 3600 + 4 * 60 + 5),
        ("UNLIMITED", None),
        ("INVALID", None),
        ("NOT_SET", None),
        ("", None),
    ],
)
def test_the_time_that_slurm_leaves_is_read(text: str, seconds: float | None) -> None:
    assert seconds_left(text) == seconds


def pretended_squeue(folder: Path, script: str) -> dict[str, str]:
    """The environment of a job whose squeue is ``script``; it counts how often it was asked."""
    path = folder / "squeue"
    path.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n{script}\n')
    path.chmod(0o755)
    return {"SLURM_JOB_ID": "41"}


def test_slurm_is_asked_once_and_only_where_it_has_not_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    environ = pretended_squeue(tmp_path, "echo 1:00:00")
    assert end_of_allocation(environ) == pytest.approx(time.time() + 3600, abs=5)
    assert (tmp_path / "asked").read_text() == "--noheader --jobs 41 --format %L\n"
    assert end_of_allocation(environ | {"SLURM_JOB_END_TIME": "1800000000"}) == 1.8e9
    both = {"HPC_CG_END_TIME": "1900000000", "SLURM_JOB_END_TIME": "1800000000"}
    assert end_of_allocation(environ | both) == 1.9e9
    assert end_of_allocation({}) is None
    assert len((tmp_path / "asked").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("script", "warned"), [("echo UNLIMITED", False), ("echo INVALID", True), ("echo no such job >&2; exit 1", True)]
)
def test_a_job_whose_end_nobody_knows_does_not_stop_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, script: str, warned: bool
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert end_of_allocation(pretended_squeue(tmp_path, script)) is None
    assert ("when job 41 ends is not known" in caplog.text) == warned


def test_without_squeue_a_job_says_that_it_does_not_know_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert end_of_allocation({"SLURM_JOB_ID": "41"}) is None
    assert "squeue" in caplog.text


@pytest.mark.parametrize("text", ["tomorrow", "nan", "inf"])
def test_an_end_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(BrokenLaunch, match="HPC_CG_END_TIME.*seconds since 1970"):
        end_of_allocation({"HPC_CG_END_TIME": text})


def test_a_long_item_is_not_begun_shortly_before_the_end(tmp_path: Path) -> None:
    now = 0.0
    deadline = Deadline(tmp_path, ends_at=1000.0, signals=(), clock=lambda: now)
    assert not deadline.stop()
    now = 1000 - MARGIN_S - 199
    assert not deadline.stop(99.0)
    assert deadline.stop(100.0)
    assert deadline.stop(1.0), "the items of the next pass may be as long"


def test_without_an_end_items_may_take_any_time(tmp_path: Path) -> None:
    assert not Deadline(tmp_path, ends_at=None, signals=()).stop(1e9)


def test_the_file_stop_is_seen_within_a_second_and_rarely_looked_for(tmp_path: Path) -> None:
    deadline = Deadline(tmp_path, ends_at=None, signals=())
    assert not deadline.stop()
    (tmp_path / STOP).touch()
    assert not deadline.stop()
    time.sleep(1.05)
    assert deadline.stop()
    (tmp_path / STOP).unlink()
    assert deadline.stop(), "who was asked stays asked"


@pytest.fixture
def handlers():
    """The signal handlers of the tests themselves, put back afterwards."""
    numbers = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_asks_to_stop(tmp_path: Path, handlers, number: signal.Signals) -> None:
    deadline = Deadline(tmp_path, ends_at=None, signals=(number,))
    assert not deadline.stop()
    os.kill(os.getpid(), number)
    assert deadline.stop()


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, handlers) -> None:
    deadline = Deadline(tmp_path, ends_at=None, signals=(signal.SIGINT,))
    os.kill(os.getpid(), signal.SIGINT)
    assert deadline.stop()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_sigterm_is_a_request_inside_a_slurm_job_and_an_end_elsewhere() -> None:
    assert signal.SIGTERM in signals_of("prepare", {"SLURM_JOB_ID": "41"})
    assert signals_of("prepare", {}) == (signal.SIGUSR2,)
    assert signal.SIGINT in signals_of("train", {})
