"""The priors and the engine on real alanine dipeptide: the numbers that its atomistic trajectories give."""

from dataclasses import replace
from pathlib import Path

import h5py
import mdtraj
import numpy as np
import pytest
import torch
from engines import dynamics, make_engine

from hpc_cg.forcefield.coordinates import CoordinateMoments, bond_lengths
from hpc_cg.forcefield.fitting import fit_priors
from hpc_cg.forcefield.forcefield import ForceField
from hpc_cg.forcefield.schnet import SchNetConfig

HEAVY = (("ACE", "C"), ("ALA", "N"), ("ALA", "CA"), ("ALA", "CB"), ("ALA", "C"), ("NME", "N"))


@pytest.fixture(scope="module")
def real_frames(data_folder: Path) -> np.ndarray:
    topology = mdtraj.load_topology(str(data_folder / "ala2_all_atom" / "topology.pdb"))
    atoms = [next(a.index for a in topology.atoms if (a.residue.name, a.name) == bead) for bead in HEAVY]
    with h5py.File(data_folder / "ala2_all_atom" / "300K_1.h5") as file:
        return file["positions"][:][:, atoms].astype(np.float64)


@pytest.mark.data
def test_priors_of_alanine_have_the_known_stiffness_and_hand(ensemble, real_frames):
    prior = fit_priors(CoordinateMoments.of(real_frames, ensemble.system), 300.0)
    assert prior.bond_k.min() == pytest.approx(2.633e5, rel=0.05)
    assert prior.bond_k.max() == pytest.approx(3.938e5, rel=0.05)
    assert prior.angle_k.min() == pytest.approx(855, rel=0.05)
    assert prior.angle_k.max() == pytest.approx(1307, rel=0.05)
    assert abs(prior.improper_0[0]) > 0.5


@pytest.mark.data
def test_priors_simulated_at_4_fs_keep_bonds_hands_and_the_cold_kinetic_temperature(ensemble, real_frames):
    prior = fit_priors(CoordinateMoments.of(real_frames, ensemble.system), 300.0)
    forcefield = ForceField(ensemble.system, prior, SchNetConfig(n_filters=4, terminal_widths=(4,)))
    with torch.no_grad():
        forcefield.network.last.weight.zero_()
    engine = make_engine(ensemble.engine.name, forcefield, dynamics(ensemble.system, 0.004))
    real = replace(ensemble, prior=prior, engine=engine, save_every=20)
    replicas = tuple(range(200))
    record = real.run(real.start(replicas, real_frames[:: len(real_frames) // 200]), 600, replicas).record
    assert record.quarantined == ()
    sampled = record.positions[10:].reshape(-1, 6, 3)
    wide, wanted = (bond_lengths(x, ensemble.system.bonds).std(axis=0) for x in (sampled, real_frames))
    assert wide / wanted == pytest.approx(1.0, abs=0.04)
    assert 270 < record.kinetic_temperature_K[10:].mean() < 290
