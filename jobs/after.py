"""After the processes of a job have ended: what has become of it, and should it go on?

    python -m jobs.after STAGE study.toml --code 75 [--part ...] [--log FILE] [--max-attempts N]

The last lines of a batch script call this. It looks at the products, not at the exit code alone: launchers turn codes
into others when the first process to leave ends the rest. It leaves word below <run>/jobs/outcomes and exits with 0
(done), 75 (to be put back into the queue), or the code of the failure.
"""

import argparse
import logging
import os
import platform
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from hpc_cg.campaign.members import read_campaign
from hpc_cg.errors import HpcCgError
from hpc_cg.stages import product
from hpc_cg.stages.study import Study, read_study
from jobs.outcome import BEGUN, STOPPED, Attempt, add_attempt, attempts_of, job_of, take_mark
from jobs.run import PARTIAL
from jobs.task import CAMPAIGN, GATHER, WHOLE, Task

logger = logging.getLogger("hpc-cg")

BEFORE_IT_LISTENED = 128 + 12
"""Exit code of a process that SIGUSR2 ended, while Python itself was starting."""

LAUNCHES, EXPLAINED = 3, (1, 2, 130)
"""How often a job is started whose processes die before they have found one another, as an MPI may under load; those
that leave with one of these codes have explained themselves."""

IDLE_ATTEMPTS = 2
"""So many attempts in a row may end without having finished anything."""

MARK = "hpc-cg: "
BEGIN = "=== hpc-cg "
"""What a log says where an attempt begins."""

NOISE = ("srun:", "slurmstepd", "mpiexec", "Primary job", "===", "[proxy", "[mpiexec", "submitit ")
SHOWN_LINES, LONGEST = 6, 2000
LOOKED_BYTES = 1 << 18


@dataclass(frozen=True)
class Verdict:
    """What becomes of a job: the script's exit code, a word for it, and why."""

    code: int
    word: str
    why: str = ""


def judge(
    code: int,
    complete: bool,
    stopped: bool,
    attempt: int,
    max_attempts: int,
    done: int | None,
    earlier: Iterable[int | None],
    said: str,
    by_hand: bool = False,
    begun: bool = True,
) -> Verdict:
    """Decide, from facts alone.

    code       exit code of the job's processes
    complete   whether the product says that its work is done
    stopped    whether it left word that it stopped at a safe place
    attempt    0 for the first
    done       how many units are done now, and ``earlier`` at the ends of the attempts before
    said       what it said last
    by_hand    whether somebody asks this stage to stop, with a file
    begun      whether its processes had found one another
    """
    if code == 0 or complete:
        return Verdict(0, "done")
    if not begun and code not in EXPLAINED and attempt + 1 < LAUNCHES:
        return Verdict(PARTIAL, "again", "its processes ended before they had found one another")
    if not (stopped or code in (PARTIAL, BEFORE_IT_LISTENED)):
        return Verdict(code, "failed", said)
    if by_hand:
        return Verdict(1, "stopped", f"the file {product.STOP} asked to: submit again to go on")
    if attempt + 1 >= max_attempts:
        return Verdict(1, "stopped", f"it began {attempt + 1} times, as often as it may: submit again to go on")
    before = list(earlier)[-IDLE_ATTEMPTS:]
    if done is not None and len(before) == IDLE_ATTEMPTS and all(one == done for one in before):
        return Verdict(
            1,
            "failed",
            f"{IDLE_ATTEMPTS + 1} attempts in a row finished nothing: give it more time, or make its parts smaller",
        )
    return Verdict(PARTIAL, "again", said)


def after(task: Task, code: int, log: Path | None, max_attempts: int) -> int:
    """Judge this job's attempt, leave word of it, and return the exit code of the script."""
    job = job_of(os.environ)
    said = last_words(log)
    try:
        run_folder, complete, done, by_hand = _facts(task)
    except (HpcCgError, OSError) as error:
        logger.error("%s", error)
        return code or 1
    if job is None:
        return code
    earlier = [one.done for one in attempts_of(run_folder, job.label) if one.attempt < job.attempt]
    stopped, begun = (take_mark(run_folder, job, word) for word in (STOPPED, BEGUN))
    verdict = judge(code, complete, stopped, job.attempt, max_attempts, done, earlier, said, by_hand, begun)
    node = os.environ.get("SLURMD_NODENAME") or platform.node()
    attempt = Attempt(job.attempt, code, verdict.word, verdict.why, done, time.time(), node)
    try:
        add_attempt(run_folder, job.label, attempt)
    except (HpcCgError, OSError) as error:
        logger.error("how this attempt ended could not be written down: %s", error)
    if verdict.word != "done" and verdict.why != said:
        logger.error("%s: %s", task.stage, verdict.why)
    return verdict.code


def _facts(task: Task) -> tuple[Path, bool, int | None, bool]:
    """The run folder; whether the product is there; how much of it; whether somebody asks the stage to stop."""
    if task.stage == CAMPAIGN:  # its page has no seal: the exit code alone says whether it was written
        return read_campaign(Path(task.study)).run_folder, False, None, False
    study = read_study(Path(task.study))
    by_hand = (study.folder(task.stage) / product.STOP).exists()
    return study.run_folder, _complete(study, task), _done(study, task), by_hand


def _complete(study: Study, task: Task) -> bool:
    """Whether the product is there; blocks and shards that were begun for another study do not count."""
    if study.state(task.stage) == product.State.SEALED:
        return True
    if task.part in (WHOLE, GATHER) or not _counts(study, task.stage):
        return False
    module = import_module(f"hpc_cg.stages.{task.stage}")
    return not set(task.items(module.n_items(study))) & set(module.pending(study))


def _done(study: Study, task: Task) -> int | None:
    """Units that are done: of the whole stage, or of this job's items."""
    if task.part == GATHER or not _counts(study, task.stage):
        return None
    if task.part == WHOLE:
        counts = study.done(task.stage)
    else:
        module = import_module(f"hpc_cg.stages.{task.stage}")
        counts = module.done(study, task.items(module.n_items(study)))
    return None if counts is None else counts[0]


def _counts(study: Study, stage: str) -> bool:
    return product.may_continue(study.folder(stage), study.fingerprint(stage), study.intent(stage))


def last_words(log: Path | None) -> str:
    """What the last attempt in a log said: its own sentences where there are any, else its last lines."""
    if log is None:
        return ""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOOKED_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.rstrip() for line in text.rpartition(BEGIN)[2].splitlines() if line.strip()]
    own = dict.fromkeys(line.partition(MARK)[2] for line in lines if line.startswith(MARK))
    if own:
        return "\n".join(own)[-LONGEST:]
    return "\n".join([line for line in lines[1:] if not line.startswith(NOISE)][-SHOWN_LINES:])[-LONGEST:]


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser(prog="python -m jobs.after")
    parser.add_argument("stage")
    parser.add_argument("study")
    parser.add_argument("--code", type=int, required=True)
    parser.add_argument("--part", default=WHOLE)
    parser.add_argument("--log", type=Path, default=None)
    parser.add_argument("--max-attempts", type=int, default=20)
    found = parser.parse_args(arguments)
    return after(Task(found.study, found.stage, found.part), found.code, found.log, found.max_attempts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
