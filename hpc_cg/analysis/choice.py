"""Which numbers of a frame its slow motion is looked for in: distances of pairs, and dihedrals.

By default every pair of beads and every dihedral along the bonds, as for Cα chains in arXiv 2302.00600. There dihedrals
are taken raw, and jump by 2π at ±π; here each is its cosine and its sine unless asked for otherwise.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float, Float64

from hpc_cg.analysis.features import bond_lengths, dihedral
from hpc_cg.beads import BeadSystem
from hpc_cg.errors import UnknownBeads


@dataclass(frozen=True)
class Choice:
    """Features of a molecule.

    pairs       of beads, whose distance is one feature each, nm
    dihedrals   quadruples of beads, each a cosine and a sine
    raw         dihedrals as angles in rad instead, one feature each
    """

    pairs: tuple[tuple[int, int], ...]
    dihedrals: tuple[tuple[int, int, int, int], ...] = ()
    raw: bool = False

    def __post_init__(self) -> None:
        if not self.pairs and not self.dihedrals:
            raise UnknownBeads("features of slow motion", "neither a pair nor a dihedral", "name at least one")

    @staticmethod
    def every(system: BeadSystem, raw: bool = False) -> "Choice":
        """All pairs and all dihedrals of a molecule."""
        return Choice(apart(system.n_beads, 1), system.dihedrals, raw)

    @property
    def n_features(self) -> int:
        return len(self.pairs) + len(self.dihedrals) * (1 if self.raw else 2)

    def of(self, positions: Float[np.ndarray, "frame bead 3"]) -> Float64[np.ndarray, "frame feature"]:
        """The features of frames; raises UnknownBeads where a bead is none of theirs."""
        beads = {bead for group in (*self.pairs, *self.dihedrals) for bead in group}
        if not all(0 <= bead < positions.shape[1] for bead in beads):
            raise UnknownBeads(
                f"features of the beads {min(beads)} to {max(beads)}",
                f"beads 0 to {positions.shape[1] - 1}",
                "name pairs and dihedrals of these beads",
            )
        angles = [dihedral(positions, one) for one in self.dihedrals]
        turned = angles if self.raw else [part for one in angles for part in (np.cos(one), np.sin(one))]
        return np.column_stack([bond_lengths(positions, self.pairs), *turned])


def apart(n_beads: int, separation: int) -> tuple[tuple[int, int], ...]:
    """Pairs of beads at least so many places apart along the chain."""
    return tuple((i, j) for i, j in combinations(range(n_beads), 2) if j - i >= separation)
