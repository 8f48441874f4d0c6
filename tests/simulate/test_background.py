"""Work in the background keeps its order, counts when it is done, and its errors surface."""

import threading

import pytest

from hpc_cg.simulate.background import Background


def test_work_counts_only_once_it_is_done_and_one_piece_at_a_time():
    log, gate = [], threading.Event()
    with Background() as writer:
        writer(lambda: (gate.wait(10), log.append("work 0")), lambda: log.append("done 0"))
        assert log == []
        gate.set()
        for number in (1, 2):
            writer(lambda n=number: log.append(f"work {n}"), lambda n=number: log.append(f"done {n}"))
            assert log[: 2 * number] == [f"{word} {n}" for n in range(number) for word in ("work", "done")]
    assert log == ["work 0", "done 0", "work 1", "done 1", "work 2", "done 2"]


def test_error_of_the_work_is_raised_at_the_next_piece():
    counted = []
    with Background() as writer:
        writer(lambda: 1 / 0, lambda: counted.append(0))
        with pytest.raises(ZeroDivisionError):
            writer(lambda: None, lambda: counted.append(1))
    assert counted == []


def test_error_of_the_last_work_is_raised_at_the_end():
    with pytest.raises(ZeroDivisionError), Background() as writer:
        writer(lambda: 1 / 0, lambda: None)


def test_error_of_the_caller_wins_and_pending_work_is_finished():
    log = []
    with pytest.raises(KeyError), Background() as writer:
        writer(lambda: log.append("work"), lambda: log.append("done"))
        raise KeyError
    assert log == ["work"]
