"""The molecules that one network is trained on, each with its priors and its frames; usually one.

Molecules share a vocabulary of bead types, the rows of the network's embedding. Each step has a batch of each one's own
feed, and the loss is the mean over molecules of each one's loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hpc_cg.forcefield.forcefield import ForceField
from hpc_cg.learning.feed import Feed
from hpc_cg.randomness import stream


@dataclass(frozen=True)
class Member:
    """One molecule of a training.

    forcefield   its priors, and the network that all members share
    seed         of all that is drawn for it
    """

    name: str
    forcefield: ForceField
    feed: Feed
    seed: int


def vocabulary(names: Sequence[Sequence[str]]) -> tuple[dict[str, int], list[tuple[int, ...]]]:
    """A number for each type name of all molecules, in alphabetical order, and the numbers of each molecule's beads."""
    rows = {name: row for row, name in enumerate(sorted({name for beads in names for name in beads}))}
    return rows, [tuple(rows[name] for name in beads) for beads in names]


def seed_of(seed: int, molecule: str) -> int:
    """The seed of one of several molecules: what is drawn for it has nothing to do with what is for another."""
    return int(stream(seed, f"molecule {molecule}").integers(2**62))
