"""Trajectories and a topology that other programs open: XTC, DCD, and a PDB with one atom per bead.

A bead called "ALA2:CA" becomes atom CA of residue ALA 2, "2:CA" atom CA of residue BEA 2, and a name without
a colon an atom of residue BEA whose number is the bead's place. The bonds of the bead system are written as
CONECT records. PDB: wwPDB format 3.3.
"""

import re
import tempfile
from itertools import groupby
from pathlib import Path

import mdtraj
import numpy as np
from jaxtyping import Float

from hpc_cg.beads import BeadSystem
from hpc_cg.errors import HpcCgError, UnknownBeads
from hpc_cg.files import explain_write_errors, fsync_folder, write_text
from hpc_cg.units import ANGSTROM

_RESIDUE = re.compile(r"([A-Za-z][A-Za-z0-9]*?)?(\d+):(\S+)")

UNNAMED = "BEA"
"""Residue of beads whose names give none."""


def bead_topology(system: BeadSystem) -> mdtraj.Topology:
    """The topology of the beads for mdtraj: one chain, one atom per bead, the bonds of the system."""
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    labels = [_label(name, place) for place, name in enumerate(system.names)]
    for (residue_name, number), members in groupby(labels, key=lambda label: label[:2]):
        residue = topology.add_residue(residue_name, chain, resSeq=number)
        for _, _, atom in members:
            topology.add_atom(atom, mdtraj.element.Element.getBySymbol(_element(atom)), residue)
    atoms = list(topology.atoms)
    for i, j in system.bonds:
        topology.add_bond(atoms[i], atoms[j])
    return topology


def write_trajectory(
    path: Path,
    positions: Float[np.ndarray, "frame bead 3"],
    topology: mdtraj.Topology,
    frame_ps: float = 1.0,
) -> None:
    """Write frames (nm, ``frame_ps`` apart) as .xtc or .dcd, by the suffix; the file appears whole or not at
    all.

    XTC rounds to 0.001 nm and keeps the time; DCD keeps float32 in Angstrom and no time in ps.
    Raises HpcCgError for another suffix, DiskFull, FolderNotWritable.
    """
    if path.suffix not in (".xtc", ".dcd"):
        raise HpcCgError(f"writing the trajectory {path}", f"suffix {path.suffix!r}", "end the name in .xtc or .dcd")
    time = np.arange(len(positions), dtype=np.float64) * frame_ps
    trajectory = mdtraj.Trajectory(positions.astype(np.float32), topology, time=time)
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.", suffix=".partial") as beside:
            part = Path(beside) / path.name
            trajectory.save(str(part))
            part.replace(path)
        fsync_folder(path.parent)


def write_topology_pdb(path: Path, system: BeadSystem, positions: Float[np.ndarray, "bead 3"]) -> None:
    """Write the beads at ``positions`` (nm) as a PDB, atomically; raises UnknownBeads for names a PDB cannot
    hold.
    """
    write_text(path, pdb_text(system, positions))


def pdb_text(system: BeadSystem, positions: Float[np.ndarray, "bead 3"]) -> str:
    """The PDB of one frame (nm), with a CONECT record for every bead that has bonds."""
    lines = []
    for place, (name, where) in enumerate(zip(system.names, positions / ANGSTROM, strict=True)):
        residue, number, atom = _label(name, place)
        column = atom if len(atom) == 4 else f" {atom}"
        x, y, z = where
        lines.append(
            f"ATOM  {place + 1:5d} {column:<4} {residue:>3} A{number:4d}    {x:8.3f}{y:8.3f}{z:8.3f}"
            f"{1:6.2f}{0:6.2f}          {_element(atom):>2}"
        )
    lines.append(f"TER   {system.n_beads + 1:5d}")
    for place in range(system.n_beads):
        partners = sorted({i + j - place for i, j in system.bonds if place in (i, j)})
        for start in range(0, len(partners), 4):
            listed = "".join(f"{partner + 1:5d}" for partner in partners[start : start + 4])
            lines.append(f"CONECT{place + 1:5d}{listed}")
    return "\n".join([*lines, "END", ""])


def _label(name: str, place: int) -> tuple[str, int, str]:
    """Residue name, residue number and atom name of a bead."""
    match = _RESIDUE.fullmatch(name)
    residue, number, atom = (match[1] or UNNAMED, int(match[2]), match[3]) if match else (UNNAMED, place + 1, name)
    if len(residue) > 3 or len(atom) > 4 or not 0 <= number <= 9999 or not name.isascii() or " " in name:
        raise UnknownBeads(
            "writing a PDB",
            f"bead {name!r}",
            "use names like ALA2:CA, with a residue of 3 letters at most and an atom of 4",
        )
    return residue, number, atom


def _element(atom: str) -> str:
    """The element that the first letter of the atom's name stands for; carbon for any other."""
    return atom[0] if atom[0] in "CNOSHP" else "C"
