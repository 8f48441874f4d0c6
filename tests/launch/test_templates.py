"""Batch scripts: one line per field, one srun line; slurm_templates/ holds what the code writes."""

import subprocess
from pathlib import Path

import pytest

from hpc_cg.errors import ConfigError
from jobs.task import GATHER
from launch.resources import Resources
from launch.templates import DEFAULTS, STUDY_ARGUMENT, Extras, sbatch_text, write_templates

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
        'output="logs/%x-%j.log"',
        "open-mode=append",
        "requeue",
        "signal=USR2@120",
    ]


def test_what_is_not_asked_for_has_no_line():
    text = sbatch_text("report", Resources(), "study.toml")
    assert not [line for line in directives(text) if line.split("=")[0] in ("gres", "partition", "account", "qos")]
    assert "set +u" not in text


def test_one_srun_line_after_the_setup_and_then_the_judgement():
    lines = sbatch_text("prepare", FULL, "a study.toml").splitlines()
    srun = "srun --cpus-per-task=5 --kill-on-bad-exit=1 --mpi=pmix python -m jobs prepare 'a study.toml' || code=$?"
    judge = 'python -m jobs.after prepare \'a study.toml\' --code "$code" --max-attempts 20 --log "logs/night-$job.log"'
    assert lines[lines.index(srun) + 1] == judge
    assert sum(line.startswith("srun") for line in lines) == 1
    assert lines.index("set -uo pipefail") < lines.index("module load python || exit 1") < lines.index(srun)
    assert lines[-1] == 'exit "$code"'


def test_stages_of_many_items_are_told_before_their_time_is_over():
    assert "signal=USR2@120" in directives(sbatch_text("train", FULL, "s.toml"))
    assert "signal=USR2@12" in directives(sbatch_text("prepare", Resources(time_minutes=2), "s.toml"))
    assert "signal" not in sbatch_text("report", FULL, "s.toml")
    assert "signal" not in sbatch_text("simulate", FULL, "s.toml", Extras(part=GATHER))


def test_an_array_has_a_part_for_each_element_and_a_throttle():
    text = sbatch_text("simulate", FULL, "s.toml", Extras(parts=("0-1", "2", "5/9"), at_once=2))
    assert "array=0-2%2" in directives(text)
    assert "array=0-2" in directives(sbatch_text("simulate", FULL, "s.toml", Extras(parts=("0", "1", "2"), at_once=3)))
    assert "parts=(0-1 2 5/9)" in text.splitlines()
    assert text.count('--part "${parts[$SLURM_ARRAY_TASK_ID]}"') == 2
    assert 'output="logs/%x-%A_%a.log"' in directives(text)
    assert "job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" in text


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (75, True), (137, False)])
def test_only_a_job_that_stopped_at_a_safe_place_goes_back_into_the_queue(tmp_path, code, requeued):
    """The script itself, with stand-ins for srun, python and scontrol that write down how they were called."""
    said = tmp_path / "said"
    bodies = {
        "srun": f"exit {code}",
        "python": f'echo "judged $*" >> {said}; exit {code}',
        "scontrol": f'echo "$*" >> {said}; exit 1',
    }
    for name, body in bodies.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    text = sbatch_text("train", Resources(log_folder=str(tmp_path)), "s.toml")
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1"}
    done = subprocess.run(["bash"], input=text, text=True, env=environ, capture_output=True)
    lines = said.read_text().splitlines()
    assert done.returncode == code, done.stderr
    assert f"--code {code} " in lines[0]
    assert lines[1:] == (["requeue 7"] if requeued else [])


def test_a_scratch_folder_of_the_node_is_made_and_named():
    text = sbatch_text("train", Resources(scratch="/local/$USER/$SLURM_JOB_ID"), "s.toml")
    assert 'export TMPDIR="/local/$USER/$SLURM_JOB_ID"' in text


def test_a_container_stands_before_both_pythons():
    text = sbatch_text("train", Resources(container="apptainer exec --nv /i.sif", python="/opt/my py/python"), "s.toml")
    assert text.count("apptainer exec --nv /i.sif '/opt/my py/python' -m jobs") == 2


@pytest.mark.parametrize("stage", DEFAULTS)
def test_every_script_is_valid_bash(stage):
    text = sbatch_text(stage, FULL, STUDY_ARGUMENT)
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


@pytest.mark.parametrize("study", ["", "a\nb", "-x.toml", "a\x00b"])
def test_a_path_that_no_line_can_hold_is_refused(study):
    with pytest.raises(ConfigError, match="study = "):
        sbatch_text("prepare", Resources(), study)


def test_a_hostile_path_stays_one_word():
    lines = sbatch_text("prepare", Resources(), "$(touch x); a'b.toml").splitlines()
    for first in ("srun", "python"):
        (line,) = [line for line in lines if line.startswith(f"{first} ")]
        command = "code=0 job=1; printf '%s\\n' " + line.partition(" || ")[0]
        shown = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout
        assert "$(touch x); a'b.toml" in shown.splitlines()


def test_an_unknown_stage_is_refused():
    with pytest.raises(ConfigError, match="'prepair' is not a stage"):
        sbatch_text("prepair", Resources(), "study.toml")


def test_committed_scripts_are_what_the_code_writes(tmp_path):
    write_templates(tmp_path)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_text() for path in COMMITTED.glob("*.sbatch")}
    assert set(written) == {f"{stage}.sbatch" for stage in DEFAULTS}
