"""The text of a batch script: a line per field of Resources, one srun line, and what to do when that has ended.

The text is a pure function of its arguments, so a test can read it, a dry run can show it, and the folder
slurm_templates/ can hold it for sites that submit by hand; what ``hpc-cg submit`` sends differs in the words behind
srun alone. srun repeats --cpus-per-task because Slurm 22.05 to 23.02 do not inherit it from sbatch, and
--kill-on-bad-exit lets one dead rank end the step. The batch shell traps no signal: scancel ends it, so a cancelled job
is never put back.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import jinja2

from hpc_cg.errors import ConfigError
from hpc_cg.files import write_text
from jobs.asked import STOPPABLE
from jobs.task import CAMPAIGN, GATHER, WHOLE, Task
from launch.resources import Resources

STUDY_ARGUMENT = "$1"
"""In place of a study's path: the script takes it as its first argument."""

DEFAULTS: dict[str, Resources] = {
    "reference": Resources(tasks_per_node=4, mem_gb=4, time_minutes=240),
    "prepare": Resources(nodes=2, tasks_per_node=16, mem_gb=64, time_minutes=240),
    "flow": Resources(tasks_per_node=4, cpus_per_task=4, gpus_per_node=4, mem_gb=64, time_minutes=1440),
    "kernel": Resources(nodes=1, tasks_per_node=16, mem_gb=64, time_minutes=240),
    "train": Resources(tasks_per_node=4, cpus_per_task=4, gpus_per_node=4, mem_gb=64, time_minutes=1440),
    "simulate": Resources(tasks_per_node=4, cpus_per_task=4, gpus_per_node=4, mem_gb=64, time_minutes=1440),
    "aggregate": Resources(cpus_per_task=4, mem_gb=32, time_minutes=120),
    "report": Resources(mem_gb=8, time_minutes=30),
}
"""What a stage asks for, as one job, where a site says nothing else."""

_FROM_SHELL = re.compile(r"\$(TMPDIR|SLURM_TMPDIR)\b")
_STUDY = re.compile(r"[^\x00-\x1f\x7f]+")
_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # no HTML; Resources and shlex keep the text to what a shell should read
)


@dataclass(frozen=True)
class Extras:
    """What a script of ``hpc-cg submit`` has beside that of a site's own hands.

    part       of the stage, as in jobs.task
    parts      of each element, where it is an array
    at_once    elements that may run at the same time; 0 for all
    comment    by which the job is recognised in the queue
    run        what srun starts, instead of ``python -m jobs STAGE study.toml``
    before     shell lines before that
    """

    part: str = WHOLE
    parts: tuple[str, ...] = ()
    at_once: int = 0
    comment: str = ""
    run: str = ""
    before: tuple[str, ...] = ()

    @property
    def array(self) -> str:
        """The value of ``--array``; empty where it is none."""
        throttle = f"%{self.at_once}" if 0 < self.at_once < len(self.parts) else ""
        return f"0-{len(self.parts) - 1}{throttle}" if self.parts else ""


def sbatch_text(stage: str, resources: Resources, study: str, extras: Extras | None = None) -> str:
    """The batch script that runs ``stage`` of the study at path ``study`` (or STUDY_ARGUMENT).

    Raises ConfigError for a stage that does not exist, or a path that no line can hold.
    """
    if stage not in (*DEFAULTS, CAMPAIGN):
        raise ConfigError("resources", [f"{stage!r} is not a stage. Known: {', '.join(DEFAULTS)}."])
    extras = extras or Extras()
    job_name = resources.job_name or f"hpc-cg-{stage}"
    python = " ".join(filter(None, [resources.container, shlex.quote(resources.python)]))
    words = _words(stage, study, extras)
    return _ENVIRONMENT.get_template("job.sbatch.j2").render(
        stage=stage,
        ask=resources,
        job_name=job_name,
        extras=extras,
        log=f"{resources.log_folder}/%x-{'%A_%a' if extras.parts else '%j'}.log",
        log_here=f"{log_place(resources.log_folder, job_name)}/{job_name}-$job.log",
        signal_seconds=signal_seconds(resources) if stage in STOPPABLE and extras.part != GATHER else None,
        python=python,
        scratch=_FROM_SHELL.sub(r"${\1:-/tmp}", resources.scratch),
        run=extras.run or f"-m jobs {words}",
        words=words,
    )


def _words(stage: str, study: str, extras: Extras) -> str:
    """The arguments of ``python -m jobs`` and ``python -m jobs.after``, for a shell."""
    if study == STUDY_ARGUMENT:
        return f'{stage} "${{1:?the path of study.toml}}"'
    if _STUDY.fullmatch(study) is None or study.startswith("-"):
        raise ConfigError("resources", [f"study = {study!r}: is no path that a batch script can hold."])
    words = shlex.join(Task(study, stage, extras.part).words)
    return f'{words} --part "${{parts[$SLURM_ARRAY_TASK_ID]}}"' if extras.parts else words


def log_place(folder: str, job_name: str) -> str:
    """The folder of logs that Slurm makes of a pattern, man sbatch, "filename pattern"."""
    return folder.replace("%x", job_name).replace("%%", "%")


def write_templates(folder: Path) -> None:
    """Write one script per stage, ``sbatch folder/prepare.sbatch study.toml``, with the default resources."""
    for stage, resources in DEFAULTS.items():
        write_text(folder / f"{stage}.sbatch", sbatch_text(stage, resources, STUDY_ARGUMENT))


def signal_seconds(resources: Resources) -> int:
    """How long before the time limit a stage is told to stop: a tenth of the limit, at most two minutes."""
    return min(120, 6 * resources.time_minutes)
