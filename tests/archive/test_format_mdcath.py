"""mdCATH: many trajectories in a file, of which those of the study's temperature are taken."""

import h5py
import numpy as np
import pytest

from hpc_cg.archive import index, readers
from hpc_cg.archive.mdcath import topology_text
from hpc_cg.errors import TemperatureMismatch, UnreadableFile

PDB = "ATOM      1  CA  ALA A   1       0.000   0.000   0.000  1.00  0.00           C\n"


@pytest.fixture
def domain(tmp_path):
    """A domain of three temperatures with two replicas each."""
    random = np.random.default_rng(7)
    path = tmp_path / "mdcath_dataset_1a02F00.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layout"] = "mdcath-only-protein-v1.0"
        top = file.create_group("1a02F00")
        top["pdbProteinAtoms"] = PDB.encode()
        for temperature in (320, 348, 450):
            for replica in (0, 1):
                place = top.create_group(f"{temperature}/{replica}")
                place["coords"], place["forces"] = random.normal(size=(2, 6 + replica, 4, 3)).astype(np.float32)
                place["coords"].attrs["unit"], place["forces"].attrs["unit"] = "Angstrom", "kcal/mol/Angstrom"
                place["box"] = np.eye(3) * 7.0
    return path


def test_every_trajectory_is_a_segment_with_its_temperature(domain):
    segments = [described.segment for described in index.describe(domain, molecule="m")]
    assert [segment.inside for segment in segments] == [f"1a02F00/{t}/{r}" for t in (320, 348, 450) for r in (0, 1)]
    assert [segment.temperature_K for segment in segments] == [320, 320, 348, 348, 450, 450]
    assert {(s.format, s.stride_ps, s.length_unit, s.force_unit, s.even) for s in segments} == {
        ("mdcath", 1000.0, "angstrom", "kcal/mol/angstrom", True)
    }
    assert [segment.n_frames for segment in segments] == [6, 7] * 3
    assert len({segment.digest for segment in segments}) == 6


def test_frames_come_in_our_units_with_the_box(domain):
    (_, described) = index.describe(domain, molecule="m", temperature_K=348.0)
    frames = readers.read(described.segment, 1, 5, atoms=np.array([1, 2]))
    with h5py.File(domain) as file:
        place = file["1a02F00/348/1"]
        np.testing.assert_allclose(frames.positions, place["coords"][1:5, 1:3] * 0.1, rtol=1e-6)
        np.testing.assert_allclose(frames.forces, place["forces"][1:5, 1:3] * 41.84, rtol=1e-6)
    np.testing.assert_allclose(frames.cell, np.tile(np.eye(3) * 7.0, (4, 1, 1)))


def test_trajectories_of_other_temperatures_are_left_out_and_none_left_is_an_error(domain):
    found = index.describe(domain, molecule="m", temperature_K=450.0)
    assert [described.segment.inside for described in found] == ["1a02F00/450/0", "1a02F00/450/1"]
    with pytest.raises(TemperatureMismatch, match="320, 348, 450 K"):
        index.describe(domain, molecule="m", temperature_K=300.0)


def test_the_atoms_are_in_the_file(domain, tmp_path, make_h5):
    assert topology_text(domain) == PDB
    make_h5(tmp_path / "own.h5")
    assert topology_text(tmp_path / "own.h5") is None


def test_forces_of_another_length_and_ways_out_are_refused(domain, tmp_path):
    with h5py.File(domain, "a") as file:
        del file["1a02F00/320/0/forces"]
        file["1a02F00/320/0/forces"] = np.zeros((5, 4, 3), np.float32)
    with pytest.raises(UnreadableFile, match="5 of forces in 1a02F00/320/0"):
        index.describe(domain, molecule="m")
    with h5py.File(domain, "a") as file:
        del file["1a02F00/320"]
        file["1a02F00/320"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/")
    with pytest.raises(UnreadableFile, match="not followed"):
        index.describe(domain, molecule="m")


def test_cut_at_any_byte_is_an_error_of_the_file(domain):
    content = domain.read_bytes()
    for length in range(0, len(content), 307):
        domain.write_bytes(content[:length])
        with pytest.raises(UnreadableFile, match="1a02F00"):
            index.describe(domain, molecule="m")
