"""What a reverse kernel does to the free energy: the frames it draws beside the clean ones they were drawn for.

A kernel that is right leaves the density as it is. Histograms of clean frames, of the same frames with noise, and of
draws are compared: over φ and ψ where the molecule has a backbone, else over distances of pairs of beads, 0.01 nm a
bin. Counts add up over frames, so stores of any size can be judged, shard by shard.

The floor is what two independent samples of as many frames would show. Draws keep what their own condition tells, so
they are no independent sample: those of a right kernel lie at the floor or below. What is above it is distortion.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Float64, Int64

from hpc_cg.analysis import landscape
from hpc_cg.analysis.features import backbones, bond_lengths, dihedral
from hpc_cg.analysis.floor import counting_floor
from hpc_cg.beads import BeadSystem
from hpc_cg.errors import TooFewFrames

MOST_RESIDUES, MOST_PAIRS = 16, 32
"""Backbones, or pairs of beads, that are looked at: of more, some evenly spread along the chain."""

BIN_NM, N_BINS = 0.01, 512
"""Of distances; the last bin holds what is longer."""

ROWS = 1 << 16
"""Frames that are worked on at once."""

SAMPLES = ("clean", "noised", "drawn")
T = TypeVar("T")


@dataclass(frozen=True)
class Distortion:
    """How far noised and drawn frames are from the clean ones: divergence in nat, root free-energy error in kT.

    js_floor, pmf_floor   what two independent samples of as many frames show, and its standard deviation
    n_clean, n_drawn      effective numbers of frames
    """

    label: str
    noised_js: float
    drawn_js: float
    js_floor: float
    js_floor_spread: float
    noised_pmf: float
    drawn_pmf: float
    pmf_floor: float
    pmf_floor_spread: float
    n_clean: float
    n_drawn: float


@dataclass(frozen=True, eq=False)
class SurfaceSums:
    """Weighted counts of frames in the cells of each landscape; ``a + b`` are those of both sets of frames.

    counts   rows clean, noised, drawn
    sizes    Σ w, Σ w², and Σ w² times how often the clean frame is there
    """

    counts: Float64[np.ndarray, "3 landscape cell"]
    sizes: Float64[np.ndarray, "3"]

    @staticmethod
    def of(
        system: BeadSystem,
        frames: Mapping[str, Float[np.ndarray, "frame bead 3"]],
        weights: Float[np.ndarray, "frame"],
        copies: Int64[np.ndarray, "frame"],
    ) -> "SurfaceSums":
        """Of positions (nm) by SAMPLES; those of weight 0, where the kernel failed, are not looked at.

        copies   how often the clean frame of each is there, as one that takes the place of others
        """
        used = np.flatnonzero(weights > 0)
        w = weights[used].astype(np.float64)
        cells, n_landscapes, n_cells = _landscapes(system)
        counts = np.zeros((len(SAMPLES), n_landscapes, n_cells))
        for start in range(0, len(used), ROWS):
            rows = slice(start, start + ROWS)
            for number, name in enumerate(SAMPLES):
                found = cells(frames[name][used[rows]]) + n_cells * np.arange(n_landscapes)
                part = np.bincount(found.ravel(), np.repeat(w[rows], n_landscapes), minlength=counts[number].size)
                counts[number] += part.reshape(n_landscapes, n_cells)
        return SurfaceSums(counts, np.array([w.sum(), np.sum(w**2), np.sum(w**2 * copies[used])]))

    def __add__(self, other: "SurfaceSums") -> "SurfaceSums":
        return SurfaceSums(self.counts + other.counts, self.sizes + other.sizes)

    def surface(self, system: BeadSystem, sample: str) -> Float64[np.ndarray, "bin bin"] | None:
        """Counts over φ and ψ of the first residue; None for a molecule without."""
        if not backbones(system):
            return None
        n_bins = landscape.ANGLE_GRID.n_bins
        return self.counts[SAMPLES.index(sample), 0].reshape(n_bins, n_bins)

    def judge(self, system: BeadSystem, seed: int) -> tuple[Distortion, ...]:
        """A row for each residue, or one for the mean over pairs of beads; none where a molecule has one bead.

        seed   of the floors. Raises TooFewFrames.
        """
        if not self.sizes[0] > 0:
            raise TooFewFrames("what a kernel does to the free energy", "no draws", "draw for more frames")
        n_clean, n_drawn = (float(self.sizes[0] ** 2 / squares) for squares in (self.sizes[2], self.sizes[1]))
        residues = _spread(backbones(system), MOST_RESIDUES)
        n_bins = landscape.ANGLE_GRID.n_bins
        shape = (n_bins, n_bins) if residues else (N_BINS,)
        rows = [
            _values(one.reshape(len(SAMPLES), *shape), n_clean, n_drawn, seed) for one in self.counts.transpose(1, 0, 2)
        ]
        if residues:
            labels = [f"φ, ψ of {one.label}" if len(residues) > 1 else "φ, ψ" for one in residues]
        else:
            labels = [f"distances of {len(rows)} pairs, mean"] if rows else []
            rows = [np.mean(rows, axis=0).tolist()] if rows else []
        numbers = tuple(Distortion.__dataclass_fields__)[1:-2]
        return tuple(
            Distortion(label=label, n_clean=n_clean, n_drawn=n_drawn, **dict(zip(numbers, row, strict=True)))
            for label, row in zip(labels, rows, strict=True)
        )


def _values(counts: Float64[np.ndarray, "3 *bin"], n_clean: float, n_drawn: float, seed: int) -> list[float]:
    """The numbers of a Distortion in their order."""
    clean, noised, drawn = counts
    found: list[float] = []
    for divergence in (landscape.js_divergence, _root):
        floor = counting_floor(divergence, clean, round(n_clean), round(n_drawn), seed, n_clean)
        found += [divergence(clean, noised), divergence(clean, drawn), floor.mean, floor.spread]
    return found


def _root(reference: np.ndarray, model: np.ndarray) -> float:
    return landscape.pmf_error(reference, model).root


def _landscapes(system: BeadSystem) -> tuple[Callable[[np.ndarray], np.ndarray], int, int]:
    """Positions to cells (frame, landscape), how many landscapes there are, and how many cells each has."""
    residues = _spread(backbones(system), MOST_RESIDUES)
    grid = landscape.ANGLE_GRID
    if residues:

        def on_angles(positions: np.ndarray) -> np.ndarray:
            return np.stack(
                [grid.bins(dihedral(positions, one.phi), dihedral(positions, one.psi)) for one in residues], axis=1
            )

        return on_angles, len(residues), grid.n_bins**2
    every = tuple(combinations(range(system.n_beads), 2))
    pairs = _spread(tuple(pair for pair in every if pair not in system.bonds) or every, MOST_PAIRS)

    def on_distances(positions: np.ndarray) -> np.ndarray:
        return np.minimum(bond_lengths(positions, pairs) / BIN_NM, N_BINS - 1).astype(np.int64)

    return on_distances, len(pairs), N_BINS


def _spread(items: tuple[T, ...], most: int) -> tuple[T, ...]:
    return items[:: max(1, -(-len(items) // most))]
