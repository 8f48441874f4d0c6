"""``hpc-cg submit campaign``: what is missing of every member goes to the scheduler, and a job that writes the page.

The jobs are those of the members' own studies, in their own ledgers, so every command works on a member, too; only the
page is the campaign's. Submitting again goes on after any end, as for a study. Whoever submits holds the campaign and
all its members, so of two that submit at the same moment the second sees what the first sent.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from hpc_cg.campaign.findings import PAGE
from hpc_cg.campaign.members import Campaign, lay_out, studies_of
from hpc_cg.errors import AlreadySubmitted, ConfigError, QueueFull
from hpc_cg.stages.product import SEALED, State
from hpc_cg.stages.study import Study
from jobs.outcome import Outcomes
from launch import history, ledger
from launch.campaign_plan import CampaignPlan, Situation, plan_campaign
from launch.campaign_queue import Glance, accounts_of, kinds_submitted_to, of_folder, queues_of
from launch.cluster import Cluster
from launch.plan import Lesson, Step
from launch.site import Site
from launch.slurm import Queued
from launch.submit import Say, asked_line, left_over, live_labels, remove_stops, sealing, send, settled, stage_of


def submit_campaign(campaign: Campaign, site: Site, cluster: Cluster, say: Say, at_once: int = 0) -> CampaignPlan:
    """Submit what is missing of a campaign; what that was.

    cluster   one that tells of the jobs of the campaign and of all its members
    at_once   members that may be worked on at the same time; 0 for all
    Raises AlreadySubmitted where all that is missing is in the queue; QueueFull where there was room for some members
    only, once these are submitted; SchedulerFailed, with what was submitted before; UnsafeFolder; ConfigError of the
    site's limits.
    """
    with ExitStack() as held:
        held.enter_context(ledger.submitting(campaign.run_folder))
        studies = lay_out(campaign)
        for study in studies:
            held.enter_context(ledger.submitting(study.run_folder))
        _refuse_if_elsewhere(campaign, studies, cluster)
        rows = settled(cluster)
        members = _situations(studies, site, cluster, rows, say)
        page_live = tuple(row.job for row in of_folder(rows, campaign.run_folder) if row.active)
        plan = plan_campaign(
            campaign, members, site, cluster.n_live, at_once, page_live, page_is_due(campaign, studies)
        )
        for name, why in plan.held.items():
            say(f"{name}: not submitted. {why}")
        if not (plan.steps or plan.left) and plan.queued:
            numbers = {number for _, situation in members for number in situation.live}
            raise AlreadySubmitted(
                f"submitting {campaign.path.name}",
                f"{len(numbers)} jobs of {len(plan.queued)} members in the queue, and the page, job {page_live[-1]}",
                "wait for them (hpc-cg status campaign), or end them with hpc-cg cancel campaign",
            )
        if not plan.steps and plan.left:
            raise _no_room(campaign, plan, site, cluster)
        _send(plan, cluster, say)
    if plan.left:
        raise _no_room(campaign, plan, site, cluster)
    return plan


def _no_room(campaign: Campaign, plan: CampaignPlan, site: Site, cluster: Cluster) -> QueueFull:
    members = len({step.owner.path for step in plan.steps} - {campaign.path})
    done = (
        f"{plan.n_jobs} jobs were submitted, of {members} members and the page" if plan.steps else "none was submitted"
    )
    return QueueFull(
        f"submitting {campaign.path.name}",
        f"site.max_submit_jobs = {site.site.max_submit_jobs} with {cluster.n_live} jobs in the queue before: {done}, "
        f"{len(plan.left)} members are left",
        "submit again when jobs have ended: it goes on with the others",
    )


def page_is_due(campaign: Campaign, studies: Sequence[Study]) -> bool:
    """Whether there is no page, or one that is older than a product it shows."""
    try:
        written = (campaign.folder / PAGE).stat().st_mtime_ns
    except FileNotFoundError:
        return True
    seals = (study.folder("aggregate") / SEALED for study in studies)
    return any(seal.stat().st_mtime_ns > written for seal in seals if seal.exists())


def _situations(
    studies: Sequence[Study], site: Site, cluster: Cluster, rows: Sequence[Queued], say: Say
) -> list[tuple[Study, Situation]]:
    """How every member stands, with one question to the accounts."""
    looked: dict[tuple[Any, ...], State] = {}
    states = [study.states(looked) for study in studies]
    known = [ledger.submissions(study.run_folder) for study in studies]
    wanted = [tuple(stage for stage in one if one[stage] != State.SEALED) for one in states]
    accounts = accounts_of(cluster, known, wanted, rows)
    found = []
    for study, own_states, submitted, stages in zip(studies, states, known, wanted, strict=True):
        mine = of_folder(rows, study.run_folder)
        live = [row for row in mine if row.active]
        queued, held = sealing(live), {}
        if left := left_over(live):
            held[stage_of(left[0])] = (
                f"elements of an array are in the queue, but no job that gathers them ({live_labels(left)}): "
                "submit again when they have ended"
            )
        lessons: dict[tuple[str, str], Lesson] = {}
        glance, words = Glance(cluster.kind, mine, accounts), Outcomes(study.run_folder)
        for stage in stages:
            if stage in queued:
                continue
            try:
                lessons |= history.lessons_of(study, (stage,), site, submitted, words, mine, glance)
            except ConfigError as error:  # of the site's limits, which others may keep
                held[stage] = str(error)
        for (stage, _), lesson in lessons.items():
            if lesson.why:
                say(f"{study.path.stem}, {stage}: {lesson.why}")
        numbers = tuple(dict.fromkeys(row.job for row in live))
        found.append((study, Situation(own_states, queued, numbers, lessons, held)))
    return found


def _refuse_if_elsewhere(campaign: Campaign, studies: Sequence[Study], cluster: Cluster) -> None:
    """Raise AlreadySubmitted where jobs of the campaign are in another queue than that of ``cluster``."""
    kinds = kinds_submitted_to([campaign.run_folder, *(study.run_folder for study in studies)])
    for kind in kinds:
        queues = queues_of(campaign, studies, (kind,), accounting=False)
        for queue in queues[1 if kind == cluster.kind else 0 :]:
            live = [job for job in queue.queue() if job.active]
            if live:
                raise AlreadySubmitted(
                    f"submitting to {cluster.kind}",
                    f"jobs of this campaign in another queue, of {kind}: {live_labels(live)}",
                    "wait for them, or end them with hpc-cg cancel campaign",
                )


def _send(plan: CampaignPlan, cluster: Cluster, say: Say) -> None:
    """Submit the jobs of a plan; a line for each member."""
    steps, said = plan.steps, list[str]()
    for step in steps:
        if isinstance(step.owner, Study):
            remove_stops(step.owner, [step.job])

    def sent_one(place: int, number: str) -> None:
        step = steps[place]
        said.append(f"{step.job.title} {number}")
        if place + 1 == len(steps) or steps[place + 1].owner is not step.owner:
            say(f"{owner_name(step)}: {', '.join(said)}")
            said.clear()

    def told(sent: Sequence[str]) -> str:
        jobs = Counter(owner_name(step) for step in steps[: len(sent)])
        last = owner_name(steps[len(sent)])
        part = f", of which {jobs[last]} are the first of {last}" if last in jobs else ""
        return f"{len(sent)} jobs of {len(jobs)} members{part}"

    send(steps, cluster, sent_one, told, say)


def owner_name(step: Step) -> str:
    """The member that a job belongs to, or the page."""
    return step.owner.path.stem if isinstance(step.owner, Study) else "page"


def dry_run_campaign(campaign: Campaign, site: Site, kind: str, say: Say, at_once: int = 0) -> CampaignPlan:
    """Tell what ``submit_campaign`` would send if nothing were in the queue; asks nobody, writes nothing."""
    studies = studies_of(campaign)
    looked: dict[tuple[Any, ...], State] = {}
    members = [(study, Situation(study.states(looked), {}, (), {}, {})) for study in studies]
    plan = plan_campaign(campaign, members, site, 0, at_once, page_due=page_is_due(campaign, studies))
    unknown = "no site.toml: defaults, limits not checked (hpc-cg doctor writes one)"
    say(f"site: {site.path or (site.site.name if kind == 'local' else unknown)}")
    say(f"{len(studies)} members, {len(plan.sealed)} of them sealed to the end")
    jobs: dict[str, list[Step]] = {}
    for step in plan.steps:
        jobs.setdefault(step.job.title, []).append(step)
    for title, some in jobs.items():
        hours = sum(step.job.resources.node_hours * step.job.n_elements for step in some)
        asked = " or ".join(dict.fromkeys(asked_line(step.job) for step in some))
        say(f"{title:<18} {len(some):>4} × ({asked})" + (f", at most {hours:,.1f} node-hours" * (kind == "slurm")))
    if plan.left:
        limit = site.site.max_submit_jobs
        say(f"site.max_submit_jobs = {limit}: {len(plan.left)} members are left for when you submit again")
    if not plan.steps:
        say("all sealed: nothing to submit")
    elif kind == "slurm":
        say(
            f"in all {plan.n_jobs:,} jobs, at most {plan.node_hours:,.1f} node-hours and "
            f"{plan.gpu_hours:,.1f} GPU-hours: every job its whole time limit, once"
        )
    return plan
