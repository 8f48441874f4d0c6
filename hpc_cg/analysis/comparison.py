"""A simulated ensemble judged against the reference: each number with its error and its floor.

Pairs of backbone dihedrals are compared on the grid of analysis/landscape.py, bonds and angles one by one.
What cannot be judged (a basin that was never visited) is left out and said so.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from hpc_cg.analysis import landscape
from hpc_cg.analysis.estimate import Estimate, bootstrap_error, share_estimate
from hpc_cg.analysis.features import Backbone, angles, backbones, bond_lengths, dihedral, handedness
from hpc_cg.analysis.floor import Floor, counting_floor, effective_frames, transport_floor
from hpc_cg.analysis.geometry import transport, width
from hpc_cg.analysis.sample import Sample
from hpc_cg.beads import BeadSystem
from hpc_cg.errors import TooFewFrames

Statistic = Callable[[np.ndarray, np.ndarray], float]
"""From the weights of the reference frames and of the model frames to a number."""


@dataclass(frozen=True)
class Judged:
    """An estimate, and the floor below which it says nothing; None where the quantity has none."""

    estimate: Estimate
    floor: Floor | None

    @property
    def excess(self) -> float | None:
        """What is left of the value above its floor."""
        return None if self.floor is None else self.estimate.value - self.floor.mean


@dataclass(frozen=True)
class Comparison:
    """Everything that could be judged, and one sentence for each thing that could not."""

    judged: tuple[Judged, ...]
    left_out: tuple[str, ...]


def compare(
    reference: Sample, model: Sample, system: BeadSystem, seed: int, n_bins: int = 64, n_resamples: int = 200
) -> Comparison:
    """Judge a model's ensemble against the reference; raises TooFewFrames when either is empty.

    The error of a row is resampled in blocks of both samples; the floor takes the sizes of both samples.
    """
    for name, sample in (("reference", reference), ("model", model)):
        if not len(sample.positions):
            raise TooFewFrames(f"a comparison with the {name}", "no frame", "check what was selected or simulated")
    pair = _Pair(reference, model, seed, n_resamples)
    judged: list[Judged] = []
    left_out: list[str] = []
    residues = backbones(system)
    rows: list[tuple[str, Callable[[], Judged]]] = list(_local(pair, system))
    for residue in residues:
        suffix = f" of {residue.label}" if len(residues) > 1 else ""
        rows = [(label + suffix, row) for label, row in _landscape(pair, residue, landscape.Grid(n_bins))] + rows
    for label, row in rows:
        try:
            judged.append(_named(row(), label))
        except TooFewFrames as error:
            left_out.append(f"{label}: {error}")
    return Comparison(tuple(judged), tuple(left_out))


@dataclass(frozen=True)
class _Pair:
    """Two samples, and how an error and a floor are found for them."""

    reference: Sample
    model: Sample
    seed: int
    n_resamples: int

    @property
    def sizes(self) -> tuple[int, int]:
        return round(effective_frames(self.reference.weights)), round(effective_frames(self.model.weights))

    def estimate(self, statistic: Statistic, unit: str, label: str) -> Estimate:
        left, right = self.reference, self.model

        def resampled(left_draw: np.ndarray, right_draw: np.ndarray) -> float:
            return statistic(left.weights * left_draw[left.blocks], right.weights * right_draw[right.blocks])

        n_blocks = (left.n_blocks, right.n_blocks)
        error = bootstrap_error(resampled, n_blocks, self.seed, label, self.n_resamples)
        return Estimate(statistic(left.weights, right.weights), error, float(n_blocks[1]), unit, label)


def _landscape(pair: _Pair, residue: Backbone, grid: landscape.Grid) -> Iterator[tuple[str, Callable[[], Judged]]]:
    phi, psi = ([dihedral(s.positions, q) for s in (pair.reference, pair.model)] for q in (residue.phi, residue.psi))
    cells = [grid.bins(*both) for both in zip(phi, psi, strict=True)]

    def plane(counts: np.ndarray) -> np.ndarray:
        return counts

    def along_phi(counts: np.ndarray) -> np.ndarray:
        return counts.sum(axis=1)

    def along_psi(counts: np.ndarray) -> np.ndarray:
        return counts.sum(axis=0)

    divergences = (
        ("JS divergence φ, ψ", "nat", landscape.js_divergence, plane),
        ("free-energy error φ, ψ", "(kT)²", _mean_square, plane),
        ("free-energy error φ, ψ, root", "kT", _root, plane),
        ("JS divergence φ", "nat", landscape.js_divergence, along_phi),
        ("JS divergence ψ", "nat", landscape.js_divergence, along_psi),
    )
    for label, unit, divergence, onto in divergences:
        yield label, partial(_divergence, pair, cells, grid, divergence, onto, unit, label)
    yield "JS divergence φ, ψ, α weight matched", partial(_matched_divergence, pair, cells, grid, psi)
    yield "basin offset (α against the rest)", partial(_basin_offset, pair, psi)
    yield "share with φ > 0", partial(_positive_phi, pair, phi[1])


def _divergence(
    pair: _Pair,
    cells: list[np.ndarray],
    grid: landscape.Grid,
    divergence: Statistic,
    onto: Callable[[np.ndarray], np.ndarray],
    unit: str,
    label: str,
) -> Judged:
    def statistic(left: np.ndarray, right: np.ndarray) -> float:
        return divergence(*(onto(_counts(grid, c, w)) for c, w in zip(cells, (left, right), strict=True)))

    counts = onto(_counts(grid, cells[0], pair.reference.weights))
    floor = counting_floor(divergence, counts, *pair.sizes, pair.seed, effective_frames(pair.reference.weights))
    return Judged(pair.estimate(statistic, unit, label), floor)


def _matched_divergence(pair: _Pair, cells: list[np.ndarray], grid: landscape.Grid, psi: list[np.ndarray]) -> Judged:
    """JS divergence once the model's α basin has the reference's weight: shape without offset."""

    def statistic(left: np.ndarray, right: np.ndarray) -> float:
        matched = landscape.match_alpha_fraction(psi[1], right, landscape.alpha_fraction(psi[0], left))
        return landscape.js_divergence(_counts(grid, cells[0], left), _counts(grid, cells[1], matched))

    counts = _counts(grid, cells[0], pair.reference.weights)
    n_reference = effective_frames(pair.reference.weights)
    floor = counting_floor(landscape.js_divergence, counts, *pair.sizes, pair.seed, n_reference)
    return Judged(pair.estimate(statistic, "nat", "JS with matched basin"), floor)


def _basin_offset(pair: _Pair, psi: list[np.ndarray]) -> Judged:
    def statistic(left: np.ndarray, right: np.ndarray) -> float:
        return landscape.alpha_log_odds(psi[1], right) - landscape.alpha_log_odds(psi[0], left)

    return Judged(pair.estimate(statistic, "kT", "basin offset"), None)


def _positive_phi(pair: _Pair, phi: np.ndarray) -> Judged:
    return Judged(share_estimate(phi > 0, pair.model.blocks, "phi > 0", pair.model.weights), None)


def _local(pair: _Pair, system: BeadSystem) -> Iterator[tuple[str, Callable[[], Judged]]]:
    if system.bonds:
        lengths = [bond_lengths(s.positions, system.bonds) for s in (pair.reference, pair.model)]
        yield "bond length, mean Wasserstein distance", partial(_transport, pair, lengths, 1.0, "nm")
        yield "bond width, model over reference", partial(_width_ratio, pair, lengths)
    if system.angles:
        corners = [angles(s.positions, system.angles) for s in (pair.reference, pair.model)]
        yield "angle, mean Wasserstein distance", partial(_transport, pair, corners, 180 / np.pi, "°")
        yield "angle width, model over reference", partial(_width_ratio, pair, corners)
    if system.impropers:
        hands = [handedness(s.positions, system.impropers) for s in (pair.reference, pair.model)]
        yield "mirrored share of the frames kept", partial(_mirrored, pair, hands)


def _transport(pair: _Pair, columns: list[np.ndarray], factor: float, unit: str) -> Judged:
    """Wasserstein distance of each column in ``unit``, averaged over the columns."""
    both = [(left * factor, right * factor) for left, right in zip(columns[0].T, columns[1].T, strict=True)]
    distances = [transport(left, right) for left, right in both]
    floors = [
        transport_floor(left, pair.reference.weights, *pair.sizes, pair.seed + i) for i, (left, _) in enumerate(both)
    ]
    mean = float(np.mean([f.mean for f in floors]))
    spread = float(np.sqrt(np.sum([f.spread**2 for f in floors])) / len(floors))
    estimate = pair.estimate(lambda a, b: float(np.mean([d(a, b) for d in distances])), unit, f"transport {unit}")
    return Judged(estimate, Floor(mean, spread, floors[0].n_draws))


def _width_ratio(pair: _Pair, columns: list[np.ndarray]) -> Judged:
    def statistic(left: np.ndarray, right: np.ndarray) -> float:
        ratios = [width(b, right) / width(a, left) for a, b in zip(columns[0].T, columns[1].T, strict=True)]
        return float(np.mean(ratios))

    return Judged(pair.estimate(statistic, "1", "width ratio"), None)


def _mirrored(pair: _Pair, hands: list[np.ndarray]) -> Judged:
    """Frames with a centre whose handedness is the opposite of the reference's mean."""
    expected = np.sign(np.average(hands[0], axis=0, weights=pair.reference.weights))
    mirrored = np.any(hands[1] * expected < 0, axis=1)
    return Judged(share_estimate(mirrored, pair.model.blocks, "mirrored", pair.model.weights), None)


def _counts(grid: landscape.Grid, cells: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.bincount(cells, weights=weights, minlength=grid.n_bins**2).reshape(grid.n_bins, grid.n_bins)


def _mean_square(reference: np.ndarray, model: np.ndarray) -> float:
    return landscape.pmf_error(reference, model).mean_square


def _root(reference: np.ndarray, model: np.ndarray) -> float:
    return landscape.pmf_error(reference, model).root


def _named(judged: Judged, label: str) -> Judged:
    e = judged.estimate
    return Judged(Estimate(e.value, e.error, e.n_effective, e.unit, label), judged.floor)
