"""Internal coordinates of beads: bond lengths, angles, dihedrals, the handedness of a centre.

A dihedral of i, j, k, l is atan2(|b2| b1·(b2×b3), (b1×b2)·(b2×b3)) with b1 = r_j - r_i and so on: zero when
cis, positive when the far bond is turned clockwise, seen along j → k (IUPAC-IUB, Pure Appl. Chem. 40, 291,
1974; formula: Blondel and Karplus 1996, doi 10.1002/(SICI)1096-987X(19960715)17:9<1132::AID-JCC5>3.0.CO;2-T).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from hpc_cg.beads import BeadSystem
from hpc_cg.errors import UnknownBeads


@dataclass(frozen=True)
class Backbone:
    """The two backbone dihedrals of one residue, as quadruples of bead indices.

    label   of the Cα bead, e.g. "ALA2:CA"
    phi     previous C, N, Cα, C
    psi     N, Cα, C, next N
    """

    label: str
    phi: tuple[int, int, int, int]
    psi: tuple[int, int, int, int]


def backbones(system: BeadSystem) -> tuple[Backbone, ...]:
    """The residues with all five backbone beads, found by name along the bonds; empty where there is none."""
    names = [name.rpartition(":")[2] for name in system.names]

    def bonded(bead: int, wanted: str) -> list[int]:
        ends = [b if a == bead else a for a, b in system.bonds if bead in (a, b)]
        return [end for end in ends if names[end] == wanted]

    found = []
    for alpha in (i for i, name in enumerate(names) if name == "CA"):
        for n in bonded(alpha, "N"):
            for c in bonded(alpha, "C"):
                found += [
                    Backbone(system.names[alpha], (before, n, alpha, c), (n, alpha, c, after))
                    for before in bonded(n, "C")
                    for after in bonded(c, "N")
                ]
    return tuple(found)


def one_backbone(system: BeadSystem) -> Backbone:
    """The backbone of a molecule that has exactly one, such as alanine dipeptide; raises UnknownBeads."""
    found = backbones(system)
    if len(found) != 1:
        raise UnknownBeads(
            "one pair of backbone dihedrals (beads C, N, CA, C, N along the bonds)",
            f"{len(found)} in the beads {', '.join(system.names)}",
            "use a map that keeps these beads of one residue, such as alanine-six",
        )
    return found[0]


def dihedral(
    positions: Float[np.ndarray, "frame bead 3"], quadruple: tuple[int, int, int, int]
) -> Float[np.ndarray, "frame"]:
    """The dihedral of four beads in each frame; radians in [-π, π], IUPAC sign."""
    i, j, k, m = (positions[:, bead].astype(np.float64) for bead in quadruple)
    first, axis, last = j - i, k - j, m - k
    near, far = np.cross(first, axis), np.cross(axis, last)
    sine = np.linalg.norm(axis, axis=-1) * np.sum(first * far, axis=-1)
    return np.arctan2(sine, np.sum(near * far, axis=-1))


def bond_lengths(
    positions: Float[np.ndarray, "frame bead 3"], bonds: Sequence[tuple[int, int]]
) -> Float[np.ndarray, "frame bond"]:
    """The length of each bond in each frame; nm."""
    a, b = np.array(bonds, dtype=int).reshape(-1, 2).T
    return np.linalg.norm(positions[:, b].astype(np.float64) - positions[:, a], axis=-1)


def angles(
    positions: Float[np.ndarray, "frame bead 3"], triples: Sequence[tuple[int, int, int]]
) -> Float[np.ndarray, "frame angle"]:
    """The angle at the middle bead of each triple in each frame; radians in [0, π]."""
    i, j, k = (positions[:, beads].astype(np.float64) for beads in np.array(triples, dtype=int).reshape(-1, 3).T)
    a, b = i - j, k - j
    return np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), np.sum(a * b, axis=-1))


def handedness(
    positions: Float[np.ndarray, "frame bead 3"], impropers: Sequence[tuple[int, int, int, int]]
) -> Float[np.ndarray, "frame improper"]:
    """(a×b)·c of the unit vectors from each centre to its three neighbours; it changes sign in a mirror."""
    centre, *ends = (positions[:, b].astype(np.float64) for b in np.array(impropers, dtype=int).reshape(-1, 4).T)
    a, b, c = (_unit(end - centre) for end in ends)
    return np.sum(np.cross(a, b) * c, axis=-1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
