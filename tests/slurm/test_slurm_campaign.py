"""A campaign on a real Slurm: one shared product, a member that fails, the page at the end, and going on from there."""

import re
from pathlib import Path

import pytest
from drills import clean, hpc_cg, queue, wait_for, write_site
from toy import HEAD, write_archive, write_campaign

from hpc_cg.campaign.members import lay_out, read_campaign, studies_of
from hpc_cg.stages.product import State
from jobs.run import run_stage

pytestmark = [pytest.mark.slurm, pytest.mark.mpi, pytest.mark.timeout(420)]

AXES = """
[[axes]]
name = "batch"
values = [{ label = "usual" }, { label = "vast", train.batch_size = 100000 }]
[[axes]]
name = "repeat"
values = [{ label = "1", train.seed = 1 }, { label = "2", train.seed = 2 }]

[kernel]
kind = "none"
"""


def test_a_campaign_submitted_whole_ends_with_its_page_and_the_members_that_failed_on_it(
    slurm: dict[str, str], mpiexec: Path, tmp_path: Path
) -> None:
    environ = clean(slurm)
    write_archive(tmp_path / "archive")
    path = write_campaign(tmp_path, AXES, HEAD)
    write_site(tmp_path)
    campaign = read_campaign(path)
    for stage in ("kernel", "train", "simulate", "aggregate", "report"):  # one member is done but for what is shared
        first = lay_out(campaign)[0]
        for before in first.upstream(stage):
            if first.states()[before] != State.SEALED:
                run_stage(first, before)
        run_stage(first, stage)
    said = hpc_cg(environ, "submit", "campaign", path).stdout
    numbers = re.findall(r" (\d+)\b(?=,|\n)", said)
    assert [line.split(":")[0] for line in said.splitlines()] == ["usual_2", "vast_1", "vast_2", "page"], said
    again = hpc_cg(environ, "submit", "campaign", path, check=False)
    assert again.returncode == 1 and f"and the page, job {numbers[-1]}" in again.stderr
    status = hpc_cg(environ, "status", "campaign", path).stdout
    assert "page: not written yet; job" in status and "1 sealed" in status
    wait_for(lambda: not queue(environ), 300, lambda: hpc_cg(environ, "status", "campaign", path).stdout)
    status = hpc_cg(environ, "status", "campaign", path).stdout
    assert "4 members: 2 sealed, 2 failed" in status, status
    assert "train of vast_1 (job " in status and "Lower train.batch_size" in " ".join(status.split())
    page = (campaign.folder / "campaign.html").read_text()
    assert "vast_1" in page and "Lower train.batch_size" in page and "2 members judged, 2 missing" in page
    assert {state for one in studies_of(campaign)[:2] for state in one.states().values()} == {State.SEALED}
    assert hpc_cg(environ, "submit", "campaign", path).stdout.count("train") == 2
    assert "cancelled: " in hpc_cg(environ, "cancel", "campaign", path).stdout
    wait_for(lambda: not queue(environ), 60)
    assert "no job of this campaign is in the queue" in hpc_cg(environ, "cancel", "campaign", path).stdout
