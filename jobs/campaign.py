"""The page of a campaign, written by a job that runs when all members have ended: what they found, why some did not.

What a member's job said is read from the word that its script left, else from its log. Nobody asks the scheduler here:
of a job that ended without either the page says so, and ``hpc-cg status campaign`` may know more.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpc_cg.campaign.findings import Failure, write_campaign_page
from hpc_cg.campaign.members import read_campaign, studies_of
from hpc_cg.stages.product import State
from hpc_cg.stages.study import Study
from jobs.after import last_words
from jobs.outcome import BEGUN, Outcomes, mark

NOT_BEGUN = "not begun: it was not submitted, or ended while it waited"
STALE = "made with other settings or inputs than the campaign has now"


def write_page(path: Path) -> int:
    """Write the page of the campaign file at ``path``; the exit code is 0 where members failed, too."""
    campaign = read_campaign(path)
    mark(campaign.run_folder, BEGUN)
    studies = studies_of(campaign)
    write_campaign_page(campaign, studies, failures_of(studies))
    return 0


def failures_of(studies: Sequence[Study]) -> tuple[Failure, ...]:
    """For each member that is not at its end: the first stage that is not sealed, and why, as far as it is known."""
    known: dict[tuple[Any, ...], State] = {}
    found = []
    for study in studies:
        states = study.states(known)
        stage = next((name for name in study.stages if states[name] != State.SEALED), None)
        if stage is not None:
            sharing = [one for one in studies if stage in one.stages and one.folder(stage) == study.folder(stage)]
            said = [word for one in sharing if (word := last_failure(one.run_folder, stage)) is not None]
            message, log = said[0] if said else (STALE if states[stage] == State.STALE else NOT_BEGUN, None)
            shared = f" ({len(sharing)} members share it)" if len(sharing) > 1 else ""
            found.append(Failure(study.path.stem, stage + shared, message, str(log or "")))
    return tuple(found)


def last_failure(run_folder: Path, stage: str) -> tuple[str, Path] | None:
    """What the newest job of a stage that did not end well said, and its log; None where all did that began."""
    left = Outcomes(run_folder)
    names = (f"{stage}.*-*.log", f"{stage}-gather.*-*.log")
    logs = [path for name in names for path in (run_folder / "logs").glob(name)]
    for log in sorted(logs, key=lambda path: path.stat().st_mtime, reverse=True):
        label = log.stem.rpartition("-")[2]
        if left.verdicts.get(label) != "done":
            attempts = left.get(label, ())
            why = attempts[-1].why if attempts else ""
            return why or last_words(log) or "it ended without a word", log
    return None
