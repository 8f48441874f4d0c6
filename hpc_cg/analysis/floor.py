"""The floor of a divergence: what two samples of one density give, from counting alone.

A divergence of two finite samples is never zero, and with more bins than the frames can fill most of it is
counting noise. The floor is its mean over pairs of samples of the sizes at hand, both drawn from the
reference density. The reference's own histogram is too narrow for that: bins of little probability are mostly
empty in it, so floors drawn from it are low by a tenth, or by half when more frames are drawn than were
counted. The mass of the bins that were not seen follows from those seen once and twice (f1, f2),
  M = f1/n · (n-1) f1 / ((n-1) f1 + 2 f2),
and is taken from the seen bins in proportion p (1-p)^n (Chao, Wang and Jost 2013, doi
10.1111/2041-210X.12108). Here it goes to the empty bins beside occupied ones, by the ¾ power of what lies
around them: with power 1 the density ends too sharply, with ½ too softly. Against disjoint samples of 60,000
frames of alanine dipeptide this floor is right to 10 % for sizes up to twice the frames that were counted,
and to 16 % up to seven times.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from hpc_cg.analysis.geometry import transport
from hpc_cg.errors import TooFewFrames
from hpc_cg.randomness import stream

NEIGHBOUR_POWER = 0.75
"""How an empty bin's share of the unseen mass grows with the probability around it."""


@dataclass(frozen=True)
class Floor:
    """Mean and standard deviation of a divergence over ``n_draws`` pairs of samples of one density."""

    mean: float
    spread: float
    n_draws: int


def effective_frames(weights: Float[np.ndarray, "frame"]) -> float:
    """Kish's number of equally weighted frames that is worth these: (Σ w)² / Σ w²."""
    return float(weights.sum() ** 2 / np.sum(weights**2))


def unveiled_density(counts: Float[np.ndarray, "*bin"], n_frames: float | None = None) -> Float[np.ndarray, "*bin"]:
    """Probability of each bin, with the mass of unseen bins laid into empty ones beside those that were seen.

    counts     (weighted) counts of the reference, an axis per coordinate; the ends of an axis are neighbours
    n_frames   frames behind them: their sum, or ``effective_frames`` where frames carry weights
    Raises TooFewFrames.
    """
    n = float(counts.sum()) if n_frames is None else n_frames
    if not n > 1 or not counts.any():
        raise TooFewFrames("the density behind a histogram", f"{n:g} frames", "give the reference more frames")
    p = counts / counts.sum()
    whole = np.rint(p * n)
    once, twice = int(np.sum(whole == 1)), int(np.sum(whole == 2))
    room = np.where(p == 0, _around(p) ** NEIGHBOUR_POWER, 0.0)
    if once == 0 or not room.any():
        return p
    pairs = 2 * twice if twice else 2
    missing = once / n * (n - 1) * once / ((n - 1) * once + pairs)
    unsure = (1 - p) ** n
    p = np.clip(p * (1 - missing / np.sum(p * unsure) * unsure), 0, None) + missing * room / room.sum()
    return p / p.sum()


def counting_floor(
    divergence: Callable[[np.ndarray, np.ndarray], float],
    counts: Float[np.ndarray, "*bin"],
    n_reference: int,
    n_model: int,
    seed: int,
    n_frames: float | None = None,
    n_draws: int = 40,
) -> Floor:
    """The floor of a divergence of histograms at two sample sizes, which may exceed the reference's own.

    divergence   of two arrays of counts, e.g. ``js_divergence``
    counts       of the whole reference, on the grid of the divergence
    n_frames     as for ``unveiled_density``
    It holds for frames that are independent, or for many correlation times of correlated ones; how slow
    sampling adds to it shows in the error of the estimate, which is resampled in blocks. Raises TooFewFrames.
    """
    density = unveiled_density(counts, n_frames)
    random = stream(seed, "counting floor", n_reference, n_model)

    def draw(n: int) -> np.ndarray:
        return random.multinomial(n, density.ravel()).astype(np.float64).reshape(counts.shape)

    return _floor([divergence(draw(n_reference), draw(n_model)) for _ in range(n_draws)])


def transport_floor(
    sample: Float[np.ndarray, "frame"],
    weights: Float[np.ndarray, "frame"],
    n_reference: int,
    n_model: int,
    seed: int,
    n_draws: int = 10,
) -> Floor:
    """The floor of the Wasserstein distance of one coordinate, both samples drawn from the reference."""
    distance = transport(sample, sample)
    random = stream(seed, "transport floor", n_reference, n_model)
    p = weights.astype(np.float64) / weights.sum(dtype=np.float64)

    def draw(n: int) -> np.ndarray:
        return random.multinomial(n, p).astype(np.float64)

    return _floor([distance(draw(n_reference), draw(n_model)) for _ in range(n_draws)])


def _around(p: np.ndarray) -> np.ndarray:
    """Sum of p over the neighbours of each bin, diagonal ones too."""
    total = p
    for axis in range(p.ndim):
        total = total + np.roll(total, 1, axis) + np.roll(total, -1, axis)
    return total - p


def _floor(values: list[float]) -> Floor:
    return Floor(float(np.mean(values)), float(np.std(values, ddof=1)), len(values))
