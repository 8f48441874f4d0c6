"""What [train] says about priors reaches the model; a prior that cannot be fitted leaves a picture."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from toy import write_archive, write_study

from hpc_cg import errors
from hpc_cg.forcefield.fitting import PriorParameters
from hpc_cg.learning.checkpoint import load_forcefield
from hpc_cg.stages.product import State
from hpc_cg.stages.study import Study, read_study
from hpc_cg.stages.train import PICTURE
from jobs.run import run_stage

FAST = {"steps": 1, "validate_every": 1, "checkpoint_every": 1}


def trained(folder: Path, **settings: object) -> Study:
    study = read_study(write_study(folder, archive=not (folder / "archive").exists(), train={**FAST, **settings}))
    for stage in ("prepare", "kernel", "train"):
        assert run_stage(study, stage) == 0
    return study


def priors(folder: Path, **settings: object) -> PriorParameters:
    return load_forcefield(trained(folder, **settings).folder("train"))[0].parameters_of_prior


def test_settings_of_priors_reach_the_model(tmp_path: Path) -> None:
    usual = priors(tmp_path / "usual")
    assert usual.repulsion_pairs.tolist() == [[0, 4]]
    assert 0.3 < usual.repulsion_sigma[0] < 0.5
    near = priors(tmp_path / "near", repulsion_bonds=3, repulsion_percentile=5.0)
    assert near.repulsion_pairs.tolist() == [[0, 3], [0, 4], [1, 4]]
    assert near.repulsion_sigma[1] > usual.repulsion_sigma[0]
    assert priors(tmp_path / "small", repulsion_largest_nm=0.2).repulsion_sigma.tolist() == [0.2]
    bare = priors(tmp_path / "bare", repulsion=False)
    assert len(bare.repulsion_pairs) == 0 and bare.torsion_cos.all()
    best = priors(tmp_path / "best", torsion_order=30, torsion_degree="best")
    # the peak of a toy's dihedral needs many orders, but not all that there are
    assert best.torsion_cos[:, :8].all() and not best.torsion_cos[:, -1].any()


def broken_archive(folder: Path) -> None:
    """The toy's archive, with frames in which a periodic box has cut the molecule, as it were."""
    for path in write_archive(folder / "archive").glob("*_coordinates.npy"):
        positions = np.load(path)
        positions[::50, :2] += 2.0
        np.save(path, positions)


def test_a_prior_that_cannot_be_fitted_is_drawn_beside_the_folder_and_the_error_names_the_file(tmp_path: Path) -> None:
    broken_archive(tmp_path)
    with pytest.raises(errors.FitFailed, match=r"bond .*N-.*CA.*train-fit-failed\.png") as raised:
        trained(tmp_path)
    study = read_study(tmp_path / "study.toml")
    picture = study.run_folder / PICTURE
    assert str(picture) in str(raised.value)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert study.state("train") != State.SEALED

    write_archive(tmp_path / "archive")
    trained(tmp_path)
    assert not picture.exists()


@pytest.mark.mpi
def test_of_two_processes_that_fail_together_one_draws_before_they_leave(tmp_path: Path, mpiexec: Path) -> None:
    broken_archive(tmp_path)
    study = read_study(write_study(tmp_path, archive=False, train=FAST))
    for stage in ("prepare", "kernel"):
        assert run_stage(study, stage) == 0
    line = [str(mpiexec), "-n", "2", sys.executable, "-m", "jobs", "train", str(study.path)]
    environment = os.environ | {"MASTER_PORT": str(20000 + os.getpid() % 5000)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode != 0 and PICTURE in done.stdout + done.stderr
    assert (study.run_folder / PICTURE).read_bytes().startswith(b"\x89PNG")
