"""Which beads share their parameters: an integer type for each bead.

Numbers come from fixed tables (``residues``), so that a type means the same in every molecule of a store. The ends of a
chain, where they are types of their own, lie one table (first residue) and two tables (last) further.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby

import mdtraj

from hpc_cg.errors import UnknownBeads
from hpc_cg.mapping.presets import BACKBONE_CAPS, Bead
from hpc_cg.mapping.residues import (
    AMINO_ACIDS,
    ATOM_TYPES,
    FIVE_BEAD,
    RESIDUES,
    atom_name,
    standard,
)

BEAD_TYPES = ("", "residue", "residue-termini", "unique", "element")
ONE_PER_RESIDUE = ("calpha", "com")
OWN = {"calpha": "residue", "com": "residue", "heavy": "residue", "five-bead": "five-bead", "backbone": "backbone"}
WITHOUT_SIDE_CHAIN = {"five-bead": ("GLY",), "backbone": AMINO_ACIDS}
"""Residues whose CA carries the type of the amino acid, for want of a CB."""


def types_of(topology: mdtraj.Topology, beads: Sequence[Bead], kind: str, bead_types: str) -> list[int]:
    """The type of each bead of a map of the given kind; raises UnknownBeads for residues that have none."""
    if bead_types not in BEAD_TYPES:
        known = ", ".join(repr(name) for name in BEAD_TYPES)
        raise UnknownBeads(f"the bead types {bead_types!r}", "no such types", f"use one of {known}")
    chosen = bead_types or OWN.get(kind, "unique")
    if chosen == "unique":
        return list(range(len(beads)))
    if chosen == "element":
        return _checked(topology, beads, _element)
    if chosen in WITHOUT_SIDE_CHAIN:
        return _checked(topology, beads, partial(_five_bead, WITHOUT_SIDE_CHAIN[chosen]))
    by_residue = _amino_acid if kind in ONE_PER_RESIDUE else _atom_type
    types = _checked(topology, beads, by_residue)
    if chosen == "residue-termini":
        table = len(RESIDUES) if kind in ONE_PER_RESIDUE else len(ATOM_TYPES)
        ends = _ends(beads)
        types = [number + table * ends.get(bead.residue.index, 0) for number, bead in zip(types, beads, strict=True)]
    return types


def type_names(types: Sequence[int], kind: str, bead_types: str, molecule: str) -> tuple[str, ...]:
    """A name for the type of each bead, the same in every molecule whose beads of that type mean the same.

    Those are molecules of one kind of map with the same ``bead_types``; what is unique is so among all molecules.
    """
    chosen = bead_types or OWN.get(kind, "unique")
    where = f"{molecule}, unique" if chosen == "unique" else f"{kind}, {chosen}"
    return tuple(f"{where} {number}" for number in types)


def _checked(
    topology: mdtraj.Topology, beads: Sequence[Bead], rule: Callable[[mdtraj.Topology, Bead], int | None]
) -> list[int]:
    """The rule's type of each bead; all beads that it has none for are named in the error."""
    types = [rule(topology, bead) for bead in beads]
    unknown = [bead.label for bead, number in zip(beads, types, strict=True) if number is None]
    if unknown:
        rest = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        raise UnknownBeads(
            "bead types by " + ("element" if rule is _element else "residue"),
            f"no type for {', '.join(unknown[:10])}{rest} (residues known: {' '.join(RESIDUES)})",
            'set bead_types = "unique", or leave those atoms out by prepare.atoms',
        )
    return [number for number in types if number is not None]


def _amino_acid(topology: mdtraj.Topology, bead: Bead) -> int | None:
    name = standard(bead.residue.name)
    return RESIDUES.index(name) if name in RESIDUES else None


def _atom_type(topology: mdtraj.Topology, bead: Bead) -> int | None:
    if bead.residue is None:
        return None
    name = standard(bead.residue.name)
    if bead.only_atom is None:
        return None
    return ATOM_TYPES.get((name, atom_name(name, topology.atom(bead.only_atom).name)))


def _five_bead(without: Sequence[str], topology: mdtraj.Topology, bead: Bead) -> int | None:
    name = standard(bead.residue.name)
    atom = atom_name(name, topology.atom(bead.atoms[0]).name)
    if atom == "CB" or (atom == "CA" and name in without):
        return AMINO_ACIDS.index(name) if name in AMINO_ACIDS else None
    return FIVE_BEAD.get(atom) if name in (*AMINO_ACIDS, *BACKBONE_CAPS) else None


def _element(topology: mdtraj.Topology, bead: Bead) -> int | None:
    elements = {topology.atom(atom).element for atom in bead.atoms}
    only = elements.pop() if len(elements) == 1 else None
    return int(only.atomic_number) if only is not None and only.atomic_number else None


def _ends(beads: Sequence[Bead]) -> dict[int, int]:
    """Index of the first and of the last residue of each chain that has beads: 1 for the first, 2 for the last."""
    ends: dict[int, int] = {}
    for _, chain in groupby((bead.residue for bead in beads), key=lambda residue: residue.chain.index):
        residues = list(chain)
        ends[residues[-1].index] = 2
        ends[residues[0].index] = 1
    return ends
