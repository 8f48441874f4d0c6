import math

import pytest
import torch

from hpc_cg.forcefield.schnet import RadialBasis, SchNet, SchNetConfig

SMALL = SchNetConfig(n_rbf=8, n_filters=16, n_blocks=3, terminal_widths=(12, 6))


def network(types: tuple[int, ...] = (0, 1, 2, 3, 4, 5), config: SchNetConfig = SMALL) -> SchNet:
    made = SchNet(types, config, seed=5).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in made.named_parameters():
            if name.endswith("bias"):
                value.copy_(0.3 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return made


def rotation() -> torch.Tensor:
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64))
    return turn * torch.linalg.det(turn)


def test_radial_basis_is_its_definition():
    basis, d, k = RadialBasis(1.5, 20).double(), 0.37, 6
    mu = math.exp(-5) + (1 - math.exp(-5)) * k / 19
    beta = (2 / 20 * (1 - math.exp(-5))) ** -2
    envelope = 0.5 * (math.cos(math.pi * d / 1.5) + 1)
    wanted = envelope * math.exp(-beta * (math.exp(-5 * d / 1.5) - mu) ** 2)
    found = basis(torch.tensor([[d]], dtype=torch.float64)).value[0, 0, k]
    assert float(found) == pytest.approx(wanted, rel=1e-6)


def test_radial_basis_does_not_know_the_unit_of_length():
    d = torch.linspace(0.1, 1.4, 9, dtype=torch.float64)[:, None]
    assert torch.allclose(RadialBasis(1.5, 20).double()(d).value, RadialBasis(15.0, 20).double()(10 * d).value)


def test_filters_carry_their_own_derivative_and_vanish_at_the_cutoff():
    made, d = network(), torch.linspace(0.05, 1.45, 40, dtype=torch.float64)[:, None]
    for here, up, down in zip(made.filters(d), made.filters(d + 1e-6), made.filters(d - 1e-6), strict=True):
        assert torch.allclose(here.slope, (up.value - down.value) / 2e-6, rtol=1e-5, atol=1e-7)
    for kernel in made.filters(torch.tensor([[1.5], [2.5]], dtype=torch.float64)):
        assert not kernel.value.any() and not kernel.slope.any()


def test_forces_are_minus_the_gradient_of_the_energy(positions):
    made, x = network(), positions.clone().requires_grad_()
    energy, forces = made(x)
    (gradient,) = torch.autograd.grad(energy.sum(), x)
    assert (forces + gradient).norm() / gradient.norm() < 1e-12
    shift = torch.zeros_like(positions)
    shift[:, 2, 1] = 1e-5
    slope = (made(positions + shift).energy - made(positions - shift).energy) / 2e-5
    assert torch.allclose(-slope, forces[:, 2, 1], rtol=1e-6)


def test_training_gradient_equals_that_of_double_differentiation(positions):
    made, target = network(), torch.ones_like(positions)
    loss = (made(positions).forces - target).square().mean()
    direct = torch.autograd.grad(loss, list(made.parameters()))
    x = positions.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(made(x).energy.sum(), x, create_graph=True)
    twice = torch.autograd.grad((-gradient - target).square().mean(), list(made.parameters()))
    for one, two in zip(direct, twice, strict=True):
        assert torch.allclose(one, two, rtol=1e-8, atol=1e-12)


def test_turning_and_shifting_turns_the_forces_and_keeps_the_energy(positions):
    made, turn = network(), rotation()
    energy, forces = made(positions)
    moved_energy, moved_forces = made(positions @ turn.T + torch.tensor([5.0, -3.0, 2.0]))
    assert torch.allclose(energy, moved_energy, rtol=1e-10)
    assert torch.allclose(forces @ turn.T, moved_forces, rtol=1e-8, atol=1e-8)
    assert forces.sum(1).abs().max() < 1e-9


def test_beads_of_one_type_can_be_exchanged(positions):
    made, order = network((0, 1, 1, 2, 1, 0)), [5, 4, 1, 3, 2, 0]
    energy, forces = made(positions)
    swapped = made(positions[:, order])
    assert torch.allclose(energy, swapped.energy) and torch.allclose(forces[:, order], swapped.forces)
    unlike = network()(positions[:, order]).energy
    assert not torch.allclose(network()(positions).energy, unlike)


def test_beads_beyond_the_cutoff_feel_nothing(positions):
    far = positions.clone()
    far[:, 5] += 10.0
    assert not network()(far).forces[:, 5].any()


def test_beads_in_one_place_give_numbers():
    energy, forces = network()(torch.zeros(2, 6, 3, dtype=torch.float64))
    assert energy.isfinite().all() and forces.isfinite().all()


def test_the_same_seed_draws_the_same_network_whatever_was_drawn_before():
    torch.manual_seed(1)
    first = SchNet((0, 1), SMALL, seed=9)
    torch.rand(7)
    second, third = SchNet((0, 1), SMALL, seed=9), SchNet((0, 1), SMALL, seed=10)
    assert torch.equal(first.blocks[1].mix.weight, second.blocks[1].mix.weight)
    assert not torch.equal(first.blocks[1].mix.weight, third.blocks[1].mix.weight)
    assert not first.blocks[0].mix.bias.any() and first.last.bias is None


def test_papers_alanine_network_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in SchNet(tuple(range(6)), SchNetConfig()).parameters()) == 154_368
