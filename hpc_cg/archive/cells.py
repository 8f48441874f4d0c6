"""Periodic cells as three vectors, from the lengths and angles that many formats keep."""

import numpy as np
from jaxtyping import Float


def box_vectors(
    lengths: Float[np.ndarray, "frame 3"], angles: Float[np.ndarray, "frame 3"]
) -> Float[np.ndarray, "frame 3 3"]:
    """Cell vectors a, b, c in rows, a along x and b in the xy plane, in the unit of ``lengths``; angles in degrees.

    The angles are α between b and c, β between a and c, γ between a and b (International Tables for Crystallography).
    Right angles give exact zeros.
    """
    cosine = np.where(angles == 90.0, 0.0, np.cos(np.radians(angles.astype(np.float64))))
    alpha, beta, gamma = cosine.T
    a, b, c = lengths.astype(np.float64).T
    sine = np.sqrt(1 - gamma**2)
    across = (alpha - beta * gamma) / sine
    vectors = np.zeros((len(lengths), 3, 3))
    vectors[:, 0, 0] = a
    vectors[:, 1, 0], vectors[:, 1, 1] = b * gamma, b * sine
    vectors[:, 2, 0], vectors[:, 2, 1] = c * beta, c * across
    vectors[:, 2, 2] = c * np.sqrt(np.clip(1 - beta**2 - across**2, 0, None))
    return vectors
