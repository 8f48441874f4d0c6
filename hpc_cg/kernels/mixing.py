"""How much of the mapped force a label should hold: the W of least mean square, in closed form.

The score η of fresh noise is independent of the frame, has zero mean and variance (kT/σ)² on each axis, so the mean
square of F = η + W (F_at − η) needs only the second moment M of the mapped forces (bead by bead, mean over frames and
axes):

    W = c (M + c + λ)⁻¹,   c = (kT/σ)²

This is the staged solution of Durumeric et al. (arXiv 2407.01286) with the averages over the noise done exactly.
"""

import numpy as np
from jaxtyping import Float

from hpc_cg.errors import FitFailed
from hpc_cg.units import kT


def optimal_mixing(
    second_moment: Float[np.ndarray, "bead bead"], sigma_nm: float, temperature_K: float, ridge: float
) -> Float[np.ndarray, "bead bead"]:
    """W for mapped forces of the given second moment, (kJ/mol/nm)².

    ridge   λ ≥ 0 in (kJ/mol/nm)², per frame and axis. Raises FitFailed where the moment is not positive.
    """
    noise = (kT(temperature_K) / sigma_nm) ** 2
    matrix = second_moment + (noise + ridge) * np.eye(len(second_moment))
    if not np.isfinite(matrix).all() or np.linalg.eigvalsh(matrix).min() <= 0:
        raise FitFailed(
            "the mixing of noise and mapped forces",
            "a second moment of the mapped forces that is not positive",
            "audit the prepared store: its forces are damaged",
        )
    return noise * np.linalg.inv(matrix)


def label_mean_square(
    mixing: Float[np.ndarray, "bead bead"] | None,
    second_moment: Float[np.ndarray, "bead bead"],
    sigma_nm: float,
    temperature_K: float,
) -> Float[np.ndarray, "bead"]:
    """Mean square of the label on each bead, per axis, (kJ/mol/nm)²; ``mixing`` None means noise alone."""
    noise = (kT(temperature_K) / sigma_nm) ** 2
    w = np.zeros_like(second_moment) if mixing is None else mixing
    rest = np.eye(len(second_moment)) - w
    return np.diag(w @ second_moment @ w.T + noise * rest @ rest.T)
