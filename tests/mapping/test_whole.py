"""Molecules come back whole from any cell, moved by lattice vectors alone, and whole ones keep their bits."""

import mdtraj
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hpc_cg.errors import BadFrames
from hpc_cg.mapping.whole import SMALLEST_HEIGHT_NM, Whole

TRICLINIC = np.array([[3.0, 0, 0], [1.4, 2.6, 0], [-1.2, 1.1, 2.4]])
GENERAL = np.array([[2.9, 0.4, -0.3], [0.5, 3.1, 0.6], [-0.7, 0.2, 2.8]])
CUBE = 3.0 * np.eye(3)


def chain_of(n_atoms: int) -> Whole:
    return Whole.along([(i, i + 1) for i in range(n_atoms - 1)], np.zeros(n_atoms, dtype=np.int64))


def walk(n_frames: int, n_atoms: int, seed: int = 0, bond_nm: float = 0.38) -> np.ndarray:
    generator = np.random.default_rng(seed)
    steps = generator.normal(size=(n_frames, n_atoms, 3))
    steps *= bond_nm / np.linalg.norm(steps, axis=2, keepdims=True)
    return steps.cumsum(axis=1)


def wrapped(positions: np.ndarray, cell: np.ndarray) -> np.ndarray:
    fractional = positions @ np.linalg.inv(cell)
    return (fractional - np.floor(fractional)) @ cell


def cells(cell: np.ndarray, n_frames: int) -> np.ndarray:
    return np.broadcast_to(cell, (n_frames, 3, 3)).copy()


@pytest.mark.parametrize("cell", [CUBE, TRICLINIC, GENERAL], ids=["cube", "triclinic", "general"])
def test_wrapped_chain_comes_back_up_to_one_lattice_vector(cell):
    positions = walk(20, 60)
    whole = chain_of(60).apply(wrapped(positions, cell), cells(cell, 20))
    moved = (whole - positions) @ np.linalg.inv(cell)
    np.testing.assert_allclose(moved, np.rint(moved[:, :1]).repeat(60, axis=1), atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(np.diff(whole, axis=1), axis=2), 0.38, rtol=1e-9)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.lists(st.floats(-1, 1), min_size=9, max_size=9), st.booleans())
@settings(max_examples=60, deadline=None)
def test_bonds_of_a_whole_molecule_are_minimum_images(seed, n_atoms, skew, lower):
    cell = 3 * np.eye(3) + np.tril(np.reshape(skew, (3, 3)), -1 if lower else 0)
    height = min(1 / np.linalg.norm(np.linalg.inv(cell), axis=0))
    assume(height > SMALLEST_HEIGHT_NM)
    generator = np.random.default_rng(seed)
    positions = walk(3, n_atoms, seed, bond_nm=0.49 * height)
    images = generator.integers(-3, 4, size=positions.shape).astype(np.float64)
    parents = [int(generator.integers(0, i)) for i in range(1, n_atoms)]
    tree = np.zeros((3, n_atoms, 3))
    for i, parent in enumerate(parents, start=1):
        tree[:, i] = tree[:, parent] + positions[:, i] - positions[:, i - 1]
    bonds = [(parent, i) for i, parent in enumerate(parents, start=1)]
    whole = Whole.along(bonds, np.zeros(n_atoms, dtype=np.int64)).apply(tree + images @ cell, cells(cell, 3))
    np.testing.assert_allclose(whole - whole[:, :1], tree, atol=1e-9)
    np.testing.assert_array_equal(whole[:, 0], (tree + images @ cell)[:, 0])


def test_whole_frames_keep_their_bits_beside_broken_ones():
    positions = walk(10, 30).astype(np.float32)
    given_ = positions.copy()
    given_[4] = wrapped(positions[4].astype(np.float64) + 1.0, CUBE)
    whole = chain_of(30).apply(given_, cells(CUBE, 10))
    others = np.arange(10) != 4
    np.testing.assert_array_equal(whole[others], positions[others])
    assert whole.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(np.diff(whole[4], axis=0), axis=1), 0.38, atol=1e-5)
    assert chain_of(30).apply(positions, cells(CUBE, 10)) is positions


@pytest.mark.parametrize(
    "cell",
    [
        None,
        np.zeros((3, 3)),
        np.full((3, 3), np.nan),
        np.diag([3.0, 3.0, 0.0]),
        np.diag([3.0, 3.0, 1e-6]),
        0.1 * np.eye(3),
    ],
    ids=["none", "zero", "nan", "slab", "flat", "one angstrom"],
)
def test_what_is_no_cell_is_not_periodic(cell):
    positions = wrapped(walk(4, 20), CUBE)
    assert chain_of(20).apply(positions, None if cell is None else cells(cell, 4)) is positions


def test_frames_without_a_cell_are_let_be_beside_frames_with_one():
    positions = wrapped(walk(2, 40), CUBE)
    both = np.stack([CUBE, np.zeros((3, 3))])
    whole = chain_of(40).apply(positions, both)
    assert not np.array_equal(whole[0], positions[0])
    np.testing.assert_array_equal(whole[1], positions[1])


@pytest.mark.parametrize("cell", [CUBE, TRICLINIC], ids=["cube", "triclinic"])
def test_chains_go_to_the_image_nearest_to_the_first(cell):
    one, two = walk(15, 8, seed=1, bond_nm=0.1), walk(15, 5, seed=2, bond_nm=0.1)
    together = np.concatenate([one, two + np.array([0.4, 0.2, -0.3])], axis=1)
    chain = np.repeat([0, 1], [8, 5])
    bonds = [(i, i + 1) for i in range(12) if i != 7]
    whole = Whole.along(bonds, chain).apply(wrapped(together, cell), cells(cell, 15))
    expected = together - together[:, :1] + whole[:, :1]
    np.testing.assert_allclose(whole, expected, atol=1e-9)


def test_atoms_that_no_kept_bond_joins_follow_the_one_before():
    """Cα atoms alone are not bonded to one another."""
    tree = Whole.along([], np.zeros(20, dtype=np.int64))
    positions = walk(5, 20)
    whole = tree.apply(wrapped(positions, TRICLINIC), cells(TRICLINIC, 5))
    np.testing.assert_allclose(np.linalg.norm(np.diff(whole, axis=1), axis=2), 0.38, rtol=1e-9)


def test_ten_thousand_molecules_are_one_tree():
    chain = np.repeat(np.arange(10_000), 3)
    bonds = [(3 * i, 3 * i + j) for i in range(10_000) for j in (1, 2)]
    tree = Whole.along(bonds, chain)
    assert tree.levels == (0, 20_000) and len(tree.children) == 20_000


@pytest.mark.data
def test_peptide_from_its_file_comes_back_whole(data_folder):
    topology = mdtraj.load_topology(str(data_folder / "peptide_2olx" / "2olx-traj-state0.pdb"))
    positions = np.load(data_folder / "peptide_2olx" / "2olx-traj-arrays.npz")["positions"].astype(np.float64)
    cell = cells(GENERAL, len(positions))
    atoms = np.array([atom.index for atom in topology.atoms if atom.element.symbol != "H"], dtype=np.int64)
    tree = Whole.of(topology, atoms)
    whole = tree.apply(wrapped(positions[:, atoms], cell), cell)
    centred = positions[:, atoms] - positions[:, atoms[:1]]
    np.testing.assert_allclose(whole - whole[:, :1], centred, atol=1e-9)


def carbons(n_atoms: int, n_chains: int = 1) -> mdtraj.Topology:
    """Chains of carbons, each bonded to the next."""
    topology = mdtraj.Topology()
    for _ in range(n_chains):
        residue = topology.add_residue("CRB", topology.add_chain())
        atoms = [topology.add_atom(f"C{i}", mdtraj.element.carbon, residue) for i in range(n_atoms)]
        for i in range(n_atoms - 1):
            topology.add_bond(atoms[i], atoms[i + 1])
    return topology


def test_neighbouring_atoms_along_a_chain_need_none_between():
    tree = Whole.of(carbons(31), np.arange(0, 31, 3))
    assert not len(tree.between)
    np.testing.assert_array_equal(tree.parents, np.arange(10))
    np.testing.assert_allclose(tree.reach, 0.6)


@pytest.mark.parametrize("cell", [CUBE, TRICLINIC], ids=["cube", "triclinic"])
def test_far_atoms_of_one_molecule_come_to_the_image_that_their_bonds_lead_to(cell):
    positions = np.cumsum(np.broadcast_to([0.12, 0.06, 0.03], (6, 41, 3)), axis=1)
    ends = np.array([0, 40])
    tree = Whole.of(carbons(41), ends)
    read = np.union1d(ends, tree.between)
    assert 2 < len(read) < 20
    whole = tree.apply(wrapped(positions, cell)[:, read], cells(cell, 6))
    np.testing.assert_allclose(whole[:, -1] - whole[:, 0], positions[:, 40] - positions[:, 0], atol=1e-9)
    assert np.linalg.norm(positions[0, 40] - positions[0, 0]) > 3


def test_paths_take_the_shortest_way_and_branches():
    topology = carbons(20)
    side = topology.add_atom("CX", mdtraj.element.carbon, topology.residue(0))
    topology.add_bond(topology.atom(10), side)
    tree = Whole.of(topology, np.array([0, 19, 20]))
    assert set(tree.between) <= set(range(1, 19))
    assert len(tree.parents) == len(tree.chain) - 1 and tree.reach.max() <= 0.6 + 1e-12


def test_chains_that_are_bonded_to_one_another_are_one():
    topology = carbons(9, n_chains=3)
    assert Whole.of(topology, np.arange(27)).chain.max() == 2
    topology.add_bond(topology.atom(8), topology.atom(18))
    tree = Whole.of(topology, np.arange(27))
    np.testing.assert_array_equal(tree.chain, np.repeat([0, 1, 0], 9))
    np.testing.assert_array_equal(tree.reach[tree.reach == 0], [])


def test_calpha_atoms_alone_are_as_far_apart_as_in_a_protein():
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    for _ in range(10):
        topology.add_atom("CA", mdtraj.element.carbon, topology.add_residue("ALA", chain))
    np.testing.assert_allclose(Whole.of(topology, np.arange(10)).reach, 0.4)
    np.testing.assert_array_equal(Whole.of(topology, np.array([2, 5])).between, [3, 4])


def test_cells_in_which_two_images_could_be_bonded_are_refused():
    tree = Whole.of(carbons(31), np.arange(0, 31, 3))
    positions = walk(4, 11)
    whole = tree.apply(wrapped(positions, 1.3 * np.eye(3)), cells(1.3 * np.eye(3), 4))
    np.testing.assert_allclose(np.linalg.norm(np.diff(whole, axis=1), axis=2), 0.38, rtol=1e-9)
    small = cells(np.eye(3) * 1.3, 4)
    small[2] = np.diag([3.0, 3.0, 0.7])
    with pytest.raises(BadFrames, match=r"a cell 0\.70 nm high.* up to 0\.6 nm"):
        tree.apply(positions, small)
    positions[2] = np.nan  # left out anyway
    tree.apply(positions, small)


def test_molecules_that_no_bond_joins_have_no_right_image():
    topology = carbons(1, n_chains=1)
    for _ in range(3):
        topology.add_atom("NA", mdtraj.element.sodium, topology.add_residue("NA", topology.chain(0)))
    np.testing.assert_array_equal(Whole.of(topology, np.arange(4)).reach, 0)
