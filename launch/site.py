"""The machine in a file of its own: ``site.toml`` says what the cluster has and what each stage asks of it.

    [site]             account, MPI flavour, setup lines or container, limits on arrays and jobs
    [partitions.NAME]  what a node has, and how long and on how many nodes a job may run
    [stages.NAME]      what a stage asks for, where that is not the default

A request that goes beyond its partition is refused before it is submitted; what a site does not ask for by itself is a
default, and is fitted to the partition. ``hpc-cg doctor`` measures a cluster and writes such a file.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from dataclasses import field as plain_field
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass as checked

from hpc_cg.config import STRICT, did_you_mean, parse_table, read_toml
from hpc_cg.errors import ConfigError
from hpc_cg.stages.study import ARRAYS, UPSTREAM
from jobs.task import CAMPAIGN
from launch.resources import Resources
from launch.templates import DEFAULTS

NAME = "site.toml"
VARIABLE = "HPC_CG_SITE"

ELEMENTS: dict[str, Resources] = {
    "kernel": Resources(cpus_per_task=1, mem_gb=8, time_minutes=240),
    "simulate": Resources(cpus_per_task=4, gpus_per_node=1, mem_gb=16, time_minutes=1440),
}
"""What one element of an array asks for, where a site says nothing else."""

GATHERED = Resources(cpus_per_task=2, mem_gb=32, time_minutes=120)
"""What putting together the parts of an array asks for."""

PAGE = Resources(cpus_per_task=4, mem_gb=32, time_minutes=120)
"""What writing the page of a campaign asks for."""

UNKNOWN_ITEMS = 16
"""Elements of an array whose items are not known yet, as its input is still to be made."""

GATHER = "gather"
"""The name in [stages] of the jobs that put arrays together."""


@checked(frozen=True, config=STRICT)
class SiteConfig:
    """The table [site].

    name               of the cluster, for messages
    account, qos       charged and asked for where a stage names none
    partition          used where a stage names none; the scheduler's own default where empty
    gpu                what --gres calls a GPU: "gpu", or "gpu:h100"
    mpi                srun's flavour: "pmi2", "pmix", "cray_shasta" or "none"
    setup              shell lines before each job, e.g. "module load python"
    container          words before Python, e.g. "apptainer exec --nv /images/hpc_cg.sif"
    python             the Python of the nodes; that of ``hpc-cg submit`` itself where empty
    scratch            folder on a node's own disk; $USER, $SLURM_JOB_ID, and in front $TMPDIR, are read there
    accounting         whether sacct answers
    max_array_size     Slurm's MaxArraySize: indices stay below it
    max_submit_jobs    jobs that one user may have in the queue; 0 for no limit
    max_attempts       how often a job may begin, after time limits and preemptions
    """

    name: str = "cluster"
    account: str = ""
    qos: str = ""
    partition: str = ""
    gpu: str = "gpu"
    mpi: str = "pmi2"
    setup: tuple[str, ...] = ()
    container: str = ""
    python: str = ""
    scratch: str = ""
    accounting: bool = True
    max_array_size: int = Field(default=1001, ge=1)
    max_submit_jobs: int = Field(default=0, ge=0)
    max_attempts: int = Field(default=20, ge=1)


@checked(frozen=True, config=STRICT)
class Partition:
    """A table [partitions.NAME]; a limit of 0 is not known and not checked.

    max_minutes                                  longest time limit
    max_nodes                                    nodes of one job
    cpus_per_node, mem_gb_per_node, gpus_per_node   what a node has; no GPUs where 0
    gpu                                          what --gres calls them here, where not as in [site]
    """

    max_minutes: int = Field(default=0, ge=0)
    max_nodes: int = Field(default=0, ge=0)
    cpus_per_node: int = Field(default=0, ge=0)
    mem_gb_per_node: int = Field(default=0, ge=0)
    gpus_per_node: int = Field(default=0, ge=0)
    gpu: str = ""


@checked(frozen=True, config=STRICT)
class StageWishes:
    """A table [stages.NAME]: fields of Resources, where the defaults do not fit.

    array         whether the stage is an array of jobs that never meet (simulate: yes, kernel: no), not one MPI job
    array_tasks   jobs of that array; 0 for one per item, or 16 where the items are not known yet
    at_once       jobs of the array that may run at the same time; 0 for all
    """

    nodes: int | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    mem_gb: int | None = None
    time_minutes: int | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: tuple[str, ...] | None = None
    mpi: str | None = None
    array: bool | None = None
    array_tasks: int = Field(default=0, ge=0)
    at_once: int = Field(default=0, ge=0)

    @property
    def resources(self) -> dict[str, Any]:
        """What is asked for of Resources' fields."""
        names = {field.name for field in fields(Resources)}
        return {name: value for name, value in vars(self).items() if name in names and value is not None}


@dataclass(frozen=True)
class Site:
    """A site file that was read and found right; a site that says nothing is one without a file.

    path   the file, or None
    """

    site: SiteConfig = plain_field(default_factory=SiteConfig)
    partitions: Mapping[str, Partition] = plain_field(default_factory=dict)
    stages: Mapping[str, StageWishes] = plain_field(default_factory=dict)
    path: Path | None = None

    @property
    def file(self) -> str:
        return self.path.name if self.path else NAME

    def wishes(self, stage: str) -> StageWishes:
        return self.stages.get(stage, StageWishes())

    def is_array(self, stage: str) -> bool:
        """Whether the stage is submitted as an array."""
        wished = self.wishes(stage).array
        return stage in ARRAYS and (stage == "simulate" if wished is None else wished)

    def resources(self, stage: str, part: str = "", **more: Any) -> Resources:
        """What a job of a stage asks for.

        part   "element" of an array, "gather", or empty for the stage as one job
        more   fields that decide over all others, e.g. another attempt's memory
        Raises ConfigError with everything that goes beyond the partition's limits.
        """
        whole = PAGE if stage == CAMPAIGN else DEFAULTS[stage]
        default = {"": whole, "element": ELEMENTS.get(stage), GATHER: GATHERED}[part]
        assert default is not None, f"{stage} has no parts"
        key = GATHER if part == GATHER else stage
        wished = self.wishes(key).resources
        place = str(wished.get("partition") or self.site.partition)
        partition = self.partitions.get(place, Partition())
        site = self.site
        common: dict[str, Any] = {
            "account": site.account,
            "qos": site.qos,
            "partition": place,
            "gpu": partition.gpu or site.gpu,
            "mpi": site.mpi,
            "setup": site.setup,
            "container": site.container,
            "python": str(Path(site.python).expanduser())
            if site.python
            else ("python" if site.container else sys.executable),
            "scratch": site.scratch,
            "max_attempts": site.max_attempts,
        }
        if place and self.partitions and place not in self.partitions:
            known = did_you_mean(place, self.partitions)
            raise ConfigError(self.file, [f"stages.{key}: no partition {place!r} in this file.{known}"])
        asked = replace(_fitted(default, partition, wished), **(common | wished | more))
        problems = list(beyond(asked, partition))
        if problems:
            raise ConfigError(self.file, [f"{stage} {problem}" for problem in problems])
        return asked


def _python(site: SiteConfig) -> str:
    """The Python of the nodes: the one named, that of the container, or the one that runs this."""
    if site.python:
        return str(Path(site.python).expanduser())
    return "python" if site.container else sys.executable


def _fitted(default: Resources, partition: Partition, wished: Mapping[str, Any]) -> Resources:
    """A default made as small as a partition; what is wished for stays, and is checked later."""
    cpus = int(wished.get("cpus_per_task") or default.cpus_per_task)
    tasks = int(wished.get("tasks_per_node") or default.tasks_per_node)
    found = default
    if partition.cpus_per_node:
        together = tasks if "tasks_per_node" in wished else 1
        cpus = cpus if "cpus_per_task" in wished else max(1, min(cpus, partition.cpus_per_node // together))
        tasks = tasks if "tasks_per_node" in wished else min(tasks, max(1, partition.cpus_per_node // cpus))
    gpus = int(wished.get("gpus_per_node", default.gpus_per_node))
    if "gpus_per_node" not in wished and partition != Partition():
        gpus = min(gpus, partition.gpus_per_node)
    if gpus and "tasks_per_node" not in wished:
        tasks = min(tasks, gpus)  # a process for each GPU
    found = replace(found, cpus_per_task=cpus, tasks_per_node=tasks, gpus_per_node=gpus)
    for name, limit in (("nodes", partition.max_nodes), ("mem_gb", partition.mem_gb_per_node)):
        if limit:
            found = replace(found, **{name: min(getattr(found, name), limit)})
    if partition.max_minutes:
        found = replace(found, time_minutes=min(found.time_minutes, partition.max_minutes))
    return found


def beyond(ask: Resources, partition: Partition) -> tuple[str, ...]:
    """A sentence for each thing that goes beyond what a partition has."""
    limits = (
        (ask.nodes, partition.max_nodes, "nodes", "max_nodes"),
        (ask.cpus_per_node, partition.cpus_per_node, "cores per node (tasks × cpus_per_task)", "cpus_per_node"),
        (ask.mem_gb, partition.mem_gb_per_node, "GB per node", "mem_gb_per_node"),
        (ask.time_minutes, partition.max_minutes, "minutes", "max_minutes"),
    )
    found = [
        f"asks {asked} {what}, the partition {ask.partition or '(default)'} has {limit} ({name}). "
        f"Ask less in [stages], or name another partition."
        for asked, limit, what, name in limits
        if limit and asked > limit
    ]
    if partition != Partition() and ask.gpus_per_node > partition.gpus_per_node:
        found.append(
            f"asks {ask.gpus_per_node} GPUs per node, the partition {ask.partition or '(default)'} has "
            f"{partition.gpus_per_node} (gpus_per_node). Ask less in [stages], or name another partition."
        )
    return tuple(found)


def this_machine() -> Site:
    """This machine as a site of one node, for chains without a scheduler; GPUs are not shared out here."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    node = Partition(max_nodes=1, cpus_per_node=len(os.sched_getaffinity(0)), mem_gb_per_node=max(1, memory >> 30))
    return Site(SiteConfig(name="this machine", partition="local", python=sys.executable), {"local": node})


def find_site(study: Path, named: Path | None = None, environ: Mapping[str, str] = os.environ) -> Site:
    """The site file: the one that is named, that of HPC_CG_SITE, the one beside the study, or that of the user.

    A site without a file asks for the defaults and knows no limits. Raises ConfigError, MissingInput.
    """
    if named is None and environ.get(VARIABLE):
        named = Path(environ[VARIABLE])
    if named is not None:
        return read_site(named)
    home = Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "hpc-cg" / NAME
    found = next((path for path in (study.resolve().parent / NAME, home) if path.is_file()), None)
    return Site() if found is None else read_site(found)


def read_site(path: Path) -> Site:
    """Read and check a site file; raises ConfigError with all its mistakes, MissingInput."""
    content = read_toml(path, "site")
    tables = ("site", "partitions", "stages")
    problems = [
        f"{name} is not a table of a site.{did_you_mean(name, tables)}" for name in content if name not in tables
    ]
    site, found = parse_table("site", SiteConfig, content.get("site", {}))
    problems += found
    known = {"partitions": Partition, "stages": StageWishes}
    parsed: dict[str, dict[str, Any]] = {name: {} for name in known}
    for table, cls in known.items():
        rows = content.get(table, {})
        if not isinstance(rows, dict):
            problems.append(f"{table} = {rows!r}: write [{table}.NAME] and its settings below.")
            continue
        for name, row in rows.items():
            parsed[table][name], found = parse_table(f"{table}.{name}", cls, row)
            problems += found
    stages = (*UPSTREAM, GATHER, CAMPAIGN)
    problems += [
        f"stages.{name} is not a stage.{did_you_mean(name, stages)}" for name in parsed["stages"] if name not in stages
    ]
    if problems:
        raise ConfigError(path.name, problems)
    made = Site(site, parsed["partitions"], parsed["stages"], path.resolve())
    for stage in (*UPSTREAM, CAMPAIGN):  # every value is one that a batch script can hold, and within its partition
        for part in ("", *(("element", GATHER) if stage in ARRAYS else ())):
            if (part == "element") == made.is_array(stage) or part == GATHER:
                made.resources(stage, part)
    return made
