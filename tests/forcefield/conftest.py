"""A six-bead alanine-like molecule near one conformation, its priors, and a force field in float64."""

import numpy as np
import pytest
import torch

from hpc_cg.beads import BeadSystem, bead_system
from hpc_cg.forcefield.coordinates import CoordinateMoments
from hpc_cg.forcefield.fitting import PriorParameters, fit_priors
from hpc_cg.forcefield.forcefield import ForceField
from hpc_cg.forcefield.schnet import SchNetConfig

PLACES = (
    (0, 0, 0),
    (0.13, 0.02, 0),
    (0.2, 0.14, 0.02),
    (0.15, 0.24, 0.1),
    (0.34, 0.13, 0.06),
    (0.42, 0.24, 0.05),
)


@pytest.fixture(scope="session")
def alanine() -> BeadSystem:
    names = ("ACE1:C", "ALA2:N", "ALA2:CA", "ALA2:CB", "ALA2:C", "NME3:N")
    masses = (12.011, 14.007, 12.011, 12.011, 12.011, 14.007)
    bonds = ((0, 1), (1, 2), (2, 3), (2, 4), (4, 5))
    return bead_system(names, range(6), masses, bonds, ((2, 1, 4, 3),))


@pytest.fixture(scope="session")
def frames() -> np.ndarray:
    """2000 frames in nm, float64."""
    return np.array(PLACES) + np.random.default_rng(1).normal(0, 0.005, (2000, 6, 3))


@pytest.fixture(scope="session")
def prior_parameters(alanine: BeadSystem, frames: np.ndarray) -> PriorParameters:
    return fit_priors(CoordinateMoments.of(frames, alanine), 300.0)


@pytest.fixture
def forcefield(alanine: BeadSystem, prior_parameters: PriorParameters) -> ForceField:
    return ForceField(alanine, prior_parameters, SchNetConfig(), seed=3).double()


@pytest.fixture(scope="session")
def positions(frames: np.ndarray) -> torch.Tensor:
    return torch.tensor(frames[:5])
