"""Slow motion and whole structures of an ensemble judged against the reference.

Slow components are fitted on the reference alone and both are laid on them. The plane of the two slowest has ``n_bins``
bins per axis, the first and last for what lies outside the reference's range (arXiv 2302.00600 leaves that out). States
are cells of the reference in the space of its components; both have the same, so implied timescales can be set beside
one another. What there are too few frames for is left out and said so; a lag that no segment has is an error.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, reduce

import numpy as np
from jaxtyping import Float, Float64, Int64

from hpc_cg.analysis import structures
from hpc_cg.analysis.blocks import BlockHistograms, judge, mean_js
from hpc_cg.analysis.choice import Choice
from hpc_cg.analysis.comparison import Comparison, Judged
from hpc_cg.analysis.lagged import Timeline
from hpc_cg.analysis.landscape import Grid, pmf_error
from hpc_cg.analysis.markov import TransitionCounts
from hpc_cg.analysis.sample import Sample
from hpc_cg.analysis.states import cluster
from hpc_cg.analysis.tica import LaggedMoments, Tica
from hpc_cg.analysis.timescales import ImpliedTimescales, TimeScaling, implied_timescales, time_scaling
from hpc_cg.errors import FitFailed, TooFewFrames

ROWS = 1 << 14
"""Frames whose features are worked on at once."""


@dataclass(frozen=True)
class Run:
    """Frames of one ensemble, and when they were.

    timeline   where each frame comes from
    stride_ps  time from frame to frame
    lag        frames, of its components (of the reference) and of its Markov model
    """

    sample: Sample
    timeline: Timeline
    stride_ps: float
    lag: int


@dataclass(frozen=True)
class SlowSettings:
    """What is looked at.

    choice       features of slow motion
    pairs        whose distances and contacts are compared
    folded       beads of the folded structure, nm; None for no RMSD
    n_states     cells of the Markov models; 0 for none
    n_processes  slowest processes whose timescales are told
    n_bins       bins per axis of the plane of slow components
    contact_nm   distance below which a pair is in contact
    """

    choice: Choice
    pairs: tuple[tuple[int, int], ...]
    folded: Float[np.ndarray, "bead 3"] | None = None
    n_states: int = 0
    n_processes: int = 2
    n_bins: int = 100
    contact_nm: float = structures.CONTACT_NM
    n_resamples: int = 100
    seed: int = 1


@dataclass(frozen=True)
class SlowComparison:
    """The rows; the components they stand on; and the time of the model, where its timescales could be told.

    points   reference and model on the two slowest components
    """

    rows: Comparison
    tica: Tica
    points: tuple[Float64[np.ndarray, "reference 2"], Float64[np.ndarray, "model 2"]]
    scaling: TimeScaling | None


def compare_slow(reference: Run, model: Run, settings: SlowSettings) -> SlowComparison:
    """Judge a model's slow motion; raises UnfitLag, TooFewFrames where the reference has no slow components."""
    if settings.n_states:
        model.timeline.check(model.lag)
    tica = fit_tica(reference, settings.choice)
    points = [project(tica, settings.choice, run.sample, 2) for run in (reference, model)]
    judged: list[Judged] = []
    left_out: list[str] = []
    for row in _rows(reference, model, points, settings):
        try:
            judged.append(row())
        except TooFewFrames as error:
            left_out.append(str(error))
    scaling = None
    if settings.n_states:
        try:
            scaling, rows = _times(reference, model, points, settings)
            judged += rows
        except (TooFewFrames, FitFailed) as error:
            left_out.append(str(error))
    return SlowComparison(Comparison(tuple(judged), tuple(left_out)), tica, (points[0], points[1]), scaling)


def fit_tica(run: Run, choice: Choice) -> Tica:
    """Slow components of a run; raises UnfitLag, TooFewFrames."""
    run.timeline.check(run.lag)
    starts = range(0, run.sample.n_frames, ROWS)
    return reduce(LaggedMoments.__add__, (lagged_moments(run, choice, start, start + ROWS) for start in starts)).fit(
        run.lag
    )


def lagged_moments(run: Run, choice: Choice, start: int, stop: int) -> LaggedMoments:
    """Moments of the features of pairs whose earlier frame is among frames ``start`` to ``stop``."""
    early = run.timeline.earlier(run.lag, start, stop)
    positions = run.sample.positions
    earlier, later = (choice.of(positions[places]) for places in (early, early + run.lag))
    return LaggedMoments.of(earlier, later, run.sample.weights[early])


def project(tica: Tica, choice: Choice, sample: Sample, n: int) -> Float64[np.ndarray, "frame {n}"]:
    """The frames of a sample on the slowest components."""
    starts = range(0, max(sample.n_frames, 1), ROWS)
    return np.concatenate([tica.project(choice.of(sample.positions[i : i + ROWS]), n) for i in starts])


def _rows(
    reference: Run, model: Run, points: list[np.ndarray], settings: SlowSettings
) -> Iterator[Callable[[], Judged]]:
    def row(
        divergence: Callable[[np.ndarray, np.ndarray], float],
        unit: str,
        label: str,
        both: Callable[[], tuple[BlockHistograms, BlockHistograms]],
    ) -> Callable[[], Judged]:
        return lambda: judge(*both(), divergence, unit, label, settings.seed, settings.n_resamples)

    def measured(measure: Callable[[Sample], BlockHistograms]) -> tuple[BlockHistograms, BlockHistograms]:
        return measure(reference.sample), measure(model.sample)

    def planes() -> tuple[BlockHistograms, BlockHistograms]:
        left, right = plane_cells(points[0], reference.sample.weights, points, settings.n_bins)
        return _plane(left, reference.sample, settings.n_bins), _plane(right, model.sample, settings.n_bins)

    def distances() -> tuple[BlockHistograms, BlockHistograms]:
        left, right = measured(lambda s: structures.distance_histograms(s, settings.pairs, s.n_blocks))
        one, other = left.without_empty(right)
        return one, other

    yield row(mean_js, "nat", "JS divergence of slow components", planes)
    yield row(_root, "kT", "free-energy error of slow components, root", planes)
    if settings.pairs:
        yield row(mean_js, "nat", f"JS divergence of distances, mean over {len(settings.pairs)} pairs", distances)
        contacts = partial(structures.contact_histograms, pairs=settings.pairs, cutoff_nm=settings.contact_nm)
        yield row(
            structures.contact_difference,
            "1",
            f"contacts within {settings.contact_nm:g} nm, root mean square difference",
            lambda: measured(lambda s: contacts(s, n_blocks=s.n_blocks)),
        )
    folded = settings.folded
    if folded is not None:
        yield row(
            mean_js,
            "nat",
            "JS divergence of the RMSD to the folded structure",
            lambda: measured(lambda s: structures.rmsd_histograms(s, folded, s.n_blocks)),
        )


def plane_cells(
    reference: Float[np.ndarray, "frame 2"],
    weights: Float[np.ndarray, "frame"],
    samples: list[np.ndarray],
    n_bins: int,
) -> list[Int64[np.ndarray, "_"]]:
    """Cells of samples on a grid over the range of the reference's frames with a weight; outliers have their own."""
    centre, half = _range(reference, weights)
    grid = Grid(n_bins, -1.0, 1.0)
    return [grid.bins(*((x - centre) / half).T) for x in samples]


def plane_edges(
    reference: Float[np.ndarray, "frame 2"], weights: Float[np.ndarray, "frame"], n_bins: int
) -> Float64[np.ndarray, "2 edge"]:
    """Edges, along each component, of the cells that are not for outliers."""
    centre, half = _range(reference, weights)
    return centre[:, None] + half[:, None] * Grid(n_bins, -1.0, 1.0).edges


def _range(reference: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre and half width of the frames with a weight, along each component."""
    used = reference[weights > 0]
    if not len(used):
        raise TooFewFrames("a plane of slow components", "no frame of the reference", "check what was selected")
    low, high = used.min(axis=0), used.max(axis=0)
    return (low + high) / 2, np.maximum((high - low) / 2 * (1 + 1e-9), np.finfo(float).tiny)


def _plane(cells: np.ndarray, sample: Sample, n_bins: int) -> BlockHistograms:
    return BlockHistograms.of(cells[:, None], sample.weights, sample.blocks, sample.n_blocks, (n_bins, n_bins))


def _root(reference: np.ndarray, model: np.ndarray) -> float:
    return pmf_error(reference[0], model[0]).root


def _times(
    reference: Run, model: Run, points: list[np.ndarray], settings: SlowSettings
) -> tuple[TimeScaling, list[Judged]]:
    """Timescales of both on the reference's states, and their ratios."""
    states = cluster(points[0], settings.n_states, settings.seed, reference.sample.weights)
    found: list[ImpliedTimescales] = []
    for run, x in zip((reference, model), points, strict=True):
        blocks, n_blocks = run.sample.blocks, run.sample.n_blocks
        counts = TransitionCounts.of(states.assign(x), run.timeline, run.lag, states.n_states, blocks, n_blocks)
        found.append(
            implied_timescales(counts, run.stride_ps, "ps", settings.seed, settings.n_processes, settings.n_resamples)
        )
    scaling = time_scaling(*found)
    estimates = [*found[0].estimates("reference"), *found[1].estimates("model"), *scaling.ratios, scaling.common]
    return scaling, [Judged(estimate, None) for estimate in estimates]
