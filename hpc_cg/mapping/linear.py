"""The product of a map with frames, M x for every frame, in float64 and with the same bits however frames are blocked.

Three ways, by how full the matrix is:

- rows that pick one atom each: the atoms are copied;
- few atoms per row: the n-th atoms of all rows are multiplied and added at once, so the sum of a row runs in the order
  of its atoms, whatever frames lie beside;
- many: matrix products of exactly FRAMES frames, padded with zeros. BLAS may round a column at the edge of a product
  otherwise than one inside; 3 FRAMES columns fill every register tile (4, 6, 8, 12, 16, 24 or 32 wide), so there is
  no edge, and a frame's place among the columns does not matter.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

FRAMES = 64
"""Frames in one matrix product; 3 · 64 columns are a multiple of the width of every tile."""

FEW = 4
"""Atoms per row, on average, up to which rows are summed atom by atom; or up to SPARSE of all elements."""

SPARSE = 0.01
"""An element that is summed by itself costs as much as a hundred in a matrix product."""


@dataclass(frozen=True, eq=False)
class Product:
    """A matrix made ready to be applied to many frames."""

    apply: Callable[[np.ndarray], np.ndarray]

    @staticmethod
    def of(matrix: Float[np.ndarray, "row atom"]) -> "Product":
        """Choose the way that is quick for this matrix."""
        wide = matrix.astype(np.float64)
        filled = wide != 0
        if (filled.sum(axis=1) == 1).all() and (wide[filled] == 1).all():
            return Product(_Picks(wide.argmax(axis=1)))
        if filled.sum() <= max(FEW * len(wide), SPARSE * wide.size):
            return Product(_few(wide))
        return Product(_Dense(wide))

    def __call__(self, vectors: Float[np.ndarray, "*frame atom 3"]) -> Float64[np.ndarray, "*frame row 3"]:
        """The product for any number of leading axes."""
        flat = vectors.reshape(-1, *vectors.shape[-2:])
        with np.errstate(invalid="ignore"):  # frames that are no numbers are found and left out by the caller
            mapped = self.apply(flat)
        return mapped.reshape(*vectors.shape[:-2], *mapped.shape[1:])


@dataclass(frozen=True, eq=False)
class _Picks:
    atoms: np.ndarray

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        return vectors[:, self.atoms].astype(np.float64)


@dataclass(frozen=True, eq=False)
class _Few:
    """Rows in order of falling length; layer n holds the n-th atom of the rows that have one, and its weight."""

    back: np.ndarray
    layers: tuple[tuple[np.ndarray, np.ndarray], ...]

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        total = np.zeros((len(vectors), len(self.back), 3))
        for atoms, weights in self.layers:
            total[:, : len(atoms)] += vectors[:, atoms] * weights
        return total[:, self.back]


def _few(matrix: np.ndarray) -> _Few:
    atoms = [np.flatnonzero(row) for row in matrix]
    order = np.argsort([-len(row) for row in atoms], kind="stable")
    layers = []
    for depth in range(max(len(row) for row in atoms)):
        rows = [row for row in order if len(atoms[row]) > depth]
        picked = np.array([atoms[row][depth] for row in rows], dtype=np.int64)
        layers.append((picked, matrix[rows, picked][:, None]))
    return _Few(np.argsort(order, kind="stable"), tuple(layers))


@dataclass(frozen=True, eq=False)
class _Dense:
    matrix: np.ndarray

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        n_frames, n_atoms = vectors.shape[:2]
        mapped = np.empty((n_frames, len(self.matrix), 3))
        columns = np.zeros((n_atoms, 3, FRAMES))
        for start in range(0, n_frames, FRAMES):
            block = vectors[start : start + FRAMES]
            columns[:, :, : len(block)] = block.transpose(1, 2, 0)
            columns[:, :, len(block) :] = 0
            product = (self.matrix @ columns.reshape(n_atoms, -1)).reshape(-1, 3, FRAMES)
            mapped[start : start + FRAMES] = product[:, :, : len(block)].transpose(2, 0, 1)
        return mapped
