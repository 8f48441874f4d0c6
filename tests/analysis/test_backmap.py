"""Energies of backmapped frames: the reference agrees with itself, and beads out of place cost what their bonds say."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import mdtraj
import numpy as np
import pytest

from hpc_cg.analysis import backmap
from hpc_cg.analysis.geometry import wasserstein
from hpc_cg.analysis.rebuild import Conformers, bead_atoms
from hpc_cg.analysis.sample import Sample
from hpc_cg.archive import reference
from hpc_cg.errors import MissingExtra, TooFewFrames, UnknownAtoms
from hpc_cg.mapping.maps import slice_map
from hpc_cg.mapping.topology import load_topology

SPRING = 259_408.0
"""Stiffness of CA–CB in amber14, kJ/mol/nm²; its energy is half of it times the square of the stretch."""

CA, CB = 2, 3


@dataclass(frozen=True)
class Alanine:
    """Alanine dipeptide, its conformers, and two samples of frames between them."""

    topology: mdtraj.Topology
    conformers: Conformers
    minimiser: backmap.Minimiser
    one: Sample
    other: Sample

    def treated(self, sample: Sample) -> backmap.Backmapped:
        return backmap.backmap(sample, self.conformers, self.topology, self.minimiser)


@pytest.fixture(scope="module")
def alanine(tmp_path_factory: pytest.TempPathFactory) -> Alanine:
    """Blocks of four frames: every other one gives conformers, those between two samples by turns."""
    pytest.importorskip("openmm")
    folder = tmp_path_factory.mktemp("alanine")
    reference.write_topology(folder / "topology.pdb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "EQUILIBRATION_PS", 4.0)
        reference.run_trajectory(folder / "run.h5", seed=1, temperature_K=300.0, n_frames=80, frame_ps=0.2)
    with h5py.File(folder / "run.h5") as file:
        positions = file["positions"][:]
    topology = load_topology(folder / "topology.pdb")
    coordinate, system = slice_map(topology, "alanine-six")
    held = bead_atoms(coordinate, system.names)
    blocks = np.arange(80) // 4

    def sample(turn: int) -> Sample:
        mine = np.flatnonzero(blocks % 4 == turn)
        return Sample(positions[mine][:, held], np.ones(len(mine)), blocks[mine] // 4)

    conformers = Conformers(positions[blocks % 2 == 0], held)
    return Alanine(topology, conformers, backmap.Minimiser(topology, held), sample(1), sample(3))


@pytest.fixture(scope="module")
def found(alanine: Alanine) -> backmap.Backmapped:
    return alanine.treated(alanine.one)


def test_reference_frames_agree_with_others_of_the_reference(alanine: Alanine, found: backmap.Backmapped) -> None:
    shift, distance, ratio = backmap.judge(found, alanine.treated(alanine.other), 300.0, seed=1, n_resamples=50)
    assert abs(shift.estimate.value) < 4 * shift.estimate.error
    assert distance.excess < 4 * distance.floor.spread
    assert ratio.estimate.value == pytest.approx(1, abs=4 * ratio.estimate.error)
    assert found.kept.all()


def test_beads_stay_where_they_are(alanine: Alanine, found: backmap.Backmapped) -> None:
    np.testing.assert_allclose(found.positions[:, alanine.conformers.beads], alanine.one.positions, rtol=0, atol=1e-7)


def test_energies_are_minima_of_the_other_atoms(alanine: Alanine, found: backmap.Backmapped) -> None:
    """Any small move of an atom that is no bead costs energy."""
    free = np.setdiff1d(np.arange(22), alanine.conformers.beads)
    context = alanine.minimiser._context
    for seed in range(5):
        moved = found.positions[0].copy()
        moved[free] += np.random.default_rng(seed).normal(0, 0.002, (len(free), 3))
        context.setPositions(moved)
        assert context.getState(energy=True).getPotentialEnergy()._value > found.energies[0]


def test_a_bond_stretched_either_way_costs_the_energy_of_its_spring(
    alanine: Alanine, found: backmap.Backmapped
) -> None:
    """The mean of both ways is free of the slope; neighbours that lean on the bead add to the spring."""
    stretch, costs, some = 0.01, [], slice(0, 8)
    for way in (stretch, -stretch):
        beads = alanine.one.positions[some].astype(np.float64)
        bond = beads[:, CB] - beads[:, CA]
        beads[:, CB] += way * bond / np.linalg.norm(bond, axis=1, keepdims=True)
        costs.append(alanine.treated(Sample(beads, np.ones(8), np.arange(8))).energies - found.energies[some])
    spring = SPRING * stretch**2 / 2
    assert spring < np.mean(costs) < 1.5 * spring


def test_noise_on_the_beads_is_seen_in_every_estimate(alanine: Alanine, found: backmap.Backmapped) -> None:
    noise = np.random.default_rng(0).normal(0, 0.005, alanine.one.positions.shape)
    noised = alanine.treated(replace(alanine.one, positions=alanine.one.positions + noise))
    shift, distance, ratio = backmap.judge(found, noised, 300.0, seed=1, n_resamples=50)
    assert shift.estimate.value > 5 * shift.estimate.error
    assert distance.excess > 5 * distance.floor.spread
    assert ratio.estimate.value > 2


def test_mirrored_frames_are_counted_and_left_out(alanine: Alanine, found: backmap.Backmapped) -> None:
    positions = alanine.one.positions.copy()
    positions[:6] *= [1, 1, -1]
    mixed = alanine.treated(replace(alanine.one, positions=positions))
    assert (mixed.mirrored | mixed.failed)[:6].all() and mixed.mirrored.sum() >= 4
    assert mixed.kept[6:].all()
    wrong, _ = backmap.lost_shares(mixed)
    assert wrong.estimate.value == mixed.mirrored.sum() / len(positions)
    shift, *_ = backmap.judge(found, mixed, 300.0, seed=1, n_resamples=10)
    expected = mixed.energies[6:].mean() - found.energies.mean()
    assert shift.estimate.value == pytest.approx(expected / 2.494338785, rel=1e-6)


def test_beads_in_one_place_are_lost_and_not_an_error(alanine: Alanine) -> None:
    positions = alanine.one.positions[:2].copy()
    positions[0] = positions[0, :1]
    lost = alanine.treated(Sample(positions, np.ones(2), np.arange(2)))
    assert lost.failed.tolist() == [True, False] and not lost.mirrored[0]


def test_a_frame_gives_the_same_bits_whatever_was_minimised_before(alanine: Alanine, found: backmap.Backmapped) -> None:
    backwards = Sample(alanine.one.positions[4::-1], np.ones(5), np.arange(5))
    np.testing.assert_array_equal(alanine.treated(backwards).energies[::-1], found.energies[:5])


def test_the_floor_of_halves_is_the_distance_of_samples_of_one_density() -> None:
    random = np.random.default_rng(0)
    n, m = 400, 200
    floor = backmap.halves_floor(random.normal(size=n), np.ones(n), np.arange(n) // 4, float(m), seed=1)
    true = np.mean([wasserstein(random.normal(size=n), random.normal(size=m)) for _ in range(200)])
    assert floor.mean == pytest.approx(true, rel=0.15)


def test_an_ensemble_of_which_nothing_is_left_is_said(alanine: Alanine, found: backmap.Backmapped) -> None:
    nothing = replace(found, failed=np.ones(len(found.failed), dtype=bool))
    with pytest.raises(TooFewFrames, match="the model: found none of 20: 20 were not minimised"):
        backmap.judge(found, nothing, 300.0, seed=1)


def test_a_topology_without_hydrogens_is_refused(alanine: Alanine) -> None:
    heavy = alanine.topology.subset(alanine.topology.select("not element H"))
    with pytest.raises(UnknownAtoms, match="No template found for residue .* whole amino acids with their hydrogens"):
        backmap.Minimiser(heavy, np.arange(2))


def test_without_openmm_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openmm", None)
    with pytest.raises(MissingExtra, match=r"energies of backmapped frames.*hpc-cg\[openmm\]"):
        backmap.Minimiser(mdtraj.Topology(), np.arange(2))
