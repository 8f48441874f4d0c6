"""The index finds what is there, says what it found, and names the file that is at fault."""

import json
import os
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
from mdtraj.formats import DCDTrajectoryFile

from hpc_cg.archive import index
from hpc_cg.errors import ChangedFile, MissingInput, UnknownUnit, UnreadableFile

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
        file["velocities"] = np.zeros((10, 4, 3))
    with h5py.File(tmp_path / "whole_numbers.h5", "w") as file:
        file["positions"] = np.zeros((10, 4, 3), dtype=int)
    _, forces = make_npy(tmp_path, "ala2")
    np.save(tmp_path / "ala2_forces.npy", forces[:-1])
    for name, said in (
        ("flat.h5", r"\(10, 12\)"),
        ("uneven.h5", r"\(10, 3, 3\)"),
        ("other.h5", "velocities"),
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


def save(path, n_frames=12, n_atoms=3, seed=0, **arrays):
    """A npz source of random frames, with whatever else it is to hold."""
    positions = np.random.default_rng(seed).normal(size=(n_frames, n_atoms, 3)).astype(np.float32)
    np.savez(path, positions=positions, **arrays)
    return positions


def described(path, **options):
    (found,) = index.describe(path, **{**NM, **options})
    return found


def test_forces_alone_named_in_the_study_are_refused_beside_their_coordinates_left_to_them(tmp_path, make_npy):
    make_npy(tmp_path, "ala2")
    assert [path.name for path in index.find(["."], tmp_path)] == ["ala2_coordinates.npy"]
    with pytest.raises(UnreadableFile, match="ala2_forces"):
        index.scan(["ala2_forces.npy"], tmp_path, stride_ps=1.0, **NM)


def test_units_are_stated_by_the_study_or_the_file(tmp_path):
    save(tmp_path / "a.npz", forces=np.ones((12, 3, 3), np.float32))
    with pytest.raises(UnknownUnit, match=r"State prepare\.length_unit, one of nm, angstrom"):
        index.describe(tmp_path / "a.npz", molecule="m", stride_ps=1.0)
    with pytest.raises(UnknownUnit, match=r"State prepare\.force_unit"):
        index.describe(tmp_path / "a.npz", molecule="m", stride_ps=1.0, length_unit="nm")
    (found,) = index.describe(tmp_path / "a.npz", molecule="m", stride_ps=1.0, length_unit="nm", want_forces=False)
    assert found.segment.force_unit is None and not found.segment.has_forces


def test_where_no_frame_has_forces_all_frames_are_counted_and_it_is_said(tmp_path):
    save(tmp_path / "a.npz")
    segment = described(tmp_path / "a.npz", stride_ps=1.0).segment
    assert (segment.n_frames, segment.has_forces, segment.counted) == (12, False, True)


def test_uneven_times_give_their_median_and_are_called_uneven(tmp_path):
    time = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20.0])
    save(tmp_path / "a.npz", time=time)
    found = described(tmp_path / "a.npz")
    assert (found.segment.stride_ps, found.segment.even) == (1.0, False)
    np.testing.assert_array_equal(found.time, time)
    save(tmp_path / "b.npz", time=(1e6 + 0.1 * np.arange(12)).astype(np.float32))
    assert described(tmp_path / "b.npz").segment.even  # what single precision leaves of the time
    assert described(tmp_path / "b.npz").time is None


def test_times_that_are_no_numbers_or_stand_still_are_not_believed(tmp_path):
    save(tmp_path / "a.npz", time=np.full(12, np.nan))
    with pytest.raises(UnreadableFile, match="no numbers"):
        described(tmp_path / "a.npz")
    save(tmp_path / "b.npz", time=np.zeros(12), step=np.zeros(12, int))
    with pytest.raises(MissingInput, match="stride_ps"):
        described(tmp_path / "b.npz")
    assert described(tmp_path / "b.npz", stride_ps=2.0).segment.n_frames == 12
    save(tmp_path / "c.npz", time=-np.arange(12.0), step=np.arange(12))
    with pytest.raises(UnreadableFile, match="do not grow"):
        described(tmp_path / "c.npz")


def test_of_steps_that_come_twice_the_later_frame_is_kept(tmp_path):
    step = 10 * np.concatenate([np.arange(50), np.arange(47, 90)])
    save(tmp_path / "a.npz", n_frames=93, step=step, time=step * 0.5)
    found = described(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.table[:, 0], [*range(47), *range(50, 93)])
    assert (found.segment.n_frames, found.segment.stride_ps, found.segment.even) == (90, 5.0, True)
    assert "3 frames come again later" in found.segment.note and not found.segment.counted


def test_trajectories_one_after_another_are_no_restart(tmp_path):
    save(tmp_path / "a.npz", time=np.tile(np.arange(6.0), 2))
    with pytest.raises(UnreadableFile, match="6 of 12 frames.*several trajectories one after another"):
        described(tmp_path / "a.npz")
    save(tmp_path / "b.npz", time=np.tile(np.arange(6.0), 2), step=np.arange(12))
    with pytest.raises(UnreadableFile, match="times that go back while steps go on"):
        described(tmp_path / "b.npz")
    save(tmp_path / "c.npz", time=np.arange(12.0), step=np.tile(np.arange(6), 2))
    found = described(tmp_path / "c.npz").segment
    assert (found.n_frames, found.counted, found.even) == (12, True, True) and "times count" in found.note


@pytest.mark.parametrize(("n_frames", "begin", "stride"), [(3, 4e6, 0.2), (100, 3e6, 0.1), (1000, 3e6, 0.1)])
@pytest.mark.parametrize("with_steps", [False, True])
def test_late_times_in_single_precision_lose_no_frame_and_leave_the_study_its_word(
    tmp_path, n_frames, begin, stride, with_steps
):
    time = (begin + stride * np.arange(n_frames)).astype(np.float32)
    steps = {"step": np.arange(n_frames) * 100} if with_steps else {}
    save(tmp_path / "a.npz", n_frames=n_frames, time=time, **steps)
    found = described(tmp_path / "a.npz", stride_ps=stride).segment
    assert (found.n_frames, found.stride_ps, found.even, found.counted) == (n_frames, stride, True, True)
    with pytest.raises(UnreadableFile, match="correct stride_ps|Correct stride_ps"):
        described(tmp_path / "a.npz", stride_ps=5 * stride)


def beside(folder, first, second):
    """Positions at some moments beside forces at others, in two files."""
    count = {len(values) for values in first.values()}.pop()
    save(folder / "x.npz", n_frames=count, **first)
    count = {len(values) for values in second.values()}.pop()
    np.savez(folder / "f.npz", forces=np.ones((count, 3, 3), np.float32), **second)
    return described(folder / "x.npz", forces_path=folder / "f.npz", stride_ps=None)


def test_where_steps_of_two_files_contradict_their_times_one_is_sure_or_both_are_refused(tmp_path):
    number = np.arange(101)
    renumbered = {"step": number, "time": 1.0 * number}
    found = beside(tmp_path, renumbered, {"step": 20 * number, "time": 1.0 * number})
    assert found.table is None and found.segment.n_frames == 101 and "matched by time" in found.segment.note
    assert beside(tmp_path, renumbered, {"step": 500 + number, "time": 1.0 * number}).segment.n_frames == 101
    with pytest.raises(UnreadableFile, match="contradict each other"):
        beside(tmp_path, renumbered, {"step": number, "time": 1.0 * number + 3})
    with pytest.raises(UnreadableFile, match="several trajectories|go back"):
        beside(tmp_path, {"time": np.tile(number, 2) * 1.0}, {"time": np.tile(number, 2) * 1.0})


def test_a_restart_redone_in_one_of_two_files_is_refused_and_in_both_is_followed(tmp_path):
    again = np.concatenate([np.arange(100), np.arange(97, 150)])
    twice, once = ({"step": steps * 10, "time": steps * 1.0} for steps in (again, np.arange(100)))
    with pytest.raises(UnreadableFile, match="a restart that made frames again in one"):
        beside(tmp_path, twice, once)
    found = beside(tmp_path, twice, twice)
    np.testing.assert_array_equal(found.table[:, 0], found.table[:, 1])
    np.testing.assert_array_equal(found.table[:, 0], [*range(97), *range(100, 153)])


@pytest.mark.parametrize(
    ("begin", "between", "n_frames", "right"),
    [(10, 10, 12, True), (0, 10, 12, False), (10, 20, 12, False), (0, 1, 12, False), (10, 10, 9, True)],
)
def test_two_dcd_files_count_steps_alike_or_are_refused(tmp_path, begin, between, n_frames, right):
    for name, *of in (("x", 10, 10, 12), ("f", begin, between, n_frames)):
        write_dcd(tmp_path / f"{name}.dcd", *of)
    options = {"forces_path": tmp_path / "f.dcd", "length_unit": "angstrom"}
    if right:
        found = described(tmp_path / "x.dcd", **options).segment
        assert (found.n_frames, found.stride_ps) == (n_frames, 0.02)
    else:
        with pytest.raises(UnreadableFile, match="whose first steps are"):
            described(tmp_path / "x.dcd", **options)


def write_dcd(path, begin, between, n_frames):
    with DCDTrajectoryFile(str(path), "w") as file:
        file.write(np.zeros((n_frames, 3, 3), np.float32))
    content = bytearray(path.read_bytes())
    struct.pack_into("<2i", content, 12, begin, between)
    struct.pack_into("<f", content, 44, 0.002 / 0.04888821)
    path.write_bytes(content)


def test_forces_in_a_second_file_are_matched_by_step(tmp_path):
    step = np.arange(12) * 10
    save(tmp_path / "x.npz", step=step, time=step * 1.0)
    np.savez(tmp_path / "f.npz", forces=np.ones((6, 3, 3), np.float32), step=step[1::2], time=step[1::2] * 1.0)
    found = described(tmp_path / "x.npz", forces_path=tmp_path / "f.npz")
    np.testing.assert_array_equal(found.table, np.stack([np.arange(1, 12, 2), np.arange(6)], axis=1))
    assert found.segment.stride_ps == 20.0 and found.segment.forces_path == str(tmp_path / "f.npz")
    assert "6 frames without forces in f.npz" in found.segment.note


def test_where_no_steps_are_kept_times_match_and_numbers_last(tmp_path):
    save(tmp_path / "x.npz", time=np.arange(12.0))
    forces = np.ones((12, 3, 3), np.float32)
    np.savez(tmp_path / "f.npz", forces=forces[:6], time=np.arange(0, 12, 2) + 1e-7)
    found = described(tmp_path / "x.npz", forces_path=tmp_path / "f.npz")
    np.testing.assert_array_equal(found.table, np.stack([np.arange(0, 12, 2), np.arange(6)], axis=1))
    np.savez(tmp_path / "g.npz", forces=forces)
    assert described(tmp_path / "x.npz", forces_path=tmp_path / "g.npz").table is None
    np.savez(tmp_path / "h.npz", forces=forces[:-1])
    with pytest.raises(UnreadableFile, match=r"h\.npz.*11 frames"):
        described(tmp_path / "x.npz", forces_path=tmp_path / "h.npz")
    np.savez(tmp_path / "i.npz", forces=forces, time=np.arange(12) + 100.5)
    with pytest.raises(UnreadableFile, match="no times in common"):
        described(tmp_path / "x.npz", forces_path=tmp_path / "i.npz")
    np.savez(tmp_path / "j.npz", forces=forces[:, :2])
    with pytest.raises(UnreadableFile, match="2 atoms beside 3"):
        described(tmp_path / "x.npz", forces_path=tmp_path / "j.npz")


def test_a_file_that_was_only_touched_is_unchanged_and_another_content_is_not(tmp_path):
    save(tmp_path / "a.npz", seed=0)
    segment = described(tmp_path / "a.npz", stride_ps=1.0).segment
    index.check_unchanged(segment)
    os.utime(tmp_path / "a.npz", ns=(1, 1))
    index.check_unchanged(segment)
    save(tmp_path / "a.npz", seed=1)
    assert (tmp_path / "a.npz").stat().st_size == segment.size
    with pytest.raises(ChangedFile, match=r"a\.npz.*run prepare again"):
        index.check_unchanged(segment)
    (tmp_path / "a.npz").unlink()
    with pytest.raises(MissingInput, match=r"a\.npz"):
        index.check_unchanged(segment)


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (1, None),
        (4.184, None),
        (1 / 4.184, None),
        (1 / 41.84, "41.84 times too small, as if numbers in kcal/mol/angstrom were declared as kJ/mol/nm"),
        (41.84, "41.84 times too large, as if numbers in kJ/mol/nm were declared as kcal/mol/angstrom"),
        (0.1, "10 times too small"),
        (10, "10 times too large"),
        (0, "all zero"),
        (1e6, "no unit known here"),
    ],
)
def test_forces_of_impossible_size_are_spoken_of_and_others_are_not(factor, said):
    forces = np.random.default_rng(0).normal(0, 700 * factor, (50, 20, 3)).astype(np.float32)
    found = index.force_scale_warning(forces)
    assert found is None if said is None else said in found


@pytest.mark.data
def test_many_small_trajectories_are_indexed(data_folder):
    segments = index.scan(["ala2_seeded"], data_folder, molecule="ala2")
    assert len(segments) == 80
    assert {(s.format, s.n_frames, s.n_atoms, s.stride_ps, s.even, s.has_forces) for s in segments} == {
        ("trr", 300, 22, 0.5, True, True)
    }
