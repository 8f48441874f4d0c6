"""A six-bead alanine dipeptide: built from its angles, and as the shared data have it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpc_cg.beads import BeadSystem, bead_system

SIX_ATOMS = [4, 6, 8, 10, 14, 16]
NAMES = ("ACE1:C", "ALA2:N", "ALA2:CA", "ALA2:CB", "ALA2:C", "NME3:N")
MASSES = (12.011, 14.007, 12.011, 12.011, 12.011, 14.007)


@dataclass(frozen=True)
class Alanine:
    """All-atom frames of the three 10 ns runs, one after another."""

    positions: np.ndarray
    forces: np.ndarray

    @property
    def beads(self) -> np.ndarray:
        return self.positions[:, SIX_ATOMS]


@pytest.fixture(scope="session")
def six() -> BeadSystem:
    bonds = [(0, 1), (1, 2), (2, 3), (2, 4), (4, 5)]
    return bead_system(NAMES, range(6), MASSES, bonds, [(2, 1, 4, 3)])


@pytest.fixture(scope="session")
def five() -> BeadSystem:
    return bead_system(["C", "N", "CA", "C", "N"], range(5), [12.0] * 5, [(0, 1), (1, 2), (2, 3), (3, 4)])


@pytest.fixture(scope="session")
def alanine(data_folder: Path) -> Alanine:
    runs = []
    for i in (1, 2, 3):
        with h5py.File(data_folder / "ala2_all_atom" / f"300K_{i}.h5") as run:
            runs.append((run["positions"][:], run["forces"][:]))
    return Alanine(*(np.concatenate(parts) for parts in zip(*runs, strict=True)))


def place(a: np.ndarray, b: np.ndarray, c: np.ndarray, length: float, angle: float, dihedral: np.ndarray) -> np.ndarray:
    """The bead bonded to c at a length, an angle to b and a dihedral to a."""
    axis = (c - b) / np.linalg.norm(c - b, axis=-1, keepdims=True)
    normal = np.cross(b - a, axis)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    side = np.cross(normal, axis)
    turn = np.cos(dihedral)[:, None] * side + np.sin(dihedral)[:, None] * normal
    return c + length * (-np.cos(angle) * axis + np.sin(angle) * turn)


@pytest.fixture(scope="session")
def peptide() -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Rigid bonds and angles with given φ and ψ, rad: positions of shape (frame, 6, 3), nm."""

    def build(phi: np.ndarray, psi: np.ndarray) -> np.ndarray:
        n = len(phi)
        first = np.tile([0.0, 0.0, 0.0], (n, 1))
        nitrogen = np.tile([0.133, 0.0, 0.0], (n, 1))
        alpha = np.tile([0.133 + 0.146 * np.cos(1.0), 0.146 * np.sin(1.0), 0.0], (n, 1))
        carbon = place(first, nitrogen, alpha, 0.153, np.radians(112), phi)
        beta = place(first, nitrogen, alpha, 0.153, np.radians(109), phi - np.radians(120))
        last = place(nitrogen, alpha, carbon, 0.134, np.radians(117), psi)
        return np.stack([first, nitrogen, alpha, beta, carbon, last], axis=1)

    return build
