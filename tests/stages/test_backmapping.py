"""Backmapped energies as a part of a study: from the atoms of the archive to the page and to a campaign's figures."""

import sys
from pathlib import Path

import numpy as np
import pytest
from toy import write_study

from hpc_cg.archive import reference
from hpc_cg.campaign.findings import UNITS, figures_of
from hpc_cg.errors import ConfigError, MissingExtra, MissingInput, TooFewFrames
from hpc_cg.files import read_arrays, read_json
from hpc_cg.stages.study import Study, read_study
from jobs.run import run_stage

ATOMS = {
    "archive": ["atoms/*.h5"],
    "topology": "atoms/topology.pdb",
    "map": "alanine-six",
    "stride_ps": 0.0,
    "held_out_block_ps": 1.0,
    "ridge": 100.0,
}
AGGREGATE = {"block_ps": 0.8, "backmap_frames": 6}


def aggregate_again(study: Study, **changes: object) -> Study:
    """The same study with other settings of its last stages, on the products that are there."""
    aggregate = AGGREGATE | changes
    return read_study(write_study(study.path.parent, archive=False, prepare=ATOMS, aggregate=aggregate))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Study:
    pytest.importorskip("openmm")
    folder = tmp_path_factory.mktemp("backmapped")
    reference.write_topology(folder / "atoms" / "topology.pdb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "EQUILIBRATION_PS", 1.0)
        for seed in (0, 1):
            path = folder / "atoms" / f"run{seed}.h5"
            reference.run_trajectory(path, seed=seed, temperature_K=300.0, n_frames=60, frame_ps=0.08)
    study = read_study(write_study(folder, archive=False, prepare=ATOMS, aggregate=AGGREGATE))
    for stage in study.stages:
        assert run_stage(study, stage) == 0
    return study


def test_model_reference_and_reference_with_noise_are_treated(whole: Study) -> None:
    estimates = read_json(whole.folder("aggregate") / "estimates.json")
    found = estimates["backmap"]
    assert {name: one["frames"] for name, one in found.items()} == {"reference": 6, "noised": 6, "model": 6}
    assert -140 < found["reference"]["mean"] < -100 and found["noised"]["mean"] > found["reference"]["mean"]
    rows = {(row["label"], row["against"]): row for row in estimates["estimates"] if "backmapped" in row["label"]}
    shift = rows["backmapped energy, shift of the mean", "clean"]
    expected = (found["model"]["mean"] - found["reference"]["mean"]) / 2.494338785
    assert shift["value"] == pytest.approx(expected) and shift["unit"] == "kT"
    assert rows["backmapped energy, Wasserstein distance", "noised"]["floor"]["mean"] > 0
    assert rows["backmapped frames, wrong-handed", "clean"]["value"] == found["model"]["mirrored"] / 6
    arrays = read_arrays(whole.folder("aggregate") / "figures.npz")
    for name in found:
        assert np.sum(arrays[f"backmap_{name}"] * np.diff(arrays["backmap_edges"])) == pytest.approx(1)


def test_the_page_shows_them(whole: Study) -> None:
    page = (whole.folder("report") / "report.html").read_text()
    assert "Backmapped energies" in page and "wrong-handed" in page
    assert "backmapped energy, shift of the mean (noised reference)" in page


def test_a_campaign_takes_them_into_its_figures(whole: Study) -> None:
    found = figures_of(whole)
    for name in ("shift, clean reference", "distance, noised reference"):
        assert f"backmapped energy, {name}" in found and f"backmapped energy, {name}" in UNITS


def test_the_same_frames_give_the_same_energies_again(whole: Study) -> None:
    before = read_json(whole.folder("aggregate") / "estimates.json")
    study = aggregate_again(whole, resamples=11)
    assert run_stage(study, "aggregate") == 0
    assert read_json(study.folder("aggregate") / "estimates.json")["backmap"] == before["backmap"]


def test_without_openmm_the_stage_fails(whole: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openmm", None)
    with pytest.raises(MissingExtra, match="OpenMM is not installed"):
        run_stage(aggregate_again(whole, bins=10), "aggregate")


def test_reference_frames_need_blocks_of_their_own(whole: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpc_cg.stages.aggregate.blocks_of", lambda study, frames: np.zeros(frames.n_frames, int))
    with pytest.raises(TooFewFrames, match="apart from the conformers.*Shorten aggregate.block_ps"):
        run_stage(aggregate_again(whole, bins=10), "aggregate")


def test_an_archive_that_is_gone_is_missed_by_name_and_not_needed_without(whole: Study, tmp_path: Path) -> None:
    trajectories = list((whole.path.parent / "atoms").glob("*.h5"))
    for path in trajectories:
        path.rename(tmp_path / path.name)
    with pytest.raises(MissingInput, match=r"run0\.h5"):
        run_stage(aggregate_again(whole, bins=10), "aggregate")
    study = aggregate_again(whole, backmap_frames=0)
    assert run_stage(study, "aggregate") == 0 and run_stage(study, "report") == 0
    assert "backmap" not in read_json(study.folder("aggregate") / "estimates.json")
    assert "Backmapped" not in (study.folder("report") / "report.html").read_text()
    for path in trajectories:
        (tmp_path / path.name).rename(path)


def test_beads_that_never_are_atoms_are_refused_when_the_study_is_read(tmp_path: Path) -> None:
    path = write_study(tmp_path, archive=False, aggregate={"backmap_frames": 10})
    with pytest.raises(
        ConfigError, match='backmap_frames needs beads that are single atoms, and map = "identity" of toy'
    ):
        read_study(path)
