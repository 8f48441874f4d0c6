"""What residues and their atoms are called in different force fields, and the numbers of the bead types they lead to.

Type numbers are fixed by the tables below, not by the molecule at hand: molecules of one store share their types.
"""

AMINO_ACIDS = (
    "ALA ARG ASN ASP CYS GLN GLU GLY HIS ILE LEU LYS MET PHE PRO SER THR TRP TYR VAL".split()  # noqa: SIM905
)
"""Residues in the order of the types that a Cα bead takes."""

CAPS = ["ACE", "NME"]
RESIDUES = [*AMINO_ACIDS, *CAPS]

ALIASES = {
    "ARG": "ARN ARGN",
    "ASP": "ASH ASPH ASPP",
    "CYS": "CYX CYM CYSH CYS2 CYS1",
    "GLU": "GLH GLUH GLUP",
    "HIS": "HSD HSE HSP HID HIE HIP HISD HISE HISH HISA HISB HIS1 HIS2",
    "LEU": "NLE",
    "LYS": "LYN LYSH LSN LYSN",
    "MET": "MSE",
    "TYR": "TYM",
    "NME": "NMA NAC CT3",
}
"""Other protonation states, norleucine and selenomethionine, and the amino acid whose type they take."""

BACKBONE_NAMES = {
    "O": "OT1 OC1 O1 OCT1",
    "OXT": "OT2 OC2 O2 OCT2 OT",
}

HEAVY_ATOMS = {
    "ALA": "CB",
    "ARG": "CB CG CD NE CZ NH1 NH2",
    "ASN": "CB CG OD1 ND2",
    "ASP": "CB CG OD1 OD2",
    "CYS": "CB SG",
    "GLN": "CB CG CD OE1 NE2",
    "GLU": "CB CG CD OE1 OE2",
    "GLY": "",
    "HIS": "CB CG ND1 CD2 CE1 NE2",
    "ILE": "CB CG1 CG2 CD1",
    "LEU": "CB CG CD1 CD2",
    "LYS": "CB CG CD CE NZ",
    "MET": "CB CG SD CE",
    "PHE": "CB CG CD1 CD2 CE1 CE2 CZ",
    "PRO": "CB CG CD",
    "SER": "CB OG",
    "THR": "CB OG1 CG2",
    "TRP": "CB CG CD1 CD2 NE1 CE2 CE3 CZ2 CZ3 CH2",
    "TYR": "CB CG CD1 CD2 CE1 CE2 CZ OH",
    "VAL": "CB CG1 CG2",
}
"""Atoms of the side chains, without hydrogen."""

FIVE_BEAD = {"N": 20, "CA": 21, "C": 22, "O": 23}
"""Types of backbone atoms beside the amino acids' own, which CB has, or CA where there is no CB."""

_STANDARD = {other: name for name, others in ALIASES.items() for other in others.split()}
_ATOMS = {other: name for name, others in BACKBONE_NAMES.items() for other in others.split()}


def standard(residue: str) -> str:
    """The amino acid or cap that a residue's name stands for; the name itself where it stands for none.

    "HSD" is HIS; Amber's "NALA" and "CALA", the residues at the ends of a chain, are ALA.
    """
    plain = _STANDARD.get(residue, residue)
    if plain not in RESIDUES and len(residue) == 4 and residue[0] in "NC":
        inner = _STANDARD.get(residue[1:], residue[1:])
        return inner if inner in AMINO_ACIDS else plain
    return plain


def atom_name(residue: str, atom: str) -> str:
    """The name of an atom of a residue (a standard one) as the tables have it."""
    if residue == "ILE" and atom == "CD":
        return "CD1"
    if residue == "MET" and atom == "SE":
        return "SD"
    if residue == "NME" and atom == "CH3":
        return "C"
    return _ATOMS.get(atom, atom) if residue in AMINO_ACIDS else atom


def _pairs() -> list[tuple[str, str]]:
    amino = [(name, atom) for name in AMINO_ACIDS for atom in ["N", "CA", "C", "O", "OXT", *HEAVY_ATOMS[name].split()]]
    caps = [("ACE", "CH3"), ("ACE", "C"), ("ACE", "O"), ("NME", "N"), ("NME", "C")]
    return amino + caps


ATOM_TYPES = {pair: number for number, pair in enumerate(_pairs())}
"""Type of each heavy atom of each residue."""
