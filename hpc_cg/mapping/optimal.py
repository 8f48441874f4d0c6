"""Force maps from second moments: the slice, the uniform and the statistically optimal one.

Any B with C Bᵀ = 1 and equal weights within rigid groups gives the same mean forces; they differ in noise.
With one unknown per group (B = W Kᵀ, K expands groups to atoms) each row w of the optimal W solves

    min over w of  wᵀ (G / 3T + λ KᵀK) w   with  (C K) w = e_bead,      G = Σ over T frames and 3 axes of g gᵀ

that is the smallest mean square force per frame and axis, plus λ times the squared weights of the atoms. Weighted by
√(group size) and turned so that the first coordinates span the rows of C K, the constraint fixes those and leaves
the others free: one Cholesky factorisation serves all beads.

Krämer et al., J. Phys. Chem. Lett. 14, 3970 (2023), eqs. 5-9, doi 10.1021/acs.jpclett.3c00444.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64
from scipy.linalg import LinAlgError, get_lapack_funcs, solve_triangular

from hpc_cg.errors import FitFailed, InvalidMap
from hpc_cg.mapping.moments import ForceMoments, Groups, GroupSum

WORST_CONDITION = 1e-13
"""Reciprocal condition number of the moments on free directions below which a fit means nothing in float64."""

TOLERANCE = 1e-8
"""Largest |C Bᵀ - 1| and largest difference of weights within a rigid group that a map may have."""


@dataclass(frozen=True, eq=False)
class Constraints:
    """The turn Q of √(group size)-weighted groups, Q = (what C Bᵀ = 1 fixes | what it leaves free).

    fixed    the first coordinates of each row of W (columns here), which every valid map shares; lower triangular
    The reflections that make up Q are kept as LAPACK gives them: Q itself is never formed.
    """

    fixed: Float64[np.ndarray, "fixed bead"]
    reflections: Float64[np.ndarray, "group bead"]
    factors: Float64[np.ndarray, "bead"]
    root_sizes: Float64[np.ndarray, "group"]

    @staticmethod
    def of(coordinate: Float[np.ndarray, "bead atom"], groups: GroupSum) -> "Constraints":
        """What C Bᵀ = 1 asks of a map that respects the groups; raises InvalidMap where no map can give it."""
        root = np.sqrt(groups.sizes.astype(np.float64))
        rows = groups.columns(coordinate) / root
        n_beads, n_groups = rows.shape
        if n_beads > n_groups:
            raise _joined_beads()
        (geqrf,) = get_lapack_funcs(("geqrf",), (rows,))
        reflections, factors, _, _ = geqrf(np.asfortranarray(rows.T))
        upper = np.triu(reflections[:n_beads])
        diagonal = np.abs(np.diag(upper))
        if not diagonal.min() > 1e-10 * diagonal.max():
            raise _joined_beads()
        fixed = solve_triangular(upper, np.eye(n_beads), trans="T")
        return Constraints(fixed, reflections, factors, root)

    @property
    def n_beads(self) -> int:
        return len(self.fixed)

    def turned(self, mean: Float64[np.ndarray, "group group"]) -> Float64[np.ndarray, "group group"]:
        """Qᵀ S⁻¹ ``mean`` S⁻¹ Q with S = √size: the moments in the coordinates described above."""
        scaled = np.asfortranarray(mean / self.root_sizes / self.root_sizes[:, None])
        return self._reflect("R", "N", self._reflect("L", "T", scaled))

    def weights(self, turned: Float64[np.ndarray, "group bead"]) -> Float64[np.ndarray, "bead group"]:
        """W, whose rows these are in turned coordinates."""
        return self._reflect("L", "N", np.asfortranarray(turned)).T / self.root_sizes

    def _reflect(self, side: str, transpose: str, matrix: np.ndarray) -> np.ndarray:
        (ormqr,) = get_lapack_funcs(("ormqr",), (matrix,))
        room = 64 * (max(matrix.shape) + 65)  # LAPACK's blocks are of at most 64
        product, _, info = ormqr(side, transpose, self.reflections, self.factors, matrix, room, overwrite_c=True)
        assert info == 0, "dormqr refuses its arguments"
        return product


def slice_force_map(coordinate: Float[np.ndarray, "bead atom"]) -> Float64[np.ndarray, "bead atom"]:
    """B = (C Cᵀ)⁻¹ C, the forces on the bead's own atoms; wrong where those are bound rigidly to others."""
    C = coordinate.astype(np.float64)
    if (np.count_nonzero(C, axis=0) <= 1).all() and C.any(axis=1).all():
        return C / np.square(C).sum(axis=1, keepdims=True)  # no atom is shared, so C Cᵀ is diagonal
    try:
        return np.linalg.solve(C @ C.T, C)
    except LinAlgError as error:
        raise InvalidMap("a force map", "two beads at the same place", "give every bead atoms of its own") from error


def uniform_force_map(coordinate: Float[np.ndarray, "bead atom"], groups: Groups) -> Float64[np.ndarray, "bead atom"]:
    """Equal weights on the atoms of a bead and on all that are bound rigidly to them; raises InvalidMap."""
    sums = GroupSum(tuple(groups), coordinate.shape[1])
    members = sums.expand((sums.columns(np.abs(coordinate)) > 0).astype(np.float64))
    own = (coordinate * members).sum(axis=1, keepdims=True)
    if (np.abs(own) < TOLERANCE).any():
        raise InvalidMap("a uniform force map", "a bead whose weights sum to zero", "correct the coordinate map")
    force_map = members / own
    check_map(coordinate, force_map, groups)
    return force_map


def optimal_force_map(
    coordinate: Float[np.ndarray, "bead atom"], groups: Groups, moments: ForceMoments, ridge: float = 0.0
) -> Float64[np.ndarray, "bead atom"]:
    """The map of least mean square force among those that give the right mean forces (see above).

    groups    rigid groups that cover every atom
    moments   of the forces on those groups, in their order
    ridge     λ per frame and axis, (kJ/mol/nm)²: the same value means the same for any number of frames
    Raises InvalidMap where no such map exists, FitFailed where the frames do not determine it.
    """
    sums = GroupSum(tuple(groups), coordinate.shape[1])
    constraints = Constraints.of(coordinate, sums)
    turned = constraints.turned(moments.mean)
    n_beads = constraints.n_beads
    free = _solve(turned[n_beads:, n_beads:], turned[n_beads:, :n_beads] @ constraints.fixed, ridge, moments.count)
    force_map = sums.expand(constraints.weights(np.concatenate([constraints.fixed, -free])))
    check_map(coordinate, force_map, groups)
    return force_map


def bead_second_moment(
    force_map: Float[np.ndarray, "bead atom"], groups: Groups, moments: ForceMoments
) -> Float64[np.ndarray, "bead bead"]:
    """⟨F Fᵀ⟩ of mapped forces per frame and axis, (kJ/mol/nm)², from moments of the forces on ``groups``.

    Raises InvalidMap for a map that gives atoms of one group different weights: it needs moments of its own.
    """
    _check_groups(force_map, groups)
    W = force_map[:, [group[0] for group in groups]].astype(np.float64)
    return W @ moments.mean @ W.T


def mean_square(
    force_map: Float[np.ndarray, "bead atom"], groups: Groups, moments: ForceMoments
) -> Float64[np.ndarray, "bead"]:
    """Mean square mapped force of each bead per frame and axis, (kJ/mol/nm)²; raises InvalidMap as above."""
    return np.diag(bead_second_moment(force_map, groups, moments)).copy()


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
    _check_groups(force_map, groups)


def _check_groups(force_map: np.ndarray, groups: Groups) -> None:
    for group in groups:
        if len(group) == 1:
            continue
        if np.ptp(force_map[:, list(group)], axis=1).max() > TOLERANCE:
            raise InvalidMap(
                "a force map that respects rigid bonds",
                f"unequal weights on the atoms {', '.join(str(atom) for atom in group)}, which move as one",
                "use the uniform or the optimal map",
            )


def _solve(moments: np.ndarray, right: np.ndarray, ridge: float, count: float) -> np.ndarray:
    """(moments + ridge)⁻¹ right, refused where float64 cannot tell the answer."""
    if not len(moments):
        return right
    matrix = moments + ridge * np.eye(len(moments))
    factor, estimate, back = get_lapack_funcs(("potrf", "pocon", "potrs"), (matrix,))
    norm = np.abs(matrix).sum(axis=0).max()
    cholesky, info = factor(matrix, lower=True)
    condition = estimate(cholesky, norm, uplo="L")[0] if info == 0 else 0.0
    if not condition > WORST_CONDITION:
        raise FitFailed(
            "the optimal force map",
            f"{count:g} frames that do not determine it (reciprocal condition {condition:.1g})",
            "give more frames or a ridge above zero, or use the uniform map",
        )
    solution: np.ndarray = back(cholesky, right, lower=True)[0]
    return solution


def _joined_beads(found: str = "beads that are bound rigidly to one another") -> InvalidMap:
    return InvalidMap(
        "a force map with C Bᵀ = 1",
        found,
        "choose beads in different rigid groups, or find the groups from more frames farther apart",
    )
