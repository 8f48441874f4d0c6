"""A map picks the atoms it names, knows their bonds, and says what it misses."""

import numpy as np
import pytest

from hpc_cg.errors import MissingInput, UnknownBeads, UnreadableFile
from hpc_cg.files import read_arrays, write_arrays
from hpc_cg.mapping import maps


@pytest.fixture
def water_map() -> maps.CGMap:
    """Two water molecules as two oxygens that feel their whole molecules."""
    coordinate = np.eye(6)[[0, 3]]
    _, system = maps.identity_map(["O", "O"])
    return maps.CGMap(coordinate, np.repeat(np.eye(2), 3, axis=1), system)


def test_six_beads_of_alanine_are_the_named_atoms(alanine_pdb):
    topology = maps.load_topology(alanine_pdb)
    matrix, system = maps.slice_map(topology, "alanine-six")
    picked = [str(topology.atom(int(i))) for i in matrix.argmax(axis=1)]
    assert picked == ["ACE1-C", "ALA2-N", "ALA2-CA", "ALA2-CB", "ALA2-C", "NME3-N"]
    assert system.names == ("ACE1:C", "ALA2:N", "ALA2:CA", "ALA2:CB", "ALA2:C", "NME3:N")
    assert (matrix.sum(axis=1) == 1).all() and np.isin(matrix, (0, 1)).all()
    assert system.masses == (12.011, 14.007, 12.011, 12.011, 12.011, 14.007)
    assert system.types == (0, 1, 2, 3, 4, 5)


def test_peptide_bonds_are_found_without_conect_records(alanine_pdb):
    topology = maps.load_topology(alanine_pdb)
    assert maps.slice_map(topology, "alanine-six")[1].bonds == ((0, 1), (1, 2), (2, 3), (2, 4), (4, 5))
    assert maps.slice_map(topology, "alanine-five")[1].bonds == ((0, 1), (1, 2), (2, 3), (3, 4))


def test_chirality_needs_the_side_chain(alanine_pdb):
    topology = maps.load_topology(alanine_pdb)
    six, five = (maps.slice_map(topology, preset)[1] for preset in ("alanine-six", "alanine-five"))
    assert [tuple(six.names[i].partition(":")[2] for i in quad) for quad in six.impropers] == [("CA", "N", "C", "CB")]
    assert five.impropers == ()


def test_missing_atom_is_named_with_what_is_there(alanine_pdb):
    text = "".join(line for line in alanine_pdb.read_text().splitlines(True) if " CB " not in line)
    alanine_pdb.write_text(text)
    topology = maps.load_topology(alanine_pdb)
    with pytest.raises(UnknownBeads, match=r"ALA:CB.*ALA holds N CA C O"):
        maps.slice_map(topology, "alanine-six")
    with pytest.raises(UnknownBeads, match="alanine-five"):
        maps.slice_map(topology, "alanine-seven")


def test_calpha_needs_amino_acids_and_types_them(alanine_pdb):
    topology = maps.load_topology(alanine_pdb)
    matrix, system = maps.slice_map(topology, "calpha")
    assert matrix.shape == (1, 10) and system.types == (0,) and system.bonds == ()
    alanine_pdb.write_text(alanine_pdb.read_text().replace("ALA", "XYZ"))
    with pytest.raises(UnknownBeads, match="no CA in the residues ACE NME XYZ"):
        maps.slice_map(maps.load_topology(alanine_pdb), "calpha")


def test_topology_that_is_missing_or_no_topology_is_refused(tmp_path):
    with pytest.raises(MissingInput, match=r"none\.pdb"):
        maps.load_topology(tmp_path / "none.pdb")
    for name, content in (("words.pdb", "no atoms here\n"), ("bad.gro", "x\n"), ("some.weird", "x\n")):
        (tmp_path / name).write_text(content)
        with pytest.raises(UnreadableFile, match=name):
            maps.load_topology(tmp_path / name)


def test_identity_map_keeps_beads_and_bonds_along_the_chain():
    matrix, system = maps.identity_map(["C", "N", "CA", "C", "N"])
    np.testing.assert_array_equal(matrix, np.eye(5))
    assert system.bonds == ((0, 1), (1, 2), (2, 3), (3, 4))
    assert system.masses == (12.011, 14.007, 12.011, 12.011, 14.007)
    assert system.index("CA") == 2 and len(set(system.names)) == 5


def test_identity_map_of_six_beads_has_the_bonds_of_the_sliced_one(alanine_pdb):
    _, sliced = maps.slice_map(maps.load_topology(alanine_pdb), "alanine-six")
    _, named = maps.identity_map(["C", "N", "CA", "CB", "C", "N"])
    assert (named.bonds, named.impropers, named.dihedrals) == (
        sliced.bonds,
        sliced.impropers,
        sliced.dihedrals,
    )


def test_identity_map_refuses_what_is_no_element():
    with pytest.raises(UnknownBeads, match="Q1"):
        maps.identity_map(["C", "Q1"])
    with pytest.raises(UnknownBeads, match="no names"):
        maps.identity_map([])


def test_map_applies_to_one_frame_and_to_many(water_map):
    positions = np.random.default_rng(0).normal(size=(7, 6, 3)).astype(np.float32)
    beads = water_map.apply_positions(positions)
    np.testing.assert_array_equal(beads, positions[:, [0, 3]])
    np.testing.assert_array_equal(water_map.apply_positions(positions[2]), beads[2])
    np.testing.assert_allclose(
        water_map.apply_forces(positions[None])[0], positions.reshape(7, 2, 3, 3).sum(axis=2), atol=1e-6
    )
    assert beads.dtype == np.float64


def test_forces_that_cancel_are_summed_in_float64(water_map):
    forces = np.zeros((1, 6, 3), dtype=np.float32)
    forces[0, :3, 0] = [1e8, 1.0, -1e8]
    assert water_map.apply_forces(forces)[0, 0, 0] == 1.0


def test_orthogonality_is_the_worst_element(water_map):
    assert water_map.orthogonality == 0
    wrong = maps.CGMap(water_map.coordinate, 1.5 * water_map.force, water_map.system)
    assert wrong.orthogonality == pytest.approx(0.5)


def test_map_survives_its_file_and_its_digest_tells_maps_apart(tmp_path, water_map):
    write_arrays(tmp_path / "map.npz", **water_map.arrays(), other=np.zeros(3))
    back = maps.CGMap.from_arrays(read_arrays(tmp_path / "map.npz"), water_map.system)
    assert back.digest == water_map.digest
    np.testing.assert_array_equal(back.force, water_map.force)
    sliced = maps.CGMap(water_map.coordinate, water_map.coordinate, water_map.system)
    assert sliced.digest != water_map.digest


@pytest.mark.data
def test_real_topologies_give_their_beads(data_folder):
    topology = maps.load_topology(data_folder / "ala2_all_atom" / "topology.pdb")
    matrix, _ = maps.slice_map(topology, "alanine-six")
    assert matrix.argmax(axis=1).tolist() == [4, 6, 8, 10, 14, 16]
    chignolin = maps.load_topology(data_folder / "chignolin_all_atom" / "topology.pdb")
    matrix, system = maps.slice_map(chignolin, "calpha")
    assert matrix.shape == (10, 166) and len(system.bonds) == 9 and len(set(system.types)) == 7
