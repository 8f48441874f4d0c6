"""Atoms around beads: a conformer of all atoms laid over a frame of beads that each sit on one atom.

Of a set of conformers the one is taken whose own beads come nearest by a turn and a shift,

    min over R, t of Σ_b |R x_b + t − y_b|²,

without reflections (Kabsch 1976, doi 10.1107/S0567739476001873). It is moved over as a whole, and then the atoms of the
beads are put where the beads are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

from hpc_cg.errors import InvalidMap

ASKED = "atoms rebuilt around the beads"
INSTEAD = "choose a map of single atoms, such as alanine-six, calpha or five-bead, or set aggregate.backmap_frames = 0"


@dataclass(frozen=True)
class Conformers:
    """Frames of all atoms (nm) that rebuilding starts from, and the atom that each bead is."""

    positions: Float[np.ndarray, "conformer atom 3"]
    beads: Int64[np.ndarray, "bead"]

    def around(self, beads: Float[np.ndarray, "bead 3"]) -> Float64[np.ndarray, "atom 3"]:
        """The nearest conformer over the beads (nm), which are exactly where they are given."""
        target = beads.astype(np.float64)
        middle = target.mean(axis=0)
        own = self.positions[:, self.beads].astype(np.float64)
        centres = own.mean(axis=1, keepdims=True)
        left, strength, right = np.linalg.svd(np.swapaxes(own - centres, 1, 2) @ (target - middle))
        hand = np.sign(np.linalg.det(left @ right))
        overlap = strength[:, 0] + strength[:, 1] + hand * strength[:, 2]
        nearest = int(np.argmin(np.sum((own - centres) ** 2, axis=(1, 2)) - 2 * overlap))
        turn = left[nearest] * np.array([1.0, 1.0, hand[nearest]]) @ right[nearest]
        placed = (self.positions[nearest].astype(np.float64) - centres[nearest]) @ turn + middle
        placed[self.beads] = target
        return placed


def bead_atoms(coordinate: Float64[np.ndarray, "bead atom"] | None, names: Sequence[str]) -> Int64[np.ndarray, "bead"]:
    """The atom that each bead of a map is.

    coordinate   matrix of the map; None for archives of beads, which know no atoms
    names        of the beads
    Raises InvalidMap where a bead is no single atom, or two beads are the same.
    """
    if coordinate is None:
        raise InvalidMap(ASKED, "an archive of beads, which says nothing of atoms", INSTEAD)
    several = np.flatnonzero(np.count_nonzero(coordinate, axis=1) != 1)
    if len(several):
        number = np.count_nonzero(coordinate[several[0]])
        raise InvalidMap(ASKED, f"the bead {names[several[0]]}, a centre of {number} atoms", INSTEAD)
    atoms = np.argmax(coordinate != 0, axis=1).astype(np.int64)
    if len(np.unique(atoms)) < len(atoms):
        raise InvalidMap(ASKED, "two beads on one atom", INSTEAD)
    return atoms
