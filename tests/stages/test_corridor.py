"""The whole corridor on a toy archive: every stage sealed, nothing done twice, the same for any number of processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from toy import write_study

from hpc_cg import errors
from hpc_cg.files import read_json
from hpc_cg.stages.product import State, read_seal
from hpc_cg.stages.progress import read_progress
from hpc_cg.stages.study import Study, read_study
from jobs.run import run_stage


def run_all(study: Study, *stages: str) -> None:
    for stage in stages or study.stages:
        assert run_stage(study, stage) == 0


def start(study: Path, stage: str, ranks: int, mpiexec: str) -> subprocess.Popen:
    line = [sys.executable, "-m", "jobs", stage, str(study)]
    environment = os.environ | {"MASTER_PORT": str(20000 + os.getpid() % 5000)}
    return subprocess.Popen([mpiexec, "-n", str(ranks), *line] if ranks > 1 else line, env=environment)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = read_study(write_study(tmp_path_factory.mktemp("whole")))
    run_all(study)
    return study


def test_every_stage_is_sealed_and_names_its_inputs(whole: Study) -> None:
    assert [whole.state(stage) for stage in whole.stages] == [State.SEALED] * 6
    seal = read_seal(whole.folder("train"))
    assert seal.inputs == {
        "prepare": read_seal(whole.folder("prepare")).identity,
        "kernel": read_seal(whole.folder("kernel")).identity,
    }
    assert {"numpy", "torch", "zarr"} <= seal.made["versions"].keys()


def test_the_report_is_one_file_that_fetches_nothing(whole: Study) -> None:
    page = (whole.folder("report") / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page
    assert "<script src" not in page and "data:image" in page
    assert read_seal(whole.folder("prepare")).identity in page
    labels = [row[0] for row in read_json(whole.folder("report") / "summary.json")]
    assert {"frames", "force error", "PMF error", "bond error", "simulation rate", "replicas lost"} <= set(labels)


def test_the_simulation_names_its_engine_and_the_error_of_its_tables(whole: Study) -> None:
    told = read_json(whole.folder("simulate") / "engine.json")
    assert told["engine"] in ("compiled", "torch") and told["device"] in ("cpu", "cuda")
    assert 0 < told["table_error"] < 1e-3
    assert read_seal(whole.folder("simulate")).summary["engine"] == told["engine"]


def test_what_cannot_be_judged_is_said_in_the_report(whole: Study) -> None:
    """The toy never leaves one basin, so nothing can be integrated along ψ."""
    left_out = read_json(whole.folder("aggregate") / "estimates.json")["left_out"]
    assert any("integration of the labels" in text for text in left_out)
    assert "integration of the labels" in (whole.folder("report") / "report.html").read_text()


def test_positions_and_energies_of_the_ensemble_open_in_other_programs(whole: Study) -> None:
    import mdtraj

    folder = whole.folder("simulate")
    positions = zarr.open_array(folder / "ensemble.zarr", path="positions", mode="r")
    assert positions.shape == (6, 40, 5, 3)
    trajectory = mdtraj.load(
        str(folder / "trajectories" / "replica-00002.xtc"), top=str(folder / "trajectories" / "topology.pdb")
    )
    np.testing.assert_allclose(trajectory.xyz, positions[2], atol=6e-4)
    assert trajectory.time[1] - trajectory.time[0] == pytest.approx(0.04)


def test_the_ensemble_does_not_depend_on_a_kill_or_on_who_simulates(whole: Study, tmp_path: Path, mpiexec: str) -> None:
    study = read_study(write_study(tmp_path))
    run_all(study, "prepare", "kernel", "train")
    process = start(study.path, "simulate", 2, mpiexec)
    blocks = study.folder("simulate") / "blocks"
    deadline = time.time() + 60
    while not list(blocks.glob("*.npz")) and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(["pkill", "-9", "-f", str(study.path)], check=False)
    run_all(study, "simulate")
    arrays = [
        zarr.open_array(one.folder("simulate") / "ensemble.zarr", path="positions", mode="r")[:]
        for one in (whole, study)
    ]
    np.testing.assert_array_equal(*arrays)


test_the_ensemble_does_not_depend_on_a_kill_or_on_who_simulates = pytest.mark.mpi(
    test_the_ensemble_does_not_depend_on_a_kill_or_on_who_simulates
)


@pytest.mark.mpi
def test_two_processes_train_on_the_same_samples_to_the_same_loss(whole: Study, tmp_path: Path, mpiexec: str) -> None:
    study = read_study(write_study(tmp_path))
    run_all(study, "prepare", "kernel")
    assert start(study.path, "train", 2, mpiexec).wait(120) == 0
    one, two = (
        [json.loads(line) for line in (s.folder("train") / "curves.jsonl").read_text().splitlines()]
        for s in (whole, study)
    )
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for key in ("train", "residual", "label", "delta"):
        np.testing.assert_allclose([row[key] for row in one], [row[key] for row in two], rtol=1e-4)


def test_a_training_that_is_asked_to_stop_saves_and_continues_to_the_same_end(whole: Study, tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path))
    run_all(study, "prepare", "kernel")
    process = start(study.path, "train", 1, "")
    progress = study.folder("train") / ".progress" / "00000.json"
    deadline = time.time() + 60
    while not progress.exists() and time.time() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    code = process.wait(60)
    assert code in (0, 75)
    assert study.state("train") == (State.PARTIAL if code else State.SEALED)
    if code:
        run_all(study, "train")
    assert read_seal(study.folder("train")).content == read_seal(whole.folder("train")).content


def test_stored_draws_train_as_well(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path, kernel={"draws": "stored", "kind": "noise"}))
    run_all(study, "prepare", "kernel", "train")
    from hpc_cg.store.dataset import load
    from hpc_cg.units import kT

    frames = load(study.folder("kernel") / "store.zarr", "toy")
    np.testing.assert_allclose(frames.forces, -kT(300.0) * frames.noise / 0.003**2, rtol=1e-3, atol=0.5)
    assert read_seal(study.folder("kernel")).summary["labelled"] == 1230


@pytest.mark.mpi
def test_stored_labels_are_the_same_bytes_for_one_and_three_ranks(tmp_path: Path, mpiexec: str) -> None:
    contents = []
    for ranks in (1, 3):
        (tmp_path / str(ranks)).mkdir()
        study = read_study(write_study(tmp_path / str(ranks), kernel={"draws": "stored"}))
        run_all(study, "prepare")
        assert start(study.path, "kernel", ranks, mpiexec).wait(60) == 0
        contents.append(read_seal(study.folder("kernel")).content)
    assert contents[0] == contents[1]


def test_no_kernel_trains_on_the_mapped_forces(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path, kernel={"kind": "none", "sigma_nm": 0.0}))
    run_all(study)
    found = read_json(study.folder("aggregate") / "estimates.json")["estimates"]
    assert {row["against"] for row in found} == {"clean"}


def test_a_block_that_cannot_be_written_fails_the_stage_and_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = read_study(write_study(tmp_path))
    run_all(study, "prepare", "kernel", "train")

    def full(folder: Path, group: int, block: int, record: object) -> None:
        raise errors.DiskFull("writing a block", "no space left on that disk", "free space")

    with monkeypatch.context() as patched:
        patched.setattr("hpc_cg.simulate.recorder.write_block", full)
        with pytest.raises(errors.DiskFull):
            run_stage(study, "simulate")
    assert study.done("simulate") == (0, 4, "blocks")
    assert read_progress(study.folder("simulate")).done == 0
    run_all(study, "simulate")
    assert study.state("simulate") == State.SEALED


def test_too_many_lost_replicas_fail_the_stage_and_a_larger_budget_takes_the_blocks_that_are_there(
    tmp_path: Path,
) -> None:
    wild = {"timestep_ps": 0.02, "time_ps": 8.0, "block_ps": 8.0}
    study = read_study(write_study(tmp_path, simulate=wild | {"lost_budget": 0.1}))
    run_all(study, "prepare", "kernel", "train")
    with pytest.raises(errors.TooManyFailures, match="diverged first at step"):
        run_stage(study, "simulate")
    assert len(read_json(study.folder("simulate") / "quarantine.json")) > 0
    made = {path: path.stat().st_mtime_ns for path in study.folder("simulate").glob("blocks/*")}
    study = read_study(write_study(tmp_path, archive=False, simulate=wild | {"lost_budget": 1.0}))
    run_all(study, "simulate")
    assert made and {path: path.stat().st_mtime_ns for path in made} == made
