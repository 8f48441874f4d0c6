"""Atoms come back around beads: the nearest conformer, moved as a whole, with its atoms where the beads are."""

import numpy as np
import pytest

from hpc_cg.analysis.rebuild import Conformers, bead_atoms
from hpc_cg.errors import InvalidMap

BEADS = np.array([1, 3, 4, 6])


def turned(positions: np.ndarray, seed: int) -> np.ndarray:
    """The same after some turn and shift."""
    random = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
    return positions @ (turn * np.sign(np.linalg.det(turn))) + random.normal(size=3)


@pytest.fixture(scope="module")
def conformers() -> Conformers:
    return Conformers(np.random.default_rng(0).normal(0, 0.2, (6, 8, 3)), BEADS)


@pytest.mark.parametrize("number", range(6))
def test_a_conformer_is_found_again_from_its_beads_however_it_lies(conformers: Conformers, number: int) -> None:
    there = turned(conformers.positions[number], seed=number)
    np.testing.assert_allclose(conformers.around(there[BEADS]), there, atol=1e-12)


def test_the_nearest_conformer_is_that_of_least_rmsd(conformers: Conformers) -> None:
    from scipy.spatial.transform import Rotation

    beads = np.random.default_rng(1).normal(0, 0.2, (4, 3))
    middle = beads - beads.mean(axis=0)
    misfits = [Rotation.align_vectors(middle, own - own.mean(axis=0))[1] for own in conformers.positions[:, BEADS]]
    placed = conformers.around(beads)
    others = np.setdiff1d(np.arange(8), BEADS)
    nearest = conformers.positions[int(np.argmin(misfits))][others]
    distances = [np.linalg.norm(x[:, None] - x, axis=-1) for x in (placed[others], nearest)]
    np.testing.assert_allclose(*distances, atol=1e-12)


def test_beads_are_where_they_are_given_whatever_the_conformers(conformers: Conformers) -> None:
    beads = np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)
    np.testing.assert_array_equal(conformers.around(beads)[BEADS], beads)


def test_a_mirror_image_is_not_laid_over_by_reflection(conformers: Conformers) -> None:
    """Four beads have a hand, and atoms keep theirs."""
    placed = conformers.around(conformers.positions[0, BEADS] * [1, 1, -1])
    others = np.setdiff1d(np.arange(8), BEADS)

    def hand(x: np.ndarray) -> float:
        return np.sign(np.linalg.det(x[others][1:] - x[others][0]))

    shapes = [np.linalg.norm(x[others][:, None] - x[others], axis=-1) for x in conformers.positions]
    own = np.linalg.norm(placed[others][:, None] - placed[others], axis=-1)
    used = int(np.argmin([np.abs(shape - own).max() for shape in shapes]))
    assert hand(placed) == hand(conformers.positions[used])


def test_slice_maps_name_the_atom_of_each_bead() -> None:
    matrix = np.zeros((3, 5))
    matrix[[0, 1, 2], [4, 0, 2]] = 1.0
    np.testing.assert_array_equal(bead_atoms(matrix, ["A", "B", "C"]), [4, 0, 2])


@pytest.mark.parametrize(
    ("matrix", "sentence"),
    [
        (None, "an archive of beads, which says nothing of atoms. Choose a map of single atoms"),
        (np.array([[1.0, 0, 0], [0, 0.5, 0.5]]), "the bead ALA2, a centre of 2 atoms"),
        (np.array([[1.0, 0, 0], [1.0, 0, 0]]), "two beads on one atom"),
    ],
)
def test_maps_of_other_beads_are_refused(matrix: np.ndarray | None, sentence: str) -> None:
    with pytest.raises(InvalidMap, match=sentence):
        bead_atoms(matrix, ["ACE1", "ALA2"])
