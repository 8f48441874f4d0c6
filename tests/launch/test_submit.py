"""Submitting, seen from the user: the dry run, the folder's rights, clients that hang or fail, two at once."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from toy import write_study

from hpc_cg.errors import AlreadySubmitted, ConfigError, SchedulerFailed, UnsafeFolder
from hpc_cg.stages.study import Study, read_study
from launch import ledger, slurm
from launch.cluster import SlurmCluster, guard, mark_of
from launch.control import follow_log, newest_log
from launch.plan import chain_of
from launch.site import Site, SiteConfig, StageWishes, read_site
from launch.status import Report, as_json, report, status_lines
from launch.submit import dry_run, submit

GOLDEN = Path(__file__).parent / "golden"
HPC_CG = [sys.executable, "-c", "from launch.cli import main; main()"]
STAGES = ("prepare", "kernel", "train", "simulate", "aggregate", "report")
SITE = """
[site]
name = "alpha"
partition = "cpu"
account = "project_1"
python = "/opt/hpc_cg/bin/python"
setup = ["module load gcc", "export NCCL_DEBUG=WARN"]
scratch = "$TMPDIR"
max_attempts = 9

[partitions.cpu]
max_minutes = 600
max_nodes = 16
cpus_per_node = 64
mem_gb_per_node = 240

[partitions.gpu]
max_minutes = 1440
max_nodes = 4
cpus_per_node = 32
mem_gb_per_node = 480
gpus_per_node = 4
gpu = "gpu:h100"

[stages.train]
partition = "gpu"
nodes = 2
qos = "long"

[stages.simulate]
partition = "gpu"
at_once = 1
exclude = ["n7"]
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return read_study(write_study(tmp_path))


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path, before Slurm's own programs, for stand-ins."""
    folder = tmp_path / "fakes"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def fake(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def quiet(line: str) -> None:
    pass


def test_the_scripts_of_a_dry_run_are_the_golden_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text a site would get; HPC_CG_GOLDEN=1 writes it anew."""
    (tmp_path / "site.toml").write_text(SITE)
    lines: list[str] = []
    study = read_study(write_study(tmp_path))
    chain = dry_run(study, STAGES, read_site(tmp_path / "site.toml"), "slurm", lines.append)
    text = (
        "\n".join(lines).replace(str(tmp_path), "/work/alice").replace(mark_of(study.run_folder), "hpc-cg:0123456789")
    )
    head, *scripts = re.split(r"\n\n# --- (.*)\n", text)
    names = [f"{place + 1}-{job.stage}{'-gather' * (job.part == 'gather')}" for place, job in enumerate(chain.jobs)]
    found = {"chain.txt": head + "\n" + "\n".join(scripts[::2]) + "\n"}
    found |= {f"{name}.sbatch": script + "\n" for name, script in zip(names, scripts[1::2], strict=True)}
    if os.environ.get("HPC_CG_GOLDEN"):
        shutil.rmtree(GOLDEN, ignore_errors=True)
        GOLDEN.mkdir()
        for name, content in found.items():
            (GOLDEN / name).write_text(content)
    assert found == {path.name: path.read_text() for path in GOLDEN.iterdir()}


def test_a_dry_run_asks_nobody_and_writes_nothing(study: Study, fakes: Path, tmp_path: Path) -> None:
    for name in ("sbatch", "squeue", "sacct", "scontrol", "srun", "sinfo", "scancel"):
        fake(fakes, name, f"touch {tmp_path}/ASKED; exit 1")
    before = sorted(path for path in tmp_path.rglob("*"))
    line = [*HPC_CG, "submit", "all", str(study.path), "--dry-run"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("#!/usr/bin/env bash") == 7
    for words in ("node-hours", "GPU-hours", "reads 3 files", "240 frames", "--dependency=afterok:<prepare>"):
        assert words in done.stdout
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_a_folder_that_others_may_write_into_is_not_trusted(study: Study) -> None:
    study.run_folder.mkdir()
    study.run_folder.chmod(0o777)
    with pytest.raises(UnsafeFolder, match=r"mode 0777\. Say chmod 700"):
        ledger.folder_of(study.run_folder)
    study.run_folder.chmod(0o755)
    assert ledger.folder_of(study.run_folder).stat().st_mode & 0o777 == 0o700
    elsewhere = study.root / "elsewhere"
    elsewhere.mkdir()
    (study.run_folder / "jobs").rmdir()
    (study.run_folder / "jobs").symlink_to(elsewhere)
    with pytest.raises(UnsafeFolder):
        ledger.folder_of(study.run_folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_not_trusted(study: Study) -> None:
    ledger.folder_of(study.run_folder)
    os.chown(study.run_folder / "jobs", 12345, 12345)
    with pytest.raises(UnsafeFolder, match="user 12345"):
        ledger.payloads(study.run_folder)


@pytest.mark.parametrize(("mode", "code"), [(0o700, 0), (0o770, 1)])
def test_a_script_runs_nothing_from_a_folder_that_is_not_its_users_alone(tmp_path: Path, mode: int, code: int) -> None:
    folder = tmp_path / "it's mine"
    folder.mkdir()
    folder.chmod(mode)
    done = subprocess.run(["bash", "-c", f"{guard(folder)}\nexit 0"], capture_output=True, text=True)
    assert done.returncode == code
    assert (str(folder) in done.stderr) == bool(code)


def test_a_study_whose_name_would_end_a_line_is_refused_as_it_is_read(tmp_path: Path) -> None:
    path = write_study(tmp_path, study={"name": "a"})
    path.write_text(path.read_text().replace('name = "a"', 'name = "a\\n#SBATCH --uid=0"'))
    with pytest.raises(ConfigError, match=r"study\.name"):
        read_study(path)


def test_a_client_that_hangs_is_left_after_its_time(fakes: Path) -> None:
    fake(fakes, "squeue", "exec sleep 60")
    began = time.monotonic()
    with pytest.raises(SchedulerFailed, match=r"no answer within 0\.5 s"):
        slurm.queue(patience_s=0.5)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "body", ["echo 'slurm_load_jobs error: Unable to contact' >&2; exit 1", "printf '\\377'; exit 1"]
)
def test_a_client_that_fails_is_told_with_its_words(study: Study, fakes: Path, body: str) -> None:
    fake(fakes, "squeue", body)
    with pytest.raises(SchedulerFailed, match="exit code 1"):
        submit(study, STAGES, Site(), SlurmCluster(study.run_folder), quiet)
    assert ledger.submissions(study.run_folder) == ()


COUNTING = 'n=$(cat {0} 2>/dev/null || echo 0); n=$((n+1)); echo $n > {0}; echo "$@" >> {0}.words; echo $n'


def test_what_was_submitted_before_a_refusal_is_kept_and_told(study: Study, fakes: Path, tmp_path: Path) -> None:
    fake(fakes, "squeue", "exit 0")
    body = COUNTING.format(tmp_path / "count")
    fake(fakes, "sbatch", f'{body} > /dev/null; [ $n -lt 3 ] && echo $n || {{ echo "sbatch: error: no" >&2; exit 1; }}')
    said: list[str] = []
    with pytest.raises(SchedulerFailed, match="sbatch: error: no"):
        submit(study, STAGES, Site(), SlurmCluster(study.run_folder, accounting=False), said.append)
    assert (
        said[-1] == "submitted before that: prepare 1, kernel 2; they stay in the queue, and submitting again goes on"
    )
    (one,) = ledger.submissions(study.run_folder)
    assert [(job.id, job.stage, job.after) for job in one.jobs] == [("1", "prepare", ()), ("2", "kernel", ("1",))]


def test_each_job_names_those_it_waits_for_and_is_removed_where_they_fail(
    study: Study, fakes: Path, tmp_path: Path
) -> None:
    fake(fakes, "squeue", "exit 0")
    fake(fakes, "sbatch", COUNTING.format(tmp_path / "count"))
    jobs = submit(study, STAGES, Site(), SlurmCluster(study.run_folder, accounting=False), quiet)
    words = (tmp_path / "count.words").read_text().splitlines()
    assert [job.id for job in jobs] == list("1234567")
    assert words[0].startswith("--parsable ") and "dependency" not in words[0]
    for number, line in enumerate(words[1:], 1):
        assert f"--dependency=afterok:{number} --kill-on-invalid-dep=yes" in line
    payloads = {path.name for path in (study.run_folder / "jobs" / "payloads").iterdir()}
    assert {"1_submitted.pkl", "4_0_submitted.pkl", "4_1_submitted.pkl", "7_submission.sh"} <= payloads
    assert (study.run_folder / "jobs" / "payloads").stat().st_mode & 0o777 == 0o700


def test_of_two_who_submit_at_once_the_second_is_told_the_numbers_of_the_first(
    study: Study, fakes: Path, tmp_path: Path
) -> None:
    """squeue tells of the jobs that sbatch took, with the comments in their scripts."""
    fake(
        fakes,
        "sbatch",
        COUNTING.format(tmp_path / "count").removesuffix("echo $n")
        + 'for last; do :; done; c=$(sed -n "s/#SBATCH --comment=//p" "$last"); sleep .2\n'
        + 'grep -q -- --array "$last" && a=0 || a=N/A\n'
        + 'printf "%s\\t%s\\t%s\\tPENDING\\t0:00\\t1:00\\t\\tNone\\n" "$c" $n $a'
        + f" >> {tmp_path}/queue; echo $n",
    )
    fake(fakes, "squeue", f"cat {tmp_path}/queue 2>/dev/null; exit 0")
    faults: list[Exception] = []

    def send() -> None:
        try:
            submit(study, STAGES, Site(), SlurmCluster(study.run_folder, accounting=False), quiet)
        except AlreadySubmitted as error:
            faults.append(error)

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (fault,) = faults
    for words in ("prepare 1", "train 3", "simulate 5", "report 7"):
        assert words in str(fault)
    assert len(ledger.submissions(study.run_folder)) == 1


def rows(study: Study, *states: tuple[str, str, str, str]) -> str:
    mark = mark_of(study.run_folder)
    lines = []
    for label, stage, part, state in states:
        job, _, task = label.partition("_")
        cells = (f"{mark}:{stage}:{part}", job, task or "N/A", state, "1:05", "1:00:00", "n1", "None")
        lines.append("\t".join(cells) + "\n")
    return "".join(lines)


def told(study: Study, fakes: Path, *states: tuple[str, str, str, str], accounting: bool = False) -> Report:
    """What status says when squeue tells of these jobs of a submission."""
    fake(fakes, "sbatch", COUNTING.format(study.root / "count"))
    fake(fakes, "squeue", "exit 0")
    wishes = {"simulate": StageWishes(array_tasks=2)}
    submit(study, STAGES, Site(SiteConfig(), {}, wishes), SlurmCluster(study.run_folder, accounting=False), quiet)
    (study.root / "rows").write_text(rows(study, *states))
    fake(fakes, "squeue", f"echo asked >> {study.root}/asked; cat {study.root}/rows")
    return report(study, Site(SiteConfig(accounting=accounting)))


ALL = (
    ("1", "prepare", "whole", "RUNNING"),
    ("2", "kernel", "whole", "PENDING"),
    ("3", "train", "whole", "PENDING"),
    ("4_0", "simulate", "whole", "RUNNING"),
    ("4_1", "simulate", "whole", "PENDING"),
    ("5", "simulate", "gather", "PENDING"),
    ("6", "aggregate", "whole", "PENDING"),
    ("7", "report", "whole", "PENDING"),
)


def test_status_asks_once_and_fits_eighty_columns(study: Study, fakes: Path) -> None:
    found = told(study, fakes, *ALL)
    lines = status_lines(found, 80)
    assert (study.root / "asked").read_text().count("asked") == 1
    assert max(len(re.sub(r"\[/?[a-z]*\]", "", line)) for line in lines) <= 80
    text = "\n".join(lines)
    assert "job 1 runs on n1, 1:05 of 1:00:00" in text and "array 4: 1 run, 1 waits" in text
    content = as_json(found)["stages"]["simulate"]["jobs"]
    assert [job["job"] for job in content] == ["4_0", "4_1", "5"]
    json.dumps(as_json(found))


def test_without_accounts_status_says_what_it_cannot_know(study: Study, fakes: Path) -> None:
    found = told(study, fakes, *ALL[1:])
    assert any("how 1 jobs ended is not known" in sentence for sentence in found.unknown)
    assert not found.at_rest


def test_a_scheduler_that_does_not_answer_hides_no_product(study: Study, fakes: Path) -> None:
    told(study, fakes, *ALL)
    fake(fakes, "squeue", "echo down >&2; exit 1")
    found = report(study, Site())
    assert [line.stage for line in found.lines] == list(STAGES)
    assert "what is in the queue is not known" in found.unknown[0] and "down" in found.unknown[0]


def test_what_failed_is_told_with_its_last_words(study: Study, fakes: Path) -> None:
    told(study, fakes, *ALL)
    fake(fakes, "squeue", "exit 0")
    fake(
        fakes,
        "sacct",
        "printf '1|FAILED|00:01:00|01:00:00|n1|None assigned\\n2|CANCELLED|00:00:00|01:00:00|||\\n' | sed 's/||$/|/'",
    )
    log = study.run_folder / "logs" / "prepare.toy-1.log"
    log.write_text("=== hpc-cg prepare: job 1\nhpc-cg: a.trr holds no forces\n")
    found = report(study, Site())
    assert [end.why for end in found.lines[0].ends] == ["it failed: a.trr holds no forces"]
    assert not found.lines[1].ends


def test_logs_show_the_newest_of_a_stage_and_what_is_added(study: Study) -> None:
    folder = study.run_folder / "logs"
    folder.mkdir(parents=True)
    for number, name in enumerate(
        ("train.toy-3.log", "train-20260101-1.log", "simulate.toy-4_1.log", "train.toy-9.log")
    ):
        (folder / name).write_text(f"{name}\nlast\n")
        os.utime(folder / name, (number, number))
    assert newest_log(study, "train").name == "train.toy-9.log"
    assert newest_log(study, "simulate", "4_1").name == "simulate.toy-4_1.log"
    assert list(follow_log(folder / "train.toy-9.log", 1, follow=False)) == ["last"]
    lines = follow_log(folder / "train.toy-9.log", 1, follow=True)
    assert next(lines) == "last"
    with (folder / "train.toy-9.log").open("a") as file:
        file.write("more\n")
    assert next(lines) == "more"


def test_the_jobs_of_other_run_folders_are_not_ours(study: Study, fakes: Path) -> None:
    (study.root / "rows").write_text(rows(study, ALL[0]).replace(mark_of(study.run_folder), "hpc-cg:ffffffffff"))
    fake(fakes, "squeue", f"cat {study.root}/rows")
    assert SlurmCluster(study.run_folder).queue() == ()
    assert chain_of(study, STAGES, Site()).jobs
