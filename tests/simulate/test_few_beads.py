"""One bead, or beads without a bond, have energies and forces like any other: in plain, tabulated and compiled form."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from engines import biased, dynamics, make_engine

from hpc_cg.beads import bead_system
from hpc_cg.forcefield.coordinates import CoordinateMoments
from hpc_cg.forcefield.evaluator import evaluator
from hpc_cg.forcefield.fitting import Repulsion, fit_priors
from hpc_cg.forcefield.forcefield import ForceField
from hpc_cg.forcefield.grid import Grid
from hpc_cg.forcefield.schnet import SchNetConfig
from hpc_cg.simulate.ensemble import Limits, run_block
from hpc_cg.simulate.langevin import init

CONFIG = SchNetConfig(n_filters=32, terminal_widths=(16,))
ENGINES = ["torch", pytest.param("compiled", marks=pytest.mark.compiler)]


def loose(n_beads: int, repulsion: Repulsion | None) -> tuple[ForceField, torch.Tensor]:
    """Beads without bonds in a force field with biases, and frames of them (nm)."""
    system = bead_system("ab"[:n_beads], range(n_beads), [12.0] * n_beads, [])
    frames = np.random.default_rng(3).normal(0.0, 0.3, (50, n_beads, 3))
    prior = fit_priors(CoordinateMoments.of(frames, system), 300.0, 4, repulsion=repulsion)
    return biased(ForceField(system, prior, CONFIG, seed=2)), torch.tensor(frames)


@pytest.mark.parametrize("repulsion", [None, Repulsion()], ids=["without", "with repulsion"])
@pytest.mark.parametrize("n_beads", [1, 2])
def test_tables_and_grids_give_the_forces_of_the_force_field(n_beads, repulsion):
    model, frames = loose(n_beads, repulsion)
    exact = deepcopy(model).double()
    energy, forces = exact(frames)
    gradient = torch.autograd.grad(exact(frames.requires_grad_()).energy.sum(), frames, allow_unused=True)[0]
    assert energy.isfinite().all() and forces.isfinite().all()
    torch.testing.assert_close(forces, torch.zeros_like(frames) if n_beads == 1 else -gradient)
    assert bool(forces.any()) == (n_beads > 1)
    for tabulated in (True, False):
        found = evaluator(model, torch.float64, tabulated)(frames)
        torch.testing.assert_close(found.energy, energy, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.forces, forces, rtol=1e-3, atol=1e-3)
    on_grid = exact.delta(frames.detach(), Grid(1024))
    torch.testing.assert_close(on_grid, exact.delta(frames.detach()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("n_beads", [1, 2])
def test_engines_give_these_forces_and_a_block_of_frames(name, n_beads):
    model, frames = loose(n_beads, Repulsion())
    wanted, moves, start = deepcopy(model).double()(frames), dynamics(model.system), frames[:6].float()
    moving = make_engine(name, model, moves)
    found = moving.evaluate(frames.float())
    torch.testing.assert_close(found.energy.double(), wanted.energy.detach(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.forces.double(), wanted.forces.detach(), rtol=1e-3, atol=5e-3)
    assert moving.table_error(frames) < 1e-4
    limits = Limits.of(model.system, model.parameters_of_prior, 300.0)
    result = run_block(init(start, moving.evaluate, moves, range(6)), moving, model.system, limits, 10, 20, range(6))
    assert np.isfinite(result.record.positions).all() and not result.quarantined
