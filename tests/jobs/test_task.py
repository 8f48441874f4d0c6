"""What a job carries is small, plain, and says all that is to be done."""

import pickle
import signal

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import asked
from jobs.__main__ import task_of
from jobs.task import PART, Task, compress, expand


@given(st.sets(st.integers(0, 3000), min_size=1))
def test_numbers_survive_being_shortened(numbers: set[int]) -> None:
    text = compress(sorted(numbers))
    assert expand(text) == tuple(sorted(numbers))
    assert PART.fullmatch(text)


@given(st.integers(0, 200), st.integers(1, 20))
def test_shares_of_all_items_are_disjoint_and_together_all(n_items: int, count: int) -> None:
    shares = [Task("s.toml", "kernel", f"{number}/{count}").items(n_items) for number in range(count)]
    assert sorted(item for share in shares for item in share) == list(range(n_items))


def test_a_part_names_its_items() -> None:
    assert Task("s.toml", "simulate", "0-2,7").items(5) == (0, 1, 2)
    assert Task("s.toml", "simulate", "0-2,7").items(8) == (0, 1, 2, 7)
    assert Task("s.toml", "simulate").items(8) == Task("s.toml", "simulate", "gather").items(8) == ()


@pytest.mark.parametrize("part", ["whole", "gather", "0-3,7", "2/16"])
def test_a_task_is_its_command_line(part: str) -> None:
    task = Task("/a b/s.toml", "simulate", part, "/c/copy.toml")
    assert task_of(task.words) == task


@pytest.mark.parametrize("part", ["", "a", "1;2", "0--3", "1/", "$(id)"])
def test_other_parts_are_no_parts(part: str) -> None:
    with pytest.raises(AssertionError):
        Task("s.toml", "simulate", part)
    with pytest.raises(SystemExit):
        task_of(["simulate", "s.toml", "--part", part])


def test_a_payload_is_a_few_hundred_bytes_by_reference() -> None:
    content = cloudpickle.dumps(Task("/scratch/u/study.toml", "simulate", "0-3", "/scratch/u/run/jobs/a.toml"))
    assert len(content) < 400
    assert pickle.loads(content) == Task("/scratch/u/study.toml", "simulate", "0-3", "/scratch/u/run/jobs/a.toml")


def test_signals_have_one_owner() -> None:
    """What a transport's worker does with signals is over when a task begins."""
    numbers = (signal.SIGCONT, signal.SIGTERM, signal.SIGUSR2)
    before = {number: signal.signal(number, lambda number, frame: None) for number in (*numbers, signal.SIGINT)}
    try:
        asked.listen("report", {"SLURM_JOB_ID": "7"})
        assert [signal.getsignal(number) for number in numbers] == [signal.SIG_DFL] * 3
        asked.listen("train", {"SLURM_JOB_ID": "7"})
        assert signal.getsignal(signal.SIGUSR2) == signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        assert signal.getsignal(signal.SIGCONT) == signal.SIG_DFL
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
