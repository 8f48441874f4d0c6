"""Priors of a real Cα protein: chignolin, 1.25 ns of all atoms at 340 K."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hpc_cg.beads import BeadSystem
from hpc_cg.forcefield.coordinates import CoordinateMoments
from hpc_cg.forcefield.fitting import PriorParameters, Repulsion, fit_priors
from hpc_cg.forcefield.priors import Prior
from hpc_cg.mapping.maps import MapChoice, coordinate_map, load_topology
from hpc_cg.units import kT

TEMPERATURE_K = 340.0


@pytest.fixture(scope="module")
def chignolin(data_folder: Path) -> tuple[BeadSystem, np.ndarray]:
    folder = data_folder / "chignolin_all_atom"
    topology = load_topology(folder / "topology.pdb")
    matrix, system = coordinate_map(topology, MapChoice("calpha", bead_types="residue-termini"))
    with h5py.File(folder / "340K_1.h5") as file:
        atoms = file["positions"][:].astype(np.float64)
    return system, np.einsum("ba,fax->fbx", matrix, atoms)


@pytest.fixture(scope="module")
def priors(chignolin: tuple[BeadSystem, np.ndarray]) -> PriorParameters:
    system, frames = chignolin
    return fit_priors(CoordinateMoments.of(frames, system), TEMPERATURE_K, 8, True, "type", Repulsion())


def test_both_ends_have_types_of_their_own(chignolin: tuple[BeadSystem, np.ndarray]) -> None:
    system, _ = chignolin
    names = [name.partition(":")[0].rstrip("0123456789") for name in system.names]
    assert (names[0], names[1], names[-1]) == ("TYR", "TYR", "TYR")
    assert len({system.types[0], system.types[1], system.types[-1]}) == 3
    assert system.types[5] == system.types[7]  # both THR


def test_bonds_of_the_chain_are_those_between_trans_residues(priors: PriorParameters) -> None:
    assert np.abs(priors.bond_0 - 0.387).max() < 0.003
    assert len(priors.torsion_cos) == 7 and np.isfinite(priors.torsion_cos).all()


def test_beads_are_as_large_as_the_contacts_of_a_hairpin(priors: PriorParameters) -> None:
    assert {tuple(pair) for pair in priors.repulsion_pairs.tolist()} == {
        (i, j) for i in range(10) for j in range(i + 4, 10)
    }
    assert 0.35 < priors.repulsion_sigma.min() < 0.40
    assert priors.repulsion_sigma.max() == 0.6


def test_torsions_keep_the_hand_that_distances_do_not_know(
    chignolin: tuple[BeadSystem, np.ndarray], priors: PriorParameters
) -> None:
    system, frames = chignolin
    model, x = Prior(system, priors).double(), torch.tensor(frames[::25])
    here, there = model(x).energy, model(x * torch.tensor([1.0, 1.0, -1.0])).energy
    thermal = kT(TEMPERATURE_K)
    assert float((there - here).mean()) > 10 * thermal
    assert bool((there > here).all())


def test_the_frames_have_thermal_energies_in_their_own_priors(
    chignolin: tuple[BeadSystem, np.ndarray], priors: PriorParameters
) -> None:
    system, frames = chignolin
    x = torch.tensor(frames[::25]).requires_grad_()
    energy, forces = Prior(system, priors).double()(x)
    torch.testing.assert_close(forces, -torch.autograd.grad(energy.sum(), x)[0], rtol=1e-7, atol=1e-7)
    assert float((energy.max() - energy.min()).detach()) < 60 * kT(TEMPERATURE_K)
