"""Slow motion as a part of a study: from the segments of the archive to the page and to a campaign's figures."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import mdtraj
import numpy as np
import pytest
from scipy.signal import lfilter
from toy import PLACES, frames, stiffness, write_study

from hpc_cg.analysis.sample import Sample
from hpc_cg.beads import bead_system
from hpc_cg.campaign.findings import figures_of
from hpc_cg.errors import AtomCountMismatch, ConfigError, TopologyMismatch, UnfitLag
from hpc_cg.files import read_arrays, read_json
from hpc_cg.mapping.maps import MapChoice, coordinate_map
from hpc_cg.stages import slow
from hpc_cg.stages.product import State
from hpc_cg.stages.study import Study, read_study
from jobs.run import run_stage

RELAXATION_PS = 8.0
SIMULATE = {"friction_per_ps": 300.0, "save_ps": 0.02}
AGGREGATE = {
    "block_ps": 40.0,
    "slow_lag_ps": 2.0,
    "slow_model_lag_ps": 0.02,
    "slow_states": 4,
    "slow_processes": 1,
    "contact_nm": 0.45,
}


def write_slow_archive(folder: Path) -> None:
    """The toy's Gaussian, all of whose modes relax in RELAXATION_PS; frames every picosecond."""
    folder.mkdir(parents=True)
    keep = np.exp(-1 / RELAXATION_PS)
    for number in range(3):
        positions, _ = frames(400 + 10 * number, seed=number)
        kick = (positions - PLACES) * np.sqrt(1 - keep**2)
        kick[0] /= np.sqrt(1 - keep**2)
        shift = lfilter([1.0], [1.0, -keep], kick, axis=0)
        np.save(folder / f"run{number}_coordinates.npy", PLACES + shift)
        np.save(folder / f"run{number}_forces.npy", -stiffness() @ shift)


def again(study: Study, **changes: object) -> Study:
    """The same study with other settings of aggregate, on the products that are there."""
    folder = study.path.parent
    return read_study(write_study(folder, archive=False, simulate=SIMULATE, aggregate=AGGREGATE | changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("slow")
    write_slow_archive(folder / "archive")
    study = read_study(write_study(folder, archive=False, simulate=SIMULATE, aggregate=AGGREGATE))
    for stage in study.stages:
        assert run_stage(study, stage) == 0
    return study


def found(study: Study) -> dict:
    return read_json(study.folder("aggregate") / "estimates.json")


def slow_rows(study: Study) -> dict:
    names = ("slow components", "distances", "contacts", "timescale", "time of the reference", "RMSD")
    return {row["label"]: row for row in found(study)["estimates"] if any(name in row["label"] for name in names)}


def test_slow_motion_is_judged_against_the_clean_reference(whole: Study) -> None:
    rows = slow_rows(whole)
    assert {row["against"] for row in rows.values()} == {"clean"}
    assert rows["JS divergence of slow components"]["floor"]["mean"] > 0
    assert "JS divergence of distances, mean over 3 pairs" in rows
    assert "contacts within 0.45 nm, root mean square difference" in rows
    told = rows["implied timescale 1 of the reference"]
    assert 0.4 * RELAXATION_PS < told["value"] < RELAXATION_PS + 3 * told["error"] and told["unit"] == "ps"
    fast = rows["implied timescale 1 of the model"]["value"]
    ratio = rows["time of the reference over time of the model, process 1"]["value"]
    assert ratio == pytest.approx(told["value"] / fast) and ratio > 5
    summary = found(whole)["slow"]
    assert summary["lag_ps"] == 2.0 and summary["model_lag_ps"] == 0.02 and summary["pairs"] == 1230 - 3 * 2
    # the slowest of twelve modes that relax alike, in 150 relaxation times, looks slower than they are
    assert all(0.5 * RELAXATION_PS < time < 2 * RELAXATION_PS for time in summary["relaxation_ps"])


def test_the_planes_hold_every_frame(whole: Study) -> None:
    arrays = read_arrays(whole.folder("aggregate") / "figures.npz")
    sizes = found(whole)["sizes"]
    assert arrays["slow_model"].sum() == sizes["model"] == 6 * 60
    reference = arrays["slow_reference"]
    assert reference.sum() == pytest.approx(reference[1:-1, 1:-1].sum())  # its own range holds all of it
    assert arrays["slow_edges"].shape == (2, len(reference) - 1)
    assert (np.diff(arrays["slow_edges"], axis=1) > 0).all()


def test_the_page_shows_them(whole: Study) -> None:
    page = (whole.folder("report") / "report.html").read_text(encoding="utf-8")
    assert "Slow motion" in page and "Free energy over slow components" in page
    assert "time of reference over time of model" in page and "JS divergence of slow components" in page


def test_a_campaign_takes_them_into_its_figures(whole: Study) -> None:
    rows, figures = slow_rows(whole), figures_of(whole)
    for name, label in (
        ("JS divergence of slow components", "JS divergence of slow components"),
        ("slowest timescale, reference over model", "time of the reference over time of the model, process 1"),
    ):
        assert figures[name] == rows[label]["value"]


def test_no_state_but_the_lag_gives_components_without_timescales(whole: Study) -> None:
    study = again(whole, slow_states=0, slow_model_lag_ps=0.0)
    assert run_stage(study, "aggregate") == 0 and run_stage(study, "report") == 0
    assert not any("timescale" in label for label in slow_rows(study)) and len(slow_rows(study)) == 4
    page = (study.folder("report") / "report.html").read_text(encoding="utf-8")
    assert "Slow motion" in page and "No Markov models were asked for" in page


def test_without_a_lag_nothing_of_it_is_there(whole: Study) -> None:
    changes = {name: value for name, value in AGGREGATE.items() if not name.startswith("slow")}
    study = read_study(write_study(whole.path.parent, archive=False, simulate=SIMULATE, aggregate=changes))
    assert run_stage(study, "aggregate") == 0 and run_stage(study, "report") == 0
    assert not slow_rows(study) and "slow" not in found(study)
    assert not any(name.startswith("slow") for name in read_arrays(study.folder("aggregate") / "figures.npz"))
    assert "Slow motion" not in (study.folder("report") / "report.html").read_text(encoding="utf-8")


def test_the_folded_structure_is_judged_by_and_another_one_makes_the_product_stale(whole: Study) -> None:
    path = whole.path.parent / "folded.pdb"
    shutil.copy(whole.folder("simulate") / "trajectories" / "topology.pdb", path)
    study = again(whole, folded_pdb="folded.pdb", slow_states=0)
    assert run_stage(study, "aggregate") == 0
    # the toy is rigid: all of both is within the first bin, 0.02 nm, of its own first frame
    assert slow_rows(study)["JS divergence of the RMSD to the folded structure"]["value"] < 0.01
    assert study.state("aggregate") == State.SEALED
    path.write_text("REMARK another\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert study.state("aggregate") == State.STALE


@pytest.mark.parametrize(
    ("lag_ps", "told"),
    [
        (500.0, "aggregate.slow_lag_ps = 500, pairs of frames 500 frames apart: found segments of at most 420 frames"),
        (2.5, r"aggregate.slow_lag_ps = 2.5: found frames every 1 ps. Choose a multiple"),
    ],
)
def test_a_lag_that_the_archive_has_not_is_refused(whole: Study, lag_ps: float, told: str) -> None:
    with pytest.raises(UnfitLag, match=told):
        run_stage(again(whole, slow_lag_ps=lag_ps), "aggregate")


@pytest.mark.parametrize(
    ("aggregate", "simulate", "told"),
    [
        ({}, {"temperatures_K": [300.0, 330.0], "exchange_ps": 0.08}, "simulate.temperatures_K has a ladder of 2"),
        ({"slow_model_lag_ps": 0.05}, {}, "slow_model_lag_ps = 0.05 has no frames that far apart.* every 0.02 ps"),
        ({"slow_model_lag_ps": 1.2}, {}, "slow_model_lag_ps = 1.2 is 60 frames, and replicas have 60"),
        ({"slow_model_lag_ps": 0.0}, {}, "slow_lag_ps = 2 of the ensemble is 100 frames"),
        ({"folded_pdb": "none.pdb"}, {}, "folded_pdb = 'none.pdb': no file .*none.pdb"),
        ({"slow_lag_ps": 0.0}, {}, "slow_model_lag_ps = 0.02 does nothing with slow_lag_ps = 0"),
        ({"slow_processes": 4}, {}, "slow_states = 4 have at most 3 processes, and slow_processes = 4"),
        ({"contact_nm": 0.0}, {}, "contact_nm"),
    ],
)
def test_slow_motion_that_cannot_be_is_refused_when_the_study_is_read(
    tmp_path: Path, aggregate: dict, simulate: dict, told: str
) -> None:
    changes = {"simulate": SIMULATE | {"group_size": 2} | simulate, "aggregate": AGGREGATE | aggregate}
    with pytest.raises(ConfigError, match=told):
        read_study(write_study(tmp_path, archive=False, **changes))


def test_no_pair_of_frames_crosses_replicas_or_what_was_quarantined() -> None:
    there = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 1]], dtype=bool)
    timeline = slow.model_timeline(there)
    assert timeline.segment.tolist() == [0, 0, 0, 0, 1, 1, 3, 3, 3]
    assert timeline.frame_index.tolist() == [0, 1, 2, 3, 0, 1, 0, 2, 3]
    assert timeline.earlier(1).tolist() == [0, 1, 2, 4, 7]
    # frames 2 apart: of the last replica 0 and 2, which lie one place apart, are left out
    assert timeline.earlier(2).tolist() == [0, 1]


def test_frames_of_uneven_segments_are_left_out(whole: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    segments = [SimpleNamespace(stride_ps=1.0, even=even) for even in (True, False, True)]
    monkeypatch.setattr("hpc_cg.archive.catalogue.Catalogue", lambda folder: segments)
    segment, index = np.array([0, 0, 1, 1, 1, 2]), np.array([0, 1, 0, 1, 2, 5])
    clean = Sample(np.arange(18.0).reshape(6, 1, 3), np.arange(6.0), np.array([0, 0, 1, 1, 2, 3]))
    run, n_uneven = slow.reference_run(whole, SimpleNamespace(segment=segment, frame_index=index), clean)
    assert n_uneven == 1 and run.lag == 2 and run.stride_ps == 1.0
    assert run.sample.weights.tolist() == [0, 1, 5] and run.sample.blocks.tolist() == [0, 0, 1]
    assert run.timeline.segment.tolist() == [0, 0, 2] and run.timeline.frame_index.tolist() == [0, 1, 5]


def chain(names: list[str]):
    bonds = [(i, i + 1) for i in range(len(names) - 1)]
    return bead_system(names, range(len(names)), [12.0] * len(names), bonds, [])


def test_features_of_many_beads_are_those_of_the_alpha_carbons() -> None:
    names = [f"ALA{i}:{atom}" for i in range(20) for atom in ("N", "CA", "C")]
    assert slow.looked_at(chain(names[:30])) == list(range(30))
    assert slow.looked_at(chain(names)) == list(range(1, 60, 3))
    assert slow.looked_at(chain([f"X{i}:C" for i in range(100)])) == list(range(0, 100, 3))


def test_pairs_that_bonds_and_angles_hold_are_not_compared_and_of_many_some_are() -> None:
    system = chain(["C", "N", "CA", "C", "N"])
    assert slow.distant(system, range(5), 10) == ((0, 3), (0, 4), (1, 4))
    assert slow.distant(system, range(5), 2) == ((0, 3), (1, 4))
    assert slow.distant(system, (0, 1, 2), 10) == ()


def write_pdb(path: Path, residues: tuple[str, ...], first: int) -> mdtraj.Trajectory:
    topology = mdtraj.Topology()
    strand = topology.add_chain()
    for number, name in enumerate(residues):
        residue = topology.add_residue(name, strand, resSeq=first + number)
        for atom, element in (("N", "N"), ("CA", "C"), ("C", "C")):
            topology.add_atom(atom, mdtraj.element.get_by_symbol(element), residue)
    atoms = topology.n_atoms
    positions = np.stack([0.14 * np.arange(atoms), np.tile([0.0, 0.05, 0.1], atoms // 3), np.zeros(atoms)], axis=1)
    trajectory = mdtraj.Trajectory(positions, topology)
    trajectory.save_pdb(str(path))
    return trajectory


def test_the_folded_structure_is_mapped_as_the_molecule_is_whatever_its_numbers(tmp_path: Path) -> None:
    names = ("GLY", "TYR", "ALA", "GLU")
    trajectory = write_pdb(tmp_path / "folded.pdb", names, first=42)
    write_pdb(tmp_path / "own.pdb", names, first=1)
    system = coordinate_map(mdtraj.load_topology(str(tmp_path / "own.pdb")), MapChoice("calpha"))[1]
    prepare = {"map": "calpha", "topology": "own.pdb", "beads": []}
    study = read_study(write_study(tmp_path, archive=False, prepare=prepare))
    beads = slow.read_folded(study, system, tmp_path / "folded.pdb")
    np.testing.assert_allclose(beads, trajectory.xyz[0][1::3], atol=1e-4)
    write_pdb(tmp_path / "other.pdb", ("GLY", "TYR", "ALA"), first=1)
    with pytest.raises(TopologyMismatch, match="the 3 beads GLY1:CA TYR2:CA ALA3:CA instead of the 4 beads"):
        slow.read_folded(study, system, tmp_path / "other.pdb")


def test_a_folded_structure_of_beads_given_by_name_has_an_atom_for_each(whole: Study, tmp_path: Path) -> None:
    write_pdb(tmp_path / "six.pdb", ("ALA", "ALA"), first=1)
    with pytest.raises(AtomCountMismatch, match="6 atoms for 5 beads"):
        slow.read_folded(whole, chain(["C", "N", "CA", "C", "N"]), tmp_path / "six.pdb")
