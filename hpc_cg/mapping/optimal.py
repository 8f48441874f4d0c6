"""Force maps from streamed second moments: the slice, the uniform and the statistically optimal one.

Any B with C Bᵀ = 1 and equal weights within rigid groups gives the same mean forces; they differ in noise.
With one unknown per group (w = K v, K expands groups to atoms) each row of the optimal B solves

    min over v of  vᵀ Kᵀ (G / 3T + λ) K v   with  C K v = e_bead,      G = Σ over T frames and 3 axes of f fᵀ

that is the smallest mean square force per frame and axis, plus λ |w|². One factorisation of the KKT matrix
serves all beads. G adds up over blocks and ranks, so forces are never held together.

Krämer et al., J. Phys. Chem. Lett. 14, 3970 (2023), eqs. 5-9, doi 10.1021/acs.jpclett.3c00444.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64
from scipy.linalg import LinAlgError, get_lapack_funcs

from hpc_cg.errors import BadFrames, FitFailed, InvalidMap, TooFewFrames
from hpc_cg.mapping.constraints import group_matrix

Groups = Sequence[tuple[int, ...]]

WORST_CONDITION = 1e-13
"""Reciprocal condition number of the scaled KKT matrix below which its solution means nothing in float64."""

TOLERANCE = 1e-8
"""Largest |C Bᵀ - 1| and largest difference of weights within a rigid group that a map may have."""


@dataclass(frozen=True, eq=False)
class ForceMoments:
    """Second moments of atomistic forces; ``a + b`` are those of both sets of frames.

    count   frames seen
    gram    Σ over frames and axes of f fᵀ, (kJ/mol/nm)²
    """

    count: int
    gram: Float64[np.ndarray, "atom atom"]

    @staticmethod
    def empty(n_atoms: int) -> "ForceMoments":
        """Moments of no frames."""
        return ForceMoments(0, np.zeros((n_atoms, n_atoms)))

    @staticmethod
    def of(forces: Float[np.ndarray, "frame atom 3"]) -> "ForceMoments":
        """Moments of forces in kJ/mol/nm, summed in float64; raises BadFrames where those are no numbers."""
        n_frames, n_atoms = forces.shape[:2]
        rows = forces.transpose(0, 2, 1).reshape(3 * n_frames, n_atoms).astype(np.float64)
        if not np.isfinite(rows).all():
            raise BadFrames("second moments of forces", "forces that are no numbers", "leave those frames out")
        return ForceMoments(count=n_frames, gram=rows.T @ rows)

    def __add__(self, other: "ForceMoments") -> "ForceMoments":
        return ForceMoments(self.count + other.count, self.gram + other.gram)

    @property
    def mean(self) -> Float64[np.ndarray, "atom atom"]:
        """G / 3T, the moments per frame and axis; raises TooFewFrames for none."""
        if self.count == 0:
            raise TooFewFrames("a force map", "no frames with forces", "give an archive that holds forces")
        return self.gram / (3 * self.count)


def slice_force_map(coordinate: Float[np.ndarray, "bead atom"]) -> Float64[np.ndarray, "bead atom"]:
    """B = (C Cᵀ)⁻¹ C, the forces on the bead's own atoms; wrong where those are bound rigidly to others."""
    C = coordinate.astype(np.float64)
    try:
        return np.linalg.solve(C @ C.T, C)
    except LinAlgError as error:
        raise InvalidMap("a force map", "two beads at the same place", "give every bead atoms of its own") from error


def uniform_force_map(coordinate: Float[np.ndarray, "bead atom"], groups: Groups) -> Float64[np.ndarray, "bead atom"]:
    """Equal weights on the atoms of a bead and on all that are bound rigidly to them; raises InvalidMap."""
    C = coordinate.astype(np.float64)
    K = group_matrix(groups, C.shape[1])
    members = ((np.abs(C) @ K > 0) @ K.T > 0).astype(np.float64)
    own = (C * members).sum(axis=1, keepdims=True)
    if (np.abs(own) < TOLERANCE).any():
        raise InvalidMap("a uniform force map", "a bead whose weights sum to zero", "correct the coordinate map")
    force_map = members / own
    check_map(C, force_map, groups)
    return force_map


def optimal_force_map(
    coordinate: Float[np.ndarray, "bead atom"], groups: Groups, moments: ForceMoments, ridge: float = 0.0
) -> Float64[np.ndarray, "bead atom"]:
    """The map of least mean square force among those that give the right mean forces (see above).

    groups   rigid groups that cover every atom
    ridge    λ per frame and axis, (kJ/mol/nm)²: the same value means the same for any number of frames
    Raises InvalidMap where no such map exists, FitFailed where the frames do not determine it.
    """
    C = coordinate.astype(np.float64)
    K = group_matrix(groups, C.shape[1])
    A = C @ K
    n_beads, n_groups = A.shape
    if np.linalg.matrix_rank(A) < n_beads:
        raise _joined_beads()
    P = K.T @ moments.mean @ K + ridge * (K.T @ K)
    # Squared forces are of order 1e6, weights of order 1: unscaled, the condition would tell of units.
    P = P * (n_groups / np.trace(P)) if np.trace(P) > 0 else P
    kkt = np.block([[P, A.T], [A, np.zeros((n_beads, n_beads))]])
    right = np.concatenate([np.zeros((n_groups, n_beads)), np.eye(n_beads)])
    force_map = (K @ _solve(kkt, right, moments.count)[:n_groups]).T
    check_map(C, force_map, groups)
    return force_map


def bead_second_moment(
    force_map: Float[np.ndarray, "bead atom"], moments: ForceMoments
) -> Float64[np.ndarray, "bead bead"]:
    """B G Bᵀ / 3T: mean product of mapped forces per frame and axis, (kJ/mol/nm)²."""
    B = force_map.astype(np.float64)
    return B @ moments.mean @ B.T


def mean_square(force_map: Float[np.ndarray, "bead atom"], moments: ForceMoments) -> Float64[np.ndarray, "bead"]:
    """Mean square mapped force of each bead per frame and axis, (kJ/mol/nm)²."""
    return np.diag(bead_second_moment(force_map, moments)).copy()


def check_map(
    coordinate: Float[np.ndarray, "bead atom"], force_map: Float[np.ndarray, "bead atom"], groups: Groups
) -> None:
    """Raise InvalidMap unless C Bᵀ = 1 and the weights within each rigid group are equal."""
    product = coordinate.astype(np.float64) @ force_map.astype(np.float64).T
    off = np.abs(product - np.eye(len(product)))
    if not off.max() <= TOLERANCE:
        bead, other = np.unravel_index(off.argmax(), off.shape)
        if bead != other and np.isfinite(off).all():
            raise _joined_beads(
                f"bead {other} feels the forces of bead {bead} (C Bᵀ is {product[bead, other]:.3g} there)"
            )
        raise InvalidMap("a force map", f"|C Bᵀ - 1| = {off.max():.3g}", "make C Bᵀ the unit matrix")
    for group in groups:
        weights = force_map[:, list(group)]
        if np.ptp(weights, axis=1).max() > TOLERANCE:
            raise InvalidMap(
                "a force map that respects rigid bonds",
                f"unequal weights on the atoms {', '.join(str(atom) for atom in group)}, which move as one",
                "use the uniform or the optimal map",
            )


def _solve(kkt: np.ndarray, right: np.ndarray, n_frames: int) -> np.ndarray:
    factor, estimate, back = get_lapack_funcs(("getrf", "gecon", "getrs"), (kkt,))
    lu, pivots, info = factor(kkt)
    condition = estimate(lu, np.abs(kkt).sum(axis=0).max())[0] if info == 0 else 0.0
    if not condition > WORST_CONDITION:
        raise FitFailed(
            "the optimal force map",
            f"{n_frames} frames that do not determine it (reciprocal condition {condition:.1g})",
            "give more frames or a ridge above zero, or use the uniform map",
        )
    return back(lu, pivots, right)[0]


def _joined_beads(found: str = "beads that are bound rigidly to one another") -> InvalidMap:
    return InvalidMap(
        "a force map with C Bᵀ = 1",
        found,
        "choose beads in different rigid groups, or find the groups from more frames farther apart",
    )
