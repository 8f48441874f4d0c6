"""The store: what is written is read, what is torn is found, and who wrote it does not matter."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_cg.beads import bead_system
from hpc_cg.errors import DamagedProduct, DiskFull, MissingInput, OutOfMemory, TooFewFrames
from hpc_cg.store import dataset, layout, writer
from hpc_cg.store.audit import audit, open_store

SYSTEM = bead_system(("a", "b", "c"), (0, 1, 1), (12.0, 12.0, 14.0), ((0, 1), (1, 2)))


def spec_of(n_frames: int, shard_frames: int = 40) -> layout.StoreSpec:
    return layout.StoreSpec(
        "m",
        SYSTEM,
        n_frames,
        shard_frames,
        shard_frames,
        ("positions", "forces"),
        (5, 4),
        "none",
        300.0,
        1,
        {},
    )


def content_of(spec: layout.StoreSpec, shard: int) -> layout.ShardFrames:
    start, stop = spec.frames_of(shard)
    random = np.random.default_rng(shard)
    n = stop - start
    arrays = {name: random.normal(size=(n, 3, 3)).astype(np.float32) for name in spec.arrays}
    return layout.ShardFrames(arrays, np.arange(start, stop), np.zeros(n, int), np.ones(n))


def write(folder: Path, spec: layout.StoreSpec, order: list[int] | None = None) -> Path:
    store = folder / layout.STORE
    layout.create(store, spec)
    for shard in order or range(spec.n_shards):
        writer.write_shard(store, spec, shard, content_of(spec, shard))
    return store


def tree_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@settings(max_examples=15, deadline=None)
@given(n_frames=st.integers(1, 200), shard_frames=st.integers(1, 70))
def test_what_is_written_is_read_and_the_audit_finds_it_whole(
    tmp_path_factory, n_frames: int, shard_frames: int
) -> None:
    folder, spec = tmp_path_factory.mktemp("store"), spec_of(n_frames, shard_frames)
    store = write(folder, spec)
    assert dataset.open_spec(store, "m") == spec
    frames = dataset.load(store, "m")
    expected = np.concatenate([content_of(spec, shard).arrays["forces"] for shard in range(spec.n_shards)])
    np.testing.assert_array_equal(frames.forces, expected)
    found = audit(store, spec)
    assert found.whole and found.n_good == n_frames


def test_the_order_of_writing_leaves_no_trace(tmp_path: Path) -> None:
    spec = spec_of(150)
    write(tmp_path / "a", spec)
    write(tmp_path / "b", spec, [3, 1, 0, 2])
    assert tree_bytes(tmp_path / "a") == tree_bytes(tmp_path / "b")


def test_a_shard_without_its_commit_record_is_not_done(tmp_path: Path) -> None:
    spec = spec_of(100)
    store = write(tmp_path, spec)
    writer.commit_path(store, spec, 1).unlink()
    assert writer.read_commit(store, spec, 1) is None
    assert audit(store, spec).faults == ("m shard 1 (frames 40 to 79): no commit record",)


def test_a_commit_record_of_another_store_does_not_count(tmp_path: Path) -> None:
    spec = spec_of(100)
    store = write(tmp_path, spec)
    assert writer.read_commit(store, replace(spec, lineage={"map": "other"}), 0) is None


def test_the_audit_finds_a_changed_number_and_a_lost_file(tmp_path: Path) -> None:
    spec = spec_of(120)
    store = write(tmp_path, spec)
    changed = content_of(spec, 0)
    changed.arrays["forces"][3, 1, 2] += 1e-3
    record = writer.commit_path(store, spec, 0).read_bytes()
    writer.write_shard(store, spec, 0, changed)
    writer.commit_path(store, spec, 0).write_bytes(record)
    (store / "m" / "positions" / "c" / "2" / "0" / "0").unlink()
    faults = audit(store, spec).faults
    assert any("shard 0" in fault and "checksum differs in forces" in fault for fault in faults)
    assert any("shard 2" in fault for fault in faults)


def test_a_torn_shard_is_rewritten(tmp_path: Path) -> None:
    spec = spec_of(100)
    store = write(tmp_path, spec)
    torn = store / "m" / "positions" / "c" / "2" / "0" / "0"
    torn.write_bytes(torn.read_bytes()[:50])
    assert not audit(store, spec).whole
    writer.write_shard(store, spec, 2, content_of(spec, 2))
    assert audit(store, spec).whole


def test_frames_of_weight_zero_are_left_out(tmp_path: Path) -> None:
    spec = spec_of(40)
    content = content_of(spec, 0)
    content.weights[5] = 0
    content.arrays["positions"][5] = np.nan
    layout.create(tmp_path / layout.STORE, spec)
    writer.write_shard(tmp_path / layout.STORE, spec, 0, content)
    frames = dataset.load(tmp_path / layout.STORE, "m")
    assert frames.n_frames == 39 and 5 not in frames.frame_index


def test_a_store_larger_than_the_limit_is_not_loaded(tmp_path: Path) -> None:
    store = write(tmp_path, spec_of(100))
    with pytest.raises(OutOfMemory, match="Raise train.memory_limit_gb"):
        dataset.load(store, "m", memory_limit_gb=1e-9)


def test_an_unknown_molecule_is_named(tmp_path: Path) -> None:
    store = write(tmp_path, spec_of(10))
    with pytest.raises(MissingInput, match="trpcage"):
        dataset.open_spec(store, "trpcage")


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    spec = spec_of(10)
    store = write(tmp_path, spec)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match="no space left"):
        writer.write_shard(store, spec, 0, content_of(spec, 0))


def test_held_out_frames_are_whole_blocks_and_no_frame_is_on_both_sides(tmp_path: Path) -> None:
    frames = dataset.load(write(tmp_path, spec_of(200)), "m")
    train, held = dataset.split(frames, (10, 4))
    assert sorted([*train, *held]) == list(range(200))
    assert len(held) == 50
    assert set(held // 10) == {3, 7, 11, 15, 19}


def test_too_short_a_trajectory_to_hold_out_a_block_is_refused(tmp_path: Path) -> None:
    frames = dataset.load(write(tmp_path, spec_of(20)), "m")
    with pytest.raises(TooFewFrames, match="held_out_block_ps"):
        dataset.split(frames, (100, 4))


def test_each_epoch_shows_every_frame_once_in_whole_batches() -> None:
    batches = [dataset.batch_indices(1, step, 100, 16) for step in range(12)]
    for epoch in (batches[:6], batches[6:]):
        seen = np.concatenate(epoch)
        assert len(set(seen)) == 96
    assert not np.array_equal(batches[0], batches[6])


def test_fewer_frames_than_a_batch_are_refused() -> None:
    with pytest.raises(TooFewFrames, match="batch_size"):
        dataset.batch_indices(0, 0, 10, 16)


@given(n_frames=st.integers(1, 10**10), n_beads=st.integers(1, 1000))
def test_shards_hold_whole_chunks_of_a_bounded_size(n_frames: int, n_beads: int) -> None:
    shard, chunk = layout.choose_shards(n_frames, n_beads)
    assert shard % chunk == 0
    assert shard * n_beads * 12 <= max(layout.SHARD_BYTES, chunk * n_beads * 12)


def test_creating_a_store_again_keeps_what_is_written_and_another_spec_starts_anew(tmp_path: Path) -> None:
    spec = spec_of(100)
    store = write(tmp_path, spec)
    layout.create(store, spec)
    assert audit(store, spec).whole
    other = replace(spec, kernel="noise")
    layout.create(store, other)
    assert dataset.open_spec(store, "m") == other
    assert [writer.read_commit(store, other, shard) for shard in range(3)] == [None] * 3


def test_weights_that_are_none_are_a_fault(tmp_path: Path) -> None:
    spec = spec_of(80)
    store = write(tmp_path, spec)
    for shard, value in ((0, np.inf), (1, -1.0)):
        content = content_of(spec, shard)
        content.weights[3] = value
        writer.write_shard(store, spec, shard, content)
    assert audit(store, spec).holes == (0, 1)
    assert all("weights that are no numbers at or above zero" in fault for fault in audit(store, spec).faults)


def test_a_flipped_bit_inside_a_chunk_is_noticed_by_whoever_reads_it(tmp_path: Path) -> None:
    spec = spec_of(80)
    store = write(tmp_path, spec)
    path = writer.shard_files(store, spec, 1)["forces"]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedProduct, match="shard 1"):
        dataset.read_shard(store, spec, 1)
    assert audit(store, spec).holes == (1,)


@pytest.mark.parametrize("name", ["zarr.json", "m/forces/zarr.json", "m/weights/zarr.json", "m/masses/c/0"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", None])
def test_torn_descriptions_are_written_again_and_the_shards_stay(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    spec = spec_of(100)
    store = write(tmp_path, spec)
    whole = tree_bytes(store)
    (store / name).unlink()
    if content is not None and name.endswith("json"):
        (store / name).write_bytes(content)
    if name != "zarr.json":
        with pytest.raises(DamagedProduct, match=name):
            open_store(store, "m")
    layout.create(store, spec)
    assert tree_bytes(store) == whole
    assert open_store(store, "m") == spec


@pytest.mark.parametrize("old, new", [('"float32"', '"float64"'), ("40,", "41,"), ("120,", "119,")])
def test_an_array_of_another_shape_or_type_is_found_and_the_group_made_anew(tmp_path: Path, old: str, new: str) -> None:
    spec = spec_of(100)
    store = write(tmp_path, spec)
    path = store / "m" / "forces" / "zarr.json"
    changed = path.read_text().replace(old, new)
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(DamagedProduct, match="m/forces/zarr.json describes another array"):
        open_store(store, "m")
    layout.create(store, spec)
    assert open_store(store, "m") == spec
    assert writer.holes(store, spec) == [0, 1, 2]


def test_a_group_without_a_readable_description_is_made_anew(tmp_path: Path) -> None:
    spec = spec_of(100)
    store = write(tmp_path, spec)
    (store / "m" / "zarr.json").write_text("{")
    with pytest.raises(DamagedProduct, match="the store"):
        open_store(store, "m")
    layout.create(store, spec)
    assert open_store(store, "m") == spec
