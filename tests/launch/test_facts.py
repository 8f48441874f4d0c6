"""What Slurm's programs print is read strictly: texts of real clusters give their facts, other texts a sentence."""

import pytest

from hpc_cg.errors import SchedulerFailed
from launch.facts import (
    Nodes,
    ask_cluster,
    flavours_of,
    gpus_of,
    kinds_of,
    minutes_of,
    partitions_of,
    settings_of,
    submit_limit,
)

PARTITION = (
    "PartitionName=gpu AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=YES QoS=gpu_q "
    "DefaultTime=01:00:00 DisableRootJobs=NO GraceTime=0 Hidden=NO MaxNodes=8 MaxTime=2-00:30:00 MinNodes=0 "
    "MaxCPUsPerNode=48 Nodes=g[01-40] PreemptMode=OFF State=UP TotalCPUs=2560 TotalNodes=40 "
    "DefMemPerCPU=4000 MaxMemPerNode=UNLIMITED TRES=cpu=2560,mem=20T,node=40,billing=2560\n"
    "PartitionName=long Default=NO QoS=N/A MaxNodes=UNLIMITED MaxTime=UNLIMITED State=DRAIN TotalNodes=100 "
    "PreemptMode=REQUEUE MaxCPUsPerNode=UNLIMITED MaxMemPerNode=100000\n"
)
NODES = (
    "gpu|30|64|515000+|gpu:h100:4(S:0-1)\n"
    "gpu|2|64|515000+|gpu:h100:4(S:0-1)\n"
    "gpu|8|128|1031000|gpu:h100:8(S:0,2-3),nvme:1\n"
    "long|100|32|191999|(null)\n"
)


@pytest.mark.parametrize(
    ("gres", "count", "name"),
    [
        ("gpu:2", 2, "gpu"),
        ("gpu", 1, "gpu"),
        ("gpu:h100:4(S:0-1)", 4, "gpu:h100"),
        ("gpu:a100:8(S:0,2-3)", 8, "gpu:a100"),
        ("craynetwork:4,gpu:mi250:8,shard:32", 8, "gpu:mi250"),
        ("gpu:1g.5gb:7(S:0)", 7, "gpu:1g.5gb"),
        ("gpu:a100:2,gpu:v100:1", 3, "gpu"),
        ("gpu:0", 0, ""),
        ("nvme:1", 0, ""),
        ("gpumem:80G", 0, ""),
        ("(null)", 0, ""),
        ("", 0, ""),
    ],
)
def test_gpus_are_counted_and_named_as_gres_wants_them(gres, count, name):
    assert gpus_of(gres) == (count, name)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("UNLIMITED", 0), ("INFINITE", 0), ("7-00:00:00", 10080), ("02:30:00", 150), ("30:59", 30), ("1-00:00:30", 1440)],
)
def test_time_limits_are_minutes_and_none_is_zero(text, minutes):
    assert minutes_of(text) == minutes


def test_a_time_limit_that_is_none_is_refused():
    with pytest.raises(ValueError, match="'soon' is no time limit"):
        minutes_of("soon")


def test_partitions_have_their_limits_and_the_most_that_a_node_has():
    gpu, long = partitions_of(PARTITION, NODES)
    assert (gpu.name, gpu.default, gpu.up, gpu.max_nodes, gpu.max_minutes, gpu.qos) == (
        "gpu",
        True,
        True,
        8,
        2 * 1440 + 30,
        "gpu_q",
    )
    assert (gpu.gpus_per_node, gpu.gpu, gpu.cpus_per_node) == (8, "gpu:h100", 48)
    assert gpu.mem_gb_per_node == 1006  # 1,031,000 MB are 1006.8 of Slurm's G
    assert (long.default, long.up, long.max_nodes, long.max_minutes, long.qos) == (False, False, 100, 0, "")
    assert (long.gpus_per_node, long.gpu, long.mem_gb_per_node) == (0, "", 97)


def test_nodes_that_differ_in_their_state_alone_are_one_kind():
    assert kinds_of(NODES)["gpu"] == (Nodes(32, 64, 515000, 4, "gpu:h100"), Nodes(8, 128, 1031000, 8, "gpu:h100"))


def test_gpus_of_two_types_in_a_partition_are_asked_for_without_type():
    (mixed,) = partitions_of(PARTITION.splitlines()[0], "gpu|2|8|8000|gpu:a100:2\ngpu|2|8|8000|gpu:v100:4\n")
    assert (mixed.gpu, mixed.gpus_per_node) == ("gpu", 4)


def test_settings_are_read_and_another_text_is_refused():
    text = "Configuration data as of 2026-01-01\nClusterName             = hpc\nKillWait = 30 sec\nPowerPlugin =\n"
    assert settings_of(text) == {"ClusterName": "hpc", "KillWait": "30 sec", "PowerPlugin": ""}
    with pytest.raises(SchedulerFailed, match="found 'Slurm is being upgraded'"):
        settings_of("\nSlurm is being upgraded\n")


@pytest.mark.parametrize("line", ["PartitionName=a", "sorry", PARTITION.replace("2-00:30:00", "soon").splitlines()[0]])
def test_a_partition_that_cannot_be_read_is_a_sentence(line):
    with pytest.raises(SchedulerFailed, match="reading the answer of scontrol show partition"):
        partitions_of(line, "")


@pytest.mark.parametrize("line", ["gpu|2|8|8000", "gpu|two|8|8000|(null)", "slurm_load_partitions: error"])
def test_nodes_that_cannot_be_read_are_a_sentence(line):
    with pytest.raises(SchedulerFailed, match="reading the answer of sinfo"):
        kinds_of(line)


def test_flavours_of_old_and_new_slurm():
    assert flavours_of("MPI plugin types are...\n\tpmix\n\tnone\n\tcray_shasta\n\tpmi2\n") == (
        "pmi2",
        "pmix",
        "cray_shasta",
    )
    assert flavours_of("srun: MPI types are...\nsrun: none\nsrun: pmix_v3\nsrun: openmpi\n") == ("pmix",)
    assert flavours_of("") == ()


@pytest.mark.parametrize(
    ("rows", "qos", "account", "partition_qos", "limit"),
    [
        ("a||normal|\n", "normal|\n", "", "", (0, "")),
        ("a|500|normal|\nb|50|normal|\n", "normal|\n", "a", "", (500, "account a")),
        ("a|500|normal|\nb|50|normal|\n", "normal|\n", "", "", (50, "account b")),
        ("a||normal,high|high\n", "normal|10\nhigh|100\n", "", "", (100, "QOS high")),
        ("a||normal|\n", "normal|10\n", "", "", (10, "QOS normal")),
        ("a|500|normal|\n", "normal|\nshort|5\n", "", "short", (5, "QOS short")),
        ("", "normal|10\n", "", "", (0, "")),
    ],
)
def test_the_smallest_limit_on_submitted_jobs_counts(rows, qos, account, partition_qos, limit):
    assert submit_limit(rows, qos, account, partition_qos) == limit


@pytest.mark.parametrize("rows", ["a|many|normal|", "a|5"])
def test_limits_that_cannot_be_read_are_a_sentence(rows):
    with pytest.raises(SchedulerFailed, match="reading the answer of sacctmgr show assoc"):
        submit_limit(rows, "")


def test_a_controller_that_does_not_answer_is_asked_once(tmp_path, monkeypatch):
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho $0 >> $(dirname $0)/asked; sleep 60\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = ask_cluster("", "", patience_s=0.3)
    assert "no answer within 0.3 s" in str(found.failures["settings"])
    assert len((tmp_path / "asked").read_text().splitlines()) == 1
