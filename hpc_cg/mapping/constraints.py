"""Which atoms move as one: groups of atoms joined by rigid constraints, found from the frames themselves.

A constrained distance varies by less than 1e-6 nm in float32, the stiffest free one by 2e-3 nm. Mean and
variance of each candidate distance are gathered in one pass and merged over pieces (Chan, Golub & LeVeque,
1983, doi 10.1080/00031305.1983.10483115), so memory is a few numbers per pair, whatever the number of frames.
Rigid pairs are then joined to groups.

How many frames are safe: the stiffest free distances of a protein (1-2 distances of heavy atoms) have a standard
deviation of 2.2e-3 nm. That n independent frames show one below the threshold of 1e-4 nm by chance has the probability
P(χ² with n - 1 degrees < n (1e-4 / 2.2e-3)²): 4 in 100 for two frames, 1e-5 for five, 5e-11 for ten, so ten serve
systems of any size, and hydrogens of mass 3 u with steps of 4 fs change nothing about it. Frames 0.5 ps apart are
independent in this respect. Groups that are too large cost some noise, never the right mean force; groups that are
missed do: positions rounded to 1e-3 nm (XTC as GROMACS writes it) make rigid distances deviate by 4e-4 nm and need a
threshold of 1e-3 nm. So the threshold is never below the grid that positions lie on, which is found from the frames:
differences of rounded coordinates are whole multiples of it, in whatever file they came.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Float64, Int64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from hpc_cg.errors import BadFrames, TooFewFrames

THRESHOLD_NM = 1e-4
"""Standard deviation of a distance, nm, below which it counts as rigid."""

ALL_PAIRS_UP_TO = 64
"""Molecules of at most so many atoms have all their pairs watched."""

BLOCK_BYTES = 32 << 20
"""What the coordinates of the pairs in frames looked at together may take."""

SAFE_FRAMES = 10
"""Independent frames from which rigid groups can be told in systems of any size (see above)."""

GRIDS_NM = tuple(digit * 10.0**power for power in (-2, -3, -4, -5) for digit in (5, 2, 1))
"""Grids that positions may have been rounded to, nm: XTC files of any usual precision, decimals of nm or Å."""

COARSEST_GRID_NM = 2e-3
"""The coarsest grid on which rigid distances can be told from the stiffest free ones."""

GRID_FRAMES = 4
FEWEST_DIFFERENCES = 24


@dataclass(frozen=True, eq=False)
class DistanceMoments:
    """Mean and spread of pair distances over frames; ``a + b`` are those of both sets of frames.

    pairs   the pairs that are watched, i < j
    count   frames seen
    mean    mean distance, nm
    m2      sum of squared deviations from the mean, nm²
    grid    what positions are rounded to, nm; of several sets the coarsest, 0 where none is
    """

    pairs: Int64[np.ndarray, "pair 2"]
    count: int
    mean: Float64[np.ndarray, "pair"]
    m2: Float64[np.ndarray, "pair"]
    grid: float = 0.0

    @staticmethod
    def empty(pairs: Int64[np.ndarray, "pair 2"]) -> "DistanceMoments":
        """Moments of no frames."""
        return DistanceMoments(pairs, 0, np.zeros(len(pairs)), np.zeros(len(pairs)))

    @staticmethod
    def of(positions: Float[np.ndarray, "frame atom 3"], pairs: Int64[np.ndarray, "pair 2"]) -> "DistanceMoments":
        """Moments of the distances of ``pairs`` over ``positions`` (nm), which come from one file."""
        total = replace(DistanceMoments.empty(pairs), grid=grid_of(positions, pairs))
        step = max(1, BLOCK_BYTES // (3 * 24 * max(len(pairs), 1)))
        for start in range(0, len(positions), step):
            total = total + _at_once(positions[start : start + step], pairs)
        return total

    def arrays(self) -> dict[str, np.ndarray]:
        """Count, mean and spread by name, for an npz file; the pairs are kept once, elsewhere."""
        return {"count": np.asarray(self.count), "mean": self.mean, "m2": self.m2, "grid": np.asarray(self.grid)}

    @staticmethod
    def from_arrays(pairs: Int64[np.ndarray, "pair 2"], arrays: Mapping[str, np.ndarray]) -> "DistanceMoments":
        """The moments whose ``arrays`` were written."""
        return DistanceMoments(pairs, int(arrays["count"]), arrays["mean"], arrays["m2"], float(arrays["grid"]))

    def __add__(self, other: "DistanceMoments") -> "DistanceMoments":
        assert np.array_equal(self.pairs, other.pairs), "moments of different pairs"
        count, grid = self.count + other.count, max(self.grid, other.grid)
        if count == 0:
            return replace(self, grid=grid)
        shift = other.mean - self.mean
        return DistanceMoments(
            pairs=self.pairs,
            count=count,
            mean=self.mean + shift * (other.count / count),
            m2=self.m2 + other.m2 + shift**2 * (self.count * other.count / count),
            grid=grid,
        )

    @property
    def deviation(self) -> Float64[np.ndarray, "pair"]:
        """Standard deviation of each distance, nm."""
        return np.sqrt(self.m2 / max(self.count, 1))


def candidate_pairs(frame: Float[np.ndarray, "atom 3"], cutoff_nm: float = 0.25) -> Int64[np.ndarray, "pair 2"]:
    """Pairs i < j that may be rigid: all of a small molecule, else those closer than the cutoff (nm)."""
    n_atoms = len(frame)
    if n_atoms <= ALL_PAIRS_UP_TO:
        return np.stack(np.triu_indices(n_atoms, k=1), axis=1).astype(np.int64)
    pairs = KDTree(frame).query_pairs(cutoff_nm, output_type="ndarray").astype(np.int64)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def grid_of(positions: Float[np.ndarray, "frame atom 3"], pairs: Int64[np.ndarray, "pair 2"]) -> float:
    """The grid (nm) that positions are rounded to: the coarsest of GRIDS_NM that most coordinates lie on; 0 for none.

    Looked at are differences within ``pairs``, which neither a common shift nor whole molecules in other images change.
    Numbers far from the origin that are too coarse for a grid themselves say nothing about it.
    """
    few = positions[:: max(1, len(positions) // GRID_FRAMES)].astype(np.float64)
    differences = few[:, pairs[:, 0]] - few[:, pairs[:, 1]]
    differences = differences[differences != 0]
    if len(differences) < FEWEST_DIFFERENCES:
        return 0.0
    digits = 4 * float(np.finfo(np.float32).eps) * float(np.abs(few).max())
    for grid in GRIDS_NM:
        steps = differences / grid
        if digits <= 0.1 * grid and np.mean(np.abs(steps - np.rint(steps)) <= max(digits / grid, 0.05)) > 0.75:
            return grid
    return 0.0


def rigid_groups(
    moments: DistanceMoments, n_atoms: int, threshold_nm: float = THRESHOLD_NM
) -> tuple[tuple[int, ...], ...]:
    """Groups of atoms joined by distances that vary by less than the threshold (nm), or the grid where that is more.

    Every atom is in exactly one group, a free atom in one of its own; groups and their atoms ascend. Raises
    TooFewFrames for fewer than two frames, of which every distance would look rigid, BadFrames for positions on a grid
    so coarse that rigid distances cannot be told.
    """
    if moments.count < 2:
        raise TooFewFrames(
            "finding rigid bonds",
            f"{moments.count} frames",
            f"give at least two frames, better {SAFE_FRAMES} or more that are far apart",
        )
    if moments.grid > COARSEST_GRID_NM:
        raise BadFrames(
            "finding rigid bonds",
            f"positions rounded to {moments.grid:g} nm, which hides what is rigid",
            f"give trajectories with positions to {COARSEST_GRID_NM:g} nm or better, or set prepare.forces = false",
        )
    rigid = moments.pairs[moments.deviation < max(threshold_nm, moments.grid)]
    graph = coo_array((np.ones(len(rigid)), (rigid[:, 0], rigid[:, 1])), shape=(n_atoms, n_atoms))
    n_groups, label = connected_components(graph, directed=False)
    groups: list[list[int]] = [[] for _ in range(n_groups)]
    for atom, group in enumerate(label):
        groups[group].append(atom)
    return tuple(sorted(tuple(group) for group in groups))


def group_matrix(groups: Iterable[tuple[int, ...]], n_atoms: int) -> Float64[np.ndarray, "atom group"]:
    """K, which gives every atom of a group the group's weight; the groups must cover every atom once."""
    groups = list(groups)
    matrix = np.zeros((n_atoms, len(groups)))
    for column, group in enumerate(groups):
        matrix[list(group), column] = 1.0
    assert (matrix.sum(axis=1) == 1).all(), "groups that do not cover every atom once"
    return matrix


def _at_once(positions: np.ndarray, pairs: np.ndarray) -> DistanceMoments:
    wide = positions.astype(np.float64)
    distances = np.linalg.norm(wide[:, pairs[:, 0]] - wide[:, pairs[:, 1]], axis=2)
    mean = distances.mean(axis=0)
    return DistanceMoments(pairs, len(wide), mean, ((distances - mean) ** 2).sum(axis=0))
