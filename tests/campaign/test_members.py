"""Claims about campaigns: every combination is a member, mistakes are told at once, what is the same is made once."""

import json
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy import HEAD, LABELS, TABLES, write_archive, write_campaign

from hpc_cg.campaign.members import as_toml, lay_out, read_campaign, shared_stages
from hpc_cg.errors import ConfigError
from hpc_cg.stages.claims import owner
from hpc_cg.stages.product import State
from hpc_cg.stages.progress import read_progress
from hpc_cg.stages.train import TrainConfig


def test_every_combination_is_a_member_with_the_settings_of_its_values(tmp_path: Path) -> None:
    campaign = read_campaign(write_campaign(tmp_path))
    assert [member.labels for member in campaign.members] == [
        ("forces", "1"),
        ("forces", "2"),
        ("noise", "1"),
        ("noise", "2"),
    ]
    last = campaign.members[-1].tables
    assert last["kernel"] == {"kind": "noise", "sigma_nm": 0.003}
    assert (last["train"]["seed"], last["train"]["steps"]) == (2, 3)
    assert campaign.members[0].tables["train"]["steps"] == TABLES["train"]["steps"]
    assert campaign.groups == (("forces",), ("noise",))


def test_all_mistakes_of_a_campaign_are_told_at_once(tmp_path: Path) -> None:
    axes = LABELS.replace('noise", kernel.sigma_nm = 0.003', 'noise", kernel.sigma = 0.003')
    path = write_campaign(tmp_path, axes, HEAD.replace('"repeat"', '"label"'))
    path.write_text(path.read_text().replace("temperature_K", 'folder = "here"\ntemperature_K'))
    with pytest.raises(ConfigError) as error:
        read_campaign(path)
    told = str(error.value)
    for sentence in (
        "campaign.repeats = 'label' is no axis. Did you mean labels?",
        "study.folder is set by the campaign: remove it.",
        "noise: kernel.sigma is not a setting. Did you mean sigma_nm?",
    ):
        assert sentence in told


@pytest.mark.parametrize(
    ("axes", "sentence"),
    [
        ("", "at least one [[axes]]"),
        ('[[axes]]\nname = "a"\nvalues = [{ train.seed = 1 }]\n', "needs a label"),
        ('[[axes]]\nname = "a"\nvalues = [{ label = "x", trian.seed = 1 }]\n', "Did you mean train?"),
        ('[[axes]]\nname = "a"\nvalues = []\n', "axis 1 needs a name and a list of values"),
        ('[[axes]]\nname = "a"\nvalues = [{ label = "x y" }, { label = "x-y" }]\n', "2 members are called x-y"),
    ],
)
def test_a_wrong_axis_is_refused(tmp_path: Path, axes: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_campaign(write_campaign(tmp_path, axes, HEAD.replace('repeats = "repeat"\n', "")))
    assert sentence in str(error.value)


def test_a_product_that_members_share_is_one_folder(tmp_path: Path) -> None:
    write_archive(tmp_path / "archive")
    path = write_campaign(tmp_path)
    studies = lay_out(read_campaign(path))
    where = {stage: [one.folder(stage) for one in studies] for stage in ("prepare", "kernel", "train")}
    assert len(set(where["prepare"])) == 1
    assert where["kernel"][0] == where["kernel"][1] != where["kernel"][2] == where["kernel"][3]
    assert len(set(where["train"])) == 4
    assert [stage for stage, _ in shared_stages(studies)] == ["prepare", "kernel", "kernel"]
    again = lay_out(read_campaign(path))
    assert [one.folder("prepare") for one in again] == where["prepare"]


def test_a_changed_setting_leads_to_another_folder_and_a_folder_of_ones_own_is_kept(tmp_path: Path) -> None:
    write_archive(tmp_path / "archive")
    path = write_campaign(tmp_path)
    before = lay_out(read_campaign(path))[0].folder("prepare")
    path.write_text(path.read_text().replace("shard_frames = 128", "shard_frames = 64"))
    studies = lay_out(read_campaign(path))
    assert studies[0].folder("prepare") != before
    assert before.is_dir()
    own = studies[0].run_folder / "prepare"
    own.unlink()
    own.mkdir()
    assert lay_out(read_campaign(path))[0].folder("prepare") == own


def test_a_shared_product_with_other_inputs_is_made_again_in_its_place_for_all(tmp_path: Path) -> None:
    write_archive(tmp_path / "archive", n_segments=2)
    path = write_campaign(tmp_path)
    line = [sys.executable, "-m", "jobs", "prepare"]
    for n_segments in (2, 3):
        write_archive(tmp_path / "archive", n_segments)
        studies = lay_out(read_campaign(path))
        assert studies[-1].state("prepare") == (State.ABSENT if n_segments == 2 else State.STALE)
        subprocess.run([*line, str(studies[0].path)], check=True, timeout=200, capture_output=True)
        assert {one.state("prepare") for one in studies} == {State.SEALED}
        assert all((one.run_folder / "prepare").is_symlink() for one in studies)
    assert len(list((tmp_path / "campaign/shared/superseded").iterdir())) == 1


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text())
def test_written_settings_are_read_back(word: str) -> None:
    tables = {"study": {"a": word, "b": [1, 2.5e-9, True, {word: [word], "c": {}}], "d": -7}}
    assert tomllib.loads(as_toml(tables)) == tables


def test_subsets_of_a_fraction_share_out_the_frames() -> None:
    configs = [TrainConfig(fraction=0.25, subset=subset) for subset in range(4)]
    frames = [set(range(102)[one.subset :: one.every]) for one in configs]
    assert set.union(*frames) == set(range(102))
    assert sum(map(len, frames)) == 102


def test_a_fraction_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="one over a whole number"):
        TrainConfig(fraction=0.3)


RUN = (sys.executable, "-c", "from launch.cli import main; main()", "run", "campaign")


def run_campaign(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RUN, str(path)], capture_output=True, text=True, timeout=400, check=False)


@pytest.mark.timeout(900)
def test_a_campaign_with_a_failing_member_delivers_its_page_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    write_archive(tmp_path / "archive")
    axes = """
[[axes]]
name = "batch"
values = [{ label = "usual" }, { label = "vast", train.batch_size = 100000 }]
[[axes]]
name = "repeat"
values = [{ label = "1", train.seed = 1 }, { label = "2", train.seed = 2 }]
"""
    path = write_campaign(tmp_path, axes)
    done = run_campaign(path)
    assert done.returncode == 1, done.stdout + done.stderr
    page = (tmp_path / "campaign" / "campaign.html").read_text(encoding="utf-8")
    assert "vast_1" in page and "Lower train.batch_size" in page
    (group,) = json.loads((tmp_path / "campaign" / "findings.json").read_text())
    assert group["labels"] == ["usual"]
    first, second = group["figures"]["excess force error"]["values"]
    # each of two repeats is compared with the other
    assert first == pytest.approx(second) and first > 0
    assert len(group["figures"]["JS divergence, clean reference"]["values"]) == 2

    path.write_text(path.read_text().replace("100000", "16"))
    sealed = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("usual*/*/SEALED")}
    done = run_campaign(path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 members are done" in done.stdout
    assert sealed and {file: file.stat().st_mtime_ns for file in sealed} == sealed
    studies = lay_out(read_campaign(path))
    assert {one.state("report") for one in studies} == {State.SEALED}


def test_a_campaign_that_is_ended_lets_its_members_save(tmp_path: Path) -> None:
    write_archive(tmp_path / "archive")
    axis = (
        '[[axes]]\nname = "a"\nvalues = [{ label = "long", train.steps = 1000000, train.checkpoint_every = 1000000 }]\n'
    )
    path = write_campaign(tmp_path, axis, HEAD.replace('repeats = "repeat"\n', ""))
    train = tmp_path / "campaign/members/long/train"
    with subprocess.Popen(
        [*RUN, str(path)], stdout=subprocess.PIPE, text=True, preexec_fn=ignore_interrupts
    ) as process:
        deadline = time.monotonic() + 200
        while (found := read_progress(train)) is None or found.done == 0:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        process.terminate()
        assert process.wait(100) == 130
    assert len(list(train.glob("step-*/SEALED"))) == 1
    assert owner(train) is None


def ignore_interrupts() -> None:
    """As a shell does for what it starts in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
