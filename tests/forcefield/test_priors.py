import numpy as np
import torch
from torch.func import jacrev

from hpc_cg.beads import BeadSystem
from hpc_cg.forcefield.coordinates import PriorParameters, internal_coordinates
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
