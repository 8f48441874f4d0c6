"""What a kernel does to the free energy, on kernels that are exact, too wide, or do nothing."""

import numpy as np
import pytest

from hpc_cg import errors
from hpc_cg.analysis.distortion import SurfaceSums
from hpc_cg.beads import BeadSystem, bead_system

SIGMA, SPREAD, N = 0.03, 0.03, 40_000
PLACES = np.array([(0, 0, 0), (0.15, 0, 0), (0.15, 0.15, 0)])
CHAIN = bead_system(("A", "B", "C"), (0, 0, 0), (12.0,) * 3, [(0, 1), (1, 2)])
BACKBONE = bead_system(("C", "N", "CA", "C", "N"), range(5), (12.0,) * 5, [(i, i + 1) for i in range(4)])


def samples(places: np.ndarray, shrink: float, seed: int = 1) -> dict[str, np.ndarray]:
    """Gaussian frames, noised, and drawn by the exact kernel where ``shrink`` is 1; smaller draws too little back."""
    random = np.random.default_rng(seed)
    clean, noise, again = random.normal(size=(3, N, *places.shape))
    gain = SPREAD**2 / (SPREAD**2 + SIGMA**2)
    clean, noised = SPREAD * clean, SPREAD * clean + SIGMA * noise
    drawn = (1 - shrink * (1 - gain)) * noised + SIGMA * gain**0.5 * again
    return {name: places + values for name, values in (("clean", clean), ("noised", noised), ("drawn", drawn))}


def sums(system: BeadSystem, frames: dict[str, np.ndarray], **changes: np.ndarray) -> SurfaceSums:
    ones = np.ones(len(frames["clean"]))
    return SurfaceSums.of(system, frames, changes.get("weights", ones), changes.get("copies", ones.astype(np.int64)))


def test_an_exact_kernel_is_at_the_floor_or_below_and_a_wrong_one_above() -> None:
    (right,), (wrong,) = (sums(CHAIN, samples(PLACES, shrink)).judge(CHAIN, 1) for shrink in (1.0, 0.5))
    assert right.label == "distances of 1 pairs, mean"
    assert right.drawn_js < right.js_floor + 3 * right.js_floor_spread
    assert right.drawn_pmf < right.pmf_floor + 3 * right.pmf_floor_spread
    assert min(right.noised_js, wrong.drawn_js) > 10 * right.js_floor
    assert min(right.noised_pmf, wrong.drawn_pmf) > right.pmf_floor + 5 * right.pmf_floor_spread


def test_parts_add_up_to_the_whole() -> None:
    frames = samples(PLACES, 1.0)
    parts = [{name: values[part] for name, values in frames.items()} for part in (slice(0, 99), slice(99, None))]
    whole, joined = sums(CHAIN, frames), sums(CHAIN, parts[0]) + sums(CHAIN, parts[1])
    np.testing.assert_array_equal(whole.counts, joined.counts)
    np.testing.assert_array_equal(whole.sizes, joined.sizes)


def test_frames_that_failed_are_not_looked_at() -> None:
    frames, weights = samples(PLACES, 1.0), np.ones(N)
    weights[::7] = 0
    spoilt = {name: np.where(weights[:, None, None] > 0, values, np.nan) for name, values in frames.items()}
    found = sums(CHAIN, spoilt, weights=weights)
    kept = {name: values[weights > 0] for name, values in frames.items()}
    np.testing.assert_array_equal(found.counts, sums(CHAIN, kept).counts)
    with pytest.raises(errors.TooFewFrames, match="no draws"):
        sums(CHAIN, spoilt, weights=np.zeros(N)).judge(CHAIN, 1)


def test_frames_that_are_there_often_count_as_few() -> None:
    frames = samples(PLACES, 1.0)
    few = {name: np.repeat(values[: N // 10], 10, axis=0) for name, values in frames.items()}
    (found,) = sums(CHAIN, few, copies=np.full(N, 10)).judge(CHAIN, 1)
    assert (found.n_clean, found.n_drawn) == (N / 10, N)
    (alone,) = sums(CHAIN, frames).judge(CHAIN, 1)
    assert found.js_floor > 3 * alone.js_floor


def test_a_backbone_is_judged_over_phi_and_psi_and_has_a_surface() -> None:
    places = np.array([(0, 0, 0), (0.13, 0.02, 0), (0.2, 0.14, 0.02), (0.34, 0.13, 0.06), (0.42, 0.24, 0.05)])
    found = sums(BACKBONE, samples(places, 1.0))
    assert [row.label for row in found.judge(BACKBONE, 1)] == ["φ, ψ"]
    surface = found.surface(BACKBONE, "drawn")
    assert surface is not None and surface.shape == (64, 64) and surface.sum() == N
    assert sums(CHAIN, samples(PLACES, 1.0)).surface(CHAIN, "drawn") is None
