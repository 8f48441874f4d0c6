import json

import numpy as np
import pytest

from hpc_cg.beads import BeadSystem, bead_system
from hpc_cg.errors import FitFailed
from hpc_cg.forcefield.coordinates import CoordinateMoments
from hpc_cg.forcefield.fitting import PriorParameters, Repulsion, fit_priors
from hpc_cg.units import kT


def test_fit_gives_the_width_of_the_data_and_the_length_apart_from_the_growing_sphere():
    pair = bead_system(("A", "B"), (0, 1), (12.0, 12.0), ((0, 1),))
    lengths = np.random.default_rng(0).normal(0.15, 0.004, 200_000)
    positions = np.zeros((len(lengths), 2, 3))
    positions[:, 1, 2] = lengths
    fitted = fit_priors(CoordinateMoments.of(positions, pair), 300.0)
    assert fitted.bond_0[0] == pytest.approx(0.15 - 2 * 0.004**2 / 0.15, abs=3e-5)
    assert fitted.bond_k[0] == pytest.approx(kT(300.0) / 0.004**2, rel=0.02)
    assert len(fitted.angle_k) == len(fitted.improper_k) == 0


def test_prior_parameters_survive_json(prior_parameters: PriorParameters):
    again = PriorParameters.from_json(json.loads(json.dumps(prior_parameters.to_json())))
    assert np.array_equal(again.bond_k, prior_parameters.bond_k)
    assert np.array_equal(again.improper_0, prior_parameters.improper_0)
    assert again.repulsion_pairs.shape == (0, 2) and again.repulsion_pairs.dtype == np.int64


def test_priors_written_before_there_was_repulsion_have_none(prior_parameters: PriorParameters):
    content = prior_parameters.to_json()
    del content["repulsion_pairs"], content["repulsion_sigma"]
    again = PriorParameters.from_json(content)
    assert again.repulsion_pairs.shape == (0, 2) and again.repulsion_sigma.shape == (0,)


def test_fit_names_the_term_that_does_not_move(alanine: BeadSystem, frames: np.ndarray):
    stiff = np.repeat(frames[:1], 50, axis=0)
    stiff[:, 3:] += np.random.default_rng(0).normal(0, 0.01, (50, 3, 3))
    with pytest.raises(FitFailed, match=r"bond ACE1:C-ALA2:N.*50 frames"):
        fit_priors(CoordinateMoments.of(stiff, alanine), 300.0)


def test_fit_refuses_frames_without_numbers_and_too_few_frames(alanine: BeadSystem, frames: np.ndarray):
    broken = frames[:50].copy()
    broken[4, 4] = np.nan
    with pytest.raises(FitFailed, match="bond ALA2:CA-ALA2:C"):
        fit_priors(CoordinateMoments.of(broken, alanine), 300.0)
    with pytest.raises(FitFailed, match="3 frames"):
        fit_priors(CoordinateMoments.of(frames[:3], alanine), 300.0)


def test_the_scale_of_weights_changes_no_prior(alanine: BeadSystem, frames: np.ndarray):
    weights = np.random.default_rng(2).uniform(0.1, 3, len(frames))
    one, two = (
        fit_priors(CoordinateMoments.of(frames, alanine, scale * weights), 300.0, 4, repulsion=Repulsion())
        for scale in (1.0, 1e-4)
    )
    for name, value in one.to_json().items():
        assert np.allclose(value, two.to_json()[name], rtol=1e-9), name


def test_statistics_added_in_pieces_give_the_priors_of_all_frames(alanine: BeadSystem, frames: np.ndarray):
    weights = np.random.default_rng(2).uniform(0.1, 3, len(frames))
    parts = zip(np.split(frames, [7, 900]), np.split(weights, [7, 900]), strict=True)
    first, second, third = (CoordinateMoments.of(f, alanine, w) for f, w in parts)
    whole, total = CoordinateMoments.of(frames, alanine, weights), third + first + second
    assert total.n_effective == pytest.approx(whole.n_effective)
    one, two = (fit_priors(x, 300.0, 8, True, "type", Repulsion()) for x in (whole, total))
    for name, value in one.to_json().items():
        assert np.allclose(value, two.to_json()[name], rtol=1e-9), name


CHAIN_BONDS = [(i, i + 1) for i in range(5)]


def test_terms_of_the_same_types_share_priors_read_forwards_or_backwards():
    palindrome = bead_system("abcdef", (7, 3, 5, 5, 3, 7), [12.0] * 6, CHAIN_BONDS)
    places = np.array([[0, 0, 0], [1, 0.2, 0], [1.5, 1, 0.3], [2.5, 1.2, 0], [3, 2, 0.5], [4, 2.1, 1]]) * 0.2
    frames = places + np.random.default_rng(4).normal(0, 0.01, (4000, 6, 3))
    moments = CoordinateMoments.of(frames, palindrome)
    shared = fit_priors(moments, 300.0, 3, per="type")
    for values in (shared.bond_k, shared.bond_0, shared.angle_k, shared.angle_0):
        assert np.array_equal(values, values[::-1])
    assert np.array_equal(shared.torsion_sin, shared.torsion_sin[::-1])
    assert len(set(shared.bond_0)) == 3 and len(set(shared.angle_0)) == 2

    both = np.concatenate((frames, frames[:, ::-1]))
    as_one = fit_priors(CoordinateMoments.of(both, palindrome), 300.0, 3)
    assert np.allclose(shared.bond_k, as_one.bond_k) and np.allclose(shared.bond_0, as_one.bond_0)
    assert np.allclose(shared.angle_k, as_one.angle_k) and np.allclose(shared.angle_0, as_one.angle_0)


def test_terms_of_their_own_types_are_fitted_alone(alanine: BeadSystem, frames: np.ndarray):
    moments = CoordinateMoments.of(frames, alanine)
    one, two = (fit_priors(moments, 300.0, 8, per=per).to_json() for per in ("term", "type"))
    assert one == two


def pair_of(lengths: np.ndarray) -> CoordinateMoments:
    positions = np.zeros((len(lengths), 2, 3))
    positions[:, 1, 2] = lengths
    return CoordinateMoments.of(positions, bead_system("AB", (0, 1), (12.0, 12.0), ((0, 1),)))


def test_molecules_broken_in_some_frames_are_an_error_that_carries_the_histogram():
    lengths = np.random.default_rng(0).normal(0.15, 0.003, 5000)
    lengths[::100] = 3.0
    with pytest.raises(FitFailed, match=r"bond A-B.*under one peak.*whole") as raised:
        fit_priors(pair_of(lengths), 300.0)
    evidence = raised.value.evidence
    assert (evidence.label, evidence.quantity) == ("bond A-B", "bond length (nm)")
    assert evidence.counts.sum() == 5000 and evidence.curve is not None
    assert evidence.counts[evidence.edges[:-1] > 2.5].sum() == 50


def test_a_term_that_does_not_move_carries_its_histogram_too():
    with pytest.raises(FitFailed, match="variance 0") as raised:
        fit_priors(pair_of(np.full(50, 0.15)), 300.0)
    assert raised.value.evidence.counts.max() == 50 and raised.value.evidence.curve is None


def test_repulsion_of_beads_in_one_place_is_refused():
    chain = bead_system("abcdef", range(6), [12.0] * 6, CHAIN_BONDS)
    frames = np.random.default_rng(0).uniform(0, 1, (100, 6, 3))
    frames[3, 5] = frames[3, 0]
    moments = CoordinateMoments.of(frames, chain)
    with pytest.raises(FitFailed, match="repulsion of a and f"):
        fit_priors(moments, 300.0, repulsion=Repulsion(percentile=0.0))
    assert fit_priors(moments, 300.0, repulsion=Repulsion(percentile=2.0)).repulsion_sigma.min() > 0
