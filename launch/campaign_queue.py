"""What the queues tell of all members of a campaign, with one question for all of them."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hpc_cg.campaign.members import Campaign, studies_of
from hpc_cg.errors import SchedulerFailed
from hpc_cg.stages.study import Study
from launch import history, ledger
from launch.cluster import Cluster, Queue, cluster_of, mark_in, mark_of
from launch.local_cluster import queue_folder
from launch.slurm import Queued


@dataclass(frozen=True)
class Glance:
    """What a cluster told of one run folder, when it was asked for many at once."""

    kind: str
    rows: tuple[Queued, ...]
    accounts: Mapping[str, Queued] | None

    def queue(self) -> tuple[Queued, ...]:
        return self.rows

    def ended(self, labels: Sequence[str]) -> Mapping[str, Queued] | None:
        if self.accounts is None:
            return None
        return {label: self.accounts[label] for label in labels if label in self.accounts}


def of_folder(rows: Sequence[Queued], run_folder: Path) -> tuple[Queued, ...]:
    """Those of some jobs that are marked as a run folder's."""
    mark = mark_of(run_folder)
    return tuple(row for row in rows if mark_in(row.comment) == mark)


def accounts_of(
    cluster: Queue,
    known: Sequence[Sequence[ledger.Submission]],
    wanted: Sequence[Sequence[str]],
    rows: Sequence[Queued],
) -> Mapping[str, Queued] | None:
    """How the newest jobs of some stages of many studies ended that are in the queue no more: one question.

    None where nobody keeps accounts, or does not answer.
    """
    seen = {row.label for row in rows}
    labels = [
        label
        for submitted, stages in zip(known, wanted, strict=True)
        for stage in stages
        for job in history.latest(submitted, stage)
        for label in job.labels
        if label not in seen and label.startswith("L") == (cluster.kind == "local")
    ]
    with suppress(SchedulerFailed):  # logs, and what scripts said of themselves, are left
        return cluster.ended(labels) if labels else {}
    return None


def queues_of(
    campaign: Campaign, studies: Sequence[Study], kinds: Sequence[str], accounting: bool
) -> tuple[Cluster, ...]:
    """Every queue of some kinds of cluster in which jobs of a campaign may be, that of the campaign itself first.

    On this machine a member has a queue of its own where it was submitted alone, before.
    """
    folders = [campaign.run_folder, *(study.run_folder for study in studies)]
    found = []
    for kind in kinds:
        groups: dict[Path | None, list[Path]] = {}
        for folder in folders:
            place = queue_folder(folder) if kind == "local" else None
            if folder == campaign.run_folder or place is None or place.is_dir():
                groups.setdefault(place, []).append(folder)
        found += [cluster_of(kind, *group, accounting=accounting) for group in groups.values()]
    return tuple(found)


def cluster_for(campaign: Campaign, kind: str, accounting: bool) -> Cluster:
    """The cluster to submit a campaign to."""
    folders = [study.run_folder for study in studies_of(campaign)]
    return cluster_of(kind, campaign.run_folder, *folders, accounting=accounting)


def kinds_submitted_to(folders: Sequence[Path]) -> tuple[str, ...]:
    """The kinds of cluster that something in some run folders was submitted to."""
    return tuple(dict.fromkeys(one.cluster for folder in folders for one in ledger.submissions(folder)))
