"""The chain of jobs that a study still needs: a value, computed from the products, the site and what is queued.

    prepare ─▶ kernel ─▶ train ─▶ simulate (an array) ─▶ simulate, gathered ─▶ aggregate ─▶ report

A stage that is sealed is left out, and so is one that is queued already: later ones then wait for that job. Of an array
only the items that are not done are submitted. Nothing here asks a scheduler or writes a file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import pairwise

from hpc_cg.errors import NotSealed, QueueFull
from hpc_cg.stages.product import State, may_continue
from hpc_cg.stages.study import Study
from jobs.task import CAMPAIGN, GATHER, WHOLE, Task, compress
from launch.ledger import Submittable
from launch.resources import Resources
from launch.site import UNKNOWN_ITEMS, Site

ELEMENT = "element"


@dataclass(frozen=True)
class Job:
    """A job to submit.

    part    "whole" or "gather"; ``parts`` of each element where it is an array
    after     places in the chain of the jobs that must have ended well before it begins
    waits     numbers of jobs in the queue, likewise
    however   places, and numbers in the queue, of jobs that must have ended, well or not
    """

    stage: str
    part: str
    parts: tuple[str, ...]
    resources: Resources
    after: tuple[int, ...]
    waits: tuple[str, ...] = ()
    at_once: int = 0
    however: tuple[int | str, ...] = ()

    @property
    def title(self) -> str:
        if self.stage == CAMPAIGN:
            return "page"
        return f"{self.stage} ({self.part})" if self.part == GATHER else self.stage

    @property
    def n_elements(self) -> int:
        return len(self.parts) or 1

    def tasks(self, study: str, submitted: str) -> tuple[Task, ...]:
        """What its elements are to do, or the job itself."""
        return tuple(Task(study, self.stage, part, submitted) for part in self.parts or (self.part,))


@dataclass(frozen=True)
class Chain:
    """The jobs to submit, in order; and why stages that were asked for are not among them, in words."""

    jobs: tuple[Job, ...]
    sealed: tuple[str, ...]
    queued: Mapping[str, tuple[str, ...]]

    @property
    def node_hours(self) -> float:
        """At most: every job uses its time limit up, once."""
        return sum(job.resources.node_hours * job.n_elements for job in self.jobs)

    @property
    def gpu_hours(self) -> float:
        return sum(job.resources.gpu_hours * job.n_elements for job in self.jobs)


@dataclass(frozen=True)
class Step:
    """A job to submit, and whose it is: a study's, or a campaign's, whose page it writes."""

    owner: Submittable
    job: Job


@dataclass(frozen=True)
class Lesson:
    """What an earlier job of a stage taught: memory in GB that it needs, nodes to keep away from, and in words why."""

    mem_gb: int = 0
    exclude: tuple[str, ...] = ()
    why: str = ""


NOTHING_LEARNT = Lesson()


@dataclass
class _Planner:
    study: Study
    site: Site
    states: Mapping[str, State]
    queued: Mapping[str, tuple[str, ...]]
    lessons: Mapping[tuple[str, str], Lesson]
    budget: int | None
    jobs: list[Job]
    last: dict[str, tuple[int, ...]]
    first: int

    @property
    def own(self) -> list[Job]:
        """The jobs of this chain, without those before it."""
        return self.jobs[self.first :]

    def add(self, stage: str) -> None:
        """Add the jobs of a stage that is neither sealed nor queued."""
        after, waits = self._before(stage)
        if not (self.site.is_array(stage) and import_module(f"hpc_cg.stages.{stage}").divisible(self.study)):
            self._put(stage, WHOLE, (), after, waits)
            return
        parts = self._parts(stage)
        limit = self.site.site.max_array_size
        arrays = [parts[first : first + limit] for first in range(0, len(parts), limit)]
        places = [self._put(stage, WHOLE, array, after, waits) for array in arrays]
        self._put(stage, GATHER, (), tuple(places) or after, () if places else waits)

    def _put(
        self, stage: str, part: str, parts: tuple[str, ...], after: tuple[int, ...], waits: tuple[str, ...]
    ) -> int:
        lesson = self.lessons.get((stage, part), NOTHING_LEARNT)
        kind = ELEMENT if parts else GATHER if part == GATHER else ""
        ask = self.site.resources(stage, kind)
        ask = replace(ask, exclude=tuple(sorted({*ask.exclude, *lesson.exclude})))
        if lesson.mem_gb > ask.mem_gb:
            ask = self.site.resources(stage, kind, mem_gb=lesson.mem_gb, exclude=ask.exclude)
        at_once = self.site.wishes(stage).at_once if parts else 0
        self.jobs.append(Job(stage, part, parts, ask, after, waits, at_once))
        place = len(self.jobs) - 1
        self.last[stage] = (place,) if part == GATHER or not parts else (*self.last.get(stage, ()), place)
        return place

    def _before(self, stage: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """What the jobs of a stage wait for: of the stages that it reads, those that no other of them waits for."""
        after: list[int] = []
        waits: list[str] = []
        names = [name for name in self.study.upstream(stage) if name in self.last or name in self.queued]
        for name in names:
            if any(name in self._all_before(other) for other in names if other != name):
                continue
            after += self.last.get(name, ())
            waits += self.queued.get(name, ())
        for name in self.study.upstream(stage):
            if name not in names and self.states[name] != State.SEALED:
                raise NotSealed(
                    f"submitting {stage}",
                    f"{name}, which it reads, {self.states[name]} and not queued",
                    f"submit {name} too: hpc-cg submit all",
                )
        return tuple(after), tuple(waits)

    def _all_before(self, stage: str) -> set[str]:
        names = set(self.study.upstream(stage))
        return names.union(*(self._all_before(name) for name in names))

    def _parts(self, stage: str) -> tuple[str, ...]:
        """The part of each element: the items that are not done, in runs of nearly the same length."""
        wanted = self.site.wishes(stage).array_tasks
        items = pending_items(self.study, stage, self.states)
        if items is None:
            n_parts = self._affordable(wanted or UNKNOWN_ITEMS)
            return tuple(f"{number}/{n_parts}" for number in range(n_parts))
        n_parts = self._affordable(min(wanted or len(items), len(items)))
        cuts = [len(items) * number // n_parts for number in range(n_parts + 1)] if n_parts else [0]
        return tuple(compress(items[first:stop]) for first, stop in pairwise(cuts))

    def _affordable(self, n_parts: int) -> int:
        """At most so many elements that all jobs of the chain may be in the queue at once."""
        if self.budget is None:
            return n_parts
        free = self.budget - len(self.study.stages) - 1 - sum(job.n_elements for job in self.own if job.parts)
        if n_parts and free < 1:
            raise QueueFull(
                "submitting an array",
                f"site.max_submit_jobs = {self.site.site.max_submit_jobs}, which leaves no room beside what is queued",
                f"wait for that, or raise the limit in {self.site.file}",
            )
        return min(n_parts, free)


def pending_items(study: Study, stage: str, states: Mapping[str, State]) -> tuple[int, ...] | None:
    """The items of a stage that are not done; None where their number is not known before its input is there."""
    module = import_module(f"hpc_cg.stages.{stage}")
    ready = all(states[name] == State.SEALED for name in study.upstream(stage))
    if ready and may_continue(study.folder(stage), study.fingerprint(stage), study.intent(stage)):
        return tuple(module.pending(study))
    if ready or stage == "simulate":
        return tuple(range(module.n_items(study)))
    return None


def chain_of(
    study: Study,
    wanted: Sequence[str],
    site: Site,
    queued: Mapping[str, tuple[str, ...]] | None = None,
    lessons: Mapping[tuple[str, str], Lesson] | None = None,
    n_live: int = 0,
    states: Mapping[str, State] | None = None,
    before: Sequence[Job] = (),
    coming: Mapping[str, int] | None = None,
) -> Chain:
    """The chain that makes the wanted stages of a study.

    queued    numbers of the jobs in the queue, for each stage that has some
    lessons   of earlier jobs, for each stage and part ("whole", "gather") that has some
    n_live    jobs that this user has in the queue
    states    of the study's stages, where they are known already
    before    jobs of other studies that are submitted before these: places count from the first of them
    coming    the place of the job among them that seals a stage of this study, too
    Raises NotSealed where a wanted stage reads one that is neither there nor coming, QueueFull where there is no room
    for an array, ConfigError of what goes beyond a partition.
    """
    states, queued, coming = states or study.states(), queued or {}, coming or {}
    limit = site.site.max_submit_jobs
    budget = limit - n_live if limit else None
    last: dict[str, tuple[int, ...]] = {stage: (place,) for stage, place in coming.items()}
    planner = _Planner(study, site, states, queued, lessons or {}, budget, list(before), last, len(before))
    sealed = []
    for stage in study.stages:
        if stage not in wanted or stage in queued or stage in coming:
            continue
        remade = any(name in planner.last or name in queued for name in study.upstream(stage))
        if states[stage] == State.SEALED and not remade:
            sealed.append(stage)
        else:
            planner.add(stage)
    return Chain(tuple(planner.own), tuple(sealed), {name: ids for name, ids in queued.items() if name in wanted})
