import numpy as np
import pytest

from hpc_cg.beads import BeadSystem
from hpc_cg.forcefield.coordinates import (
    CoordinateMoments,
    angle_cosines,
    bond_lengths,
    improper_products,
    internal_coordinates,
    term_labels,
)


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


def test_labels_follow_the_order_of_the_coordinates(alanine: BeadSystem, frames: np.ndarray):
    labels = term_labels(alanine)
    assert len(labels) == internal_coordinates(frames[:2], alanine).shape[1]
    assert labels[-1] == "improper ALA2:CA-ALA2:N-ALA2:C-ALA2:CB"
