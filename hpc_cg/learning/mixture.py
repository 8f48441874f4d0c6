"""Batches of several molecules: each with its feed and its priors, padded to the largest, for one network.

The molecules share a vocabulary of bead types, the rows of the network's embedding. Delta forces are made before frames
are put together, because priors belong to a molecule. Where a frame has no bead, its type is -1, its position and its
delta force are zero, and it counts neither in the loss nor in the network.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hpc_cg.forcefield.prediction import Prediction
from hpc_cg.learning.feed import Feed, Labelled


@dataclass(frozen=True)
class Member:
    """One molecule of a mixture: where its frames come from, what its priors say, its beads' rows in the vocabulary."""

    feed: Feed
    prior: Callable[[Tensor], Prediction]
    types: tuple[int, ...]


@dataclass(frozen=True)
class Padded:
    """Frames of several molecules, nm and kJ/mol/nm; types are -1 where there is no bead."""

    positions: Float[Tensor, "frame bead 3"]
    delta: Float[Tensor, "frame bead 3"]
    types: Int[Tensor, "frame bead"]
    weights: Float[Tensor, "frame"]


def vocabulary(names: Sequence[Sequence[str]]) -> tuple[dict[str, int], list[tuple[int, ...]]]:
    """A number for each type name of all molecules, in alphabetical order, and the numbers of each molecule's beads."""
    rows = {name: row for row, name in enumerate(sorted({name for beads in names for name in beads}))}
    return rows, [tuple(rows[name] for name in beads) for beads in names]


def pad(parts: Sequence[tuple[Labelled, Member]]) -> Padded:
    """Put labelled frames of several molecules together; labels become delta forces."""
    widest = max(len(member.types) for _, member in parts)
    columns: tuple[list[Tensor], ...] = ([], [], [], [])
    for frames, member in parts:
        with torch.no_grad():
            delta = frames.forces - member.prior(frames.positions).forces
        empty = widest - len(member.types)
        types = torch.tensor((*member.types, *[-1] * empty), device=delta.device).expand(len(delta), -1)
        wide = (torch.nn.functional.pad(x, (0, 0, 0, empty)) for x in (frames.positions, delta))
        for column, value in zip(columns, (*wide, types, frames.weights), strict=True):
            column.append(value)
    return Padded(*(torch.cat(column) for column in columns))


def squares_of(difference: Float[Tensor, "frame bead 3"], batch: Padded) -> Float[Tensor, ""]:
    """Sum over frames of weight times the mean square over the beads that there are, and axes."""
    n_beads = (batch.types >= 0).sum(1)
    return (difference.square().sum((1, 2)) / (3 * n_beads) * batch.weights).sum()


@dataclass(frozen=True)
class Mixture:
    """Several molecules trained on together: each step has the batch of each molecule's own feed."""

    members: tuple[Member, ...]

    def train(self, step: int) -> Padded:
        """This process's part of the batches of a step."""
        return pad([(member.feed.train(step), member) for member in self.members])

    @property
    def total_weight(self) -> float:
        """Mean weight of the frames of a step's whole batch, per frame of each feed."""
        return sum(member.feed.mean_weight for member in self.members) / len(self.members)
