"""The streamed order: the same for any number of processes, every frame once an epoch, resumable, in bounded memory."""

import threading
import tracemalloc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store import content_of, spec_of, write

from hpc_cg.beads import bead_system
from hpc_cg.errors import DamagedProduct, OutOfMemory, TooFewFrames
from hpc_cg.store import dataset, layout, stream, writer
from hpc_cg.store.layout import StoreSpec
from hpc_cg.store.order import Order, Pick, choose_window, spread
from hpc_cg.store.stream import HELD_OUT, TRAIN, Frames, StreamReader, read_picks

NAMES = ("positions", "forces")


def chunked(n_frames: int, shard_frames: int = 40, chunk_frames: int = 20) -> StoreSpec:
    return replace(spec_of(n_frames), shard_frames=shard_frames, chunk_frames=chunk_frames)


def order_of(counts: np.ndarray, batch_size: int = 16, n_streams: int = 8, window_blocks: int = 3) -> Order:
    return Order(np.ascontiguousarray(counts, dtype=np.int64), batch_size, n_streams, window_blocks, seed=7)


def reader(store: Path, spec: StoreSpec, streams: range = range(8), **settings: int) -> StreamReader:
    counts = writer.epoch_sums(store, spec).counts
    return StreamReader(store, spec, order_of(counts[:, TRAIN], **settings), streams, NAMES)


def frames_of(order: Order, step: int) -> list[tuple[int, int]]:
    """(block, rank) of the frames of a step, by the arithmetic alone, stream after stream."""
    found = []
    epoch, first = order.place(step)
    for number in range(order.n_streams):
        place = first
        while place < first + order.share:
            window = order.window(epoch, number, place)
            flat = [(pick.block, int(rank)) for pick in window.picks for rank in pick.ranks]
            rows = np.empty(len(flat), dtype=int)
            rows[order.shuffled(window)] = np.arange(len(flat))
            until = min(first + order.share, window.end)
            found += [flat[row] for row in rows[place - window.begin : until - window.begin]]
            place = until
    return found


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=60),
    n_streams=st.sampled_from([1, 2, 4, 5, 8]),
    share=st.integers(1, 4),
    window_blocks=st.integers(1, 9),
)
def test_an_epoch_shows_every_frame_at_most_once_and_leaves_out_less_than_a_batch(
    counts: list[int], n_streams: int, share: int, window_blocks: int
) -> None:
    batch = n_streams * share
    if sum(counts) < batch:
        with pytest.raises(TooFewFrames, match="batch_size"):
            order_of(np.asarray(counts), batch, n_streams, window_blocks)
        return
    order = order_of(np.asarray(counts), batch, n_streams, window_blocks)
    for epoch in range(2):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        seen = [frame for step in steps for frame in frames_of(order, step)]
        assert len(seen) == len(set(seen)) > sum(counts) - batch
        assert all(0 <= rank < counts[block] for block, rank in seen)


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(0, 30), min_size=8, max_size=60), window_blocks=st.integers(1, 9))
def test_windows_follow_one_another_without_a_gap_and_hold_few_blocks(counts: list[int], window_blocks: int) -> None:
    order = order_of(np.asarray([*counts, 20]), window_blocks=window_blocks)
    length = order.steps_per_epoch * order.share
    for number in range(order.n_streams):
        window, place = order.window(0, number, 0), 0
        while window.epoch == 0:
            assert (window.begin, window.end - window.begin) == (place, sum(len(p.ranks) for p in window.picks))
            assert 0 < len(window.picks) <= window_blocks and window.end > place
            assert order.window(0, number, window.end - 1).number == window.number
            window, place = order.after(window), window.end
        assert place == length and (window.epoch, window.begin) == (1, 0)


def test_frames_left_over_in_one_epoch_come_in_others_and_every_epoch_has_its_own_order() -> None:
    order = order_of(np.full(9, 11), batch_size=32)  # 3 left over of 99
    epochs = [[f for s in range(3 * e, 3 * e + 3) for f in frames_of(order, s)] for e in range(6)]
    assert len(set().union(*epochs)) == 99
    assert all(a != b for a, b in pairwise(epochs))


def test_a_batch_mixes_blocks_from_all_over_the_store() -> None:
    order = order_of(np.full(400, 50), batch_size=64, n_streams=16, window_blocks=8)
    blocks = [len({block for block, _ in frames_of(order, step)}) for step in range(20)]
    assert min(blocks) > 40
    first = [block for step in range(20) for block, _ in frames_of(order, step)]
    assert np.std(first) == pytest.approx(400 / np.sqrt(12), rel=0.2)


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 4, 7, 8])
def test_any_number_of_processes_reads_the_batches_that_the_arithmetic_says(tmp_path: Path, n_ranks: int) -> None:
    spec = chunked(333)
    store = write(tmp_path, spec)
    content = dataset.load(store, "m")
    counts = writer.epoch_sums(store, spec).counts[:, TRAIN]
    usable, _ = dataset.split(content, spec.held_out)
    first = np.cumsum(counts) - counts
    readers = [reader(store, spec, range(rank, 8, n_ranks)) for rank in range(n_ranks)]
    for step in range(2 * readers[0].order.steps_per_epoch + 3):
        parts: dict[int, Frames] = {}
        for one in readers:
            parts |= dict(zip(one.streams, one.batch(step), strict=True))
        found = Frames.joined([parts[number] for number in range(8)])
        expected = [usable[first[block] + rank] for block, rank in frames_of(readers[0].order, step)]
        np.testing.assert_array_equal(found.index, expected)
        np.testing.assert_array_equal(found.arrays["positions"], content.positions[found.index])
        np.testing.assert_array_equal(found.arrays["forces"], content.forces[found.index])
    for one in readers:
        one.close()


@settings(max_examples=12, deadline=None)
@given(
    chunk_frames=st.integers(5, 40),
    chunks_per_shard=st.integers(1, 4),
    n_frames=st.integers(60, 400),
    lost=st.sets(st.integers(0, 399), max_size=60),
)
def test_no_held_out_or_bad_frame_is_ever_read(
    tmp_path_factory, chunk_frames: int, chunks_per_shard: int, n_frames: int, lost: set[int]
) -> None:
    spec = chunked(n_frames, chunk_frames * chunks_per_shard, chunk_frames)
    store = tmp_path_factory.mktemp("store") / layout.STORE
    layout.create(store, spec)
    bad = np.isin(np.arange(n_frames), list(lost))
    weights = np.where(bad, 0, 1 + np.arange(n_frames) % 3).astype(np.float32)
    for shard in range(spec.n_shards):
        content, (start, stop) = content_of(spec, shard), spec.frames_of(shard)
        content.arrays["positions"][bad[start:stop]] = np.nan
        writer.write_shard(store, spec, shard, replace(content, weights=weights[start:stop]))
    out = dataset.held_out(np.zeros(n_frames, int), np.arange(n_frames), *spec.held_out)
    allowed = np.flatnonzero(~out & ~bad)
    if len(allowed) < 16:
        return
    with reader(store, spec, window_blocks=2) as one:
        steps = one.order.steps_per_epoch
        seen = Frames.joined([part for step in range(steps) for part in one.batch(step)])
    assert len(set(seen.index)) == len(seen.index) == 16 * steps > len(allowed) - 16
    assert set(seen.index) <= set(allowed)
    assert np.isfinite(seen.arrays["positions"]).all()
    np.testing.assert_array_equal(seen.weights, weights[seen.index])


def test_a_reader_that_starts_at_any_step_goes_on_as_one_that_read_from_the_beginning(tmp_path: Path) -> None:
    spec = chunked(333)
    store = write(tmp_path, spec)
    with reader(store, spec) as whole:
        batches = [Frames.joined(whole.batch(step)).index for step in range(40)]
        for step in (3, 39, 0, 17):  # and one that jumps
            np.testing.assert_array_equal(Frames.joined(whole.batch(step)).index, batches[step])
    for start in (1, 14, 15, 16, 29):
        with reader(store, spec) as late:
            for step in range(start, start + 5):
                np.testing.assert_array_equal(Frames.joined(late.batch(step)).index, batches[step])


def test_starting_late_reads_no_earlier_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = chunked(1000)
    store = write(tmp_path, spec)
    read: list[int] = []
    real = stream.read_frames
    monkeypatch.setattr(stream, "read_frames", lambda *a, **k: (read.append(a[2]), real(*a, **k))[1])
    with reader(store, spec, window_blocks=1) as late:
        late.batch(late.order.steps_per_epoch - 1)
    assert len(read) <= 2 * 8


def live() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("reads the store")]


@pytest.mark.parametrize("damage", ["lost", "cut", "changed", "unwritten weights"])
def test_a_damaged_shard_is_named_and_no_frame_of_it_is_trained_on(tmp_path: Path, damage: str) -> None:
    spec = chunked(400)
    store = write(tmp_path, spec)
    files = writer.shard_files(store, spec, 5)
    if damage == "lost":
        files["forces"].unlink()
    elif damage == "cut":
        files["positions"].write_bytes(files["positions"].read_bytes()[:-200])
    elif damage == "changed":
        content = bytearray(files["positions"].read_bytes())
        content[:16] = content[-40:-24] = bytes(16)  # what tells how a chunk is packed, and where chunks are
        files["positions"].write_bytes(content)
    else:
        files["weights"].unlink()
    with pytest.raises(DamagedProduct, match="shard 5 of the store .*m: .*audit --repair"), reader(store, spec) as one:
        for step in range(one.order.steps_per_epoch):
            one.batch(step)
    assert not live()


def test_a_chunk_with_other_frames_than_its_record_says_is_refused(tmp_path: Path) -> None:
    spec = chunked(400)
    store = write(tmp_path, spec)
    record = writer.commit_path(store, spec, 2).read_bytes()
    fewer = content_of(spec, 2)
    fewer.weights[3] = 0
    writer.write_shard(store, spec, 2, fewer)
    writer.commit_path(store, spec, 2).write_bytes(record)
    with pytest.raises(DamagedProduct, match="shard 2 .*14 frames in a chunk"), reader(store, spec) as one:
        for step in range(one.order.steps_per_epoch):
            one.batch(step)


def test_the_thread_ends_when_the_training_fails(tmp_path: Path) -> None:
    store = write(tmp_path, chunked(400))
    with pytest.raises(ZeroDivisionError), reader(store, chunked(400)) as one:
        one.batch(0)
        assert len(live()) == 1
        raise ZeroDivisionError
    assert not live()


def test_memory_stays_within_two_windows_of_each_stream(tmp_path: Path) -> None:
    n_beads = 200
    beads = bead_system(("a",) * n_beads, (0,) * n_beads, (12.0,) * n_beads, ((0, 1),))
    spec = replace(chunked(4096, 512, 64), system=beads)
    store = tmp_path / layout.STORE
    layout.create(store, spec)
    for shard in range(spec.n_shards):
        content, shape = content_of(spec, shard), (spec.length(shard), n_beads, 3)
        ones = {name: np.ones(shape, dtype=np.float32) for name in spec.arrays}
        writer.write_shard(store, spec, shard, replace(content, arrays=ones))
    whole, limit = dataset.store_gib(spec), 0.1 * dataset.store_gib(spec)
    window = choose_window(spec, NAMES, 2, limit)
    with reader(store, spec, range(2), n_streams=2, batch_size=64, window_blocks=window) as one:
        one.batch(0)
        tracemalloc.start()
        try:
            for step in range(1, one.order.steps_per_epoch + 20):
                one.batch(step)
            peak = tracemalloc.get_traced_memory()[1] / 2**30
        finally:
            tracemalloc.stop()
    block = 2 * 64 * n_beads * 12 / 2**30
    assert window >= 1 and peak < limit + 3 * block < 0.2 * whole


def test_windows_take_what_memory_there_is_and_refuse_less_than_a_block() -> None:
    spec = chunked(400)
    blocks = choose_window(spec, NAMES, 16, 1.0)
    assert choose_window(spec, NAMES, 8, 1.0) == pytest.approx(2 * blocks, abs=1)
    assert blocks * 2 * 16 * 20 * (3 * 12 * 2 + 28) <= 2**30
    with pytest.raises(OutOfMemory, match="Raise train.shuffle_gb"):
        choose_window(spec, NAMES, 16, 1e-6)


def test_a_sample_is_spread_evenly_and_holds_frames_of_its_side_alone(tmp_path: Path) -> None:
    spec = chunked(1000)
    store = write(tmp_path, spec)
    counts = writer.epoch_sums(store, spec).counts
    for side in (TRAIN, HELD_OUT):
        picks = spread(counts[:, side], 100, most_blocks=25)
        frames = read_picks(store, spec, counts[:, side], side, picks, np.arange(100), NAMES)
        out = dataset.held_out(np.zeros(100, int), frames.index, *spec.held_out)
        assert (out == (side == HELD_OUT)).all()
        assert len(picks) == 25 and len(set(frames.index)) == 100
        assert np.ptp(np.diff([pick.block for pick in picks])) <= 1
    everything = spread(counts[:, HELD_OUT], 10**6, most_blocks=10**6)
    assert sum(len(pick.ranks) for pick in everything) == counts[:, HELD_OUT].sum()
    with pytest.raises(TooFewFrames):
        spread(np.zeros(4, dtype=np.int64), 10)


def test_a_sample_of_one_frame_is_the_middle_one() -> None:
    (pick,) = spread(np.asarray([4, 4, 4]), 1)
    assert (pick.block, pick.ranks.tolist()) == (1, [2])
    assert isinstance(pick, Pick)


def test_of_a_store_that_does_not_fit_a_part_can_be_loaded_that_is_spread_over_all_of_it(tmp_path: Path) -> None:
    spec = chunked(990)
    store = write(tmp_path, spec)
    whole = dataset.load(store, "m")
    limit = 0.3 * dataset.store_gib(spec)
    part = dataset.load(store, "m", limit, part=True)
    assert part.n_frames == 14 * 20
    np.testing.assert_array_equal(part.positions, whole.positions[part.frame_index])
    assert np.ptp(np.diff(part.frame_index[::20])) <= 20 and part.frame_index.mean() == pytest.approx(495, rel=0.03)
    with pytest.raises(OutOfMemory, match="memory_limit_gb"):
        dataset.load(store, "m", limit)
    with pytest.raises(OutOfMemory, match="memory_limit_gb"):
        dataset.load(store, "m", 1e-9, part=True)
