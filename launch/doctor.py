"""Is this cluster fit, and what must a site file say: measured, not guessed.

    what Slurm's programs tell (facts)  ─┐
    the work folder, written into here  ─┼─▶ findings, each with advice (verdicts) ─▶ a table, and site.toml
    two jobs of seconds (trials, probes)─┘

A program that is not there, fails or hangs, and a job that does not start, are findings too: nothing of it is raised.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from rich.table import Table

from hpc_cg.config import did_you_mean
from hpc_cg.files import write_text
from launch.facts import Cluster, PartitionFacts, ask_cluster
from launch.plain import plain
from launch.probes import Node, try_folder
from launch.resources import MPI_KINDS, NAME, Resources
from launch.trials import TIME_MINUTES, Outcome, Trials, batch_trial, gpu_trial, probe_folder
from launch.verdicts import Finding, cluster_findings, folder_finding, gpu_finding, node_findings, working_flavour

PATIENCE_S = 20.0
"""For each program of Slurm."""

CORES_PER_PROCESS = 2
PROBED = tuple(kind for kind in MPI_KINDS if kind != "none")
"""The flavours that are tried where srun does not tell which it has."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Report:
    """What was found.

    partition, account   where the probes ran; empty where not known, and not named
    mpi                  the flavour of srun that works; empty where none does, or nobody knows
    scratch              for site.toml; empty where nodes have no folder of their own
    """

    findings: tuple[Finding, ...]
    cluster: Cluster = field(default_factory=Cluster)
    partition: str = ""
    account: str = ""
    mpi: str = ""
    scratch: str = ""

    @property
    def fit(self) -> bool:
        """Whether nothing was found with which jobs fail."""
        return not any(finding.unfit for finding in self.findings)


def examine(work: Path, partition: str, account: str, wait_s: float, say: Say) -> Report:
    """Measure what the cluster can do for runs in the folder ``work``.

    partition, account   of the probes; the scheduler's own where empty
    wait_s               seconds to wait for a probe to start
    say                  is told what is being done
    Raises ConfigError where the partition or the account is no name.
    """
    Resources(partition=partition, account=account)
    folder = folder_finding(try_folder(work), "from here")
    if shutil.which("squeue") is None:
        advice = "run it on a login node of a cluster; on this machine alone: --cluster local"
        return Report((Finding("Slurm", "no program squeue here", advice, unfit=True), folder))
    say("asking Slurm what it has")
    cluster = ask_cluster(partition, account, min(wait_s, PATIENCE_S))
    findings = [*_inside_job(), *cluster_findings(cluster), folder, *_no_partition(cluster, partition)]
    chosen = cluster.partition(partition)
    if chosen is None or folder.unfit:
        return Report(tuple(findings), cluster, partition, account)
    gpus = _gpu_partition(cluster, chosen)
    outcomes = _ask_nodes(work, cluster, chosen, gpus, account, wait_s, say)
    site_default = cluster.settings.get("MpiDefault", "")
    findings += node_findings(outcomes["batch"], site_default)
    if gpus is not None:
        findings.append(gpu_finding(outcomes["gpu"], gpus.name))
    node = outcomes["batch"].answer
    if not isinstance(node, Node):
        return Report(tuple(findings), cluster, chosen.name, account)
    scratch = "$TMPDIR" if node.scratch.named and node.scratch.local and not node.scratch.error else ""
    return Report(tuple(findings), cluster, chosen.name, account, working_flavour(node, site_default), scratch)


def _inside_job() -> Iterator[Finding]:
    if job := os.environ.get("SLURM_JOB_ID"):
        yield Finding("this shell", f"is inside job {job}", "its variables may spoil the probes: use a login node")


def _no_partition(cluster: Cluster, partition: str) -> Iterator[Finding]:
    """Why there is nowhere to probe, where that is so."""
    if cluster.partitions and cluster.partition(partition) is None:
        names = [one.name for one in cluster.partitions]
        found = f"no partition {partition}" if partition else "the scheduler has no default"
        meant = did_you_mean(partition, names) if partition else ""
        yield Finding("partition", found, f"name one with --partition: {', '.join(names)}.{meant}", unfit=True)


def _gpu_partition(cluster: Cluster, chosen: PartitionFacts) -> PartitionFacts | None:
    """Where to try a GPU: the chosen partition, or else the first that has some and takes jobs."""
    return next((one for one in (chosen, *cluster.partitions) if one.gpus_per_node and one.up), None)


def _ask_nodes(
    work: Path,
    cluster: Cluster,
    chosen: PartitionFacts,
    gpus: PartitionFacts | None,
    account: str,
    wait_s: float,
    say: Say,
) -> Mapping[str, Outcome]:
    """Let nodes of the chosen partition, and one GPU, speak; none of the jobs is left in the queue."""
    with probe_folder(work) as folder:
        trials = Trials(folder, wait_s, min(wait_s, PATIENCE_S))
        cores = min(CORES_PER_PROCESS, chosen.cpus_per_node or CORES_PER_PROCESS)
        flavours = cluster.flavours or PROBED
        jobs = [(chosen, batch_trial(folder, 2 if chosen.max_nodes > 1 else 1, cores, flavours))]
        jobs += [(gpus, gpu_trial(folder, gpus.gpu))] if gpus is not None else []
        try:
            for partition, trial in jobs:
                if job := trials.submit(trial, _where(partition, account)):
                    say(f"job {job} ({trial.kind}) asks nodes of {partition.name}: up to {wait_s:g} s to start")
            return trials.collect()
        finally:
            trials.cancel()


def _where(partition: PartitionFacts, account: str) -> tuple[str, ...]:
    words = [f"--partition={partition.name}"]
    words += [f"--account={account}"] if account else []
    words += [f"--time={partition.max_minutes}"] if 0 < partition.max_minutes < TIME_MINUTES else []
    return tuple(words)


def findings_table(report: Report) -> Table:
    """The findings, for a terminal of 80 columns and more."""
    caption = "[green]fit[/]" if report.fit else "[red]not fit:[/] mend what is marked unfit, and examine again"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), caption=caption, caption_justify="left")
    table.add_column("what", max_width=20)
    table.add_column("")
    table.add_column("found, and what to do", ratio=1)
    for one in report.findings:
        verdict = "[red]unfit[/]" if one.unfit else "[yellow]note[/]" if one.advice else "[green]ok[/]"
        advice = f"\n→ {plain(_line(one.advice))}" if one.advice else ""
        table.add_row(plain(one.what), verdict, plain(_line(one.found)) + advice)
    return table


def write_site(report: Report, output: Path) -> str:
    """Write what was found as a site file; a file that is there stays. What was done, in a sentence.

    Raises FolderNotWritable, DiskFull.
    """
    if not report.cluster.settings:
        return "no site file was written: Slurm told nothing that could stand in it"
    beside = output.with_name(f"{output.name}.new")
    path = next((path for path in (output, beside) if not os.path.lexists(path)), None)
    if path is None:
        return f"nothing was written: {output} and {beside} are there already; move one of them away"
    write_text(path, site_text(report))
    if path == beside:
        return f"{output} was there and stays as it is; what was found now is in {beside}: compare the two"
    return f"written to {path}; submit reads a site.toml that lies beside the study, or the one named with --site"


def site_text(report: Report) -> str:
    """The text of a site file that ``launch.site.read_site`` accepts: each value below what was found."""
    where = f", with jobs in the partition {report.partition}" if report.partition else ""
    parts = [
        f"# What hpc-cg doctor found on {date.today().isoformat()}{_line(where)}. Change what you know better.",
        "\n".join(["[site]", *_site_lines(report)]),
        *(_partition_text(one, _gpu(report)) for one in report.cluster.partitions),
    ]
    if report.cluster.settings.get("MaxArraySize") in ("0", "1"):
        parts.append("[stages.simulate]\n# MaxArraySize forbids arrays\narray = false")
    return "\n\n".join(parts) + "\n"


def _site_lines(report: Report) -> Iterator[str]:
    cluster, found = report.cluster, report.cluster.settings
    told = {finding.what: _line(finding.found) for finding in report.findings}
    yield from _value("name", found["ClusterName"], "scontrol show config: ClusterName")
    if report.account:
        yield from _value("account", report.account, "as named to doctor")
    if NAME.fullmatch(report.partition):
        yield from _value("partition", report.partition, "where doctor's jobs ran")
    if report.mpi:
        yield from _value("mpi", report.mpi, told.get(f"MPI, srun --mpi={report.mpi}", ""))
    else:
        yield "# no flavour of srun was seen to join two processes: mend that first, then name it"
        yield '# mpi = "pmi2"'
    tried = next((text for what, text in told.items() if what.startswith("GPU in ")), "not tried")
    yield from _value("gpu", _gpu(report), f"as sinfo tells; a job with one: {tried}")
    yield from _value("accounting", cluster.accounting, told["accounting"])
    yield from _value("max_array_size", _array_size(found), told["arrays"])
    yield from _value("max_submit_jobs", cluster.max_submit_jobs, f"{told['jobs in the queue']}; 0 is no limit")
    if report.scratch:
        yield from _value("scratch", report.scratch, told.get("scratch", ""))
    elif "scratch" in told:
        yield f"# {told['scratch']}"
        yield '# scratch = ""'


def _gpu(report: Report) -> str:
    """The name of GPUs where the probes ran, or of the first partition that has some."""
    chosen = report.cluster.partition(report.partition)
    some = (one.gpu for one in (chosen, *report.cluster.partitions) if one is not None and NAME.fullmatch(one.gpu))
    return next(some, "gpu")


def _array_size(settings: Mapping[str, str]) -> int:
    with suppress(ValueError):
        return max(1, int(settings.get("MaxArraySize", "")))
    return 1001


def _partition_text(one: PartitionFacts, gpu: str) -> str:
    kinds = "; ".join(str(kind) for kind in one.kinds) or "not told"
    name = one.name if re.fullmatch(r"[A-Za-z0-9_-]+", one.name) else _toml(one.name)
    lines = [f"# nodes: {_line(kinds)}", f"[partitions.{name}]"]
    limit = "none" if not one.max_minutes else f"{one.max_minutes / 60:g} h"
    lines += _value("max_minutes", one.max_minutes, f"time limit: {limit}")
    lines += _value("max_nodes", one.max_nodes, "MaxNodes, or all that the partition has")
    lines += _value("cpus_per_node", one.cpus_per_node, "of the node that has most")
    lines += _value("mem_gb_per_node", one.mem_gb_per_node, "of the node that has most, rounded down")
    lines += _value("gpus_per_node", one.gpus_per_node, "of the node that has most")
    if one.gpu not in ("", gpu) and NAME.fullmatch(one.gpu):
        lines += _value("gpu", one.gpu, "how --gres calls them here")
    return "\n".join(lines)


def _value(key: str, value: str | int | bool, found: str) -> tuple[str, str]:
    return f"# {_line(found)}", f"{key} = {_toml(value)}"


def _toml(value: str | int | bool) -> str:
    """A value as TOML writes it: its strings, numbers and truths are those of JSON."""
    return json.dumps(_line(value) if isinstance(value, str) else value)


def _line(text: str) -> str:
    """Words on one line, without control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
