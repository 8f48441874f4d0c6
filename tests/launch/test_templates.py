"""Batch scripts: one line per field, one srun line; slurm_templates/ holds what the code writes."""

import subprocess
from pathlib import Path

import pytest

from hpc_cg.errors import ConfigError
from launch.resources import Resources
from launch.templates import DEFAULTS, STUDY_ARGUMENT, sbatch_text, write_templates

COMMITTED = Path(__file__).parents[2] / "slurm_templates"
FULL = Resources(
    nodes=3,
    tasks_per_node=4,
    cpus_per_task=5,
    gpus_per_node=2,
    mem_gb=60,
    time_minutes=90,
    partition="gpu",
    account="acc",
    qos="long",
    constraint="a100",
    mpi="pmix",
    setup=("module load python",),
    job_name="night",
    log_folder="logs",
)


def directives(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]


def test_each_field_has_one_line():
    assert directives(sbatch_text("simulate", FULL, "study.toml")) == [
        "job-name=night",
        "nodes=3",
        "ntasks-per-node=4",
        "cpus-per-task=5",
        "gres=gpu:2",
        "mem=60G",
        "time=90",
        "partition=gpu",
        "account=acc",
        "qos=long",
        "constraint=a100",
        "output=logs/%x-%j.out",
        "error=logs/%x-%j.err",
        "open-mode=append",
        "requeue",
    ]


def test_what_is_not_asked_for_has_no_line():
    text = sbatch_text("report", Resources(), "study.toml")
    assert not [line for line in directives(text) if line.split("=")[0] in ("gres", "partition", "account", "qos")]
    assert "set +u" not in text


def test_the_job_ends_in_one_srun_line_after_the_setup():
    text = sbatch_text("prepare", FULL, "a study.toml")
    lines = text.splitlines()
    assert lines[-1] == ("srun --cpus-per-task=5 --kill-on-bad-exit=1 --mpi=pmix python -m jobs prepare 'a study.toml'")
    assert text.count("srun") == 1
    assert lines.index("set -euo pipefail") < lines.index("module load python") < len(lines) - 1


def test_training_is_told_before_its_time_is_over():
    assert "signal=USR2@120" in directives(sbatch_text("train", FULL, "s.toml"))
    assert "signal=USR2@12" in directives(sbatch_text("train", Resources(time_minutes=2), "s.toml"))
    assert "signal" not in sbatch_text("prepare", FULL, "s.toml")


@pytest.mark.parametrize("stage", DEFAULTS)
def test_every_script_is_valid_bash(stage):
    text = sbatch_text(stage, FULL, STUDY_ARGUMENT)
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


@pytest.mark.parametrize("study", ["", "a\nb", "-x.toml", "a\x00b"])
def test_a_path_that_no_line_can_hold_is_refused(study):
    with pytest.raises(ConfigError, match="study = "):
        sbatch_text("prepare", Resources(), study)


def test_a_hostile_path_stays_one_word():
    text = sbatch_text("prepare", Resources(), "$(touch x); a'b.toml")
    command = text.splitlines()[-1].replace("srun", "printf '%s\\n'", 1)
    shown = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "$(touch x); a'b.toml"


def test_an_unknown_stage_is_refused():
    with pytest.raises(ConfigError, match="'prepair' is not a stage"):
        sbatch_text("prepair", Resources(), "study.toml")


def test_committed_scripts_are_what_the_code_writes(tmp_path):
    write_templates(tmp_path)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_text() for path in COMMITTED.glob("*.sbatch")}
    assert set(written) == {f"{stage}.sbatch" for stage in DEFAULTS}
