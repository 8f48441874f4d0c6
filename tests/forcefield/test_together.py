"""One network on frames of several molecules: side by side and padded, the forces and gradients of each alone."""

import pytest
import torch
from test_padded import COMPILED, CONFIG, MOLECULES, shared

from hpc_cg.forcefield.grid import Grid
from hpc_cg.forcefield.schnet import SchNet
from hpc_cg.forcefield.together import forces_together, padded, side_by_side

WAYS = [None, Grid(64), Grid(64, all_knots=True), pytest.param(Grid(64, True), marks=COMPILED)]


def networks() -> list[SchNet]:
    """Of the molecules, with the parameters of the first."""
    first = SchNet(MOLECULES[0], CONFIG, n_types=5).double()
    first.load_state_dict(shared().state_dict())
    return [first, *(first.beside(types).double() for types in MOLECULES[1:])]


def frames() -> list[torch.Tensor]:
    """Another number of frames of each molecule."""
    generator = torch.Generator().manual_seed(2)
    sizes = zip((3, 5, 2), MOLECULES, strict=True)
    return [0.2 * torch.randn(n, len(types), 3, generator=generator, dtype=torch.float64) for n, types in sizes]


def gradient(of: SchNet) -> torch.Tensor:
    found = torch.cat([parameter.grad.flatten() for parameter in of.parameters() if parameter.grad is not None])
    of.zero_grad()
    return found


@pytest.mark.parametrize("grid", WAYS)
@pytest.mark.parametrize("way", [side_by_side, padded])
def test_forces_and_gradients_are_those_of_each_molecule_alone(way, grid) -> None:
    made, positions = networks(), frames()
    alone = [network(part, grid).forces for network, part in zip(made, positions, strict=True)]
    sum(forces.square().mean() for forces in alone).backward()
    wanted = gradient(made[0])
    together = way(made, positions, grid, False)
    sum(forces.square().mean() for forces in together).backward()
    for one, two in zip(alone, together, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient(made[0]), wanted, rtol=1e-9, atol=1e-9)


def test_the_network_of_another_molecule_has_the_very_same_parameters() -> None:
    first, other, _ = networks()
    assert [id(p) for p in first.parameters()] == [id(p) for p in other.parameters()]
    with torch.no_grad():
        first.embedding.weight += 1.0
    positions = frames()[1]
    assert torch.equal(forces_together([other], [positions])[0], other(positions).forces)
    assert len(first.embedding.weight) == 5
