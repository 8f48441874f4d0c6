"""Whether the job that left a claim on a folder is still there: Slurm is asked, for it alone knows of other hosts."""

import re
import shutil
import subprocess

from hpc_cg.stages.claims import Owner

PATIENCE_S = 20.0
JOB = re.compile(r"\d+(_\d+)?")
"""A job of Slurm, or an element of an array."""

ACTIVE = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "CONFIGURING", "SIGNALING", "STAGE_OUT", "RESIZING")


def is_gone(owner: Owner) -> bool:
    """Whether Slurm says that the job of a claim runs no more. Where it is not known, it counts as running."""
    if JOB.fullmatch(owner.job) is None or shutil.which("squeue") is None:
        return False
    line = ["squeue", "--noheader", "--states=all", "--jobs", owner.job, "--format", "%T"]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    if done.returncode:
        return "Invalid job id" in done.stderr
    return not any(state in ACTIVE for state in done.stdout.split())
