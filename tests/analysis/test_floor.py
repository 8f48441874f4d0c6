"""Claims about the floor: it is what two samples of the reference give, at any two sizes."""

import numpy as np
import pytest

from hpc_cg.analysis import floor
from hpc_cg.analysis.features import dihedral, one_backbone
from hpc_cg.analysis.geometry import wasserstein
from hpc_cg.analysis.landscape import ANGLE_GRID, js_divergence, pmf_error
from hpc_cg.errors import TooFewFrames


def mean_square(reference, model):
    return pmf_error(reference, model).mean_square


def counted(cells: np.ndarray) -> np.ndarray:
    counts = np.bincount(cells, minlength=ANGLE_GRID.n_bins**2).astype(float)
    return counts.reshape(ANGLE_GRID.n_bins, ANGLE_GRID.n_bins)


@pytest.fixture(scope="module")
def cells(alanine, six):
    """The bin of each of the 60,000 frames."""
    residue = one_backbone(six)
    return ANGLE_GRID.bins(*(dihedral(alanine.beads, quadruple) for quadruple in (residue.phi, residue.psi)))


def from_disjoint_samples(divergence, cells, n_reference, n_model, n_draws=20):
    random = np.random.default_rng(8)
    values = []
    for _ in range(n_draws):
        mixed = random.permutation(cells)
        values.append(divergence(counted(mixed[:n_reference]), counted(mixed[n_reference : n_reference + n_model])))
    return float(np.mean(values))


@pytest.mark.data
@pytest.mark.parametrize("sizes", [(30_000, 30_000), (10_000, 50_000), (2_000, 2_000)])
@pytest.mark.parametrize("divergence", [js_divergence, mean_square])
def test_floor_is_what_disjoint_samples_of_the_reference_give(cells, divergence, sizes):
    truth = from_disjoint_samples(divergence, cells, *sizes)
    found = floor.counting_floor(divergence, counted(cells), *sizes, seed=0)
    assert found.mean == pytest.approx(truth, rel=0.1)


@pytest.mark.data
@pytest.mark.parametrize("divergence", [js_divergence, mean_square])
def test_floor_holds_for_more_frames_than_the_reference_has(cells, divergence):
    truth = from_disjoint_samples(divergence, cells, 30_000, 30_000)
    known = [counted(np.random.default_rng(i).permutation(cells)[:15_000]) for i in range(6)]
    found = np.mean([floor.counting_floor(divergence, k, 30_000, 30_000, seed=1, n_draws=10).mean for k in known])
    assert found == pytest.approx(truth, rel=0.1)


@pytest.mark.data
def test_floor_is_the_published_one_for_this_data(cells):
    assert floor.counting_floor(js_divergence, counted(cells), 20_000, 20_000, 2).mean == pytest.approx(
        0.0147, rel=0.12
    )
    assert floor.counting_floor(mean_square, counted(cells), 10_000, 10_000, 2).mean == pytest.approx(0.642, rel=0.12)


def test_unseen_bins_beside_seen_ones_receive_the_mass_that_singletons_announce():
    counts = np.zeros((20, 20))
    counts[5, 5:8] = 1000
    counts[10, :] = 1
    counts[11, :10] = 2
    density = floor.unveiled_density(counts)
    n, once, twice = counts.sum(), 20, 10
    missing = once / n * (n - 1) * once / ((n - 1) * once + 2 * twice)
    assert density.sum() == pytest.approx(1)
    assert density[counts == 0].sum() == pytest.approx(missing)
    assert density[4, 5] > density[9, 15] > 0
    assert density[15, 15] == 0
    assert (density >= 0).all()


def test_a_well_filled_histogram_stays_as_it_is():
    counts = np.array([[500.0, 300.0, 0.0], [0.0, 200.0, 0.0]])
    np.testing.assert_allclose(floor.unveiled_density(counts), counts / 1000)


def test_weighted_counts_are_read_at_their_effective_size():
    weights = np.array([3.0] * 100 + [0.5] * 300)
    assert floor.effective_frames(np.full(50, 0.2)) == pytest.approx(50)
    assert floor.effective_frames(weights) == pytest.approx(450**2 / 975)
    counts = np.array([60.0, 38.0, 1.0, 1.0, 0.0, 0.0])
    np.testing.assert_allclose(floor.unveiled_density(counts), floor.unveiled_density(7.5 * counts, n_frames=100.0))


def test_transport_floor_is_what_independent_samples_give():
    random = np.random.default_rng(9)
    bonds = random.normal(0.15, 0.003, 20_000)
    found = floor.transport_floor(bonds, np.ones(20_000), 5_000, 8_000, seed=3, n_draws=40)
    truth = [wasserstein(random.normal(0.15, 0.003, 5_000), random.normal(0.15, 0.003, 8_000)) for _ in range(40)]
    assert found.mean == pytest.approx(np.mean(truth), rel=0.2)


def test_a_histogram_of_nothing_has_no_floor():
    with pytest.raises(TooFewFrames, match="Give the reference more frames"):
        floor.unveiled_density(np.zeros(10))
