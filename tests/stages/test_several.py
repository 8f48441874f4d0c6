"""One network for two molecules, from their archives to the report; either is simulated without training again."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import pytest
import zarr
from pydantic import ValidationError
from toy import TABLES, _table

from hpc_cg import errors
from hpc_cg.campaign.members import lay_out, read_campaign, shared_stages
from hpc_cg.files import read_json
from hpc_cg.learning.checkpoint import load_forcefield, newest
from hpc_cg.stages.product import State
from hpc_cg.stages.simulate import SimulateConfig
from hpc_cg.stages.study import Study, read_study
from hpc_cg.stages.train import TrainConfig
from jobs.run import run_stage
from launch.show import product_lines

CHAINS = {"short": ("ALA", "GLY", "TYR", "ALA"), "long": ("GLY", "ALA", "SER", "ALA", "PRO", "GLY", "ALA")}
PREPARE = {
    "map": "calpha",
    "stride_ps": 1.0,
    "length_unit": "nm",
    "force_unit": "kJ/mol/nm",
    "held_out_block_ps": 20.0,
    "held_out_period": 4,
    "shard_frames": 128,
    "molecules": [{"name": name, "archive": [f"{name}/*.npy"], "topology": f"{name}/topology.pdb"} for name in CHAINS],
}
SETTINGS: dict[str, dict[str, Any]] = {
    "prepare": PREPARE,
    "train": {"molecules": list(CHAINS), "batch_size": 48},
    "simulate": {"molecule": "long", "friction_per_ps": 10.0},
}


def write_molecule(folder: Path, residues: tuple[str, ...]) -> None:
    """Frames of a chain of alpha carbons that fluctuates, in two files, and its topology."""
    folder.mkdir()
    order, random = np.arange(len(residues)), np.random.default_rng(len(residues))
    places = np.stack((0.23 * np.cos(1.75 * order), 0.23 * np.sin(1.75 * order), 0.15 * order), 1)
    for number in range(2):
        shift = random.normal(0, 0.02, (300 + 10 * number, len(order), 3))
        np.save(folder / f"run{number}_coordinates.npy", places + shift)
        np.save(folder / f"run{number}_forces.npy", -6e3 * shift + random.normal(0, 50, shift.shape))
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    for number, name in enumerate(residues):
        topology.add_atom("CA", mdtraj.element.carbon, topology.add_residue(name, chain, number + 1))
    mdtraj.Trajectory(places[None].astype(np.float32), topology).save_pdb(str(folder / "topology.pdb"))


def tables(**changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    made = {name: {**table, **SETTINGS.get(name, {}), **changes.get(name, {})} for name, table in TABLES.items()}
    return made | {"prepare": {**PREPARE, **changes.get("prepare", {})}}


def write_several(folder: Path, **changes: dict[str, Any]) -> Path:
    """A study of two molecules; ``changes`` holds settings per table."""
    path = folder / "study.toml"
    path.write_text("\n".join(_table(name, table) for name, table in tables(**changes).items()), encoding="utf-8")
    return path


def archives(folder: Path) -> Path:
    for name, residues in CHAINS.items():
        write_molecule(folder / name, residues)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = read_study(write_several(archives(tmp_path_factory.mktemp("several"))))
    for stage in study.stages:
        assert run_stage(study, stage) == 0
    return study


def test_one_network_is_trained_on_both_and_each_has_its_priors_and_its_beads(whole: Study) -> None:
    folder = whole.folder("train")
    found = newest(folder)
    described = found.description
    assert described["vocabulary"] == [f"calpha, residue {number}" for number in (0, 14, 15, 18, 7)]
    assert found.model["network.embedding.weight"].shape == (5, 16)
    short, long = (load_forcefield(folder, name)[0] for name in CHAINS)
    assert short.system.types == (0, 4, 3, 0) and long.system.types == (4, 0, 2, 0, 1, 4, 0)
    assert long.system.names[2] == "SER3:CA"
    assert (len(short.parameters_of_prior.bond_k), len(long.parameters_of_prior.bond_k)) == (3, 6)


def test_errors_are_told_of_each_molecule_and_of_all(whole: Study) -> None:
    told = read_json(whole.folder("train") / "errors.json")
    each = told["molecules"]
    assert set(each) == set(CHAINS)
    assert told["residual"] == pytest.approx(np.mean([own["residual"] for own in each.values()]), rel=1e-12)
    assert told["train_frames"] == sum(own["train_frames"] for own in each.values())
    shown = [line for line in product_lines(whole, "train") if "force error" in line]
    assert len(shown) == 2 and all(any(name in line for line in shown) for name in CHAINS)
    page = (whole.folder("report") / "report.html").read_text()
    assert "One network is trained on 2 molecules" in page and "long at 300 K" in page
    labels = [row[0] for row in read_json(whole.folder("report") / "summary.json")]
    assert {"force error", "force error of all 2 molecules"} <= set(labels)


def test_the_molecule_that_is_named_is_simulated_and_the_other_needs_no_training(whole: Study) -> None:
    assert [whole.state(stage) for stage in whole.stages] == [State.SEALED] * 6
    positions = zarr.open_array(whole.folder("simulate") / "ensemble.zarr", path="positions", mode="r")
    assert positions.shape[2] == len(CHAINS["long"])
    other = Study(whole.path, whole.tables | {"simulate": replace(whole.tables["simulate"], molecule="short")})
    assert other.state("train") == State.SEALED and other.state("simulate") == State.STALE
    assert other.molecule == "short"


def test_a_campaign_over_molecules_trains_once_and_simulates_each(tmp_path: Path) -> None:
    axis = "".join(f'{{ label = "{name}", simulate.molecule = "{name}" }},' for name in CHAINS)
    shared = {name: dict(table) for name, table in tables().items()}
    del shared["study"]["name"]
    path = tmp_path / "campaign.toml"
    head = f'[campaign]\nname = "two"\n[[axes]]\nname = "molecule"\nvalues = [{axis}]\n'
    path.write_text(head + "\n".join(_table(name, table) for name, table in shared.items()))
    studies = lay_out(read_campaign(path))
    assert [stage for stage, _ in shared_stages(studies)] == ["prepare", "kernel", "train"]
    assert [one.molecule for one in studies] == list(CHAINS)


@pytest.mark.mpi
def test_two_processes_train_on_the_same_samples_to_the_same_loss(whole: Study, tmp_path: Path, mpiexec: str) -> None:
    study = read_study(write_several(archives(tmp_path)))
    for stage in ("prepare", "kernel"):
        assert run_stage(study, stage) == 0
    environment = os.environ | {"MASTER_PORT": str(20000 + os.getpid() % 5000)}
    line = [mpiexec, "-n", "2", sys.executable, "-m", "jobs", "train", str(study.path)]
    assert subprocess.run(line, env=environment, timeout=300, check=False).returncode == 0
    one, two = (
        [json.loads(text) for text in (s.folder("train") / "curves.jsonl").read_text().splitlines()]
        for s in (whole, study)
    )
    for key in ("train", "residual", "residual short", "residual long"):
        np.testing.assert_allclose([row[key] for row in one], [row[key] for row in two], rtol=1e-4)


def test_stores_that_do_not_fit_together_are_streamed_all(whole: Study) -> None:
    streamed = replace(whole.tables["train"], memory_limit_gb=1e-4, streams=1)
    study = Study(whole.path, whole.tables | {"train": streamed})
    kept = whole.folder("train").rename(whole.run_folder / "kept")
    try:
        assert run_stage(study, "train") == 0
        told = read_json(study.folder("train") / "errors.json")
        assert not told["in_memory"]
        before = read_json(kept / "errors.json")
        assert told["label"] == pytest.approx(before["label"], rel=0.1)
    finally:
        study.folder("train").rename(whole.run_folder / "streamed")
        kept.rename(whole.run_folder / "train")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"train": {"molecules": ["short", "lang"]}},
            r"train\.molecules: 'lang' is not among the molecules: this study has short, long",
        ),
        ({"simulate": {"molecule": ""}}, r"simulate\.molecule is missing: this study trains on short, long"),
        (
            {"simulate": {"molecule": "villin"}},
            r"simulate\.molecule = 'villin' is not among the molecules: this study trains on short",
        ),
        ({"train": {"molecules": ["short"]}}, r"'long' is not among the molecules: this study trains on short\."),
        ({"train": {"molecule": "short"}}, "molecules several: take one"),
        ({"train": {"batch_size": 47}}, "batch_size = 47 cannot be shared evenly by 2 molecules: take 46 or 48"),
    ],
)
def test_molecules_that_do_not_go_together_are_refused_before_anything_is_made(
    tmp_path: Path, changes: dict[str, dict[str, Any]], said: str
) -> None:
    own = {name: {**SETTINGS.get(name, {}), **table} for name, table in changes.items()}
    with pytest.raises(errors.ConfigError, match=said):
        read_study(write_several(tmp_path, **own))


def test_one_molecule_alone_needs_no_name_for_simulation(tmp_path: Path) -> None:
    study = read_study(write_several(tmp_path, train={"molecules": ["short"]}, simulate={"molecule": ""}))
    assert study.molecule == "short" and SimulateConfig().molecule == ""


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"molecules": ("a", "a")}, "the same name twice"),
        ({"molecules": ("a", "b"), "accumulate": 129}, "129 is more than .* 128 frames of each"),
        ({"molecules": ("a", "b"), "streams": 256}, "streams = 256 does not divide .* 128 frames of each"),
        ({"molecules": ("a", "b", "c"), "batch_size": 2}, "take 3"),
    ],
)
def test_a_batch_that_molecules_cannot_share_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TrainConfig(**wrong)
