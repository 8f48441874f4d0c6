"""Submitting a campaign, seen from the user: who waits for whom on Slurm, refusals, two at once, the wrong file."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from toy import LABELS, SEEDS, write_archive, write_campaign, write_study

from hpc_cg.campaign.members import Campaign, lay_out, read_campaign, studies_of
from hpc_cg.errors import AlreadySubmitted, QueueFull, SchedulerFailed
from launch import ledger
from launch.campaign_queue import cluster_for
from launch.campaign_status import campaign_json, campaign_lines, campaign_report
from launch.campaign_submit import submit_campaign
from launch.cluster import dependency_words, mark_of
from launch.control import cancel_campaign
from launch.site import Site, SiteConfig, StageWishes
from launch.submit import Say

HPC_CG = [sys.executable, "-c", "from launch.cli import main; main()"]
MEMBERS = ("forces_1", "forces_2", "noise_1", "noise_2")
ONE_ELEMENT = {"simulate": StageWishes(array_tasks=1)}


def quiet(line: str) -> None:
    pass


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    write_archive(tmp_path / "archive")
    return read_campaign(write_campaign(tmp_path, LABELS + SEEDS))


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path, before Slurm's programs, with stand-ins: sbatch counts, squeue tells of what that took."""
    folder = tmp_path / "fakes"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    fake(folder, "sbatch", SBATCH.format(tmp_path))
    fake(folder, "squeue", f"echo asked >> {tmp_path}/asked; cat {tmp_path}/queue 2>/dev/null; exit 0")
    fake(folder, "scancel", f'echo "$@" >> {tmp_path}/cancelled')
    return folder


SBATCH = """n=$(cat {0}/count 2>/dev/null || echo 0); n=$((n+1)); echo $n > {0}/count
most=$(cat {0}/most 2>/dev/null || echo 1000)
[ $n -gt $most ] && {{ echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1; }}
echo "$@" >> {0}/words; for last; do :; done
c=$(sed -n "s/#SBATCH --comment=//p" "$last"); grep -q -- --array "$last" && a=0 || a=N/A
printf "%s\\t%s\\t%s\\tPENDING\\t0:00\\t1:00\\t\\tDependency\\n" "$c" $n $a >> {0}/queue; echo $n"""


def fake(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def submit(campaign: Campaign, say: Say = quiet, limit: int = 0) -> None:
    site = Site(SiteConfig(accounting=False, max_submit_jobs=limit), {}, ONE_ELEMENT)
    submit_campaign(campaign, site, cluster_for(campaign, "slurm", accounting=False), say)


def jobs(campaign: Campaign) -> dict[str, tuple[str, ...]]:
    """Member, stage and part of each job by its number, and the numbers that it waits for."""
    folders = [campaign.run_folder, *(study.run_folder for study in studies_of(campaign))]
    rows = [(folder, job) for folder in folders for one in ledger.submissions(folder) for job in one.jobs]
    return {job.id: (folder.name, job.stage, job.part, *job.after) for folder, job in rows}


def test_chains_wait_for_what_is_shared_and_the_page_for_all_that_ends(
    campaign: Campaign, fakes: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    submit(campaign, said.append)
    found = jobs(campaign)
    assert len(found) == 24 and [line.split(":")[0] for line in said] == [*MEMBERS, "page"]
    assert found["8"] == ("forces_2", "train", "whole", "2") and found["13"] == ("noise_1", "kernel", "whole", "1")
    words = (tmp_path / "words").read_text().splitlines()
    assert "--dependency=afterok:2 --kill-on-invalid-dep=yes" in words[7]
    assert "--dependency=afterany:4:7:9:12:15:18:20:23 --kill-on-invalid-dep=yes" in words[23]
    assert found["24"][:3] == ("campaign", "campaign", "whole")
    script = next(campaign.run_folder.glob("jobs/payloads/24_submission.sh")).read_text()
    assert f"#SBATCH --comment={mark_of(campaign.run_folder)}:campaign:whole" in script
    assert f"-m jobs.after campaign {campaign.path} --code" in script


def test_both_kinds_of_dependency_must_be_met() -> None:
    assert dependency_words(("1", "2"), ("3",)) == ["--dependency=afterok:1:2,afterany:3", "--kill-on-invalid-dep=yes"]
    assert dependency_words(()) == []


def test_submitting_again_is_refused_while_all_is_queued_and_one_question_is_asked(
    campaign: Campaign, fakes: Path, tmp_path: Path
) -> None:
    submit(campaign)
    (tmp_path / "asked").unlink()
    with pytest.raises(AlreadySubmitted, match=r"23 jobs of 4 members in the queue, and the page, job 24"):
        submit(campaign)
    assert (tmp_path / "asked").read_text().split() == ["asked"]


def test_a_refusal_half_way_says_what_was_submitted_and_submitting_again_goes_on(
    campaign: Campaign, fakes: Path, tmp_path: Path
) -> None:
    (tmp_path / "most").write_text("8")
    said: list[str] = []
    with pytest.raises(SchedulerFailed, match="QOSMaxSubmitJobPerUserLimit"):
        submit(campaign, said.append)
    assert said[-1] == (
        "submitted before that: 8 jobs of 2 members, of which 1 are the first of forces_2; "
        "they stay in the queue, and submitting again goes on"
    )
    (tmp_path / "most").unlink()
    submit(campaign)
    found = jobs(campaign)
    assert len(found) == 24 and found["10"] == ("forces_2", "simulate", "whole", "8")


def test_elements_without_a_job_that_gathers_them_hold_their_member_alone(
    campaign: Campaign, fakes: Path, tmp_path: Path
) -> None:
    (tmp_path / "most").write_text("9")
    with pytest.raises(SchedulerFailed):
        submit(campaign)
    (tmp_path / "most").unlink()
    said: list[str] = []
    submit(campaign, said.append)
    assert (
        said[0].startswith("forces_2: not submitted. simulate: elements of an array are in the queue")
        and "9_[0]" in said[0]
    )
    found = jobs(campaign)
    assert {row[0] for number, row in found.items() if int(number) > 10} == {"noise_1", "noise_2", "campaign"}
    page = next(row for row in found.values() if row[0] == "campaign")
    assert {"7", "9"} < set(page), "the page waits for what was queued before"


def test_a_limit_of_the_site_leaves_members_for_later(campaign: Campaign, fakes: Path, tmp_path: Path) -> None:
    with pytest.raises(QueueFull) as refusal:
        submit(campaign, limit=14)
    assert "13 jobs were submitted, of 2 members and the page, 2 members are left" in str(refusal.value)
    assert "ubmit again when jobs have ended: it goes on with the others" in str(refusal.value)
    assert len(jobs(campaign)) == 13
    with pytest.raises(QueueFull, match=r"with 13 jobs in the queue before: none was submitted, 2 members are left"):
        submit(campaign, limit=21)
    with pytest.raises(QueueFull, match=r"7 jobs were submitted, of 1 members and the page, 1 members are left"):
        submit(campaign, limit=24)


def test_of_two_who_submit_at_once_the_second_is_told(campaign: Campaign, fakes: Path) -> None:
    faults: list[Exception] = []

    def send() -> None:
        try:
            submit(campaign)
        except AlreadySubmitted as error:
            faults.append(error)

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(faults) == 1 and len(jobs(campaign)) == 24


def test_a_status_of_many_members_asks_once_and_fits_a_screen(fakes: Path, tmp_path: Path) -> None:
    values = ", ".join(f'{{ label = "{name} %", train.steps = {name} }}' for name in (10, 20, 30))
    seeds = ", ".join(f'{{ label = "{seed}", train.seed = {seed} }}' for seed in range(8))
    axes = f'{LABELS}[[axes]]\nname = "data"\nvalues = [{values}]\n[[axes]]\nname = "repeat"\nvalues = [{seeds}]\n'
    write_archive(tmp_path / "archive")
    campaign = read_campaign(write_campaign(tmp_path, axes))
    submit(campaign)
    (tmp_path / "asked").unlink()
    told = campaign_report(campaign, Site(SiteConfig(accounting=False)))
    assert (tmp_path / "asked").read_text().split() == ["asked"]
    lines = [re.sub(r"\[/?[a-z ]*\]", "", line) for line in campaign_lines(told, 80)]
    assert len(campaign.members) == 48 and len(lines) <= 24 and max(map(len, lines)) <= 80
    assert "48 members: 48 waiting" in lines[0]
    assert any(re.fullmatch(r"noise +20 % +· +· +8 +· +·", line) for line in lines), lines
    assert "page: not written yet; job 244 waits for the members" in lines
    content = campaign_json(told)
    assert content["members"]["noise_20_3"]["state"] == "waiting" and content["page"]["jobs"] == ["244"]
    json.dumps(content)


def test_a_scheduler_that_does_not_answer_hides_no_product(campaign: Campaign, fakes: Path) -> None:
    submit(campaign)
    fake(fakes, "squeue", "echo down >&2; exit 1")
    told = campaign_report(campaign, Site(SiteConfig(accounting=False)))
    assert len(told.members) == 4 and "what is in the queue is not known" in told.unknown[0]
    assert not told.at_rest


def test_cancel_ends_every_job_the_page_first(campaign: Campaign, fakes: Path, tmp_path: Path) -> None:
    submit(campaign)
    assert cancel_campaign(campaign).startswith("24 jobs of slurm: 1, 2, 3, 4_[0], 5")
    assert (tmp_path / "cancelled").read_text().split() == [str(number) for number in range(24, 0, -1)]


def hpc_cg(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*HPC_CG, *map(str, words)], capture_output=True, text=True, timeout=60, check=False)


def test_the_dry_run_counts_jobs_and_hours_asks_nobody_and_writes_nothing(campaign: Campaign, fakes: Path) -> None:
    for name in ("sbatch", "squeue", "sacct"):
        fake(fakes, name, f"touch {fakes}/ASKED; exit 1")
    there = sorted(campaign.path.parent.rglob("*"))
    done = hpc_cg("submit", "campaign", campaign.path, "--dry-run")
    assert done.returncode == 0, done.stderr
    for words in (
        "4 members, 0 of them sealed",
        "prepare               1 × (",
        "train                 4 × (",
        "in all 28 jobs",
    ):
        assert words in done.stdout, done.stdout
    assert "node-hours" in done.stdout and sorted(campaign.path.parent.rglob("*")) == there
    assert hpc_cg("status", "campaign", campaign.path).returncode == 0
    assert sorted(campaign.path.parent.rglob("*")) == there


@pytest.mark.parametrize("command", ["submit", "status", "cancel"])
def test_the_file_of_the_other_kind_is_answered_with_the_right_command(tmp_path: Path, command: str) -> None:
    campaign, study = write_campaign(tmp_path), write_study(tmp_path, archive=False)
    told = hpc_cg(command, campaign)
    assert told.returncode == 2
    assert f"this is a campaign, not a study: say hpc-cg {command} campaign {campaign}" in told.stderr
    told = hpc_cg(command, "campaign", study)
    assert told.returncode == 2
    assert f"is a study, not a campaign. Say: hpc-cg {command} {study}" in told.stderr


def test_a_member_submitted_alone_is_in_no_ones_way(campaign: Campaign, fakes: Path, tmp_path: Path) -> None:
    """What it queued is waited for, whichever member of the campaign needs it."""
    study = lay_out(campaign)[3]
    assert hpc_cg("submit", "prepare", study.path).returncode == 0
    submit(campaign)
    found = jobs(campaign)
    assert found["1"][:3] == ("noise_2", "prepare", "whole")
    assert [row for row in found.values() if row[1] == "prepare"] == [("noise_2", "prepare", "whole")]
    assert found["2"] == ("forces_1", "kernel", "whole", "1")


def test_a_folder_that_cannot_be_read_is_named_and_hides_no_other(campaign: Campaign) -> None:
    study = lay_out(campaign)[1]
    (study.folder("train") / "SEALED").mkdir(parents=True)
    told = hpc_cg("status", "campaign", campaign.path)
    assert told.returncode == 1 and "4 members: 1 failed, 3 to do" in told.stdout, told.stdout
