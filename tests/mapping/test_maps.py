"""A map picks the atoms it names, knows their bonds, and says what it misses."""

import time
from pathlib import Path

import mdtraj
import numpy as np
import pytest

from hpc_cg.errors import InvalidMap, MissingInput, UnknownBeads, UnreadableFile
from hpc_cg.files import read_arrays, write_arrays
from hpc_cg.mapping import maps
from hpc_cg.mapping.maps import MapChoice, coordinate_map
from hpc_cg.mapping.residues import HEAVY_ATOMS, standard
from hpc_cg.mapping.topology import load_topology, select, with_bonds_of_other_names


def peptide(*names: str, caps: bool = False) -> mdtraj.Topology:
    """Heavy atoms of a peptide with the bonds mdtraj knows."""
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    for name in ["ACE", *names, "NME"] if caps else names:
        residue = topology.add_residue(name, chain)
        side = HEAVY_ATOMS.get(standard(name), "CB").split()
        atoms = {"ACE": ["CH3", "C", "O"], "NME": ["N", "C"]}.get(name, ["N", "CA", "C", "O", *side])
        for atom in atoms:
            topology.add_atom(atom, mdtraj.element.get_by_symbol(atom[0]), residue)
    topology.create_standard_bonds()
    return topology


def two_chains() -> mdtraj.Topology:
    one = peptide("GLY", "ALA", "SER")
    return one.join(peptide("ALA", "CYS", "VAL"))


@pytest.fixture
def water_map() -> maps.CGMap:
    """Two water molecules as two oxygens that feel their whole molecules."""
    coordinate = np.eye(6)[[0, 3]]
    _, system = maps.identity_map(["O", "O"])
    return maps.CGMap(coordinate, np.repeat(np.eye(2), 3, axis=1), system)


def test_six_beads_of_alanine_are_the_named_atoms(alanine_pdb):
    topology = load_topology(alanine_pdb)
    matrix, system = coordinate_map(topology, MapChoice("alanine-six"))
    picked = [str(topology.atom(int(i))) for i in matrix.argmax(axis=1)]
    assert picked == ["ACE1-C", "ALA2-N", "ALA2-CA", "ALA2-CB", "ALA2-C", "NME3-N"]
    assert system.names == ("ACE1:C", "ALA2:N", "ALA2:CA", "ALA2:CB", "ALA2:C", "NME3:N")
    assert (matrix.sum(axis=1) == 1).all() and np.isin(matrix, (0, 1)).all()
    assert system.masses == (12.011, 14.007, 12.011, 12.011, 12.011, 14.007)
    assert system.types == (0, 1, 2, 3, 4, 5)


def test_peptide_bonds_are_found_without_conect_records(alanine_pdb):
    topology = load_topology(alanine_pdb)
    assert coordinate_map(topology, MapChoice("alanine-six"))[1].bonds == ((0, 1), (1, 2), (2, 3), (2, 4), (4, 5))
    assert coordinate_map(topology, MapChoice("alanine-five"))[1].bonds == ((0, 1), (1, 2), (2, 3), (3, 4))


def test_chirality_needs_the_side_chain(alanine_pdb):
    topology = load_topology(alanine_pdb)
    six, five = (coordinate_map(topology, MapChoice(preset))[1] for preset in ("alanine-six", "alanine-five"))
    assert [tuple(six.names[i].partition(":")[2] for i in quad) for quad in six.impropers] == [("CA", "N", "C", "CB")]
    assert five.impropers == ()


def test_missing_atom_is_named_with_what_is_there(alanine_pdb):
    text = "".join(line for line in alanine_pdb.read_text().splitlines(True) if " CB " not in line)
    alanine_pdb.write_text(text)
    topology = load_topology(alanine_pdb)
    with pytest.raises(UnknownBeads, match=r"ALA:CB.*ALA holds N CA C O"):
        coordinate_map(topology, MapChoice("alanine-six"))
    with pytest.raises(UnknownBeads, match="alanine-five"):
        coordinate_map(topology, MapChoice("alanine-seven"))


def test_calpha_needs_amino_acids_and_types_them(alanine_pdb):
    topology = load_topology(alanine_pdb)
    matrix, system = coordinate_map(topology, MapChoice("calpha"))
    assert matrix.shape == (1, 10) and system.types == (0,) and system.bonds == ()
    alanine_pdb.write_text(alanine_pdb.read_text().replace("ALA", "XYZ"))
    with pytest.raises(UnknownBeads, match=r"no type for XYZ2:CA.*unique"):
        coordinate_map(load_topology(alanine_pdb), MapChoice("calpha"))
    alanine_pdb.write_text(alanine_pdb.read_text().replace(" CA ", " CX "))
    with pytest.raises(UnknownBeads, match="no CA in the residues ACE NME XYZ"):
        coordinate_map(load_topology(alanine_pdb), MapChoice("calpha"))


def test_identity_map_keeps_beads_and_bonds_along_the_chain():
    matrix, system = maps.identity_map(["C", "N", "CA", "C", "N"])
    np.testing.assert_array_equal(matrix, np.eye(5))
    assert system.bonds == ((0, 1), (1, 2), (2, 3), (3, 4))
    assert system.masses == (12.011, 14.007, 12.011, 12.011, 14.007)
    assert system.index("CA") == 2 and len(set(system.names)) == 5


def test_identity_map_of_six_beads_has_the_bonds_of_the_sliced_one(alanine_pdb):
    _, sliced = coordinate_map(load_topology(alanine_pdb), MapChoice("alanine-six"))
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


def test_identity_has_no_residues_to_type_by():
    with pytest.raises(UnknownBeads, match="beads given by name"):
        coordinate_map(None, MapChoice("identity", beads=("C", "N"), bead_types="residue"))
    assert coordinate_map(None, MapChoice("identity", beads=("C", "N")))[1].types == (0, 1)


def test_five_beads_carry_the_amino_acid_on_cb_or_on_the_ca_of_glycine():
    _, system = coordinate_map(peptide("GLY", "ALA", caps=True), MapChoice("five-bead"))
    assert [name.partition(":")[2] for name in system.names] == ["N", "CA", "C", "O", "N", "CA", "CB", "C", "O"]
    assert system.types == (20, 7, 22, 23, 20, 21, 0, 22, 23)
    assert system.bonds == ((0, 1), (1, 2), (2, 3), (2, 4), (4, 5), (5, 6), (5, 7), (7, 8))
    assert system.impropers == ((5, 4, 7, 6),)
    assert system.masses[:4] == (14.007, 12.011, 12.011, 15.999)


def test_five_beads_of_proline_are_no_ring():
    _, system = coordinate_map(peptide("PRO"), MapChoice("five-bead"))
    assert system.bonds == ((0, 1), (1, 2), (1, 3), (3, 4))


def test_backbone_runs_through_the_caps():
    _, system = coordinate_map(peptide("ALA", "TRP", caps=True), MapChoice("backbone"))
    assert [name.partition(":")[2] for name in system.names] == ["C", "N", "CA", "C", "N", "CA", "C", "N"]
    assert system.bonds == tuple((i, i + 1) for i in range(7))
    assert system.types == (22, 20, 0, 22, 20, 17, 22, 20)


def test_residue_without_its_atoms_is_named():
    topology = peptide("ALA", "GLY")
    cut = topology.subset(select(topology, "not (resid 0 and name CB)"))
    with pytest.raises(UnknownBeads, match=r"no CB in ALA\d+ \(N CA C O\)"):
        coordinate_map(cut, MapChoice("five-bead"))
    assert coordinate_map(cut, MapChoice("backbone"))[1].n_beads == 6


@pytest.mark.parametrize("name", ["HSD", "HSE", "HSP", "HID", "HIE", "HIP", "HISE", "NHIE"])
def test_histidine_is_histidine_whatever_its_protons(name):
    for kind in ("calpha", "five-bead", "heavy", "com"):
        bonded = with_bonds_of_other_names(peptide("ALA", name, "GLY"))
        assert coordinate_map(bonded, MapChoice(kind))[1].types == (
            coordinate_map(peptide("ALA", "HIS", "GLY"), MapChoice(kind))[1].types
        )


def test_ends_of_each_chain_may_be_types_of_their_own():
    _, system = coordinate_map(two_chains(), MapChoice("calpha", bead_types="residue-termini"))
    assert system.types == (7 + 22, 0, 15 + 44, 0 + 22, 4, 19 + 44)
    assert system.bonds == ((0, 1), (1, 2), (3, 4), (4, 5))
    _, heavy = coordinate_map(peptide("ALA", "ALA", "ALA"), MapChoice("heavy", bead_types="residue-termini"))
    first, middle, last = np.split(np.array(heavy.types), 3)
    assert len({*(middle - first), *(last - middle)}) == 2 and not set(first) & set(middle) | set(middle) & set(last)


def test_types_mean_the_same_in_every_molecule():
    for kind in ("calpha", "five-bead", "backbone", "heavy", "com"):
        for types in ("", "residue", "element") if kind != "com" else ("", "residue"):
            choice = MapChoice(kind, bead_types=types)
            alone, beside = (coordinate_map(peptide(*names), choice)[1] for names in (("TYR",), ("GLY", "TYR")))
            assert beside.types[-alone.n_beads :] == alone.types


def test_unknown_residues_are_named_and_may_be_unique():
    topology = peptide("ALA", "XYZ")
    for a, b in (("N", "CA"), ("CA", "C"), ("C", "O"), ("CA", "CB")):
        atoms = {atom.name: atom for atom in topology.residue(1).atoms}
        topology.add_bond(atoms[a], atoms[b])
    for kind in ("calpha", "five-bead", "backbone", "heavy", "com"):
        with pytest.raises(UnknownBeads, match=r"XYZ.*unique"):
            coordinate_map(topology, MapChoice(kind))
        _, system = coordinate_map(topology, MapChoice(kind, bead_types="unique"))
        assert system.types == tuple(range(system.n_beads))
    with pytest.raises(UnknownBeads, match="no such types"):
        coordinate_map(topology, MapChoice("calpha", bead_types="colour"))


def test_calcium_is_no_calpha():
    topology = peptide("ALA", "GLY")
    residue = topology.add_residue("CA", topology.add_chain())
    topology.add_atom("CA", mdtraj.element.calcium, residue)
    assert coordinate_map(topology, MapChoice("calpha"))[1].n_beads == 2


def test_every_bead_has_a_name_of_its_own():
    _, system = coordinate_map(two_chains().join(two_chains()), MapChoice("heavy", bead_types="unique"))
    assert len(set(system.names)) == system.n_beads
    assert system.names[0].startswith("1/GLY")


def test_gap_in_a_chain_is_no_bond():
    topology = peptide("ALA", "GLY", "SER", "VAL")
    gap = mdtraj.Topology()
    chain = gap.add_chain()
    atoms = {}
    for residue in topology.residues:
        copy = gap.add_residue(residue.name, chain)
        for atom in residue.atoms:
            atoms[atom.index] = gap.add_atom(atom.name, atom.element, copy)
    for a, b in topology.bonds:
        if {a.residue.index, b.residue.index} != {1, 2}:
            gap.add_bond(atoms[a.index], atoms[b.index])
    for kind in ("calpha", "com"):
        assert coordinate_map(gap, MapChoice(kind))[1].bonds == ((0, 1), (2, 3))
        assert coordinate_map(topology, MapChoice(kind))[1].bonds == ((0, 1), (1, 2), (2, 3))


def test_disulphides_bond_selections_but_not_calphas():
    topology = peptide("CYS", "GLY", "GLY", "CYS")
    sulphurs = [atom for atom in topology.atoms if atom.name == "SG"]
    topology.add_bond(*sulphurs)
    assert coordinate_map(topology, MapChoice("calpha"))[1].bonds == ((0, 1), (1, 2), (2, 3))
    chosen = tuple(f"name CA and resid {i}" for i in range(4))
    assert coordinate_map(topology, MapChoice("selections", selections=chosen))[1].bonds == (
        (0, 1),
        (0, 3),
        (1, 2),
        (2, 3),
    )


def test_centre_of_mass_weighs_atoms_by_mass():
    topology = peptide("GLY", "ALA")
    matrix, system = coordinate_map(topology, MapChoice("com"))
    glycine = np.array([14.007, 12.011, 12.011, 15.999])
    np.testing.assert_allclose(matrix[0, :4], glycine / glycine.sum(), rtol=1e-15)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-15)
    assert system.masses[0] == pytest.approx(54.028) and system.types == (7, 0) and system.bonds == ((0, 1),)
    with pytest.raises(UnknownBeads, match="element"):
        coordinate_map(topology, MapChoice("com", bead_types="element"))


def test_waters_are_beads_that_nothing_bonds():
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    for _ in range(3):
        residue = topology.add_residue("HOH", chain)
        for name in ("O", "H1", "H2"):
            topology.add_atom(name, mdtraj.element.get_by_symbol(name[0]), residue)
    topology.create_standard_bonds()
    for kind in ("com", "heavy"):
        _, system = coordinate_map(topology, MapChoice(kind, bead_types="unique"))
        assert (system.n_beads, system.bonds) == (3, ())
    assert coordinate_map(topology, MapChoice("heavy", bead_types="element"))[1].types == (8, 8, 8)


def test_selections_are_bonded_through_the_atoms_between_them():
    topology = peptide("ALA", "LYS", "ALA")
    chosen = ("backbone and resid 0", "backbone and resid 1", "name NZ", "resid 2")
    matrix, system = coordinate_map(topology, MapChoice("selections", selections=chosen))
    assert system.bonds == ((0, 1), (1, 2), (1, 3)) and system.types == (0, 1, 2, 3)
    assert system.masses[2] == 14.007 and matrix[2].sum() == 1 and (matrix[2] != 0).sum() == 1
    with pytest.raises(UnknownBeads, match="name ZZ"):
        coordinate_map(topology, MapChoice("selections", selections=("name ZZ",)))
    with pytest.raises(UnknownBeads, match="no selection"):
        coordinate_map(topology, MapChoice("selections"))


def test_matrix_from_a_file_is_the_map_it_holds(tmp_path):
    topology = peptide("ALA", "GLY")
    matrix = np.zeros((2, topology.n_atoms))
    matrix[0, 1], matrix[1, [5, 6]] = 1, [0.25, 0.75]
    np.save(tmp_path / "map.npy", matrix)
    np.savez(tmp_path / "map.npz", coordinate=matrix, other=np.zeros(3))
    np.savetxt(tmp_path / "map.txt", matrix)
    for name in ("map.npy", "map.npz", "map.txt"):
        found, system = coordinate_map(topology, MapChoice("matrix", matrix_file=tmp_path / name))
        np.testing.assert_array_equal(found, matrix)
        assert system.bonds == ((0, 1),) and system.masses == (12.011, pytest.approx(26.018))


def test_matrix_that_is_no_map_is_refused(tmp_path):
    topology = peptide("ALA", "GLY")
    path = tmp_path / "map.npy"
    choice = MapChoice("matrix", matrix_file=path)
    with pytest.raises(MissingInput, match=r"map\.npy"):
        coordinate_map(topology, choice)
    good = np.eye(topology.n_atoms)[:2]
    for wrong, found in (
        (good * 1.001, "add up to 1.001"),
        (good[:, :5], "5 columns for 9 atoms"),
        (good * np.nan, "no numbers"),
        (good[0], "shape"),
    ):
        np.save(path, wrong)
        with pytest.raises(InvalidMap, match=found):
            coordinate_map(topology, choice)
    path.write_bytes(b"not an array")
    with pytest.raises(UnreadableFile, match=r"map\.npy"):
        coordinate_map(topology, choice)
    np.savez(tmp_path / "map.npz", a=good, b=good)
    with pytest.raises(InvalidMap, match="a b"):
        coordinate_map(topology, MapChoice("matrix", matrix_file=tmp_path / "map.npz"))


def test_topology_that_says_nothing_of_bonds_is_refused_where_bonds_are_needed(alanine_pdb):
    alanine_pdb.write_text(alanine_pdb.read_text().replace("ALA", "XYZ"))
    topology = load_topology(alanine_pdb)
    with pytest.raises(UnknownBeads, match=r"XYZ2:N.*CONECT"):
        coordinate_map(topology, MapChoice("heavy", bead_types="unique"))


def test_thousand_beads_are_made_quickly():
    topology = peptide(*["ALA", "TRP", "LYS", "GLY", "PHE"] * 24)
    started = time.perf_counter()
    _, system = coordinate_map(topology, MapChoice("heavy"))
    assert system.n_beads > 1000 and len(system.dihedrals) > 1000 and len(system.digest) == 16
    assert time.perf_counter() - started < 5


def test_needed_atoms_are_those_of_either_matrix():
    _, system = maps.identity_map(["O", "O"])
    coordinate, force = np.eye(6)[[1, 3]], np.zeros((2, 6))
    force[0, [1, 5]], force[1, 3] = 1, 1
    cg_map = maps.CGMap(coordinate, force, system)
    atoms = maps.needed_atoms(cg_map)
    assert atoms.tolist() == [1, 3, 5]
    frames = np.random.default_rng(0).normal(size=(4, 6, 3))
    less = maps.restricted(cg_map, atoms)
    np.testing.assert_array_equal(less.apply_forces(frames[:, atoms]), cg_map.apply_forces(frames))
    with pytest.raises(AssertionError, match="left out"):
        maps.restricted(cg_map, atoms[:2])


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
def test_real_topologies_give_their_beads(data_folder: Path):
    topology = load_topology(data_folder / "ala2_all_atom" / "topology.pdb")
    matrix, _ = coordinate_map(topology, MapChoice("alanine-six"))
    assert matrix.argmax(axis=1).tolist() == [4, 6, 8, 10, 14, 16]
    chignolin = load_topology(data_folder / "chignolin_all_atom" / "topology.pdb")
    matrix, system = coordinate_map(chignolin, MapChoice("calpha"))
    assert matrix.shape == (10, 166) and len(system.bonds) == 9 and len(set(system.types)) == 7


@pytest.mark.data
def test_maps_of_alanine_keep_their_digest(data_folder: Path):
    topology = load_topology(data_folder / "ala2_all_atom" / "topology.pdb")
    digests = {kind: coordinate_map(topology, MapChoice(kind))[1].digest for kind in ("alanine-six", "alanine-five")}
    assert digests == {"alanine-six": "064e002b4b39e85e", "alanine-five": "8f89c9ccf2d2006b"}
