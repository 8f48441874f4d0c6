"""A six-bead alanine-like molecule, a force field of it, and what a short ensemble needs."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from engines import biased, dynamics, make_engine

from hpc_cg.beads import BeadSystem, bead_system
from hpc_cg.forcefield.coordinates import CoordinateMoments
from hpc_cg.forcefield.fitting import PriorParameters, fit_priors
from hpc_cg.forcefield.forcefield import ForceField
from hpc_cg.forcefield.schnet import SchNetConfig
from hpc_cg.simulate.engine import Engine
from hpc_cg.simulate.ensemble import BlockResult, Limits, run_block
from hpc_cg.simulate.exchange import Exchange
from hpc_cg.simulate.langevin import EnsembleState, init
from hpc_cg.simulate.recorder import Quarantine

PLACES = (
    (0, 0, 0),
    (0.13, 0.02, 0),
    (0.2, 0.14, 0.02),
    (0.15, 0.24, 0.1),
    (0.34, 0.13, 0.06),
    (0.42, 0.24, 0.05),
)


@dataclass(frozen=True)
class Ensemble:
    """A molecule, its force field, 2000 frames (nm) to start from, and the engine that moves it."""

    system: BeadSystem
    prior: PriorParameters
    frames: np.ndarray
    forcefield: ForceField
    engine: Engine
    save_every: int = 50

    def start(self, replica_ids: tuple[int, ...], frames: np.ndarray | None = None) -> EnsembleState:
        """Replica r starts from frame r."""
        places = self.frames if frames is None else frames
        positions = torch.tensor(places[list(replica_ids)], dtype=torch.float32)
        return init(positions, self.engine.evaluate, dynamics(self.system), replica_ids)

    def run(
        self,
        state: EnsembleState,
        n_steps: int,
        replica_ids: tuple[int, ...],
        quarantined: tuple[Quarantine, ...] = (),
        exchange: Exchange | None = None,
        rungs: np.ndarray | None = None,
    ) -> BlockResult:
        limits = Limits.of(self.system, self.prior, max(exchange.temperatures_K) if exchange else 300.0)
        return run_block(
            state,
            self.engine,
            self.system,
            limits,
            self.save_every,
            n_steps,
            replica_ids,
            quarantined,
            exchange,
            rungs,
        )


@pytest.fixture(scope="session")
def alanine() -> BeadSystem:
    names = ("ACE1:C", "ALA2:N", "ALA2:CA", "ALA2:CB", "ALA2:C", "NME3:N")
    masses = (12.011, 14.007, 12.011, 12.011, 12.011, 14.007)
    return bead_system(names, range(6), masses, ((0, 1), (1, 2), (2, 3), (2, 4), (4, 5)), ((2, 1, 4, 3),))


@pytest.fixture(scope="session")
def frames() -> np.ndarray:
    """2000 frames in nm, float64."""
    return np.array(PLACES) + np.random.default_rng(1).normal(0, 0.004, (2000, 6, 3))


@pytest.fixture(scope="session")
def forcefield(alanine: BeadSystem, frames: np.ndarray) -> ForceField:
    """With torsions, and biases that are not zero, as after training."""
    prior = fit_priors(CoordinateMoments.of(frames, alanine), 300.0, 3)
    made = ForceField(alanine, prior, SchNetConfig(n_filters=32, terminal_widths=(32,)))
    return biased(made)


@pytest.fixture(scope="session", params=["torch", pytest.param("compiled", marks=pytest.mark.compiler)])
def ensemble(
    request: pytest.FixtureRequest, alanine: BeadSystem, frames: np.ndarray, forcefield: ForceField
) -> Ensemble:
    moving = make_engine(request.param, forcefield, dynamics(alanine))
    return Ensemble(alanine, forcefield.parameters_of_prior, frames, forcefield, moving)
