"""How beads are bonded, from how their atoms are.

- Beads that are atoms are bonded where these are.
- Cα atoms and centres of residues are bonded to the next residue of their chain where the topology bonds these, or
  where it holds no bonds that could tell; disulphides do not count.
- Other beads: every atom belongs to the bead that is nearest along bonds, and two beads are bonded where an atom of one
  is bonded to an atom of the other.

A centre CA of the beads N, C and CB of one residue is chiral: its handedness is kept by an improper (CA, N, C, CB).
"""

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import mdtraj

from hpc_cg.errors import UnknownBeads
from hpc_cg.mapping.presets import Bead, is_calpha, symbol

Bonds = list[tuple[int, int]]

BY_ATOMS = ("heavy", "backbone", "five-bead", "alanine-six", "alanine-five")
ALONG_CHAINS = ("calpha", "com")


def bonds_of(topology: mdtraj.Topology, beads: Sequence[Bead], kind: str) -> Bonds:
    """Pairs of bonded beads; raises UnknownBeads where the topology does not say how a bead's residue is bonded."""
    if kind in ALONG_CHAINS:
        return _along_chains(topology, beads)
    _refuse_without_bonds(topology, beads)
    if kind in BY_ATOMS:
        place = {bead.atoms[0]: i for i, bead in enumerate(beads)}
        return [(place[a.index], place[b.index]) for a, b in topology.bonds if a.index in place and b.index in place]
    return _by_nearest_bead(topology, beads)


def impropers_of(topology: mdtraj.Topology, beads: Sequence[Bead]) -> list[tuple[int, int, int, int]]:
    """(CA, N, C, CB) of every residue in which these are beads, in the order of the CA."""
    place = {}
    for i, bead in enumerate(beads):
        if bead.only_atom is not None:
            place[bead.residue.index, topology.atom(bead.only_atom).name] = i
    quads = []
    for residue, name in list(place):
        quad = tuple(place.get((residue, other)) for other in ("CA", "N", "C", "CB"))
        if name == "CA" and None not in quad:
            quads.append(quad)
    return quads  # type: ignore[return-value]


def _along_chains(topology: mdtraj.Topology, beads: Sequence[Bead]) -> Bonds:
    joined = {tuple(sorted((a.residue.index, b.residue.index))) for a, b in topology.bonds if not _disulphide(a, b)}
    inside = {a.residue.index for a, b in topology.bonds if a.residue is b.residue}
    bonds = []
    for i, (one, two) in enumerate(pairwise(bead.residue for bead in beads)):
        if one.chain is not two.chain or two.index != one.index + 1:
            continue
        peptides = all(any(is_calpha(atom) for atom in residue.atoms) for residue in (one, two))
        tells = one.index in inside and two.index in inside and _named(one, "C") and _named(two, "N")
        if (one.index, two.index) in joined or (peptides and not tells):
            bonds.append((i, i + 1))
    return bonds


def _by_nearest_bead(topology: mdtraj.Topology, beads: Sequence[Bead]) -> Bonds:
    neighbours: list[list[int]] = [[] for _ in range(topology.n_atoms)]
    for a, b in topology.bonds:
        neighbours[a.index].append(b.index)
        neighbours[b.index].append(a.index)
    owner: dict[int, int] = {}
    for i, bead in enumerate(beads):
        for atom in bead.atoms:
            owner.setdefault(atom, i)
    queue = deque(owner)
    while queue:
        atom = queue.popleft()
        for other in neighbours[atom]:
            if other not in owner:
                owner[other] = owner[atom]
                queue.append(other)
    ends = ((owner.get(a.index), owner.get(b.index)) for a, b in topology.bonds)
    return [(i, j) for i, j in ends if i is not None and j is not None and i != j]


def _refuse_without_bonds(topology: mdtraj.Topology, beads: Sequence[Bead]) -> None:
    if len(beads) == 1:
        return
    bonded = {atom.index for bond in topology.bonds for atom in bond}
    for bead in beads:
        alone = len(bead.atoms) == _n_atoms_of(topology, bead)  # an ion, or a water that is one bead
        if bonded.isdisjoint(bead.atoms) and not (alone and bonded):
            atom = topology.atom(bead.atoms[0])
            raise UnknownBeads(
                f"the bonds of the bead {bead.label}",
                f"a topology with {topology.n_bonds} bonds, none of them to atom {atom.index} ({atom})",
                "add CONECT records to the PDB, or give a PSF, PRMTOP or MOL2 file, which list all bonds",
            )


def _n_atoms_of(topology: mdtraj.Topology, bead: Bead) -> int:
    return sum(topology.residue(index).n_atoms for index in {topology.atom(a).residue.index for a in bead.atoms})


def _named(residue: Any, name: str) -> bool:
    return any(atom.name == name for atom in residue.atoms)


def _disulphide(a: Any, b: Any) -> bool:
    return symbol(a) == symbol(b) == "S"
