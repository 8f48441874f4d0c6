"""Simulations of a study that was trained once: what is refused before they begin, and who made their blocks."""

import shutil
from pathlib import Path

import pytest
from toy import write_study

from hpc_cg import errors
from hpc_cg.stages.study import Study, read_study
from jobs.run import run_stage


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
