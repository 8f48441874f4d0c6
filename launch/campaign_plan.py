"""The jobs that a campaign still needs: a value, computed from the products, the site and what is queued.

    prepare (shared) ─┬▶ kernel (shared) ─┬▶ train … report of one member ─┬▶ the page, however they end
                      └▶ …                └▶ train … report of the next ───┘

Each member has the chain that its study has. A product that several share is in the chain of the first of them, and the
chains of the others wait for its job; beyond that nothing joins them, so a failure stops those that need it alone.
Nothing here asks a scheduler or writes a file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hpc_cg.campaign.members import Campaign
from hpc_cg.stages.product import State
from hpc_cg.stages.study import Study
from jobs.task import CAMPAIGN, WHOLE
from launch.plan import Job, Lesson, Step, chain_of
from launch.site import Site


@dataclass(frozen=True)
class Situation:
    """How a member stands before it is submitted.

    states    of its stages
    queued    numbers of its own jobs in the queue that seal a stage, by the stage
    live      numbers of all its own jobs in the queue
    lessons   as in ``chain_of``
    held      stages that cannot be submitted now, and why
    """

    states: Mapping[str, State]
    queued: Mapping[str, tuple[str, ...]]
    live: tuple[str, ...]
    lessons: Mapping[tuple[str, str], Lesson]
    held: Mapping[str, str]


@dataclass(frozen=True)
class CampaignPlan:
    """What to submit, in order; each job's ``after`` and ``however`` are places in ``steps``.

    sealed, queued   members of which nothing is left to submit, as all is there, or in the queue
    left             members for which there is no room in the queue
    held             members that cannot go on now, and why
    """

    steps: tuple[Step, ...]
    sealed: tuple[str, ...]
    queued: tuple[str, ...]
    left: tuple[str, ...]
    held: Mapping[str, str]

    @property
    def n_jobs(self) -> int:
        """Jobs as the scheduler counts them: each element of an array is one."""
        return sum(step.job.n_elements for step in self.steps)

    @property
    def node_hours(self) -> float:
        """At most: every job uses its time limit up, once."""
        return sum(step.job.resources.node_hours * step.job.n_elements for step in self.steps)

    @property
    def gpu_hours(self) -> float:
        return sum(step.job.resources.gpu_hours * step.job.n_elements for step in self.steps)


def plan_campaign(
    campaign: Campaign,
    members: Sequence[tuple[Study, Situation]],
    site: Site,
    n_live: int = 0,
    at_once: int = 0,
    page_live: tuple[str, ...] = (),
    page_due: bool = True,
) -> CampaignPlan:
    """The jobs that bring all members to their ends, and the one that then writes the page.

    n_live      jobs that this user has in the queue
    at_once     members that may be worked on at the same time; 0 for all
    page_live   numbers of the jobs in the queue that write the page
    page_due    whether the page has to be written even where nothing else is to be done
    Members for which site.max_submit_jobs leaves no room are left out, the last first. Raises ConfigError of the site's
    limits, also where not even an array of one member has room.
    """
    limit = site.site.max_submit_jobs
    room = limit - n_live - 1 if limit else None  # one is for the page
    in_queue = _in_queue(members)
    why = {study.folder(stage): f"{stage}: {words}" for study, one in members for stage, words in one.held.items()}
    held: dict[str, str] = {}
    steps: list[Step] = []
    makers: dict[Path, int] = {}
    ends: list[tuple[int | str, ...]] = []
    sealed: list[str] = []
    queued: list[str] = []
    left: list[str] = []
    for study, situation in members:
        name, first = study.path.stem, len(steps)
        reasons = [why[place] for stage in study.stages if (place := study.folder(stage)) in why]
        if reasons:
            held[name] = reasons[0]
            ends += [situation.live] if situation.live else []
            continue
        chain = chain_of(
            study,
            study.stages,
            site,
            {stage: in_queue[place] for stage in study.stages if (place := study.folder(stage)) in in_queue},
            situation.lessons,
            n_live + 1,
            situation.states,
            [step.job for step in steps],
            {stage: makers[place] for stage in study.stages if (place := study.folder(stage)) in makers},
        )
        if not chain.jobs:
            (queued if situation.live else sealed).append(name)
        n_jobs = sum(step.job.n_elements for step in steps) + sum(job.n_elements for job in chain.jobs)
        if chain.jobs and (left or (room is not None and n_jobs > room)):
            left.append(name)
            chain = replace(chain, jobs=())
        behind = ends[-at_once] if at_once and len(ends) >= at_once and not situation.live else ()
        for number, job in enumerate(chain.jobs, first):
            begins = not any(before >= first for before in job.after)
            steps.append(Step(study, replace(job, however=behind) if begins else job))
            if not job.parts:
                makers[study.folder(job.stage)] = number
        if chain.jobs or situation.live:
            ends.append((*_ends(chain.jobs, first), *situation.live))
    if steps or (not page_live and (queued or page_due)):
        before = tuple(one for end in ends for one in end) + page_live
        steps.append(Step(campaign, Job(CAMPAIGN, WHOLE, (), site.resources(CAMPAIGN), (), however=before)))
    return CampaignPlan(tuple(steps), tuple(sealed), tuple(queued), tuple(left), held)


def _in_queue(members: Sequence[tuple[Study, Situation]]) -> dict[Path, tuple[str, ...]]:
    """The jobs in the queue that seal a product, by its folder, whichever member's they are."""
    found: dict[Path, tuple[str, ...]] = {}
    for study, situation in members:
        for stage, numbers in situation.queued.items():
            place = study.folder(stage)
            found[place] = tuple(dict.fromkeys([*found.get(place, ()), *numbers]))
    return found


def _ends(jobs: Sequence[Job], first: int) -> tuple[int, ...]:
    """The places of the jobs that are the last to end: that of the chain, and arrays, whose elements all have their own
    end while what waited for them is removed at the first that fails."""
    return tuple(place for place, job in enumerate(jobs, first) if job.parts or place == first + len(jobs) - 1)
