"""A six-bead alanine-like molecule, a force field of it, and what a short ensemble needs."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from hpc_cg.beads import BeadSystem, bead_system
from hpc_cg.forcefield.coordinates import CoordinateMoments, PriorParameters, fit_priors
from hpc_cg.forcefield.evaluator import Evaluate, evaluator
from hpc_cg.forcefield.forcefield import ForceField
from hpc_cg.forcefield.schnet import SchNetConfig
from hpc_cg.simulate.ensemble import BlockResult, Limits, SimulateParameters, run_block
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
SEED = 11


@dataclass(frozen=True)
class Ensemble:
    """A molecule, its priors, its forces, and 2000 frames (nm) to start from."""

    system: BeadSystem
    prior: PriorParameters
    frames: np.ndarray
    parameters: SimulateParameters
    evaluate: Evaluate
    dtype: torch.dtype = torch.float32

    def start(self, replica_ids: tuple[int, ...], frames: np.ndarray | None = None) -> EnsembleState:
        """Replica r starts from frame r."""
        places = self.frames if frames is None else frames
        positions = torch.tensor(places[list(replica_ids)], dtype=self.dtype)
        return init(positions, self.evaluate, self.system.masses, 300.0, SEED, replica_ids)

    def run(
        self,
        state: EnsembleState,
        n_steps: int,
        replica_ids: tuple[int, ...],
        quarantined: tuple[Quarantine, ...] = (),
    ) -> BlockResult:
        limits = Limits.of(self.system, self.prior, 300.0)
        return run_block(
            state,
            self.evaluate,
            self.system,
            limits,
            self.parameters,
            n_steps,
            SEED,
            replica_ids,
            quarantined,
        )


@pytest.fixture(scope="session")
def ensemble() -> Ensemble:
    names = ("ACE1:C", "ALA2:N", "ALA2:CA", "ALA2:CB", "ALA2:C", "NME3:N")
    masses = (12.011, 14.007, 12.011, 12.011, 12.011, 14.007)
    system = bead_system(names, range(6), masses, ((0, 1), (1, 2), (2, 3), (2, 4), (4, 5)), ((2, 1, 4, 3),))
    frames = np.array(PLACES) + np.random.default_rng(1).normal(0, 0.004, (2000, 6, 3))
    prior = fit_priors(CoordinateMoments.of(frames, system), 300.0)
    forcefield = ForceField(system, prior, SchNetConfig(n_filters=32, terminal_widths=(32,)))
    return Ensemble(system, prior, frames, SimulateParameters(0.002, 1.0, 300.0, 50), evaluator(forcefield))
