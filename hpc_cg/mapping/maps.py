"""The map from atoms to beads: positions R = C r, forces F = B f.

C (bead atom) picks or averages atoms; B (bead atom) says which atomic forces a bead feels. The pair gives the
forces of the potential of mean force when C Bᵀ = 1 and atoms held together rigidly share their weight in B.

Ciccotti, Kapral & Vanden-Eijnden, ChemPhysChem 6, 1809 (2005), doi 10.1002/cphc.200400669;
Krämer et al., J. Phys. Chem. Lett. 14, 3970 (2023), doi 10.1021/acs.jpclett.3c00444.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
from jaxtyping import Float

from hpc_cg.beads import BeadSystem, bead_system
from hpc_cg.errors import MissingInput, UnknownBeads, UnreadableFile
from hpc_cg.files import digest_bytes

ALANINE_SIX = (("ACE", "C"), ("ALA", "N"), ("ALA", "CA"), ("ALA", "CB"), ("ALA", "C"), ("NME", "N"))
ALANINE = {
    "alanine-six": ALANINE_SIX,
    "alanine-five": tuple(place for place in ALANINE_SIX if place[1] != "CB"),
}
PRESETS = (*ALANINE, "calpha")
"""Names that slice_map knows."""

MASSES = {"H": 1.008, "C": 12.011, "N": 14.007, "O": 15.999, "S": 32.06}
"""Masses of the elements a bead may be, u."""

AMINO_ACIDS = (
    "ALA ARG ASN ASP CYS GLN GLU GLY HIS ILE LEU LYS MET PHE PRO SER THR TRP TYR VAL".split()  # noqa: SIM905
)
"""Residues in the order of the types that a Cα bead takes."""


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

    def apply_positions(self, positions: Float[np.ndarray, "*frame atom 3"]) -> Float[np.ndarray, "*frame bead 3"]:
        """Bead positions R = C r in nm, summed in float64; any number of leading axes."""
        return _apply(self.coordinate, positions)

    def apply_forces(self, forces: Float[np.ndarray, "*frame atom 3"]) -> Float[np.ndarray, "*frame bead 3"]:
        """Mapped forces F = B f in kJ/mol/nm, summed in float64; any number of leading axes."""
        return _apply(self.force, forces)

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


def load_topology(path: Path) -> mdtraj.Topology:
    """The topology in a PDB file or any other that mdtraj reads; raises MissingInput, UnreadableFile."""
    if not path.is_file():
        raise MissingInput("the topology", f"no file {path}", "name the PDB file of the molecule")
    try:
        topology = mdtraj.load_topology(str(path))
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UnreadableFile(
            f"reading the topology {path}",
            f"{type(error).__name__}: {error}",
            "name a PDB file that mdtraj reads",
        ) from error
    if topology.n_atoms == 0:
        raise UnreadableFile(f"reading the topology {path}", "no atoms", "name the PDB file of the molecule")
    return topology


def slice_map(topology: mdtraj.Topology, preset: str) -> tuple[Float[np.ndarray, "bead atom"], BeadSystem]:
    """The coordinate matrix that picks one atom per bead, and the beads it gives.

    preset   "alanine-six"    C of ACE; N, CA, CB, C of ALA; N of NME; every bead a type of its own
             "alanine-five"   the same without CB
             "calpha"         CA of every amino acid, typed by residue, bonded along each chain
    Bonds, except of "calpha", are the topology's. A centre of three other beads N, C, CB gives an improper
    (CA, N, C, CB). Raises UnknownBeads for an atom that is not there or a preset that is not known.
    """
    if preset == "calpha":
        return _calpha_map(topology)
    if preset not in ALANINE:
        raise UnknownBeads(f"the map {preset!r}", "no such preset", f"use one of {', '.join(PRESETS)}")
    atoms = [_atom(topology, residue, name) for residue, name in ALANINE[preset]]
    bead = {atom.index: i for i, atom in enumerate(atoms)}
    bonds = [(bead[a.index], bead[b.index]) for a, b in topology.bonds if a.index in bead and b.index in bead]
    places = {name: i for i, (_, name) in enumerate(ALANINE[preset]) if name in ("CA", "CB")}
    impropers = [(places["CA"], places["CA"] - 1, places["CB"] + 1, places["CB"])] if "CB" in places else []
    system = bead_system(_labels(atoms), range(len(atoms)), [_mass(atom) for atom in atoms], bonds, impropers)
    return _selection(topology, atoms), system


def identity_map(names: Sequence[str]) -> tuple[Float[np.ndarray, "bead atom"], BeadSystem]:
    """The map of an archive whose atoms are beads already, bonded in the order they stand.

    names   atom names along the chain, e.g. C N CA C N; the first letter is the element
    Every bead is a type of its own. CB right after CA branches off, and CA gets an improper (CA, N, C, CB).
    Raises UnknownBeads for no names and for an element that is not in MASSES.
    """
    if not names:
        raise UnknownBeads("a map of beads given by name", "no names", "name the beads along the chain")
    plain = [name.rpartition(":")[2] for name in names]
    unknown = [name for name, atom in zip(names, plain, strict=True) if atom[:1] not in MASSES]
    if unknown:
        raise UnknownBeads(
            f"a map of the beads {' '.join(names)}",
            f"no element for {' '.join(unknown)}",
            f"begin names with one of {' '.join(MASSES)}",
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
    masses = [MASSES[atom[0]] for atom in plain]
    return np.eye(len(names)), bead_system(labels, range(len(names)), masses, bonds, impropers)


def _calpha_map(topology: mdtraj.Topology) -> tuple[Float[np.ndarray, "bead atom"], BeadSystem]:
    atoms = [atom for atom in topology.atoms if atom.name == "CA" and atom.residue.name in AMINO_ACIDS]
    if not atoms:
        there = " ".join(sorted({residue.name for residue in topology.residues}))
        raise UnknownBeads("the map 'calpha'", f"no CA in the residues {there}", "name the topology of a protein")
    bonds = [(i, i + 1) for i, (a, b) in enumerate(pairwise(atoms)) if a.residue.chain is b.residue.chain]
    types = [AMINO_ACIDS.index(atom.residue.name) for atom in atoms]
    return _selection(topology, atoms), bead_system(_labels(atoms), types, [_mass(a) for a in atoms], bonds)


def _atom(topology: mdtraj.Topology, residue: str, name: str) -> Any:
    hits = [atom for atom in topology.atoms if (atom.residue.name, atom.name) == (residue, name)]
    if len(hits) == 1:
        return hits[0]
    there = " ".join(atom.name for atom in topology.atoms if atom.residue.name == residue)
    residues = " ".join(str(known) for known in topology.residues)
    found = f"{len(hits)} such atoms in residues {residues} ({residue} holds {there or 'nothing'})"
    raise UnknownBeads(f"the bead {residue}:{name}", found, "choose the map or the topology that fits")


def _labels(atoms: Sequence[Any]) -> list[str]:
    return [f"{atom.residue.name}{atom.residue.resSeq}:{atom.name}" for atom in atoms]


def _mass(atom: Any) -> float:
    return MASSES[atom.element.symbol]


def _selection(topology: mdtraj.Topology, atoms: Sequence[Any]) -> Float[np.ndarray, "bead atom"]:
    matrix = np.zeros((len(atoms), topology.n_atoms))
    matrix[range(len(atoms)), [atom.index for atom in atoms]] = 1.0
    return matrix


def _apply(matrix: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # frames that are no numbers are found and left out by the caller
        return np.matmul(matrix.astype(np.float64), vectors.astype(np.float64))
