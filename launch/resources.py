"""What a job asks of the scheduler; every value is checked, because it ends in a line that a shell reads.

A value is accepted if it is made of known harmless characters only, so neither a newline nor a quote, ``;``,
``$``, ``|``, ``&`` or a bracket can turn one line into two. The flags are those of sbatch (man sbatch).
"""

import re
from dataclasses import dataclass, fields
from typing import Any

from hpc_cg.config import STRICT
from hpc_cg.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,:+-]{0,99}")
FOLDER = re.compile(r"[\w./~%][\w ./%+=@,-]{0,999}")
PROGRAM = re.compile(r"[\w./][\w ./+=@-]{0,999}")
SETUP = re.compile(r"[A-Za-z0-9_./~][A-Za-z0-9_./~:=+,@% -]{0,999}")
SCRATCH = re.compile(r"(?:/|\$(?:TMPDIR|SLURM_TMPDIR)\b)(?:[A-Za-z0-9_./+=@-]|\$(?:USER|SLURM_JOB_ID)\b)*")
"""A folder of a node: variables of these names may stand in it, and are read on the node."""

MPI_KINDS = ("pmi2", "pmix", "cray_shasta", "none")

PATTERNS = {
    "log_folder": (FOLDER, "spaces and _./%+=@,-"),
    "python": (PROGRAM, "spaces and _./+=@-"),
    "container": (SETUP, "spaces and _./~:=+,@%-"),
    "scratch": (SCRATCH, "_./+=@-, and $USER, $SLURM_JOB_ID, in front $TMPDIR, $SLURM_TMPDIR"),
}
OPTIONAL_NAMES = ("partition", "account", "qos", "constraint")
SMALLEST = {
    "nodes": 1,
    "tasks_per_node": 1,
    "cpus_per_task": 1,
    "gpus_per_node": 0,
    "mem_gb": 1,
    "time_minutes": 1,
    "max_attempts": 1,
}


@dataclass(frozen=True)
class Resources:
    """The resources of one job.

    nodes, tasks_per_node, cpus_per_task, gpus_per_node   counts; no GPU is asked for where gpus_per_node is 0
    mem_gb                                     memory per node in GB
    time_minutes                               time limit in minutes
    partition, account, qos, constraint        the site's words; the site's default where empty
    gpu                                        the site's name of a GPU for --gres: "gpu", or "gpu:h100"
    exclude                                    nodes to keep away from
    mpi                                        srun's plugin: pmi2 (MPICH), pmix (Open MPI), cray_shasta, or none
    setup                                      shell lines before the job, e.g. "module load python"
    python                                     the Python to run, on the nodes
    container                                  words before it, e.g. "apptainer exec --nv /images/hpc_cg.sif"
    scratch                                    folder on the node's own disk, for caches; TMPDIR is left alone if empty
    max_attempts                               how often the job may be started again after it stopped or was preempted
    job_name                                   hpc-cg and the stage's name where empty
    log_folder                                 where the job's output goes; must exist when the job starts
    Raises ConfigError that names every field and value that cannot be.
    """

    __pydantic_config__ = STRICT

    nodes: int = 1
    tasks_per_node: int = 1
    cpus_per_task: int = 1
    gpus_per_node: int = 0
    mem_gb: int = 4
    time_minutes: int = 60
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    gpu: str = "gpu"
    exclude: tuple[str, ...] = ()
    mpi: str = "pmi2"
    setup: tuple[str, ...] = ()
    python: str = "python"
    container: str = ""
    scratch: str = ""
    max_attempts: int = 20
    job_name: str = ""
    log_folder: str = "."

    def __post_init__(self) -> None:
        if problems := [problem for field in fields(self) if (problem := self._problem(field.name))]:
            raise ConfigError("resources", problems)

    def _problem(self, name: str) -> str | None:
        """What is wrong with one field, in a sentence, or None."""
        value = getattr(self, name)
        if name in SMALLEST:
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= SMALLEST[name]
            return None if whole else f"{name} = {value!r}: must be a whole number from {SMALLEST[name]} on."
        if name == "mpi":
            return None if value in MPI_KINDS else f"mpi = {value!r}: must be one of {', '.join(MPI_KINDS)}."
        if name == "setup":
            return _setup_problem(value)
        if name == "exclude":
            bad = next((node for node in value if not _is_made_of(NAME, node)), None)
            return None if bad is None else _not_allowed(name, bad, "_.,:+-")
        if name in (*OPTIONAL_NAMES, "job_name", "container", "scratch") and value == "":
            return None
        pattern, allowed = PATTERNS.get(name, (NAME, "_.,:+-"))
        return None if _is_made_of(pattern, value) else _not_allowed(name, value, allowed)

    @property
    def n_tasks(self) -> int:
        """Processes of the job, over all nodes."""
        return self.nodes * self.tasks_per_node

    @property
    def cpus_per_node(self) -> int:
        return self.tasks_per_node * self.cpus_per_task

    @property
    def node_hours(self) -> float:
        """At most, if the time limit is used up once."""
        return self.nodes * self.time_minutes / 60

    @property
    def gpu_hours(self) -> float:
        """At most, if the time limit is used up once."""
        return self.nodes * self.gpus_per_node * self.time_minutes / 60


def _setup_problem(lines: Any) -> str | None:
    if not isinstance(lines, tuple):
        return f"setup = {lines!r}: must be a tuple of lines."
    bad = next((line for line in lines if not _is_made_of(SETUP, line)), None)
    return None if bad is None else _not_allowed("setup", bad, "spaces and _./~:=+,@%-")


def _is_made_of(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _not_allowed(name: str, value: Any, allowed: str) -> str:
    return f"{name} = {value!r}: may hold letters, digits and {allowed} only."
