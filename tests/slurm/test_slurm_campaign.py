"""A campaign on a real Slurm: one shared product, a member that fails, the page at the end, and going on from there."""

from pathlib import Path

import pytest
from drills import clean, hpc_cg, queue, wait_for, write_site
from toy import HEAD, write_archive, write_campaign

from hpc_cg.campaign.members import read_campaign, studies_of
from hpc_cg.stages.product import State

pytestmark = [pytest.mark.slurm, pytest.mark.mpi, pytest.mark.timeout(420)]

AXES = """
[[axes]]
name = "batch"
values = [{ label = "usual" }, { label = "vast", train.batch_size = 100000 }]

[kernel]
kind = "none"
"""


def test_a_campaign_submitted_whole_ends_with_its_page_and_the_member_that_failed_on_it(
    slurm: dict[str, str], mpiexec: Path, tmp_path: Path
) -> None:
    environ = clean(slurm)
    write_archive(tmp_path / "archive")
    path = write_campaign(tmp_path, AXES, HEAD.replace('repeats = "repeat"\n', ""))
    write_site(tmp_path)
    said = hpc_cg(environ, "submit", "campaign", path).stdout
    lines = dict(line.split(": ", 1) for line in said.splitlines())
    assert list(lines) == ["usual", "vast", "page"], said
    assert lines["usual"].startswith("prepare ") and lines["vast"].startswith("train "), "what is shared is made once"
    page = lines["page"].split()[1]
    again = hpc_cg(environ, "submit", "campaign", path, check=False)
    assert again.returncode == 1 and f"and the page, job {page}" in again.stderr
    told = hpc_cg(environ, "status", "campaign", path).stdout
    assert f"page: not written yet; job {page} waits for the members" in told

    wait_for(lambda: not queue(environ), 300, lambda: hpc_cg(environ, "status", "campaign", path).stdout)
    told = hpc_cg(environ, "status", "campaign", path).stdout
    assert "2 members: 1 sealed, 1 failed" in told, told
    assert "train of vast (job " in told and "Lower train.batch_size" in " ".join(told.split())
    assert max(map(len, told.splitlines())) <= 80
    campaign = read_campaign(path)
    written = (campaign.folder / "campaign.html").read_text(encoding="utf-8")
    assert "1 members judged, 1 missing" in written and "Lower train.batch_size" in written
    assert set(studies_of(campaign)[0].states().values()) == {State.SEALED}

    said = hpc_cg(environ, "submit", "campaign", path).stdout
    assert [line.split(" ")[:2] for line in said.splitlines()] == [["vast:", "train"], ["page:", "page"]]
    assert "cancelled: " in hpc_cg(environ, "cancel", "campaign", path).stdout
    wait_for(lambda: not queue(environ), 60)
    assert "no job of this campaign is in the queue" in hpc_cg(environ, "cancel", "campaign", path).stdout
