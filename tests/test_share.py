"""Shares hold every item once; a team of one stops between two items and never within one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_cg.share import Alone, Share, Stopped, Team


@given(st.integers(1, 9), st.integers(0, 40))
def test_the_shares_hold_every_item_once(count: int, n_items: int) -> None:
    shares = [Share(index, count).of(range(n_items)) for index in range(count)]
    assert sorted(item for share in shares for item in share) == list(range(n_items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_team_of_one_takes_all_and_hears_itself() -> None:
    team = Alone()
    assert isinstance(team, Team)
    assert (list(team.take("abc")), team.tell(7)) == (["a", "b", "c"], 7)


def test_a_team_of_one_that_is_asked_to_stop_ends_what_it_has_begun() -> None:
    done: list[int] = []
    team = Alone(stop=lambda longest: len(done) == 2)
    with pytest.raises(Stopped):
        for item in team.take(range(5)):
            done.append(item)
    assert done == [0, 1]


def test_a_request_to_stop_after_the_last_item_was_handed_out_is_no_stop() -> None:
    done: list[int] = []
    for item in Alone(stop=lambda longest: len(done) == 3).take(range(3)):
        done.append(item)
    assert done == [0, 1, 2]
