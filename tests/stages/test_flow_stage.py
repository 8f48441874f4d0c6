"""Stage flow and the labels that its kernel gives: through to the report, the same for any number of processes."""

import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from test_corridor import start
from toy import write_study

from hpc_cg import errors
from hpc_cg.files import read_json
from hpc_cg.stages.product import State, read_seal
from hpc_cg.stages.study import Study, read_study
from hpc_cg.stages.train import labels_per_use
from hpc_cg.store.dataset import load, split
from jobs.run import run_stage

FLOW = {"sigma_nm": 0.003, "steps": 6, "batch_size": 48, "width": 8, "n_layers": 2, "validate_every": 3}


def study_of(folder: Path, kernel: str = "flow+forces", **flow: object) -> Study:
    """A toy study with a learnt kernel; ``flow`` holds settings of its table."""
    path = write_study(folder, kernel={"kind": kernel, "sigma_nm": 0.0})
    lines = [f"{key} = {value!r}" for key, value in (FLOW | flow).items()]
    path.write_text(path.read_text() + "\n[flow]\n" + "\n".join(lines) + "\n")
    return read_study(path)


def run_up_to(study: Study, last: str) -> Study:
    for stage in study.stages[: study.stages.index(last) + 1]:
        assert run_stage(study, stage) == 0
    return study


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run_up_to(study_of(tmp_path_factory.mktemp("whole"), kind="coupling", fraction=0.1, subset=3), "report")


def test_a_study_with_a_learnt_kernel_has_the_stage_and_others_do_not(whole: Study, tmp_path: Path) -> None:
    assert whole.stages == ("prepare", "flow", "kernel", "train", "simulate", "aggregate", "report")
    assert set(whole.states().values()) == {State.SEALED}
    assert "flow" not in read_study(write_study(tmp_path)).stages


def test_how_often_a_fit_is_saved_makes_nothing_stale(whole: Study) -> None:
    text = whole.path.read_text()
    other = whole.path.with_name("other.toml")
    other.write_text(text + "checkpoint_every = 7\n")
    assert read_study(other).fingerprint("kernel") == whole.fingerprint("kernel")
    other.write_text(text + "seed = 7\n")
    assert read_study(other).fingerprint("kernel") != whole.fingerprint("kernel")


def test_few_frames_give_as_many_labels_as_all(whole: Study) -> None:
    source, found = (load(whole.folder(stage) / "store.zarr", "toy") for stage in ("prepare", "kernel"))
    train, held_out = split(source, (20, 4))
    np.testing.assert_array_equal(found.positions[held_out], source.positions[held_out])
    part = source.positions[train[3::10]]
    np.testing.assert_array_equal(found.positions[train][::10], part[: len(train[::10])])
    assert len(np.unique(found.noise[train], axis=0)) == len(train)  # every label is a draw of its own
    assert read_json(whole.folder("flow") / "errors.json")["train_frames"] == len(part)


def test_control_variates_make_labels_quieter_and_the_report_says_by_how_much(whole: Study) -> None:
    record = read_json(whole.folder("kernel") / "kernel.json")["molecules"]["toy"]
    none, first, _, both = (one["held_out"] for one in record["choices"])
    assert both < first < none
    found = load(whole.folder("kernel") / "store.zarr", "toy")
    measured = np.square(found.forces[split(found, (20, 4))[1]]).mean()
    assert measured == pytest.approx(record["label_mean_square"]["held_out"], rel=0.15)
    page = (whole.folder("report") / "report.html").read_text()
    assert "Learnt kernel" in page and "frames that the kernel drew" in page and "noised reference" not in page
    assert read_seal(whole.folder("kernel")).summary["sigma_nm"] == 0.003


@pytest.mark.mpi
def test_labels_are_the_same_bytes_for_one_process_and_three_and_after_a_kill(
    whole: Study, tmp_path: Path, mpiexec: str
) -> None:
    study = study_of(tmp_path, kind="coupling", fraction=0.1, subset=3)
    run_up_to(study, "prepare")
    (study.run_folder / "flow").symlink_to(whole.folder("flow"), target_is_directory=True)
    process = start(study.path, "kernel", 1, mpiexec)
    while process.poll() is None and not list(study.folder("kernel").glob("commits/toy/*.json")):
        time.sleep(0.005)
    process.kill()
    process.wait()
    subprocess.run(["pkill", "-9", "-f", str(study.path)], check=False)
    assert list(study.folder("kernel").glob("commits/toy/*.json"))
    assert start(study.path, "kernel", 3, mpiexec).wait(120) == 0
    one, three = (load(each.folder("kernel") / "store.zarr", "toy") for each in (whole, study))
    np.testing.assert_array_equal(one.forces, three.forces)
    np.testing.assert_array_equal(one.noise, three.noise)


@pytest.mark.mpi
def test_two_processes_fit_what_one_does(tmp_path: Path, mpiexec: str) -> None:
    curves = []
    for ranks in (1, 2):
        study = run_up_to(study_of(tmp_path / str(ranks), kind="cnf"), "prepare")
        assert start(study.path, "flow", ranks, mpiexec).wait(120) == 0
        curves.append(read_json(study.folder("flow") / "errors.json")["held_out"])
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_the_steps_of_a_continuous_flow_are_chosen_by_their_error(tmp_path: Path) -> None:
    study = run_up_to(study_of(tmp_path, kernel="flow", kind="cnf"), "kernel")
    told = read_json(study.folder("flow") / "density.json")
    assert told["kind"] == "cnf" and told["density"]["integrator"]["n_nodes"] >= 1
    assert len(read_json(study.folder("kernel") / "kernel.json")["molecules"]["toy"]["choices"]) == 2  # without forces


def test_a_width_in_the_wrong_table_is_refused(tmp_path: Path) -> None:
    path = write_study(tmp_path, kernel={"kind": "flow", "sigma_nm": 0.003})
    with pytest.raises(errors.ConfigError, match=r"flow\.sigma_nm"):
        read_study(path)


def test_mapped_forces_are_not_mixed_in_where_there_are_none(tmp_path: Path) -> None:
    path = write_study(tmp_path, prepare={"forces": False}, kernel={"kind": "flow+forces", "sigma_nm": 0.0})
    path.write_text(path.read_text() + '\n[flow]\nkind = "coupling"\nsteps = 1\nbatch_size = 8\nwidth = 8\n')
    study = run_up_to(read_study(path), "flow")
    with pytest.raises(errors.MissingForces, match='kernel.kind = "flow"'):
        run_stage(study, "kernel")


@pytest.mark.parametrize(
    ("made_of", "learnt_from", "every"), [(0.1, 0.1, 1), (0.1, 1.0, 1), (0.1, 0.01, 10), (1.0, 0.1, 10)]
)
def test_labels_of_a_part_of_the_frames_all_serve_where_that_part_is_learnt_from(
    tmp_path: Path, made_of: float, learnt_from: float, every: int
) -> None:
    study = study_of(tmp_path, fraction=made_of)
    study.path.write_text(study.path.read_text().replace("[train]", f"[train]\nfraction = {learnt_from}"))
    assert labels_per_use(read_study(study.path)) == every


def test_parts_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    study = study_of(tmp_path, fraction=0.25)
    study.path.write_text(study.path.read_text().replace("[train]", "[train]\nfraction = 0.1"))
    with pytest.raises(errors.ConfigError, match=r"flow\.fraction 1/4"):
        read_study(study.path)
