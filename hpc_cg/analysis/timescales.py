"""Implied timescales with errors, and what they say of a model's time beside the molecule's.

A timescale t = −τ / ln λ of a Markov model grows with its lag τ until the states are Markovian; give it at several
lags. Its error is the standard deviation over draws of whole blocks with replacement. A draw in which states that weigh
more than LOST_SHARE cannot be reached has no such timescale; it is left out and counted.

A coarse-grained model has no friction of the molecule's, so its time runs at another rate; by how much is measured, as
the ratio t(reference) / t(model) of each process on the same states. One number fits all processes only where their
ratios agree: ``misfit`` says how far from that they are. Processes are paired by order of timescale; ``overlap`` says
whether they are the same motion.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from hpc_cg.analysis.estimate import Estimate
from hpc_cg.analysis.markov import MarkovModel, TransitionCounts, reversible
from hpc_cg.errors import FitFailed, TooFewFrames
from hpc_cg.randomness import stream

LOST_SHARE = 0.05
MOST_LOST = 0.5
"""Share of draws without the process above which it has no error."""


@dataclass(frozen=True, eq=False)
class ImpliedTimescales:
    """Slowest processes of a Markov model.

    model    of all blocks
    values   implied timescales, ``unit``, longest first
    draws    the same of resampled blocks, NaN where a draw has none
    """

    model: MarkovModel
    values: Float64[np.ndarray, "process"]
    draws: Float64[np.ndarray, "draw process"]
    unit: str
    n_blocks: int

    @property
    def lost(self) -> Float64[np.ndarray, "process"]:
        """Share of draws without each process."""
        return np.mean(~np.isfinite(self.draws), axis=0)

    @property
    def errors(self) -> Float64[np.ndarray, "process"]:
        return np.nanstd(self.draws, axis=0, ddof=1)

    def estimates(self, whose: str) -> tuple[Estimate, ...]:
        """A row for each process."""
        return tuple(
            Estimate(float(t), float(e), float(self.n_blocks), self.unit, f"implied timescale {n} of the {whose}")
            for n, (t, e) in enumerate(zip(self.values, self.errors, strict=True), start=1)
        )


@dataclass(frozen=True)
class TimeScaling:
    """How much faster the model's time runs.

    ratios    t(reference) / t(model) of each process
    overlap   |⟨ψ_reference ψ_model⟩| of each under the reference's π on common states: 1 for the same motion
    common    mean of the ratios, on a logarithmic scale, each by its precision
    misfit    mean square distance of the ratios from it, in their errors; None for one process. Far above 1: there is
              no one factor
    """

    ratios: tuple[Estimate, ...]
    overlap: tuple[float, ...]
    common: Estimate
    misfit: float | None


def implied_timescales(
    counts: TransitionCounts,
    stride: float,
    unit: str,
    seed: int,
    n_processes: int = 2,
    n_resamples: int = 100,
) -> ImpliedTimescales:
    """The slowest timescales of the reversible model of some counts.

    stride   time between frames, in ``unit``
    Raises TooFewFrames with fewer than two blocks, fewer processes than asked for, or processes seen in too few blocks.
    """
    asked = f"{n_processes} implied timescales with errors"
    filled = np.unique(counts.keys // counts.n_states**2)
    if len(filled) < 2:
        raise TooFewFrames(asked, f"transitions in {len(filled)} blocks", "use shorter blocks or more segments")
    model = reversible(counts.matrix(), counts.lag)
    values = model.timescales[:n_processes] * stride
    if np.count_nonzero(np.isfinite(values)) < n_processes:
        raise TooFewFrames(
            asked,
            f"{len(model.active)} of {counts.n_states} states that reach one another and "
            f"{np.count_nonzero(np.isfinite(values))} processes slower than the lag",
            "ask for fewer processes, shorten the lag or simulate longer",
        )
    random = stream(seed, "implied timescales", counts.lag)
    draws = np.full((n_resamples, n_processes), np.nan)
    for row in draws:
        often = np.zeros(counts.n_blocks)
        often[filled] = random.multinomial(len(filled), np.full(len(filled), 1 / len(filled)))
        row[:] = _drawn(counts.matrix(often), model, n_processes) * stride
    found = ImpliedTimescales(model, values, draws, unit, len(filled))
    if np.any(found.lost > MOST_LOST):
        raise TooFewFrames(
            asked,
            f"no such process in {found.lost.max():.0%} of the draws of {len(filled)} blocks",
            "simulate longer, or ask for fewer states",
        )
    return found


def time_scaling(reference: ImpliedTimescales, model: ImpliedTimescales) -> TimeScaling:
    """Ratios of timescales, by process; both in one unit and on the same states. Raises TooFewFrames."""
    assert reference.unit == model.unit, f"timescales in {reference.unit} and {model.unit}"
    n = min(len(reference.values), len(model.values))
    value = np.log(reference.values[:n] / model.values[:n])
    error = np.hypot(*(np.nanstd(np.log(one.draws[:, :n]), axis=0, ddof=1) for one in (reference, model)))
    if not np.all(error > 0):
        raise TooFewFrames("the ratio of timescales", "blocks that are all alike", "give more blocks")
    blocks = float(min(reference.n_blocks, model.n_blocks))
    ratios = [
        _from_log(v, e, blocks, f"time of the reference over time of the model, process {k}")
        for k, (v, e) in enumerate(zip(value, error, strict=True), start=1)
    ]
    precision = 1 / error**2
    mean = float(np.average(value, weights=precision))
    common = _from_log(mean, float(precision.sum() ** -0.5), blocks, "time of the reference over time of the model")
    misfit = float(np.sum(((value - mean) / error) ** 2) / (n - 1)) if n > 1 else None
    return TimeScaling(tuple(ratios), _overlap(reference.model, model.model, n), common, misfit)


def _drawn(counts: Float[np.ndarray, "state state"], whole: MarkovModel, n: int) -> np.ndarray:
    """Timescales of a draw, frames; NaN where it lost states that weigh something, or has no answer."""
    try:
        model = reversible(counts, whole.lag)
    except (TooFewFrames, FitFailed):
        return np.full(n, np.nan)
    kept = whole.stationary[np.isin(whole.active, model.active)].sum()
    found = np.full(n, np.nan)
    if kept >= 1 - LOST_SHARE:
        values = model.timescales[:n]
        found[: len(values)] = values
    return np.where(np.isfinite(found), found, np.nan)


def _overlap(reference: MarkovModel, model: MarkovModel, n: int) -> tuple[float, ...]:
    common, left, right = np.intersect1d(reference.active, model.active, return_indices=True)
    if len(common) < 2:
        raise TooFewFrames("the ratio of timescales", f"{len(common)} states in both", "simulate longer")
    weights = reference.stationary[left]
    pairs = zip(reference.processes[1][left, :n].T, model.processes[1][right, :n].T, strict=True)
    return tuple(_correlation(a, b, weights) for a, b in pairs)


def _correlation(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> float:
    a, b = (x - np.average(x, weights=weights) for x in (a, b))
    return float(abs(np.sum(weights * a * b)) / np.sqrt(np.sum(weights * a**2) * np.sum(weights * b**2)))


def _from_log(value: float, error: float, n_effective: float, label: str) -> Estimate:
    return Estimate(float(np.exp(value)), float(np.exp(value) * error), n_effective, "1", label)
