"""The jobs that a campaign still needs: a value, computed from the products, the site and what is queued.

    prepare (shared) ─┬▶ kernel (shared) ─┬▶ train … report of one member ─┬▶ the page, however they end
                      └▶ …                └▶ train … report of the next ───┘

Each member has the chain that its study has. A product that several share is in the chain of the first of them, and the
chains of the others wait for its job; beyond that nothing joins them, so a failure stops those that need it alone.
Nothing here asks a scheduler or writes a file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hpc_cg.campaign.members import Campaign
from hpc_cg.errors import QueueFull
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
    Members for which site.max_submit_jobs leaves no room are left out, the last first. Raises ConfigError of what goes
    beyond a partition.
    """
    limit = site.site.max_submit_jobs
    planner = _Planner(site, n_live + 1, limit - n_live - 1 if limit else None, _in_queue(members))  # one is the page
    why = {study.folder(stage): f"{stage}: {words}" for study, one in members for stage, words in one.held.items()}
    ends: list[tuple[int | str, ...]] = []
    names: dict[str, list[str]] = {"sealed": [], "queued": [], "left": []}
    held: dict[str, str] = {}
    for study, situation in members:
        name, reason = study.path.stem, next((why[place] for place in _places(study).values() if place in why), "")
        jobs: tuple[Job, ...] | None = () if reason else planner.jobs_of(study, situation)
        if reason:
            held[name] = reason
        elif jobs is None or (jobs and names["left"]):
            names["left"].append(name)
        elif not jobs:
            names["queued" if situation.live else "sealed"].append(name)
        jobs = () if jobs is None or names["left"] else jobs
        waits = ends[-at_once] if at_once and len(ends) >= at_once and not situation.live else ()
        last = planner.add(study, jobs, waits)
        if jobs or situation.live:
            ends.append((*last, *situation.live))
    steps = planner.steps
    if steps or not (page_live or names["left"] or not (names["queued"] or page_due)):
        before = tuple(one for end in ends for one in end) + page_live
        steps.append(Step(campaign, Job(CAMPAIGN, WHOLE, (), site.resources(CAMPAIGN), (), however=before)))
    sealed, queued, left = map(tuple, names.values())
    return CampaignPlan(tuple(steps), sealed, queued, left, held)


@dataclass
class _Planner:
    """The jobs of the members so far.

    n_live     jobs in the queue, and room for how many more there is: None for any number
    in_queue   numbers of the jobs in the queue that seal a product, by its folder
    makers     places of the steps that do
    """

    site: Site
    n_live: int
    room: int | None
    in_queue: Mapping[Path, tuple[str, ...]]
    steps: list[Step] = field(default_factory=list)
    makers: dict[Path, int] = field(default_factory=dict)

    def jobs_of(self, study: Study, situation: Situation) -> tuple[Job, ...] | None:
        """The chain of a member; None where there is no room for it."""
        places = _places(study)
        try:
            chain = chain_of(
                study,
                study.stages,
                self.site,
                {stage: self.in_queue[place] for stage, place in places.items() if place in self.in_queue},
                situation.lessons,
                self.n_live,
                situation.states,
                [step.job for step in self.steps],
                {stage: self.makers[place] for stage, place in places.items() if place in self.makers},
            )
        except QueueFull:
            return None
        n_jobs = sum(job.n_elements for job in (*(step.job for step in self.steps), *chain.jobs))
        return chain.jobs if self.room is None or not chain.jobs or n_jobs <= self.room else None

    def add(self, study: Study, jobs: Sequence[Job], waits: tuple[int | str, ...]) -> tuple[int, ...]:
        """Add a chain whose first jobs wait for others, however these end; the places of those of it that end last.

        These are its last one, and arrays: their elements go on when what waited for them has been removed, as one of
        them failed.
        """
        first, last = len(self.steps), []
        for place, job in enumerate(jobs, first):
            begins = not any(before >= first for before in job.after)
            self.steps.append(Step(study, replace(job, however=waits) if begins else job))
            if not job.parts:
                self.makers[study.folder(job.stage)] = place
            if job.parts or place == first + len(jobs) - 1:
                last.append(place)
        return tuple(last)


def _places(study: Study) -> dict[str, Path]:
    return {stage: study.folder(stage) for stage in study.stages}


def _in_queue(members: Sequence[tuple[Study, Situation]]) -> dict[Path, tuple[str, ...]]:
    """Numbers of the jobs in the queue that seal a product, by its folder, whichever member's they are."""
    found: dict[Path, tuple[str, ...]] = {}
    for study, situation in members:
        for stage, numbers in situation.queued.items():
            place = study.folder(stage)
            found[place] = tuple(dict.fromkeys([*found.get(place, ()), *numbers]))
    return found
