import numpy as np
import pytest
import torch

from hpc_cg.beads import bead_system
from hpc_cg.forcefield.coordinates import CoordinateMoments
from hpc_cg.forcefield.fitting import PriorParameters, Repulsion, fit_priors
from hpc_cg.forcefield.priors import Prior
from hpc_cg.forcefield.repulsion import RepulsionPrior

PAIR = bead_system("ab", range(2), [12.0, 12.0], [])


def two_beads(sigma: float) -> PriorParameters:
    none, order = np.zeros(0), np.zeros((0, 0))
    return PriorParameters(none, none, none, none, none, none, order, order, np.array([[0, 1]]), np.array([sigma]))


def at(*distances: float) -> torch.Tensor:
    positions = torch.zeros(len(distances), 2, 3, dtype=torch.float64)
    positions[:, 1, 1] = torch.tensor(distances, dtype=torch.float64)
    return positions


def test_at_sigma_the_energy_is_a_kilocalorie_and_falls_with_the_sixth_power() -> None:
    prior = RepulsionPrior(PAIR, two_beads(0.4)).double()
    energy, forces = prior(at(0.4, 0.8, 0.2))
    assert energy.tolist() == pytest.approx([4.184, 4.184 / 64, 4.184 * 64], rel=1e-6)
    assert forces[0, 1].tolist() == pytest.approx([0, 6 * 4.184 / 0.4, 0], rel=1e-6)
    assert torch.equal(forces[:, 0], -forces[:, 1])


@pytest.mark.parametrize("distance", [0.03, 0.0999, 0.15, 0.41, 1.3])
def test_forces_are_minus_the_gradient_at_any_distance(distance: float) -> None:
    prior, x = RepulsionPrior(PAIR, two_beads(0.4)).double(), at(distance).requires_grad_()
    energy, forces = prior(x)
    gradient = torch.autograd.grad(energy.sum(), x)[0]
    torch.testing.assert_close(forces, -gradient, rtol=1e-8, atol=1e-10)
    width = 1e-7
    slope = (prior(at(distance + width)).energy - prior(at(distance - width)).energy) / (2 * width)
    assert float(forces.detach()[0, 1, 1]) == pytest.approx(-float(slope), rel=1e-5)


def test_beads_in_one_place_give_numbers_in_single_precision() -> None:
    energy, forces = RepulsionPrior(PAIR, two_beads(0.6))(torch.zeros(3, 2, 3))
    assert energy.isfinite().all() and forces.isfinite().all()
    assert (energy > 4096 * 4.184).all()


def test_repulsion_adds_to_the_other_priors(alanine, frames) -> None:
    moments, x = CoordinateMoments.of(frames, alanine), torch.tensor(frames[:5])
    with_, without = (fit_priors(moments, 300.0, 4, repulsion=choice) for choice in (Repulsion(), None))
    assert with_.repulsion_pairs.tolist() == [[0, 5]]
    more, less = Prior(alanine, with_).double()(x), Prior(alanine, without).double()(x)
    alone = RepulsionPrior(alanine, with_).double()(x)
    torch.testing.assert_close(more.energy, less.energy + alone.energy)
    torch.testing.assert_close(more.forces, less.forces + alone.forces)
