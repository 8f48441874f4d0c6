"""Milliseconds of a training step on one core and on all, beside slower ways to it and the arithmetic peak.

A step is the loss on delta forces, its gradient and AdamW. Four ways: filters on a grid with compiled pairs, as stage
train does it; the same with tensor operations; the network's own filters with forces written out; and the usual way,
which differentiates the energy by the positions and then the loss through that. All have to give the same forces before
anything is timed. "of peak" is the rate of the first way's matrix products over that of one large product, in the same
run. With --mlcg PATH, the checkout of that library, a step of its CGSchNet of the same shape is timed too.

Frames are folded chains with thermal noise: all beads within a few bonds of one another, distances of all lengths.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measure import DEVICE, MOLECULES, Molecule, machine, matrix_flops, mlcg_network, peak_flops, print_table, seconds
from torch import Tensor

from hpc_cg.forcefield import fused
from hpc_cg.forcefield.grid import Grid
from hpc_cg.forcefield.schnet import SchNet
from hpc_cg.learning.loss import sum_of_squares
from hpc_cg.stages.train import TrainConfig

BATCHES = {6: (128, 512), 10: (128, 512), 20: (128, 512), 56: (16,)}
AGREEMENT = 1e-3
"""Largest difference of any two ways' forces, relative to their rms."""

LONGEST = 30_000
"""Pairs times frames beyond which the usual way, which would take minutes, is left out."""

ROW, LAYER = 5, 20
"""Beads in a row and in a layer of a folded chain."""


def folded(molecule: Molecule, n_frames: int) -> Tensor:
    """Frames of a chain that is folded to and fro, (frame bead 3), nm."""
    order = np.arange(len(molecule.beads))
    row, layer = order % LAYER // ROW, order // LAYER
    along = np.where(row % 2, ROW - 1 - order % ROW, order % ROW)
    noise = np.random.default_rng(1).normal(0.0, 0.15, (n_frames, len(order), 3))
    frames = molecule.bond_nm * (np.stack((along, row, layer), 1) + noise)
    return torch.from_numpy(frames.astype(np.float32)).to(DEVICE)


def energy(network: SchNet, positions: Tensor) -> Tensor:
    """The energy of the network, kJ/mol, in ordinary tensor operations over all pairs."""
    i, j = network.first, network.second
    distances = (positions[:, j] - positions[:, i]).square().sum(-1).sqrt()
    envelope = 0.5 * (1.0 + torch.cos(distances * (torch.pi / network.basis.cutoff)))[..., None]
    decay = torch.exp(-network.basis.alpha * distances)[..., None]
    basis = envelope * torch.exp(-network.basis.beta * (decay - network.basis.centres).square())
    x = network.embedding(network.types).expand(len(positions), -1, -1)
    for block in network.blocks:
        kernel = block.filter_out(torch.tanh(block.filter_in(basis))) * envelope
        sent = block.inward(x)
        received = torch.zeros_like(sent).index_add(1, i, kernel * sent[:, j]).index_add(1, j, kernel * sent[:, i])
        x = x + block.outward(torch.tanh(block.mix(received)))
    for layer in network.readout:
        x = torch.tanh(layer(x))
    return network.config.energy_unit * network.last(x).sum((1, 2))


def differentiated_forces(network: SchNet, positions: Tensor) -> Tensor:
    """Forces as the gradient of the energy, kept in the graph."""
    moving = positions.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(energy(network, moving).sum(), moving, create_graph=True)
    return -gradient


def stepper(parameters: list[Tensor], forces: Callable[[Tensor], Tensor], positions: Tensor) -> Callable[[], None]:
    """A call that makes one training step with the given way to forces."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
    label, weights = torch.randn_like(positions), positions.new_ones(len(positions))

    def work() -> None:
        optimizer.zero_grad(set_to_none=True)
        (sum_of_squares(label - forces(positions), weights) / len(positions)).backward()
        optimizer.step()

    return work


def mlcg_step(path: Path, molecule: Molecule, positions: Tensor) -> Callable[[], None]:
    """A call that makes one training step of the peer (Angstrom, kcal/mol), with its own way to forces."""
    model, batch = mlcg_network(path, molecule, positions)
    model.train()

    def forces(positions: Tensor) -> Tensor:
        batch.pos, batch.out = (10 * positions).reshape(-1, 3), {}
        return model(batch).out[model.name]["forces"].view_as(positions)

    return stepper(list(model.parameters()), forces, positions)


def ways_to_forces(network: SchNet) -> list[Callable[[Tensor], Tensor]]:
    """Compiled pairs on a grid (tensor operations where there is no compiler), tensor operations, exact, and twice."""
    knots, on_cpu = TrainConfig(n_rbf=network.config.n_rbf).n_intervals, DEVICE.type == "cpu"
    grids = [Grid(knots, on_cpu and fused.available(), not on_cpu), Grid(knots, False, not on_cpu), None]
    written = [lambda x, grid=grid: network(x, grid).forces for grid in grids]
    return [*written, lambda x: differentiated_forces(network, x)]


def row(molecule: Molecule, batch_size: int, peak: float, mlcg: Path | None) -> list[str]:
    network, positions = molecule.forcefield().network, folded(molecule, batch_size)
    ways = ways_to_forces(network)
    few = positions[:4]
    forces = torch.stack([way(few).detach() for way in ways])
    difference = float((forces - forces[-1]).abs().max() / forces[-1].square().mean().sqrt())
    assert difference < AGREEMENT, f"two ways to the forces differ by {difference:.1e}"

    steps = [stepper(list(network.parameters()), way, positions) for way in ways]
    slow = batch_size * len(network.first) > LONGEST
    times = [seconds(work, at_most_s=1.0) for work in steps[: 3 if slow else 4]]
    share = matrix_flops(steps[0]) / times[0] / peak
    cells = [f"{molecule.name}, batch {batch_size}", *(f"{1e3 * time:,.1f}" for time in times)]
    cells += ["-", "-"] if slow else [f"{times[3] / times[0]:.1f}"]
    cells += [f"{share:.0%}", f"{batch_size / times[0]:,.0f}"]
    if mlcg is not None:
        peer = seconds(mlcg_step(mlcg, molecule, positions), at_most_s=1.0)
        cells += [f"{1e3 * peer:,.1f}", f"{peer / times[0]:.1f}"]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mlcg", type=Path, metavar="PATH", help="checkout of mlcg, to time beside")
    mlcg: Path | None = parser.parse_args().mlcg
    header = ["milliseconds per step", "compiled", "torch", "exact", "twice", "twice/compiled", "of peak", "frames/s"]
    header += ["mlcg", "mlcg/compiled"] if mlcg is not None else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else torch.get_num_threads()
    for n_threads in sorted({1, cores}):
        torch.set_num_threads(n_threads)
        peak = peak_flops()
        rows = [row(m, size, peak, mlcg) for m in MOLECULES for size in BATCHES[len(m.beads)]]
        print_table(f"training on {machine()}; float32 product at {peak / 1e9:,.0f} GFLOP/s", header, rows)


if __name__ == "__main__":
    main()
