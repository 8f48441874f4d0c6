"""A study whose replicas trade temperatures: what is judged and exported was at the study's temperature."""

import shutil
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import zarr
from toy import write_study

from hpc_cg import errors
from hpc_cg.files import read_json
from hpc_cg.share import Alone
from hpc_cg.simulate.recorder import read_block
from hpc_cg.stages import simulate
from hpc_cg.stages.product import read_seal
from hpc_cg.stages.progress import Heartbeat
from hpc_cg.stages.study import Study, read_study
from jobs.run import run_stage

LADDER = {
    "n_replicas": 8,
    "group_size": 4,
    "temperatures_K": [300.0, 330.0],
    "exchange_ps": 0.08,
    "friction_per_ps": 5.0,
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    found = read_study(write_study(tmp_path_factory.mktemp("ladders"), simulate=LADDER))
    for stage in found.stages:
        assert run_stage(found, stage) == 0
    return found


def test_every_ladder_is_whole_in_every_frame_and_replicas_trade(study: Study) -> None:
    store = zarr.open_group(study.folder("simulate") / "ensemble.zarr", mode="r")
    rungs = np.asarray(store["rungs"][:])
    assert rungs.shape == (8, 40)
    assert (np.sort(rungs.reshape(4, 2, 40), axis=1) == np.array([0, 1])[:, None]).all()
    assert (np.diff(rungs, axis=1) != 0).any()
    assert store.attrs["temperatures_K"] == [300.0, 330.0] and store.attrs["temperature_K"] == 300.0


def test_only_frames_at_the_temperature_of_the_study_are_judged_and_exported(study: Study) -> None:
    store = zarr.open_group(study.folder("simulate") / "ensemble.zarr", mode="r")
    positions, rungs = np.asarray(store["positions"][:]), np.asarray(store["rungs"][:])
    assert read_json(study.folder("aggregate") / "estimates.json")["sizes"]["model"] == 4 * 30
    folder = study.folder("simulate") / "trajectories"
    assert sorted(path.name for path in folder.glob("*.xtc")) == [f"ladder-{n:05d}.xtc" for n in range(4)]
    opened = mdtraj.load(str(folder / "ladder-00002.xtc"), top=str(folder / "topology.pdb"))
    for frame in range(40):
        cold = 4 + int(np.flatnonzero(rungs[4:6, frame] == 0)[0])
        assert np.abs(opened.xyz[frame] - positions[cold, frame]).max() < 5.1e-4


def test_the_report_tells_how_often_each_pair_trades(study: Study) -> None:
    swaps = read_json(study.folder("simulate") / "exchange.json")
    assert swaps["tried"] == [4 * 20] and 0 < swaps["accepted"][0] < 80
    assert len(swaps["round_trips"]) == 8
    page = (study.folder("report") / "report.html").read_text(encoding="utf-8")
    assert "Replica exchange" in page and "300 K, 330 K" in page and f"{swaps['accepted'][0] / 80:.3g}" in page
    summary = read_seal(study.folder("simulate")).summary
    assert summary["round_trips"] == sum(swaps["round_trips"])
    assert summary["swaps_accepted"] == pytest.approx(swaps["accepted"][0] / 80)


def test_a_run_that_was_interrupted_trades_on_where_it_stood(study: Study, tmp_path: Path) -> None:
    shutil.copytree(study.root, tmp_path / "again")
    again = read_study(tmp_path / "again" / study.path.name)
    blocks = again.folder("simulate") / "blocks"
    for path in blocks.glob("*-block-00001.npz"):
        path.unlink()
    simulate.work_on(again, simulate.pending(again), Alone(), Heartbeat(again.folder("simulate"), 0))
    for group in (0, 1):
        one, other = (read_block(s.folder("simulate") / "blocks", group, 1) for s in (study, again))
        assert np.array_equal(one.rungs, other.rungs) and np.array_equal(one.state_rungs, other.state_rungs)
        assert np.array_equal(one.positions, other.positions)
        assert np.array_equal(one.state_velocities, other.state_velocities)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"temperatures_K": [330.0, 300.0]}, "are no ladder"),
        ({"temperatures_K": [300.0]}, "are no ladder"),
        ({"exchange_ps": 0.05}, "exchange_ps = 0.05 is no whole number of save_ps = 0.04"),
        ({"n_replicas": 7}, "n_replicas = 7 is no whole number of ladders of 2"),
        ({"group_size": 3}, "group_size = 3 is no whole number of ladders of 2"),
    ],
)
def test_ladders_that_cannot_be_are_refused(tmp_path: Path, change: dict, told: str) -> None:
    with pytest.raises(errors.ConfigError, match=told):
        read_study(write_study(tmp_path, archive=False, simulate=LADDER | change))


def test_a_ladder_without_the_temperature_of_the_study_is_refused_with_one_that_has_it(study: Study) -> None:
    text = study.path.read_text(encoding="utf-8").replace("[300.0, 330.0]", "[310.0, 360.0]")
    other = study.path.with_name("other.toml")
    other.write_text(text, encoding="utf-8")
    with pytest.raises(errors.TemperatureMismatch, match=r"e\.g\. \[300\.0, 360\.0\]"):
        simulate.lay_out(read_study(other))
