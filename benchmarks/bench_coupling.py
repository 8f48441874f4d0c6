"""Frames a second of draws of a coupling flow with both scores, on one core, beside the plain way and the peak.

The plain way draws without a graph, then differentiates the log-density at what was drawn: each network runs forwards
twice and backwards once. ``draw`` gathers them on the way, once and once. Both have to give the same scores before
anything is timed. Times are of the process, so that what else runs on the machine counts less; "of peak" is the rate of
the matrix products of ``draw`` over that of one large product.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from measure import DEVICE, MOLECULES, Molecule, machine, matrix_flops, peak_flops, print_table, seconds
from torch import Tensor

from hpc_cg.kernels.attention import ALANINE_LENGTH_SCALES_NM, CALPHA_LENGTH_SCALES_NM
from hpc_cg.kernels.coupling import PUBLISHED, CouplingConfig, CouplingFlow
from hpc_cg.kernels.density import normals
from hpc_cg.randomness import stream

SIGMA_NM = 0.005
N_FRAMES = 128
AGREEMENT = 1e-3
"""Largest difference of the two ways' scores, relative to their rms."""


def flow_of(molecule: Molecule, config: CouplingConfig) -> tuple[CouplingFlow, Tensor]:
    """A flow with some random numbers in its last layers, and frames to draw from."""
    target = torch.from_numpy(molecule.positions(N_FRAMES)).to(DEVICE)
    condition = target + SIGMA_NM * normals(stream(1, "bench"), target)
    flow = CouplingFlow.of(target, condition, config, 0).to(DEVICE)
    with torch.no_grad():
        for layer in flow.layers:
            for network in (layer.scale, layer.shift):
                network.last.weight.add_(0.01 * normals(stream(2, "bench"), network.last.weight))
    return flow, condition


def plain(flow: CouplingFlow, condition: Tensor, key: np.random.Generator) -> Tensor:
    """The score of draws of a flow whose base has scale 1, by differentiating the log-density afterwards."""
    with torch.no_grad():
        context = flow.context(condition)
        base = normals(key, condition.new_empty(len(condition), 2, flow.n_beads, 3))
        moved, auxiliary = flow.from_base(base, context)
        positions = condition + flow.unit_nm * (moved[:, :, None] @ context.axes)[:, :, 0]
    leaves = positions.requires_grad_(), condition.detach().requires_grad_()
    again = flow.context(leaves[1])
    base, log_det = flow.to_base(flow.local(*leaves, again), auxiliary, again)
    joint = -0.5 * base.square().sum((1, 2, 3)) + log_det
    return torch.autograd.grad(joint.sum(), leaves)[0]


@torch.no_grad()
def forwards(flow: CouplingFlow, condition: Tensor) -> object:
    """The way from z, half of the matrix products of a draw: back through it there is one for each."""
    base = condition.new_zeros(len(condition), 2, flow.n_beads, 3)
    return flow.from_base(base, flow.context(condition))


def in_tiles(work: Callable[[Tensor], object], condition: Tensor, n_frames: int) -> None:
    for tile in condition.split(n_frames):
        work(tile)


def row(molecule: Molecule, config: CouplingConfig, name: str, peak: float) -> list[str]:
    flow, condition = flow_of(molecule, config)
    difference = flow.draw(condition, stream(3, "bench")).score - plain(flow, condition, stream(3, "bench"))
    relative = float(difference.abs().max() * flow.unit_nm)
    assert relative < AGREEMENT, f"the two ways' scores differ by {relative:.1e}"

    def draw() -> object:
        return flow.draw(condition, stream(4, "bench"))

    def plainly() -> object:
        n_frames = max(1, math.ceil(512 / flow.n_beads))
        return in_tiles(lambda tile: plain(flow, tile, stream(4, "bench")), condition, n_frames)

    fast, slow = (seconds(work, 3, 4.0, time.process_time) for work in (draw, plainly))
    share = 2.0 * matrix_flops(lambda: forwards(flow, condition)) / fast / peak
    n_parameters = sum(parameter.numel() for parameter in flow.parameters())
    label = f"{molecule.name}, {name}, {n_parameters / 1e6:.1f} M weights"
    rates = [
        f"{len(condition) / fast:,.0f}",
        f"{1e3 * fast / len(condition):.2f}",
        f"{1e3 * slow / len(condition):.2f}",
    ]
    return [label, *rates, f"{slow / fast:.2f}", f"{100 * share:.0f} %"]


def main() -> None:
    torch.set_num_threads(1)
    peak = peak_flops(time.process_time, 3)
    rows = []
    for molecule, scales in zip(MOLECULES[:2], (ALANINE_LENGTH_SCALES_NM, CALPHA_LENGTH_SCALES_NM), strict=True):
        small, published = (replace(config, length_scales_nm=scales) for config in (CouplingConfig(), PUBLISHED))
        rows += [row(molecule, small, "default size", peak), row(molecule, published, "published size", peak)]
    header = ("draw and both scores", "frames/s", "ms/frame", "plain ms", "times", "of peak")
    print_table(f"{machine()}, peak {peak / 1e9:.0f} GFLOP/s", header, rows)


if __name__ == "__main__":
    main()
