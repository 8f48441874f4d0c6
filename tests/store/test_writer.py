"""Commit records: written last and on disk, read in one go, taken back; and the sums that an epoch is planned by."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_store import content_of, spec_of, write

from hpc_cg.errors import DamagedProduct
from hpc_cg.store import dataset, layout, writer
from hpc_cg.store.layout import ShardFrames, StoreSpec


def chunked(n_frames: int = 130) -> StoreSpec:
    """Shards of 40 frames in chunks of 20; blocks of 5 frames, of which every fourth is held out."""
    return replace(spec_of(n_frames), chunk_frames=20)


def same(a: writer.Sums, b: writer.Sums) -> None:
    np.testing.assert_array_equal(a.counts, b.counts)
    np.testing.assert_array_equal(a.weights, b.weights)


def test_every_array_is_on_disk_before_the_record_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = chunked()
    store = write(tmp_path, spec)
    synced: list[str] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(str(Path(f"/proc/self/fd/{fd}").readlink())), real(fd)))
    writer.write_shard(store, spec, 1, content_of(spec, 1))
    record = next(i for i, name in enumerate(synced) if ".partial" in name)
    for path in writer.shard_files(store, spec, 1).values():
        assert str(path) in synced[:record] and str(path.parent) in synced[:record]


def test_the_record_counts_the_frames_of_each_chunk_as_the_reader_splits_them(tmp_path: Path) -> None:
    spec = chunked(50)
    layout.create(tmp_path / layout.STORE, spec)
    content = content_of(spec, 0)
    content.weights[[0, 3, 15]] = 0, np.inf, 0  # 15 to 19 are held out
    commit = writer.write_shard(tmp_path / layout.STORE, spec, 0, content)
    assert commit.usable == ((14, 4), (15, 5))
    last = writer.write_shard(tmp_path / layout.STORE, spec, 1, content_of(spec, 1))
    assert last.usable == ((10, 0),)
    assert writer.read_commit(tmp_path / layout.STORE, spec, 0) == commit
    assert writer.epoch_sums(tmp_path / layout.STORE, spec).counts.tolist() == [[14, 4], [15, 5], [10, 0]]


def test_the_counts_are_those_of_the_loaded_frames(tmp_path: Path) -> None:
    spec = chunked()
    store = write(tmp_path, spec)
    train, held = dataset.split(dataset.load(store, "m"), spec.held_out)
    assert writer.epoch_sums(store, spec).counts.sum(axis=0).tolist() == [len(train), len(held)]


def test_the_weights_are_those_of_the_loaded_frames(tmp_path: Path) -> None:
    spec = chunked()
    store = tmp_path / layout.STORE
    layout.create(store, spec)
    for shard in range(spec.n_shards):
        content = content_of(spec, shard)
        content.weights[:] = 0.25 * (np.arange(len(content.weights)) % 4)
        writer.write_shard(store, spec, shard, content)
    frames = dataset.load(store, "m")
    expected = [frames.weights[side].sum() for side in dataset.split(frames, spec.held_out)]
    for sums in (writer.epoch_sums(store, spec), writer.summarise(store, spec), writer.epoch_sums(store, spec)):
        assert sums.weights.shape == (spec.n_shards, 2)
        assert sums.weights.sum(axis=0).tolist() == expected


def test_all_records_are_read_at_once_and_damaged_or_foreign_ones_do_not_count(tmp_path: Path) -> None:
    spec = chunked()
    store = write(tmp_path, spec)
    assert writer.committed(store, spec) == {shard: writer.read_commit(store, spec, shard) for shard in range(4)}
    paths = [writer.commit_path(store, spec, shard) for shard in range(4)]
    paths[0].write_bytes(paths[0].read_bytes()[:30])
    paths[1].write_bytes(paths[2].read_bytes())
    (paths[0].parent / ".000007.json.abc.partial").write_text("{}")
    (paths[0].parent / "000099.json").write_bytes(paths[3].read_bytes())
    paths[3].write_text(json.dumps({**json.loads(paths[3].read_text()), "spec": "another"}))
    assert list(writer.committed(store, spec)) == [2]
    assert writer.committed(tmp_path / "nowhere" / layout.STORE, spec) == {}


def test_a_shard_whose_files_are_gone_or_cut_is_a_hole(tmp_path: Path) -> None:
    spec = chunked()
    store = write(tmp_path, spec)
    assert writer.holes(store, spec) == []
    files = [writer.shard_files(store, spec, shard) for shard in range(4)]
    files[0]["weights"].unlink()
    files[2]["forces"].write_bytes(files[2]["forces"].read_bytes()[:-1])
    commits = writer.committed(store, spec)
    assert [writer.present(store, spec, commits[shard]) for shard in range(4)] == [False, True, False, True]
    writer.commit_path(store, spec, 3).unlink()
    assert writer.holes(store, spec) == [0, 2, 3]


def test_a_withdrawn_shard_is_to_be_made_again(tmp_path: Path) -> None:
    spec = chunked()
    store = write(tmp_path, spec)
    writer.summarise(store, spec)
    writer.withdraw(store, spec, 2)
    writer.withdraw(store, spec, 2)
    assert writer.holes(store, spec) == [2]
    with pytest.raises(DamagedProduct, match="no commit record of 1 of 4 shards, the first 2"):
        writer.epoch_sums(store, spec)


def test_the_summary_says_what_the_records_say_until_one_of_them_changes(tmp_path: Path) -> None:
    spec = chunked()
    store = write(tmp_path, spec)
    from_records = writer.epoch_sums(store, spec)
    same(writer.summarise(store, spec), from_records)
    records = [writer.commit_path(store, spec, shard) for shard in range(4)]
    kept = [path.read_bytes() for path in records]
    for path in records:
        path.unlink()
    same(writer.epoch_sums(store, spec), from_records)
    for path, content in zip(records, kept, strict=True):
        path.write_bytes(content)
    fewer = content_of(spec, 1)
    fewer.weights[:7] = 0
    writer.write_shard(store, spec, 1, fewer)
    assert writer.epoch_sums(store, spec).counts.sum() == from_records.counts.sum() - 7


def test_a_summary_of_another_store_or_a_damaged_one_is_not_used(tmp_path: Path) -> None:
    spec = chunked()
    store = write(tmp_path, spec)
    writer.summarise(store, replace(spec, lineage={}))
    summary = writer.commit_path(store, spec, 0).with_name(writer.COUNTS)
    np.savez(summary, counts=np.zeros((7, 2), dtype=np.int64), spec=np.asarray("another"))
    assert writer.epoch_sums(store, spec).counts.sum() == 130
    summary.write_bytes(b"torn")
    assert writer.epoch_sums(store, spec).counts.sum() == 130


def test_a_kill_while_a_shard_is_replaced_leaves_it_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = chunked()
    store = write(tmp_path, spec)

    def killed(path: Path, array: Path) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "_to_disk", killed)
    with pytest.raises(KeyboardInterrupt):
        writer.write_shard(store, spec, 1, content_of(spec, 1))
    assert writer.holes(store, spec) == [1]


def test_a_store_made_anew_is_not_written_through_what_was_opened_before(tmp_path: Path) -> None:
    spec = chunked()
    store = write(tmp_path, spec)
    other = replace(spec, chunk_frames=10, arrays=("positions",), kernel="noise")
    layout.create(store, other)
    with pytest.raises(DamagedProduct, match="other settings"):
        writer.write_shard(store, spec, 0, content_of(spec, 0))
    writer.write_shard(store, other, 0, content_of(other, 0))
    content = dataset.read_shard(store, other, 0)
    assert list(content.arrays) == ["positions"]
    np.testing.assert_array_equal(content.frame_index, np.arange(40))


def test_a_store_is_opened_once_for_all_its_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = chunked()
    store = tmp_path / layout.STORE
    layout.create(store, spec)
    opened = []
    real = dataset.zarr.open_group
    monkeypatch.setattr(dataset.zarr, "open_group", lambda *a, **k: (opened.append(a), real(*a, **k))[1])
    for shard in range(4):
        writer.write_shard(store, spec, shard, content_of(spec, shard))
    assert len(opened) == 1


@pytest.mark.parametrize("array", ["positions", "weights", "segment"])
def test_a_shard_that_lost_a_file_is_not_read_as_frames_that_are_no_numbers(tmp_path: Path, array: str) -> None:
    spec = chunked()
    store = write(tmp_path, spec)
    writer.shard_files(store, spec, 1)[array].unlink()
    with pytest.raises(DamagedProduct, match="shard 1 of the store"):
        dataset.load(store, "m")
    assert isinstance(dataset.read_shard(store, spec, 0), ShardFrames)


def test_a_shard_of_nothing_but_frames_left_out_is_written_and_read(tmp_path: Path) -> None:
    spec = chunked(80)
    store = write(tmp_path, spec)
    lost = content_of(spec, 1)
    lost = replace(
        lost, arrays={name: np.full_like(x, np.nan) for name, x in lost.arrays.items()}, weights=np.zeros(40)
    )
    assert writer.write_shard(store, spec, 1, lost).usable == ((0, 0), (0, 0))
    assert writer.holes(store, spec) == []
    assert dataset.load(store, "m").n_frames == 40
