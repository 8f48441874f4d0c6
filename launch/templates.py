"""The text of a batch script: one line per field of Resources, then one srun line, the same for every stage.

The text is a pure function of its arguments, so a test can read it, a dry run can show it, and the folder
slurm_templates/ can hold it for sites that submit by hand. srun repeats --cpus-per-task because Slurm 22.05
to 23.02 do not inherit it from sbatch, and --kill-on-bad-exit lets one dead rank end the step.
"""

import re
import shlex
from pathlib import Path

import jinja2

from hpc_cg.errors import ConfigError
from hpc_cg.files import write_text
from launch.resources import Resources

STUDY_ARGUMENT = "$1"
"""In place of a study's path: the script takes it as its first argument."""

DEFAULTS: dict[str, Resources] = {
    "reference": Resources(tasks_per_node=4, mem_gb=4, time_minutes=240),
    "prepare": Resources(nodes=2, tasks_per_node=16, mem_gb=64, time_minutes=240),
    "kernel": Resources(nodes=1, tasks_per_node=16, mem_gb=64, time_minutes=240),
    "train": Resources(tasks_per_node=4, cpus_per_task=4, gpus_per_node=4, mem_gb=64, time_minutes=1440),
    "simulate": Resources(tasks_per_node=4, cpus_per_task=4, gpus_per_node=4, mem_gb=64, time_minutes=1440),
    "aggregate": Resources(cpus_per_task=4, mem_gb=32, time_minutes=120),
    "report": Resources(mem_gb=8, time_minutes=30),
}
"""What a stage asks for where a site says nothing else."""

_STUDY = re.compile(r"[^\x00-\x1f\x7f]+")
_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # no HTML; Resources and shlex keep the text to what a shell should read
)


def sbatch_text(stage: str, resources: Resources, study: str) -> str:
    """The batch script that runs ``stage`` of the study at path ``study`` (or STUDY_ARGUMENT).

    Raises ConfigError for a stage that does not exist, or a path that no line can hold.
    """
    if stage not in DEFAULTS:
        raise ConfigError("resources", [f"{stage!r} is not a stage. Known: {', '.join(DEFAULTS)}."])
    return _ENVIRONMENT.get_template("job.sbatch.j2").render(
        stage=stage,
        ask=resources,
        job_name=resources.job_name or f"hpc-cg-{stage}",
        signal_seconds=_signal_seconds(resources) if stage == "train" else None,
        study=_study_word(study),
    )


def write_templates(folder: Path) -> None:
    """Write one script per stage, ``sbatch folder/prepare.sbatch study.toml``, with the default resources."""
    for stage, resources in DEFAULTS.items():
        write_text(folder / f"{stage}.sbatch", sbatch_text(stage, resources, STUDY_ARGUMENT))


def _study_word(study: str) -> str:
    if study == STUDY_ARGUMENT:
        return '"${1:?the path of study.toml}"'
    if _STUDY.fullmatch(study) is None or study.startswith("-"):
        raise ConfigError("resources", [f"study = {study!r}: is no path that a batch script can hold."])
    return shlex.quote(study)


def _signal_seconds(resources: Resources) -> int:
    """How long before the time limit training is told to save: a tenth of the limit, at most two minutes."""
    return min(120, 6 * resources.time_minutes)
