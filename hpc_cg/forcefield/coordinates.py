"""Internal coordinates of beads, and their streamed statistics.

Coordinates are bond lengths, cosines of angles, dihedrals about bonds, distances of beads that are not bonded, and at a
chiral centre the improper product

    s = (a x b) . c / (|a| |b| |c|),    a, b, c = the vectors from the centre to its three neighbours,

which is smooth, invariant to rotations, and changes sign in a mirror. Statistics of any parts of the data add up to
those of all; the priors are made from them (``fitting``). No torch here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from hpc_cg.beads import BeadSystem
from hpc_cg.forcefield.distances import PairDistances
from hpc_cg.forcefield.histograms import COSINE_EDGES, LENGTH_EDGES, TORSION_EDGES, count


def bond_lengths(
    positions: Float[np.ndarray, "*frames bead 3"], bonds: Sequence[tuple[int, int]]
) -> Float[np.ndarray, "*frames bond"]:
    """Distances (nm) of the bead pairs (i, j)."""
    i, j = _columns(bonds, 2)
    return np.linalg.norm(positions[..., j, :] - positions[..., i, :], axis=-1)


def angle_cosines(
    positions: Float[np.ndarray, "*frames bead 3"], angles: Sequence[tuple[int, int, int]]
) -> Float[np.ndarray, "*frames angle"]:
    """Cosines of the angles at the middle bead of the triples (i, centre, k)."""
    i, centre, k = _columns(angles, 3)
    return np.sum(_units(positions, centre, i) * _units(positions, centre, k), axis=-1)


def improper_products(
    positions: Float[np.ndarray, "*frames bead 3"], impropers: Sequence[tuple[int, int, int, int]]
) -> Float[np.ndarray, "*frames improper"]:
    """The signed improper products s of the quadruples (centre, a, b, c), between -1 and 1."""
    centre, a, b, c = _columns(impropers, 4)
    normal = np.cross(_units(positions, centre, a), _units(positions, centre, b))
    return np.sum(normal * _units(positions, centre, c), axis=-1)


def dihedral_angles(
    positions: Float[np.ndarray, "*frames bead 3"], quads: Sequence[tuple[int, int, int, int]]
) -> Float[np.ndarray, "*frames torsion"]:
    """Dihedrals (rad, IUPAC sign) of the quadruples (i, j, k, l)."""
    i, j, k, m = (positions[..., beads, :] for beads in _columns(quads, 4))
    first, axis, last = j - i, k - j, m - k
    near, far = np.cross(first, axis), np.cross(axis, last)
    sine = np.linalg.norm(axis, axis=-1) * np.sum(first * far, axis=-1)
    return np.arctan2(sine, np.sum(near * far, axis=-1))


def torsions_of(system: BeadSystem) -> tuple[tuple[int, int, int, int], ...]:
    """One dihedral for each bond that has any: the one whose ends lead on furthest, by their number of bonds."""
    degree = [sum(bead in bond for bond in system.bonds) for bead in range(system.n_beads)]
    chosen: dict[tuple[int, int], tuple[int, int, int, int]] = {}
    for quad in sorted(system.dihedrals, key=lambda quad: (-degree[quad[0]] - degree[quad[3]], quad)):
        chosen.setdefault((quad[1], quad[2]), quad)
    return tuple(chosen[bond] for bond in sorted(chosen))


def _columns(rows: Sequence[tuple[int, ...]], width: int) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(rows, dtype=np.int64).reshape(-1, width).T)


def _units(positions: np.ndarray, tail: np.ndarray, head: np.ndarray) -> np.ndarray:
    vectors = positions[..., head, :] - positions[..., tail, :]
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@dataclass(frozen=True)
class CoordinateMoments:
    """Weighted statistics of every coordinate; ``a + b`` is the statistics of both samples together.

    n_frames frames of ``system`` with total weight ``weight`` and sum of squared weights ``weight_squares``; mean and
    squares (squared deviations) hold first the bonds, then the angles, then the impropers; lengths, cosines (angles,
    then impropers) and torsions (each dihedral of ``torsions_of``) are histograms, on the bins of ``histograms``;
    distances those of pairs that are not bonded. The merge is Chan, Golub & LeVeque 1983 (doi
    10.1080/00031305.1983.10483115), in float64.
    """

    system: BeadSystem
    n_frames: int
    weight: float
    weight_squares: float
    mean: Float[np.ndarray, "term"]
    squares: Float[np.ndarray, "term"]
    lengths: Float[np.ndarray, "bond length_bin"]
    cosines: Float[np.ndarray, "angle_or_improper cosine_bin"]
    torsions: Float[np.ndarray, "torsion bin"]
    distances: PairDistances

    @staticmethod
    def of(
        positions: Float[np.ndarray, "frame bead 3"],
        system: BeadSystem,
        weights: Float[np.ndarray, "frame"] | None = None,
    ) -> "CoordinateMoments":
        """Statistics of the frames given (positions in nm; every frame counts the same without weights)."""
        x = positions.astype(np.float64)
        values, n_bonds = internal_coordinates(x, system), len(system.bonds)
        w = np.ones(len(values)) if weights is None else weights.astype(np.float64)
        total = float(w.sum())
        mean = w @ values / total if total > 0 else np.zeros(values.shape[1])
        return CoordinateMoments(
            system=system,
            n_frames=len(values),
            weight=total,
            weight_squares=float(w @ w),
            mean=mean,
            squares=w @ (values - mean) ** 2,
            lengths=count(values[:, :n_bonds], w, LENGTH_EDGES),
            cosines=count(values[:, n_bonds:], w, COSINE_EDGES),
            torsions=count(dihedral_angles(x, torsions_of(system)), w, TORSION_EDGES),
            distances=PairDistances.of(x, system, w),
        )

    def __add__(self, other: "CoordinateMoments") -> "CoordinateMoments":
        assert self.system == other.system, "moments of different bead systems"
        mean, squares = _merged(self.weight, self.mean, self.squares, other.weight, other.mean, other.squares)
        return CoordinateMoments(
            system=self.system,
            n_frames=self.n_frames + other.n_frames,
            weight=self.weight + other.weight,
            weight_squares=self.weight_squares + other.weight_squares,
            mean=mean,
            squares=squares,
            lengths=self.lengths + other.lengths,
            cosines=self.cosines + other.cosines,
            torsions=self.torsions + other.torsions,
            distances=self.distances + other.distances,
        )

    @property
    def variance(self) -> Float[np.ndarray, "term"]:
        return self.squares / self.weight if self.weight > 0 else np.full_like(self.squares, np.nan)

    @property
    def n_effective(self) -> float:
        """How many frames of equal weight tell as much (Kish): (Σw)² / Σw²."""
        return self.weight**2 / self.weight_squares if self.weight_squares > 0 else 0.0


def _merged(
    weight: float, mean: np.ndarray, squares: np.ndarray, weight2: float, mean2: np.ndarray, squares2: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and squared deviations of two samples together."""
    part = weight2 / (weight + weight2) if weight + weight2 > 0 else 0.0
    shift = mean2 - mean
    return mean + part * shift, squares + squares2 + shift**2 * (weight * part)


def internal_coordinates(
    positions: Float[np.ndarray, "frame bead 3"], system: BeadSystem
) -> Float[np.ndarray, "frame term"]:
    """Bond lengths (nm), angle cosines and improper products of the system, side by side."""
    parts = (
        bond_lengths(positions, system.bonds),
        angle_cosines(positions, system.angles),
        improper_products(positions, system.impropers),
    )
    return np.concatenate(parts, axis=-1)


def term_labels(system: BeadSystem) -> tuple[str, ...]:
    """The words for each term, in the order of the moments, e.g. "bond ALA2:N-ALA2:CA"."""
    kinds = (("bond", system.bonds), ("angle", system.angles), ("improper", system.impropers))
    return tuple(f"{kind} {'-'.join(system.names[i] for i in term)}" for kind, terms in kinds for term in terms)
