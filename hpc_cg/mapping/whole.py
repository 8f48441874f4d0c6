"""Molecules made whole: frames from periodic cells, with every atom at the image nearest to the one it is bonded to.

A bond vector d that is shorter than half of every height of the cell has fractional coordinates below 1/2 (a
coordinate is at most |d| over its height), so rounding those of any image away gives d back, in a cell of any shape:

    n = round(d cell⁻¹),   d → d - n cell

The whole numbers n add up along a spanning tree of bonds from the first atom of a chain, level by level for all
frames at once, and positions are moved by lattice vectors once. Tuckerman, Statistical Mechanics (2010), appendix B.
"""

from dataclasses import dataclass
from itertools import pairwise, product

import mdtraj
import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

SMALLEST_HEIGHT_NM = 1e-3
"""Cells flatter than that are no cells: files of molecules in vacuum hold zeros or ones that mean nothing."""

NEIGHBOURS = np.array(list(product((-1, 0, 1), repeat=3)), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Whole:
    """The tree of bonds along which atoms are put together, and the chains that are then put side by side.

    parents, children   atoms at the two ends of each bond of the tree, in order of depth
    levels              where each depth begins in them, and their end
    chain               chain of each atom, counted from 0
    """

    parents: Int64[np.ndarray, "edge"]
    children: Int64[np.ndarray, "edge"]
    levels: tuple[int, ...]
    chain: Int64[np.ndarray, "atom"]

    @staticmethod
    def of(topology: mdtraj.Topology, atoms: Int64[np.ndarray, "atom"]) -> "Whole":
        """The tree over ``atoms`` (ascending) of a topology, along its bonds.

        Atoms of one chain that no bond joins are joined in the order they stand: each to the one before it.
        """
        place = {int(atom): i for i, atom in enumerate(atoms)}
        bonds = [(place[a.index], place[b.index]) for a, b in topology.bonds if a.index in place and b.index in place]
        number: dict[int, int] = {}
        of_atom = (topology.atom(int(atom)).residue.chain.index for atom in atoms)
        chain = np.array([number.setdefault(index, len(number)) for index in of_atom], dtype=np.int64)
        return Whole.along(bonds, chain)

    @staticmethod
    def along(bonds: list[tuple[int, int]], chain: Int64[np.ndarray, "atom"]) -> "Whole":
        """The tree over atoms with the given bonds and chains; bonds between chains are left out."""
        n_atoms = len(chain)
        inside = [(i, j) for i, j in bonds if chain[i] == chain[j]]
        part = connected_components(_graph(inside, n_atoms), directed=False)[1]
        last: dict[int, int] = {}
        joined: list[tuple[int, int]] = []
        seen: set[tuple[int, int]] = set()
        for atom in range(n_atoms):
            before = last.get(int(chain[atom]))
            last[int(chain[atom])] = atom
            if before is None or part[before] == part[atom]:
                continue
            parts = (min(part[before], part[atom]), max(part[before], part[atom]))
            if parts not in seen:
                seen.add(parts)
                joined.append((before, atom))
        return _tree(inside + joined, chain)

    def apply(
        self, positions: Float[np.ndarray, "frame atom 3"], cell: Float[np.ndarray, "frame 3 3"] | None
    ) -> Float[np.ndarray, "frame atom 3"]:
        """Positions (nm) with whole chains, in the type they came in; ``cell`` holds box vectors in rows, nm.

        First atoms of chains stay, the others move by lattice vectors; then every chain goes to the image whose
        centre is nearest to that of the first. Right where bonded atoms are closer than half the smallest height of
        the cell. Frames in which nothing is broken, or whose cell is None, zero, flat or no numbers, keep their bits.
        """
        assert positions.shape[1] == len(self.chain), "positions of other atoms than the tree was made for"
        if cell is None or not len(positions):
            return positions
        frames = np.flatnonzero(_is_cell(cell))
        if not self.chain.any():
            frames = frames[self._suspects(positions, cell, frames)]
        if not len(frames):
            return positions
        vectors = cell[frames].astype(np.float64)
        wide = positions[frames].astype(np.float64)
        shifts = self._along_bonds(wide, vectors)
        if self.chain.any():
            shifts += self._beside_the_first(wide + shifts @ vectors, vectors)[:, self.chain]
        broken = shifts.any(axis=(1, 2))
        if not broken.any():
            return positions
        whole = positions.copy()
        whole[frames[broken]] = (wide + shifts @ vectors)[broken]
        return whole

    def _suspects(self, positions: np.ndarray, cell: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Which of ``frames`` may have a bond longer than half a height: in most archives none, quickly seen."""
        steps = self._bond_vectors(positions).reshape(len(positions), -1)
        longest = np.maximum(steps.max(axis=1, initial=0), -steps.min(axis=1, initial=0))[frames]
        return ~(np.sqrt(3) * longest < 0.49 * _heights(cell[frames].astype(np.float64)))

    def _bond_vectors(self, positions: np.ndarray) -> np.ndarray:
        """From parent to child along each bond of the tree, (frame edge 3)."""
        if np.array_equal(self.children, np.arange(1, len(self.chain))) and (self.children - self.parents == 1).all():
            return positions[:, 1:] - positions[:, :-1]  # an unbranched chain, as of Cα atoms: nothing to look up
        return positions[:, self.children] - positions[:, self.parents]

    def _along_bonds(self, positions: np.ndarray, cell: np.ndarray) -> np.ndarray:
        """Whole numbers of lattice vectors that each atom has to move by, (frame atom 3)."""
        shifts = np.zeros(positions.shape)
        steps = np.rint((positions[:, self.children] - positions[:, self.parents]) @ np.linalg.inv(cell))
        if not steps.any():
            return shifts
        for start, stop in pairwise(self.levels):
            edges = slice(start, stop)
            shifts[:, self.children[edges]] = shifts[:, self.parents[edges]] - steps[:, edges]
        return shifts

    def _beside_the_first(self, positions: np.ndarray, cell: np.ndarray) -> np.ndarray:
        """Whole numbers of lattice vectors that each chain has to move by, (frame chain 3)."""
        starts = np.argsort(self.chain, kind="stable")
        first = np.searchsorted(self.chain[starts], np.arange(self.chain.max() + 1))
        sizes = np.bincount(self.chain)[:, None]
        centres = np.add.reduceat(positions[:, starts], first, axis=1) / sizes
        apart = centres - centres[:, :1]
        rounded = apart - (moved := np.rint(apart @ np.linalg.inv(cell))) @ cell
        best, least = -moved, np.linalg.norm(rounded, axis=2) - 1e-6  # of images equally far, the rounded one
        for image in NEIGHBOURS:
            distance = np.linalg.norm(rounded + image @ cell[:, None], axis=2)
            nearer = distance < least
            best, least = np.where(nearer[:, :, None], image - moved, best), np.where(nearer, distance, least)
        return best


def _graph(bonds: list[tuple[int, int]], n_atoms: int) -> csr_array:
    ends = np.asarray(bonds, dtype=np.int64).reshape(-1, 2)
    return csr_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(n_atoms, n_atoms))


def _tree(bonds: list[tuple[int, int]], chain: np.ndarray) -> Whole:
    n_atoms = len(chain)
    roots = np.unique(chain, return_index=True)[1]
    above = [(n_atoms, int(root)) for root in roots]  # one node above all chains, so that one search finds every tree
    order, before = breadth_first_order(_graph(bonds + above, n_atoms + 1), n_atoms, directed=False)
    depth = np.zeros(n_atoms + 1, dtype=np.int64)
    for atom in order[1:]:
        depth[atom] = depth[before[atom]] + 1
    children = order[depth[order] > 1].astype(np.int64)
    levels = np.searchsorted(depth[children], np.arange(2, int(depth.max(initial=1)) + 2))
    return Whole(before[children].astype(np.int64), children, tuple(int(level) for level in levels), chain)


def _is_cell(cell: np.ndarray) -> Bool[np.ndarray, "frame"]:
    """Which frames have a cell of some height in every direction."""
    finite = np.isfinite(cell).all(axis=(1, 2))
    tall: np.ndarray = _heights(np.where(finite[:, None, None], cell, 0.0).astype(np.float64)) > SMALLEST_HEIGHT_NM
    return tall


def _heights(cell: Float[np.ndarray, "frame 3 3"]) -> Float[np.ndarray, "frame"]:
    """The smallest height of each cell: its volume over its largest face; 0 for no cell."""
    faces = np.linalg.norm(np.cross(np.roll(cell, -1, axis=1), np.roll(cell, -2, axis=1)), axis=2).max(axis=1)
    return np.abs(np.linalg.det(cell)) / np.where(faces > 0, faces, 1.0)
