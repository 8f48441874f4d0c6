"""The same peptide is the same atoms and bonds, whatever format and force field its topology comes from."""

from contextlib import suppress

import h5py
import mdtraj
import numpy as np
import pytest

from hpc_cg.errors import MissingInput, UnknownBeads, UnreadableFile
from hpc_cg.mapping.maps import MapChoice, coordinate_map
from hpc_cg.mapping.topology import load_topology, select

ATOMS = [
    ("ACE", 1, "CH3"), ("ACE", 1, "C"), ("ACE", 1, "O"),
    ("ALA", 2, "N"), ("ALA", 2, "CA"), ("ALA", 2, "CB"), ("ALA", 2, "C"), ("ALA", 2, "O"),
    ("NME", 3, "N"), ("NME", 3, "C"),
]  # fmt: skip
BONDS = [(0, 1), (1, 2), (1, 3), (3, 4), (4, 5), (4, 6), (6, 7), (6, 8), (8, 9)]
MASS = {"C": 12.011, "N": 14.007, "O": 15.999}


def pdb(atoms=ATOMS) -> str:
    lines = [
        f"ATOM  {i + 1:5d}  {name:<3s} {residue:<4s}A{number:4d}    {i:8.3f}{0:8.3f}{0:8.3f}  1.00  0.00          "
        f"{name[0]:>2s}"
        for i, (residue, number, name) in enumerate(atoms)
    ]
    return "\n".join([*lines, "END", ""])


def gro(atoms=ATOMS) -> str:
    lines = [
        f"{number:5d}{residue:<5s}{name:>5s}{i + 1:5d}{0.1 * i:8.3f}{0:8.3f}{0:8.3f}"
        for i, (residue, number, name) in enumerate(atoms)
    ]
    return "\n".join(["peptide", f"{len(atoms):5d}", *lines, "   5.0   5.0   5.0", ""])


def psf(atoms=ATOMS) -> str:
    lines = ["PSF", "", "       1 !NTITLE", " REMARKS peptide", "", f"{len(atoms):8d} !NATOM"]
    lines += [
        f"{i + 1:8d} A    {number:<4d} {residue:<4s} {name:<4s} {name[0]:<4s} {0.0:10.6f} {MASS[name[0]]:13.4f} {0:11d}"
        for i, (residue, number, name) in enumerate(atoms)
    ]
    numbers = [end + 1 for bond in BONDS for end in bond]
    lines += ["", f"{len(BONDS):8d} !NBOND: bonds"]
    lines += ["".join(f"{n:8d}" for n in numbers[k : k + 8]) for k in range(0, len(numbers), 8)]
    for section in ("!NTHETA: angles", "!NPHI: dihedrals", "!NIMPHI: impropers", "!NDON", "!NACC", "!NNB"):
        lines += ["", f"{0:8d} {section}", ""]
    return "\n".join([*lines, ""])


def prmtop(atoms=ATOMS) -> str:
    firsts = [i for i, atom in enumerate(atoms) if i == 0 or atom[1] != atoms[i - 1][1]]
    pointers = np.zeros(31, dtype=int)
    pointers[[0, 1, 3, 11]] = len(atoms), 1, len(BONDS), len(firsts)
    bonds = [number for i, j in BONDS for number in (3 * i, 3 * j, 1)]
    integers = {"POINTERS": pointers.tolist(), "RESIDUE_POINTER": [i + 1 for i in firsts]}
    integers |= {"BONDS_INC_HYDROGEN": [], "BONDS_WITHOUT_HYDROGEN": bonds}
    integers |= {"ATOMIC_NUMBER": [{"C": 6, "N": 7, "O": 8}[name[0]] for *_, name in atoms]}
    words = {"ATOM_NAME": [name for *_, name in atoms], "AMBER_ATOM_TYPE": [name[0] for *_, name in atoms]}
    words |= {"RESIDUE_LABEL": [atoms[i][0] for i in firsts]}
    text = "%VERSION  VERSION_STAMP = V0001.000  DATE = 01/01/26  00:00:00\n"
    for name, values in integers.items():
        rows = ["".join(f"{v:8d}" for v in values[k : k + 10]) for k in range(0, len(values), 10)] or [""]
        text += f"%FLAG {name}\n%FORMAT(10I8)\n" + "\n".join(rows) + "\n"
    for name, strings in words.items():
        rows = ["".join(f"{s:<4s}" for s in strings[k : k + 20]) for k in range(0, len(strings), 20)]
        text += f"%FLAG {name}\n%FORMAT(20a4)\n" + "\n".join(rows) + "\n"
    return text


WRITERS = {"a.pdb": pdb, "a.gro": gro, "a.psf": psf, "a.prmtop": prmtop, "a.parm7": prmtop}


def bonds_of(topology: mdtraj.Topology) -> list[tuple[int, int]]:
    return sorted((min(a.index, b.index), max(a.index, b.index)) for a, b in topology.bonds)


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_atoms_bonds_and_beads(tmp_path, name):
    (tmp_path / name).write_text(WRITERS[name]())
    topology = load_topology(tmp_path / name)
    assert [(a.residue.name, a.residue.index + 1, a.name) for a in topology.atoms] == ATOMS
    assert bonds_of(topology) == BONDS
    assert coordinate_map(topology, MapChoice("alanine-six"))[1].bonds == ((0, 1), (1, 2), (2, 3), (2, 4), (4, 5))


@pytest.mark.parametrize("name", ["HISE", "HSD", "HID", "ASPH", "CYX", "NALA", "LYSH"])
def test_residues_of_other_force_fields_have_bonds_in_a_gro_file(tmp_path, name):
    atoms = [(name if residue == "ALA" else residue, number, atom) for residue, number, atom in ATOMS]
    (tmp_path / "a.gro").write_text(gro(atoms))
    assert bonds_of(load_topology(tmp_path / "a.gro")) == BONDS
    (tmp_path / "a.pdb").write_text(pdb(atoms))
    assert bonds_of(load_topology(tmp_path / "a.pdb")) == BONDS


def test_mdcath_file_holds_its_topology(tmp_path):
    with h5py.File(tmp_path / "mdcath.h5", "w") as file:
        file.create_group("1abcA00")["pdbProteinAtoms"] = pdb()
    assert bonds_of(load_topology(tmp_path / "mdcath.h5")) == BONDS
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["positions"] = np.zeros((2, 3, 3))
    with pytest.raises(UnreadableFile, match=r"other\.h5.*no text of a PDB"):
        load_topology(tmp_path / "other.h5")


def test_topology_that_is_missing_or_no_topology_is_refused(tmp_path):
    with pytest.raises(MissingInput, match=r"none\.pdb"):
        load_topology(tmp_path / "none.pdb")
    endings = ("pdb", "gro", "weird", "psf", "prmtop", "parm7", "mol2", "cif", "h5")
    for name in (f"bad.{ending}" for ending in endings):
        for content in ("", "x\n", "no atoms here\n" * 20):
            (tmp_path / name).write_text(content)
            with pytest.raises(UnreadableFile, match=name):
                load_topology(tmp_path / name)


@pytest.mark.parametrize("name", ["a.psf", "a.prmtop", "a.gro"])
def test_topology_cut_anywhere_is_refused_or_shorter(tmp_path, name):
    whole = WRITERS[name]()
    for length in range(0, len(whole), 97):
        (tmp_path / name).write_text(whole[:length])
        with suppress(UnreadableFile):
            assert load_topology(tmp_path / name).n_atoms <= len(ATOMS)


def test_selections_are_those_of_mdtraj(tmp_path):
    (tmp_path / "a.pdb").write_text(pdb())
    topology = load_topology(tmp_path / "a.pdb")
    assert select(topology, "name CA or name N").tolist() == [3, 4, 8]
    assert select(topology, "resid 1 and element C").dtype == np.int64
    unfit = ("", "nam CA", "name CA and", "(name CA", "name =~ '('", "name CA or os.system('x')", "__import__('os')")
    for wrong in unfit:
        with pytest.raises(UnknownBeads, match="mdtraj"):
            select(topology, wrong)
    with pytest.raises(UnknownBeads, match="residues ACE ALA NME"):
        select(topology, "resname HOH")
