"""Claims about free energies and divergences."""

import numpy as np
import pytest
from scipy import integrate

from hpc_cg.analysis import landscape
from hpc_cg.analysis.landscape import Grid
from hpc_cg.errors import TooFewFrames


def normal_pair(n: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.random.default_rng(1).normal(0, 0.7, (2, n))
    return x + shift, y


def test_a_set_against_itself_has_no_divergence():
    counts = landscape.histogram(*normal_pair(5000))
    assert landscape.js_divergence(counts, counts) == 0
    assert landscape.pmf_error(counts, 7 * counts).mean_square == pytest.approx(0, abs=1e-25)


def test_sets_that_share_no_bin_have_divergence_ln_2():
    assert landscape.js_divergence(np.array([1.0, 0.0]), np.array([0.0, 5.0])) == pytest.approx(np.log(2))


def test_two_bins_give_the_textbook_numbers():
    p, q = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    m = (p + q) / 2
    js = 0.5 * np.sum(p * np.log(p / m)) + 0.5 * np.sum(q * np.log(q / m))
    assert landscape.js_divergence(1000 * p, 300 * q) == pytest.approx(js)
    expected = m[0] * np.log(1.8) ** 2 + m[1] * np.log(0.2) ** 2
    assert landscape.pmf_error(1000 * p, 300 * q).mean_square == pytest.approx(expected)
    assert landscape.pmf_error(1000 * p, 300 * q).root == pytest.approx(np.sqrt(expected))


def test_an_empty_bin_counts_as_the_baseline():
    error = landscape.pmf_error(np.array([8.0, 2.0, 0.0]), np.array([10.0, 0.0, 0.0]))
    expected = 0.9 * np.log(10 / 8) ** 2 + 0.1 * np.log(0.2 / 1e-6) ** 2
    assert error.mean_square == pytest.approx(expected)


def test_shifted_normal_densities_diverge_as_the_integral_says():
    grid, shift = Grid(n_bins=402, low=-8.0, high=8.0), 1.0
    centres = (grid.edges[1:] + grid.edges[:-1]) / 2

    def density(x, mean):
        return np.exp(-((x - mean) ** 2) / 2) / np.sqrt(2 * np.pi)

    def integrand(x):
        p, q = density(x, 0.0), density(x, shift)
        return 0.5 * (p * np.log(2 * p / (p + q)) + q * np.log(2 * q / (p + q)))

    exact = integrate.quad(integrand, -8, 8)[0]
    on_grid = landscape.js_divergence(density(centres, 0.0), density(centres, shift))
    assert on_grid == pytest.approx(exact, rel=1e-4)
    # equal widths: ln q - ln p = shift (x - shift/2); its mean square over (p + q)/2 is shift² (1 + shift²/4)
    error = landscape.pmf_error(density(centres, 0.0), density(centres, shift)).mean_square
    assert error == pytest.approx(shift**2 * (1 + shift**2 / 4), rel=1e-3)


def test_weights_equal_repeated_frames():
    x, y = normal_pair(300)
    repeats = np.random.default_rng(2).integers(0, 4, 300)
    weighted = landscape.histogram(x, y, weights=repeats.astype(float))
    np.testing.assert_array_equal(weighted, landscape.histogram(np.repeat(x, repeats), np.repeat(y, repeats)))
    psi = np.repeat(x, repeats)
    assert landscape.alpha_fraction(x, repeats.astype(float)) == pytest.approx(landscape.alpha_fraction(psi))


def test_outliers_are_counted_in_the_outer_bins():
    grid = Grid(n_bins=5, low=0.0, high=3.0)
    counts = landscape.histogram(np.array([-9.0, 0.5, 9.0]), np.array([1.5, 1.5, 9.0]), grid)
    assert counts[0, 2] == counts[1, 2] == counts[4, 4] == 1
    assert counts.sum() == 3


def test_free_energy_is_zero_at_its_lowest_and_nan_where_nothing_fell():
    counts = np.zeros((5, 5))
    counts[1, 1], counts[2, 2] = 100, 50
    surface = landscape.free_energy(counts)
    assert surface[0, 0] == 0
    assert surface[1, 1] == pytest.approx(np.log(2))
    assert np.isnan(surface).sum() == 7


def test_matching_the_basin_leaves_no_offset_and_keeps_shapes():
    psi = np.concatenate([np.full(600, -0.5), np.full(400, 2.5)])
    weights = landscape.match_alpha_fraction(psi, np.ones(1000), 0.3)
    assert landscape.alpha_fraction(psi, weights) == pytest.approx(0.3)
    assert len(np.unique(weights[:600])) == 1


def test_a_basin_that_was_never_visited_has_no_offset():
    with pytest.raises(TooFewFrames, match="start replicas in both basins"):
        landscape.alpha_log_odds(np.full(10, 2.5))


@pytest.mark.data
def test_runs_differ_as_published_for_this_data(alanine, six):
    from hpc_cg.analysis.features import dihedral, one_backbone

    residue = one_backbone(six)
    phi, psi = (dihedral(alanine.beads, quadruple) for quadruple in (residue.phi, residue.psi))
    first, second = (landscape.histogram(phi[s], psi[s]) for s in (slice(20000), slice(20000, 40000)))
    assert landscape.js_divergence(first, second) == pytest.approx(0.0159, abs=1e-4)
    assert landscape.pmf_error(first, second).mean_square == pytest.approx(0.269, abs=2e-3)
    assert landscape.alpha_fraction(psi[:20000]) == pytest.approx(0.382, abs=1e-3)
    assert np.mean(phi > 0) == pytest.approx(1e-4)
