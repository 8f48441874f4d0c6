import numpy as np
import pytest
import torch
from torch.func import jacrev

from hpc_cg.beads import BeadSystem
from hpc_cg.forcefield.coordinates import internal_coordinates
from hpc_cg.forcefield.fitting import PriorParameters
from hpc_cg.forcefield.fourier import fit_series
from hpc_cg.forcefield.histograms import N_TORSION_BINS
from hpc_cg.forcefield.priors import Prior

KINDS = ("bond", "angle", "improper")


def only(parameters: PriorParameters, kind: str) -> PriorParameters:
    """The priors with the force constants of other kinds set to zero."""
    content = parameters.to_json()
    for other in KINDS:
        if other != kind:
            content[f"{other}_k"] = [0.0] * len(content[f"{other}_k"])
    return PriorParameters.from_json(content)


def finite_differences(energy, positions: torch.Tensor, width: float = 1e-6) -> torch.Tensor:
    """-dE/dr by central differences, one coordinate of all frames at a time."""
    forces = torch.zeros_like(positions)
    for bead in range(positions.shape[1]):
        for axis in range(3):
            shift = torch.zeros_like(positions)
            shift[:, bead, axis] = width
            forces[:, bead, axis] = (energy(positions - shift) - energy(positions + shift)) / (2 * width)
    return forces


def test_forces_of_every_kind_of_prior_are_minus_the_gradient(alanine, prior_parameters, positions):
    for kind in KINDS:
        prior = Prior(alanine, only(prior_parameters, kind)).double()
        forces = prior(positions).forces
        wanted = finite_differences(lambda x, prior=prior: prior(x).energy, positions)
        assert forces.abs().max() > 10
        assert (forces - wanted).norm() / wanted.norm() < 1e-6, kind


def test_prior_energy_is_the_sum_over_its_coordinates(
    alanine: BeadSystem, prior_parameters: PriorParameters, positions: torch.Tensor
):
    p = prior_parameters
    k, centre = (
        np.concatenate((p.bond_k, p.angle_k, p.improper_k)),
        np.concatenate((p.bond_0, p.angle_0, p.improper_0)),
    )
    values = internal_coordinates(positions.numpy(), alanine)
    energy = Prior(alanine, p).double()(positions).energy
    assert np.allclose(energy.numpy(), (0.5 * k * (values - centre) ** 2).sum(1), rtol=1e-5)


def test_prior_energy_differentiates_to_its_own_forces(alanine, prior_parameters, positions):
    prior = Prior(alanine, prior_parameters).double()
    gradient = jacrev(lambda x: prior(x).energy.sum())(positions)
    assert torch.allclose(prior(positions).forces, -gradient, rtol=1e-10, atol=1e-9)


def test_improper_prior_alone_tells_the_hands_apart(alanine, prior_parameters, positions):
    mirror = positions * torch.tensor([1.0, 1.0, -1.0])
    for kind, differs in (("bond", False), ("angle", False), ("improper", True)):
        prior = Prior(alanine, only(prior_parameters, kind)).double()
        here, there = prior(positions).energy, prior(mirror).energy
        assert bool((there > here + 50).all()) if differs else torch.allclose(here, there)


def test_beads_in_one_place_give_numbers(alanine, prior_parameters):
    energy, forces = Prior(alanine, prior_parameters)(torch.zeros(1, 6, 3))
    assert energy.isfinite().all() and forces.isfinite().all()


def test_torsions_follow_the_histogram_and_their_forces_are_the_gradient() -> None:
    """Torsions of a chain drawn from a known potential: V = 2 kT cos(θ - 1)."""
    from hpc_cg.beads import bead_system
    from hpc_cg.forcefield.coordinates import CoordinateMoments, dihedral_angles, torsions_of
    from hpc_cg.forcefield.fitting import fit_priors
    from hpc_cg.units import kT

    random = np.random.default_rng(0)
    theta = np.arange(-np.pi, np.pi, 1e-3)
    weight = np.exp(-2 * np.cos(theta - 1))
    drawn = random.choice(theta, 200_000, p=weight / weight.sum())
    ends = np.stack([0.05 + 0 * drawn, 0.1 * np.cos(drawn), 0.1 * np.sin(drawn)], axis=1)
    frames = np.zeros((len(drawn), 4, 3))
    frames[:, 0], frames[:, 2], frames[:, 3] = (-0.05, 0.1, 0), (0.15, 0, 0), ends
    frames[:, 3, 0] += 0.15
    frames += random.normal(0, 1e-3, frames.shape)
    system = bead_system("abcd", range(4), [12.0] * 4, [(0, 1), (1, 2), (2, 3)])
    assert torsions_of(system) == ((0, 1, 2, 3),)
    np.testing.assert_allclose(
        np.cos(dihedral_angles(frames[:50], torsions_of(system))[:, 0] - drawn[:50]), 1, atol=1e-2
    )
    prior = fit_priors(CoordinateMoments.of(frames, system), 300.0, torsion_order=6)
    thermal = kT(300.0)
    expected = np.zeros((2, 6))
    expected[:, 0] = 2 * thermal * np.sin(1), 2 * thermal * np.cos(1)
    np.testing.assert_allclose(np.stack([prior.torsion_sin[0], prior.torsion_cos[0]]), expected, atol=0.05 * thermal)
    model = Prior(system, prior).double()
    x = torch.from_numpy(frames[:5]).requires_grad_()
    found = model(x)
    gradient = torch.autograd.grad(found.energy.sum(), x)[0]
    torch.testing.assert_close(found.forces, -gradient, rtol=1e-6, atol=1e-8)


def test_where_no_frame_was_seen_the_torsion_prior_is_high() -> None:
    counts = np.zeros((1, N_TORSION_BINS))
    counts[0, :24] = 1000
    sine, cosine, _ = fit_series(counts, 1.0, 8)
    angle = np.radians(60)
    seen = np.radians(-120)

    def energy(x: float) -> float:
        orders = np.arange(1, 9)
        return float(sine[0] @ np.sin(orders * x) + cosine[0] @ np.cos(orders * x))

    assert energy(angle) - energy(seen) == pytest.approx(np.log(2001), abs=1.0)
