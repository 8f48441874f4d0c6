"""Frames per second of a training step, beside forces by automatic differentiation and the arithmetic peak.

A step is the loss on delta forces, its gradient and AdamW. The library writes forces out as a plain function of the
parameters, so the loss is differentiated once. The usual way, timed beside it, differentiates the energy by the
positions and then the loss through that. Both give the same forces, which is checked before anything is timed.
"""

from collections.abc import Callable

import torch
from measure import DEVICE, MOLECULES, Molecule, machine, matrix_flops, peak_flops, print_table, seconds
from torch import Tensor

from hpc_cg.forcefield.schnet import SchNet
from hpc_cg.learning.loss import sum_of_squares

BATCHES = (128, 256, 512)
AGREEMENT = 1e-3
"""Largest difference of the two paths' forces, relative to their rms."""


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


def stepper(network: SchNet, forces: Callable[[Tensor], Tensor], positions: Tensor) -> Callable[[], None]:
    """A call that makes one training step with the given way to forces."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6)
    label, weights = torch.randn_like(positions), positions.new_ones(len(positions))

    def work() -> None:
        optimizer.zero_grad(set_to_none=True)
        (sum_of_squares(label - forces(positions), weights) / len(positions)).backward()
        optimizer.step()

    return work


def row(molecule: Molecule, batch_size: int, peak: float) -> list[str]:
    network = molecule.forcefield().network
    positions = torch.from_numpy(molecule.positions(batch_size)).to(DEVICE)
    written, usual = network(positions).forces.detach(), differentiated_forces(network, positions).detach()
    difference = float((written - usual).abs().max() / usual.square().mean().sqrt())
    assert difference < AGREEMENT, f"the two paths to the forces differ by {difference:.1e}"

    one = stepper(network, lambda x: network(x).forces, positions)
    two = stepper(network, lambda x: differentiated_forces(network, x), positions)
    times = [seconds(work, at_most_s=1.0) for work in (one, two)]
    rates = [batch_size / time for time in times]
    share = matrix_flops(one) / times[0] / peak
    name = f"{molecule.name}, batch {batch_size}"
    return [name, f"{rates[0]:,.0f}", f"{rates[1]:,.0f}", f"{rates[0] / rates[1]:.1f}", f"{share:.0%}"]


def main() -> None:
    peak = peak_flops()
    header = ["frames per second", "written out", "double backward", "ratio", "of peak"]
    rows = [row(molecule, batch_size, peak) for molecule in MOLECULES[:2] for batch_size in BATCHES]
    print_table(f"training on {machine()}; float32 product at {peak / 1e9:,.0f} GFLOP/s", header, rows)


if __name__ == "__main__":
    main()
