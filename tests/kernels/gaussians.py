"""Gaussian data, on beads that fluctuate alike on every axis."""

import numpy as np
import torch

from hpc_cg.units import BOLTZMANN

UNIT_KT = 1 / BOLTZMANN
"""The temperature at which kT is 1 kJ/mol."""


def network(n_beads: int, seed: int) -> np.ndarray:
    """A covariance of beads, the same on every axis, nm²."""
    root = np.random.default_rng(seed).normal(size=(n_beads, n_beads))
    return np.linalg.inv(root @ root.T + np.eye(n_beads))


def on_axes(of_beads: np.ndarray) -> np.ndarray:
    """A matrix of beads as one of coordinates."""
    return np.kron(of_beads, np.eye(3))


def frames(covariance: np.ndarray, n_frames: int, seed: int) -> np.ndarray:
    """Positions with that covariance of coordinates."""
    values, modes = np.linalg.eigh(covariance)
    random = np.random.default_rng(seed).normal(size=(n_frames, len(values)))
    return (random * np.sqrt(values.clip(0)) @ modes.T).reshape(n_frames, -1, 3)


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))
