"""The index on disk: segments come back as they were described, every frame has one place, whoever described them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_cg.archive import catalogue
from hpc_cg.archive.catalogue import Catalogue, Piece, Source
from hpc_cg.archive.index import Described, Segment
from hpc_cg.archive.weights import check_weights, equal, open_weights
from hpc_cg.errors import BadWeights, MissingInput, UnreadableFile


def segment(path: str, n_frames: int, counted: bool = True) -> Segment:
    return Segment(
        molecule="m",
        path=path,
        format="npy",
        n_frames=n_frames,
        n_atoms=5,
        stride_ps=1.0,
        temperature_K=None,
        has_forces=True,
        digest=f"digest of {path}",
        length_unit="nm",
        force_unit="kJ/mol/nm",
        forces_path=None,
        counted=counted,
    )


def made(folder: Path, lengths: list[int], tables: dict[int, np.ndarray] | None = None) -> Catalogue:
    tables = tables or {}
    sources = [Source(f"/a/run{i}.npy", None) for i in range(len(lengths))]

    def describe(source: Source) -> tuple[Described, ...]:
        i = int(Path(source.path).stem.removeprefix("run"))
        return (Described(segment(source.path, lengths[i], i not in tables), tables.get(i)),)

    catalogue.begin(folder, sources)
    found = catalogue.sources_of(folder)
    assert list(found) == sources
    for part in reversed(range(catalogue.n_parts(found))):
        catalogue.describe_part(folder, found, part, describe)
    assert catalogue.merge(folder, found) == []
    return Catalogue(folder)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=80), shard=st.integers(1, 60))
def test_shards_cover_every_frame_of_every_segment_once(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], shard: int
) -> None:
    found = made(tmp_path_factory.mktemp("index"), lengths)
    total = sum(lengths)
    assert (len(found), found.n_frames) == (len(lengths), total)
    seen = [
        (piece.segment, frame)
        for start in range(0, total, shard)
        for piece in found.pieces(start, min(start + shard, total))
        for frame in range(piece.start, piece.stop)
    ]
    everything = [(number, frame) for number, length in enumerate(lengths) for frame in range(length)]
    assert seen == everything
    some = np.arange(0, total, 3)
    placed = [(number, int(frame)) for number, within in found.places(some) for frame in within]
    assert placed == everything[::3]


def test_segments_and_their_rows_come_back_as_they_were_described(tmp_path: Path) -> None:
    rows = {1: np.arange(14).reshape(7, 2), 69: np.full((2, 2), 1 << 40)}
    lengths = [3, 7, *([4] * 67), 2]
    found = made(tmp_path, lengths, rows)
    assert found[1] == segment("/a/run1.npy", 7, counted=False)
    assert found[-1] == segment("/a/run69.npy", 2, counted=False)
    assert [one.n_frames for one in found[:3]] == [3, 7, 4]
    assert found.table(0) is None and found.table(68) is None
    np.testing.assert_array_equal(found.table(1), rows[1])
    np.testing.assert_array_equal(found.table(69), rows[69])


def test_a_source_that_cannot_be_read_is_listed_and_the_others_stay(tmp_path: Path) -> None:
    sources = [Source("/a/good.npy", None), Source("/a/bad.npy", None)]

    def describe(source: Source) -> tuple[Described, ...]:
        if "bad" in source.path:
            raise UnreadableFile(f"reading {source.path}", "an empty file", "copy it again")
        return (Described(segment(source.path, 4), None),)

    catalogue.begin(tmp_path, sources)
    catalogue.describe_part(tmp_path, sources, 0, describe)
    (fault,) = catalogue.merge(tmp_path, sources)
    assert fault["path"] == "/a/bad.npy" and "an empty file" in fault["reason"]
    assert len(Catalogue(tmp_path)) == 1


def test_weights_follow_their_frames(tmp_path: Path) -> None:
    found = made(tmp_path / "index", [3, 4])
    np.testing.assert_array_equal(equal(Piece(1, 1, 4)), np.ones(3))
    np.save(tmp_path / "w.npy", np.arange(7.0))
    flat = open_weights(tmp_path / "w.npy", found)
    np.testing.assert_array_equal(flat(Piece(1, 1, 4)), [4, 5, 6])
    np.savez(tmp_path / "w.npz", **{"run0.npy": np.ones(3), "a/run1.npy": np.arange(4.0)})
    named = open_weights(tmp_path / "w.npz", found)
    np.testing.assert_array_equal(named(Piece(1, 2, 4)), [2, 3])
    np.testing.assert_array_equal(open_weights(None, found)(Piece(0, 0, 2)), [1, 1])


def named(folder: Path, paths: list[str], n_frames: int = 4, bad: tuple[str, ...] = ()) -> Catalogue:
    """An index of files of four frames each; those that are bad cannot be read."""
    sources = [Source(path, None) for path in paths]

    def describe(source: Source) -> tuple[Described, ...]:
        if source.path in bad:
            raise UnreadableFile(f"reading {source.path}", "an empty file", "copy it again")
        return (Described(segment(source.path, n_frames), None),)

    catalogue.begin(folder, sources)
    catalogue.describe_part(folder, catalogue.sources_of(folder), 0, describe)
    catalogue.merge(folder, sources)
    return Catalogue(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones(6), "7 weights"),
        (np.ones((7, 1)), "shape"),
        (np.array([1, 1, 1, -1, 1, 1, 1.0]), "-1.0 at place 3"),
        (np.array([1, 1, 1, np.nan, 1, 1, 1]), "nan at place 3"),
        (np.array([1, 1, 1, 1, 1, 1e39, 1]), r"1e\+39 at place 5.*only their ratios count"),
        (np.array([1, 1, 1, 1, 1, 1, 1e-50]), "1e-50 at place 6.*single precision"),
        (np.zeros(7), "only zeros"),
        (np.array(["a"] * 7), "type"),
        (np.ones(7, complex), "complex128"),
    ],
)
def test_weights_that_are_none_are_refused(tmp_path: Path, values: np.ndarray, message: str) -> None:
    found = made(tmp_path / "index", [3, 4])
    np.save(tmp_path / "w.npy", values)
    with pytest.raises(BadWeights, match=message):
        check_weights(tmp_path / "w.npy", found)
    if values.shape == (7,) and values.dtype.kind == "f":
        np.savez(tmp_path / "w.npz", **{"run0.npy": values[:3], "run1.npy": values[3:]})
        with pytest.raises(BadWeights, match="only zeros|run1"):
            check_weights(tmp_path / "w.npz", found)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "uint8", "bool"])
def test_weights_may_be_any_real_numbers(tmp_path: Path, dtype: str) -> None:
    found = made(tmp_path / "index", [3, 4])
    np.save(tmp_path / "w.npy", np.array([1, 0, 1, 1, 1, 0, 1], dtype))
    check_weights(tmp_path / "w.npy", found)
    np.testing.assert_array_equal(open_weights(tmp_path / "w.npy", found)(Piece(1, 1, 4)), [1, 0, 1])


def test_weights_that_are_missing_or_damaged_are_named(tmp_path: Path) -> None:
    found = made(tmp_path / "index", [3, 4])
    with pytest.raises(MissingInput, match="nowhere"):
        open_weights(tmp_path / "nowhere.npy", found)
    np.savez(tmp_path / "w.npz", **{"run1.npy": np.ones(4)})
    for ask in (check_weights, lambda path, index: open_weights(path, index)(Piece(0, 0, 3))):
        with pytest.raises(BadWeights, match=r"none for /a/run0\.npy"):
            ask(tmp_path / "w.npz", found)
    for name in ("torn.npz", "torn.npy"):
        (tmp_path / name).write_bytes((tmp_path / "w.npz").read_bytes()[:40])
        with pytest.raises(BadWeights, match="no readable"):
            open_weights(tmp_path / name, found)
    (tmp_path / "w.txt").write_text("1 1 1")
    with pytest.raises(BadWeights, match="txt"):
        open_weights(tmp_path / "w.txt", found)
    np.save(tmp_path / "array.npy", np.ones(7))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    with pytest.raises(BadWeights, match=r"Rename it to \.npy"):
        open_weights(tmp_path / "array.npz", found)


def test_one_array_of_weights_serves_one_trajectory(tmp_path: Path) -> None:
    found = named(tmp_path / "index", ["/t/a/run.h5", "/t/b/run.h5"])
    np.savez(tmp_path / "w.npz", **{"run.h5": np.ones(4)})
    with pytest.raises(BadWeights, match=r"'run.h5' for both /t/a/run.h5 and /t/b/run.h5.*'a/run.h5' and 'b/run.h5'"):
        check_weights(tmp_path / "w.npz", found)
    np.savez(tmp_path / "w.npz", **{"run.h5": np.ones(4), "b/run.h5": np.full(4, 2.0)})
    check_weights(tmp_path / "w.npz", found)
    weights = open_weights(tmp_path / "w.npz", found)
    assert [weights(Piece(number, 0, 1))[0] for number in (0, 1, 0)] == [1, 2, 1]


def test_an_array_of_weights_that_serves_no_trajectory_is_named_unless_its_file_could_not_be_read(
    tmp_path: Path,
) -> None:
    found = named(tmp_path / "index", ["/t/a.h5", "/t/b.h5"], bad=("/t/b.h5",))
    np.savez(tmp_path / "w.npz", **{"a.h5": np.ones(4), "b.h5": np.ones(9)})
    check_weights(tmp_path / "w.npz", found)
    np.savez(tmp_path / "w.npz", **{"a.h5": np.ones(4), "c.h5": np.ones(9)})
    with pytest.raises(BadWeights, match=r"1 arrays that belong to no trajectory.*c\.h5"):
        check_weights(tmp_path / "w.npz", found)


def test_opening_named_weights_reads_none_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = named(tmp_path / "index", ["/t/a.h5", "/t/b.h5"])
    np.savez(tmp_path / "w.npz", **{"a.h5": np.ones(4), "b.h5": np.full(4, 2.0)})
    read: list[str] = []
    get = np.lib.npyio.NpzFile.__getitem__
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda file, key: read.append(key) or get(file, key))
    weights = open_weights(tmp_path / "w.npz", found)
    assert read == []
    for number in (1, 1, 0):
        weights(Piece(number, 0, 2))
    assert read == ["b.h5", "a.h5"]
