"""The index finds what is there, says what it found, and names the file that is at fault."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpc_cg.archive import index
from hpc_cg.errors import MissingInput, UnknownUnit, UnreadableFile

NM = {"molecule": "ala2", "length_unit": "nm", "force_unit": "kJ/mol/nm"}
ANGSTROM = {"molecule": "ala2", "length_unit": "angstrom", "force_unit": "kcal/mol/angstrom"}


def test_scan_tells_shape_stride_and_temperature_from_the_header(tmp_path, make_h5):
    make_h5(tmp_path / "a.h5", n_frames=30, n_atoms=4, stride_ps=0.5, temperature_K=300.0)
    (segment,) = index.scan(["a.h5"], tmp_path, **NM)
    assert (segment.n_frames, segment.n_atoms, segment.format) == (30, 4, "h5")
    assert (segment.stride_ps, segment.temperature_K, segment.has_forces) == (0.5, 300.0, True)
    assert segment.path == str(tmp_path / "a.h5") and segment.forces_path is None


def test_segment_survives_json(tmp_path, make_h5):
    make_h5(tmp_path / "a.h5", stride_ps=1.0)
    (segment,) = index.scan(["a.h5"], tmp_path, **NM)
    assert index.Segment.from_json(json.loads(json.dumps(segment.to_json()))) == segment


@pytest.mark.parametrize("paths", [["*.h5"], ["b.h5", "a.h5"], ["."], ["*.h5", "a.h5"], ["../archive [1]/?.h5"]])
def test_globs_names_and_folders_find_each_file_once_and_sorted(tmp_path, make_h5, paths):
    folder = tmp_path / "archive [1]"
    folder.mkdir()
    for name in ("b", "a"):
        make_h5(folder / f"{name}.h5", stride_ps=1.0)
    (folder / ".c.h5.partial").write_bytes(b"left by a killed writer")
    (folder / "topology.pdb").write_text("END\n")
    if ".." in paths[0]:
        paths = [paths[0].replace("[1]", "[[]1]")]
    assert [Path(s.path).name for s in index.scan(paths, folder, **NM)] == ["a.h5", "b.h5"]
    absolute = [str(folder / path) for path in paths if "*" not in path and "?" not in path]
    assert {Path(s.path).name for s in index.scan(absolute, tmp_path, **NM)} <= {"a.h5", "b.h5"}


def test_absolute_glob_is_taken_as_it_stands(tmp_path, make_h5):
    make_h5(tmp_path / "a.h5", stride_ps=1.0)
    (segment,) = index.scan([str(tmp_path / "*.h5")], tmp_path / "elsewhere", **NM)
    assert segment.path == str(tmp_path / "a.h5")


def test_spaces_in_paths_are_part_of_the_name(tmp_path, make_h5):
    folder = tmp_path / "my runs"
    folder.mkdir()
    make_h5(folder / "run 1.h5", stride_ps=1.0)
    (segment,) = index.scan(["my runs/run 1.h5"], tmp_path, **NM)
    assert segment.n_frames == 30


def test_link_keeps_its_own_name(tmp_path, make_h5):
    make_h5(tmp_path / "4f1c", stride_ps=1.0)
    (tmp_path / "run.h5").symlink_to(tmp_path / "4f1c")
    (segment,) = index.scan(["run.h5"], tmp_path, **NM)
    assert segment.path.endswith("run.h5")


def test_pair_of_npy_files_is_one_segment(tmp_path, make_npy):
    make_npy(tmp_path, "ala2")
    (segment,) = index.scan(["*.npy"], tmp_path, stride_ps=10.0, **ANGSTROM)
    assert segment.format == "npy" and segment.stride_ps == 10.0 and segment.temperature_K is None
    assert segment.forces_path == str(tmp_path / "ala2_forces.npy")


def test_npy_coordinates_alone_have_no_forces(tmp_path, make_npy):
    make_npy(tmp_path, "ala2")
    (tmp_path / "ala2_forces.npy").unlink()
    (segment,) = index.scan(["."], tmp_path, stride_ps=10.0, **ANGSTROM)
    assert not segment.has_forces and segment.forces_path is None


def test_digest_changes_with_either_file_of_a_pair(tmp_path, make_npy):
    _, forces = make_npy(tmp_path, "ala2")
    before = index.scan(["."], tmp_path, stride_ps=10.0, **ANGSTROM)[0].digest
    np.save(tmp_path / "ala2_forces.npy", 2 * forces)
    assert index.scan(["."], tmp_path, stride_ps=10.0, **ANGSTROM)[0].digest != before


def test_frames_not_yet_written_are_not_counted(tmp_path, make_h5):
    make_h5(tmp_path / "a.h5", n_frames=30, stride_ps=1.0, written=12)
    assert index.scan(["a.h5"], tmp_path, **NM)[0].n_frames == 12


def test_nothing_matched_is_said_with_the_pattern(tmp_path):
    with pytest.raises(MissingInput, match=r"runs/\*\.h5"):
        index.scan(["runs/*.h5"], tmp_path, **NM)


def test_stride_must_be_stated_somewhere_and_once(tmp_path, make_h5):
    make_h5(tmp_path / "a.h5")
    with pytest.raises(MissingInput, match="stride_ps"):
        index.scan(["a.h5"], tmp_path, **NM)
    make_h5(tmp_path / "a.h5", stride_ps=0.5)
    with pytest.raises(UnreadableFile, match=r"0\.5 ps in the file"):
        index.scan(["a.h5"], tmp_path, stride_ps=0.2, **NM)


def test_units_the_file_states_win_over_a_wrong_study(tmp_path, make_h5):
    make_h5(tmp_path / "a.h5", stride_ps=0.5, units="nm, ps, kJ/mol/nm")
    assert index.scan(["a.h5"], tmp_path, **NM)
    with pytest.raises(UnknownUnit, match="the unit nm in the file"):
        index.scan(["a.h5"], tmp_path, **ANGSTROM)
    with pytest.raises(UnknownUnit, match="furlong"):
        index.scan(["a.h5"], tmp_path, molecule="x", length_unit="furlong", force_unit="kJ/mol/nm")


def test_damaged_files_are_named(tmp_path, make_h5, make_npy):
    make_h5(tmp_path / "whole.h5", stride_ps=1.0)
    content = (tmp_path / "whole.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.h5").write_text("not HDF5")
    (tmp_path / "empty.h5").write_bytes(b"")
    make_npy(tmp_path, "pair")
    content = (tmp_path / "pair_coordinates.npy").read_bytes()
    (tmp_path / "cut_coordinates.npy").write_bytes(content[:-100])
    (tmp_path / "lone_forces.npy").write_bytes(content)
    (tmp_path / "frames.xyz").write_text("1\n")
    for name in ("cut.h5", "text.h5", "empty.h5", "cut_coordinates.npy", "lone_forces.npy", "frames.xyz"):
        with pytest.raises(UnreadableFile, match=name):
            index.scan([name], tmp_path, stride_ps=1.0, **NM)


def test_wrong_shapes_are_refused_with_the_shape(tmp_path, make_npy):
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        file["positions"] = np.zeros((10, 12))
    with h5py.File(tmp_path / "uneven.h5", "w") as file:
        file["positions"], file["forces"] = np.zeros((10, 4, 3)), np.zeros((10, 3, 3))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["coordinates"] = np.zeros((10, 4, 3))
    with h5py.File(tmp_path / "whole_numbers.h5", "w") as file:
        file["positions"] = np.zeros((10, 4, 3), dtype=int)
    _, forces = make_npy(tmp_path, "ala2")
    np.save(tmp_path / "ala2_forces.npy", forces[:-1])
    for name, said in (
        ("flat.h5", r"\(10, 12\)"),
        ("uneven.h5", r"\(10, 3, 3\)"),
        ("other.h5", "coordinates"),
        ("whole_numbers.h5", "int64"),
        ("ala2_coordinates.npy", "19 frames"),
    ):
        with pytest.raises(UnreadableFile, match=said):
            index.scan([name], tmp_path, stride_ps=1.0, **NM)


@pytest.mark.data
def test_real_archive_is_indexed(data_folder):
    segments = index.scan(["ala2_all_atom"], data_folder, **NM)
    assert [Path(s.path).name for s in segments] == ["300K_1.h5", "300K_2.h5", "300K_3.h5"]
    assert {(s.n_frames, s.n_atoms, s.stride_ps, s.temperature_K) for s in segments} == {(20000, 22, 0.5, 300.0)}
