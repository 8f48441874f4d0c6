"""The map from atoms to beads: positions R = C r, forces F = B f.

C (bead atom) picks or averages atoms; B (bead atom) says which atomic forces a bead feels. The pair gives the
forces of the potential of mean force when C Bᵀ = 1 and atoms held together rigidly share their weight in B.

Ciccotti, Kapral & Vanden-Eijnden, ChemPhysChem 6, 1809 (2005), doi 10.1002/cphc.200400669;
Krämer et al., J. Phys. Chem. Lett. 14, 3970 (2023), doi 10.1021/acs.jpclett.3c00444.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import mdtraj
import numpy as np
from jaxtyping import Float, Float64, Int64

from hpc_cg.beads import BeadSystem, bead_system
from hpc_cg.errors import UnknownBeads
from hpc_cg.files import digest_bytes
from hpc_cg.mapping import presets
from hpc_cg.mapping.bonds import bonds_of, impropers_of
from hpc_cg.mapping.linear import Product
from hpc_cg.mapping.topology import load_topology as load_topology
from hpc_cg.mapping.types import types_of

KINDS = (*presets.ALANINE, *presets.SIMPLE, "selections", "matrix", "identity")
"""Maps that MapChoice.kind can name."""


@dataclass(frozen=True, eq=False)
class CGMap:
    """The two matrices, and the beads they lead to.

    coordinate   C, rows sum to 1
    force        B, with C Bᵀ = 1
    system       the beads, in the order of the rows
    """

    coordinate: Float[np.ndarray, "bead atom"]
    force: Float[np.ndarray, "bead atom"]
    system: BeadSystem

    def apply_positions(self, positions: Float[np.ndarray, "*frame atom 3"]) -> Float64[np.ndarray, "*frame bead 3"]:
        """Bead positions R = C r in nm, summed in float64; a frame gives the same bits in whatever block it comes."""
        return self._positions(positions)

    def apply_forces(self, forces: Float[np.ndarray, "*frame atom 3"]) -> Float64[np.ndarray, "*frame bead 3"]:
        """Mapped forces F = B f in kJ/mol/nm, summed in float64; a frame gives the same bits in whatever block."""
        return self._forces(forces)

    @cached_property
    def _positions(self) -> Product:
        return Product.of(self.coordinate)

    @cached_property
    def _forces(self) -> Product:
        return Product.of(self.force)

    @property
    def n_beads(self) -> int:
        return self.coordinate.shape[0]

    @property
    def n_atoms(self) -> int:
        return self.coordinate.shape[1]

    @property
    def orthogonality(self) -> float:
        """max |C Bᵀ - 1|: 0 for a pair that gives the right mean forces."""
        return float(np.abs(self.coordinate @ self.force.T - np.eye(self.n_beads)).max())

    @property
    def digest(self) -> str:
        """Short hash of both matrices and the beads."""
        matrices = (np.ascontiguousarray(matrix, dtype="<f8") for matrix in (self.coordinate, self.force))
        shape = str(self.coordinate.shape).encode()
        return digest_bytes(shape, *(matrix.tobytes() for matrix in matrices), self.system.digest.encode())

    def arrays(self) -> dict[str, np.ndarray]:
        """Both matrices by name, for an npz file."""
        return {"coordinate": self.coordinate, "force": self.force}

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray], system: BeadSystem) -> "CGMap":
        """The map whose ``arrays`` were written, with its beads; other arrays beside them are let be."""
        return CGMap(arrays["coordinate"], arrays["force"], system)


def needed_atoms(cg_map: CGMap) -> Int64[np.ndarray, "atom"]:
    """Atoms, ascending, that either matrix looks at."""
    return np.flatnonzero((cg_map.coordinate != 0).any(axis=0) | (cg_map.force != 0).any(axis=0)).astype(np.int64)


def restricted(cg_map: CGMap, atoms: Int64[np.ndarray, "atom"]) -> CGMap:
    """The map of frames that hold only ``atoms``, in that order; those must be all that the map needs."""
    assert np.isin(needed_atoms(cg_map), atoms).all(), "atoms left out that the map needs"
    return CGMap(cg_map.coordinate[:, atoms], cg_map.force[:, atoms], cg_map.system)


@dataclass(frozen=True)
class MapChoice:
    """Which map a person asks for.

    kind          "alanine-six"   C of ACE; N, CA, CB, C of ALA; N of NME
                  "alanine-five"  the same without CB
                  "calpha"        CA of every amino acid
                  "five-bead"     N, CA, CB, C, O of every amino acid (no CB in glycine)
                  "backbone"      N, CA, C of every amino acid; C of ACE, N of NME
                  "heavy"         every atom but hydrogen
                  "com"           the centre of mass of every residue
                  "selections"    the centre of mass of each of ``selections`` (mdtraj's language)
                  "matrix"        the matrix (bead, atom) in ``matrix_file``: npy, npz or text, rows that sum to 1
                  "identity"      the atoms are beads already, called ``beads``
    bead_types    which beads share parameters: "residue" (by amino acid, and by atom where a residue has several),
                  "residue-termini" (likewise, the ends of each chain apart), "element", "unique" (none share);
                  "" is "residue" for calpha, com and heavy, the types of CGSchNet for five-bead and backbone (amino
                  acid on CB, on CA where there is no CB; N, CA, C, O), "unique" for the others
    """

    kind: str
    beads: tuple[str, ...] = ()
    selections: tuple[str, ...] = ()
    matrix_file: Path | None = None
    bead_types: str = ""


def coordinate_map(
    topology: mdtraj.Topology | None, choice: MapChoice
) -> tuple[Float64[np.ndarray, "bead atom"], BeadSystem]:
    """The coordinate matrix C of the map that is asked for, and its beads; no topology for "identity".

    A bead that is one atom has that atom's mass, a centre the mass of all its atoms. Bonds are derived as ``bonds``
    says. Raises UnknownBeads for atoms, residues or bonds that are not there, InvalidMap for a matrix that is no map.
    """
    if choice.kind == "identity":
        if choice.bead_types not in ("", "unique"):
            raise UnknownBeads(f"bead types by {choice.bead_types}", "beads given by name", 'set bead_types = "unique"')
        return identity_map(choice.beads)
    if choice.kind not in KINDS:
        raise UnknownBeads(f"the map {choice.kind!r}", "no such map", f"use one of {', '.join(KINDS)}")
    assert topology is not None, "only beads given by name need no topology"
    beads = _beads(topology, choice)
    matrix = np.zeros((len(beads), topology.n_atoms))
    for row, bead in zip(matrix, beads, strict=True):
        row[list(bead.atoms)] = bead.weights
    system = bead_system(
        _distinct(topology, beads),
        types_of(topology, beads, choice.kind, choice.bead_types),
        [sum(presets.mass(topology.atom(atom)) for atom in bead.atoms) for bead in beads],
        bonds_of(topology, beads, choice.kind),
        impropers_of(topology, beads),
    )
    return matrix, system


def identity_map(names: Sequence[str]) -> tuple[Float64[np.ndarray, "bead atom"], BeadSystem]:
    """The map of an archive whose atoms are beads already, bonded in the order they stand.

    names   atom names along the chain, e.g. C N CA C N; the first letter is the element
    Every bead is a type of its own. CB right after CA branches off, and CA gets an improper (CA, N, C, CB).
    Raises UnknownBeads for no names and for an element that has no mass in ``presets.MASSES``.
    """
    if not names:
        raise UnknownBeads("a map of beads given by name", "no names", "name the beads along the chain")
    plain = [name.rpartition(":")[2] for name in names]
    unknown = [name for name, atom in zip(names, plain, strict=True) if atom[:1] not in presets.MASSES]
    if unknown:
        raise UnknownBeads(
            f"a map of the beads {' '.join(names)}",
            f"no element for {' '.join(unknown)}",
            f"begin names with one of {' '.join(presets.MASSES)}",
        )
    chain = [i for i, atom in enumerate(plain) if atom != "CB"]
    bonds = list(pairwise(chain))
    impropers = []
    for i, atom in enumerate(plain):
        if atom == "CB" and i > 0 and plain[i - 1] == "CA":
            bonds.append((i - 1, i))
            if i > 1 and i + 1 < len(plain):
                impropers.append((i - 1, i - 2, i + 1, i))
    labels = [name if ":" in name else f"{i + 1}:{name}" for i, name in enumerate(names)]
    masses = [presets.MASSES[atom[0]] for atom in plain]
    return np.eye(len(names)), bead_system(labels, range(len(names)), masses, bonds, impropers)


def _beads(topology: mdtraj.Topology, choice: MapChoice) -> list[presets.Bead]:
    if choice.kind in presets.ALANINE:
        return presets.alanine(topology, choice.kind)
    if choice.kind == "selections":
        return presets.selections(topology, choice.selections)
    if choice.kind == "matrix":
        return presets.from_matrix(topology, choice.matrix_file)
    return presets.SIMPLE[choice.kind](topology)


def _distinct(topology: mdtraj.Topology, beads: Sequence[presets.Bead]) -> list[str]:
    """Labels of the beads; with the number of the chain, and then of the bead, before those that are not unique."""
    labels = [bead.label for bead in beads]
    for before in (lambda i: f"{topology.atom(beads[i].atoms[0]).residue.chain.index + 1}", lambda i: f"{i + 1}"):
        often = Counter(labels)
        labels = [f"{before(i)}/{label}" if often[label] > 1 else label for i, label in enumerate(labels)]
    return labels


def slice_map(topology: mdtraj.Topology, preset: str) -> tuple[Float64[np.ndarray, "bead atom"], BeadSystem]:
    """The map of that name with its own bead types."""
    return coordinate_map(topology, MapChoice(preset))
