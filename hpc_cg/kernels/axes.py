"""A frame of axes on every bead, that turns with the molecule: what is told in it does not depend on orientation.

    e1 along r_j − r_i,     e3 along e1 × (r_k − r_i),     e2 = e3 × e1

for a bead i and two partners j and k (the triangle of i). The axes are right-handed whatever the molecule: its mirror
image has other coordinates in them, so left and right are told apart. They are no numbers where i, j and k lie on one
line; partners are chosen so that this is far off, and that stiff directions, as that of a bond, lie still in the axes.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hpc_cg.errors import FitFailed

FLATTEST = 0.2
"""Least sine of the angle at a bead that its partners may have in any frame that is looked at."""


def local_axes(
    positions: Float[Tensor, "frame bead 3"], triangles: Int[Tensor, "bead 2"]
) -> Float[Tensor, "frame bead 3 3"]:
    """Rows e1, e2, e3 of every bead; each turns with the positions and does not feel a shift."""
    along = positions[:, triangles[:, 0]] - positions
    other = positions[:, triangles[:, 1]] - positions
    first = along / along.norm(dim=-1, keepdim=True)
    normal = torch.linalg.cross(first, other)
    third = normal / normal.norm(dim=-1, keepdim=True)
    return torch.stack((first, torch.linalg.cross(third, first), third), -2)


def stiff_triangles(positions: Float[np.ndarray, "frame bead 3"]) -> Int[np.ndarray, "bead 2"]:
    """Partners j, k of every bead i: j at the stiffest distance, k with the stiffest distances to both.

    Stiff is what has a small standard deviation (nm) over the frames; that of k counts over the least sine of the angle
    at i. Raises FitFailed where a bead has no two partners that are never near one line with it.
    """
    distances = np.linalg.norm(positions[:, :, None] - positions[:, None], axis=-1)
    spread = distances.std(0)
    chosen = [_partners(bead, positions, spread) for bead in range(positions.shape[1])]
    return np.array(chosen, dtype=np.int64)


def _partners(bead: int, positions: np.ndarray, spread: Float[np.ndarray, "bead bead"]) -> tuple[int, int]:
    vectors = positions - positions[:, bead : bead + 1]
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), np.finfo(float).tiny)
    cosine = np.abs(unit @ unit.transpose(0, 2, 1)).max(0)
    sine = np.sqrt(np.clip(1.0 - cosine**2, 0.0, None))
    sine[bead] = sine[:, bead] = 0.0
    cost = np.where(sine < FLATTEST, np.inf, (spread[bead] + spread) / np.maximum(sine, FLATTEST))
    able = [int(j) for j in np.argsort(spread[bead], kind="stable") if np.isfinite(cost[j]).any()]
    if not able:
        raise FitFailed(
            f"axes on bead {bead} of {len(spread)}",
            "no two other beads that are never on one line with it",
            "use a map with more beads, or the noise kernel",
        )
    return able[0], int(cost[able[0]].argmin())
