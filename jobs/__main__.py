"""Run one stage of a study, or a part of it, as this process's share: ``python -m jobs STAGE study.toml``.

The same line under mpiexec, srun, torchrun, or alone. Exit codes: 0 sealed (or the part is done), 75 stopped at a safe
place (run again), 1 and 2 an error that was explained on stderr. ``python -m jobs campaign campaign.toml`` writes the
page of a campaign.
"""

import os
import sys

from jobs import asked

if __name__ == "__main__" and len(sys.argv) > 1:
    asked.listen(sys.argv[1], os.environ)

import argparse
import logging
from contextlib import suppress
from pathlib import Path

from hpc_cg.errors import HpcCgError
from hpc_cg.stages.study import read_study
from jobs.allocation import abort_together
from jobs.campaign import write_page
from jobs.changed import check_unchanged
from jobs.run import run_part, run_stage
from jobs.task import CAMPAIGN, PART, WHOLE, Task

logger = logging.getLogger("hpc-cg")


def task_of(arguments: list[str]) -> Task:
    """The task that a command line names; leaves with 2 and a usage line where it names none."""
    parser = argparse.ArgumentParser(prog="python -m jobs", description=__doc__)
    parser.add_argument("stage", metavar="STAGE")
    parser.add_argument("study", metavar="study.toml")
    parser.add_argument("--part", default=WHOLE, help='"gather", items as "0-3,7", or a share of all items as "2/16"')
    parser.add_argument("--submitted", default="", help="copy of the study file as it was when this was submitted")
    found = parser.parse_args(arguments)
    if PART.fullmatch(found.part) is None:
        parser.error(f"--part {found.part}: must be whole, gather, items like 0-3,7 or a share like 2/16")
    return Task(found.study, found.stage, found.part, found.submitted)


def perform(task: Task) -> int:
    """Do a task; returns its exit code, raises what its stage raises."""
    if task.stage == CAMPAIGN:
        return write_page(Path(task.study))
    study = read_study(Path(task.study))
    if task.submitted:
        check_unchanged(study, task.stage, Path(task.submitted))
    return run_stage(study, task.stage) if task.part == WHOLE else run_part(study, task)


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("submitit").setLevel(logging.WARNING)
    try:
        with abort_together():
            return perform(task_of(arguments))
    except HpcCgError as error:
        logger.error("%s", error)
        return error.exit_code
    except OSError as error:
        logger.error("%s: %s", error.filename or "a file", error.strerror or error)
        return 1
    except KeyboardInterrupt:
        logger.error("interrupted; what was sealed or committed stays, run again to continue")
        return 130


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        sys.exit(main(sys.argv[1:]))
