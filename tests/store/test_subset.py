"""A part of the frames in the place of all: each as often, whichever shard is read; held-out frames stay."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_store import spec_of, write

from hpc_cg.errors import TooFewFrames
from hpc_cg.store import writer
from hpc_cg.store.dataset import load, read_shard, split
from hpc_cg.store.layout import StoreSpec
from hpc_cg.store.stream import HELD_OUT, TRAIN, usable_frames
from hpc_cg.store.subset import Beside, read_subset


@pytest.fixture
def spec() -> StoreSpec:
    return replace(spec_of(190), shard_frames=40, chunk_frames=20)


@pytest.mark.parametrize(("every", "subset"), [(1, 0), (3, 0), (3, 2), (7, 4), (50, 60)])
def test_every_frame_to_train_on_is_replaced_by_the_one_of_its_part(
    tmp_path: Path, spec: StoreSpec, every: int, subset: int
) -> None:
    store = write(tmp_path, spec)
    frames = load(store, "m")
    train, _ = split(frames, spec.held_out)
    part = train[subset % every :: every]
    wanted = frames.positions[part[np.minimum(np.arange(len(train)) // every, len(part) - 1)]]
    shards = [read_subset(store, spec, shard, every, subset) for shard in range(spec.n_shards)]
    found = np.concatenate([one.arrays["positions"][usable_frames(one, spec, TRAIN)] for one in shards])
    np.testing.assert_array_equal(found, wanted)


def test_held_out_frames_and_places_stay(tmp_path: Path, spec: StoreSpec) -> None:
    store = write(tmp_path, spec)
    for shard in range(spec.n_shards):
        one, other = read_shard(store, spec, shard), read_subset(store, spec, shard, 5, 1)
        np.testing.assert_array_equal(one.frame_index, other.frame_index)
        rows = usable_frames(one, spec, HELD_OUT)
        np.testing.assert_array_equal(one.arrays["forces"][rows], other.arrays["forces"][rows])


def test_what_lies_beside_a_part_is_of_its_frames_whatever_their_weights_there(tmp_path: Path, spec: StoreSpec) -> None:
    store, turned = write(tmp_path / "one", spec), replace(spec, seed=spec.seed + 1)
    other = write(tmp_path / "other", turned)
    for shard in range(spec.n_shards):
        content = read_shard(store, spec, shard)
        weights = content.weights * (shard != 0)
        arrays = content.arrays | {"forces": -content.arrays["forces"]}
        writer.write_shard(other, turned, shard, replace(content, arrays=arrays, weights=weights))
    beside = Beside(other, turned, ("forces",))
    for every, shard in ((1, 0), (3, 0), (3, 2)):
        found, plain = (read_subset(store, spec, shard, every, 1, *more) for more in ((beside,), ()))
        np.testing.assert_array_equal(found.arrays["positions"], plain.arrays["positions"])
        np.testing.assert_array_equal(found.arrays["forces"], -plain.arrays["forces"])
        np.testing.assert_array_equal(found.weights, plain.weights)


def test_a_part_without_frames_is_refused(tmp_path: Path, spec: StoreSpec) -> None:
    with pytest.raises(TooFewFrames, match="one frame of 500"):
        read_subset(write(tmp_path, spec), spec, 0, 500, 400)
