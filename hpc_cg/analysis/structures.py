"""Whole structures: distances of pairs of beads, contacts, and the distance to a folded structure.

    PWD      JS divergence of the distance of each pair in bins of 0.01 nm, mean over pairs      (arXiv 2302.00600)
    contact  share of frames in which a pair is nearer than a cutoff; the map is all pairs
    RMSD     min over R, t of √(1/n Σ_b |R x_b + t − y_b|²), without reflections (Kabsch 1976, doi
             10.1107/S0567739476001873)

All go through histograms of blocks (analysis/blocks.py): parts of the frames, in any order, add up to the whole.
"""

from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
from jaxtyping import Float, Float64

from hpc_cg.analysis.blocks import BlockHistograms
from hpc_cg.analysis.distortion import BIN_NM, N_BINS
from hpc_cg.analysis.features import bond_lengths
from hpc_cg.analysis.sample import Sample
from hpc_cg.errors import AtomCountMismatch, TooFewFrames, UnknownBeads

ROWS = 1 << 15
"""Frames that are worked on at once."""

CONTACT_NM = 1.0
"""Cα beads nearer than this are in contact."""

MOST_RMSD_NM, N_RMSD_BINS = 2.0, 100
"""Of the histogram of RMSD; the last bin holds what is beyond."""


def distance_histograms(
    sample: Sample, pairs: Sequence[tuple[int, int]], n_blocks: int, n_bins: int = N_BINS
) -> BlockHistograms:
    """Histograms of the distance of each pair; the last of ``n_bins`` bins of 0.01 nm holds what is longer."""
    _check_pairs(pairs, sample)
    return _summed(
        sample,
        n_blocks,
        (n_bins,),
        lambda x: np.minimum(bond_lengths(x, pairs) / BIN_NM, n_bins - 1).astype(np.int64),
    )


def contact_histograms(
    sample: Sample, pairs: Sequence[tuple[int, int]], n_blocks: int, cutoff_nm: float = CONTACT_NM
) -> BlockHistograms:
    """For each pair the frames in which it is apart, and in contact."""
    assert cutoff_nm > 0, f"a cutoff of {cutoff_nm} nm"
    _check_pairs(pairs, sample)
    return _summed(sample, n_blocks, (2,), lambda x: (bond_lengths(x, pairs) < cutoff_nm).astype(np.int64))


def rmsd_histograms(
    sample: Sample,
    folded: Float[np.ndarray, "bead 3"],
    n_blocks: int,
    most_nm: float = MOST_RMSD_NM,
    n_bins: int = N_RMSD_BINS,
) -> BlockHistograms:
    """Histogram of the RMSD to a folded structure (nm), from 0 to ``most_nm``."""
    width = most_nm / n_bins
    return _summed(
        sample,
        n_blocks,
        (n_bins,),
        lambda x: np.minimum(rmsd(x, folded) / width, n_bins - 1).astype(np.int64)[:, None],
    )


def rmsd(
    positions: Float[np.ndarray, "frame bead 3"], folded: Float[np.ndarray, "folded_bead 3"]
) -> Float64[np.ndarray, "frame"]:
    """Least root mean square distance of each frame to a structure, in the unit of both; raises AtomCountMismatch."""
    if len(folded) != positions.shape[1]:
        raise AtomCountMismatch(
            "the RMSD to a folded structure",
            f"{len(folded)} beads in the structure and {positions.shape[1]} in the frames",
            "map the structure as the frames are",
        )
    target = folded.astype(np.float64) - folded.mean(axis=0, dtype=np.float64)
    own = positions.astype(np.float64)
    own = own - own.mean(axis=1, keepdims=True)
    overlap = np.swapaxes(own, 1, 2) @ target
    strength = np.linalg.svd(overlap, compute_uv=False)
    best = strength[:, 0] + strength[:, 1] + np.sign(np.linalg.det(overlap)) * strength[:, 2]
    square = np.sum(own**2, axis=(1, 2)) + np.sum(target**2) - 2 * best
    return np.sqrt(square.clip(0) / len(folded))


def contact_map(contacts: BlockHistograms) -> Float64[np.ndarray, "pair"]:
    """Share of frames in which each pair is in contact; raises TooFewFrames without frames."""
    return _shares(contacts.total)


def contact_difference(reference: Float[np.ndarray, "pair 2"], model: Float[np.ndarray, "pair 2"]) -> float:
    """Root mean square difference of two contact maps."""
    return float(np.sqrt(np.mean((_shares(model) - _shares(reference)) ** 2)))


def _shares(counts: np.ndarray) -> np.ndarray:
    total = counts.sum(axis=1)
    if not np.all(total > 0):
        raise TooFewFrames("a contact map", "no frame", "check what was selected or simulated")
    return counts[:, 1] / total


def _check_pairs(pairs: Sequence[tuple[int, int]], sample: Sample) -> None:
    n_beads = sample.positions.shape[1]
    if not pairs or not all(0 <= bead < n_beads for pair in pairs for bead in pair):
        raise UnknownBeads(
            "distances of pairs of beads",
            f"{len(pairs)} pairs for {n_beads} beads",
            f"name at least one pair of the beads 0 to {n_beads - 1}",
        )


def _summed(
    sample: Sample, n_blocks: int, shape: tuple[int, ...], cells: Callable[[np.ndarray], np.ndarray]
) -> BlockHistograms:
    """Histograms of the cells of a sample's frames, a part of them at a time."""
    parts = [slice(start, start + ROWS) for start in range(0, max(sample.n_frames, 1), ROWS)]
    found = (
        BlockHistograms.of(cells(sample.positions[p]), sample.weights[p], sample.blocks[p], n_blocks, shape)
        for p in parts
    )
    return reduce(BlockHistograms.__add__, found)
