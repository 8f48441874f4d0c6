"""What became of a job is put together from what its script left, from the scheduler and from its log."""

from pathlib import Path
from typing import Any, cast

import pytest
from toy import write_study

from hpc_cg.errors import ConfigError
from hpc_cg.stages.study import Study, read_study
from jobs.outcome import Attempt, Outcomes
from launch.cluster import Cluster
from launch.history import MEMORY, UNKNOWN, end_of, lessons_of
from launch.ledger import Submission, Submitted
from launch.plan import Lesson
from launch.site import Partition, Site, SiteConfig, StageWishes
from launch.slurm import Queued


def row(state: str, elapsed: str = "1:00", **more: str) -> Queued:
    return Queued("7", None, state, elapsed, **more)


def attempt(verdict: str, why: str = "") -> Attempt:
    return Attempt(0, 1, verdict, why, None, 0.0, "n1")


@pytest.mark.parametrize(
    ("found", "attempts", "log", "cause", "told"),
    [
        (row("COMPLETED"), [attempt("done")], "", "", ""),
        (None, [attempt("done")], "", "", ""),
        (row("FAILED"), [attempt("failed", "no forces")], "", "failed", "no forces"),
        (row("TIMEOUT"), [], "", "failed", "its time limit"),
        (row("PREEMPTED"), [attempt("again")], "", "failed", "preempted"),
        (row("OUT_OF_MEMORY"), [], "", MEMORY, "ran out of memory"),
        (None, [attempt("failed", "slurmstepd: error: Detected 1 oom-kill event(s)")], "", MEMORY, "ran out"),
        (row("FAILED"), [], "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0", MEMORY, "ran out"),
        (row("NODE_FAIL", nodes="n[1-2]", failed_node="n2"), [], "", "node", "n2"),
        (row("CANCELLED", "00:00:00"), [], "", "", ""),
        (row("CANCELLED", "0:10"), [], "", "failed", "cancelled"),
        (None, [], "", UNKNOWN, "not known"),
        (row("FAILED"), [], "hpc-cg: disk full\n", "failed", "it failed: disk full"),
    ],
)
def test_ends(tmp_path: Path, found: Queued | None, attempts: list[Attempt], log: str, cause: str, told: str) -> None:
    path = tmp_path / "a.log"
    path.write_text(log)
    end = end_of("7", found, attempts, path)
    assert end.cause == cause and told in end.why


class Accounts:
    """A cluster of which nothing is known but how jobs ended."""

    kind = "slurm"

    def __init__(self, **rows: Queued):
        self.rows = {name.removeprefix("job"): one for name, one in rows.items()}

    def ended(self, labels: Any) -> dict[str, Queued]:
        return self.rows


def submitted(mem_gb: int = 4) -> list[Submission]:
    resources = {"mem_gb": mem_gb, "partition": "a", "job_name": "train.toy"}
    job = Submitted("7", "train", "whole", (), resources, ())
    return [Submission(1, "", "slurm", "", "", {}, (job,))]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return read_study(write_study(tmp_path))


def site(limit: int) -> Site:
    return Site(SiteConfig(partition="a"), {"a": Partition(mem_gb_per_node=limit)}, {"train": StageWishes(mem_gb=4)})


def learnt(study: Study, here: Site, found: Queued, asked_gb: int = 4) -> dict[str, Lesson]:
    """What is learnt from job 7, which asked for so much memory and ended like this."""
    cluster = cast(Cluster, Accounts(job7=found))
    return lessons_of(study, ["train"], here, submitted(asked_gb), Outcomes(study.run_folder), (), cluster)


def test_what_ran_out_of_memory_asks_for_twice_as_much_and_no_more_than_there_is(study: Study) -> None:
    lesson = learnt(study, site(100), row("OUT_OF_MEMORY"))["train", "whole"]
    assert lesson.mem_gb == 8 and "ran out of 4 GB (job 7)" in lesson.why
    assert learnt(study, site(6), row("OUT_OF_MEMORY"))["train", "whole"].mem_gb == 6
    with pytest.raises(ConfigError, match="ran out of 4 GB"):
        learnt(study, site(4), row("OUT_OF_MEMORY"))


def test_memory_that_was_learnt_once_stays(study: Study) -> None:
    assert learnt(study, site(100), row("TIMEOUT"), asked_gb=16)["train", "whole"].mem_gb == 16


def test_failed_nodes_are_kept_away_from(study: Study) -> None:
    lesson = learnt(study, site(100), row("NODE_FAIL", nodes="n[1-2]", failed_node="n2"))["train", "whole"]
    assert lesson.exclude == ("n2",)


def test_a_plain_failure_teaches_nothing(study: Study) -> None:
    assert learnt(study, site(100), row("FAILED")) == {}
