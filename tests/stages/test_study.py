"""Study files: every mistake at once; what is sealed, stale, partial, absent."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import frames, write_study

from hpc_cg import errors
from hpc_cg.stages import train
from hpc_cg.stages.claims import release
from hpc_cg.stages.product import State, begin, differences, read_seal, seal
from hpc_cg.stages.progress import Heartbeat
from hpc_cg.stages.study import BESIDE, TABLES, read_study
from jobs.run import run_stage


def test_all_mistakes_are_reported_at_once_with_suggestions(tmp_path: Path) -> None:
    path = write_study(
        tmp_path,
        archive=False,
        simulate={"n_replica": 5},
        train={"steps": "many", "learning_rate": -1.0},
        kernel={"kind": "noise", "sigma_nm": 0.0},
    )
    path.write_text(path.read_text() + "[simulat]\nx = 1\n")
    with pytest.raises(errors.ConfigError) as caught:
        read_study(path)
    text = str(caught.value)
    assert "simulate.n_replica is not a setting. Did you mean n_replicas?" in text
    assert "train.steps = 'many'" in text
    assert "train.learning_rate = -1.0" in text
    assert 'kind = "noise" needs sigma_nm' in text
    assert "simulat is not a table of a study. Did you mean simulate?" in text
    assert len(caught.value.problems) == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[study\n", "no valid TOML"),
        ("[study]\nname='a'\ntemperature_K=300.0\n", r"the table \[prepare\] is missing"),
        ("[prepare]\n", r"the table \[study\] is missing"),
        ("[study]\nname='../x'\ntemperature_K=300.0\n[prepare]\n", r"study.name = '../x'"),
        ("[study]\nname='a'\ntemperature_K=-3.0\n[prepare]\n", r"study.temperature_K = -3.0"),
        ("[study]\nname='a'\n[prepare]\n", "study.temperature_K is missing"),
    ],
)
def test_impossible_studies_are_explained(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(errors.ConfigError, match=expected):
        read_study(path)


def test_a_missing_study_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(errors.MissingInput, match=r"no file .*nothing\.toml"):
        read_study(tmp_path / "nothing.toml")


def test_times_that_are_no_whole_steps_are_refused(tmp_path: Path) -> None:
    path = write_study(tmp_path, archive=False, simulate={"save_ps": 0.0411})
    with pytest.raises(errors.ConfigError, match=r"save_ps = 0\.0411 is no whole number of steps"):
        read_study(path)


def test_a_late_change_leaves_early_products_sealed_and_an_early_one_makes_late_ones_stale(
    tmp_path: Path,
) -> None:
    path = write_study(tmp_path)
    study = read_study(path)
    for stage in ("prepare", "kernel"):
        run_stage(study, stage)
    write_study(tmp_path, archive=False, train={"steps": 99})
    assert [read_study(path).state(stage) for stage in ("prepare", "kernel")] == [State.SEALED, State.SEALED]
    write_study(tmp_path, archive=False, kernel={"sigma_nm": 0.004})
    assert [read_study(path).state(stage) for stage in ("prepare", "kernel")] == [State.SEALED, State.STALE]
    write_study(tmp_path, archive=False, prepare={"force_map": "uniform"})
    assert [read_study(path).state(stage) for stage in ("prepare", "kernel")] == [State.STALE, State.STALE]
    assert read_study(path).state("train") == State.ABSENT


OTHER: dict[str, dict[str, Any]] = {
    "prepare": {"failure_budget": 0.5, "file_budget": 0.5},
    "train": {"accumulate": 2, "compile": True, "pairs": "torch", "checkpoint_every": 7, "tensorboard": True},
    "simulate": {"engine": "torch", "lost_budget": 0.1},
}
"""For each setting that changes a product by rounding at most, another value than that of the toy."""

DECISIVE: dict[str, dict[str, Any]] = {
    "prepare": {"force_limit": 1e4, "shard_frames": 64, "held_out_period": 5},
    "kernel": {"seed": 2, "draws": "stored"},
    "train": {"precision": "bfloat16", "memory_limit_gb": 1.0, "filter_grid": 600, "validate_every": 3},
    "simulate": {"n_knots": 1024, "export": "dcd", "block_ps": 0.4, "group_size": 2},
    "aggregate": {"resamples": 20},
    "report": {"title": "another"},
}


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study whose products are empty and sealed."""
    folder = tmp_path_factory.mktemp("sealed")
    study = read_study(write_study(folder))
    for stage in study.stages:
        begin(study.folder(stage), study.fingerprint(stage), study.intent(stage))
        seal(study.folder(stage), stage, study.fingerprint(stage), study.inputs(stage), "", {}, {})
    return folder


def states(folder: Path, stage: str, setting: str, value: object) -> dict[str, State]:
    """What each stage is once a setting has another value."""
    before = read_study(write_study(folder, archive=False)).tables[stage]
    now = read_study(write_study(folder, archive=False, **{stage: {setting: value}}))
    assert getattr(before, setting) != getattr(now.tables[stage], setting)
    return now.states()


@pytest.mark.parametrize(("stage", "setting"), [(stage, name) for stage in OTHER for name in sorted(BESIDE[stage])])
def test_a_setting_that_changes_a_product_by_rounding_at_most_leaves_every_product_sealed(
    sealed: Path, stage: str, setting: str
) -> None:
    assert set(states(sealed, stage, setting, OTHER[stage][setting]).values()) == {State.SEALED}


@pytest.mark.parametrize(("stage", "setting"), [(stage, name) for stage in DECISIVE for name in DECISIVE[stage]])
def test_a_setting_that_decides_a_product_makes_it_and_all_after_it_stale(
    sealed: Path, stage: str, setting: str
) -> None:
    found = states(sealed, stage, setting, DECISIVE[stage][setting])
    order = list(found)
    stale = order[order.index(stage) :]
    assert found == {name: State.STALE if name in stale else State.SEALED for name in order}


def test_every_stage_says_which_of_its_settings_those_are() -> None:
    assert BESIDE.keys() == TABLES.keys() - {"study"}
    for stage, names in BESIDE.items():
        assert names <= TABLES[stage].__dataclass_fields__.keys()


def test_a_training_that_goes_on_with_other_such_settings_ends_in_the_same_forces(tmp_path: Path) -> None:
    """Compiling by torch takes a minute: that it changes no number is asked of the trainer."""
    from hpc_cg.learning.checkpoint import load_forcefield
    from hpc_cg.learning.distributed import World

    study = read_study(write_study(tmp_path))
    for stage in ("prepare", "kernel", "train"):
        assert run_stage(study, stage) == 0
    shutil.copytree(tmp_path, tmp_path / "copy")
    copy = read_study(write_study(tmp_path / "copy", archive=False))
    shutil.rmtree(copy.folder("train"))
    begin(copy.folder("train"), copy.fingerprint("train"), copy.intent("train"))
    steps = iter(range(6))
    assert not train.work(copy, World(0, 1), Heartbeat(copy.folder("train"), 0), lambda: next(steps, None) is None)
    release(copy.folder("train"))
    other = {"accumulate": 2, "pairs": "torch", "checkpoint_every": 3}
    copy = read_study(write_study(tmp_path / "copy", archive=False, train=other))
    assert copy.state("train") == State.PARTIAL and copy.done("train")[0] == 7
    assert run_stage(copy, "train") == 0
    assert not (copy.run_folder / "superseded").exists()
    positions = torch.from_numpy(frames(50, seed=9)[0]).float()
    one, two = (load_forcefield(each.folder("train"))[0].delta(positions) for each in (study, copy))
    assert (one - two).norm() < 1e-5 * one.norm()


def test_a_stale_product_is_moved_aside_not_lost(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    run_stage(read_study(path), "prepare")
    before = read_seal(tmp_path / "run" / "prepare")
    write_study(tmp_path, archive=False, prepare={"ridge": 1.0})
    run_stage(read_study(path), "prepare")
    aside = list((tmp_path / "run" / "superseded").iterdir())
    assert len(aside) == 1
    assert read_seal(aside[0]) == before
    assert read_study(path).state("prepare") == State.SEALED


def test_a_stage_without_the_one_before_says_which_to_run(tmp_path: Path) -> None:
    with pytest.raises(errors.NotSealed, match="Run the stage prepare"):
        run_stage(read_study(write_study(tmp_path)), "kernel")


def test_a_temperature_other_than_the_archives_is_refused(tmp_path: Path) -> None:
    import h5py
    import numpy as np

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["positions"], file["forces"] = np.zeros((2, 10, 5, 3), dtype=np.float32)
        file.attrs.update({"temperature_K": 350.0, "stride_ps": 1.0})
    study = read_study(write_study(tmp_path, archive=False, prepare={"archive": ["a.h5"]}))
    with pytest.raises(errors.TemperatureMismatch, match=r"300.0.*350.0 K"):
        run_stage(study, "prepare")


def test_a_simulation_at_another_temperature_is_refused(tmp_path: Path) -> None:
    from hpc_cg.stages.simulate import _temperature

    study = read_study(write_study(tmp_path, archive=False, simulate={"temperature_K": 350.0}))
    with pytest.raises(errors.TemperatureMismatch, match="350.0"):
        _temperature(study)


def test_identities_do_not_depend_on_time_or_place(tmp_path: Path) -> None:
    seals = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        study = read_study(write_study(tmp_path / name))
        run_stage(study, "prepare")
        seals.append(read_seal(study.folder("prepare")))
    assert seals[0].identity == seals[1].identity
    assert seals[0].made["when"]


def test_an_unwritable_folder_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(errors.FolderNotWritable, match="no permission"):
        begin(tmp_path / "run" / "prepare", "a", {})


def test_groups_of_replicas_hold_each_replica_once() -> None:
    from hpc_cg.stages.simulate import SimulateConfig

    groups = SimulateConfig(n_replicas=10, group_size=4).groups
    assert groups == ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9))
    assert math.isclose(SimulateConfig().time_ps, 100.0)


def test_a_stale_product_is_not_built_upon(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    for stage in ("prepare", "kernel"):
        run_stage(read_study(path), stage)
    write_study(tmp_path, archive=False, prepare={"ridge": 2.0})
    with pytest.raises(errors.NotSealed, match="made with other settings"):
        run_stage(read_study(path), "kernel")


def test_the_audit_of_a_product_finds_every_changed_missing_and_new_file(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path))
    run_stage(study, "prepare")
    folder = study.folder("prepare")
    seal = read_seal(folder)
    assert seal is not None and differences(folder, seal) == {}
    for name in seal.manifest:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b"x")
        assert differences(folder, seal) == {name: f"{name} holds other bytes than were sealed"}
        (folder / name).unlink()
        assert differences(folder, seal) == {name: f"{name} is missing"}
        (folder / name).write_bytes(content)
    (folder / "new").touch()
    assert differences(folder, seal) == {"new": "new was not there when the product was sealed"}


@pytest.mark.parametrize(
    ("table", "change", "expected"),
    [
        ("study", {"temperature_K": float("inf")}, "temperature_K = .*inf"),
        ("simulate", {"time_ps": 1.6003}, "whole numbers of steps"),
        ("train", {"terminal_widths": [0]}, r"terminal_widths.0 = 0"),
        ("simulate", {"friction_per_ps": float("inf")}, "friction_per_ps"),
    ],
)
def test_values_that_cannot_be_are_refused(tmp_path: Path, table: str, change: dict, expected: str) -> None:
    with pytest.raises(errors.ConfigError, match=expected):
        read_study(write_study(tmp_path, archive=False, **{table: change}))


def test_a_table_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text("study = 3\n[prepare]\n")
    with pytest.raises(errors.ConfigError, match=r"write \[study\]"):
        read_study(path)


def test_a_product_of_another_version_is_stale(tmp_path: Path) -> None:
    import json

    study = read_study(write_study(tmp_path))
    run_stage(study, "prepare")
    path = study.folder("prepare") / "SEALED"
    path.write_text(json.dumps({"stage": "prepare", "fingerprint": study.fingerprint("prepare")}))
    assert study.state("prepare") == State.STALE
    run_stage(study, "prepare")
    assert study.state("prepare") == State.SEALED
