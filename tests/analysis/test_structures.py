"""Whole structures: superposition, contact maps, distances, with floors that are what runs alike show."""

import numpy as np
import pytest
from scipy.signal import lfilter

from hpc_cg import errors
from hpc_cg.analysis import blocks, structures
from hpc_cg.analysis.sample import Sample

LINE = np.array([[0.0, 0.0, 0.0], [0.4, 0.0, 0.0], [0.8, 0.1, 0.0], [0.8, 0.5, 0.3]])


def rotation(random: np.random.Generator) -> np.ndarray:
    turn, upper = np.linalg.qr(random.normal(size=(3, 3)))
    turn *= np.sign(np.diag(upper))
    return turn * np.sign(np.linalg.det(turn))


def sample(positions: np.ndarray, n_blocks: int = 4, weights: np.ndarray | None = None) -> Sample:
    n = len(positions)
    return Sample(positions, np.ones(n) if weights is None else weights, np.arange(n) * n_blocks // n)


def stretching(n: int, seed: int, mean: float = 1.0) -> np.ndarray:
    """Two beads whose distance is normal, and a third far off."""
    x = np.zeros((n, 3, 3))
    x[:, 1, 0] = np.random.default_rng(seed).normal(mean, 0.1, n)
    x[:, 2, 1] = 5.0
    return x


def test_turned_and_shifted_structures_have_no_rmsd():
    random = np.random.default_rng(0)
    frames = np.stack([LINE @ rotation(random).T + random.normal(size=3) for _ in range(20)])
    assert np.all(structures.rmsd(frames, LINE) < 1e-7)


def test_mirror_images_are_not_laid_over_one_another():
    corner = np.array([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]])
    assert structures.rmsd(corner[None] * [1, 1, -1], corner)[0] > 0.1


def test_rmsd_by_hand():
    """Two beads 1 and 3 apart, centred: each is off by 1."""
    pair = np.array([[0.0, 0, 0], [1.0, 0, 0]])
    assert structures.rmsd(np.array([[[0.0, 0, 0], [0, 3.0, 0]]]), pair) == pytest.approx([1.0])


def test_no_turn_does_better_than_the_rmsd():
    random = np.random.default_rng(3)
    frame = LINE + 0.1 * random.normal(size=LINE.shape)
    least = structures.rmsd(frame[None], LINE)[0]
    centred, target = frame - frame.mean(axis=0), LINE - LINE.mean(axis=0)
    turned = [np.sqrt(np.mean(np.sum((centred @ rotation(random).T - target) ** 2, axis=1))) for _ in range(3000)]
    assert least <= min(turned) and min(turned) < 3 * least


def test_a_structure_of_other_beads_is_refused():
    with pytest.raises(errors.AtomCountMismatch, match="4 beads in the structure and 3 in the frames"):
        structures.rmsd(np.zeros((1, 3, 3)), LINE)


def test_contact_map_is_the_weighted_share_of_near_frames():
    x = np.zeros((4, 3, 3))
    x[:, 1, 0] = [0.9, 1.1, 0.5, 1.0]
    x[:, 2, 0] = 9.0
    found = structures.contact_histograms(sample(x, weights=np.array([1.0, 2.0, 3.0, 4.0])), ((0, 1), (0, 2)), 4)
    assert structures.contact_map(found).tolist() == pytest.approx([0.4, 0.0])


def test_contact_difference_by_hand():
    found = structures.contact_difference(np.array([[1.0, 3], [2, 2]]), np.array([[3.0, 1], [2, 2]]))
    assert found == pytest.approx(np.sqrt(0.5**2 / 2))


def test_distances_are_counted_in_hundredths_of_a_nanometre():
    x = np.zeros((3, 2, 3))
    x[:, 1, 2] = [0.385, 0.389, 77.0]
    found = structures.distance_histograms(sample(x, 1), ((0, 1),), 1)
    assert np.flatnonzero(found.total[0]).tolist() == [38, 511]
    assert found.total[0][[38, 511]].tolist() == [2, 1]


def test_parts_in_any_order_add_up_to_one_pass():
    whole = sample(stretching(1000, 1), 5, np.linspace(0.5, 2, 1000))
    parts = [
        Sample(whole.positions[a:b], whole.weights[a:b], whole.blocks[a:b])
        for a, b in ((0, 130), (130, 700), (700, 1000))
    ]
    for measure in (
        lambda s: structures.distance_histograms(s, ((0, 1), (1, 2)), 5),
        lambda s: structures.contact_histograms(s, ((0, 1), (1, 2)), 5),
        lambda s: structures.rmsd_histograms(s, LINE[:3], 5),
    ):
        one, two, three = (measure(part) for part in parts)
        for total in (one + two + three, three + (one + two), two + three + one):
            assert np.allclose(total.counts, measure(whole).counts)
            assert np.allclose(total.sizes, measure(whole).sizes)


def test_a_model_like_the_reference_is_at_the_floor_and_another_above():
    reference, like, other = (
        structures.distance_histograms(sample(stretching(4000, i, mean), 20), ((0, 1), (0, 2)), 20)
        for i, mean in ((1, 1.0), (2, 1.0), (3, 1.1))
    )
    same = blocks.judge(reference, like, blocks.mean_js, "nat", "distances", 1)
    off = blocks.judge(reference, other, blocks.mean_js, "nat", "distances", 1)
    assert same.floor is not None and abs(same.excess) < 4 * same.floor.spread
    assert off.excess > 20 * off.floor.spread and off.estimate.error < 0.1 * off.estimate.value


def slow_cells(n_runs: int, length: int, time: float, seed: int) -> np.ndarray:
    """Bins of a slow process along runs, shape (run, frame)."""
    noise, keep = np.random.default_rng(seed).normal(size=(n_runs, length)), np.exp(-1 / time)
    noise[:, 1:] *= np.sqrt(1 - keep**2)
    return np.clip((lfilter([1], [1, -keep], noise) + 4) / 8 * 40, 0, 39).astype(np.int64)


def histograms(cells: np.ndarray) -> blocks.BlockHistograms:
    block = np.repeat(np.arange(len(cells)), cells.shape[1])
    return blocks.BlockHistograms.of(cells.reshape(-1, 1), np.ones(cells.size), block, len(cells), (40,))


def test_floor_of_slow_frames_is_what_two_runs_alike_show():
    """Counting alone would promise a floor many times lower."""
    runs = [histograms(slow_cells(24, 1000, 100.0, seed)) for seed in range(12)]
    truth = np.mean([blocks.mean_js(a.total, b.total) for a, b in zip(runs[::2], runs[1::2], strict=True)])
    floors = [blocks.cut_floor(blocks.mean_js, run, 1, "slow").mean for run in runs]
    assert np.mean(floors) == pytest.approx(truth, rel=0.25)
    assert blocks.rows_floor(blocks.mean_js, runs[0], 24_000, 1).mean < truth / 10


def test_floor_of_a_judged_row_is_the_larger_one():
    one, other = (histograms(slow_cells(24, 1000, 100.0, seed)) for seed in (20, 21))
    floor = blocks.judge(one, other, blocks.mean_js, "nat", "slow", 1).floor
    assert floor == blocks.cut_floor(blocks.mean_js, one, 1, "slow")


def test_contact_floor_is_what_two_samples_show():
    def contacts(seed: int) -> blocks.BlockHistograms:
        return structures.contact_histograms(sample(stretching(2000, seed), 40), ((0, 1),), 40)

    truth = np.mean([structures.contact_difference(contacts(i).total, contacts(i + 1).total) for i in range(0, 120, 2)])
    counted = blocks.rows_floor(structures.contact_difference, contacts(0), 2000, 1).mean
    cut = np.mean([blocks.cut_floor(structures.contact_difference, contacts(i), 1, "c").mean for i in range(10)])
    assert counted == pytest.approx(truth, rel=0.3)
    assert cut == pytest.approx(truth, rel=0.3)


def test_too_few_blocks_or_frames_are_refused_in_words():
    few = histograms(slow_cells(3, 100, 2.0, 1))
    with pytest.raises(errors.TooFewFrames, match="3 blocks. Use shorter blocks"):
        blocks.judge(few, few, blocks.mean_js, "nat", "slow", 1)
    none = blocks.BlockHistograms((40,), np.zeros((4, 1, 40)), np.zeros((4, 2)))
    with pytest.raises(errors.TooFewFrames, match="slow of the model: found no frames"):
        blocks.judge(few, none, blocks.mean_js, "nat", "slow", 1)
    with pytest.raises(errors.UnknownBeads, match="at least one pair of the beads 0 to 2"):
        structures.contact_histograms(sample(stretching(4, 1)), ((0, 3),), 4)


def test_floor_and_error_are_the_same_again():
    one, other = (histograms(slow_cells(8, 200, 10.0, seed)) for seed in (1, 2))
    first, again = (blocks.judge(one, other, blocks.mean_js, "nat", "slow", 5) for _ in range(2))
    assert first == again
