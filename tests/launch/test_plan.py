"""The chain is a value: what is missing, in order, each job after those it reads; nobody is asked for it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from toy import write_study

from hpc_cg.errors import AlreadySubmitted, NotSealed, QueueFull
from hpc_cg.stages.study import Study, read_study
from jobs.run import run_part, run_stage
from jobs.task import Task
from launch.plan import Chain, Lesson, chain_of
from launch.site import Site, SiteConfig, StageWishes
from launch.slurm import Queued
from launch.submit import queued_stages

STAGES = ("prepare", "kernel", "train", "simulate", "aggregate", "report")
PLAIN = Site(SiteConfig(python="/opt/python"))


@pytest.fixture
def fresh(tmp_path: Path) -> Study:
    return read_study(write_study(tmp_path))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = read_study(write_study(tmp_path_factory.mktemp("trained"), simulate={"n_replicas": 12}))
    for stage in ("prepare", "kernel", "train"):
        run_stage(study, stage)
    return study


@pytest.fixture
def study(trained: Study, tmp_path: Path) -> Study:
    shutil.copytree(trained.root, tmp_path / "copy")
    return read_study(tmp_path / "copy" / "study.toml")


def titles(chain: Chain) -> list[str]:
    return [job.title for job in chain.jobs]


def site(**stages: dict[str, Any]) -> Site:
    return Site(SiteConfig(python="/opt/python"), {}, {name: StageWishes(**wish) for name, wish in stages.items()})


def test_a_new_study_is_a_chain_of_all_stages(fresh: Study) -> None:
    chain = chain_of(fresh, STAGES, PLAIN)
    assert titles(chain) == ["prepare", "kernel", "train", "simulate", "simulate (gather)", "aggregate", "report"]
    assert [job.after for job in chain.jobs] == [(), (0,), (1,), (2,), (3,), (4,), (5,)]
    assert chain.jobs[3].parts == ("0", "1")
    assert not fresh.run_folder.exists()


def test_what_is_sealed_is_left_out(study: Study) -> None:
    chain = chain_of(study, STAGES, PLAIN)
    assert titles(chain) == ["simulate", "simulate (gather)", "aggregate", "report"]
    assert chain.sealed == ("prepare", "kernel", "train")
    assert chain.jobs[0].after == () and chain.jobs[0].waits == ()


def test_only_the_items_that_are_not_done_are_submitted(study: Study) -> None:
    run_part(study, Task(str(study.path), "simulate", "1,3"))
    chain = chain_of(study, STAGES, PLAIN)
    assert chain.jobs[0].parts == ("0", "2")
    run_part(study, Task(str(study.path), "simulate", "0,2"))
    assert titles(chain_of(study, STAGES, PLAIN)) == ["simulate (gather)", "aggregate", "report"]


def test_blocks_of_another_study_do_not_count(study: Study) -> None:
    run_part(study, Task(str(study.path), "simulate", "1,3"))
    study.path.write_text(study.path.read_text().replace("n_replicas = 12", "n_replicas = 9"))
    assert chain_of(read_study(study.path), STAGES, PLAIN).jobs[0].parts == ("0", "1", "2")


def test_several_items_share_a_job_where_the_site_says_so(study: Study) -> None:
    job = chain_of(study, STAGES, site(simulate={"array_tasks": 3, "at_once": 2})).jobs[0]
    assert job.parts == ("0", "1", "2-3") and job.at_once == 2
    whole = chain_of(study, STAGES, site(simulate={"array": False}))
    assert titles(whole) == ["simulate", "aggregate", "report"] and whole.jobs[0].parts == ()


def test_arrays_are_split_at_the_largest_size(tmp_path: Path) -> None:
    many = read_study(write_study(tmp_path, simulate={"n_replicas": 2500, "group_size": 1}))
    chain = chain_of(many, STAGES, Site(SiteConfig(max_array_size=1000)))
    arrays = [job for job in chain.jobs if job.parts]
    assert [len(job.parts) for job in arrays] == [1000, 1000, 500]
    assert [part for job in arrays for part in job.parts] == [str(number) for number in range(2500)]
    gather = next(job for job in chain.jobs if job.part == "gather")
    assert [chain.jobs[place].stage for place in gather.after] == ["simulate"] * 3


def test_items_share_jobs_where_a_user_may_not_have_so_many(tmp_path: Path) -> None:
    many = read_study(write_study(tmp_path, simulate={"n_replicas": 2500, "group_size": 1}))
    chain = chain_of(many, STAGES, Site(SiteConfig(max_submit_jobs=100)))
    assert sum(job.n_elements for job in chain.jobs) <= 100
    parts = [part for job in chain.jobs for part in job.parts]
    assert sum(len(Task("s", "simulate", part).items(2500)) for part in parts) == 2500
    with pytest.raises(QueueFull, match="leaves no room"):
        chain_of(many, STAGES, Site(SiteConfig(max_submit_jobs=7)))


def test_items_that_are_not_known_yet_are_shares(tmp_path: Path) -> None:
    stored = read_study(write_study(tmp_path, kernel={"draws": "stored"}))
    chain = chain_of(stored, STAGES, site(kernel={"array": True, "array_tasks": 3}))
    assert chain.jobs[1].parts == ("0/3", "1/3", "2/3")


def test_a_stage_in_the_queue_is_waited_for(fresh: Study) -> None:
    chain = chain_of(fresh, STAGES, PLAIN, {"prepare": ("7",), "kernel": ("8",)})
    assert titles(chain)[0] == "train" and chain.jobs[0].waits == ("8",)
    assert chain.queued == {"prepare": ("7",), "kernel": ("8",)}
    assert chain_of(fresh, ("prepare",), PLAIN, {"prepare": ("7",)}).jobs == ()


def test_a_stage_whose_input_is_neither_there_nor_coming_is_refused(fresh: Study) -> None:
    with pytest.raises(NotSealed, match="prepare, which it reads, absent and not queued"):
        chain_of(fresh, ("kernel",), PLAIN)


def test_a_sealed_stage_is_made_again_when_what_it_reads_is(study: Study) -> None:
    chain = chain_of(study, STAGES, PLAIN, {"prepare": ("7",)})
    assert titles(chain)[:2] == ["kernel", "train"]


def test_lessons_are_asked_for(study: Study) -> None:
    lesson = Lesson(mem_gb=64, exclude=("n7",), why="")
    job, gather = chain_of(study, STAGES, PLAIN, {}, {("simulate", "whole"): lesson}).jobs[:2]
    assert (job.resources.mem_gb, job.resources.exclude) == (64, ("n7",))
    assert gather.resources.exclude == ()


def test_hours_are_those_of_all_time_limits(study: Study) -> None:
    chain = chain_of(study, ("simulate",), site(simulate={"time_minutes": 30}, gather={"time_minutes": 60}))
    assert chain.node_hours == pytest.approx(4 * 0.5 + 1)
    assert chain.gpu_hours == pytest.approx(4 * 0.5)


def live(label: str, stage: str, part: str) -> Queued:
    job, _, task = label.partition("_")
    return Queued(job, int(task) if task else None, "RUNNING", comment=f"hpc-cg:abc:{stage}:{part}")


def test_of_an_array_the_job_that_gathers_is_waited_for() -> None:
    rows = [live("6", "train", "whole"), live("7_0", "simulate", "whole"), live("8", "simulate", "gather")]
    assert queued_stages(rows) == {"train": ("6",), "simulate": ("8",)}


def test_elements_that_still_run_without_their_gathering_job_are_waited_for() -> None:
    with pytest.raises(AlreadySubmitted, match=r"7_\[0,2\]"):
        queued_stages([live("7_0", "simulate", "whole"), live("7_2", "simulate", "whole")])
