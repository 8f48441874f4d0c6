"""Claims about thermodynamic integration along ψ."""

import numpy as np
import pytest

from hpc_cg.analysis.estimate import contiguous_blocks
from hpc_cg.analysis.features import dihedral, one_backbone
from hpc_cg.analysis.integration import psi_integration, psi_torque
from hpc_cg.beads import bead_system
from hpc_cg.errors import TooFewFrames, UnknownBeads
from hpc_cg.units import kT

TEMPERATURE = 300.0


def energy(psi):
    """A double well with its barrier between -20° and 150°, kJ/mol."""
    return 4.0 * np.cos(psi - np.radians(50)) + 2.0 * np.cos(2 * psi + 0.3)


def slope(psi):
    return -4.0 * np.sin(psi - np.radians(50)) - 4.0 * np.sin(2 * psi + 0.3)


@pytest.fixture(scope="module")
def toy(peptide, six):
    """Frames drawn from exp(-U(ψ)/kT), with F = -U'(ψ) ∂ψ/∂r by central differences."""
    random = np.random.default_rng(10)
    grid = np.linspace(-np.pi, np.pi, 20_001)
    share = np.cumsum(np.exp(-energy(grid) / kT(TEMPERATURE)))
    psi = np.interp(random.uniform(size=60_000), share / share[-1], grid)
    positions = peptide(random.uniform(-2.5, -1, 60_000), psi)
    quadruple = one_backbone(six).psi
    forces = np.zeros_like(positions)
    for bead in quadruple:
        for axis in range(3):
            step = np.zeros((6, 3))
            step[bead, axis] = 1e-6
            change = dihedral(positions + step, quadruple) - dihedral(positions - step, quadruple)
            change = (change + np.pi) % (2 * np.pi) - np.pi
            forces[:, bead, axis] = -slope(psi) * change / 2e-6
    return positions, forces, psi


def test_torque_is_the_force_along_psi(toy, six):
    positions, forces, psi = toy
    np.testing.assert_allclose(psi_torque(positions, forces, six), -slope(psi), atol=1e-5)


def test_integral_of_the_mean_force_is_the_known_free_energy(toy, six):
    positions, forces, _ = toy
    found = psi_integration(positions, forces, six, TEMPERATURE)
    known = (energy(found.centres) - energy(found.centres[0])) / kT(TEMPERATURE)
    assert found.difference_kT == pytest.approx(known[-1], abs=0.02)
    np.testing.assert_allclose(found.free_energy, known, atol=0.03)
    assert abs(found.histogram_kT - known[-1]) < 3 * found.histogram_error_kT
    assert known[-1] < -0.5


def test_error_is_the_scatter_of_repeated_noisy_forces(toy, six):
    positions, forces, _ = toy
    random = np.random.default_rng(11)
    positions, forces = positions[:8000], forces[:8000]
    results = [
        psi_integration(positions, forces + random.normal(0, 200, forces.shape), six, TEMPERATURE) for _ in range(60)
    ]
    scatter = np.std([result.difference_kT for result in results])
    assert results[0].error_kT == pytest.approx(scatter, rel=0.25)


def test_weights_equal_repeated_frames(toy, six):
    positions, forces, _ = (part[:20_000] for part in toy)
    repeats = np.random.default_rng(12).integers(1, 4, 20_000)
    weighted = psi_integration(positions, forces, six, TEMPERATURE, weights=repeats.astype(float))
    repeated = psi_integration(np.repeat(positions, repeats, 0), np.repeat(forces, repeats, 0), six, TEMPERATURE)
    np.testing.assert_allclose(weighted.free_energy, repeated.free_energy, atol=1e-9)
    assert weighted.histogram_kT == pytest.approx(repeated.histogram_kT)


def test_beads_beyond_the_next_residue_turn_with_it(toy, six):
    positions, forces, psi = toy
    longer = bead_system((*six.names, "NME3:C"), range(7), (*six.masses, 12.0), (*six.bonds, (5, 6)), six.impropers)
    extra = positions[:, 5:] + np.array([0.1, 0.05, 0.0])
    # the force along ψ now sits half on the bead beyond
    carbon, alpha = positions[:, 4], positions[:, 2]
    axis = (carbon - alpha) / np.linalg.norm(carbon - alpha, axis=-1, keepdims=True)
    arm = np.cross(axis, extra[:, 0] - carbon)
    push = -0.5 * slope(psi)[:, None] * arm / np.sum(arm**2, axis=-1, keepdims=True)
    torque = psi_torque(
        np.concatenate([positions, extra], axis=1),
        np.concatenate([0.5 * forces, push[:, None]], axis=1),
        longer,
    )
    np.testing.assert_allclose(torque, -slope(psi), atol=1e-5)


def test_a_bin_without_frames_is_named(peptide, six):
    psi = np.random.default_rng(13).uniform(-0.3, 1.0, 500)
    positions = peptide(np.full(500, -1.4), psi)
    with pytest.raises(TooFewFrames, match="frames with ψ in"):
        psi_integration(positions, np.zeros_like(positions), six, TEMPERATURE)


def test_beads_without_psi_are_refused():
    pair = bead_system(["CA", "CA"], [0, 1], [12.0, 12.0], [(0, 1)])
    with pytest.raises(UnknownBeads):
        psi_torque(np.zeros((1, 2, 3)), np.zeros((1, 2, 3)), pair)


@pytest.mark.data
def test_mapped_forces_of_the_real_data_know_the_free_energy_of_the_frames(alanine, six):
    """Uniform map on 40,000 frames: difference ± 0.86 kT; a lighter map halves that.

    The histogram says -0.48 kT.
    """
    frames = slice(40_000)
    atoms = alanine.forces[frames].astype(float)
    uniform = atoms[:, [4, 6, 8, 10, 14, 16]]
    uniform[:, 5] += atoms[:, 17]
    lighter = uniform.copy()
    lighter[:, 5] += 1.02 * atoms[:, 18:22].sum(axis=1) - 0.06 * atoms[:, 15]
    blocks = contiguous_blocks([20_000, 20_000], 2_000)
    beads = alanine.beads[frames]
    plain = psi_integration(beads, uniform, six, TEMPERATURE, blocks=blocks)
    better = psi_integration(beads, lighter, six, TEMPERATURE, blocks=blocks)
    assert plain.error_kT == pytest.approx(0.86, abs=0.02)
    assert better.error_kT == pytest.approx(0.46, abs=0.02)
    assert plain.histogram_kT == pytest.approx(-0.48, abs=0.01)
    for result in (plain, better):
        assert abs(result.difference_kT - result.histogram_kT) < 2.5 * result.error_kT
    assert 0.03 < plain.histogram_error_kT < 0.15
