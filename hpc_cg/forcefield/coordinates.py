"""Internal coordinates of beads, their streamed moments, and the harmonic priors that the moments give.

Each prior term is V(q) = k (q - q0)^2 / 2 with q0 = <q> and k = kT / var(q): the Gaussian whose width the
data show (Boltzmann inversion; Tschoep et al. 1998, doi
10.1002/(SICI)1521-4044(199802)49:2/3<61::AID-APOL61>3.0.CO;2-V). q is a bond length, the cosine of an angle,
or at a chiral centre the improper product

    s = (a x b) . c / (|a| |b| |c|),    a, b, c = the vectors from the centre to its three neighbours,

which is smooth, invariant to rotations, and changes sign in a mirror. No torch here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float

from hpc_cg.beads import BeadSystem
from hpc_cg.errors import FitFailed
from hpc_cg.units import kT

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


def _columns(rows: Sequence[tuple[int, ...]], width: int) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(rows, dtype=np.int64).reshape(-1, width).T)


def _units(positions: np.ndarray, tail: np.ndarray, head: np.ndarray) -> np.ndarray:
    vectors = positions[..., head, :] - positions[..., tail, :]
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@dataclass(frozen=True)
class CoordinateMoments:
    """Weighted mean and squared deviation of every coordinate; ``a + b`` is the moments of both samples
    together.

    n_frames frames of ``system`` with total weight ``weight``; each array holds first the bonds, then the
    angles, then the impropers. The merge is Chan, Golub & LeVeque 1983 (doi 10.1080/00031305.1983.10483115),
    in float64.
    """

    system: BeadSystem
    n_frames: int
    weight: float
    mean: Float[np.ndarray, "term"]
    squares: Float[np.ndarray, "term"]

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
        return CoordinateMoments(system, len(values), total, mean, w @ (values - mean) ** 2)

    def __add__(self, other: "CoordinateMoments") -> "CoordinateMoments":
        assert self.system == other.system, "moments of different bead systems"
        weight = self.weight + other.weight
        part = other.weight / weight if weight > 0 else 0.0
        shift = other.mean - self.mean
        squares = self.squares + other.squares + shift**2 * (self.weight * part)
        n_frames = self.n_frames + other.n_frames
        return CoordinateMoments(self.system, n_frames, weight, self.mean + part * shift, squares)

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


@dataclass(frozen=True)
class PriorParameters:
    """Force constants and centres: bonds in kJ/mol/nm^2 and nm, angles (in the cosine) and impropers in
    kJ/mol.
    """

    bond_k: Float[np.ndarray, "bond"]
    bond_0: Float[np.ndarray, "bond"]
    angle_k: Float[np.ndarray, "angle"]
    angle_0: Float[np.ndarray, "angle"]
    improper_k: Float[np.ndarray, "improper"]
    improper_0: Float[np.ndarray, "improper"]

    def to_json(self) -> dict[str, list[float]]:
        return {field.name: getattr(self, field.name).tolist() for field in fields(self)}

    @staticmethod
    def from_json(content: dict[str, list[float]]) -> "PriorParameters":
        return PriorParameters(**{name: np.asarray(values, np.float64) for name, values in content.items()})


def fit_priors(moments: CoordinateMoments, temperature_K: float) -> PriorParameters:
    """Harmonic priors whose thermal width is the width seen in the data.

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
    return PriorParameters(bond_k, bond_0, angle_k, angle_0, improper_k, improper_0)


def term_labels(system: BeadSystem) -> tuple[str, ...]:
    """The words for each term, in the order of the moments, e.g. "bond ALA2:N-ALA2:CA"."""
    kinds = (("bond", system.bonds), ("angle", system.angles), ("improper", system.impropers))
    return tuple(f"{kind} {'-'.join(system.names[i] for i in term)}" for kind, terms in kinds for term in terms)
