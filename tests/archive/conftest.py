"""Small archives in the layouts that the index knows."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest


@pytest.fixture
def make_h5() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Write an HDF5 source of random numbers with given attributes; return its positions and forces."""

    def make(path: Path, n_frames: int = 30, n_atoms: int = 4, seed: int = 0, **attributes: object) -> tuple:
        generator = np.random.default_rng(n_frames + seed)
        positions, forces = generator.normal(size=(2, n_frames, n_atoms, 3)).astype(np.float32)
        with h5py.File(path, "w") as file:
            file.create_dataset("positions", data=positions, chunks=(7, n_atoms, 3), compression="gzip")
            file.create_dataset("forces", data=forces, chunks=(7, n_atoms, 3), compression="gzip")
            file.attrs.update(attributes)
        return positions, forces

    return make


@pytest.fixture
def make_npy() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Write a pair of npy files, coordinates far from the origin; return coordinates and forces."""

    def make(folder: Path, name: str, n_frames: int = 20, n_atoms: int = 5) -> tuple:
        generator = np.random.default_rng(n_frames)
        coordinates, forces = generator.normal(size=(2, n_frames, n_atoms, 3)).astype(np.float32)
        coordinates += generator.uniform(-200, 200, size=(n_frames, 1, 3)).astype(np.float32)
        np.save(folder / f"{name}_coordinates.npy", coordinates)
        np.save(folder / f"{name}_forces.npy", forces)
        return coordinates, forces

    return make
