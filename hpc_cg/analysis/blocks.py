"""Histograms of blocks of frames: what resampling needs of a sample, whatever its size.

Counts of every block are kept apart, for one or more quantities (rows) at once. A draw of blocks is then a sum of their
counts, and no frame is looked at again. The error of a divergence is that of analysis/estimate.py, and its floor the
larger of two:

- of counting alone, at the effective numbers of frames (analysis/floor.py), rows drawn apart from one another;
- of slow sampling: what two halves of the reference show, cut at random between blocks. Halves are smaller than the
  whole, so quarters are compared too, and the trend is followed one step on: D(whole) ≈ D(half)² / D(quarter). That is
  exact for anything that falls as a power of the number of frames. Blocks must outlast the slowest motion.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int

from hpc_cg.analysis.comparison import Judged
from hpc_cg.analysis.estimate import Estimate, bootstrap_error
from hpc_cg.analysis.floor import Floor, unveiled_density
from hpc_cg.analysis.landscape import js_divergence
from hpc_cg.errors import TooFewFrames
from hpc_cg.randomness import stream

Divergence = Callable[[np.ndarray, np.ndarray], float]
"""From the counts (row, cell) of the reference and of the model to a number."""

N_DRAWS = 40
"""Pairs of samples behind a floor."""


@dataclass(frozen=True, eq=False)
class BlockHistograms:
    """Weighted counts of frames in the cells of each row, block by block; ``a + b`` are those of both sets of frames.

    shape    of the cells: (n,) along one coordinate, (n, n) on a plane
    sizes    Σ w and Σ w² of each block
    """

    shape: tuple[int, ...]
    counts: Float64[np.ndarray, "block row cell"]
    sizes: Float64[np.ndarray, "block 2"]

    @staticmethod
    def of(
        cells: Int[np.ndarray, "frame row"],
        weights: Float[np.ndarray, "frame"],
        blocks: Int[np.ndarray, "frame"],
        n_blocks: int,
        shape: tuple[int, ...],
    ) -> "BlockHistograms":
        """Of frames with the cell of each row; ``n_blocks`` counts the blocks of all frames, not of these alone."""
        n_rows, n_cells = cells.shape[1], int(np.prod(shape))
        w = weights.astype(np.float64)
        counts = np.zeros((n_rows, n_blocks * n_cells))
        for row, column in enumerate(cells.T):
            counts[row] = np.bincount(blocks * n_cells + column, w, minlength=n_blocks * n_cells)
        sizes = np.stack([np.bincount(blocks, power, minlength=n_blocks) for power in (w, w**2)], axis=1)
        return BlockHistograms(shape, counts.reshape(n_rows, n_blocks, n_cells).swapaxes(0, 1), sizes)

    def __add__(self, other: "BlockHistograms") -> "BlockHistograms":
        assert self.shape == other.shape, f"cells of {self.shape} and of {other.shape}"
        return BlockHistograms(self.shape, self.counts + other.counts, self.sizes + other.sizes)

    @property
    def n_blocks(self) -> int:
        return len(self.sizes)

    @property
    def n_effective(self) -> float:
        """Kish's number of frames, (Σ w)² / Σ w²; 0 without frames."""
        weight, squares = self.sizes.sum(axis=0)
        return float(weight**2 / squares) if squares > 0 else 0.0

    @property
    def total(self) -> Float64[np.ndarray, "row cell"]:
        return self.counts.sum(axis=0)

    def drawn(self, multiplicity: Float[np.ndarray, "block"]) -> Float64[np.ndarray, "row cell"]:
        """Counts with each block there so many times."""
        return np.tensordot(multiplicity, self.counts, axes=1)

    def without_empty(self, *others: "BlockHistograms") -> "tuple[BlockHistograms, ...]":
        """This one and others with the cells at the end that are empty in all left out; along one coordinate only."""
        every = (self, *others)
        used = np.flatnonzero(np.sum([one.counts.sum(axis=(0, 1)) for one in every], axis=0) > 0)
        stop = int(used[-1]) + 1 if len(used) else 1
        return tuple(BlockHistograms((stop,), one.counts[..., :stop], one.sizes) for one in every)


def judge(
    reference: BlockHistograms,
    model: BlockHistograms,
    divergence: Divergence,
    unit: str,
    label: str,
    seed: int,
    n_resamples: int = 200,
) -> Judged:
    """The divergence of a model with its error and its floor; raises TooFewFrames below four reference blocks."""
    for name, one in (("reference", reference), ("model", model)):
        if not one.n_effective > 1:
            raise TooFewFrames(f"{label} of the {name}", "no frames", "check what was selected or simulated")

    def statistic(left: np.ndarray, right: np.ndarray) -> float:
        return divergence(reference.drawn(left), model.drawn(right))

    error = bootstrap_error(statistic, (reference.n_blocks, model.n_blocks), seed, label, n_resamples)
    value = divergence(reference.total, model.total)
    floors = (
        rows_floor(divergence, reference, round(model.n_effective), seed),
        cut_floor(divergence, reference, seed, label),
    )
    estimate = Estimate(value, error, float(model.n_blocks), unit, label)
    return Judged(estimate, max(floors, key=lambda floor: floor.mean))


def rows_floor(divergence: Divergence, reference: BlockHistograms, n_model: int, seed: int) -> Floor:
    """The floor that counting leaves, as ``counting_floor``, for a divergence of many rows."""
    n_reference = reference.n_effective
    densities = [unveiled_density(row.reshape(reference.shape), n_reference).ravel() for row in reference.total]
    random = stream(seed, "counting floor of rows", round(n_reference), n_model)

    def draw(n: int) -> np.ndarray:
        return np.stack([random.multinomial(n, p) for p in densities]).astype(np.float64)

    values = [divergence(draw(round(n_reference)), draw(n_model)) for _ in range(N_DRAWS)]
    return Floor(float(np.mean(values)), float(np.std(values, ddof=1)), N_DRAWS)


def cut_floor(divergence: Divergence, reference: BlockHistograms, seed: int, label: str) -> Floor:
    """What a second reference as long as this one would show, from halves and quarters of its blocks.

    Raises TooFewFrames below four blocks with frames.
    """
    filled = np.flatnonzero(reference.sizes[:, 0] > 0)
    if len(filled) < 4:
        raise TooFewFrames(
            f"the floor of {label} from parts of the reference",
            f"{len(filled)} blocks",
            "use shorter blocks or more segments",
        )
    random = stream(seed, f"cut floor {label}")
    quarter = len(filled) // 4
    halves, quarters = [], []
    for _ in range(N_DRAWS):
        part = np.zeros((4, reference.n_blocks))
        mixed = random.permutation(filled)[: 4 * quarter].reshape(4, quarter)
        np.put_along_axis(part, mixed, 1.0, axis=1)
        counts = np.stack([reference.drawn(one) for one in part])
        halves.append(divergence(counts[0] + counts[1], counts[2] + counts[3]))
        quarters += [divergence(counts[0], counts[1]), divergence(counts[2], counts[3])]
    half, whole_quarter = float(np.mean(halves)), float(np.mean(quarters))
    trend = min(half / whole_quarter, 1.0) if whole_quarter > 0 else 1.0
    return Floor(half * trend, float(np.std(halves, ddof=1)) * trend, N_DRAWS)


def mean_js(reference: Float[np.ndarray, "row cell"], model: Float[np.ndarray, "row cell"]) -> float:
    """Jensen-Shannon divergence, mean over rows; nat."""
    return float(np.mean([js_divergence(p, q) for p, q in zip(reference, model, strict=True)]))
