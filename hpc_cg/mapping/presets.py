"""Which atoms become which beads: the maps known by name, and those that a person writes.

Every map is a list of ``Bead``: atoms with weights that add up to 1. Bonds between beads, types and masses follow from
it in ``bonds`` and ``maps``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
from jaxtyping import Float64

from hpc_cg.errors import InvalidMap, MissingInput, UnknownBeads, UnreadableFile
from hpc_cg.files import read_arrays
from hpc_cg.mapping.residues import AMINO_ACIDS, atom_name, standard
from hpc_cg.mapping.topology import select

ALANINE_SIX = (("ACE", "C"), ("ALA", "N"), ("ALA", "CA"), ("ALA", "CB"), ("ALA", "C"), ("NME", "N"))
ALANINE = {
    "alanine-six": ALANINE_SIX,
    "alanine-five": tuple(place for place in ALANINE_SIX if place[1] != "CB"),
}

BACKBONE_CAPS: dict[str, tuple[str, ...]] = {"ACE": ("C",), "NME": ("N",), "NH2": ("N",), "NHE": ("N",)}
"""Atoms of caps that continue the backbone."""

MASSES = {"H": 1.008, "C": 12.011, "N": 14.007, "O": 15.999, "S": 32.06}
"""Masses of the elements that proteins are made of, u; others have those that mdtraj lists."""

ROW_SUM = 1e-5
"""How far the weights of a bead in a matrix from a file may be from 1 together."""


@dataclass(frozen=True)
class Bead:
    """Atoms (indices) with their weights, and what to call them.

    residue   the mdtraj residue that all atoms are in; None where there are several
    """

    atoms: tuple[int, ...]
    weights: tuple[float, ...]
    label: str
    residue: Any

    @property
    def only_atom(self) -> int | None:
        """The atom of a bead that is one atom."""
        return self.atoms[0] if len(self.atoms) == 1 else None


def calpha(topology: mdtraj.Topology) -> list[Bead]:
    """The Cα of every amino acid."""
    beads = [_slice(atom) for atom in topology.atoms if is_calpha(atom)]
    if not beads:
        there = " ".join(sorted({residue.name for residue in topology.residues}))
        raise UnknownBeads("the map 'calpha'", f"no CA in the residues {there}", "name the topology of a protein")
    return beads


def five_bead(topology: mdtraj.Topology) -> list[Bead]:
    """N, CA, CB, C and O of every amino acid (no CB in glycine); caps are left out."""
    return _named(topology, "five-bead", ("N", "CA", "CB", "C", "O"), {})


def backbone(topology: mdtraj.Topology) -> list[Bead]:
    """N, CA and C of every amino acid, C of the cap ACE and N of the cap NME."""
    return _named(topology, "backbone", ("N", "CA", "C"), BACKBONE_CAPS)


def heavy(topology: mdtraj.Topology) -> list[Bead]:
    """Every atom but hydrogen and sites without a mass."""
    beads = [_slice(atom) for atom in topology.atoms if symbol(atom) != "H" and mass(atom) > 0]
    if not beads:
        raise UnknownBeads("the map 'heavy'", "no atom but hydrogen", "name the topology of a molecule")
    return beads


def centres_of_mass(topology: mdtraj.Topology) -> list[Bead]:
    """The centre of mass of every residue."""
    return [
        _centre([atom.index for atom in residue.atoms], topology, f"{residue.name}{residue.resSeq}")
        for residue in topology.residues
    ]


def selections(topology: mdtraj.Topology, chosen: Sequence[str]) -> list[Bead]:
    """The centre of mass of what each selection names."""
    if not chosen:
        raise UnknownBeads("a map of selections", "no selection", "write one selection for each bead")
    beads = []
    for number, selection in enumerate(chosen, start=1):
        atoms = select(topology, selection)
        only = topology.atom(int(atoms[0])) if len(atoms) == 1 else None
        beads.append(_centre(atoms.tolist(), topology, f"{number}:{selection}") if only is None else _slice(only))
    return beads


def from_matrix(topology: mdtraj.Topology, path: Path | None) -> list[Bead]:
    """The rows of a matrix (bead, atom) in an npy, npz or text file; each must add up to 1. Raises InvalidMap."""
    if path is None:
        raise InvalidMap("a map from a matrix", "no file", "name the file of the matrix")
    matrix = _read_matrix(path)
    sums = matrix.sum(axis=1)
    for number, row in enumerate(np.abs(sums - 1) <= ROW_SUM):
        if not row:
            raise InvalidMap(
                f"the map in {path}",
                f"weights of bead {number} (counted from 0) that add up to {sums[number]:g}",
                "divide each row by its sum",
            )
    if matrix.shape[1] != topology.n_atoms:
        raise InvalidMap(
            f"the map in {path}",
            f"{matrix.shape[1]} columns for {topology.n_atoms} atoms",
            "give one row per bead and one column per atom of the topology, after prepare.atoms has been applied",
        )
    beads = []
    for number, row in enumerate(matrix / sums[:, None], start=1):
        atoms = np.flatnonzero(row).tolist()
        label = f"{number}:bead" if len(atoms) > 1 else _label(topology.atom(atoms[0]))
        beads.append(Bead(tuple(atoms), tuple(row[atoms].tolist()), label, _residue(atoms, topology)))
    return beads


def alanine(topology: mdtraj.Topology, preset: str) -> list[Bead]:
    """C of ACE; N, CA, CB, C of ALA; N of NME; CB only in "alanine-six"."""
    return [_slice(_atom(topology, residue, name)) for residue, name in ALANINE[preset]]


SIMPLE: dict[str, Callable[[mdtraj.Topology], list[Bead]]] = {
    "calpha": calpha,
    "five-bead": five_bead,
    "backbone": backbone,
    "heavy": heavy,
    "com": centres_of_mass,
}


def mass(atom: Any) -> float:
    """Mass of an atom, u; 0 for virtual sites."""
    return MASSES.get(symbol(atom)) or float(atom.element.mass if atom.element is not None else 0.0)


def symbol(atom: Any) -> str:
    """The element of an atom; empty where the topology does not know it."""
    return str(atom.element.symbol) if atom.element is not None else ""


def _slice(atom: Any) -> Bead:
    return Bead((atom.index,), (1.0,), _label(atom), atom.residue)


def _centre(atoms: list[int], topology: mdtraj.Topology, label: str) -> Bead:
    masses = np.array([mass(topology.atom(atom)) for atom in atoms])
    heavy_enough = masses > 0
    if not heavy_enough.any():
        raise UnknownBeads(
            f"the centre of mass of {label}",
            "atoms without a mass",
            "name the elements in the topology, or leave these atoms out",
        )
    weights = masses[heavy_enough] / masses.sum()
    atoms = [atom for atom, keep in zip(atoms, heavy_enough, strict=True) if keep]
    return Bead(tuple(atoms), tuple(weights.tolist()), label, _residue(atoms, topology))


def _label(atom: Any) -> str:
    return f"{atom.residue.name}{atom.residue.resSeq}:{atom.name}"


def _residue(atoms: Sequence[int], topology: mdtraj.Topology) -> Any:
    residues = {topology.atom(atom).residue.index for atom in atoms}
    return topology.residue(residues.pop()) if len(residues) == 1 else None


def is_calpha(atom: Any) -> bool:
    """Whether an atom is a Cα."""
    return atom.name == "CA" and symbol(atom) in ("C", "")  # calcium is called CA too


def _named(
    topology: mdtraj.Topology, preset: str, names: tuple[str, ...], caps: dict[str, tuple[str, ...]]
) -> list[Bead]:
    """The atoms of the given names in every amino acid, and those of ``caps``, in the order of the names."""
    beads = []
    for residue in topology.residues:
        plain = standard(residue.name)
        wanted = caps.get(plain, ())
        if plain in AMINO_ACIDS or any(is_calpha(atom) for atom in residue.atoms):
            wanted = tuple(name for name in names if (plain, name) != ("GLY", "CB"))
        there = {atom_name(plain, atom.name): atom for atom in residue.atoms}
        missing = [name for name in wanted if name not in there]
        if missing:
            raise UnknownBeads(
                f"the map {preset!r}",
                f"no {' '.join(missing)} in {residue} ({' '.join(there)})",
                "complete that residue, leave it out by prepare.atoms, or choose another map",
            )
        beads += [_slice(there[name]) for name in wanted]
    if not beads:
        there_are = " ".join(sorted({residue.name for residue in topology.residues}))
        raise UnknownBeads(
            f"the map {preset!r}", f"no amino acid among the residues {there_are}", "name the topology of a protein"
        )
    return beads


def _atom(topology: mdtraj.Topology, residue: str, name: str) -> Any:
    hits = [atom for atom in topology.atoms if (atom.residue.name, atom.name) == (residue, name)]
    if len(hits) == 1:
        return hits[0]
    there = " ".join(atom.name for atom in topology.atoms if atom.residue.name == residue)
    residues = " ".join(str(known) for known in topology.residues)
    found = f"{len(hits)} such atoms in residues {residues[:400]} ({residue} holds {there[:200] or 'nothing'})"
    raise UnknownBeads(f"the bead {residue}:{name}", found, "choose the map or the topology that fits")


def _read_matrix(path: Path) -> Float64[np.ndarray, "bead atom"]:
    if not path.is_file():
        raise MissingInput("the map from a matrix", f"no file {path}", "name the npy, npz or text file of the matrix")
    try:
        if path.suffix == ".npz":
            arrays = read_arrays(path)
            found = arrays["coordinate"] if "coordinate" in arrays else _only(arrays, path)
        elif path.suffix == ".npy":
            found = np.load(path, allow_pickle=False)
        else:
            found = np.loadtxt(path, ndmin=2)
        matrix = np.asarray(found, dtype=np.float64)
    except (OSError, EOFError, ValueError, TypeError) as error:
        if isinstance(error, (UnreadableFile, InvalidMap)):
            raise
        raise UnreadableFile(
            f"reading the map {path}", f"no matrix of numbers ({error})", "give an npy, npz or text file"
        ) from error
    if matrix.ndim != 2 or not matrix.size or not np.isfinite(matrix).all():
        raise InvalidMap(
            f"the map in {path}",
            f"an array of shape {matrix.shape}" + (" with values that are no numbers" if matrix.ndim == 2 else ""),
            "give numbers, one row per bead and one column per atom",
        )
    return matrix


def _only(arrays: dict[str, np.ndarray], path: Path) -> np.ndarray:
    if len(arrays) != 1:
        raise InvalidMap(
            f"the map in {path}", f"the arrays {' '.join(arrays) or '(none)'}", "name the one to use 'coordinate'"
        )
    return next(iter(arrays.values()))
