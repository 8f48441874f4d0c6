"""Alanine dipeptide without its hydrogens, as a PDB without a single CONECT record."""

from pathlib import Path

import pytest

from hpc_cg.archive.reference import HEAVY_ATOMS, heavy_atoms


@pytest.fixture
def alanine_pdb(tmp_path: Path) -> Path:
    residues = {"ACE": 1, "ALA": 2, "NME": 3}
    lines = [
        f"ATOM  {i + 1:5d}  {name:<3s} {residue} A{residues[residue]:4d}    "
        f"{10 * x:8.3f}{10 * y:8.3f}{10 * z:8.3f}  1.00  0.00           {name[0]}"
        for i, ((residue, name, *_), (x, y, z)) in enumerate(zip(HEAVY_ATOMS, heavy_atoms(-65.0, -40.0), strict=True))
    ]
    path = tmp_path / "alanine dipeptide.pdb"
    path.write_text("\n".join([*lines, "END", ""]))
    return path
