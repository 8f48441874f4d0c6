import pytest

from hpc_cg.learning.schedule import Progress, Schedule

PLATEAU = Schedule("plateau", 100, 1e-3, 1e-4, 10, factor=0.5, patience=2, stop_after=4)


def looked(errors: list[float], schedule: Schedule = PLATEAU) -> list[Progress]:
    """The progress after each of the looks."""
    found = [Progress()]
    for number, error in enumerate(errors, 1):
        found.append(found[-1].after(10 * number, error, schedule))
    return found[1:]


def test_the_rate_falls_after_looks_without_a_smaller_error_and_not_before():
    reductions = [progress.reductions for progress in looked([5.0, 6.0, 4.0, 4.0, 4.5, 4.1, 4.2, 3.0])]
    assert reductions == [0, 0, 0, 0, 1, 1, 2, 2]
    assert PLATEAU.rate(50, 0) == 1e-3 and PLATEAU.rate(50, 2) == pytest.approx(2.5e-4)


def test_the_rate_of_a_plateau_warms_up_and_has_an_end():
    assert PLATEAU.rate(4, 3) == pytest.approx(5e-4)
    assert PLATEAU.rate(99, 30) == 1e-4


def test_a_cosine_does_not_follow_the_errors():
    cosine = Schedule("cosine", 100, 1e-3, 1e-4, 10, patience=1)
    assert looked([1.0, 2.0, 3.0], cosine)[-1].reductions == 0
    assert cosine.rate(99) == pytest.approx(1e-4, rel=0.01)


def test_training_ends_when_it_has_waited_long_enough_since_the_best_look():
    errors = [5.0, 4.0, 4.1, 4.2, 3.9, 4.0, 4.0, 4.0, 4.0]
    found = looked(errors)
    assert [progress.ended(PLATEAU) for progress in found] == [False] * 8 + [True]
    assert (found[-1].best, found[-1].best_step) == (3.9, 50)
    never = Schedule("plateau", 100, 1e-3, 1e-4, 10)
    assert not looked(errors * 5, never)[-1].ended(never)


def test_an_error_that_is_no_number_is_no_progress():
    found = looked([5.0, float("nan"), 4.0])
    assert [progress.best_step for progress in found] == [10, 10, 30]
    assert looked([float("nan"), 4.0])[-1].best == 4.0
