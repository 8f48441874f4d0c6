"""DCD: what MDTraj writes is read to the bit, and so are the variants that other programs write."""

import struct

import numpy as np
import pytest
from formats import check_every_cut, check_ways_to_read, damaged, header_of, outcome, read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mdtraj.formats import DCDTrajectoryFile

from hpc_cg.archive.cells import box_vectors
from hpc_cg.archive.dcd import DCD
from hpc_cg.errors import UnreadableFile

POSITIONS = np.random.default_rng(4).normal(size=(23, 11, 3)).astype(np.float32)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def record(order, content):
    mark = struct.pack(f"{order}i", len(content))
    return mark + content + mark


def content(
    positions=POSITIONS,
    order="<",
    cell=None,
    first=0,
    between=1,
    delta=1.0,
    fixed=0,
    fourth=0,
    version=24,
    declared=None,
):
    """A file as CHARMM (version > 0) or X-PLOR writes it."""
    n_frames, n_atoms = positions.shape[:2]
    words = [n_frames if declared is None else declared, first, between, 0, 0, 0, 0, 0, fixed]
    time_step = (
        struct.pack(f"{order}f2i", delta, cell is not None, fourth) if version else struct.pack(f"{order}di", delta, 0)
    )
    control = struct.pack(f"{order}9i", *words) + time_step + struct.pack(f"{order}8i", *7 * [0], version)
    found = record(order, b"CORD" + control)
    found += record(order, struct.pack(f"{order}i", 2) + b"a title".ljust(160))
    found += record(order, struct.pack(f"{order}i", n_atoms))
    for number in range(n_frames):
        if cell is not None:
            found += record(order, np.asarray(cell[number], f"{order}f8").tobytes())
        for axis in range(3):
            found += record(order, positions[number, :, axis].astype(f"{order}f4").tobytes())
    return found


def save(path, *args, **kwargs):
    path.write_bytes(content(*args, **kwargs))
    return path


@pytest.mark.parametrize("with_cell", [False, True])
def test_positions_and_cell_are_what_mdtraj_wrote_and_reads(tmp_path, with_cell):
    path = tmp_path / "a.dcd"
    lengths, angles = np.full((23, 3), [30, 40, 50], np.float32), np.full((23, 3), [70, 80, 100], np.float32)
    with DCDTrajectoryFile(str(path), "w") as file:
        file.write(POSITIONS, *((lengths, angles) if with_cell else ()))
    with DCDTrajectoryFile(str(path)) as file:
        np.testing.assert_array_equal(file.read()[0], POSITIONS)
    check_ways_to_read(DCD, path, POSITIONS)
    header = header_of(DCD, path)
    assert (header.n_atoms, header.n_frames, header.length_unit, header.note) == (11, 23, "angstrom", "")
    assert header.time is None, "1 AKMA unit, which MDTraj writes always, is no time step"
    cell = read(DCD, path, header.rows).cell
    if with_cell:
        np.testing.assert_allclose(cell, box_vectors(lengths, angles), rtol=1e-6)
    else:
        assert cell is None


@pytest.mark.parametrize("version", [24, 0])
@pytest.mark.parametrize("order", "<>")
def test_both_byte_orders_of_both_kinds(tmp_path, order, version):
    cell = np.tile([30.0, 90, 40, 90, 90, 50], (23, 1)) if version else None
    path = save(tmp_path / "a.dcd", order=order, cell=cell, version=version)
    check_ways_to_read(DCD, path, POSITIONS)
    if version:
        np.testing.assert_array_equal(read(DCD, path, [3]).cell, np.diag([30.0, 40, 50])[None])


def test_large_frames_are_read_in_the_parts_that_are_wanted(tmp_path):
    positions = np.random.default_rng(5).normal(size=(12, 9001, 3)).astype(np.float32)
    path = save(tmp_path / "a.dcd", positions)
    check_ways_to_read(DCD, path, positions)
    np.testing.assert_array_equal(read(DCD, path, [1, 5], [8, 3000]).positions, positions[[1, 5]][:, [8, 3000]])


@pytest.mark.parametrize("version", [24, 0])
def test_steps_and_times_come_from_the_header(tmp_path, version):
    akma_of_2_fs = 0.002 / 0.04888821
    header = header_of(DCD, save(tmp_path / "a.dcd", first=500, between=100, delta=akma_of_2_fs, version=version))
    np.testing.assert_array_equal(header.step, 500 + 100 * np.arange(23))
    np.testing.assert_allclose(header.time, 1 + 0.2 * np.arange(23), rtol=1e-6)


@pytest.mark.parametrize("delta", [0.0, -1.0, 1.0, np.nan, np.inf, 1e30])
def test_time_steps_that_cannot_be_are_not_believed(tmp_path, delta):
    assert header_of(DCD, save(tmp_path / "a.dcd", delta=delta)).time is None


def test_no_spacing_is_no_step(tmp_path):
    header = header_of(DCD, save(tmp_path / "a.dcd", between=0))
    assert header.step is None and header.time is None


@pytest.mark.parametrize("angles", [(70.0, 80.0, 100.0), (60.0, 60.0, 90.0), (90.0, 90.0, 90.0)])
def test_the_three_ways_to_keep_a_cell_are_told_apart(tmp_path, angles):
    lengths = np.tile([30.0, 40.0, 50.0], (23, 1))
    vectors = box_vectors(lengths, np.tile(angles, (23, 1)))
    alpha, beta, gamma = angles
    degrees = np.tile([30, gamma, 40, beta, alpha, 50], (23, 1))
    alpha, beta, gamma = np.cos(np.radians(angles))
    cosines = np.tile([30, gamma, 40, beta, alpha, 50], (23, 1))
    for cell in (degrees, cosines):
        path = save(tmp_path / "a.dcd", cell=cell)
        np.testing.assert_allclose(read(DCD, path, [4]).cell, vectors[:1], atol=1e-9)
    symmetric = np.array([[40.0, -9, 7], [-9, 45, 3], [7, 3, 50]])
    path = save(tmp_path / "b.dcd", cell=np.tile([40.0, -9, 45, 7, 3, 50], (23, 1)))
    np.testing.assert_array_equal(read(DCD, path, [4]).cell, symmetric[None])


def test_a_cell_of_zeros_is_none(tmp_path):
    assert read(DCD, save(tmp_path / "a.dcd", cell=np.zeros((23, 6))), [4]).cell is None


def test_more_or_fewer_frames_than_declared_are_noted(tmp_path):
    header = header_of(DCD, save(tmp_path / "a.dcd", declared=0))
    assert header.n_frames == 23 and header.note == "23 frames are there, 0 as its header says"


def test_what_is_not_supported_says_what_to_do(tmp_path):
    for changed, said in (({"fixed": 3}, "3 fixed atoms"), ({"fourth": 1}, "a fourth dimension")):
        with pytest.raises(UnreadableFile, match=rf"{said}.*[Cc]onvert it: mdconvert a\.dcd"):
            DCD.headers(save(tmp_path / "a.dcd", **changed))
    (tmp_path / "a.dcd").write_bytes(struct.pack("<q", 84) + b"CORD" + bytes(500))
    with pytest.raises(UnreadableFile, match="8-byte marks"):
        DCD.headers(tmp_path / "a.dcd")


@pytest.mark.parametrize("with_cell", [False, True])
def test_a_file_cut_anywhere_gives_whole_frames_or_an_error(tmp_path, with_cell):
    cell = np.tile([30.0, 90, 40, 90, 90, 50], (3, 1)) if with_cell else None
    check_every_cut(DCD, save(tmp_path / "a.dcd", POSITIONS[:3], cell=cell), POSITIONS[:3])


@pytest.mark.parametrize(
    "found, said",
    [
        (b"", "an empty file"),
        (bytes(500), "no DCD header"),
        (content()[:60], "no DCD header, or one that is cut off"),
        (content()[:200], "a DCD header that is damaged"),
        (content()[:400], "the first frame is cut off: 124 of 156 bytes"),
        (content().replace(b"CORD", b"VELD"), "no DCD header"),
        (content()[:-20] + bytes(20), "records that are not those"),
        (content()[:320] + bytes(4) + content()[320:], "records that are not those"),
    ],
)
def test_what_is_no_dcd_is_said_with_the_name_of_the_file(tmp_path, found, said):
    (tmp_path / "a.dcd").write_bytes(found)
    with pytest.raises(UnreadableFile, match=said) as caught:
        DCD.headers(tmp_path / "a.dcd")
    assert "a.dcd" in str(caught.value)


def test_a_frame_that_is_shifted_is_found_when_it_is_read(tmp_path):
    whole = content()
    (tmp_path / "a.dcd").write_bytes(whole[: 276 + 156 * 5] + bytes(156) + whole[276 + 156 * 6 :])
    header = header_of(DCD, tmp_path / "a.dcd")
    read(DCD, tmp_path / "a.dcd", header.rows[:5])
    with pytest.raises(UnreadableFile, match="records that are not those"):
        read(DCD, tmp_path / "a.dcd", header.rows)


def test_forces_and_frames_that_are_not_there_are_errors(tmp_path):
    path = save(tmp_path / "a.dcd")
    with pytest.raises(UnreadableFile, match="no forces"):
        read(DCD, path, [0], forces=True)
    for row in (-1, 23):
        with pytest.raises(UnreadableFile, match="of 23"):
            read(DCD, path, [row])


@FUZZ
@given(
    changes=st.lists(st.tuples(st.integers(0, 290), st.integers(0, 255)), min_size=1, max_size=4), cell=st.booleans()
)
def test_damage_gives_frames_or_an_error(tmp_path, changes, cell):
    whole = content(POSITIONS[:4], cell=np.tile([30.0, 90, 40, 90, 90, 50], (4, 1)) if cell else None)
    (tmp_path / "b.dcd").write_bytes(damaged(whole, changes))
    outcome(DCD, tmp_path / "b.dcd")


@FUZZ
@given(found=st.binary(max_size=400), begun=st.sampled_from([0, 8, 92, 276]))
def test_garbage_gives_an_error(tmp_path, found, begun):
    (tmp_path / "b.dcd").write_bytes(content()[:begun] + found)
    outcome(DCD, tmp_path / "b.dcd")
