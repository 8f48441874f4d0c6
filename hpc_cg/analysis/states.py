"""States of slow motion: the cells around centres in the space of slow components, placed by k-means.

Centres are drawn one after another from the frames, each with a chance in proportion to the squared distance to the
nearest one before (k-means++, Arthur and Vassilvitskii 2007), then moved to the mean of their frames until they stay
(Lloyd 1982, doi 10.1109/TIT.1982.1056489). Random numbers are keyed by the seed, so the same frames give the same
states; these are numbered along the slowest component.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64
from scipy.spatial import cKDTree

from hpc_cg.errors import FitFailed, TooFewFrames
from hpc_cg.randomness import stream

MOST_ROUNDS = 500
STAYS = 1e-8
"""A centre stays that moves by less than this, in standard deviations of the frames."""


@dataclass(frozen=True, eq=False)
class States:
    """Centres of the states; a frame belongs to the nearest."""

    centres: Float64[np.ndarray, "state component"]

    @property
    def n_states(self) -> int:
        return len(self.centres)

    def assign(self, points: Float[np.ndarray, "frame component"]) -> Int64[np.ndarray, "frame"]:
        """The state of each frame, by its slow components."""
        return cKDTree(self.centres).query(points)[1].astype(np.int64)


def cluster(
    points: Float[np.ndarray, "frame component"],
    n_states: int,
    seed: int,
    weights: Float[np.ndarray, "frame"] | None = None,
) -> States:
    """States of frames in the space of their slow components, frames counting by weight.

    Raises TooFewFrames where fewer different frames than states have a weight, FitFailed where centres keep moving.
    """
    assert n_states >= 1, f"{n_states} states"
    x = points.astype(np.float64)
    w = np.ones(len(x)) if weights is None else weights.astype(np.float64)
    n_different = len(np.unique(x[w > 0], axis=0))
    if n_different < n_states:
        raise TooFewFrames(f"{n_states} states", f"{n_different} different frames", "ask for fewer states")
    centres = _seeds(x, w, n_states, stream(seed, "k-means", n_states))
    near = STAYS * float(np.sqrt(np.average((x - np.average(x, axis=0, weights=w)) ** 2, axis=0, weights=w).sum()))
    for _ in range(MOST_ROUNDS):
        moved = _moved(x, w, centres)
        distance = float(np.abs(moved - centres).max())
        centres = moved
        if distance <= near:
            return States(centres[np.lexsort(centres.T[::-1])])
    raise FitFailed(f"{n_states} states", f"centres that still move after {MOST_ROUNDS} rounds", "ask for fewer states")


def _seeds(x: np.ndarray, w: np.ndarray, n: int, random: np.random.Generator) -> np.ndarray:
    chosen = [int(random.choice(len(x), p=w / w.sum()))]
    nearest = np.full(len(x), np.inf)
    while len(chosen) < n:
        nearest = np.minimum(nearest, np.sum((x - x[chosen[-1]]) ** 2, axis=1))
        chances = w * nearest
        chosen.append(int(random.choice(len(x), p=chances / chances.sum())))
    return x[chosen]


def _moved(x: np.ndarray, w: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Each centre at the mean of its frames; one that lost all of them, at the frame farthest from its own."""
    distance, state = cKDTree(centres).query(x)
    mass = np.bincount(state, w, minlength=len(centres))
    sums = np.stack([np.bincount(state, w * column, minlength=len(centres)) for column in x.T], axis=1)
    moved = sums / np.where(mass > 0, mass, 1)[:, None]
    empty = np.flatnonzero(mass == 0)
    moved[empty] = x[np.argsort(-distance * (w > 0), kind="stable")[: len(empty)]]
    return moved
