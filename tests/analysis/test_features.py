"""Claims about internal coordinates."""

import mdtraj
import numpy as np
import pytest

from hpc_cg.analysis import features
from hpc_cg.beads import bead_system
from hpc_cg.errors import UnknownBeads


def test_backbone_beads_are_found_by_name_with_and_without_cb(six, five):
    assert features.one_backbone(six).phi == (0, 1, 2, 4)
    assert features.one_backbone(six).psi == (1, 2, 4, 5)
    assert features.one_backbone(five).phi == (0, 1, 2, 3)
    assert features.one_backbone(five).psi == (1, 2, 3, 4)


def test_backbone_does_not_depend_on_the_order_of_beads(six):
    order = [5, 3, 0, 4, 2, 1]
    where = {bead: place for place, bead in enumerate(order)}
    bonds = [(where[a], where[b]) for a, b in six.bonds]
    shuffled = bead_system([six.names[i] for i in order], range(6), [12.0] * 6, bonds)
    assert [shuffled.names[i] for i in features.one_backbone(shuffled).phi] == [six.names[i] for i in (0, 1, 2, 4)]


def test_every_residue_of_a_chain_has_its_backbone():
    names = [f"ALA{i}:{atom}" for i in range(4) for atom in ("N", "CA", "C")]
    chain = bead_system(names, range(12), [12.0] * 12, [(i, i + 1) for i in range(11)])
    assert [b.label for b in features.backbones(chain)] == ["ALA1:CA", "ALA2:CA"]


def test_beads_without_a_backbone_have_none_and_asking_for_one_says_so():
    alphas = bead_system(["GLY1:CA", "GLY2:CA"], [0, 1], [12.0, 12.0], [(0, 1)])
    assert features.backbones(alphas) == ()
    with pytest.raises(UnknownBeads, match="GLY1:CA, GLY2:CA"):
        features.one_backbone(alphas)


def test_dihedrals_of_a_built_molecule_are_those_it_was_built_with(peptide, six):
    phi, psi = np.random.default_rng(0).uniform(-np.pi, np.pi, (2, 50))
    residue = features.one_backbone(six)
    built = peptide(phi, psi)
    np.testing.assert_allclose(features.dihedral(built, residue.phi), phi, atol=1e-9)
    np.testing.assert_allclose(features.dihedral(built, residue.psi), psi, atol=1e-9)


@pytest.mark.data
def test_coordinates_of_real_frames_are_those_of_mdtraj(alanine, data_folder, six):
    topology = mdtraj.load_topology(data_folder / "ala2_all_atom" / "topology.pdb")
    frames = mdtraj.Trajectory(alanine.positions[:200], topology)
    beads, residue = alanine.beads[:200], features.one_backbone(six)
    np.testing.assert_allclose(features.dihedral(beads, residue.phi), mdtraj.compute_phi(frames)[1][:, 0], atol=1e-4)
    np.testing.assert_allclose(features.dihedral(beads, residue.psi), mdtraj.compute_psi(frames)[1][:, 0], atol=1e-4)
    sliced = mdtraj.Trajectory(beads, None)
    np.testing.assert_allclose(
        features.bond_lengths(beads, six.bonds), mdtraj.compute_distances(sliced, six.bonds), atol=1e-6
    )
    np.testing.assert_allclose(features.angles(beads, six.angles), mdtraj.compute_angles(sliced, six.angles), atol=1e-4)


@pytest.mark.data
def test_l_alanine_has_negative_phi_and_one_hand(alanine, six):
    beads = alanine.beads
    phi = np.degrees(features.dihedral(beads, features.one_backbone(six).phi))
    assert -150 < np.median(phi) < -60
    assert np.mean(phi > 0) < 1e-3
    assert (features.handedness(beads, six.impropers) > 0.1).all()


def test_a_mirror_changes_dihedrals_and_handedness_in_sign_and_nothing_else(peptide, six):
    built = peptide(np.array([-1.3]), np.array([2.4]))
    mirrored = built * np.array([1.0, 1.0, -1.0])
    residue = features.one_backbone(six)
    assert features.dihedral(mirrored, residue.psi) == pytest.approx(-2.4)
    np.testing.assert_allclose(features.handedness(mirrored, six.impropers), -features.handedness(built, six.impropers))
    np.testing.assert_allclose(features.angles(mirrored, six.angles), features.angles(built, six.angles))
    np.testing.assert_allclose(features.bond_lengths(mirrored, six.bonds), features.bond_lengths(built, six.bonds))
