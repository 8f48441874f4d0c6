"""Molecules made whole: frames from periodic cells, with every atom at the image nearest to the one it is bonded to.

A bond vector d that is shorter than half of every height of the cell has fractional coordinates below 1/2 (a
coordinate is at most |d| over its height), so rounding those of any image away gives d back, in a cell of any shape:

    n = round(d cell⁻¹),   d → d - n cell

The whole numbers n add up along a spanning tree of bonds from the first atom of a chain, level by level for all
frames at once, and positions are moved by lattice vectors once. Tuckerman, Statistical Mechanics (2010), appendix B.

Where only some atoms are wanted, an edge of the tree stands for a path of bonds (``paths``), and its ends can be as far
apart as that reaches. Lattice vectors are no shorter than the smallest height h, so of the images of an edge only the
one found can be that short where h - |d| is more than the reach. Frames in smaller cells are refused.
"""

from dataclasses import dataclass, field
from itertools import pairwise, product

import mdtraj
import numpy as np
from jaxtyping import Float, Float64, Int64
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

from hpc_cg.errors import BadFrames
from hpc_cg.mapping.paths import paths

SMALLEST_HEIGHT_NM = 0.15
"""Cells flatter than a bond hold no molecule: files of molecules in vacuum have zeros or 1 Å there, to say nothing."""

NEIGHBOURS = np.array(list(product((-1, 0, 1), repeat=3)), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Whole:
    """The tree of bonds along which atoms are put together, and the chains that are then put side by side.

    parents, children   atoms at the two ends of each bond of the tree, in order of depth
    levels              where each depth begins in them, and their end
    chain               chain of each atom, counted from 0
    reach               how far apart the ends of each edge can be, nm; 0 where that is not known
    between             numbers, ascending, of atoms that the tree needs beside those it was asked for; all atoms of
                        the tree stand in the order of their numbers
    """

    parents: Int64[np.ndarray, "edge"]
    children: Int64[np.ndarray, "edge"]
    levels: tuple[int, ...]
    chain: Int64[np.ndarray, "atom"]
    reach: Float64[np.ndarray, "edge"]
    between: Int64[np.ndarray, "between"] = field(default_factory=lambda: np.zeros(0, np.int64))

    @staticmethod
    def of(topology: mdtraj.Topology, atoms: Int64[np.ndarray, "asked"]) -> "Whole":
        """The tree over ``atoms`` (ascending) along the bonds of a topology, and over as few atoms between as it takes.

        Chains that are bonded to one another count as one. Parts of a chain that no bonds join are molecules of their
        own, which follow the one before.
        """
        found = paths(topology, atoms)
        every = np.union1d(atoms, found.between)
        chain = np.unique(found.chain[every], return_inverse=True)[1].astype(np.int64)
        return _joined(np.searchsorted(every, found.ends), found.reach, chain, found.between)

    @staticmethod
    def among(topology: mdtraj.Topology, atoms: Int64[np.ndarray, "atom"]) -> "Whole":
        """The tree over ``atoms`` (ascending) alone, along the bonds between them: enough to look at these bonds."""
        place = {int(atom): i for i, atom in enumerate(atoms)}
        bonds = [(place[a.index], place[b.index]) for a, b in topology.bonds if a.index in place and b.index in place]
        number: dict[int, int] = {}
        of_atom = (topology.atom(int(atom)).residue.chain.index for atom in atoms)
        chain = np.array([number.setdefault(index, len(number)) for index in of_atom], dtype=np.int64)
        return Whole.along(bonds, chain)

    @staticmethod
    def along(bonds: list[tuple[int, int]], chain: Int64[np.ndarray, "atom"], reach_nm: float = 0.0) -> "Whole":
        """The tree over atoms with the given bonds and chains; bonds between chains are left out.

        Atoms of one chain that no bond joins are joined in the order they stand: each to the one before it.
        ``reach_nm`` is the longest that a bond can be; 0 where that is not known, and not looked at.
        """
        inside = np.array([(i, j) for i, j in bonds if chain[i] == chain[j]], dtype=np.int64).reshape(-1, 2)
        return _joined(inside, np.full(len(inside), reach_nm), chain, np.zeros(0, np.int64))

    def apply(
        self, positions: Float[np.ndarray, "frame atom 3"], cell: Float[np.ndarray, "frame 3 3"] | None
    ) -> Float[np.ndarray, "frame atom 3"]:
        """Positions (nm) with whole chains, in the type they came in; ``cell`` holds box vectors in rows, nm.

        First atoms of chains stay, the others move by lattice vectors; then every chain goes to the image whose
        centre is nearest to that of the first. Frames in which nothing is broken, or whose cell is None, zero, flat or
        no numbers, keep their bits. Raises BadFrames for a cell so small that bonded atoms could be in two images;
        where reach is not known, bonds have to be shorter than half the smallest height.
        """
        assert positions.shape[1] == len(self.chain), "positions of other atoms than the tree was made for"
        if cell is None or not len(positions):
            return positions
        heights = _heights(cell)
        frames = np.flatnonzero(heights > SMALLEST_HEIGHT_NM)
        self._refuse_small(positions, cell, heights, frames)
        if not self.chain.any():
            frames = frames[self._suspects(positions, heights, frames)]
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

    def _refuse_small(self, positions: np.ndarray, cell: np.ndarray, heights: np.ndarray, frames: np.ndarray) -> None:
        """Raise BadFrames where an edge has two images within its reach; in cells of usual size there are none."""
        small = frames[heights[frames] < 2 * self.reach.max(initial=0.0)]
        small = small[np.isfinite(positions[small]).all(axis=(1, 2))]
        if not len(small):
            return
        vectors, wide = cell[small].astype(np.float64), positions[small].astype(np.float64)
        apart = self._bond_vectors(wide)
        nearest = np.linalg.norm(apart - np.rint(apart @ np.linalg.inv(vectors)) @ vectors, axis=2)
        unclear = (self.reach > 0) & (heights[small, None] - nearest < self.reach)
        if unclear.any():
            frame, edge = np.argwhere(unclear)[0]
            raise BadFrames(
                "molecules made whole across their periodic cell",
                f"a cell {heights[small[frame]]:.2f} nm high, too small to tell the images of atoms that are up to "
                f"{self.reach[edge]:.1f} nm apart along their bonds",
                "give the cell its right size; where the simulation was not periodic, take the cell out of the files",
            )

    def _suspects(self, positions: np.ndarray, heights: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Which of ``frames`` may have a bond longer than half a height: in most archives none, quickly seen."""
        steps = self._bond_vectors(positions).reshape(len(positions), -1)
        longest = np.maximum(steps.max(axis=1, initial=0), -steps.min(axis=1, initial=0))[frames]
        return ~(np.sqrt(3) * longest < 0.49 * heights[frames])

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


def _joined(bonds: np.ndarray, reach: np.ndarray, chain: np.ndarray, between: np.ndarray) -> Whole:
    """The tree along bonds inside chains, and from each part that they leave apart to the one before it."""
    n_atoms = len(chain)
    part = connected_components(_graph(bonds, n_atoms), directed=False)[1]
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
    edges = np.concatenate([bonds, np.array(joined, dtype=np.int64).reshape(-1, 2)])
    return _tree(edges, np.concatenate([reach, np.zeros(len(joined))]), chain, between)


def _graph(bonds: np.ndarray, n_atoms: int) -> csr_array:
    return csr_array((np.ones(len(bonds)), (bonds[:, 0], bonds[:, 1])), shape=(n_atoms, n_atoms))


def _tree(bonds: np.ndarray, reach: np.ndarray, chain: np.ndarray, between: np.ndarray) -> Whole:
    n_atoms = len(chain)
    roots = np.unique(chain, return_index=True)[1]
    above = np.stack([np.full(len(roots), n_atoms), roots], axis=1)  # one node above all chains: one search for all
    graph = _graph(np.concatenate([bonds, above]), n_atoms + 1)
    order, before = breadth_first_order(graph, n_atoms, directed=False)
    depth = np.zeros(n_atoms + 1, dtype=np.int64)
    for atom in order[1:]:
        depth[atom] = depth[before[atom]] + 1
    children = order[depth[order] > 1].astype(np.int64)
    parents = before[children].astype(np.int64)
    levels = np.searchsorted(depth[children], np.arange(2, int(depth.max(initial=1)) + 2))
    far = {(min(i, j), max(i, j)): length for (i, j), length in zip(bonds.tolist(), reach.tolist(), strict=True)}
    ends = zip(np.minimum(parents, children).tolist(), np.maximum(parents, children).tolist(), strict=True)
    reaches = np.array([far[pair] for pair in ends], dtype=np.float64)
    return Whole(parents, children, tuple(int(level) for level in levels), chain, reaches, between)


def _heights(cell: Float[np.ndarray, "frame 3 3"]) -> Float64[np.ndarray, "frame"]:
    """The smallest height of each cell: its volume over its largest face; 0 for no cell."""
    finite = np.isfinite(cell).all(axis=(1, 2))
    wide = np.where(finite[:, None, None], cell, 0.0).astype(np.float64)
    faces = np.linalg.norm(np.cross(np.roll(wide, -1, axis=1), np.roll(wide, -2, axis=1)), axis=2).max(axis=1)
    heights: np.ndarray = np.abs(np.linalg.det(wide)) / np.where(faces > 0, faces, 1.0)
    return heights
