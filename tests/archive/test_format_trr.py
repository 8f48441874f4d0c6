"""TRR: what MDTraj writes is read as MDTraj reads it, and what MDTraj misreads is read right."""

import struct

import numpy as np
import pytest
from formats import check_every_cut, check_ways_to_read, damaged, header_of, outcome, read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mdtraj.formats import TRRTrajectoryFile

from hpc_cg.archive import index, readers, trr
from hpc_cg.archive.trr import TRR
from hpc_cg.errors import UnreadableFile

RANDOM = np.random.default_rng(1)
POSITIONS, FORCES = RANDOM.normal(size=(2, 23, 11, 3)).astype(np.float32)
BOX = np.tile(np.diag([3.0, 4.0, 5.0]).astype(np.float32), (23, 1, 1))
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path, positions=POSITIONS, forces=FORCES, box=BOX, velocities=None):
    n_frames = len(positions)
    with TRRTrajectoryFile(str(path), "w") as file:
        time, step = np.arange(n_frames, dtype=np.float32) / 2, 10 * np.arange(n_frames, dtype=np.int32)
        file._write(positions, time, step, box[:n_frames], np.zeros(n_frames, np.float32), velocities, forces)
    return path


def frame(n_atoms=4, step=0, time=0.0, real="f", box=None, x=None, v=None, f=None, magic=1993):
    """One frame as GROMACS writes it, in single or double precision."""
    parts = [b"" if part is None else np.asarray(part, f">{real}").tobytes() for part in (box, x, v, f)]
    sizes = [0, 0, len(parts[0]), 0, 0, 0, 0, *map(len, parts[1:])]
    words = struct.pack(">3i12s13i", magic, 13, 12, b"GMX_trn_file", *sizes, n_atoms, step, 0)
    return words + struct.pack(f">2{real}", time, 0.0) + b"".join(parts)


def test_positions_forces_and_cell_are_what_mdtraj_wrote_and_reads(tmp_path):
    path = write(tmp_path / "a.trr")
    with TRRTrajectoryFile(str(path)) as file:
        found = file._read(23, None, get_forces=True)
    np.testing.assert_array_equal(found[0], POSITIONS)
    np.testing.assert_array_equal(found[-1], FORCES)
    check_ways_to_read(TRR, path, POSITIONS, FORCES)
    header = header_of(TRR, path)
    assert (header.n_atoms, header.n_frames, header.length_unit, header.force_unit) == (11, 23, "nm", "kJ/mol/nm")
    np.testing.assert_array_equal(header.step, 10 * np.arange(23))
    np.testing.assert_array_equal(header.time, np.arange(23) / 2)
    assert header.has_positions.all() and header.has_forces.all() and not header.note
    np.testing.assert_array_equal(read(TRR, path, header.rows).cell, BOX)


def test_no_box_is_no_cell(tmp_path):
    path = write(tmp_path / "a.trr", box=np.zeros_like(BOX))
    assert read(TRR, path, header_of(TRR, path).rows).cell is None


def test_velocities_in_between_are_stepped_over(tmp_path):
    check_ways_to_read(TRR, write(tmp_path / "a.trr", velocities=POSITIONS * 9), POSITIONS, FORCES)


def test_large_frames_are_read_in_the_parts_that_are_wanted(tmp_path):
    positions, forces = RANDOM.normal(size=(2, 12, 9001, 3)).astype(np.float32)
    path = write(tmp_path / "a.trr", positions, forces)
    check_ways_to_read(TRR, path, positions, forces)
    rows = header_of(TRR, path).rows
    frames = read(TRR, path, rows, np.array([8, 3000]), forces=True)
    np.testing.assert_array_equal(frames.forces, forces[:, [8, 3000]])
    np.testing.assert_array_equal(frames.cell, BOX[:12])


def test_frames_without_forces_among_others_are_told_apart(tmp_path):
    content = [frame(11, i, x=POSITIONS[i], f=None if i % 2 else FORCES[i], box=BOX[i]) for i in range(23)]
    (tmp_path / "a.trr").write_bytes(b"".join(content))
    header = header_of(TRR, tmp_path / "a.trr")
    np.testing.assert_array_equal(header.has_forces, np.arange(23) % 2 == 0)
    check_ways_to_read(TRR, tmp_path / "a.trr", POSITIONS)
    np.testing.assert_array_equal(read(TRR, tmp_path / "a.trr", header.rows[::2], forces=True).forces, FORCES[::2])
    with pytest.raises(UnreadableFile, match="lacks the positions or forces"):
        read(TRR, tmp_path / "a.trr", header.rows[:3], forces=True)


def test_the_index_takes_frames_that_have_both(tmp_path):
    content = [frame(11, i, i / 4, x=None if i % 3 else POSITIONS[i], f=FORCES[i]) for i in range(23)]
    (tmp_path / "a.trr").write_bytes(b"".join(content))
    (described,) = index.describe(tmp_path / "a.trr", molecule="m")
    frames = readers.read(described.segment, 0, described.segment.n_frames, described.table)
    np.testing.assert_array_equal(frames.positions, POSITIONS[::3])
    np.testing.assert_array_equal(frames.forces, FORCES[::3])
    assert described.segment.stride_ps == 0.75


def test_layouts_of_equal_size_are_not_taken_for_one_another(tmp_path):
    content = [frame(11, i, x=POSITIONS[i], **{"vf"[i % 2]: FORCES[i]}) for i in range(22)]
    (tmp_path / "a.trr").write_bytes(b"".join(content))
    header = header_of(TRR, tmp_path / "a.trr")
    check_ways_to_read(TRR, tmp_path / "a.trr", POSITIONS[:22])
    np.testing.assert_array_equal(read(TRR, tmp_path / "a.trr", header.rows[1::2], forces=True).forces, FORCES[1:22:2])


def test_double_precision_is_kept(tmp_path):
    exact = np.random.default_rng(2).normal(size=(2, 12, 4, 3))
    content = [frame(4, i, i / 3, "d", BOX[0], exact[0, i], f=exact[1, i]) for i in range(12)]
    (tmp_path / "a.trr").write_bytes(b"".join(content))
    check_ways_to_read(TRR, tmp_path / "a.trr", *exact)
    header = header_of(TRR, tmp_path / "a.trr")
    np.testing.assert_array_equal(header.time, np.arange(12) / 3)
    np.testing.assert_array_equal(read(TRR, tmp_path / "a.trr", header.rows).cell, BOX[:12])


def test_steps_beyond_32_bits_are_counted_on(tmp_path):
    steps = [(1 << 31) - 10, -(1 << 31), -(1 << 31) + 10, 0, (1 << 31) - 6, -(1 << 31) + 4]
    (tmp_path / "a.trr").write_bytes(b"".join(frame(1, step, x=np.zeros(3)) for step in steps))
    found = header_of(TRR, tmp_path / "a.trr").step
    assert found[0] == (1 << 31) - 10
    np.testing.assert_array_equal(np.diff(found), [10, 10, (1 << 31) - 10, (1 << 31) - 6, 10])


def test_a_file_cut_anywhere_gives_whole_frames_or_an_error(tmp_path):
    path = write(tmp_path / "a.trr", POSITIONS[:3], FORCES[:3])
    check_every_cut(TRR, path, POSITIONS[:3])
    path.write_bytes(path.read_bytes()[:-100])
    assert header_of(TRR, path).note == "the last frame is cut off: 284 of 384 bytes"


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "an empty file"),
        (b"\0" * 500, "no TRR frame at byte 0"),
        (frame(x=np.zeros(12), magic=1995), "no TRR frame at byte 0"),
        (frame(x=np.zeros(12))[:100], "the first frame is cut off: 100 of 132 bytes"),
        (frame(x=np.zeros(12)) + b"\n", "no TRR frame at byte 132"),
        (frame(x=np.zeros(12)) + frame(5, x=np.zeros(15)), "5 atoms beside 4"),
        (frame(-4, x=np.zeros(12)), "-4 atoms"),
        (frame(1 << 30, x=np.zeros(12)), "sizes"),
        (frame(4, x=np.zeros(11)), "sizes"),
        (frame(4), "sizes"),
    ],
)
def test_what_is_no_trr_is_said_with_the_name_of_the_file(tmp_path, content, said):
    (tmp_path / "a.trr").write_bytes(content)
    with pytest.raises(UnreadableFile, match=said) as caught:
        TRR.headers(tmp_path / "a.trr")
    assert "a.trr" in str(caught.value)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    path = write(tmp_path / "a.trr")
    rows = header_of(TRR, path).rows
    with TRR.opened(path, "") as load:
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(UnreadableFile, match=r"a\.trr"):
            load(rows, None, True, True)


@FUZZ
@given(changes=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), min_size=1, max_size=4))
def test_damage_gives_frames_or_an_error(tmp_path, changes):
    whole = write(tmp_path / "a.trr", POSITIONS[:4], FORCES[:4]).read_bytes()
    (tmp_path / "b.trr").write_bytes(damaged(whole, changes))
    outcome(TRR, tmp_path / "b.trr")


@FUZZ
@given(content=st.binary(max_size=300), begun=st.booleans())
def test_garbage_gives_an_error(tmp_path, content, begun):
    (tmp_path / "b.trr").write_bytes(frame()[:24] * begun + content)
    outcome(TRR, tmp_path / "b.trr")


def test_pieces_are_bounded_however_many_frames_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(trr, "PIECE_BYTES", 1000)
    path = write(tmp_path / "a.trr")
    check_ways_to_read(TRR, path, POSITIONS, FORCES)
    with trr.Bytes.of(path) as file:
        assert max(len(piece) for _, piece in trr.pieces(file, header_of(TRR, path).rows, [(0, 384)])) == 2


@pytest.mark.data
def test_real_files_are_read_as_mdtraj_reads_them(data_folder):
    for path in sorted((data_folder / "ala2_seeded").glob("*.trr"))[::8]:
        with TRRTrajectoryFile(str(path)) as file:
            found = file._read(300, None, get_forces=True)
        header = header_of(TRR, path)
        frames = read(TRR, path, header.rows, forces=True)
        np.testing.assert_array_equal(frames.positions, found[0])
        np.testing.assert_array_equal(frames.forces, found[-1])
        np.testing.assert_array_equal(header.time, found[1])
        np.testing.assert_array_equal(header.step, found[2])


def test_double_precision_far_from_the_origin_is_centred_before_it_is_rounded(tmp_path):
    exact = np.random.default_rng(2).normal(size=(4, 3))
    (tmp_path / "a.trr").write_bytes(frame(4, 0, 0.0, "d", BOX[0], exact + 1000))
    (segment,) = index.scan(["a.trr"], tmp_path, molecule="m", stride_ps=1.0)
    np.testing.assert_allclose(readers.read(segment, 0, 1).positions[0], exact - exact.mean(0), atol=3e-7)
