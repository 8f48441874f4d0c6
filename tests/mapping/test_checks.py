"""A topology of another trajectory is refused, and so are atoms that cut through what is rigid."""

import mdtraj
import numpy as np
import pytest

from hpc_cg.errors import InvalidMap, TopologyMismatch
from hpc_cg.mapping.checks import check_bonds, refuse_cut_groups, with_neighbours


@pytest.fixture
def alanine(data_folder):
    import h5py

    with h5py.File(data_folder / "ala2_all_atom" / "300K_1.h5") as file:
        positions = file["positions"][:50:10]
    return mdtraj.load_topology(str(data_folder / "ala2_all_atom" / "topology.pdb")), positions


def ethane() -> mdtraj.Topology:
    """C C, and three hydrogens on each, in that order."""
    topology = mdtraj.Topology()
    residue = topology.add_residue("ETH", topology.add_chain())
    symbols = "CCHHHHHH"
    atoms = [topology.add_atom(f"{s}{i}", mdtraj.element.get_by_symbol(s), residue) for i, s in enumerate(symbols)]
    for i, j in [(0, 1), *((0, h) for h in (2, 3, 4)), *((1, h) for h in (5, 6, 7))]:
        topology.add_bond(atoms[i], atoms[j])
    return topology


def test_neighbours_are_one_bond_away():
    np.testing.assert_array_equal(with_neighbours(ethane(), np.array([0])), [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(with_neighbours(ethane(), np.array([5])), [1, 5])


def test_of_atoms_without_bonds_the_residue_is_near():
    topology = ethane()
    topology._bonds = []
    np.testing.assert_array_equal(with_neighbours(topology, np.array([5])), np.arange(8))


def test_groups_that_atoms_cut_through_are_refused_and_others_renumbered():
    around, atoms = np.array([0, 4, 5, 6, 9]), np.array([4, 5, 9])
    assert refuse_cut_groups([(0, 3), (1, 2), (4,)], around, atoms) == ((0, 1), (2,))
    with pytest.raises(InvalidMap, match=r"cut through, the first of the atoms 5, 6 .*keep hydrogens"):
        refuse_cut_groups([(0,), (1,), (2, 3), (4,)], around, atoms)


@pytest.mark.data
def test_the_right_topology_passes(alanine):
    topology, positions = alanine
    check_bonds(topology, np.arange(22), [positions[:2], positions[2:]], "a.h5")


@pytest.mark.data
@pytest.mark.parametrize(
    "order", [np.arange(22)[::-1], np.r_[1:22, 0], [*range(8), 14, *range(9, 14), 8, *range(15, 22)]]
)
def test_atoms_in_another_order_are_noticed(alanine, order):
    """Backwards, moved on by one, and two atoms changed for one another."""
    topology, positions = alanine
    with pytest.raises(TopologyMismatch, match=r"in a.h5, .* nm long. Give the topology that belongs"):
        check_bonds(topology, np.arange(22), [positions[:, np.asarray(order)]], "a.h5")


@pytest.mark.data
@pytest.mark.parametrize(("factor", "unit"), [(10, "angstrom"), (0.1, "nm")])
def test_another_unit_of_length_is_named(alanine, factor, unit):
    topology, positions = alanine
    with pytest.raises(TopologyMismatch, match=f'length_unit = "{unit}"'):
        check_bonds(topology, np.arange(22), [positions * np.float32(factor)], "a.h5")


@pytest.mark.data
def test_only_bonds_among_the_atoms_are_looked_at(alanine):
    topology, positions = alanine
    wild = positions.copy()
    wild[:, :4] += 5
    atoms = np.arange(4, 22)
    check_bonds(topology, atoms, [wild[:, atoms]], "a.h5")


def test_ions_virtual_sites_and_nothing_at_all_are_no_evidence():
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    zinc = topology.add_atom("ZN", mdtraj.element.zinc, topology.add_residue("ZN", chain))
    water = topology.add_residue("HOH", chain)
    oxygen = topology.add_atom("O", mdtraj.element.oxygen, water)
    site = topology.add_atom("M", mdtraj.element.virtual, water)
    topology.add_bond(zinc, oxygen)
    topology.add_bond(oxygen, site)
    check_bonds(topology, np.arange(3), [np.random.default_rng(0).normal(size=(3, 3, 3))], "a.h5")
    check_bonds(ethane(), np.arange(8), [], "a.h5")
