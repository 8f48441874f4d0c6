"""The jobs of a campaign are a value: what is shared is made once, a failure stays where it is, the page comes last."""

from dataclasses import replace
from pathlib import Path

import pytest
from toy import LABELS, SEEDS, write_archive, write_campaign

from hpc_cg.campaign.members import Campaign, lay_out, read_campaign, studies_of
from hpc_cg.stages.product import State
from hpc_cg.stages.study import Study
from jobs.run import run_stage
from launch.campaign_plan import CampaignPlan, Situation, plan_campaign
from launch.site import Site, SiteConfig, StageWishes

PLAIN = Site(SiteConfig(python="/opt/python"))
MEMBERS = ["forces_1", "forces_2", "noise_1", "noise_2"]
OWN = ["train", "simulate", "simulate (gather)", "aggregate", "report"]

Members = list[tuple[Study, Situation]]


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    return read_campaign(write_campaign(tmp_path, LABELS + SEEDS))


def fresh(campaign: Campaign) -> Members:
    """Every member with nothing done and nothing queued."""
    return [(study, Situation(study.states(), {}, (), {}, {})) for study in studies_of(campaign)]


def titles(plan: CampaignPlan) -> list[str]:
    return [f"{step.owner.path.stem} {step.job.title}" for step in plan.steps]


def before(plan: CampaignPlan, title: str) -> list[str]:
    """What a job waits for: titles of jobs of the plan, numbers of those in the queue."""
    job = plan.steps[titles(plan).index(title)].job
    return [*(titles(plan)[place] for place in job.after), *job.waits]


def however(plan: CampaignPlan, title: str) -> list[str]:
    """What a job waits for, however that ends."""
    found = plan.steps[titles(plan).index(title)].job.however
    return [titles(plan)[one] if isinstance(one, int) else one for one in found]


def test_what_members_share_is_made_once_and_waited_for_by_all(campaign: Campaign) -> None:
    plan = plan_campaign(campaign, fresh(campaign), PLAIN)
    first = [f"forces_1 {title}" for title in ("prepare", "kernel", *OWN)]
    second = [f"noise_1 {title}" for title in ("kernel", *OWN)]
    assert titles(plan) == [
        *first,
        *(f"forces_2 {title}" for title in OWN),
        *second,
        *(f"noise_2 {title}" for title in OWN),
        "campaign page",
    ]
    assert before(plan, "forces_2 train") == before(plan, "forces_1 train") == ["forces_1 kernel"]
    assert before(plan, "noise_1 kernel") == ["forces_1 prepare"]
    assert before(plan, "noise_2 train") == ["noise_1 kernel"]
    assert before(plan, "noise_2 report") == ["noise_2 aggregate"]
    assert not (campaign.folder).exists()


def test_the_page_waits_for_every_chain_and_every_array_however_they_end(campaign: Campaign) -> None:
    plan = plan_campaign(campaign, fresh(campaign), PLAIN)
    assert before(plan, "campaign page") == []
    waited = however(plan, "campaign page")
    assert waited == [f"{name} {title}" for name in MEMBERS for title in ("simulate", "report")]


def ends(plan: CampaignPlan, failing: int) -> list[str]:
    """How each job ends, and where the page stands among them, where one fails: as a scheduler would have it."""
    found: list[str] = []
    for place, step in enumerate(plan.steps):
        well = all(found[one] == "done" for one in step.job.after)
        found.append("removed" if not well else "failed" if place == failing else "done")
    return found


def test_a_failure_stops_those_that_need_it_and_no_others(campaign: Campaign) -> None:
    plan = plan_campaign(campaign, fresh(campaign), PLAIN)
    names = titles(plan)

    def stopped(title: str) -> set[str]:
        found = ends(plan, names.index(title))
        assert found[-1] == "done", "the page is written all the same"
        return {name.split()[0] for name, end in zip(names, found, strict=True) if end == "removed"}

    assert stopped("forces_2 train") == {"forces_2"}
    assert stopped("noise_1 kernel") == {"noise_1", "noise_2"}
    assert stopped("noise_2 report") == set()
    assert stopped("forces_1 prepare") == set(MEMBERS)


def test_what_is_queued_is_waited_for_by_all_that_share_it(campaign: Campaign) -> None:
    members = fresh(campaign)
    study, situation = members[0]
    members[0] = (study, replace(situation, queued={"prepare": ("7",), "kernel": ("8",)}, live=("7", "8")))
    plan = plan_campaign(campaign, members, PLAIN)
    assert "forces_1 prepare" not in titles(plan) and "forces_1 kernel" not in titles(plan)
    assert before(plan, "forces_2 train") == ["8"]
    assert before(plan, "noise_1 kernel") == ["7"]
    assert {"7", "8"} < set(however(plan, "campaign page"))


def test_where_all_is_queued_nothing_is_submitted_unless_the_page_is_missing_there(campaign: Campaign) -> None:
    queued = dict.fromkeys(fresh(campaign)[0][0].stages, ("7",))
    members = [(study, replace(one, queued=queued, live=("7",))) for study, one in fresh(campaign)]
    plan = plan_campaign(campaign, members, PLAIN, page_live=("9",))
    assert (plan.steps, plan.queued) == ((), tuple(MEMBERS))
    assert titles(plan_campaign(campaign, members, PLAIN)) == ["campaign page"]


def test_a_second_page_waits_for_the_first(campaign: Campaign) -> None:
    plan = plan_campaign(campaign, fresh(campaign), PLAIN, page_live=("9",))
    assert "9" in however(plan, "campaign page")


def test_at_once_lets_a_member_begin_when_one_before_it_has_ended(campaign: Campaign) -> None:
    plan = plan_campaign(campaign, fresh(campaign), PLAIN, at_once=2)
    assert however(plan, "forces_1 prepare") == however(plan, "forces_2 train") == []
    assert however(plan, "noise_1 kernel") == ["forces_1 simulate", "forces_1 report"]
    assert however(plan, "noise_2 train") == ["forces_2 simulate", "forces_2 report"]
    assert however(plan, "noise_1 train") == []
    assert len(ends(plan, -1)) == len(plan.steps)
    for place, step in enumerate(plan.steps):
        assert all(one < place for one in step.job.however if isinstance(one, int)), (
            "nothing waits for what comes later"
        )


def test_members_for_which_there_is_no_room_are_left_for_later(campaign: Campaign) -> None:
    limited = Site(SiteConfig(max_submit_jobs=30))
    plan = plan_campaign(campaign, fresh(campaign), limited, n_live=10)
    assert plan.left == ("noise_1", "noise_2")
    assert plan.n_jobs <= 20 and titles(plan)[-1] == "campaign page"
    assert not plan_campaign(campaign, fresh(campaign), limited).left
    nothing = plan_campaign(campaign, fresh(campaign), limited, n_live=25)
    assert (nothing.steps, nothing.left) == ((), tuple(MEMBERS))


def test_a_stage_that_cannot_go_on_holds_those_that_share_it_and_no_others(campaign: Campaign) -> None:
    members = fresh(campaign)
    study, situation = members[2]
    members[2] = (study, replace(situation, held={"kernel": "it ran out of memory"}))
    plan = plan_campaign(campaign, members, PLAIN)
    assert plan.held == dict.fromkeys(("noise_1", "noise_2"), "kernel: it ran out of memory")
    assert {title.split()[0] for title in titles(plan)} == {"forces_1", "forces_2", "campaign"}


def test_what_is_sealed_is_left_out(tmp_path: Path) -> None:
    write_archive(tmp_path / "archive")
    campaign = read_campaign(write_campaign(tmp_path, LABELS + SEEDS))
    studies = lay_out(campaign)
    for stage in ("prepare", "kernel"):
        run_stage(studies[0], stage)
    plan = plan_campaign(campaign, fresh(campaign), PLAIN)
    assert not {"forces_1 prepare", "forces_1 kernel"} & set(titles(plan))
    assert before(plan, "forces_2 train") == before(plan, "noise_1 kernel") == []
    assert "noise_1 kernel" in titles(plan)


def test_nothing_is_left_of_a_campaign_that_is_sealed_but_a_page_that_is_due(campaign: Campaign) -> None:
    members = [
        (study, replace(one, states=dict.fromkeys(study.stages, State.SEALED))) for study, one in fresh(campaign)
    ]
    plan = plan_campaign(campaign, members, PLAIN, page_due=False)
    assert (plan.steps, plan.sealed) == ((), tuple(MEMBERS))
    assert titles(plan_campaign(campaign, members, PLAIN, page_due=True)) == ["campaign page"]


def test_hours_are_those_of_all_jobs(campaign: Campaign) -> None:
    hour = StageWishes(time_minutes=60, nodes=1, array=False)
    site = Site(SiteConfig(), {}, dict.fromkeys((*campaign.members[0].tables, "aggregate", "report", "campaign"), hour))
    plan = plan_campaign(campaign, fresh(campaign), site)
    assert plan.node_hours == len(plan.steps) == 1 + 2 + 4 * 4 + 1
