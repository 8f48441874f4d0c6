"""H5MD: forces belong to the positions of the same step, whatever their own stride."""

import h5py
import numpy as np
import pytest
from formats import check_any_order

from hpc_cg.archive import index, readers
from hpc_cg.archive.h5md import H5MD
from hpc_cg.errors import UnreadableFile

POSITIONS, FORCES = np.random.default_rng(4).normal(size=(2, 12, 5, 3)).astype(np.float32)


def element(place, values, step, time, unit, time_unit="ps"):
    place["value"] = values
    place["value"].attrs["unit"] = unit
    place["step"], place["time"] = step, time
    place["time"].attrs["unit"] = time_unit


def write(path, every=1, groups=("all",), edges=None, fixed_interval=False):
    """Positions in Angstrom at each of 12 moments, forces at every so manieth."""
    step = np.arange(12) * 500
    with h5py.File(path, "w") as file:
        file.create_group("h5md").attrs["version"] = (1, 1)
        for name in groups:
            place = file.create_group(f"particles/{name}")
            moments = (500, 1000.0) if fixed_interval else (step, step * 2.0)
            element(place.create_group("position"), POSITIONS, *moments, "Angstrom", "fs")
            element(
                place.create_group("force"),
                FORCES[::every],
                step[::every],
                step[::every] * 2.0,
                "kJ mol-1 Angstrom-1",
                "fs",
            )
            if edges is not None:
                place["box/edges"] = edges
    return path


@pytest.mark.parametrize("fixed_interval", [False, True])
def test_units_time_and_frames_are_those_of_the_file(tmp_path, fixed_interval):
    (described,) = index.describe(write(tmp_path / "a.h5md", fixed_interval=fixed_interval), molecule="m")
    segment = described.segment
    assert (segment.format, segment.n_frames, segment.stride_ps, segment.inside) == ("h5md", 12, 1.0, "")
    assert (segment.length_unit, segment.force_unit) == ("angstrom", "kJ/mol/angstrom") and segment.counted
    frames = readers.read(segment, 2, 9, atoms=np.array([0, 4]))
    np.testing.assert_allclose(frames.positions, POSITIONS[2:9][:, [0, 4]] * 0.1, rtol=1e-6)
    np.testing.assert_allclose(frames.forces, FORCES[2:9][:, [0, 4]] * 10, rtol=1e-6)


def test_content_and_not_the_ending_tells_the_format(tmp_path):
    (described,) = index.describe(write(tmp_path / "a.h5"), molecule="m")
    assert described.segment.format == "h5md"


def test_forces_of_every_third_frame_meet_their_positions(tmp_path):
    (described,) = index.describe(write(tmp_path / "a.h5", every=3), molecule="m")
    segment = described.segment
    assert (segment.n_frames, segment.stride_ps, segment.has_forces, segment.counted) == (4, 3.0, True, False)
    assert "8 frames without forces" in segment.note
    for table in (described.table, None):
        frames = readers.read(segment, 1, 4, table)
        np.testing.assert_allclose(frames.positions, POSITIONS[[3, 6, 9]] * 0.1, rtol=1e-6)
        np.testing.assert_allclose(frames.forces, FORCES[[3, 6, 9]] * 10, rtol=1e-6)
    (without,) = index.describe(tmp_path / "a.h5", molecule="m", want_forces=False)
    assert without.segment.n_frames == 12 and not without.segment.has_forces


def test_each_group_of_particles_is_a_trajectory(tmp_path):
    found = index.describe(write(tmp_path / "a.h5", groups=("protein", "water")), molecule="m")
    assert [described.segment.inside for described in found] == ["protein", "water"]
    assert len({described.segment.digest for described in found}) == 2
    assert readers.read(found[1].segment, 0, 3).n_frames == 3


@pytest.mark.parametrize("edges", [np.full(3, 20.0), np.eye(3) * 20.0])
def test_a_fixed_box_is_that_of_every_frame(tmp_path, edges):
    (segment,) = index.scan([str(write(tmp_path / "a.h5", edges=edges))], tmp_path, molecule="m")
    np.testing.assert_allclose(readers.read(segment, 0, 2).cell, np.tile(np.eye(3) * 2.0, (2, 1, 1)))


def test_a_box_per_frame_is_found_by_step_and_refused_at_other_steps(tmp_path):
    path, step = write(tmp_path / "a.h5", every=3), np.arange(12) * 500
    sides = np.linspace(10, 21, 12)[:, None] * np.ones(3)
    for steps in (step, step + 1):
        with h5py.File(path, "a") as file:
            file.pop("particles/all/box/edges", None)
            element(file.create_group("particles/all/box/edges"), sides, steps, steps * 2.0, "Angstrom", "fs")
        (segment,) = index.scan(["a.h5"], tmp_path, molecule="m")
        if steps is step:
            np.testing.assert_allclose(readers.read(segment, 0, 4).cell[:, 0, 0], sides[::3, 0] * 0.1, rtol=1e-6)
        else:
            with pytest.raises(UnreadableFile, match="other steps"):
                readers.read(segment, 0, 4)


@pytest.mark.parametrize("broken", ["no positions", "steps of another length", "atoms of another number"])
def test_broken_files_are_refused(tmp_path, broken):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        if broken == "no positions":
            del file["particles/all/position"]
        elif broken == "steps of another length":
            del file["particles/all/position/step"]
            file["particles/all/position/step"] = np.arange(11)
        else:
            del file["particles/all/force/value"]
            file["particles/all/force/value"] = FORCES[:, :4]
    with pytest.raises(UnreadableFile, match=r"a\.h5"):
        index.describe(path, molecule="m")


def test_cut_at_any_byte_is_an_error_of_the_file(tmp_path):
    content = write(tmp_path / "a.h5").read_bytes()
    for length in range(0, len(content), 101):
        (tmp_path / "cut.h5").write_bytes(content[:length])
        with pytest.raises(UnreadableFile, match=r"cut\.h5"):
            index.describe(tmp_path / "cut.h5", molecule="m")


def test_frames_come_in_the_order_asked_for(tmp_path):
    for seed in range(8):
        check_any_order(H5MD, write(tmp_path / "a.h5"), POSITIONS, seed, FORCES)


def restamped(path, **moments):
    """Positions and forces, all of them, at other steps and times; None for none."""
    write(path)
    with h5py.File(path, "a") as file:
        for name, kinds in moments.items():
            for kind in ("step", "time"):
                del file[f"particles/all/{name}/{kind}"]
                if kinds.get(kind) is not None:
                    file[f"particles/all/{name}/{kind}"] = np.asarray(kinds[kind])
    return path


def test_without_steps_forces_belong_to_positions_of_the_same_time(tmp_path):
    path = restamped(tmp_path / "a.h5", position={"time": np.arange(12.0)}, force={"time": np.arange(12) * 2.0})
    (described,) = index.describe(path, molecule="m")
    np.testing.assert_array_equal(described.table[:, 0], [0, 2, 4, 6, 8, 10])
    frames = readers.read(described.segment, 0, 6, described.table)
    np.testing.assert_allclose(frames.forces, FORCES[:6] * 10, rtol=1e-6)


def test_forces_whose_moments_cannot_be_compared_or_contradict_are_refused(tmp_path):
    number = np.arange(12)
    for of_forces, said in (
        ({}, "neither steps nor times"),
        ({"step": number, "time": 2.0 * number}, "same steps and other times"),
    ):
        path = restamped(tmp_path / "a.h5", position={"step": number, "time": 1.0 * number}, force=of_forces)
        with pytest.raises(UnreadableFile, match=said):
            index.describe(path, molecule="m")
    path = restamped(tmp_path / "a.h5", position={}, force={})
    assert index.describe(path, molecule="m", stride_ps=1.0)[0].segment.has_forces


def test_steps_that_begin_anew_where_times_go_on_lose_no_frame(tmp_path):
    moments = {"step": np.tile(np.arange(6), 2), "time": np.arange(12.0)}
    path = restamped(tmp_path / "a.h5", position=moments, force=moments)
    (described,) = index.describe(path, molecule="m")
    assert described.segment.n_frames == 12 and described.segment.counted
    np.testing.assert_allclose(readers.read(described.segment, 0, 12).forces, FORCES * 10, rtol=1e-6)
