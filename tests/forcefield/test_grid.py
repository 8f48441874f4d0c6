"""Filters on a grid: exact derivatives of what is interpolated, and the network's forces and gradients to 1e-4."""

import numpy as np
import pytest
import torch

from hpc_cg.errors import NoCompiler
from hpc_cg.forcefield import fused
from hpc_cg.forcefield.grid import Grid, interpolate, knots_for, table
from hpc_cg.forcefield.schnet import SchNet, SchNetConfig
from hpc_cg.stages.train import TrainConfig

CHAIN = SchNetConfig(cutoff_nm=3.0, n_rbf=128, terminal_widths=(128, 64))
SMALL = SchNetConfig(cutoff_nm=0.5, n_rbf=8, n_filters=24, n_blocks=3, terminal_widths=(12,))
needs_compiler = pytest.mark.skipif(not fused.available(), reason="no C compiler")


def places(n_beads: int, n_frames: int, bond_nm: float) -> torch.Tensor:
    """Frames of a folded chain, float64."""
    order = np.arange(n_beads)
    chain = bond_nm * np.stack((0.85 * (order % 5), 0.5 * (order % 2) + order // 5, 0.05 * order), 1)
    noise = np.random.default_rng(3).normal(0.0, 0.15 * bond_nm, (n_frames, n_beads, 3))
    return torch.tensor(chain + noise)


def network(n_beads: int, config: SchNetConfig, sharpness: float = 1.0) -> SchNet:
    """A network whose filters vary ``sharpness`` times as fast as fresh ones, with biases that are not zero."""
    made = SchNet(tuple(range(n_beads)), config, seed=2).double()
    with torch.no_grad():
        for block in made.blocks:
            block.filter_in.weight.mul_(sharpness)
            block.filter_in.bias.copy_(torch.linspace(-0.5, 0.5, config.n_filters))
    return made


def loss_and_gradient(made: SchNet, positions: torch.Tensor, grid: Grid | None) -> tuple[torch.Tensor, torch.Tensor]:
    target = torch.sin(torch.arange(positions.numel(), dtype=torch.float64)).view_as(positions)
    loss = (made(positions, grid).forces - target).square().mean()
    gradient = torch.autograd.grad(loss, list(made.parameters()))
    return loss.detach(), torch.cat([part.flatten() for part in gradient])


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).detach().norm() / wanted.detach().norm())


@pytest.mark.parametrize("sharpness", [1.0, 3.0])
@pytest.mark.parametrize(("n_beads", "bond_nm", "config"), [(6, 0.15, SchNetConfig()), (10, 0.38, CHAIN)])
def test_the_default_grid_gives_forces_to_a_ten_thousandth_and_their_gradients(n_beads, bond_nm, config, sharpness):
    made, positions = network(n_beads, config, sharpness), places(n_beads, 8, bond_nm)
    grid = Grid(TrainConfig(n_rbf=config.n_rbf).n_intervals)
    exact, found = made(positions).forces.detach(), made(positions, grid).forces.detach()
    assert float((found - exact).square().mean().sqrt()) < 1e-4 * float(exact.square().mean().sqrt())
    gradients = [loss_and_gradient(made, positions, one)[1] for one in (grid, None)]
    assert relative(*gradients) < 2e-4


@pytest.mark.parametrize(
    "grid",
    [Grid(64), Grid(64, all_knots=True), pytest.param(Grid(64, True), marks=[pytest.mark.compiler, needs_compiler])],
)
def test_gradients_on_a_coarse_grid_are_those_of_its_loss(grid):
    made, positions = network(6, SMALL), places(6, 5, 0.15)
    _, gradient = loss_and_gradient(made, positions, grid)
    kept = [value.detach().clone() for value in made.parameters()]
    along = torch.randn(len(gradient), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sides = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            pieces = along.split([value.numel() for value in kept])
            for value, start, piece in zip(made.parameters(), kept, pieces, strict=True):
                value.copy_(start + step * piece.view_as(start))
        sides.append(loss_and_gradient(made, positions, grid)[0])
    assert float(sides[0] - sides[1]) / 2e-6 == pytest.approx(float(gradient @ along), rel=1e-6)


@pytest.mark.parametrize("grid", [Grid(32), pytest.param(Grid(32, True), marks=[pytest.mark.compiler, needs_compiler])])
def test_forces_on_a_coarse_grid_are_minus_the_gradient_of_its_energy(grid):
    made, positions = network(6, SMALL), places(6, 5, 0.15)
    shift = torch.zeros_like(positions)
    shift[:, 2, 1] = 1e-6
    slope = (made(positions + shift, grid).energy - made(positions - shift, grid).energy) / 2e-6
    assert torch.allclose(-slope, made(positions, grid).forces[:, 2, 1], rtol=1e-6, atol=1e-6)
    moving = positions.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(made(moving, grid).energy.sum(), moving)
    assert relative(-gradient, made(positions, grid).forces.detach()) < 1e-12


@pytest.mark.compiler
@needs_compiler
@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("config", [SchNetConfig(cutoff_nm=0.45), SMALL, SchNetConfig(n_filters=7, n_blocks=1)])
def test_compiled_pairs_are_those_of_tensor_operations(config, n_threads):
    made, positions = network(7, config), places(7, 13, 0.15)
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        one, two = made(positions, Grid(200)), made(positions, Grid(200, compiled=True))
        gradients = [loss_and_gradient(made, positions, Grid(200, which))[1] for which in (False, True)]
    finally:
        torch.set_num_threads(before)
    assert relative(two.energy, one.energy) < 1e-12 and relative(two.forces, one.forces) < 1e-12
    assert relative(gradients[1], gradients[0]) < 1e-12


@pytest.mark.compiler
@needs_compiler
def test_compiled_pairs_work_in_single_precision():
    made, positions = network(6, SchNetConfig()).float(), places(6, 20, 0.15).float()
    wanted = made.double()(positions.double(), Grid(512)).forces.detach()
    assert relative(made.float()(positions, Grid(512, True)).forces.double(), wanted) < 5e-5


def test_only_knots_beside_distances_are_evaluated_and_none_beyond_the_cutoff():
    distances = torch.tensor([[0.101, 0.149], [0.9, 5.0]], dtype=torch.float64)
    knots, step, (row, part) = knots_for(distances, 1.0, Grid(10))
    assert torch.allclose(knots, torch.tensor([0.0, 0.1, 0.2, 0.9, 1.0], dtype=torch.float64))
    assert row[:, 0].tolist()[0] == 1 and row[1, 1] == -1
    inside = row >= 0
    assert torch.allclose(knots[row.long()][inside] + step * part[inside], distances[inside])


@pytest.mark.parametrize("grid", [Grid(64), pytest.param(Grid(64, True), marks=[pytest.mark.compiler, needs_compiler])])
def test_beads_beyond_the_cutoff_feel_nothing_and_no_number_stays_none(grid):
    made, far = network(6, SMALL), places(6, 4, 0.15)
    wanted = made(far, grid).forces[[0, 3]]
    far[1, 5] += 10.0
    far[2, 3, 0] = float("nan")
    found = made(far, grid).forces
    assert not found[1, 5].any() and found[1, :5].any()
    assert not found[2].isfinite().all()
    assert torch.equal(found[[0, 3]], wanted)
    alone = made(far[:1] * torch.arange(1.0, 7.0)[:, None] * 100, grid)
    assert not alone.forces.any() and alone.energy.isfinite()


def test_interpolation_is_exact_at_the_knots():
    made = network(6, SMALL)
    at = torch.linspace(0.0, 0.4, 5, dtype=torch.float64)[:, None] + 0.05
    knots, step, where = knots_for(at, 0.5, Grid(10))
    rows = [table(kernel, step) for kernel in made.filters(knots[:, None])]
    for kernel, row in zip(made.filters(at), rows, strict=True):
        value, slope = interpolate(row, where, step)
        assert torch.allclose(value, kernel.value) and torch.allclose(slope, kernel.slope)


def test_without_a_compiler_pairs_are_done_by_tensor_operations_and_that_is_said(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    for name in ("_library", "library"):  # without what was compiled before
        monkeypatch.setattr(fused, name, getattr(fused, name).__wrapped__)
    with pytest.warns(UserWarning, match='slower.*no-such-compiler.*train.pairs = "torch" needs none'):
        assert not fused.available()
    with pytest.raises(NoCompiler, match="compiled sums over pairs of beads"):
        fused.require()
