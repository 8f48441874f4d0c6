"""Internal coordinates of beads, their streamed moments, and the harmonic priors that the moments give.

Each prior term is V(q) = k (q - q0)^2 / 2 with q0 = <q> and k = kT / var(q): the Gaussian whose width the
data show (Boltzmann inversion; Tschoep et al. 1998, doi
10.1002/(SICI)1521-4044(199802)49:2/3<61::AID-APOL61>3.0.CO;2-V). q is a bond length, the cosine of an angle,
or at a chiral centre the improper product

    s = (a x b) . c / (|a| |b| |c|),    a, b, c = the vectors from the centre to its three neighbours,

which is smooth, invariant to rotations, and changes sign in a mirror. A torsion is the Fourier series of -kT ln of its
histogram (Boltzmann inversion; Reith, Pütz and Müller-Plathe 2003, doi 10.1002/jcc.10307). No torch here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float

from hpc_cg.beads import BeadSystem
from hpc_cg.errors import FitFailed
from hpc_cg.units import kT

N_TORSION_BINS = 72
"""Bins of a dihedral's histogram, 5 degrees each."""

MIN_FRAMES = 10
"""Fewer frames than this give no usable variance."""

RIGID = 1e-6
"""A standard deviation below this part of the mean (of 0.1 at least) is rounding, not motion."""


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
    """Weighted mean and squared deviation of every coordinate; ``a + b`` is the moments of both samples
    together.

    n_frames frames of ``system`` with total weight ``weight``; mean and squares hold first the bonds, then the angles,
    then the impropers; torsions the (weighted) frames in N_TORSION_BINS equal bins, from -π, of each dihedral of
    ``torsions_of``. The merge is Chan, Golub & LeVeque 1983 (doi 10.1080/00031305.1983.10483115),
    in float64.
    """

    system: BeadSystem
    n_frames: int
    weight: float
    mean: Float[np.ndarray, "term"]
    squares: Float[np.ndarray, "term"]
    torsions: Float[np.ndarray, "torsion bin"]

    @staticmethod
    def of(
        positions: Float[np.ndarray, "frame bead 3"],
        system: BeadSystem,
        weights: Float[np.ndarray, "frame"] | None = None,
    ) -> "CoordinateMoments":
        """Moments of the frames given (positions in nm; every frame counts the same without weights)."""
        values = internal_coordinates(positions.astype(np.float64), system)
        w = np.ones(len(values)) if weights is None else weights.astype(np.float64)
        total = float(w.sum())
        mean = w @ values / total if total > 0 else np.zeros(values.shape[1])
        torsions = _torsion_counts(positions.astype(np.float64), system, w)
        return CoordinateMoments(system, len(values), total, mean, w @ (values - mean) ** 2, torsions)

    def __add__(self, other: "CoordinateMoments") -> "CoordinateMoments":
        assert self.system == other.system, "moments of different bead systems"
        weight = self.weight + other.weight
        part = other.weight / weight if weight > 0 else 0.0
        shift = other.mean - self.mean
        squares = self.squares + other.squares + shift**2 * (self.weight * part)
        n_frames, torsions = self.n_frames + other.n_frames, self.torsions + other.torsions
        return CoordinateMoments(self.system, n_frames, weight, self.mean + part * shift, squares, torsions)

    @property
    def variance(self) -> Float[np.ndarray, "term"]:
        return self.squares / self.weight if self.weight > 0 else np.full_like(self.squares, np.nan)


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


def _torsion_counts(positions: np.ndarray, system: BeadSystem, weights: np.ndarray) -> np.ndarray:
    quads = torsions_of(system)
    if not quads:
        return np.zeros((0, N_TORSION_BINS))
    angles = np.nan_to_num(dihedral_angles(positions, quads))  # frames without numbers are refused by the fit
    bins = ((angles / (2 * np.pi) + 0.5) * N_TORSION_BINS).astype(int)
    bins = np.clip(bins, 0, N_TORSION_BINS - 1)
    return np.stack([np.bincount(column, weights, N_TORSION_BINS) for column in bins.T])


@dataclass(frozen=True)
class PriorParameters:
    """Force constants and centres: bonds in kJ/mol/nm^2 and nm, angles (in the cosine) and impropers in kJ/mol.

    Coefficients of the torsions' Fourier series in kJ/mol, for each of ``torsions_of``; none where the order is 0.
    """

    bond_k: Float[np.ndarray, "bond"]
    bond_0: Float[np.ndarray, "bond"]
    angle_k: Float[np.ndarray, "angle"]
    angle_0: Float[np.ndarray, "angle"]
    improper_k: Float[np.ndarray, "improper"]
    improper_0: Float[np.ndarray, "improper"]
    torsion_sin: Float[np.ndarray, "torsion order"]
    torsion_cos: Float[np.ndarray, "torsion order"]

    def to_json(self) -> dict[str, list]:
        return {field.name: getattr(self, field.name).tolist() for field in fields(self)}

    @staticmethod
    def from_json(content: dict[str, list]) -> "PriorParameters":
        arrays = {name: np.asarray(values, np.float64) for name, values in content.items()}
        for name in ("torsion_sin", "torsion_cos"):
            arrays[name] = arrays[name].reshape(len(arrays[name]), -1 if arrays[name].size else 0)
        return PriorParameters(**arrays)


def fit_priors(moments: CoordinateMoments, temperature_K: float, torsion_order: int = 0) -> PriorParameters:
    """Harmonic priors whose thermal width is the width seen in the data, and torsions whose histogram it is.

    torsion_order   of the Fourier series that is fitted to -kT ln(count + 1/2) of each dihedral; 0 for no torsions. The
                    half count stands for what a bin that was never visited may hold: without it nothing would keep a
                    model out of where no data are.

    Raises FitFailed, naming the term, when its variance is zero or no number, or when there are too few
    frames.
    """
    if moments.n_frames < MIN_FRAMES or not moments.weight > 0:
        raise FitFailed(
            "fitting the priors",
            f"{moments.n_frames} frames of total weight {moments.weight:g}, at least {MIN_FRAMES} are needed",
            "give more frames, or check their weights",
        )
    system, variance = moments.system, moments.variance
    moving = variance > (RIGID * np.maximum(np.abs(moments.mean), 0.1)) ** 2
    bad = np.flatnonzero(~(moving & np.isfinite(variance)))
    if len(bad):
        raise FitFailed(
            f"fitting the prior of {term_labels(system)[bad[0]]}",
            f"mean {moments.mean[bad[0]]:g} and variance {variance[bad[0]]:g} over {moments.n_frames} frames",
            "check that these beads move in the data, or leave this term out of the bead system",
        )
    k = kT(temperature_K) / variance
    split = [len(system.bonds), len(system.bonds) + len(system.angles)]
    (bond_k, angle_k, improper_k), (bond_0, angle_0, improper_0) = (
        np.split(k, split),
        np.split(moments.mean, split),
    )
    torsions = _fit_torsions(moments.torsions, kT(temperature_K), torsion_order)
    return PriorParameters(bond_k, bond_0, angle_k, angle_0, improper_k, improper_0, *torsions)


def _fit_torsions(counts: np.ndarray, thermal: float, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Sine and cosine coefficients of -kT ln(count + 1/2), by least squares over equal bins."""
    if not order:
        return np.zeros((0, 0)), np.zeros((0, 0))
    energy = -thermal * np.log(counts + 0.5)
    centres = (np.arange(N_TORSION_BINS) + 0.5) * 2 * np.pi / N_TORSION_BINS - np.pi
    multiples = np.outer(np.arange(1, order + 1), centres)
    # on equal bins the functions are orthogonal, so the projection is the least-squares answer
    sine, cosine = (energy @ wave.T * (2 / N_TORSION_BINS) for wave in (np.sin(multiples), np.cos(multiples)))
    return sine, cosine


def term_labels(system: BeadSystem) -> tuple[str, ...]:
    """The words for each term, in the order of the moments, e.g. "bond ALA2:N-ALA2:CA"."""
    kinds = (("bond", system.bonds), ("angle", system.angles), ("improper", system.impropers))
    return tuple(f"{kind} {'-'.join(system.names[i] for i in term)}" for kind, terms in kinds for term in terms)
