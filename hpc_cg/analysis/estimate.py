"""A number with its error, and the error from resampling whole blocks of frames.

Frames that follow one another are correlated, so what is drawn with replacement is blocks: contiguous parts
of the reference's segments, replicas (or halves of them) of the model. The standard deviation of the
statistic over the draws is its standard error (Künsch 1989, doi 10.1214/aos/1176347265). A draw is given as
the multiplicity of each block, so a statistic is a function of weights and no frame is copied.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from hpc_cg.errors import TooFewFrames
from hpc_cg.randomness import stream


@dataclass(frozen=True)
class Estimate:
    """A measured number.

    value, error    in ``unit``; the error is one standard error
    n_effective     independent observations behind it: for a mean the variance of one frame over the squared
                    error, for anything else the number of blocks that were resampled
    """

    value: float
    error: float
    n_effective: float
    unit: str
    label: str


def contiguous_blocks(lengths: Sequence[int], block_frames: int) -> Int[np.ndarray, "frame"]:
    """The block of each frame of segments laid one after another, each cut every ``block_frames`` frames.

    A shorter rest joins the last block of its segment, so no block crosses a segment and none is tiny.
    """
    assert block_frames > 0, f"blocks of {block_frames} frames"
    labels, start = [], 0
    for length in lengths:
        n_blocks = max(length // block_frames, 1) if length else 0
        labels.append(start + np.minimum(np.arange(length) // block_frames, max(n_blocks - 1, 0)))
        start += n_blocks
    return np.concatenate(labels) if labels else np.zeros(0, dtype=int)


def replica_blocks(n_replicas: int, n_frames: int, parts: int = 1) -> Int[np.ndarray, "frame"]:
    """The block of each frame of replicas laid one after another, each cut in ``parts``."""
    assert n_frames >= parts > 0, f"{parts} parts of {n_frames} frames"
    within = np.minimum(np.arange(n_frames) // (n_frames // parts), parts - 1)
    return (np.arange(n_replicas)[:, None] * parts + within).ravel()


def bootstrap_error(
    statistic: Callable[..., float], n_blocks: Sequence[int], seed: int, purpose: str, n_resamples: int = 200
) -> float:
    """Standard error of ``statistic`` by resampling blocks.

    statistic   takes one array of multiplicities, shape (block,), per sample, and returns a number
    n_blocks    the number of blocks of each sample; a sample of one block stays as it is
    purpose     names the stream of random numbers, so that the same call gives the same error
    Raises TooFewFrames when no sample has two blocks.
    """
    if max(n_blocks, default=0) < 2:
        raise TooFewFrames(
            f"the error of {purpose} by resampling blocks",
            f"{max(n_blocks, default=0)} blocks",
            "use shorter blocks, more segments or more replicas",
        )
    random = stream(seed, f"bootstrap {purpose}")
    draws = [statistic(*(_multiplicities(random, n) for n in n_blocks)) for _ in range(n_resamples)]
    return float(np.std(draws, ddof=1))


def mean_estimate(
    values: Float[np.ndarray, "frame"],
    blocks: Int[np.ndarray, "frame"],
    unit: str,
    label: str,
    weights: Float[np.ndarray, "frame"] | None = None,
) -> Estimate:
    """Weighted mean of ``values`` with the error that the scatter of blocks gives.

    The error is that of a ratio, √(B/(B-1) Σ_b (Σ_{i in b} w_i (x_i - mean))²) / Σ w (Cochran 1977, chapter
    6), which for equal blocks is the standard error of block means. Raises TooFewFrames.
    """
    w = np.ones(len(values)) if weights is None else weights
    n_blocks = len(np.unique(blocks))
    if n_blocks < 2:
        raise TooFewFrames(f"the error of {label}", f"{n_blocks} blocks", "use shorter blocks or more replicas")
    mean = float(np.average(values, weights=w))
    sums = np.bincount(blocks, weights=w * (values - mean))
    error = float(np.sqrt(n_blocks / (n_blocks - 1) * np.sum(sums**2)) / w.sum())
    spread = float(np.average((values - mean) ** 2, weights=w))
    return Estimate(mean, error, spread / error**2 if error > 0 else float(len(values)), unit, label)


def share_estimate(
    inside: Bool[np.ndarray, "frame"],
    blocks: Int[np.ndarray, "frame"],
    label: str,
    weights: Float[np.ndarray, "frame"] | None = None,
) -> Estimate:
    """The share of frames inside a region, as ``mean_estimate``; a share of none or of all is uncertain too.

    There the error is the standard deviation that B blocks all alike leave to a share that could have been
    anything, √((B+1)/(B+3))/(B+2) (the rule of succession). Raises TooFewFrames.
    """
    share = mean_estimate(inside.astype(np.float64), blocks, "1", label, weights)
    if 0 < share.value < 1:
        return share
    n_blocks = len(np.unique(blocks))
    error = float(np.sqrt((n_blocks + 1) / (n_blocks + 3)) / (n_blocks + 2))
    return Estimate(share.value, error, float(n_blocks), share.unit, label)


def _multiplicities(random: np.random.Generator, n_blocks: int) -> np.ndarray:
    return random.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks)).astype(np.float64)
