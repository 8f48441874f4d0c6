"""Which atoms there are and how they are bonded: topologies from files, and selections of their atoms."""

import re
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
from jaxtyping import Int64

from hpc_cg.errors import HpcCgError, MissingInput, UnknownBeads, UnreadableFile
from hpc_cg.mapping.residues import standard

FORMATS = {
    "PDB": (".pdb", ".pdb.gz"),
    "PDBx/mmCIF": (".cif", ".cif.gz", ".mmcif", ".mmcif.gz", ".pdbx", ".pdbx.gz"),
    "GROMACS": (".gro",),
    "CHARMM, NAMD": (".psf",),
    "Amber": (".prmtop", ".parm7", ".prm7"),
    "Tripos": (".mol2",),
    "mdCATH": (".h5", ".hdf5"),
}
"""What load_topology reads, by the end of a file's name."""


def load_topology(path: Path) -> mdtraj.Topology:
    """The topology in a file of one of FORMATS; raises MissingInput, UnreadableFile.

    Files that list no bonds (PDB, GRO) get those of the standard residues, also where these have the names of other
    force fields (HSD, HID, CYX, ASH ...), and what CONECT records say.
    """
    if not path.is_file():
        raise MissingInput("the topology", f"no file {path}", "name the PDB, GRO, PSF or PRMTOP file of the molecule")
    if not path.name.lower().endswith(tuple(end for ends in FORMATS.values() for end in ends)):
        raise _unreadable(path, f"a name that ends in {path.suffix or 'nothing'}")
    try:
        topology = _read(path)
    except (HpcCgError, MemoryError):
        raise
    except Exception as error:  # parsers of mdtraj raise whatever they stumble over, also Exception itself
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error
    if topology is None or topology.n_atoms == 0:
        raise _unreadable(path, "no atoms")
    return with_bonds_of_other_names(topology)


def select(topology: mdtraj.Topology, selection: str) -> Int64[np.ndarray, "atom"]:
    """Indices, ascending, of the atoms that an mdtraj selection names; raises UnknownBeads for none or no selection."""
    try:
        atoms = np.unique(np.asarray(topology.select(selection), dtype=np.int64))
    except (ValueError, TypeError, KeyError, AttributeError, SyntaxError, RecursionError, re.error) as error:
        raise UnknownBeads(
            f"the atoms {selection!r}",
            f"no selection that can be understood ({' '.join(str(error).split())[:160]})",
            'write it as mdtraj does, e.g. "protein", "name CA and resid 0 to 9", "chainid 0 and not element H"',
        ) from error
    if not len(atoms):
        names = " ".join(sorted({residue.name for residue in topology.residues})[:40])
        raise UnknownBeads(
            f"the atoms {selection!r}",
            f"none in a topology of {topology.n_atoms} atoms with the residues {names}",
            "name atoms that are there (mdtraj counts resid and index from 0; resSeq is the number in the file)",
        )
    return atoms


def _read(path: Path) -> mdtraj.Topology | None:
    if path.suffix.lower() in (".h5", ".hdf5"):
        from hpc_cg.archive.mdcath import topology_text

        text = topology_text(path)
        if text is None:
            raise _unreadable(path, "no text of a PDB file in it, as files of mdCATH hold")
        return _of_text(text)
    return mdtraj.load_topology(str(path))


def _of_text(text: str) -> mdtraj.Topology:
    """The topology in the text of a PDB file."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        path = Path(folder) / "topology.pdb"
        path.write_text(text, encoding="utf-8")
        return mdtraj.load_topology(str(path))


def with_bonds_of_other_names(topology: mdtraj.Topology) -> mdtraj.Topology:
    """Add the bonds inside and beside residues whose standard name has bonds and whose own has none, in place."""
    bonded = {a.residue.index for a, b in topology.bonds if a.residue is b.residue}
    renamable = (residue for residue in topology.residues if standard(residue.name) != residue.name)
    unbonded = [residue for residue in renamable if residue.n_atoms > 1 and residue.index not in bonded]
    if not unbonded:
        return topology
    renamed = topology.copy()
    for residue in unbonded:
        renamed.residue(residue.index).name = standard(residue.name)
    renamed.create_standard_bonds()
    known = {_ends(bond) for bond in topology.bonds}
    wanted = {residue.index for residue in unbonded}
    for bond in renamed.bonds:
        touched = {bond[0].residue.index, bond[1].residue.index} & wanted
        if touched and _ends(bond) not in known:
            known.add(_ends(bond))
            topology.add_bond(*(topology.atom(atom.index) for atom in bond))
    return topology


def _ends(bond: Any) -> tuple[int, int]:
    first, second = sorted(atom.index for atom in bond)
    return first, second


def _unreadable(path: Path, found: str) -> UnreadableFile:
    known = "; ".join(f"{name} ({' '.join(ends)})" for name, ends in FORMATS.items())
    return UnreadableFile(
        f"reading the topology {path}", found, f"name a whole file of the molecule in one of these formats: {known}"
    )
