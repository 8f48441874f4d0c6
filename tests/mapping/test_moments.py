"""Moments of forces are sums: over groups first, then over frames, whatever the pieces they come in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_cg.errors import BadFrames, OutOfMemory, TooFewFrames
from hpc_cg.files import read_arrays, write_arrays
from hpc_cg.mapping import moments
from hpc_cg.mapping.constraints import group_matrix
from hpc_cg.mapping.moments import FitMoments, ForceMoments, GroupSum

GROUPS = ((0, 3), (1,), (2, 5, 6), (4,))


def some_forces(n_frames: int = 60, n_atoms: int = 7, seed: int = 0) -> np.ndarray:
    return (500 * np.random.default_rng(seed).normal(size=(n_frames, n_atoms, 3))).astype(np.float32)


def test_group_sum_is_the_transposed_group_matrix():
    forces = some_forces()
    sums, K = GroupSum(GROUPS, 7), group_matrix(GROUPS, 7)
    np.testing.assert_allclose(sums(forces), np.einsum("ag,tax->tgx", K, forces.astype(float)), rtol=1e-13)
    weights = np.random.default_rng(1).normal(size=(2, 4))
    np.testing.assert_array_equal(sums.expand(weights), weights @ K.T)
    np.testing.assert_allclose(sums.columns(weights @ K.T), weights * sums.sizes)
    assert sums.sizes.tolist() == [2, 1, 3, 1] and sums.label.tolist() == [0, 1, 2, 0, 3, 2, 2]


def test_group_sum_of_a_frame_is_the_same_bits_in_any_block():
    forces, sums = some_forces(50), GroupSum(GROUPS, 7)
    at_once = sums(forces)
    for start, stop in ((0, 1), (3, 50), (17, 20)):
        np.testing.assert_array_equal(sums(forces[start:stop]), at_once[start:stop])


@pytest.mark.parametrize("groups", [((0, 1), (1, 2)), ((0,), (2,)), ((0, 1), (2, 3))])
def test_groups_have_to_cover_every_atom_once(groups):
    with pytest.raises(AssertionError, match="cover"):
        GroupSum(groups, 3)


def test_gram_is_the_sum_of_products():
    forces = some_forces()
    whole = ForceMoments.of(forces, groups=GroupSum(GROUPS, 7))
    summed = np.einsum("ag,tax->tgx", group_matrix(GROUPS, 7), forces.astype(float))
    np.testing.assert_allclose(whole.gram, np.einsum("tax,tbx->ab", summed, summed), rtol=1e-12, atol=1e-6)
    np.testing.assert_array_equal(whole.gram, whole.gram.T)
    np.testing.assert_allclose(whole.mean_square, (summed**2).mean(axis=(0, 2)), rtol=1e-12)
    assert whole.count == 60.0


@given(st.lists(st.integers(0, 60), max_size=4).map(sorted), st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_moments_do_not_depend_on_how_frames_are_split(cuts, block_frames):
    forces = some_forces()
    weights = np.random.default_rng(2).uniform(size=60)
    sums = GroupSum(GROUPS, 7)
    whole = ForceMoments.of(forces, weights, sums)
    total = ForceMoments.empty(4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "BLOCK_BYTES", 24 * 7 * block_frames)
        for piece, weight in zip(np.split(forces, cuts), np.split(weights, cuts), strict=True):
            total = total + ForceMoments.of(piece, weight, sums)
    assert total.count == pytest.approx(whole.count, rel=1e-14)
    np.testing.assert_allclose(total.gram, whole.gram, rtol=1e-12, atol=1e-12 * whole.gram.max())


def test_weights_count_frames_as_often_as_they_say():
    forces, times = some_forces(), np.arange(60) % 4
    weighted = ForceMoments.of(forces, times.astype(np.float64), GroupSum(GROUPS, 7))
    repeated = ForceMoments.of(np.repeat(forces, times, axis=0), groups=GroupSum(GROUPS, 7))
    assert weighted.count == repeated.count
    np.testing.assert_allclose(weighted.gram, repeated.gram, rtol=1e-12, atol=1e-12 * repeated.gram.max())


def test_weights_of_one_change_no_bit():
    forces = some_forces()
    plain, weighted = ForceMoments.of(forces), ForceMoments.of(forces, np.ones(60, dtype=np.float32))
    assert plain.count == weighted.count
    np.testing.assert_array_equal(plain.gram, weighted.gram)


def test_frames_of_weight_zero_are_not_looked_at():
    forces, weights = some_forces(), np.ones(60)
    forces[[0, 7]], weights[[0, 7]] = np.nan, 0
    left = ForceMoments.of(forces, weights)
    np.testing.assert_array_equal(left.gram, ForceMoments.of(np.delete(forces, [0, 7], axis=0)).gram)
    assert ForceMoments.of(forces, np.zeros(60)).count == 0


def test_what_is_no_number_is_refused():
    forces = some_forces()
    for wrong in (np.full(60, -1e-9), np.full(60, np.nan), np.full(60, np.inf)):
        with pytest.raises(BadFrames, match="weights"):
            ForceMoments.of(forces, wrong)
    forces[1, 0, 2] = np.nan
    with pytest.raises(BadFrames, match="forces"):
        ForceMoments.of(forces)
    with pytest.raises(BadFrames, match="forces"):
        ForceMoments.of(forces, groups=GroupSum(GROUPS, 7))


def test_no_frames_have_no_mean():
    for nothing in (ForceMoments.empty(3), ForceMoments.of(np.zeros((0, 3, 3)))):
        assert nothing.count == 0 and nothing.n_groups == 3
        with pytest.raises(TooFewFrames):
            _ = nothing.mean


def test_more_groups_than_memory_holds_are_refused_with_the_way_out():
    with pytest.raises(OutOfMemory, match=r"prepare\.atoms"):
        ForceMoments.empty(6001)
    with pytest.raises(OutOfMemory, match="uniform"):
        ForceMoments.of(np.zeros((1, 6001, 3), dtype=np.float32))


def test_moments_for_the_fit_add_up_and_survive_their_file(tmp_path):
    sums = GroupSum(GROUPS, 7)
    train, held = (ForceMoments.of(some_forces(seed=seed), groups=sums) for seed in (1, 2))
    beads = ForceMoments.of(some_forces()[:, :2])
    both = FitMoments(train, held, beads, beads) + FitMoments.empty(4, 2)
    both = both + FitMoments(train, ForceMoments.empty(4), beads, ForceMoments.empty(2))
    write_arrays(tmp_path / "moments.npz", **both.arrays(), other=np.zeros(2))
    back = FitMoments.from_arrays(read_arrays(tmp_path / "moments.npz"))
    assert (back.train.count, back.held_out.count, back.slice_train.count, back.slice_held_out.count) == (
        120.0,
        60.0,
        120.0,
        60.0,
    )
    np.testing.assert_array_equal(back.train.gram, 2 * train.gram)
    np.testing.assert_array_equal(back.slice_held_out.gram, beads.gram)
