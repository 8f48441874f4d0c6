import json

import numpy as np
import pytest

from hpc_cg.beads import BeadSystem, bead_system
from hpc_cg.errors import FitFailed
from hpc_cg.forcefield.coordinates import (
    CoordinateMoments,
    PriorParameters,
    angle_cosines,
    bond_lengths,
    fit_priors,
    improper_products,
    internal_coordinates,
    term_labels,
)
from hpc_cg.units import kT


def test_coordinates_of_a_corner_of_a_cube():
    corner = np.array([[[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]]], dtype=np.float64)
    assert bond_lengths(corner, ((0, 1), (0, 2), (1, 2)))[0] == pytest.approx([1, 2, np.sqrt(5)])
    assert angle_cosines(corner, ((1, 0, 2), (0, 1, 2)))[0] == pytest.approx([0, 1 / np.sqrt(5)])
    assert improper_products(corner, ((0, 1, 2, 3), (0, 2, 1, 3)))[0] == pytest.approx([1, -1])


def test_improper_product_tells_a_molecule_from_its_mirror_image(alanine: BeadSystem, frames: np.ndarray):
    here = improper_products(frames, alanine.impropers)
    there = improper_products(frames * np.array([1, 1, -1]), alanine.impropers)
    assert np.allclose(here, -there)
    assert (here > 0).all()


def test_moments_added_in_pieces_equal_moments_at_once(alanine: BeadSystem, frames: np.ndarray):
    weights = np.random.default_rng(2).uniform(0.1, 3, len(frames))
    whole = CoordinateMoments.of(frames, alanine, weights)
    pieces = [
        CoordinateMoments.of(f, alanine, w)
        for f, w in zip(np.split(frames, [7, 900]), np.split(weights, [7, 900]), strict=True)
    ]
    total = pieces[2] + pieces[0] + pieces[1]
    assert total.n_frames == whole.n_frames
    assert np.allclose(total.mean, whole.mean, rtol=1e-12)
    assert np.allclose(total.variance, whole.variance, rtol=1e-10)


def test_weights_count_like_repeated_frames(alanine: BeadSystem, frames: np.ndarray):
    counts = np.array([1, 3, 2] * 20)
    weighted = CoordinateMoments.of(frames[:60], alanine, counts.astype(np.float64))
    repeated = CoordinateMoments.of(np.repeat(frames[:60], counts, axis=0), alanine)
    assert np.allclose(weighted.variance, repeated.variance)


def test_fit_gives_the_gaussian_of_the_data():
    pair = bead_system(("A", "B"), (0, 1), (12.0, 12.0), ((0, 1),))
    lengths = np.random.default_rng(0).normal(0.15, 0.004, 200_000)
    positions = np.zeros((len(lengths), 2, 3))
    positions[:, 1, 2] = lengths
    fitted = fit_priors(CoordinateMoments.of(positions, pair), 300.0)
    assert fitted.bond_0[0] == pytest.approx(0.15, abs=5e-5)
    assert fitted.bond_k[0] == pytest.approx(kT(300.0) / 0.004**2, rel=0.02)
    assert len(fitted.angle_k) == len(fitted.improper_k) == 0


def test_prior_parameters_survive_json(prior_parameters: PriorParameters):
    again = PriorParameters.from_json(json.loads(json.dumps(prior_parameters.to_json())))
    assert np.array_equal(again.bond_k, prior_parameters.bond_k)
    assert np.array_equal(again.improper_0, prior_parameters.improper_0)


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


def test_labels_follow_the_order_of_the_coordinates(alanine: BeadSystem, frames: np.ndarray):
    labels = term_labels(alanine)
    assert len(labels) == internal_coordinates(frames[:2], alanine).shape[1]
    assert labels[-1] == "improper ALA2:CA-ALA2:N-ALA2:C-ALA2:CB"
