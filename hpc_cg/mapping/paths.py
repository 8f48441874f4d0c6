"""Which bonds lead from one wanted atom to another, and which atoms between have to be read to follow them.

Two atoms k bonds apart are at most k BOND_NM apart. All bonds among the wanted atoms are kept; what these leave apart
is joined along the shortest paths of bonds, by the minimum spanning tree of distances along bonds (Mehlhorn, Inf.
Process. Lett. 27, 125 (1988), doi 10.1016/0020-0190(88)90066-X). Paths longer than MOST_BONDS are cut at atoms between.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mdtraj
import numpy as np
from jaxtyping import Float64, Int64
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, dijkstra, minimum_spanning_tree

from hpc_cg.mapping.presets import is_calpha

BOND_NM = 0.2
"""How far one bond reaches; paths of several reach less than that for each."""

MOST_BONDS = 3
"""Bonds from one atom that is read to the next, as between neighbouring Cα atoms: 0.6 nm, right in cells above 1.2."""

CALPHA_STEP, UNKNOWN_STEP = 2, 5
"""Bonds' lengths between neighbours whose bonds the topology does not list: Cα atoms alone, atoms of one residue."""


@dataclass(frozen=True, eq=False)
class Paths:
    """How wanted atoms of a topology are joined; atoms by their numbers in it.

    ends      of each edge
    reach     how far apart these can be, nm
    chain     of every atom of the topology; chains that are bonded to one another are one, named by the first
    between   atoms, ascending, that edges end at and that were not wanted
    """

    ends: Int64[np.ndarray, "edge 2"]
    reach: Float64[np.ndarray, "edge"]
    chain: Int64[np.ndarray, "atom"]
    between: Int64[np.ndarray, "between"]


def paths(topology: mdtraj.Topology, wanted: Int64[np.ndarray, "wanted"]) -> Paths:
    """The paths between the ``wanted`` atoms (ascending); parts that no bonds join stay apart."""
    bonds, lengths = _all_bonds(topology)
    edges, between = _cut_paths(bonds, lengths, wanted, topology.n_atoms)
    return Paths(
        ends=np.array(list(edges), dtype=np.int64).reshape(-1, 2),
        reach=BOND_NM * np.array(list(edges.values()), dtype=np.float64),
        chain=_chains(topology, bonds),
        between=between,
    )


def listed_bonds(topology: mdtraj.Topology) -> Int64[np.ndarray, "bond 2"]:
    """The bonds that a topology lists, i < j, each once."""
    listed = [tuple(sorted((a.index, b.index))) for a, b in topology.bonds]
    return np.unique(np.array(listed, dtype=np.int64).reshape(-1, 2), axis=0)


def _all_bonds(topology: mdtraj.Topology) -> tuple[Int64[np.ndarray, "bond 2"], Int64[np.ndarray, "bond"]]:
    """Bonds of a topology, i < j, each once, and how many bonds each is worth.

    Atoms that have none, though they are not alone, are bonded to the atom beside them in their residue and, in chains
    of amino acids, in the next.
    """
    bonds = listed_bonds(topology)
    lonely = np.ones(topology.n_atoms, bool)
    lonely[bonds] = False
    guessed: dict[tuple[int, int], int] = {}
    for i in range(topology.n_atoms - 1):
        if not (lonely[i] or lonely[i + 1]):
            continue
        one, two = topology.atom(i), topology.atom(i + 1)
        if one.residue is two.residue:
            guessed[i, i + 1] = UNKNOWN_STEP
        elif one.residue.chain is two.residue.chain and all(_has_calpha(atom.residue) for atom in (one, two)):
            guessed[i, i + 1] = CALPHA_STEP if is_calpha(one) and is_calpha(two) else UNKNOWN_STEP
    more = np.array(list(guessed), dtype=np.int64).reshape(-1, 2)
    lengths = np.concatenate([np.ones(len(bonds), np.int64), np.array(list(guessed.values()), dtype=np.int64)])
    return np.concatenate([bonds, more]), lengths


def _has_calpha(residue: Any) -> bool:
    return any(is_calpha(atom) for atom in residue.atoms)


def _chains(topology: mdtraj.Topology, bonds: np.ndarray) -> Int64[np.ndarray, "atom"]:
    """The chain of every atom; chains that are bonded to one another are one, named by the first."""
    chain = np.array([atom.residue.chain.index for atom in topology.atoms], dtype=np.int64)
    ends = chain[bonds]
    joined = csr_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(topology.n_chains, topology.n_chains))
    label = connected_components(joined, directed=False)[1]
    first: np.ndarray = np.unique(label, return_index=True)[1][label][chain]
    return first.astype(np.int64)


def _cut_paths(
    bonds: np.ndarray, lengths: np.ndarray, atoms: np.ndarray, n_atoms: int
) -> tuple[dict[tuple[int, int], int], Int64[np.ndarray, "between"]]:
    """Edges by their ends, with lengths in bonds, that join ``atoms`` along bonds, and the atoms between they need."""
    wanted = np.zeros(n_atoms, bool)
    wanted[atoms] = True
    direct = wanted[bonds].all(axis=1)
    edges = {(int(i), int(j)): int(length) for (i, j), length in zip(bonds[direct], lengths[direct], strict=True)}
    if direct.all() or not len(atoms):
        return edges, np.zeros(0, np.int64)
    worth = {(int(i), int(j)): int(length) for (i, j), length in zip(bonds, lengths, strict=True)}
    between: set[int] = set()
    for path in _shortest(bonds, lengths, atoms, n_atoms):
        if len(path) > 2:  # the others are bonds
            stops = _stops(path, worth)
            edges |= {(min(a, b), max(a, b)): length for (a, _), (b, length) in pairwise(stops)}
            between |= {atom for atom, _ in stops[1:-1]}
    return edges, np.array(sorted(between), dtype=np.int64)


def _shortest(bonds: np.ndarray, lengths: np.ndarray, atoms: np.ndarray, n_atoms: int) -> Iterator[list[int]]:
    """The paths of bonds, each from one of ``atoms`` to another, that join them with the least length altogether."""
    graph = csr_array((lengths.astype(np.float64), (bonds[:, 0], bonds[:, 1])), shape=(n_atoms, n_atoms))
    far, before, nearest = dijkstra(graph, directed=False, indices=atoms, min_only=True, return_predecessors=True)
    joining = np.isfinite(far[bonds]).all(axis=1) & (nearest[bonds[:, 0]] != nearest[bonds[:, 1]])
    steps, total = bonds[joining], far[bonds[joining]].sum(axis=1) + lengths[joining]
    ends = np.sort(nearest[steps], axis=1)
    order = np.lexsort((total, ends[:, 1], ends[:, 0]))
    ends, kept = np.unique(ends[order], axis=0, return_index=True)  # of several paths between two atoms the shortest
    steps, total = steps[order][kept], total[order][kept]
    tree = minimum_spanning_tree(csr_array((total, (ends[:, 0], ends[:, 1])), shape=(n_atoms, n_atoms))).tocoo()
    middle = {(int(i), int(j)): step for (i, j), step in zip(ends, steps, strict=True)}
    for pair in zip(tree.row, tree.col, strict=True):
        left, right = middle[int(pair[0]), int(pair[1])]
        yield [*reversed(_back(before, int(left))), *_back(before, int(right))]


def _back(before: np.ndarray, atom: int) -> list[int]:
    """From an atom to the nearest of those that are wanted."""
    path = [atom]
    while before[path[-1]] >= 0:
        path.append(int(before[path[-1]]))
    return path


def _stops(path: list[int], worth: dict[tuple[int, int], int]) -> list[tuple[int, int]]:
    """Atoms to read along a path: its ends and as few between as will do; with the bonds since the stop before."""
    stops, length = [(path[0], 0)], 0
    for one, two in pairwise(path):
        step = worth[min(one, two), max(one, two)]
        if length and length + step > MOST_BONDS:
            stops.append((one, length))
            length = 0
        length += step
    return [*stops, (path[-1], length)]
