"""What is asked of every trajectory format: the same frames however they are read, and from any file no other error."""

from pathlib import Path

import numpy as np

from hpc_cg.archive.source import Format, Header, RawFrames
from hpc_cg.errors import HpcCgError, UnknownUnit, UnreadableFile


def header_of(form: Format, path: Path) -> Header:
    (header,) = form.headers(path)
    assert header.rows.shape == header.has_positions.shape == header.has_forces.shape
    return header


def read(form: Format, path: Path, rows, atoms=None, positions=True, forces=False) -> RawFrames:
    with form.opened(path, "") as load:
        return load(np.asarray(rows, np.int64), None if atoms is None else np.asarray(atoms), positions, forces)


def check_ways_to_read(form: Format, path: Path, positions: np.ndarray, forces: np.ndarray | None = None) -> None:
    """All frames, strides, single ones, short tails; all atoms, every third, one, the second half: equal to the bit."""
    rows = header_of(form, path).rows
    n_frames, n_atoms = positions.shape[:2]
    ways = (slice(None), slice(0, None, 7), slice(n_frames - 2, None), slice(1, 2), slice(3, -1), [0, 1, 2, 4, 5, 9])
    subsets = (None, np.arange(0, n_atoms, 3), np.array([n_atoms - 1]), np.arange(n_atoms // 2, n_atoms))
    with form.opened(path, "") as load:
        for way in ways:
            for atoms in subsets:
                chosen = slice(None) if atoms is None else atoms
                frames = load(rows[way], atoms, True, forces is not None)
                np.testing.assert_array_equal(frames.positions, positions[way][:, chosen])
                assert frames.positions.dtype == positions.dtype and frames.positions.dtype.isnative
                if forces is not None:
                    np.testing.assert_array_equal(frames.forces, forces[way][:, chosen])
                    assert load(rows[way], atoms, False, True).positions is None
        for seed in range(4):
            order = np.random.default_rng(seed).permutation(n_frames)
            np.testing.assert_array_equal(load(rows[order], None, True, False).positions, positions[order])
        for number in range(0, n_frames, 3):
            np.testing.assert_array_equal(load(rows[[number]], None, True, False).positions[0], positions[number])


def check_any_order(
    form: Format, path: Path, positions: np.ndarray, seed: int, forces: np.ndarray | None = None
) -> None:
    """Some of the frames, or all, in a random order, some of them twice: each in its own place."""
    random = np.random.default_rng(seed)
    rows = header_of(form, path).rows
    few = random.choice(len(rows), size=int(random.integers(2, len(rows))), replace=bool(seed % 2))
    for wanted in (random.permutation(len(rows)), few, few[::-1]):
        frames = read(form, path, rows[wanted], [0, 2], forces=forces is not None)
        np.testing.assert_array_equal(frames.positions, positions[wanted][:, [0, 2]])
        if forces is not None:
            np.testing.assert_array_equal(frames.forces, forces[wanted][:, [0, 2]])


def outcome(form: Format, path: Path) -> RawFrames | None:
    """What a file of any content gives: frames that it has room for, or None after an error of ours."""
    size = path.stat().st_size
    try:
        header = header_of(form, path)
        assert 0 < header.n_frames <= size / 8
        with_positions = header.rows[header.has_positions]
        if not len(with_positions):
            return None
        assert header.n_atoms <= 4 * size
        return read(form, path, with_positions)
    except HpcCgError as error:
        assert isinstance(error, UnknownUnit) or str(path) in str(error)
        return None


def check_every_cut(form: Format, path: Path, positions: np.ndarray) -> None:
    """A file cut anywhere gives whole frames from its beginning, and a note where one is cut; or UnreadableFile."""
    content = path.read_bytes()
    cut = path.with_name(f"cut{path.suffix}")
    seen, whole_frames = set(), set(header_of(form, path).rows.tolist())
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        try:
            header = header_of(form, cut)
        except UnreadableFile as error:
            assert str(cut) in str(error)
            continue
        seen.add(header.n_frames)
        assert header.n_frames < len(positions)
        frames = read(form, cut, header.rows)
        np.testing.assert_array_equal(frames.positions, positions[: header.n_frames])
        assert header.note or length in whole_frames
    assert seen == set(range(1, len(positions)))


def damaged(content: bytes, changes: list[tuple[int, int]]) -> bytes:
    """The content with bytes at places changed, places counted around."""
    found = bytearray(content)
    for place, value in changes:
        found[place % len(found)] = value
    return bytes(found)
