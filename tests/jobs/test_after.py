"""What becomes of a job is decided by its product and by the word it left, not by an exit code alone."""

import json
import time
from pathlib import Path

import pytest
from toy import write_study

from hpc_cg.stages.study import read_study
from jobs import after
from jobs.after import BEFORE_IT_LISTENED, IDLE_ATTEMPTS, judge, last_words
from jobs.outcome import (
    BEGUN,
    STOPPED,
    Attempt,
    JobName,
    Outcomes,
    add_attempt,
    attempts_of,
    job_of,
    mark,
    take_mark,
)
from jobs.run import PARTIAL


def decided(code: int, complete: bool = False, stopped: bool = False, attempt: int = 0, **more: object) -> str:
    facts = {"max_attempts": 5, "done": 10, "earlier": (), "said": "it said so"} | more
    return judge(code, complete, stopped, attempt, **facts).word  # type: ignore[arg-type]


def test_what_is_complete_is_done_whatever_the_launcher_made_of_its_code() -> None:
    assert decided(0) == decided(143, complete=True) == decided(75, complete=True, stopped=True) == "done"


def test_what_stopped_at_a_safe_place_goes_on() -> None:
    assert decided(PARTIAL) == decided(143, stopped=True) == decided(BEFORE_IT_LISTENED) == "again"


@pytest.mark.parametrize("code", [1, 2, 137, 143])
def test_what_failed_is_told_with_its_own_words(code: int) -> None:
    verdict = judge(code, False, False, 0, 5, 10, (), "no forces in a.trr")
    assert (verdict.code, verdict.word, verdict.why) == (code, "failed", "no forces in a.trr")


def test_after_so_many_attempts_it_waits_for_its_user() -> None:
    assert decided(PARTIAL, attempt=3) == "again"
    assert decided(PARTIAL, attempt=4) == "stopped"


def test_attempts_that_finish_nothing_come_to_an_end() -> None:
    idle = (10,) * IDLE_ATTEMPTS
    assert decided(PARTIAL, earlier=idle) == "failed"
    assert decided(PARTIAL, earlier=(9, *idle[1:])) == "again"
    assert decided(PARTIAL, earlier=idle, done=11) == "again"
    assert decided(PARTIAL, earlier=(None,) * IDLE_ATTEMPTS, done=None) == "again"


def test_a_job_is_named_as_its_scheduler_names_it() -> None:
    assert job_of({}) is None
    assert job_of({"SLURM_JOB_ID": "7"}) == JobName("7", 0)
    array = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "1", "SLURM_RESTART_COUNT": "2"}
    assert job_of(array) == JobName("8_1", 2)
    assert job_of(array | {"HPC_CG_JOB": "3_4", "HPC_CG_ATTEMPT": "1"}) == JobName("3_4", 1)


def test_a_mark_belongs_to_one_attempt_and_is_taken_once(tmp_path: Path) -> None:
    mark(tmp_path / "run", STOPPED, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"})
    assert not take_mark(tmp_path / "run", JobName("7", 0), STOPPED)
    assert not take_mark(tmp_path / "run", JobName("7", 1), BEGUN)
    assert take_mark(tmp_path / "run", JobName("7", 1), STOPPED)
    assert not take_mark(tmp_path / "run", JobName("7", 1), STOPPED)
    assert (tmp_path / "run" / "jobs").stat().st_mode & 0o777 == 0o700


def test_a_launch_that_died_before_anything_began_is_tried_again_and_not_for_ever() -> None:
    assert decided(134, begun=False) == decided(15, begun=False, attempt=1) == "again"
    assert decided(134, begun=False, attempt=2) == "failed"
    assert decided(2, begun=False) == decided(134, begun=True) == "failed"


def test_a_stop_by_hand_is_not_put_back() -> None:
    assert decided(PARTIAL, by_hand=True) == decided(143, stopped=True, by_hand=True) == "stopped"


def test_the_last_words_are_those_of_the_last_attempt(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("=== hpc-cg train: job 1, attempt 1\nhpc-cg: old\n=== hpc-cg train: job 1, attempt 2\nsrun: x\n")
    assert last_words(log) == ""
    with log.open("a") as file:
        file.write("Killed\n")
    assert last_words(log) == "Killed"
    with log.open("a") as file:
        file.write("hpc-cg: no space left\nhpc-cg: no space left\nsrun: error: y\n")
    assert last_words(log) == "no space left"
    assert last_words(tmp_path / "none.log") == "" == last_words(None)


def test_a_failure_is_written_down_for_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_study(tmp_path)
    log = tmp_path / "a.log"
    log.write_text("=== hpc-cg prepare: job 7\nhpc-cg: a frame without numbers\n")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    began = time.time()
    mark(tmp_path / "run", BEGUN)
    assert after.main(["prepare", str(path), "--code", "1", "--log", str(log)]) == 1
    (attempt,) = attempts_of(read_study(path).run_folder, "7")
    assert (attempt.code, attempt.verdict, attempt.why) == (1, "failed", "a frame without numbers")
    assert began <= attempt.ended <= time.time()
    content = json.loads((tmp_path / "run" / "jobs" / "outcomes" / "7.failed").read_text())
    assert content[0]["attempt"] == 0


def test_one_listing_tells_how_every_job_ended(tmp_path: Path) -> None:
    run = tmp_path / "run"
    add_attempt(run, "7", Attempt(0, 75, "again", "", 3, 1.0, "n1"))
    add_attempt(run, "31_5", Attempt(0, 0, "done", "", 3, 1.0, "n1"))
    add_attempt(run, "7", Attempt(1, 1, "failed", "no forces", 4, 2.0, "n2"))
    found = Outcomes(run)
    assert found.verdicts == {"7": "failed", "31_5": "done"}
    assert [one.verdict for one in found["7"]] == ["again", "failed"]
    assert sorted(path.name for path in (run / "jobs" / "outcomes").iterdir()) == ["31_5.done", "7.failed"]
