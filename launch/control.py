"""What a user does with jobs that run: end them, and read what they say."""

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from hpc_cg.campaign.members import Campaign, studies_of
from hpc_cg.errors import MissingInput
from hpc_cg.stages.study import Study
from jobs.outcome import FOLDER
from launch import ledger
from launch.campaign_queue import kinds_submitted_to, queues_of
from launch.cluster import cluster_of
from launch.slurm import Queued
from launch.submit import live_labels

POLL_S = 0.5
BLOCK = 1 << 16


def kinds_of(study: Study) -> tuple[str, ...]:
    """The kinds of cluster that this study was submitted to, the newest first; Slurm wherever there is one."""
    known = [one.cluster for one in reversed(ledger.submissions(study.run_folder))]
    return tuple(dict.fromkeys([*known, *(["slurm"] if shutil.which("squeue") else [])]))


def live_jobs(study: Study, kind: str) -> tuple[Queued, ...]:
    """This study's jobs that are in the queue of a cluster. Raises SchedulerFailed."""
    return tuple(job for job in cluster_of(kind, study.run_folder, accounting=False).queue() if job.active)


def cancel_jobs(study: Study, stage: str = "") -> str:
    """End the jobs in the queue, or those of one stage, the last of the chain first; which ones, in words."""
    said = []
    with ledger.submitting(study.run_folder):
        for kind in kinds_of(study):
            live = [job for job in live_jobs(study, kind) if not stage or job.comment.split(":")[2] == stage]
            numbers = tuple(dict.fromkeys(job.job for job in reversed(live)))
            if numbers:
                cluster_of(kind, study.run_folder, accounting=False).cancel(numbers)
                names = {job.job: job.comment.split(":")[2] for job in live}
                said.append(", ".join(f"{names[number]} {number}" for number in reversed(numbers)))
    return "; ".join(said)


def cancel_campaign(campaign: Campaign) -> str:
    """End every job of a campaign that is in a queue, of all its members and of its page; how many, in words."""
    studies = studies_of(campaign)
    folders = [campaign.run_folder, *(study.run_folder for study in studies)]
    said = []
    with ExitStack() as held:
        for folder in folders:
            if (folder / FOLDER).is_dir():
                held.enter_context(ledger.submitting(folder))
        kinds = dict.fromkeys([*kinds_submitted_to(folders), *(["slurm"] if shutil.which("squeue") else [])])
        for queue in queues_of(campaign, studies, tuple(kinds), accounting=False):
            live = [job for job in queue.queue() if job.active]
            numbers = tuple(dict.fromkeys(job.job for job in reversed(live)))
            if numbers:
                queue.cancel(numbers)
                said.append(f"{len(numbers)} jobs of {queue.kind}: {live_labels(live)}")
    return "; ".join(said)


def newest_log(study: Study, stage: str, label: str = "") -> Path:
    """The log of a stage that was written to last, or that of a job. Raises MissingInput."""
    folder = study.run_folder / "logs"
    names = [f"{stage}.*-{label}.log", f"{stage}-gather.*-{label}.log"] if label else [f"{stage}[.-]*.log"]
    found = [path for name in names for path in folder.glob(name)]
    if not found:
        what = f"job {label} of {stage}" if label else stage
        raise MissingInput(f"the log of {what}", f"none in {folder}", "look with hpc-cg status whether it has begun")
    return max(found, key=lambda path: path.stat().st_mtime)


def follow_log(path: Path, n_lines: int, follow: bool) -> Iterator[str]:
    """The last lines of a log, and where asked what is added later, for ever."""
    with path.open("rb") as file:
        end = path.stat().st_size
        yield from _last_lines(_tail(path, end, n_lines), n_lines)
        file.seek(end)
        rest = b""
        while follow:
            rest += file.read()
            *lines, rest = rest.split(b"\n")
            yield from (line.decode("utf-8", errors="replace") for line in lines)
            time.sleep(POLL_S)


def _last_lines(content: bytes, n_lines: int) -> list[str]:
    return content.decode("utf-8", errors="replace").splitlines()[-n_lines:]


def _tail(path: Path, end: int, n_lines: int) -> bytes:
    """What lies before ``end``, read block by block from behind until it holds enough lines."""
    content, place = b"", end
    with path.open("rb") as file:
        while place and content.count(b"\n") <= n_lines:
            step = min(BLOCK, place)
            place -= step
            file.seek(place)
            content = file.read(step) + content
    return content
