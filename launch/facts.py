"""What Slurm's own programs tell of a cluster: settings, partitions, limits of a user, flavours of MPI.

Each program is asked once, with patience, and read strictly (man scontrol, sinfo, sacctmgr, srun). One that is not
there, fails or does not end leaves its fact unknown and a sentence in ``failures``; nothing here judges.
"""

import getpass
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from itertools import groupby
from typing import TypeVar

from hpc_cg.errors import SchedulerFailed
from jobs.deadline import seconds_left
from launch.resources import MPI_KINDS
from launch.slurm import ask, queue

MB_PER_GB = 1024
"""Slurm's G of --mem: what it calls megabytes, 1024 times."""

UNLIMITED = ("UNLIMITED", "INFINITE", "NONE", "N/A", "(null)", "")
_SETTING = re.compile(r"(\S+)\s*=\s?(.*)")
_SINFO = "%R|%D|%c|%m|%G"
_ACCOUNT_COLUMNS, _QOS_COLUMNS = "Account,MaxSubmit,QOS,DefaultQOS", "Name,MaxSubmitPU"

T = TypeVar("T")


@dataclass(frozen=True)
class Nodes:
    """Nodes of one kind: how many, and what each of them has. ``gpu`` is their name for --gres."""

    count: int
    cpus: int
    mem_mb: int
    gpus: int = 0
    gpu: str = ""

    def __str__(self) -> str:
        gpus = f", {self.gpus} × {self.gpu}" if self.gpus else ""
        return f"{self.count} × ({self.cpus} CPUs, {self.mem_mb // MB_PER_GB} GB{gpus})"


@dataclass(frozen=True)
class PartitionFacts:
    """A partition; limits of 0 are none.

    default, up           whether it is the scheduler's own, and takes jobs
    max_minutes           longest time limit
    max_nodes             nodes of one job
    qos, preempt_mode     the scheduler's words; empty where there is none
    max_cpus, max_mem_mb  of one job on one node
    kinds                 of nodes; empty where sinfo did not tell
    """

    name: str
    default: bool
    up: bool
    max_minutes: int
    max_nodes: int
    qos: str = ""
    preempt_mode: str = ""
    max_cpus: int = 0
    max_mem_mb: int = 0
    kinds: tuple[Nodes, ...] = ()

    @property
    def cpus_per_node(self) -> int:
        """Of the node that has most; 0 where not known."""
        return _smaller(max((kind.cpus for kind in self.kinds), default=0), self.max_cpus)

    @property
    def mem_gb_per_node(self) -> int:
        """Of the node that has most, rounded down; 0 where not known."""
        return _smaller(max((kind.mem_mb for kind in self.kinds), default=0), self.max_mem_mb) // MB_PER_GB

    @property
    def gpus_per_node(self) -> int:
        return max((kind.gpus for kind in self.kinds), default=0)

    @property
    def gpu(self) -> str:
        """What --gres calls the GPUs: with their type where all are of one; empty where there are none."""
        names = {kind.gpu for kind in self.kinds if kind.gpus}
        return names.pop() if len(names) == 1 else "gpu" if names else ""


@dataclass(frozen=True)
class Cluster:
    """What was told; ``failures`` has a sentence for each thing that was not.

    settings          of slurm.conf, as scontrol names and writes them
    flavours          of MPI that srun has and this project speaks
    accounting        whether sacct answers
    max_submit_jobs   of this user; 0 for no limit
    limited_by        where that limit comes from, in words
    """

    settings: Mapping[str, str] = field(default_factory=dict)
    partitions: tuple[PartitionFacts, ...] = ()
    flavours: tuple[str, ...] = ()
    accounting: bool = False
    max_submit_jobs: int = 0
    limited_by: str = ""
    failures: Mapping[str, SchedulerFailed] = field(default_factory=dict)

    def partition(self, name: str) -> PartitionFacts | None:
        """The partition of that name, or the scheduler's default for an empty one."""
        return next((one for one in self.partitions if one.name == name or (not name and one.default)), None)


def ask_cluster(partition: str, account: str, patience_s: float) -> Cluster:
    """Ask all programs; the user's limits are those in the account and the partition that are named."""
    failures: dict[str, SchedulerFailed] = {}

    def attempt(what: str, ask_it: Callable[[], T], otherwise: T) -> T:
        try:
            return ask_it()
        except SchedulerFailed as error:
            failures[what] = error
            return otherwise

    settings: dict[str, str] = attempt(
        "settings", lambda: settings_of(ask(["scontrol", "show", "config"], patience_s)), {}
    )
    if not settings:  # whoever does not answer this will not answer the rest, and each question costs its patience
        return Cluster(failures=failures)
    shown = attempt("partitions", lambda: ask(["scontrol", "show", "partition", "--oneliner"], patience_s), "")
    nodes = attempt("nodes", lambda: ask(["sinfo", "--noheader", "--exact", f"--format={_SINFO}"], patience_s), "")
    partitions: tuple[PartitionFacts, ...] = attempt("partitions", lambda: partitions_of(shown, nodes), ())
    accounting = attempt("accounting", lambda: _accounts_answer(patience_s), False)
    flavours: tuple[str, ...] = attempt("flavours", lambda: flavours_of(ask(["srun", "--mpi=list"], patience_s)), ())
    attempt("queue", lambda: len(queue(patience_s)), 0)
    known = Cluster(settings, partitions, flavours, accounting, failures=failures)
    chosen = known.partition(partition)
    limit, why = attempt("limits", lambda: _ask_limit(account, chosen.qos if chosen else "", patience_s), (0, ""))
    return Cluster(settings, partitions, flavours, accounting, limit, why, failures)


def settings_of(text: str) -> dict[str, str]:
    """The settings of ``scontrol show config``; raises SchedulerFailed where that is something else."""
    found = {match[1]: match[2].strip() for line in text.splitlines() if (match := _SETTING.fullmatch(line))}
    if "ClusterName" not in found:
        raise _unreadable("scontrol show config", text)
    return found


def partitions_of(shown: str, nodes: str) -> tuple[PartitionFacts, ...]:
    """The partitions of ``scontrol show partition --oneliner``, with the kinds of nodes that sinfo tells.

    Raises SchedulerFailed where a line is not of that form.
    """
    kinds = kinds_of(nodes)
    found = []
    for line in filter(str.strip, shown.splitlines()):
        words = dict(word.partition("=")[::2] for word in line.split())
        try:
            found.append(_partition(words, kinds.get(words["PartitionName"], ())))
        except (KeyError, ValueError) as error:
            raise _unreadable("scontrol show partition", line) from error
    return tuple(found)


def _partition(words: Mapping[str, str], kinds: tuple[Nodes, ...]) -> PartitionFacts:
    return PartitionFacts(
        name=words["PartitionName"],
        default=words["Default"] == "YES",
        up=words["State"] == "UP",
        max_minutes=minutes_of(words["MaxTime"]),
        max_nodes=_limit(words["MaxNodes"]) or int(words["TotalNodes"]),
        qos="" if words.get("QoS", "") in UNLIMITED else words["QoS"],
        preempt_mode=words.get("PreemptMode", ""),
        max_cpus=_limit(words.get("MaxCPUsPerNode", "")),
        max_mem_mb=_limit(words.get("MaxMemPerNode", "")),
        kinds=kinds,
    )


def kinds_of(text: str) -> dict[str, tuple[Nodes, ...]]:
    """The kinds of nodes of each partition, from sinfo's columns %R|%D|%c|%m|%G; raises SchedulerFailed."""
    found: dict[str, list[Nodes]] = {}
    for line in filter(str.strip, text.splitlines()):
        try:
            name, count, cpus, mem_mb, gres = line.split("|")
            gpus, gpu = gpus_of(gres)
            kind = Nodes(int(count), int(cpus.rstrip("+")), int(mem_mb.rstrip("+")), gpus, gpu)
        except ValueError as error:
            raise _unreadable("sinfo", line) from error
        found.setdefault(name, []).append(kind)
    return {name: _together(kinds) for name, kinds in found.items()}


def _together(kinds: list[Nodes]) -> tuple[Nodes, ...]:
    """Nodes of one kind counted together: sinfo tells them apart by their state too."""

    def what(one: Nodes) -> tuple[int, int, int, str]:
        return one.cpus, one.mem_mb, one.gpus, one.gpu

    grouped = groupby(sorted(kinds, key=what), what)
    return tuple(Nodes(sum(one.count for one in group), *key) for key, group in grouped)


def gpus_of(gres: str) -> tuple[int, str]:
    """How many GPUs a node has and what --gres calls them, from e.g. ``gpu:h100:4(S:0-1),nvme:1``; 0 and empty if none.

    GPUs of several types on one node are asked for as "gpu".
    """
    words = [word.strip().split(":") for word in re.sub(r"\([^)]*\)", "", gres).split(",")]
    gpus = [word[1:] for word in words if word[0] == "gpu"]
    count = sum(int(word[-1]) if word and word[-1].isdecimal() else 1 for word in gpus)
    kinds = {word[0] if word and not word[0].isdecimal() else "" for word in gpus}
    kind = kinds.pop() if len(kinds) == 1 else ""
    return count, "" if not count else f"gpu:{kind}" if kind else "gpu"


def flavours_of(text: str) -> tuple[str, ...]:
    """The flavours of MPI in the answer of ``srun --mpi=list`` that a site file may name, "none" left out."""
    words = {re.sub(r"_v\d+$", "", word) for word in re.split(r"[\s,:]+", text)}
    return tuple(kind for kind in MPI_KINDS if kind in words and kind != "none")


def minutes_of(limit: str) -> int:
    """A time limit in whole minutes, rounded down; 0 for none. Raises ValueError for what is no time."""
    if limit in UNLIMITED:
        return 0
    seconds = seconds_left(limit)
    if seconds is None:
        raise ValueError(f"{limit!r} is no time limit")
    return int(seconds // 60)


def _ask_limit(account: str, partition_qos: str, patience_s: float) -> tuple[int, str]:
    words = ["sacctmgr", "--noheader", "--parsable2", "show"]
    rows = ask([*words, "assoc", f"user={_user()}", f"format={_ACCOUNT_COLUMNS}"], patience_s)
    qos = ask([*words, "qos", f"format={_QOS_COLUMNS}"], patience_s)
    return submit_limit(rows, qos, account, partition_qos)


def _user() -> str:
    """Who asks; a number where the account has no name here."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def submit_limit(rows: str, qos: str, account: str = "", partition_qos: str = "") -> tuple[int, str]:
    """How many jobs a user may have in the queue, and where that stands; 0 and empty where nothing limits them.

    rows   of ``sacctmgr show assoc``: account, MaxSubmit, QOS, default QOS
    qos    of ``sacctmgr show qos``: name, MaxSubmitPU
    The smallest counts, among those of the account, its QOS and the partition's. Raises SchedulerFailed.
    """
    mine = [row for row in _cells(rows, 4, "sacctmgr show assoc") if account in ("", row[0])]
    names = {partition_qos, *(default or ("" if "," in allowed else allowed) for _, _, allowed, default in mine)}
    limits = [(f"account {name}", limit) for name, limit, *_ in mine]
    limits += [(f"QOS {name}", limit) for name, limit in _cells(qos, 2, "sacctmgr show qos") if name in names]
    return min(((int(limit), name) for name, limit in limits if limit not in UNLIMITED), default=(0, ""))


def _cells(text: str, n_cells: int, program: str) -> list[list[str]]:
    """The cells of each row, the second a number or empty; raises SchedulerFailed."""
    rows = [line.split("|") for line in text.splitlines() if line.strip()]
    for row in rows:
        if len(row) != n_cells or not (row[1] in UNLIMITED or row[1].isdecimal()):
            raise _unreadable(program, "|".join(row))
    return rows


def _accounts_answer(patience_s: float) -> bool:
    """True; raises SchedulerFailed where sacct does not answer."""
    since = (date.today() - timedelta(days=1)).isoformat()
    ask(["sacct", "--noheader", "--parsable2", "--allocations", f"--starttime={since}", "--format=JobID"], patience_s)
    return True


def _limit(text: str) -> int:
    """A number of Slurm's, 0 where there is none; raises ValueError."""
    return 0 if text in UNLIMITED else int(text)


def _smaller(found: int, limit: int) -> int:
    return min(found, limit) if limit else found


def _unreadable(program: str, text: str) -> SchedulerFailed:
    told = next(filter(str.strip, text.splitlines()), "nothing")
    return SchedulerFailed(
        f"reading the answer of {program}", repr(told[:60]), "compare with what that program prints by hand"
    )
