"""What the measurements of a cluster mean: a sentence of what was found, and of what to do where that is not well.

Pure: facts and answers in, findings out. Unfit is what a chain of jobs cannot do without: Slurm, nodes that see the
folder and run this Python, a file system that renames and links, processes that find one another.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from hpc_cg.errors import SchedulerFailed
from launch.facts import Cluster, PartitionFacts
from launch.probes import Disk, Gpu, Node, Rank, Scratch
from launch.resources import MPI_KINDS
from launch.trials import Outcome
from launch.words import size

SLOW_WRITE_MS = 100.0
"""From here on, small files are so slow that their number matters."""

OTHER_FOLDER = "keep runs on a file system that the nodes share and that takes renames and hard links: --work"
OWN_MPI = "for pmi2: pip install 'hpc-cg[mpi]'; else build it for the site's MPI: pip install --no-binary mpi4py mpi4py"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    found    in words
    advice   what to do; empty where all is well
    unfit    whether jobs fail like this
    """

    what: str
    found: str
    advice: str = ""
    unfit: bool = False


def cluster_findings(cluster: Cluster) -> list[Finding]:
    """What Slurm's programs told."""
    if error := cluster.failures.get("settings"):
        return [Finding("Slurm", error.found, f"{error.change}; on this machine alone: --cluster local", unfit=True)]
    found = cluster.settings
    version = f"{found.get('SLURM_VERSION', 'unknown version')}, cluster {found['ClusterName']}"
    return [
        Finding("Slurm", version),
        *_requeue(found),
        _squeue(cluster),
        _accounting(cluster),
        _arrays(found),
        _queue_limit(cluster),
        *_partitions(cluster),
        _flavours(cluster),
    ]


def _requeue(settings: Mapping[str, str]) -> list[Finding]:
    requeue, wait = settings.get("JobRequeue", "not told"), settings.get("KillWait", "not told")
    mode, kind = settings.get("PreemptMode", "not told"), settings.get("PreemptType", "not told")
    if kind == "preempt/none" or mode == "OFF":
        preemption = Finding("preemption", "none")
    elif "CANCEL" in mode:
        advice = "a preempted job does not come back by itself: submit again, what is done stays"
        preemption = Finding("preemption", f"{mode} ({kind})", advice)
    elif "preempt_send_user_signal" not in settings.get("SlurmctldParameters", ""):
        advice = "nothing to do: a preempted job is not warned, and does its last part again"
        preemption = Finding("preemption", f"{mode} ({kind}), no warning", advice)
    else:
        preemption = Finding("preemption", f"{mode} ({kind}), with a warning")
    return [Finding("requeue", f"JobRequeue={requeue} (jobs ask for it themselves), KillWait={wait}"), preemption]


def _squeue(cluster: Cluster) -> Finding:
    if "queue" in cluster.failures:
        return Finding("squeue", _why(cluster, "queue"), "jobs can neither be followed nor submitted like this", True)
    return Finding("squeue", "answers")


def _accounting(cluster: Cluster) -> Finding:
    store = cluster.settings.get("AccountingStorageType", "not told").removeprefix("accounting_storage/")
    if cluster.accounting:
        return Finding("accounting", f"sacct answers ({store})")
    advice = "jobs run all the same; hpc-cg status then cannot tell how an old job ended"
    return Finding("accounting", f"sacct: {_why(cluster, 'accounting')} ({store})", advice)


def _arrays(settings: Mapping[str, str]) -> Finding:
    limit = settings.get("MaxArraySize", "not told")
    advice = "written: array = false for [stages.simulate], one job then does all" if limit in ("0", "1") else ""
    return Finding("arrays", f"MaxArraySize={limit}", advice)


def _queue_limit(cluster: Cluster) -> Finding:
    if "limits" in cluster.failures:
        advice = "ask the site how many jobs one user may have; set max_submit_jobs"
        return Finding("jobs in the queue", f"not told: {_why(cluster, 'limits')}", advice)
    limit = cluster.max_submit_jobs
    return Finding("jobs in the queue", f"at most {limit} ({cluster.limited_by})" if limit else "no limit told")


def _partitions(cluster: Cluster) -> list[Finding]:
    if "partitions" in cluster.failures or not cluster.partitions:
        why = _why(cluster, "partitions") or "none"
        return [Finding("partitions", why, "see scontrol show partition", unfit=True)]
    found = [_partition(one) for one in cluster.partitions]
    if "nodes" in cluster.failures:
        why = f"not told: {_why(cluster, 'nodes')}"
        found.append(Finding("nodes", why, "add cpus_per_node, mem_gb_per_node, gpus_per_node by hand"))
    return found


def _partition(one: PartitionFacts) -> Finding:
    kinds = "; ".join(str(kind) for kind in one.kinds) or "nodes not told"
    limit = f"{one.max_minutes / 60:g} h" if one.max_minutes else "no time limit"
    found = f"{kinds}; {limit}{', default' if one.default else ''}"
    return Finding(f"partition {one.name}", found, "" if one.up else "takes no jobs now: use another one")


def _flavours(cluster: Cluster) -> Finding:
    default = cluster.settings.get("MpiDefault", "not told")
    listed = ", ".join(cluster.flavours) or _why(cluster, "flavours") or "none that is known here"
    advice = "" if cluster.flavours else "nothing to do: all flavours are tried instead"
    return Finding("srun's MPI", f"{listed} (MpiDefault={default})", advice)


def _why(cluster: Cluster, what: str) -> str:
    error: SchedulerFailed | None = cluster.failures.get(what)
    return error.found if error else ""


def folder_finding(disk: Disk, place: str) -> Finding:
    """What came of writing into the work folder; ``place`` says from where."""
    what = f"work folder, {place}"
    if disk.error:
        return Finding(what, disk.error, "choose a folder that you may write into (--work), or mend its rights", True)
    found = f"{disk.kind}: written and renamed in {disk.write_ms:.2g} ms, mode {'0700' if disk.private else 'not 0700'}"
    if not disk.links:
        return Finding(what, f"{found}, no hard links", OTHER_FOLDER, unfit=True)
    if not disk.private:
        return Finding(what, f"{found}, hard links", "others could write there: keep runs on another one", unfit=True)
    slow = "small files are slow: prefer few large shards and blocks" if disk.write_ms > SLOW_WRITE_MS else ""
    return Finding(what, f"{found}, hard links", slow)


def node_findings(outcome: Outcome, default: str) -> list[Finding]:
    """What the batch probe told; ``default`` is the site's own flavour of MPI."""
    node = outcome.answer
    if not isinstance(node, Node):
        return [Finding("probe of a node", outcome.why, outcome.advice, unfit=True)]
    return [
        _python(node),
        folder_finding(node.disk, f"from {node.name}"),
        _scratch(node.scratch),
        _cores(node),
        _scontrol(node),
        _end(node),
        *_mpi(node, default),
    ]


def _python(node: Node) -> Finding:
    if node.package:
        advice = "install hpc-cg into a Python that the nodes see, or set python, setup or container in site.toml"
        return Finding("Python", f"{sys.executable} on {node.name}: {node.package}", advice, unfit=True)
    return Finding("Python", f"{node.python} on {node.name}, hpc_cg is there")


def _scratch(found: Scratch) -> Finding:
    path = f"TMPDIR={found.path}" if found.named else f"TMPDIR is not set; {found.path}"
    if found.error:
        return Finding(
            "scratch", f"{path}: {found.error}", "set scratch in site.toml to a folder of the node's own disk"
        )
    free = f"{path}: {found.kind}, {size(found.free_bytes)} free"
    if not found.local:
        return Finding("scratch", free, "shared, no node's own: set scratch in site.toml if nodes have a disk")
    if found.kind in ("tmpfs", "ramfs"):
        return Finding("scratch", free, "that is memory: what lies there counts as the job's")
    return Finding("scratch", free)


def _cores(node: Node) -> Finding:
    step = node.step
    if step.error:
        return Finding("cores of a step", step.error, "see that srun works inside a batch job")
    with_it = [one.cores for ranks, error in node.mpi.values() if joined(ranks, error) for one in ranks]
    found = f"a task may use {step.cores} of {node.cores} without --cpus-per-task"
    found += f", {min(with_it)} with it" if with_it else ""
    if step.cores < min(2, node.cores):
        return Finding(
            "cores of a step", found, "not inherited: repeat that flag of srun in scripts of your own; ours do"
        )
    return Finding("cores of a step", found)


def _scontrol(node: Node) -> Finding:
    if not node.scontrol:
        if not node.comment:
            advice = "hpc-cg knows its jobs by their comment: wait until a chain has ended before you submit again"
            return Finding("scontrol on a node", "answers; the job's comment was changed", advice)
        return Finding("scontrol on a node", "answers, so jobs put themselves back; comments are kept")
    advice = "jobs cannot put themselves back into the queue at their time limit: submit again"
    return Finding("scontrol on a node", node.scontrol, advice)


def _end(node: Node) -> Finding:
    if node.ends:
        return Finding("end of a job", "SLURM_JOB_END_TIME is set")
    return Finding("end of a job", "SLURM_JOB_END_TIME is not set; jobs ask squeue instead")


def _mpi(node: Node, default: str) -> list[Finding]:
    works = working_flavour(node, default)
    rows = [_flavour(kind, *answer, works) for kind, answer in node.mpi.items()]
    if works:
        return rows
    return [*rows, Finding("MPI", "no flavour of srun joins two processes", OWN_MPI, unfit=True)]


def _flavour(kind: str, ranks: tuple[Rank, ...], error: str, works: str) -> Finding:
    what = f"MPI, srun --mpi={kind}"
    if not joined(ranks, error):
        lone = len(ranks) == 2 and {one.size for one in ranks} == {1}
        found = error or ("2 worlds of one process" if lone else f"{len(ranks)} of 2 processes told of themselves")
        return Finding(what, found, f"not needed: {works} works" if works else "does not fit this mpi4py")
    places = len(set(ranks[0].met))
    found = f"one world of 2 on {places} node{'s' * (places > 1)} ({ranks[0].library})"
    if kind != works:
        return Finding(what, found)
    slow = "" if ranks[0].counts else "one-sided MPI fails: work is divided beforehand, not on demand"
    return Finding(what, f"{found}; chosen", slow)


def joined(ranks: tuple[Rank, ...], error: str) -> bool:
    """Whether two processes were one world, and ended well."""
    world = {(one.rank, one.size) for one in ranks}
    return not error and len(ranks) == 2 and world == {(0, 2), (1, 2)}


def working_flavour(node: Node, default: str) -> str:
    """The flavour to use: the site's own where it works, else the first that does; empty if none."""
    works = [kind for kind in MPI_KINDS if kind in node.mpi and joined(*node.mpi[kind])]
    return default if default in works else next(iter(works), "")


def gpu_finding(outcome: Outcome, partition: str) -> Finding:
    """What the GPU probe told."""
    gpu, what = outcome.answer, f"GPU in {partition}"
    if not isinstance(gpu, Gpu):
        return Finding(what, outcome.why, outcome.advice)
    visible = f"CUDA_VISIBLE_DEVICES={gpu.visible or 'not set'} on {gpu.name}"
    if gpu.available:
        return Finding(what, f"{visible}; torch {gpu.torch} sees {gpu.count}")
    advice = "use a torch that fits the node's driver (nvidia-smi there tells it); until then, GPU jobs run on cores"
    return Finding(what, f"{visible}; torch {gpu.torch or 'is not there'} sees none: {gpu.error}", advice)
