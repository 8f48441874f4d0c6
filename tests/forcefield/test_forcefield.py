import copy
import json

import torch

from hpc_cg.forcefield.forcefield import ForceField


def test_network_without_weights_leaves_the_prior(forcefield: ForceField, positions: torch.Tensor):
    with torch.no_grad():
        for value in forcefield.network.parameters():
            value.zero_()
    found, prior = forcefield(positions), forcefield.prior(positions)
    assert torch.equal(found.energy, prior.energy) and torch.equal(found.forces, prior.forces)
    assert not forcefield.delta(positions).any()


def test_forces_are_the_gradient_of_prior_and_network_together(forcefield: ForceField, positions: torch.Tensor):
    shift = torch.zeros_like(positions)
    shift[:, 3, 0] = 1e-6
    slope = (forcefield(positions + shift).energy - forcefield(positions - shift).energy) / 2e-6
    forces = forcefield(positions).forces
    assert torch.allclose(-slope, forces[:, 3, 0], rtol=1e-5)
    assert torch.allclose(forces, forcefield.prior_forces(positions) + forcefield.delta(positions))


def test_only_the_network_is_trained(forcefield: ForceField, positions: torch.Tensor):
    assert all(name.startswith("network.") for name, _ in forcefield.named_parameters())
    forcefield.delta(positions).square().mean().backward()
    assert all(value.grad is not None for value in forcefield.parameters())


def test_description_and_weights_rebuild_the_force_field(forcefield: ForceField, positions: torch.Tensor):
    described = forcefield.describe()
    assert json.loads(json.dumps(described)) == described
    again = ForceField.from_description(described).double()
    again.load_state_dict(copy.deepcopy(forcefield.state_dict()))
    assert torch.equal(again(positions).forces, forcefield(positions).forces)
    assert again.system == forcefield.system and again.config == forcefield.config
