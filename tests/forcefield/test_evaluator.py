import pytest
import torch

from hpc_cg.forcefield.evaluator import TabulatedNetwork, evaluator, table_error
from hpc_cg.forcefield.forcefield import ForceField
from hpc_cg.forcefield.pairs import gather
from hpc_cg.forcefield.schnet import SchNetConfig


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    wanted = wanted.detach()
    return float((found.double() - wanted).norm() / wanted.norm())


def biased(forcefield: ForceField) -> ForceField:
    """The same with biases that are not zero, as after training."""
    with torch.no_grad():
        for name, value in forcefield.named_parameters():
            if name.endswith("bias"):
                value.copy_(torch.linspace(-0.5, 0.7, len(value)))
    return forcefield


@pytest.mark.parametrize("config", [SchNetConfig(), SchNetConfig(0.4, 12, 24, 3, (16, 8)), SchNetConfig(n_blocks=1)])
def test_tabulated_forces_are_the_exact_ones(alanine, prior_parameters, frames, config):
    forcefield = biased(ForceField(alanine, prior_parameters, config, seed=2)).double()
    positions = torch.tensor(frames[:64])
    wanted = forcefield(positions)
    found = evaluator(forcefield, torch.float32)(positions.float())
    assert relative(found.forces, wanted.forces) < 1e-5
    assert float((found.energy.double() - wanted.energy.detach()).abs().max()) < 5e-3
    assert table_error(forcefield, positions) < 1e-4


def test_untabulated_evaluator_is_the_force_field(forcefield, frames):
    positions = torch.tensor(frames[:64])
    wanted = forcefield(positions).forces
    assert relative(evaluator(forcefield, torch.float64, False)(positions).forces, wanted) == 0
    assert relative(evaluator(forcefield, torch.float32, False)(positions.float()).forces, wanted) < 3e-6


def test_tabulated_forces_are_the_gradient_of_the_tabulated_energy(forcefield, positions):
    coarse = TabulatedNetwork(forcefield.network, torch.float64, 128)
    shift = torch.zeros_like(positions)
    shift[:, 2, 0] = 1e-7
    slope = (coarse(positions + shift).energy - coarse(positions - shift).energy) / 2e-7
    assert torch.allclose(-slope, coarse(positions).forces[:, 2, 0], rtol=1e-4, atol=1e-4)


def test_sums_for_an_accelerator_are_those_over_pairs(forcefield):
    network = TabulatedNetwork(forcefield.network, torch.float64, 128)
    kernel, x = torch.randn(15, 3, 8, dtype=torch.float64), torch.randn(6, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(network.summed(kernel, x), gather(kernel, x))


def test_table_gets_better_with_knots(forcefield, positions):
    errors = [table_error(forcefield, positions, n_knots) for n_knots in (64, 128, 256)]
    assert errors[0] > 4 * errors[1] > 16 * errors[2]


def test_pairs_beyond_the_cutoff_and_frames_without_numbers_disturb_nobody(forcefield, positions):
    evaluate = evaluator(forcefield, torch.float64)
    wanted = evaluate(positions).forces
    odd = positions.clone()
    odd[1, 2, 0], odd[3] = float("nan"), 1e30
    found = evaluate(odd).forces
    assert torch.equal(found[[0, 2, 4]], wanted[[0, 2, 4]])
    assert not found[1].isfinite().all()


def test_evaluator_does_not_follow_later_training_and_holds_no_graph(forcefield, positions):
    evaluate = evaluator(forcefield, torch.float64, tabulated=False)
    before = evaluate(positions).forces
    assert not before.requires_grad
    with torch.no_grad():
        forcefield.network.last.weight.mul_(2)
    assert torch.equal(evaluate(positions).forces, before)
    assert all(value.requires_grad for value in forcefield.parameters())
