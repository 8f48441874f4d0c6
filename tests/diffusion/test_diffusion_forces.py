"""The force field in a diffusion model, against that of blurred Gaussian data."""

import numpy as np
import pytest
import torch
from exact_noise import SCALE_NM, SCHEDULE, exact_model, frames, network
from torch import Tensor

from hpc_cg.diffusion.forces import DiffusionForceField, evaluator
from hpc_cg.diffusion.model import DiffusionModel
from hpc_cg.diffusion.transformer import GraphTransformer, TransformerConfig
from hpc_cg.errors import UnfitLevel
from hpc_cg.simulate.langevin import Dynamics, init, move_of
from hpc_cg.units import kT

COVARIANCE = network(4, 0)


def analytic(positions: Tensor, sigma_nm: float) -> Tensor:
    """−kT (s² C + σ²)⁻¹ R of the modes in which beads move, kJ/mol/nm."""
    variances, modes = np.linalg.eigh(COVARIANCE)
    stiffness = kT(300.0) / (SCALE_NM**2 * variances + sigma_nm**2)
    stiffness[0] = 0
    return -torch.from_numpy((modes * stiffness) @ modes.T) @ positions


@pytest.mark.parametrize("level", [0, 8, 20, 300])
def test_with_its_shrinking_the_force_is_exactly_that_of_blurred_data(level: int) -> None:
    forcefield = DiffusionForceField(exact_model(COVARIANCE), level, 300.0, shrunk=True)
    positions = SCALE_NM * frames(COVARIANCE, 5, 1)
    torch.testing.assert_close(forcefield(positions).forces, analytic(positions, forcefield.sigma_nm))


@pytest.mark.parametrize("level", [5, 20])
def test_as_published_it_is_too_strong_by_the_part_of_the_variance_that_is_noise(level: int) -> None:
    forcefield = DiffusionForceField(exact_model(COVARIANCE), level, 300.0)
    positions = SCALE_NM * frames(COVARIANCE, 5, 1)
    wanted = analytic(positions, forcefield.sigma_nm) / SCHEDULE.signal[level]
    torch.testing.assert_close(forcefield(positions).forces, wanted)


@pytest.mark.parametrize("shrunk", [False, True])
def test_forces_are_minus_the_gradient_of_the_energy(shrunk: bool) -> None:
    config = TransformerConfig(width=8, n_layers=2, n_heads=2, head_width=4)
    model = DiffusionModel(GraphTransformer((0, 1, 1, 2), config), SCALE_NM).double()
    forcefield = DiffusionForceField(model, 300, 300.0, shrunk)
    positions = (SCALE_NM * frames(COVARIANCE, 3, 1)).requires_grad_()
    found = forcefield(positions)
    (gradient,) = torch.autograd.grad(found.energy.sum(), positions)
    torch.testing.assert_close(found.forces, -gradient)
    quiet = evaluator(forcefield, torch.float64)(positions.detach())
    torch.testing.assert_close(quiet.forces, found.forces.detach())
    torch.testing.assert_close(quiet.energy, found.energy.detach())


def test_what_is_evaluated_does_not_change_with_later_training() -> None:
    model = DiffusionModel(GraphTransformer((0, 1), TransformerConfig(8, 1, 2, 4)), SCALE_NM)
    forcefield, positions = DiffusionForceField(model, 8, 300.0), SCALE_NM * frames(network(2, 0), 3, 1).float()
    evaluate = evaluator(forcefield)
    before = evaluate(positions).forces
    with torch.no_grad():
        model.predictor.last.weight.mul_(2.0)
    torch.testing.assert_close(evaluate(positions).forces, before, rtol=0, atol=0)
    torch.testing.assert_close(forcefield(positions).forces, 2 * before)


def test_langevin_dynamics_keeps_the_spread_of_blurred_data() -> None:
    forcefield = DiffusionForceField(exact_model(COVARIANCE), 20, 300.0)
    dynamics = Dynamics((12.0,) * 4, 0.002, 5.0, 300.0, seed=1)
    evaluate, ids = evaluator(forcefield, torch.float64), range(500)
    state = init(0.5 * SCALE_NM * frames(COVARIANCE, 500, 1), evaluate, dynamics, ids)
    move, generator = move_of(dynamics, state.positions), torch.Generator().manual_seed(0)
    squares = []
    for step in range(1500):
        state = move(state, evaluate, torch.randn(state.positions.shape, generator=generator, dtype=torch.float64))
        if step >= 500 and step % 50 == 0:
            squares.append(float((state.positions - state.positions.mean(1, keepdim=True)).square().mean()))
    wanted = SCALE_NM**2 + 0.75 * forcefield.sigma_nm**2
    assert np.mean(squares) == pytest.approx(wanted, rel=0.05)


def test_a_level_that_is_not_there_is_refused() -> None:
    with pytest.raises(UnfitLevel, match="noise level 1000"):
        DiffusionForceField(exact_model(COVARIANCE), 1000, 300.0)
