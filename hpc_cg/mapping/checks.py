"""Whether a topology belongs to the trajectories, and whether the atoms looked at leave rigid groups whole.

A trajectory holds numbers without names, so atoms in another order or another unit go unseen but for one thing: atoms
that are bonded are close (C-H 0.109 nm, S-H 0.134 nm, C-C 0.154 nm, S-S 0.205 nm, I-I 0.27 nm), others further, also
those with one atom between (H-C-H 0.178 nm, O-C-O 0.22 nm, C-C-C 0.25 nm).

The force on a group of atoms that is held together rigidly is the sum over all its atoms. Where some of them are not
looked at, constraint forces stay in the sum, and the mean force is wrong (Ciccotti, Kapral & Vanden-Eijnden,
ChemPhysChem 6, 1809 (2005), doi 10.1002/cphc.200400669).
"""

from collections.abc import Iterable, Sequence

import mdtraj
import numpy as np
from jaxtyping import Float, Float64, Int64

from hpc_cg.errors import InvalidMap, TopologyMismatch
from hpc_cg.mapping.paths import listed_bonds

SHORTEST_NM, LONGEST_NM = 0.06, 0.30
"""Between these lies every bond of atoms; bonds shorter than that are of virtual sites and Drude particles."""

LONGEST_TO_HYDROGEN_NM, LONGEST_OF_LIGHT_NM = 0.17, 0.20
LIGHT = ("C", "N", "O", "F")

SURELY_WRONG, FEW, FEW_WRONG = 0.03, 2, 0.01
"""Bonds that are too long, as a fraction: more than the first, or more than a few and more than the last."""


def with_neighbours(topology: mdtraj.Topology, atoms: Int64[np.ndarray, "atom"]) -> Int64[np.ndarray, "around"]:
    """``atoms`` (ascending), the atoms they are bonded to, and the residues of those that have no bonds listed."""
    chosen = np.zeros(topology.n_atoms, bool)
    chosen[atoms] = True
    bonds = listed_bonds(topology)
    lonely = np.ones(topology.n_atoms, bool)
    lonely[bonds] = False
    residue = np.array([atom.residue.index for atom in topology.atoms], dtype=np.int64)
    found = chosen | np.isin(residue, residue[chosen & lonely])
    found[bonds[chosen[bonds].any(axis=1)]] = True
    return np.flatnonzero(found).astype(np.int64)


def refuse_cut_groups(
    groups: Sequence[tuple[int, ...]], around: Int64[np.ndarray, "around"], atoms: Int64[np.ndarray, "atom"]
) -> tuple[tuple[int, ...], ...]:
    """Groups over ``around`` as groups over ``atoms`` alone, which are among them; both are numbers in the files.

    Raises InvalidMap where a group has atoms of both kinds.
    """
    place = {int(atom): i for i, atom in enumerate(atoms)}
    numbered = [[int(around[i]) for i in group] for group in groups]
    cut = [group for group in numbered if 0 < sum(atom in place for atom in group) < len(group)]
    if cut:
        raise InvalidMap(
            "mapped forces of the atoms in prepare.atoms",
            f"{len(cut)} rigid groups that they cut through, the first of the atoms {', '.join(map(str, cut[0]))} "
            "(counted from 0)",
            'choose atoms that keep hydrogens with their heavy atoms, or atoms = "all"',
        )
    return tuple(tuple(place[atom] for atom in group) for group in numbered if group[0] in place)


def check_bonds(
    topology: mdtraj.Topology,
    atoms: Int64[np.ndarray, "atom"],
    frames: Iterable[Float[np.ndarray, "_ atom 3"]],
    path: str,
) -> None:
    """Raise TopologyMismatch where atoms that the topology bonds lie far apart.

    atoms    whose bonds are looked at, by number, ascending
    frames   positions of these (nm), made whole, from any number of files; for each bond their median counts
    path     of the trajectories, for the message
    Bonds of residues that are one atom (ions, beads) and of virtual sites are not looked at.
    """
    ends = _real_bonds(topology, atoms)
    bonds = np.searchsorted(atoms, ends)
    lengths = [np.linalg.norm(block[:, bonds[:, 0]] - block[:, bonds[:, 1]], axis=2) for block in frames]
    if not len(bonds) or not lengths:
        return
    usual = np.median(np.concatenate(lengths), axis=0).astype(np.float64)
    longest = _longest(topology, ends)
    if _fits(usual, longest):
        return
    worst = int(np.argmax(usual - longest)) if np.median(usual) > SHORTEST_NM else int(np.argmin(usual))
    one, two = (topology.atom(int(atom)) for atom in ends[worst])
    units = [unit for factor, unit in ((0.1, "angstrom"), (10.0, "nm")) if _fits(usual * factor, longest)]
    change = "give the topology that belongs to the trajectories, in the same order of atoms"
    raise TopologyMismatch(
        f"atoms as near one another as the {len(usual)} bonds of the topology say",
        f"{_wrong(usual, longest)} bonds of other lengths in {path}, {one}-{two} being {usual[worst]:.3f} nm long",
        f'all lengths are wrong by a factor of ten: set prepare.length_unit = "{units[0]}"' if units else change,
    )


def _real_bonds(topology: mdtraj.Topology, atoms: np.ndarray) -> Int64[np.ndarray, "bond 2"]:
    """Bonds among ``atoms`` that have a usual length."""
    real = np.zeros(topology.n_atoms, bool)
    for number in atoms:
        atom = topology.atom(int(number))
        real[number] = atom.element is not None and atom.element.number > 0 and atom.residue.n_atoms > 1
    bonds = listed_bonds(topology)
    return bonds[real[bonds].all(axis=1)]


def _longest(topology: mdtraj.Topology, bonds: np.ndarray) -> Float64[np.ndarray, "bond"]:
    """How long each bond can be, nm."""
    limits = np.full(len(bonds), LONGEST_NM)
    for bond, ends in enumerate(bonds):
        symbols = {topology.atom(int(atom)).element.symbol for atom in ends}
        if "H" in symbols:
            limits[bond] = LONGEST_TO_HYDROGEN_NM
        elif symbols <= set(LIGHT):
            limits[bond] = LONGEST_OF_LIGHT_NM
    return limits


def _wrong(lengths: Float64[np.ndarray, "bond"], longest: Float64[np.ndarray, "bond"]) -> int:
    """How many bonds are too long; all count as wrong where most are too short."""
    return int((lengths > longest).sum()) if np.median(lengths) > SHORTEST_NM else len(lengths)


def _fits(lengths: Float64[np.ndarray, "bond"], longest: Float64[np.ndarray, "bond"]) -> bool:
    wrong, total = _wrong(lengths, longest), len(lengths)
    return not (wrong > SURELY_WRONG * total or (wrong > FEW and wrong > FEW_WRONG * total))
