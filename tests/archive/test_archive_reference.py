"""The archive made here is L-alanine dipeptide, with the forces of its force field."""

import random
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpc_cg.archive import index, readers, reference
from hpc_cg.errors import BadFrames, HpcCgError, MissingExtra
from hpc_cg.frames import AtomFrames
from hpc_cg.mapping.constraints import DistanceMoments, candidate_pairs, rigid_groups
from hpc_cg.mapping.maps import load_topology, slice_map

NM = {"molecule": "ala2", "length_unit": "nm", "force_unit": "kJ/mol/nm"}
SHORT = {"temperature_K": 300.0, "n_frames": 30, "frame_ps": 0.04}


@pytest.fixture(scope="module", autouse=True)
def brief_equilibration():
    """A tenth of the usual equilibration: these tests ask for no ensemble."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "EQUILIBRATION_PS", 2.0)
        yield


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """A short trajectory and its topology, in a folder with a space in its name."""
    pytest.importorskip("openmm")
    folder = tmp_path_factory.mktemp("reference archive")
    reference.write_topology(folder / "topology.pdb")
    reference.run_trajectory(folder / "run 0.h5", seed=0, **SHORT)
    return folder


def frames_of(archive: Path) -> AtomFrames:
    (segment,) = index.scan(["*.h5"], archive, **NM)
    return readers.read(segment, 0, segment.n_frames)


def dihedral(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> float:
    first, axis, last = a - b, (c - b) / np.linalg.norm(c - b), d - c
    x = first - first.dot(axis) * axis
    y = last - last.dot(axis) * axis
    return float(np.degrees(np.arctan2(np.cross(axis, x).dot(y), x.dot(y))))


@pytest.mark.parametrize(("phi", "psi"), [(-65.0, -40.0), (-80.0, 150.0), (55.0, 40.0)])
def test_built_residue_has_the_dihedrals_asked_for_and_is_l(phi, psi):
    place = {row[:2]: xyz for row, xyz in zip(reference.HEAVY_ATOMS, reference.heavy_atoms(phi, psi), strict=True)}
    ala = {name: place["ALA", name] for name in ("N", "CA", "C", "CB")}
    n, ca, c, cb = ala.values()
    assert dihedral(place["ACE", "C"], n, ca, c) == pytest.approx(phi, abs=1e-6)
    assert dihedral(n, ca, c, place["NME", "N"]) == pytest.approx(psi, abs=1e-6)
    assert abs(dihedral(place["ACE", "CH3"], place["ACE", "C"], n, ca)) == pytest.approx(180, abs=1e-6)
    assert reference.handedness(n, ca, c, cb) > 0
    assert reference.handedness(-n, -ca, -c, -cb) < 0
    assert np.linalg.norm(cb - c) == pytest.approx(0.251, abs=0.005)


def test_segment_states_what_was_run(archive):
    (segment,) = index.scan(["run 0.h5"], archive, **NM)
    assert (segment.n_frames, segment.n_atoms, segment.stride_ps, segment.temperature_K) == (
        30,
        22,
        0.04,
        300.0,
    )
    with h5py.File(segment.path) as file:
        assert file.attrs["seed"] == 0 and file.attrs["written"] == 30
        assert file["potential"].shape == (30,) and file["potential"].dtype == np.float64


def test_topology_names_the_beads_and_its_residue_stays_l(archive):
    topology = load_topology(archive / "topology.pdb")
    assert topology.n_atoms == 22 and topology.n_bonds == 21
    matrix, system = slice_map(topology, "alanine-six")
    beads = matrix @ frames_of(archive).positions.astype(np.float64)
    n, ca, c, cb = (beads[:, system.names.index(f"ALA2:{name}")] for name in ("N", "CA", "C", "CB"))
    assert all(reference.handedness(*atoms) > 0 for atoms in zip(n, ca, c, cb, strict=True))


def test_forces_and_potential_are_the_force_fields_own(archive):
    import openmm
    from openmm import app, unit

    pdb = app.PDBFile(str(archive / "topology.pdb"))
    field = app.ForceField("amber14-all.xml", "implicit/obc2.xml")
    system = field.createSystem(pdb.topology, nonbondedMethod=app.NoCutoff, constraints=app.HBonds)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    frames = frames_of(archive)
    with h5py.File(archive / "run 0.h5") as file:
        potential = file["potential"][:]
    for frame in (0, 17, 29):
        context.setPositions(frames.positions[frame].astype(np.float64) * unit.nanometer)
        state = context.getState(forces=True, energy=True)
        exact = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
        np.testing.assert_allclose(frames.forces[frame], exact, atol=0.5)
        energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        assert potential[frame] == pytest.approx(energy, abs=0.01)


def test_bonds_to_hydrogen_are_rigid_and_frames_are_centred(archive):
    frames = frames_of(archive)
    moments = DistanceMoments.of(frames.positions, candidate_pairs(frames.positions[0]))
    assert sorted(len(group) for group in rigid_groups(moments, 22))[-6:] == [2, 2, 2, 4, 4, 4]
    np.testing.assert_allclose(frames.positions.mean(axis=1), 0, atol=1e-6)


def test_same_seed_gives_the_same_run_another_seed_another(archive, tmp_path):
    state = random.getstate()
    said: list[int] = []
    for name, seed in (("same.h5", 0), ("other.h5", 1)):
        reference.run_trajectory(tmp_path / name, seed=seed, progress=said.append, **SHORT)
    assert said == [30, 30] and random.getstate() == state
    with (
        h5py.File(archive / "run 0.h5") as a,
        h5py.File(tmp_path / "same.h5") as b,
        h5py.File(tmp_path / "other.h5") as c,
    ):
        np.testing.assert_array_equal(a["positions"][:], b["positions"][:])
        assert np.abs(a["positions"][0] - c["positions"][0]).max() > 0.01
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.h5", "same.h5"]


def test_run_that_blows_up_is_a_bad_run_and_leaves_no_file(tmp_path):
    pytest.importorskip("openmm")
    with pytest.raises(BadFrames, match="NaN"):
        reference.run_trajectory(tmp_path / "hot.h5", seed=0, temperature_K=1e12, n_frames=2, frame_ps=0.04)
    assert list(tmp_path.iterdir()) == []


def test_frame_time_must_be_a_multiple_of_the_step(tmp_path):
    with pytest.raises(HpcCgError, match=r"0\.001 ps"):
        reference.run_trajectory(tmp_path / "a.h5", seed=0, temperature_K=300.0, n_frames=2, frame_ps=0.001)


def test_missing_openmm_is_said_with_the_command_that_mends_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openmm", None)
    with pytest.raises(MissingExtra, match=r"pip install 'hpc-cg\[openmm\]'"):
        reference.run_trajectory(tmp_path / "a.h5", seed=0, **SHORT)
    with pytest.raises(MissingExtra):
        reference.write_topology(tmp_path / "topology.pdb")
