"""The state of a campaign on one screen: how many members of each group are done, what is shared, what failed and why.

One question to each scheduler, however many members there are; of what several share, one look.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpc_cg.campaign.findings import PAGE
from hpc_cg.campaign.members import Campaign, shared_stages, studies_of
from hpc_cg.errors import SchedulerFailed
from hpc_cg.stages.claims import owner
from hpc_cg.stages.product import State
from hpc_cg.stages.study import Study
from jobs.outcome import Outcomes
from jobs.task import CAMPAIGN
from launch import history, ledger
from launch.campaign_queue import Glance, accounts_of, kinds_submitted_to, of_folder, queues_of
from launch.history import End
from launch.plain import plain
from launch.site import Site
from launch.slurm import Queued
from launch.status import STYLE, Line, doing, survey, with_jobs, wrapped
from launch.words import near

WORDS = ("sealed", "running", "waiting", "failed", "to do")
COLOURS = {"sealed": "green", "running": "cyan", "waiting": "yellow", "failed": "red", "to do": "dim"}
WAITS = "waits for the members"
NAMED, TOLD = 3, 12
"""How many members a sentence names, and how many sentences tell of failures."""


@dataclass(frozen=True)
class MemberState:
    """How a member stands.

    word    one of WORDS
    stage   the first that is not sealed, or that cannot be read, where the member is not at its end
    why     of one that failed: what its job said, or why its folder cannot be read
    job     of one that failed: that job
    live    its own jobs in the queue
    """

    name: str
    group: tuple[str, ...]
    word: str
    stage: str
    why: str
    job: str
    live: tuple[Queued, ...]

    @property
    def told_as(self) -> str:
        """Its name, with the job that failed."""
        return f"{self.name} (job {self.job})" if self.job else self.name


@dataclass(frozen=True)
class Shared:
    """A product that several members share."""

    line: Line
    n_members: int


@dataclass(frozen=True)
class CampaignReport:
    """What there is to tell of a campaign.

    axes      names of those that the groups' labels belong to
    page      the page's path and when it was written, or that it is not there
    writers   jobs in the queue that write it, and ``ends`` of the newest that did not end well
    unknown   what could not be found out, in sentences
    """

    name: str
    axes: tuple[str, ...]
    members: tuple[MemberState, ...]
    shared: tuple[Shared, ...]
    page: str
    writers: tuple[Queued, ...]
    ends: tuple[End, ...]
    unknown: tuple[str, ...]

    @property
    def at_rest(self) -> bool:
        """Whether nothing is in the queue, as far as is known."""
        return not self.unknown and not self.writers and not any(member.live for member in self.members)

    @property
    def unreadable(self) -> bool:
        """Whether there is a folder that cannot be read: a failure without a job."""
        return any(member.word == "failed" and not member.job for member in self.members)


def campaign_report(campaign: Campaign, site: Site) -> CampaignReport:
    """Everything: the products of all members, and the jobs where some were ever submitted."""
    studies = studies_of(campaign)
    looked: dict[tuple[Any, ...], State] = {}
    lines = [survey(study, looked) for study in studies]
    known = [ledger.submissions(study.run_folder) for study in studies]
    of_page = ledger.submissions(campaign.run_folder)
    kinds = kinds_submitted_to([campaign.run_folder, *(study.run_folder for study in studies)])
    wanted = [tuple(line.stage for line in own if line.state != State.SEALED) for own in lines]
    glances: list[tuple[str, tuple[Queued, ...], Any]] = []
    unknown: list[str] = []
    for queue in queues_of(campaign, studies, kinds, site.site.accounting):
        try:
            rows = queue.queue()
        except SchedulerFailed as error:
            unknown.append(f"what is in the queue is not known: {error}")
            continue
        accounts = accounts_of(queue, [*known, of_page], [*wanted, (CAMPAIGN,)], rows)
        glances.append((queue.kind, rows, accounts))
    told, n_lost = [], 0
    for study, own, submitted in zip(studies, lines, known, strict=True):
        seen = [Glance(kind, of_folder(rows, study.run_folder), accounts) for kind, rows, accounts in glances]
        report = with_jobs(study, own, submitted if glances else (), seen)
        told.append(report.lines)
        n_lost += bool(report.unknown)
    if n_lost:
        unknown.append(f"how some jobs of {n_lost} members ended is not known: no accounts are kept, or do not answer")
    in_queue = {row.label: row for _, rows, _ in glances for row in of_folder(rows, campaign.run_folder)}
    newest = history.latest(of_page, CAMPAIGN)
    rows_of_page = {label: row for _, _, accounts in glances for label, row in (accounts or {}).items()} | in_queue
    ends = history.ends(campaign.run_folder, newest, rows_of_page, Outcomes(campaign.run_folder)) if glances else ()
    return CampaignReport(
        campaign.name,
        tuple(axis.name for axis in campaign.axes if axis.name != campaign.config.repeats),
        member_states(campaign, studies, told),
        _shared(studies, told),
        _page(campaign),
        tuple(row for row in in_queue.values() if row.active),
        tuple(end for end in ends if end.cause not in ("", history.UNKNOWN)),
        tuple(unknown),
    )


def member_states(
    campaign: Campaign, studies: Sequence[Study], lines: Sequence[Sequence[Line]]
) -> tuple[MemberState, ...]:
    """How each member stands, from what is known of its stages; and of those of the members that share them."""
    by_folder: dict[Any, list[Line]] = {}
    for study, own in zip(studies, lines, strict=True):
        for line in own:
            by_folder.setdefault(study.folder(line.stage), []).append(line)
    found = []
    for member, study, own in zip(campaign.members, studies, lines, strict=True):
        live = tuple(row for line in own for row in line.live)
        broken = next((line for line in own if line.state is None), None)
        first = broken or next((line for line in own if line.state != State.SEALED), None)
        word, why, job = "to do", "", ""
        if first is None:
            word = "sealed"
        elif broken is not None:
            word, why = "failed", broken.text
        elif live:
            word = "running" if any(row.state != "PENDING" for row in live) else "waiting"
        else:
            sharing = by_folder[study.folder(first.stage)]
            end = next((end for line in sharing for end in line.ends), None)
            if len(sharing) == 1 and owner(study.folder(first.stage)) is not None:
                word = "running"
            elif end is not None and not any(line.live for line in sharing):
                word, why, job = "failed", end.why, end.label
        stage = "" if first is None else first.stage
        found.append(MemberState(study.path.stem, campaign.group(member), word, stage, why, job, live))
    return tuple(found)


def _shared(studies: Sequence[Study], lines: Sequence[Sequence[Line]]) -> tuple[Shared, ...]:
    """Each product that several members share, with the jobs of whichever member makes it."""
    found = []
    for stage, first in shared_stages(studies):
        own = [
            line
            for study, some in zip(studies, lines, strict=True)
            for line in some
            if line.stage == stage and study.folder(stage) == first.folder(stage)
        ]
        live = tuple(row for line in own for row in line.live)
        found.append(Shared(Line(stage, own[0].state, own[0].text, live), len(own)))
    return tuple(found)


def _page(campaign: Campaign) -> str:
    page = campaign.folder / PAGE
    if not page.exists():
        return "not written yet"
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(page.stat().st_mtime))
    return f"{near(page, campaign.path.parent)}, written {when}"


def campaign_lines(told: CampaignReport, width: int) -> list[str]:
    """The report as lines of rich markup."""
    counts = Counter(member.word for member in told.members)
    words = ", ".join(f"{counts[word]} {word}" for word in WORDS if counts[word])
    found = [f"[bold]{plain(told.name)}[/]  {len(told.members)} members: {words}", "", *_table(told), ""]
    for one in told.shared:
        line = one.line
        style = "red" if line.state is None else STYLE[line.state]
        text = "; ".join([line.text, *_live(line.live)] if line.text else _live(line.live))
        head = f"{line.stage:<10} [{style}]{line.word:<10}[/]"
        first, *rest = wrapped(f"{text} (shared by {one.n_members})".strip(), width - 22)
        found += [f"{head} {plain(first)}", *(f"{'':<22}{plain(part)}" for part in rest)]
    live = [row for member in told.members for row in member.live]
    if live:
        jobs = f"{len(live):,} job{'s' * (len(live) > 1)}: {', '.join(_live(live))}"
        found += [plain(part) for part in wrapped(jobs, width)]
    writers = [f"job {row.label} {WAITS if row.reason == 'Dependency' else doing(row)}" for row in told.writers]
    found += [plain(part) for part in wrapped("; ".join([f"page: {told.page}", *writers]), width)]
    for sentence in [*_failures(told.members), *(f"page: job {end.label}: {end.why}" for end in told.ends)]:
        found += [f"[red]{plain(part)}[/]" for part in wrapped(sentence, width)]
    return found + [f"[yellow]{plain(part)}[/]" for sentence in told.unknown for part in wrapped(sentence, width)]


def _live(rows: Sequence[Queued]) -> list[str]:
    """Jobs in the queue, counted by what they do."""
    counts = Counter("run" if row.state != "PENDING" else doing(row) for row in rows)
    return [f"{count:,} {word.replace('waits', 'wait', 1) if count > 1 else word}" for word, count in counts.items()]


def _table(told: CampaignReport) -> list[str]:
    """A row for each group: its labels, and how many of its members stand how."""
    groups: dict[tuple[str, ...], Counter[str]] = {}
    for member in told.members:
        groups.setdefault(member.group, Counter())[member.word] += 1
    widths = [max(map(len, column)) for column in zip(told.axes, *groups, strict=True)]
    label = "  ".join(f"{name:<{width}}" for name, width in zip(told.axes, widths, strict=True))
    rows = [f"[dim]{plain(label)}  {'  '.join(f'{word:>7}' for word in WORDS)}[/]"]
    for group, counts in groups.items():
        label = "  ".join(f"{name:<{width}}" for name, width in zip(group, widths, strict=True))
        cells = (f"[{COLOURS[word]}]{counts[word]:>7}[/]" if counts[word] else f"{'·':>7}" for word in WORDS)
        rows.append(f"{plain(label)}  {'  '.join(cells)}")
    return rows


def _failures(members: Sequence[MemberState]) -> list[str]:
    """A sentence for each failure, once where it is that of several members."""
    said: dict[tuple[str, str], list[str]] = {}
    for member in members:
        if member.word == "failed":
            said.setdefault((member.stage, member.why), []).append(member.told_as)
    found = []
    for (stage, why), names in list(said.items())[:TOLD]:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        found.append(f"{stage} of {', '.join(names[:NAMED])}{more}: {why}")
    if len(said) > TOLD:
        found.append(f"{len(said) - TOLD} more failures: --json tells all")
    return found


def campaign_json(told: CampaignReport) -> dict[str, Any]:
    """The report for scripts."""
    return {
        "campaign": told.name,
        "members": {
            member.name: {
                "group": list(member.group),
                "state": member.word,
                "stage": member.stage,
                "why": member.why,
                "failed": member.job,
                "jobs": [row.label for row in member.live],
            }
            for member in told.members
        },
        "shared": [{"stage": one.line.stage, "state": one.line.word, "members": one.n_members} for one in told.shared],
        "page": {
            "text": told.page,
            "jobs": [row.label for row in told.writers],
            "ends": [{"job": end.label, "why": end.why} for end in told.ends],
        },
        "unknown": list(told.unknown),
    }
