"""Simulations of a study that was trained once: what is refused before they begin, and who made their blocks."""

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from toy import write_study

from hpc_cg import errors
from hpc_cg.files import read_json
from hpc_cg.simulate.recorder import block_path, read_block, write_block
from hpc_cg.stages.product import SEALED, read_seal
from hpc_cg.stages.study import Study, read_study
from jobs.run import run_stage
from launch.words import figures


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = read_study(write_study(tmp_path_factory.mktemp("trained")))
    for stage in ("prepare", "kernel", "train"):
        assert run_stage(study, stage) == 0
    return study


@pytest.fixture
def folder(trained: Study, tmp_path: Path) -> Path:
    """A copy of the trained study."""
    shutil.copytree(trained.root, tmp_path / "copy")
    return tmp_path / "copy"


def changed(folder: Path, **simulate: object) -> Study:
    """The study with other settings of simulate."""
    return read_study(write_study(folder, archive=False, simulate=simulate))


def test_overdamped_steps_that_throw_bonds_apart_are_refused_before_a_step_is_made(folder: Path) -> None:
    study = changed(folder, integrator="overdamped")
    with pytest.raises(errors.UnstableStep, match=r"timestep_ps = 0\.002.*diverges from .* ps on.*friction_per_ps"):
        run_stage(study, "simulate")
    assert study.done("simulate")[0] == 0


def test_overdamped_steps_that_are_short_enough_simulate(folder: Path) -> None:
    times = {"timestep_ps": 1e-5, "save_ps": 1e-4, "block_ps": 5e-4, "time_ps": 1e-3}
    study = changed(folder, integrator="overdamped", **times)
    assert run_stage(study, "simulate") == 0


def test_a_run_that_goes_on_by_another_engine_says_so_in_log_and_product(folder: Path) -> None:
    """Two groups of two blocks; of one, the first is as a node with a compiler would have left it."""
    study = changed(folder, engine="torch")
    assert run_stage(study, "simulate") == 0
    product = study.folder("simulate")
    alone = {"engine": "torch", "engines": [{"engine": "torch", "device": "cpu", "blocks": 4}]}
    assert alone.items() <= read_seal(product).summary.items()
    assert read_seal(product).summary["mixed_engine_groups"] == 0

    write_block(product / "blocks", 1, 0, replace(read_block(product / "blocks", 1, 0), engine="compiled"))
    block_path(product / "blocks", 1, 1).unlink()
    (product / SEALED).unlink()
    with pytest.warns(UserWarning, match="group 1.*up to 0 were made by compiled on cpu.*made by torch on cpu"):
        assert run_stage(study, "simulate") == 0
    told = read_json(product / "engine.json")
    counts = [("compiled", "cpu", 1), ("torch", "cpu", 3)]
    assert [(one["engine"], one["device"], one["blocks"]) for one in told["engines"]] == counts
    assert told["engine"] == "compiled, torch" and told["device"] == "cpu"
    assert told["mixed_engine_groups"] == 1 and told["table_error_of"] == "torch"
    assert told.items() <= read_seal(product).summary.items()
    assert "engine compiled, torch, 1 mixed-engine group" in figures(study, "simulate", read_seal(product))


def test_a_run_that_goes_on_by_its_own_engine_is_silent(folder: Path) -> None:
    study = changed(folder, engine="torch")
    assert run_stage(study, "simulate") == 0
    block_path(study.folder("simulate") / "blocks", 0, 1).unlink()
    (study.folder("simulate") / SEALED).unlink()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="group")
        assert run_stage(study, "simulate") == 0
