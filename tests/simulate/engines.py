"""What several tests of simulations share: engines, and a force field as it is after training."""

import pytest
import torch

from hpc_cg.beads import BeadSystem
from hpc_cg.errors import NoCompiler
from hpc_cg.forcefield.forcefield import ForceField
from hpc_cg.simulate.engine import Engine, engine
from hpc_cg.simulate.langevin import Dynamics

SEED = 11


def dynamics(
    system: BeadSystem, timestep_ps: float = 0.002, friction_per_ps: float = 1.0, integrator: str = "baoab"
) -> Dynamics:
    """Of the tests: 300 K and one seed."""
    return Dynamics(system.masses, timestep_ps, friction_per_ps, 300.0, SEED, integrator)


def make_engine(name: str, forcefield: ForceField, moves: Dynamics) -> Engine:
    """The engine of that name; skips where there is no compiler for it."""
    try:
        return engine(name, forcefield, moves)
    except NoCompiler as error:
        pytest.skip(str(error))


def biased(forcefield: ForceField) -> ForceField:
    with torch.no_grad():
        for name, value in forcefield.network.named_parameters():
            if name.endswith("bias"):
                value.copy_(torch.linspace(-0.5, 0.7, len(value)))
    return forcefield
