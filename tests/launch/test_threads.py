"""Each process gets a thread a core, by the count of OpenMP and by MKL's own."""

import pytest

from launch.local import threads


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def test_a_process_has_a_thread_for_each_core():
    assert threads(3) == {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3"}


def test_a_process_has_at_least_one_thread():
    assert threads(0)["OMP_NUM_THREADS"] == "1"


def test_what_a_person_has_set_for_openmp_holds_for_mkl_too(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads(2) == {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def test_each_of_the_two_can_be_set(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "2")
    assert threads(4) == {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "2"}
