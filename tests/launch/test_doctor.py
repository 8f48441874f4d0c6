"""The doctor with programs in Slurm's place: what they say is judged, what they fail at is a finding, never raised."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, fields, replace
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from hpc_cg.errors import ConfigError
from launch import probes, trials
from launch.doctor import Report, examine, findings_table, site_text, write_site
from launch.facts import Cluster, Nodes, PartitionFacts
from launch.probes import Disk, Gpu, Node, Rank, Scratch, Step
from launch.site import Partition, SiteConfig, read_site
from launch.trials import Outcome
from launch.verdicts import Finding, cluster_findings, folder_finding, gpu_finding, node_findings, working_flavour

DOCUMENT = Path(__file__).parents[2] / "docs" / "sites.md"
SETTINGS = {
    "ClusterName": "hpc",
    "SLURM_VERSION": "23.11.4",
    "MpiDefault": "pmix",
    "MaxArraySize": "2001",
    "JobRequeue": "1",
    "KillWait": "30 sec",
    "PreemptMode": "REQUEUE",
    "PreemptType": "preempt/qos",
    "SlurmctldParameters": "enable_configless,preempt_send_user_signal",
    "AccountingStorageType": "accounting_storage/slurmdbd",
}
PARTITIONS = (
    PartitionFacts("gpu", True, True, 1440, 8, kinds=(Nodes(40, 64, 515000, 4, "gpu:h100"),)),
    PartitionFacts("debug", False, True, 3, 1, kinds=(Nodes(1, 2, 900),)),
    PartitionFacts("odd@name", False, True, 0, 0),
    PartitionFacts("old", False, False, 0, 2, kinds=(Nodes(2, 16, 64000, 2, "gpu:v100"),)),
)
CLUSTER = Cluster(SETTINGS, PARTITIONS, ("pmi2", "pmix"), True, 300, "account a")
WORLD = tuple(Rank(rank, 2, ("g1", "g2"), 2, True, "MPICH 5") for rank in (0, 1))
SINGLETONS = tuple(Rank(0, 1, ("g1",), 2, True, "Open MPI 5") for _ in range(2))
NODE = Node(
    name="g1",
    python="3.11.7",
    package="",
    disk=Disk("lustre", 3.0, links=True, private=True),
    scratch=Scratch("/local/7", True, "xfs", 10**12),
    scontrol="",
    comment=True,
    ends="1700000000",
    cores=4,
    step=Step(2, "2"),
    mpi={"pmi2": (WORLD, ""), "pmix": (WORLD, "")},
)
REPORT = Report(
    (*cluster_findings(CLUSTER), *node_findings(Outcome(NODE), "pmix")), CLUSTER, "gpu", "project_1", "pmix", "$TMPDIR"
)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A cluster made of scripts: each program prints what a small Slurm would, and a job's answer is there at once."""
    folder = tmp_path / "bin"
    folder.mkdir()
    config = "\n".join(f"{name} = {value}" for name, value in SETTINGS.items())
    part = "PartitionName=gpu Default=YES MaxNodes=2 MaxTime=1-00:00:00 TotalNodes=2 State=UP QoS=N/A"
    (folder / "batch.json").write_text(json.dumps(asdict(NODE)))
    (folder / "gpu.json").write_text(json.dumps(asdict(Gpu("g1", "0", True, 1, "2.6"))))
    scripts = {
        "scontrol": f'case "$2" in config) cat << E\n{config}\nE\n;; *) echo "{part}";; esac',
        "sinfo": 'echo "gpu|2|8|8000|gpu:2"',
        "sacct": "exit 0",
        "sacctmgr": 'case "$4" in assoc) echo "a|40|normal|";; *) echo "normal|";; esac',
        "srun": "printf 'MPI plugin types are...\\n\\tpmi2\\n\\tpmix\\n'",
        "squeue": 'echo "COMPLETED|None"',
        "scancel": 'echo "$@" >> "$(dirname "$0")/cancelled"',
        "sbatch": (
            'for word; do case "$word" in --chdir=*) to="${word#--chdir=}";; esac; kind=$(basename "$word" .sh); done\n'
            'cp "$(dirname "$0")/$kind.json" "$to/" && echo "7;hpc"'
        ),
    }
    for name, text in scripts.items():
        put(folder, name, text)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return folder


def put(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def look(work: Path, wait_s: float = 30.0, partition: str = "", account: str = "") -> Report:
    return examine(work, partition, account, wait_s, lambda line: None)


def found(report: Report, what: str) -> Finding:
    (one,) = (finding for finding in report.findings if finding.what == what)
    return one


def test_a_cluster_that_answers_is_fit_and_its_site_file_is_read_back(programs, tmp_path):
    work = tmp_path / "a work folder"
    work.mkdir()
    report = look(work)
    assert report.fit, report.findings
    assert (report.partition, report.mpi, report.scratch) == ("gpu", "pmix", "$TMPDIR")
    assert list(work.iterdir()) == []
    assert not (programs / "cancelled").exists()
    write_site(report, tmp_path / "site.toml")
    site = read_site(tmp_path / "site.toml")
    assert (site.site.name, site.site.mpi, site.site.max_submit_jobs) == ("hpc", "pmix", 40)
    assert site.partitions["gpu"].gpus_per_node == 2


def test_a_machine_without_slurm_is_told_of_the_local_cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    report = look(tmp_path)
    assert not report.fit
    assert "--cluster local" in found(report, "Slurm").advice
    assert "no site file" in write_site(report, tmp_path / "site.toml")
    assert not (tmp_path / "site.toml").exists()


@pytest.mark.parametrize(
    ("program", "what", "unfit"),
    [
        ("scontrol", "Slurm", True),
        ("sinfo", "nodes", False),
        ("squeue", "squeue", True),
        ("sacct", "accounting", False),
        ("sacctmgr", "jobs in the queue", False),
        ("srun", "srun's MPI", False),
        ("sbatch", "probe of a node", True),
    ],
)
@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("exec sleep 60", "no answer within 1 s"),
        ("sleep 60", "no answer within 1 s"),  # a child of the program holds its output open
        ("echo 'error: not today' >&2; exit 1", "not today"),
    ],
)
def test_a_program_that_hangs_or_fails_is_a_finding(programs, tmp_path, program, what, unfit, body, told):
    put(programs, program, body)
    report = look(tmp_path, wait_s=1.0)
    assert told in found(report, what).found
    assert found(report, what).unfit == unfit
    assert report.fit != unfit


@pytest.mark.parametrize("program", ["scontrol", "sinfo", "sacctmgr"])
@pytest.mark.parametrize("body", ["echo nonsense", "exit 0"])
def test_a_program_that_prints_something_else_is_a_finding(programs, tmp_path, program, body):
    put(programs, program, body)
    report = look(tmp_path, wait_s=5.0)
    write_site(report, tmp_path / "site.toml")
    if report.cluster.settings:
        read_site(tmp_path / "site.toml")


def test_a_job_that_does_not_start_is_cancelled_under_its_own_name(programs, tmp_path):
    put(programs, "sbatch", "echo 7")
    put(programs, "squeue", 'echo "PENDING|Priority"')
    report = look(tmp_path, wait_s=1.0)
    one = found(report, "probe of a node")
    assert one.unfit
    assert "did not start within 1 s (Priority)" in one.found
    assert "--wait-s" in one.advice
    assert not found(report, "GPU in gpu").unfit
    (cancelled,) = (programs / "cancelled").read_text().splitlines()
    assert cancelled.startswith("--name=.hpc-cg-doctor-")


def test_jobs_are_cancelled_where_the_examination_is_interrupted(programs, tmp_path, monkeypatch):
    put(programs, "sbatch", "echo 7")
    put(programs, "squeue", 'echo "PENDING|Priority"')

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trials.Trials, "collect", interrupt)
    with pytest.raises(KeyboardInterrupt):
        look(tmp_path)
    assert (programs / "cancelled").exists()
    assert not list(tmp_path.glob(".hpc-cg-doctor-*"))


@pytest.mark.parametrize(
    ("log", "told"),
    [(None, "left no log in"), ("slurm_script: line 2: /x/python: No such file or directory\n\n", "No such file")],
)
def test_a_job_that_ends_without_an_answer_is_explained_by_its_log(programs, tmp_path, monkeypatch, log, told):
    monkeypatch.setattr(trials, "GRACE_S", 0.1)
    write = "" if log is None else f'echo "{log}" > "$to/batch.log"; '
    find = 'for word; do case "$word" in --chdir=*) to="${word#--chdir=}";; esac; done; '
    put(programs, "sbatch", f"{find}{write}echo 7")
    put(programs, "squeue", 'echo "FAILED|NonZeroExitCode"')
    one = found(look(tmp_path), "probe of a node")
    assert one.unfit
    assert told in one.found


def test_an_answer_that_is_none_is_a_finding(programs, tmp_path):
    (programs / "batch.json").write_text('{"name": 3}')
    assert "cannot be read" in found(look(tmp_path), "probe of a node").found


def test_a_squeue_that_fails_while_a_job_is_waited_for_is_given_up(programs, tmp_path):
    put(programs, "sbatch", "echo 7")
    put(programs, "squeue", "echo 'slurm_load_jobs error: Unable to contact' >&2; exit 1")
    assert "Unable to contact" in found(look(tmp_path), "probe of a node").found


def test_a_work_folder_that_cannot_be_written_is_unfit_and_no_job_is_sent(programs, tmp_path):
    (tmp_path / "file").touch()
    put(programs, "sbatch", 'touch "$(dirname "$0")/sent"; echo 7')
    for work in (tmp_path / "file", tmp_path / "absent", Path("/proc")):
        one = found(look(work), "work folder, from here")
        assert one.unfit
        assert str(work) in one.found
    assert not (programs / "sent").exists()


def test_a_misspelt_partition_is_answered_with_the_nearest(programs, tmp_path):
    one = found(look(tmp_path, partition="gpus"), "partition")
    assert one.unfit
    assert "Did you mean gpu?" in one.advice


def test_names_that_a_script_could_not_hold_are_refused_at_once(tmp_path):
    with pytest.raises(ConfigError, match="account = 'a;b'"):
        look(tmp_path, account="a;b")


def test_a_shell_inside_a_job_is_told_so(programs, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "3")
    assert "login node" in found(look(tmp_path), "this shell").advice


@pytest.mark.parametrize(
    "cluster",
    [
        CLUSTER,
        Cluster(SETTINGS),
        replace(CLUSTER, settings=SETTINGS | {"MaxArraySize": "0", "ClusterName": 'a"b\\c é'}),
        replace(CLUSTER, settings=SETTINGS | {"MaxArraySize": "what"}, accounting=False),
    ],
)
@pytest.mark.parametrize("partition", ["gpu", "debug", "odd@name", "old", ""])
def test_every_site_file_that_is_written_is_read_back(tmp_path, cluster, partition):
    findings = (*cluster_findings(cluster), *node_findings(Outcome(why="a\n[b]\x1b[31m = 3", advice=""), ""))
    for mpi in ("", "pmi2"):
        path = tmp_path / f"{mpi}.toml"
        write_site(Report(findings, cluster, partition, "a", mpi), path)
        site = read_site(path)
        assert set(site.partitions) == {one.name for one in cluster.partitions}
        assert site.site.accounting == cluster.accounting
        assert site.is_array("simulate") == (cluster.settings["MaxArraySize"] != "0")


def test_a_site_file_says_above_each_value_what_was_found():
    text = site_text(REPORT).splitlines()
    above = {line: before for before, line in pairwise(text) if " = " in line and line[0] != "#"}
    assert all(before.startswith("# ") for before in above.values())
    assert above['mpi = "pmix"'] == "# one world of 2 on 2 nodes (MPICH 5); chosen"
    assert above['scratch = "$TMPDIR"'] == "# TMPDIR=/local/7: xfs, 1 TB free"
    assert above["max_submit_jobs = 300"] == "# at most 300 (account a); 0 is no limit"
    assert 'gpu = "gpu:v100"' in above  # of the partition whose GPUs are others


def test_the_example_in_the_documentation_is_read(tmp_path):
    text = DOCUMENT.read_text(encoding="utf-8")
    example = text.partition("```ini\n")[2].partition("```")[0]
    (tmp_path / "site.toml").write_text(example)
    site = read_site(tmp_path / "site.toml")
    assert site.partitions
    assert {one.name for cls in (SiteConfig, Partition) for one in fields(cls)} <= set(example.split())


def test_a_site_file_that_is_there_is_not_overwritten(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text("mine")
    assert "stays as it is" in write_site(REPORT, path)
    assert (tmp_path / "site.toml.new").read_text() == site_text(REPORT)
    (tmp_path / "site.toml.new").write_text("mine too")
    assert "nothing was written" in write_site(REPORT, path)
    assert [one.read_text() for one in (path, tmp_path / "site.toml.new")] == ["mine", "mine too"]


def test_findings_fit_80_columns_and_are_no_markup():
    report = Report((Finding("a[red]b", "[/red] found", "[bold] do"), *REPORT.findings))
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(findings_table(report))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for words in ("a[red]b", "[/red] found", "→ [bold] do"):
        assert words in text


@pytest.mark.parametrize(
    ("mpi", "default", "chosen"),
    [
        ({"pmi2": (WORLD, ""), "pmix": (WORLD, "")}, "pmix", "pmix"),
        ({"pmi2": (WORLD, ""), "pmix": (WORLD, "")}, "none", "pmi2"),
        ({"pmi2": (SINGLETONS, ""), "pmix": (WORLD, "")}, "pmi2", "pmix"),
        ({"pmi2": (WORLD, "exit code 1")}, "pmi2", ""),
        ({"pmi2": (WORLD[:1], "")}, "pmi2", ""),
        ({"pmi2": ((WORLD[0], WORLD[0]), "")}, "pmi2", ""),
        ({"pmi2": ((), "no end within 30 s")}, "pmi2", ""),
        ({}, "", ""),
    ],
)
def test_only_a_flavour_that_joins_two_processes_is_chosen(mpi, default, chosen):
    node = replace(NODE, mpi=mpi)
    assert working_flavour(node, default) == chosen
    findings = node_findings(Outcome(node), default)
    assert any(one.unfit for one in findings) == (not chosen)


def test_singletons_are_called_so():
    findings = node_findings(Outcome(replace(NODE, mpi={"pmix": (SINGLETONS, "")})), "pmix")
    assert "2 worlds of one process" in [one.found for one in findings]


@pytest.mark.parametrize(
    ("node", "what", "unfit"),
    [
        (replace(NODE, package="ModuleNotFoundError: No module named 'hpc_cg'"), "Python", True),
        (replace(NODE, disk=Disk("nfs", error="/w: Read-only file system")), "work folder, from g1", True),
        (replace(NODE, scratch=Scratch("/tmp", False, "nfs4", 1)), "scratch", False),
        (replace(NODE, scratch=Scratch("/gone", True, "ext4", 0, "No such file or directory")), "scratch", False),
        (replace(NODE, scratch=Scratch("/tmp", True, "tmpfs", 1)), "scratch", False),
        (replace(NODE, step=Step(1, "1")), "cores of a step", False),
        (replace(NODE, step=Step(error="no answer")), "cores of a step", False),
        (replace(NODE, comment=False), "scontrol on a node", False),
        (replace(NODE, scontrol="[Errno 2] No such file"), "scontrol on a node", False),
    ],
)
def test_what_a_node_lacks_comes_with_advice(node, what, unfit):
    (one,) = (finding for finding in node_findings(Outcome(node), "pmix") if finding.what == what)
    assert one.advice
    assert one.unfit == unfit


@pytest.mark.parametrize(
    ("disk", "unfit", "noted"),
    [
        (Disk("xfs", 2.0, True, True), False, False),
        (Disk("lustre", 250.0, True, True), False, True),
        (Disk("fuse.x", 2.0, False, True), True, True),
        (Disk("vfat", 2.0, True, False), True, True),
    ],
)
def test_a_work_folder_must_link_and_keep_its_mode(disk, unfit, noted):
    one = folder_finding(disk, "from here")
    assert (one.unfit, bool(one.advice)) == (unfit, noted)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"PreemptMode": "CANCEL"}, "submit again"),
        ({"SlurmctldParameters": "(null)"}, "not warned"),
        ({"PreemptType": "preempt/none", "PreemptMode": "OFF"}, ""),
    ],
)
def test_preemption_is_judged_by_what_becomes_of_a_job(more, told):
    findings = cluster_findings(replace(CLUSTER, settings=SETTINGS | more))
    (one,) = (finding for finding in findings if finding.what == "preemption")
    assert told in one.advice
    assert bool(told) == bool(one.advice)


def test_a_gpu_that_torch_does_not_see_is_noted_and_one_that_computes_is_well():
    assert gpu_finding(Outcome(Gpu("g1", "0", True, 1, "2.6")), "gpu").advice == ""
    blind = gpu_finding(Outcome(Gpu("g1", "0", False, 0, "2.6+cpu", "built without CUDA")), "gpu")
    assert "CUDA_VISIBLE_DEVICES=0" in blind.found
    assert "built without CUDA" in blind.found
    assert blind.advice
    assert not blind.unfit


def test_trying_a_folder_leaves_nothing_behind(tmp_path):
    disk = probes.try_folder(tmp_path)
    assert (disk.error, disk.links, disk.private) == ("", True, True)
    assert disk.write_ms > 0
    assert list(tmp_path.iterdir()) == []


def test_a_program_of_a_probe_is_ended_in_time_and_its_error_told():
    began = time.monotonic()
    for patient in ("sleep 60", "trap 'exit 0' TERM; echo began; sleep 60 & wait"):
        assert probes.call(["sh", "-c", patient], patience_s=0.3) == ("", "no end within 0.3 s")
    assert time.monotonic() - began < 5
    assert probes.call(["/no/such/program"])[1]
    assert probes.call([sys.executable, "-c", "import no_such"])[1] == "ModuleNotFoundError: No module named 'no_such'"
    assert probes.call(["sh", "-c", "exit 3"]) == ("", "exit code 3")


def test_the_probe_speaks_without_the_package(tmp_path):
    """It runs by path, in a Python that has nothing but its standard library."""
    probe = tmp_path / "probe.py"
    probe.write_bytes(Path(probes.__file__).read_bytes())
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(probe), "step"], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(done.stdout)["cores"] == len(os.sched_getaffinity(0))
    env = {"PATH": str(tmp_path)}
    line = [sys.executable, "-S", str(probe), "batch", str(tmp_path), "/no/such/folder", "pmi2"]
    subprocess.run(line, env=env, check=True, timeout=60)
    node = trials._read("batch", (tmp_path / "batch.json").read_text()).answer
    assert isinstance(node, Node)
    assert "No such file" in node.scontrol
    assert "srun" in node.mpi["pmi2"][1]
