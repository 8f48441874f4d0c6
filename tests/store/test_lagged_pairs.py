"""Pairs of frames a lag apart: all that there are, none across a segment or a gap, whatever the windows and shards."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store import spec_of

from hpc_cg.errors import DamagedProduct, TooFewFrames, UnfitLag
from hpc_cg.store import layout, pairs, writer
from hpc_cg.store.dataset import held_out
from hpc_cg.store.layout import ShardFrames, StoreSpec
from hpc_cg.store.pairs import FramePairs, count_pairs, lag_frames, read_pairs


def segments_of(lengths: list[int], missing: set[int] = frozenset(), lost: set[int] = frozenset()) -> ShardFrames:
    """Segments one after another; rows ``missing`` are not in the store, rows ``lost`` have weight zero and no numbers.

    Every coordinate says which frame it is of: 1000 times the segment plus the frame.
    """
    segment = np.repeat(np.arange(len(lengths)), lengths)
    frame = np.concatenate([np.arange(length) for length in lengths])
    rows = np.arange(len(frame))
    bad = np.isin(rows, list(lost))
    label = np.where(bad, np.nan, 1000.0 * segment + frame)[:, None, None] + np.zeros((1, 3, 3))
    whole = ShardFrames({"positions": label, "forces": -label}, frame, segment, np.where(bad, 0.0, 1.0 + frame % 3))
    return part(whole, ~np.isin(rows, list(missing)))


def part(content: ShardFrames, rows: slice | np.ndarray) -> ShardFrames:
    arrays = {name: values[rows] for name, values in content.arrays.items()}
    return ShardFrames(arrays, content.frame_index[rows], content.segment[rows], content.weights[rows])


def write(folder: Path, content: ShardFrames, chunk_frames: int = 7, chunks_per_shard: int = 2) -> StoreSpec:
    spec = replace(
        spec_of(len(content.weights)), shard_frames=chunk_frames * chunks_per_shard, chunk_frames=chunk_frames
    )
    layout.create(folder / layout.STORE, spec)
    for shard in range(spec.n_shards):
        writer.write_shard(folder / layout.STORE, spec, shard, part(content, slice(*spec.frames_of(shard))))
    return spec


def expected(content: ShardFrames, lag: int) -> list[tuple[int, int, int]]:
    """Row, segment and frame of the earlier frame of each pair, looked for one by one."""
    row = {(s, f): i for i, (s, f) in enumerate(zip(content.segment.tolist(), content.frame_index.tolist()))}  # noqa: B905
    found = []
    for (segment, frame), i in row.items():
        between = [row.get((segment, frame + k)) for k in range(lag + 1)]
        if all(j is not None and content.weights[j] > 0 for j in between):
            found.append((i, segment, frame))
    return found


def told(found: FramePairs) -> list[tuple[int, int, int]]:
    place = found.earlier["positions"][:, 0, 0].astype(int)
    return list(zip(found.index.tolist(), (place // 1000).tolist(), (place % 1000).tolist(), strict=True))


def held(content: ShardFrames, chunk_frames: int, chunks_per_shard: int, patch: pytest.MonkeyPatch) -> StoreSpec:
    """A store that lies in memory: hypothesis writes hundreds of them."""

    def read_frames(folder: Path, spec: StoreSpec, start: int, stop: int, names: tuple[str, ...]) -> ShardFrames:
        assert start < stop <= spec.n_frames and start // spec.shard_frames == (stop - 1) // spec.shard_frames
        rows = part(content, slice(start, stop))
        return replace(rows, arrays={name: rows.arrays[name] for name in names})

    patch.setattr(pairs, "read_frames", read_frames)
    n_frames = len(content.weights)
    return replace(spec_of(n_frames), shard_frames=chunk_frames * chunks_per_shard, chunk_frames=chunk_frames)


NOWHERE = Path("nowhere")

contents = st.builds(
    segments_of,
    st.lists(st.integers(1, 30), min_size=1, max_size=5),
    st.sets(st.integers(1, 100), max_size=4),
    st.sets(st.integers(0, 100), max_size=4),
)


@settings(max_examples=100, deadline=None)
@given(
    content=contents,
    lag=st.integers(1, 20),
    chunk=st.integers(2, 12),
    chunks=st.integers(1, 3),
    window=st.integers(1, 90),
)
def test_all_pairs_are_found_and_none_crosses_a_segment_or_a_gap(
    content: ShardFrames, lag: int, chunk: int, chunks: int, window: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        spec = held(content, chunk, chunks, patch)
        parts = [
            read_pairs(NOWHERE, spec, lag, start, min(start + window, spec.n_frames), ("positions", "forces"))
            for start in range(0, spec.n_frames, window)
        ]
    assert [pair for found in parts for pair in told(found)] == expected(content, lag)
    for found in parts:
        np.testing.assert_array_equal(found.later["positions"], found.earlier["positions"] + lag)
        np.testing.assert_array_equal(found.later["forces"], -found.later["positions"])
        np.testing.assert_array_equal(found.weights, content.weights[found.index])


@settings(max_examples=40, deadline=None)
@given(content=contents, lag=st.integers(1, 12), chunk=st.integers(2, 12), chunks=st.integers(1, 3))
def test_pairs_are_counted_as_they_are_read(content: ShardFrames, lag: int, chunk: int, chunks: int) -> None:
    if not expected(content, lag):
        return
    with pytest.MonkeyPatch.context() as patch:
        spec = held(content, chunk, chunks, patch)
        counts = count_pairs(NOWHERE, spec, lag)
        for number, row in enumerate(counts):
            start = number * chunk
            found = read_pairs(NOWHERE, spec, lag, start, min(start + chunk, spec.n_frames))
            assert row.tolist() == [found.train.sum(), found.judge.sum()]


def test_pairs_of_a_store_on_disk_are_those_that_it_was_written_with(tmp_path: Path) -> None:
    content = segments_of([33, 5, 40], missing={12}, lost={60})
    spec = write(tmp_path, content)
    parts = [read_pairs(tmp_path / layout.STORE, spec, 6, *spec.frames_of(shard)) for shard in range(spec.n_shards)]
    assert [pair for found in parts for pair in told(found)] == expected(content, 6)


def test_no_frame_of_a_training_pair_is_held_out_and_pairs_are_judged_by_a_held_out_frame(tmp_path: Path) -> None:
    content = segments_of([60, 50])
    spec = write(tmp_path, content)
    out = held_out(content.segment, content.frame_index, *spec.held_out)
    found = read_pairs(tmp_path / layout.STORE, spec, 3, 0, spec.n_frames)
    early, late = out[found.index], out[found.index + 3]
    np.testing.assert_array_equal(found.train, ~early & ~late)
    np.testing.assert_array_equal(found.judge, late)
    assert found.train.sum() > 30 and found.judge.sum() > 10 and (early & ~late).any()


def test_segments_of_uneven_times_have_no_pairs(tmp_path: Path) -> None:
    spec = write(tmp_path, segments_of([20, 20, 20]))
    found = read_pairs(tmp_path / layout.STORE, spec, 2, 0, 60, uneven={1})
    assert {segment for _, segment, _ in told(found)} == {0, 2} and len(found.index) == 36


def test_a_window_reads_no_positions_but_its_own_and_those_a_lag_later(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, read = held(segments_of([900]), 10, 3, monkeypatch), []
    kept = pairs.read_frames
    monkeypatch.setattr(pairs, "read_frames", lambda *a: ((read.append(a[2:4]) if a[4] else None), kept(*a))[1])
    found = read_pairs(NOWHERE, spec, 600, 30, 60)
    assert told(found)[0] == (30, 0, 30) and len(found.index) == 30
    assert read == [(30, 40), (40, 50), (50, 60), (630, 640), (640, 650), (650, 660)]


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    spec = write(tmp_path, segments_of([100]))
    writer.shard_files(tmp_path / layout.STORE, spec, 3)["frame_index"].unlink()
    with pytest.raises(DamagedProduct, match="shard 3 "):
        read_pairs(tmp_path / layout.STORE, spec, 30, 14, 28)


def test_a_lag_is_a_whole_number_of_strides() -> None:
    assert [lag_frames(lag, 0.2) for lag in (0.2, 0.6, 1.0, 200.0)] == [1, 3, 5, 1000]
    assert lag_frames(10.0, 3.33333) == 3  # a stride that was rounded
    for lag, near in ((0.5, "0.4"), (0.1, "0.2"), (0.0, "0.2"), (-1.0, "0.2"), (200.1, "200")):
        with pytest.raises(UnfitLag, match=rf"frames every 0.2 ps. Choose a multiple of that, e.g. {near} ps"):
            lag_frames(lag, 0.2)


def test_a_lag_longer_than_every_segment_is_refused(tmp_path: Path) -> None:
    spec = write(tmp_path, segments_of([12, 30, 25]))
    assert count_pairs(tmp_path / layout.STORE, spec, 29).sum() == 1
    with pytest.raises(UnfitLag, match="30 frames apart in m: found segments of at most 30 frames"):
        count_pairs(tmp_path / layout.STORE, spec, 30)


def test_gaps_that_leave_no_pair_are_told_of(tmp_path: Path) -> None:
    spec = write(tmp_path, segments_of([30], lost={10, 20}))
    with pytest.raises(TooFewFrames, match="a gap, or uneven times"):
        count_pairs(tmp_path / layout.STORE, spec, 12)
