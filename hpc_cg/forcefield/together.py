"""The forces of one network on frames of several molecules at once.

On a processor each molecule is done by itself, so that nothing is computed for beads that are not there; only the grid
of filters, which depends on no molecule, is evaluated once for all. An accelerator waits for the next small operation
more than it computes, so there all frames are one batch, padded to the largest molecule. Both give the same forces and
gradients.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from hpc_cg.forcefield.grid import Grid
from hpc_cg.forcefield.schnet import SchNet


def forces_together(
    networks: Sequence[SchNet], positions: Sequence[Tensor], grid: Grid | None = None, half: bool = False
) -> list[Tensor]:
    """Forces on the frames of every molecule (each frame bead 3), in the better way for the device.

    networks   of the molecules, all with the same parameters; grid and half as for ``SchNet.forward``
    """
    way = side_by_side if positions[0].device.type == "cpu" else padded
    return way(networks, positions, grid, half)


def side_by_side(
    networks: Sequence[SchNet], positions: Sequence[Tensor], grid: Grid | None, half: bool
) -> list[Tensor]:
    """Molecule by molecule, with filters evaluated once."""
    seen = [network.geometry(frames) for network, frames in zip(networks, positions, strict=True)]
    convolutions = networks[0].convolutions_of([one.distances for one in seen], grid)
    triples = zip(networks, seen, convolutions, strict=True)
    return [network.evaluate(one, blocks, half).forces for network, one, blocks in triples]


def padded(networks: Sequence[SchNet], positions: Sequence[Tensor], grid: Grid | None, half: bool) -> list[Tensor]:
    """All frames as one batch, with empty places where a molecule has fewer beads than the largest."""
    widest = max(frames.shape[1] for frames in positions)
    wide = torch.cat([functional.pad(frames, (0, 0, 0, widest - frames.shape[1])) for frames in positions])
    types = torch.cat(
        [
            functional.pad(network.types, (0, widest - len(network.types)), value=-1).expand(len(frames), -1)
            for network, frames in zip(networks, positions, strict=True)
        ]
    )
    found = networks[0].padded(wide, types, grid, half).forces.split([len(frames) for frames in positions])
    return [forces[:, : frames.shape[1]] for forces, frames in zip(found, positions, strict=True)]
