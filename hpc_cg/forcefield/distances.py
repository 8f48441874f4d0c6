"""How close beads that are not bonded come: streamed histograms of distances, and the σ of repulsion that they give.

Pairs of beads are told apart by their two types and by the number of bonds between them, so that what is collected
once serves any choice of which pairs repel. σ of a pair of types is a low percentile of the distances seen between
beads of these types; the smallest at percentile 0. No torch here.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path

from hpc_cg.beads import BeadSystem

NEAREST, FARTHEST = 2, 6
"""Pairs closer along bonds than the first are never asked about; from the second on, bonds are not counted."""

EDGES = np.linspace(0.0, 1.0, 501)
"""nm; one more bin holds what is further apart."""

VALUES_AT_ONCE = 1 << 21
"""Distances that are in memory together."""


@dataclass(frozen=True)
class PairGroups:
    """Pairs at least NEAREST bonds apart, and which of them are counted together.

    pairs   (i, j), i < j
    group   of each pair
    kinds   of each group: smaller type, larger type, bonds between (at most FARTHEST)
    """

    pairs: Int[np.ndarray, "pair 2"]
    group: Int[np.ndarray, "pair"]
    kinds: Int[np.ndarray, "group 3"]


@lru_cache(maxsize=8)
def pair_groups(system: BeadSystem) -> PairGroups:
    """The pairs of a system and their groups."""
    n = system.n_beads
    i, j = np.triu_indices(n, 1)
    apart = np.minimum(bonds_between(system)[i, j], FARTHEST).astype(np.int64)
    wanted = apart >= NEAREST
    i, j, apart = i[wanted], j[wanted], apart[wanted]
    types = np.asarray(system.types, dtype=np.int64)
    keys = np.stack((np.minimum(types[i], types[j]), np.maximum(types[i], types[j]), apart), axis=1)
    kinds, group = np.unique(keys, axis=0, return_inverse=True)
    return PairGroups(np.stack((i, j), axis=1), group.reshape(-1), kinds)


def bonds_between(system: BeadSystem) -> Float[np.ndarray, "bead bead"]:
    """Number of bonds on the shortest way between every two beads; infinite where there is none."""
    ends = np.asarray(system.bonds, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(ends.shape[1]), tuple(ends)), shape=(system.n_beads, system.n_beads))
    return shortest_path(graph.tocsr(), directed=False, unweighted=True)


@dataclass(frozen=True)
class PairDistances:
    """Of each group of pairs: the shortest distance seen (nm), and weight in the bins of EDGES and beyond them."""

    shortest: Float[np.ndarray, "group"]
    counts: Float[np.ndarray, "group bin"]

    @staticmethod
    def of(
        positions: Float[np.ndarray, "frame bead 3"], system: BeadSystem, weights: Float[np.ndarray, "frame"]
    ) -> "PairDistances":
        """The distances (positions in nm) of the frames given that weigh anything."""
        groups, n_bins = pair_groups(system), len(EDGES)
        n_groups, (i, j) = len(groups.kinds), groups.pairs.T
        shortest, counts = np.full(n_groups, np.inf), np.zeros(n_groups * n_bins)
        heavy = np.flatnonzero(weights > 0)
        frames_at_once = max(1, VALUES_AT_ONCE // max(1, len(i)))
        for first in range(0, len(heavy), frames_at_once):
            part = heavy[first : first + frames_at_once]
            x = np.ascontiguousarray(positions[part].transpose(2, 1, 0))  # whole rows of frames are gathered
            lengths = np.sqrt(sum((axis[j] - axis[i]) ** 2 for axis in x))
            np.minimum.at(shortest, groups.group, np.fmin.reduce(lengths, axis=1, initial=np.inf))
            pair, frame = np.nonzero(lengths < EDGES[-1])  # never where a length is no number
            place = (lengths[pair, frame] * ((n_bins - 1) / EDGES[-1])).astype(np.int64)
            counts += np.bincount(place + n_bins * groups.group[pair], weights[part][frame], len(counts))
        near = counts.reshape(n_groups, n_bins)
        near[:, -1] = np.bincount(groups.group, minlength=n_groups) * weights[heavy].sum() - near.sum(axis=1)
        return PairDistances(shortest, near)

    def __add__(self, other: "PairDistances") -> "PairDistances":
        return PairDistances(np.minimum(self.shortest, other.shortest), self.counts + other.counts)

    def percentile(self, percent: float) -> float:
        """The distance (nm) below which this part of the weight of all groups lies; infinite beyond EDGES."""
        shortest = float(self.shortest.min(initial=np.inf))
        if percent <= 0:
            return shortest
        cumulative = np.append(0.0, np.cumsum(self.counts.sum(axis=0)))
        wanted = 0.01 * percent * cumulative[-1]
        if wanted > cumulative[-2]:
            return float("inf")
        return max(float(np.interp(wanted, cumulative[:-1], EDGES)), shortest)
