"""A campaign on this machine alone: what is shared is made once, and a failing member stops no other but is told of."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy import HEAD, write_archive, write_campaign

from hpc_cg.campaign.members import Campaign, lay_out, read_campaign, studies_of
from hpc_cg.errors import AlreadySubmitted
from hpc_cg.stages.product import State
from jobs.campaign import NOT_BEGUN, failures_of
from jobs.run import run_stage
from launch import ledger
from launch.campaign_queue import queues_of
from launch.campaign_status import campaign_report
from launch.campaign_submit import submit_campaign
from launch.control import cancel_campaign, live_jobs
from launch.local_cluster import LocalCluster, queue_folder
from launch.site import Site, SiteConfig, StageWishes
from launch.status import report
from launch.submit import submit

STAGES = ("prepare", "kernel", "train", "simulate", "aggregate", "report")
SMALL = StageWishes(nodes=1, tasks_per_node=1, cpus_per_task=1, gpus_per_node=0, mem_gb=1)
WISHES = dict.fromkeys((*STAGES, "campaign"), SMALL) | {"simulate": replace(SMALL, array=False)}
SITE = Site(SiteConfig(python=sys.executable), {}, WISHES)
AXIS = """
[[axes]]
name = "batch"
values = [{ label = "usual" }, { label = "vast", train.batch_size = 100000 }]
"""
WRONG_BEADS = """
[[axes]]
name = "beads"
values = [{ label = "none", prepare.beads = ["C"] }]
[[axes]]
name = "repeat"
values = [{ label = "1", train.seed = 1 }, { label = "2", train.seed = 2 }]
"""

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(autouse=True)
def no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever of Slurm is installed here has no jobs of ours."""
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text("#!/bin/sh\nexit 0\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")


def quiet(line: str) -> None:
    pass


def wait_for(happened: Callable[[], Any], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def cluster(campaign: Campaign) -> LocalCluster:
    folders = [study.run_folder for study in studies_of(campaign)]
    return LocalCluster(campaign.run_folder, *folders, n_cores=2)


def wait_for_end(campaign: Campaign) -> None:
    queue = cluster(campaign)
    wait_for(lambda: not any(job.active for job in queue.queue()))


def page_of(campaign: Campaign) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", (campaign.folder / "campaign.html").read_text(encoding="utf-8")).split())


def campaign_in(folder: Path, axes: str = AXIS, head: str = HEAD.replace('repeats = "repeat"\n', "")) -> Campaign:
    write_archive(folder / "archive")
    return read_campaign(write_campaign(folder, axes + '[kernel]\nkind = "none"\n', head))


def test_a_campaign_with_a_failing_member_ends_with_its_page_and_goes_on_when_submitted_again(tmp_path: Path) -> None:
    campaign = campaign_in(tmp_path)
    said: list[str] = []
    submit_campaign(campaign, SITE, cluster(campaign), said.append)
    assert said == [
        "usual: prepare L1, kernel L2, train L3, simulate L4, aggregate L5, report L6",
        "vast: train L7, simulate L8, aggregate L9, report L10",
        "page: page L11",
    ]
    with pytest.raises(AlreadySubmitted, match=r"10 jobs of 2 members in the queue, and the page, job L11"):
        submit_campaign(campaign, SITE, cluster(campaign), quiet)
    usual, vast = studies_of(campaign)
    assert {job.job for job in live_jobs(vast, "local")} == {"L7", "L8", "L9", "L10"}, "of a member, its own alone"
    wait_for_end(campaign)
    assert set(usual.states().values()) == {State.SEALED}
    assert len(list((campaign.folder / "shared").glob("prepare-*"))) == 1
    log = vast.run_folder / "logs" / "train.toy-L7.log"
    why = "batches of 100000 frames: found 930 frames to train on. Lower train.batch_size."
    assert f"member vast train: {why} (log: {log})" in page_of(campaign)
    told = campaign_report(campaign, SITE)
    assert [(one.name, one.word, one.stage, one.job, one.why) for one in told.members] == [
        ("usual", "sealed", "", "", ""),
        ("vast", "failed", "train", "L7", why),
    ]
    assert told.at_rest and [end.why for end in report(vast, SITE).lines[2].ends] == [why]

    campaign.path.write_text(campaign.path.read_text().replace("100000", "16"))
    campaign = read_campaign(campaign.path)
    said.clear()
    submit_campaign(campaign, SITE, cluster(campaign), said.append)
    assert said == ["vast: train L12, simulate L13, aggregate L14, report L15", "page: page L16"]
    cancel_campaign(campaign)
    wait_for_end(campaign)
    for stage in ("train", "simulate", "aggregate", "report"):
        run_stage(lay_out(campaign)[1], stage)
    plan = submit_campaign(campaign, SITE, cluster(campaign), quiet)
    assert [step.job.title for step in plan.steps] == ["page"], "it is older than what it is to show"
    wait_for_end(campaign)
    assert "0 missing" in page_of(campaign)
    assert not submit_campaign(campaign, SITE, cluster(campaign), quiet).steps, "nothing is left"


def test_a_shared_product_that_fails_is_told_of_for_all_who_need_it(tmp_path: Path) -> None:
    campaign = campaign_in(tmp_path, WRONG_BEADS, HEAD)
    submit_campaign(campaign, SITE, cluster(campaign), quiet)
    wait_for_end(campaign)
    told = campaign_report(campaign, SITE)
    assert [(one.word, one.stage, one.job) for one in told.members] == [("failed", "prepare", "L1")] * 2
    assert told.members[0].why == told.members[1].why
    for name in ("none_1", "none_2"):
        assert f"member {name} prepare (2 members share it): " in page_of(campaign)
    states = {job.label: job.state for job in cluster(campaign).queue()}
    assert states.pop("L1") == "FAILED" and states.pop("L11") == "COMPLETED"
    assert set(states.values()) == {"CANCELLED"} and len(states) == 9


def test_a_cancelled_campaign_ends_with_its_page_and_its_members(tmp_path: Path) -> None:
    campaign = campaign_in(tmp_path)
    submit_campaign(campaign, SITE, cluster(campaign), quiet)
    assert cancel_campaign(campaign).startswith("11 jobs of local: L1, L2, L3, ")
    wait_for_end(campaign)
    told = campaign_report(campaign, SITE)
    assert told.at_rest and {one.word for one in told.members} <= {"to do", "failed"}
    assert not (campaign.folder / "campaign.html").exists()
    assert cancel_campaign(campaign) == ""


def test_members_that_were_never_begun_say_so(tmp_path: Path) -> None:
    campaign = campaign_in(tmp_path)
    assert [one.message for one in failures_of(studies_of(campaign))] == [NOT_BEGUN] * 2
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "campaign", str(campaign.path)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert f"usual prepare (2 members share it): {NOT_BEGUN}" in page_of(campaign)


def test_a_member_with_a_queue_of_its_own_gets_that_of_the_campaign_when_it_is_empty(tmp_path: Path) -> None:
    campaign = campaign_in(tmp_path)
    vast = lay_out(campaign)[1]
    alone = LocalCluster(vast.run_folder, n_cores=1)
    submit(vast, ("prepare",), SITE, alone, quiet)
    assert len(queues_of(campaign, studies_of(campaign), ("local",), accounting=False)) == 2
    if any(job.active for job in alone.queue()):
        with pytest.raises(AlreadySubmitted, match="in another queue, of local: L1"):
            submit_campaign(campaign, SITE, cluster(campaign), quiet)
    wait_for(lambda: not any(job.active for job in alone.queue()))
    assert vast.states()["prepare"] == State.SEALED
    submit_campaign(campaign, SITE, cluster(campaign), quiet)
    cancel_campaign(campaign)
    assert queue_folder(vast.run_folder) == queue_folder(campaign.run_folder)
    assert [job.stage for one in ledger.submissions(vast.run_folder) for job in one.jobs][:2] == ["prepare", "train"]
    wait_for_end(campaign)
