import mdtraj
import numpy as np
import pytest

from hpc_cg.beads import bead_system
from hpc_cg.errors import HpcCgError, UnknownBeads
from hpc_cg.simulate.export import bead_topology, pdb_text, write_topology_pdb, write_trajectory


def test_pdb_opens_with_the_beads_names_and_bonds(ensemble, tmp_path):
    path = tmp_path / "beads.pdb"
    write_topology_pdb(path, ensemble.system, ensemble.frames[0])
    opened = mdtraj.load(str(path))
    atoms = list(opened.topology.atoms)
    assert [f"{a.residue.name}{a.residue.resSeq}:{a.name}" for a in atoms] == list(ensemble.system.names)
    assert [a.element.symbol for a in atoms] == ["C", "N", "C", "C", "C", "N"]
    bonds = {tuple(sorted((a.index, b.index))) for a, b in opened.topology.bonds}
    assert bonds == set(ensemble.system.bonds)
    assert np.allclose(opened.xyz[0], ensemble.frames[0], atol=6e-5)


@pytest.mark.parametrize(("suffix", "rounding"), [("xtc", 5.1e-4), ("dcd", 1e-6)])
def test_trajectory_opens_with_the_right_numbers(ensemble, tmp_path, suffix, rounding):
    path, positions = tmp_path / f"a run.{suffix}", ensemble.frames[:20].astype(np.float32)
    write_topology_pdb(tmp_path / "beads.pdb", ensemble.system, positions[0])
    write_trajectory(path, positions, bead_topology(ensemble.system), frame_ps=0.2)
    opened = mdtraj.load(str(path), top=str(tmp_path / "beads.pdb"))
    assert opened.xyz.shape == positions.shape
    assert np.abs(opened.xyz - positions).max() < rounding
    if suffix == "xtc":
        assert np.allclose(opened.time, 0.2 * np.arange(20))
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, "beads.pdb"]


def test_unknown_suffix_is_refused(ensemble, tmp_path):
    with pytest.raises(HpcCgError, match=r"suffix '.mp4'"):
        write_trajectory(tmp_path / "film.mp4", ensemble.frames[:1], bead_topology(ensemble.system))


def test_names_without_residues_get_one_and_impossible_names_are_refused():
    plain = bead_system(("1:C", "2:N", "CA"), range(3), (12.0, 14.0, 12.0), ((0, 1), (1, 2)))
    lines = pdb_text(plain, np.zeros((3, 3))).splitlines()
    assert [line[12:26].split() for line in lines[:3]] == [
        ["C", "BEA", "A", "1"],
        ["N", "BEA", "A", "2"],
        ["CA", "BEA", "A", "3"],
    ]
    odd = bead_system(("ALANINE2:CA",), (0,), (12.0,), ())
    with pytest.raises(UnknownBeads, match="ALANINE2:CA"):
        pdb_text(odd, np.zeros((1, 3)))
