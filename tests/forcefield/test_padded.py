"""Frames of molecules of different sizes in one batch are those of each molecule alone."""

import pytest
import torch

from hpc_cg.forcefield import fused
from hpc_cg.forcefield.grid import Grid
from hpc_cg.forcefield.schnet import SchNet, SchNetConfig

CONFIG = SchNetConfig(cutoff_nm=0.6, n_rbf=8, n_filters=16, n_blocks=3, terminal_widths=(12,))
MOLECULES = ((0, 1, 2, 3), (3, 3, 1), (4, 0, 2, 1, 3, 0, 2))
COMPILED = [pytest.mark.compiler, pytest.mark.skipif(not fused.available(), reason="no C compiler")]
WAYS = [None, Grid(64), pytest.param(Grid(64, True), marks=COMPILED)]


def shared() -> SchNet:
    made = SchNet(tuple(range(5)), CONFIG, seed=4).double()
    with torch.no_grad():
        for name, value in made.named_parameters():
            if name.endswith("bias"):
                value.copy_(torch.linspace(-0.4, 0.6, len(value)))
    return made


def alone(types: tuple[int, ...]) -> SchNet:
    """The network of one molecule with the shared weights."""
    made = SchNet(types, CONFIG).double()
    state = shared().state_dict()
    state["embedding.weight"] = state["embedding.weight"][: max(types) + 1]
    made.load_state_dict(state)
    return made


def batch(filler: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Two frames of each molecule, padded with positions that mean nothing."""
    generator = torch.Generator().manual_seed(2)
    positions, types = torch.full((6, 7, 3), filler, dtype=torch.float64), torch.full((6, 7), -1)
    for number, molecule in enumerate(MOLECULES):
        rows = slice(2 * number, 2 * number + 2)
        drawn = torch.randn(2, len(molecule), 3, generator=generator, dtype=torch.float64)
        positions[rows, : len(molecule)] = 0.2 * drawn
        types[rows, : len(molecule)] = torch.tensor(molecule)
    return positions, types


@pytest.mark.parametrize("grid", WAYS)
@pytest.mark.parametrize("filler", [0.0, 0.1, float("nan")])
def test_padded_frames_have_the_energy_and_forces_of_each_molecule_alone(grid, filler):
    positions, types = batch(filler)
    energy, forces = shared().padded(positions, types, grid)
    for number, molecule in enumerate(MOLECULES):
        rows, n_beads = slice(2 * number, 2 * number + 2), len(molecule)
        wanted = alone(molecule)(positions[rows, :n_beads], grid)
        assert torch.allclose(energy[rows], wanted.energy, rtol=1e-12)
        assert torch.allclose(forces[rows, :n_beads], wanted.forces, rtol=1e-10, atol=1e-10)
        assert not forces[rows, n_beads:].any()


@pytest.mark.parametrize("grid", WAYS)
def test_gradients_of_padded_frames_are_the_sum_over_molecules(grid):
    positions, types = batch(0.05)
    together = shared()
    (together.padded(positions, types, grid).forces.square().sum()).backward()
    total = torch.zeros_like(together.blocks[1].mix.weight)
    embedding = torch.zeros_like(together.embedding.weight)
    for number, molecule in enumerate(MOLECULES):
        one = alone(molecule)
        one(positions[2 * number : 2 * number + 2, : len(molecule)], grid).forces.square().sum().backward()
        total += one.blocks[1].mix.weight.grad
        embedding[: max(molecule) + 1] += one.embedding.weight.grad
    assert torch.allclose(together.blocks[1].mix.weight.grad, total, rtol=1e-9, atol=1e-9)
    assert torch.allclose(together.embedding.weight.grad, embedding, rtol=1e-9, atol=1e-9)
