import numpy as np
import pytest

from hpc_cg.forcefield.histograms import COSINE_EDGES, LENGTH_EDGES, count, overlap_with_gaussian

RANDOM = np.random.default_rng(5)


def test_every_number_is_counted_once_with_its_weight_and_what_is_none_not() -> None:
    values = np.array([[0.15, 0.001], [np.nan, 9.0], [0.15, 0.3]])
    counts = count(values, np.array([1.0, 2.0, 4.0]), LENGTH_EDGES)
    assert counts.sum(axis=1).tolist() == [5.0, 7.0]
    assert counts[0].max() == 5.0 and (counts[1, 0], counts[1, -1]) == (1.0, 2.0)
    place = int(counts[0].argmax())
    assert LENGTH_EDGES[place] <= 0.15 < LENGTH_EDGES[place + 1]


def covered(values: np.ndarray, edges: np.ndarray) -> float:
    counts = count(values[:, None], np.ones(len(values)), edges)[0]
    return overlap_with_gaussian(edges, counts, float(values.mean()), float(values.std()))


def test_a_gaussian_covers_one_peak_of_any_width() -> None:
    for deviation in (0.003, 0.02, 0.06):
        assert covered(RANDOM.normal(0.38, deviation, 5000), LENGTH_EDGES) > 0.9


def test_a_gaussian_covers_helix_and_sheet_well_enough_and_far_outliers_not() -> None:
    two = np.concatenate((RANDOM.normal(0.0, 0.08, 3000), RANDOM.normal(-0.57, 0.12, 3000)))
    assert covered(two, COSINE_EDGES) > 0.5
    broken = np.concatenate((RANDOM.normal(0.15, 0.003, 4950), RANDOM.uniform(2, 3, 50)))
    assert covered(broken, LENGTH_EDGES) < 0.3
    sharp = np.concatenate((RANDOM.normal(0.13, 0.003, 3000), RANDOM.normal(0.19, 0.003, 3000)))
    assert covered(sharp, LENGTH_EDGES) < 0.4


def test_overlap_is_that_of_the_densities() -> None:
    wide = RANDOM.normal(0.0, 0.1, 200_000)
    counts = count(wide[:, None], np.ones(len(wide)), COSINE_EDGES)[0]
    # two Gaussians of one centre, one twice as wide, overlap by 0.677
    assert overlap_with_gaussian(COSINE_EDGES, counts, 0.0, 0.2) == pytest.approx(0.677, abs=0.03)
