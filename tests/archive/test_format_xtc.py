"""XTC: MDTraj decodes, and what it would crash on never reaches it."""

import struct

import numpy as np
import pytest
from formats import check_every_cut, check_ways_to_read, damaged, header_of, outcome, read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mdtraj.formats import XTCTrajectoryFile

from hpc_cg.archive import xtc
from hpc_cg.archive.xtc import XTC, XTC_CHECKED
from hpc_cg.errors import UnreadableFile

RANDOM = np.random.default_rng(3)
FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def chain(n_frames=23, n_atoms=30, step=0.1):
    """Atoms one after the other, so that there are runs of short steps, as in molecules."""
    return np.cumsum(RANDOM.normal(size=(n_frames, n_atoms, 3)) * step, axis=1).astype(np.float32)


CHAIN = chain()


def write(path, positions=CHAIN, box=None, step=None):
    """Write frames; return them as MDTraj reads them."""
    time = np.arange(len(positions), dtype=np.float32) / 2
    with XTCTrajectoryFile(str(path), "w") as file:
        file.write(positions, time=time, step=step, box=box)
    with XTCTrajectoryFile(str(path)) as file:
        return file.read()[0]


@pytest.mark.parametrize("n_atoms", [1, 5, 9, 10, 11, 30, 500])
def test_positions_are_what_mdtraj_reads(tmp_path, n_atoms):
    found = write(tmp_path / "a.xtc", chain(23, n_atoms))
    check_ways_to_read(XTC, tmp_path / "a.xtc", found)
    header = header_of(XTC, tmp_path / "a.xtc")
    assert (header.n_atoms, header.n_frames, header.length_unit, header.force_unit) == (n_atoms, 23, "nm", None)
    np.testing.assert_array_equal(header.time, np.arange(23) / 2)
    np.testing.assert_array_equal(header.step, np.arange(23))
    assert header.has_positions.all() and not header.has_forces.any() and not header.note


@pytest.mark.parametrize("step", [1e-4, 1e-2, 1.0, 30.0, 4000.0])
def test_sound_frames_pass_whatever_their_spread(tmp_path, step):
    found = write(tmp_path / "a.xtc", chain(12, 200, step))
    check_ways_to_read(XTC, tmp_path / "a.xtc", found)


def test_equal_positions_pass(tmp_path):
    found = write(tmp_path / "a.xtc", np.ones((12, 40, 3), np.float32))
    check_ways_to_read(XTC, tmp_path / "a.xtc", found)


def test_frames_are_looked_through_in_parts_when_they_are_many(tmp_path, monkeypatch):
    monkeypatch.setattr(xtc, "CHECKED_BYTES", 500)
    found = write(tmp_path / "a.xtc")
    check_ways_to_read(XTC, tmp_path / "a.xtc", found)


def test_box_is_the_cell(tmp_path):
    box = np.tile(np.array([[3, 0, 0], [1, 4, 0], [1, 1, 5]], np.float32), (23, 1, 1))
    write(tmp_path / "a.xtc", box=box)
    rows = header_of(XTC, tmp_path / "a.xtc").rows
    np.testing.assert_array_equal(read(XTC, tmp_path / "a.xtc", rows[::4]).cell, box[::4])
    write(tmp_path / "b.xtc")
    assert read(XTC, tmp_path / "b.xtc", rows).cell is None


def test_steps_beyond_32_bits_are_counted_on(tmp_path):
    steps = np.array([(1 << 31) - 10, -(1 << 31), -(1 << 31) + 10], np.int32)
    write(tmp_path / "a.xtc", CHAIN[:3], step=steps)
    np.testing.assert_array_equal(np.diff(header_of(XTC, tmp_path / "a.xtc").step), [10, 10])


def test_names_beyond_ascii_can_be_read(tmp_path):
    found = write(tmp_path / "a.xtc")
    path = (tmp_path / "a.xtc").rename(tmp_path / "Größe.xtc")
    np.testing.assert_array_equal(read(XTC, path, header_of(XTC, path).rows).positions, found)


def test_the_file_is_looked_through_once(tmp_path, monkeypatch):
    """Frames are found where the header listed them: the decoder never searches."""
    found = write(tmp_path / "a.xtc")
    rows = header_of(XTC, tmp_path / "a.xtc").rows
    places = []
    true_frame = xtc._frame
    monkeypatch.setattr(
        xtc, "_frame", lambda file, place, begin: places.append(place) or true_frame(file, place, begin)
    )
    np.testing.assert_array_equal(read(XTC, tmp_path / "a.xtc", rows[[20, 21]]).positions, found[[20, 21]])
    assert places == [0, rows[20], rows[21]]


@pytest.mark.parametrize("n_atoms", [4, 12])
def test_a_file_cut_anywhere_gives_whole_frames_or_an_error(tmp_path, n_atoms):
    found = write(tmp_path / "a.xtc", chain(3, n_atoms))
    check_every_cut(XTC, tmp_path / "a.xtc", found)


@pytest.mark.parametrize(
    "place, value, said",
    [
        (0, 1993, "no XTC frame at byte 0"),
        (0, 2023, "298,261,617 atoms"),
        (4, 31, "31 atoms of which 30"),
        (4, -30, "-30 atoms"),
        (56, 0, "damaged"),
        (84, 8, "damaged"),
        (84, 73, "damaged"),
        (88, -1, "damaged"),
        (88, 1 << 30, "damaged"),
    ],
)
def test_what_no_decoder_should_see_is_refused(tmp_path, place, value, said):
    write(tmp_path / "a.xtc")
    content = bytearray((tmp_path / "a.xtc").read_bytes())
    struct.pack_into(">i", content, place, value)
    (tmp_path / "b.xtc").write_bytes(content)
    with pytest.raises(UnreadableFile, match=said) as caught:
        XTC.headers(tmp_path / "b.xtc")
    assert "b.xtc" in str(caught.value)


def test_other_atoms_in_a_later_frame_are_refused(tmp_path):
    write(tmp_path / "a.xtc")
    write(tmp_path / "b.xtc", chain(2, 31))
    content = (tmp_path / "a.xtc").read_bytes()
    (tmp_path / "c.xtc").write_bytes(content + (tmp_path / "b.xtc").read_bytes())
    with pytest.raises(UnreadableFile, match=f"no XTC frame of as many atoms at byte {len(content):,}"):
        XTC.headers(tmp_path / "c.xtc")


def test_empty_files_and_forces_are_errors(tmp_path):
    (tmp_path / "a.xtc").touch()
    with pytest.raises(UnreadableFile, match="an empty file"):
        XTC.headers(tmp_path / "a.xtc")
    write(tmp_path / "b.xtc")
    with pytest.raises(UnreadableFile, match="no forces"):
        read(XTC, tmp_path / "b.xtc", [0], forces=True)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    write(tmp_path / "a.xtc")
    path = tmp_path / "a.xtc"
    rows = header_of(XTC, path).rows
    with XTC.opened(path, "") as load:
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(UnreadableFile, match=r"a\.xtc"):
            load(rows, None, True, False)


def test_runs_that_overflow_the_decoder_are_told_before(tmp_path):
    """Every byte of the compressed part, turned: frames, or an error, and never the end of the process."""
    found = write(tmp_path / "a.xtc", CHAIN[:2])
    content = (tmp_path / "a.xtc").read_bytes()
    errors = 0
    for place in range(92, header_of(XTC, tmp_path / "a.xtc").rows[1]):
        (tmp_path / "b.xtc").write_bytes(damaged(content, [(place, content[place] ^ 0xFF)]))
        frames = outcome(XTC_CHECKED, tmp_path / "b.xtc")
        errors += frames is None
        assert frames is None or frames.positions.shape == found.shape
    assert errors > 10


@FUZZ
@given(changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4))
def test_damage_gives_frames_or_an_error(tmp_path, changes):
    write(tmp_path / "a.xtc", CHAIN[:3])
    (tmp_path / "b.xtc").write_bytes(damaged((tmp_path / "a.xtc").read_bytes(), changes))
    outcome(XTC_CHECKED, tmp_path / "b.xtc")


@FUZZ
@given(content=st.binary(max_size=300), n_atoms=st.sampled_from([None, 3, 20, 1 << 28]))
def test_garbage_gives_an_error(tmp_path, content, n_atoms):
    begun = b"" if n_atoms is None else struct.pack(">3if9fi", 1995, n_atoms, 0, 0.0, *9 * [0.0], n_atoms)
    (tmp_path / "b.xtc").write_bytes(begun + content)
    outcome(XTC_CHECKED, tmp_path / "b.xtc")
