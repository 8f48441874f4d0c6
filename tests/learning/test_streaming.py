"""Feeds: from disk as from memory, the same batches for any number of processes, the same training when interrupted."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_learning import ALONE, SETTINGS, alone, feed, labels, run
from toy import BEADS, TEMPERATURE_K, frames, write_study

from hpc_cg.beads import bead_system
from hpc_cg.errors import BrokenLaunch, DamagedProduct, MissingForces, MissingInput, TooFewFrames
from hpc_cg.files import read_json, write_json
from hpc_cg.forcefield.coordinates import CoordinateMoments
from hpc_cg.forcefield.fitting import fit_priors
from hpc_cg.forcefield.forcefield import ForceField
from hpc_cg.forcefield.schnet import SchNetConfig
from hpc_cg.learning.distributed import World, sum_gradients
from hpc_cg.learning.feed import Feed, Labelled
from hpc_cg.learning.labels import Labels, label_source, open_labels
from hpc_cg.learning.loop import Trainer
from hpc_cg.learning.resident import Resident
from hpc_cg.learning.starts import Starts
from hpc_cg.learning.streaming import Streaming
from hpc_cg.report.sections import sizes_note
from hpc_cg.stages.study import read_study
from hpc_cg.store import layout, writer
from hpc_cg.store.dataset import held_out
from hpc_cg.store.layout import ShardFrames, StoreSpec
from jobs.run import run_stage

N = 700
CPU = torch.device("cpu")
SYSTEM = bead_system(BEADS, range(5), [12.0, 14.0, 12.0, 12.0, 14.0], [(i, i + 1) for i in range(4)])
WEIGHTS = 1 + np.arange(N) % 2


def products(folder: Path, kind: str = "noise+forces", draws: str = "redrawn", forces: bool = True) -> Path:
    """What prepare and kernel leave in a folder: 700 frames in chunks of 40, and a kernel."""
    arrays = ("positions", "forces") if forces else ("positions",)
    spec = StoreSpec("toy", SYSTEM, N, 120, 40, arrays, (5, 4), "none", TEMPERATURE_K, 1, {})
    positions, mapped = frames(N, seed=0)
    _write(folder / "prepare", spec, {"positions": positions, "forces": mapped})
    if draws == "stored":
        noise = np.random.default_rng(1).normal(0, 0.003, positions.shape)
        stored = replace(spec, arrays=("positions", "noise", "forces"), kernel=kind)
        _write(folder / "kernel", stored, {"positions": positions, "noise": noise, "forces": -noise})
    mixing = (0.3 * np.eye(5)).tolist() if kind == "noise+forces" else None
    record = {"kind": kind, "draws": draws, "sigma_nm": 0.0 if kind == "none" else 0.003}
    write_json(folder / "kernel" / "kernel.json", record | {"molecules": {"toy": {"mixing": mixing}}})
    return folder


def _write(folder: Path, spec: StoreSpec, arrays: dict[str, np.ndarray]) -> None:
    store = folder / layout.STORE
    layout.create(store, spec)
    for shard in range(spec.n_shards):
        start, stop = spec.frames_of(shard)
        part = {name: arrays[name][start:stop] for name in spec.arrays}
        n = stop - start
        writer.write_shard(
            store, spec, shard, ShardFrames(part, np.arange(start, stop), np.zeros(n, int), WEIGHTS[start:stop])
        )


def streaming(folder: Path, world: World = ALONE, n_streams: int = 8, **changes: int) -> Streaming:
    numbers = {"validation_frames": 100, "prior_frames": 300} | changes
    source = label_source(folder / "prepare", folder / "kernel", "toy")
    # two blocks in a window
    memory_gb = 2 * 2 * n_streams * 40 * (60 * len(source.names) + 28) / 2**30 + 1e-9
    return Streaming(
        source, SETTINGS.seed, SETTINGS.batch_size, n_streams, memory_gb, world=world, device=CPU, **numbers
    )


def forcefield(one: Feed) -> ForceField:
    priors = fit_priors(one.moments(SYSTEM), TEMPERATURE_K)
    return ForceField(SYSTEM, priors, SchNetConfig(n_filters=16, terminal_widths=(16,)), seed=1)


def trainer(folder: Path, one: Feed, world: World = ALONE) -> Trainer:
    return Trainer([alone(forcefield(one), one)], SETTINGS, world, folder)


def joined(parts: list[Labelled]) -> dict[int, tuple[np.ndarray, ...]]:
    """Positions, labels and weight by frame."""
    return {
        int(number): tuple(x[row].numpy() for x in (part.positions, part.forces, part.weights))
        for part in parts
        for row, number in enumerate(part.index)
    }


def equal(a: dict[int, tuple[np.ndarray, ...]], b: dict[int, tuple[np.ndarray, ...]]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(x, y) for key in a for x, y in zip(a[key], b[key], strict=True))


@pytest.mark.parametrize("n_ranks", [2, 3, 4, 7])
def test_any_number_of_processes_trains_on_the_same_labels(tmp_path: Path, n_ranks: int) -> None:
    products(tmp_path)
    alone = streaming(tmp_path)
    ranks = [streaming(tmp_path, World(rank, n_ranks)) for rank in range(n_ranks)]
    for step in range(0, 30, 3):
        assert equal(joined([alone.train(step)]), joined([one.train(step) for one in ranks]))
    held = joined(list(alone.validation()))
    assert equal(held, joined([part for one in ranks for part in one.validation()]))
    assert len(held) == alone.n_held_out == 100
    assert held_out(np.zeros(100, int), np.asarray(list(held)), 5, 4).all()
    assert equal(joined([ranks[0].same(8)]), joined([ranks[-1].same(8)]))
    np.testing.assert_array_equal(ranks[0].moments(SYSTEM).mean, alone.moments(SYSTEM).mean)
    for one in (alone, *ranks):
        one.close()


def test_resident_processes_together_have_the_batch_that_one_has() -> None:
    source = labels()
    alone = feed(source, SETTINGS)
    ranks = [feed(source, SETTINGS, World(rank, 3)) for rank in range(3)]
    for step in (0, 7, 40):
        assert equal(joined([alone.train(step)]), joined([one.train(step) for one in ranks]))
    assert equal(joined(list(alone.validation())), joined([part for one in ranks for part in one.validation()]))


@pytest.mark.parametrize(("kind", "draws"), [("none", "redrawn"), ("noise", "redrawn"), ("noise", "stored")])
def test_streamed_labels_are_those_of_the_kernel(tmp_path: Path, kind: str, draws: str) -> None:
    products(tmp_path, kind, draws)
    loaded, _ = open_labels(tmp_path / "prepare", tmp_path / "kernel", "toy", SETTINGS.seed)
    one = streaming(tmp_path)
    batch = one.train(4)
    one.close()
    clean = loaded.frames.positions[batch.index]
    displaced = batch.positions.numpy() - clean
    if kind == "none":
        np.testing.assert_array_equal(displaced, 0)
        np.testing.assert_array_equal(batch.forces.numpy(), loaded.frames.forces[batch.index])
    elif draws == "stored":
        np.testing.assert_array_equal(batch.positions.numpy(), clean + loaded.frames.noise[batch.index])
        np.testing.assert_array_equal(batch.forces.numpy(), loaded.frames.forces[batch.index])
    else:
        assert "forces" not in one.source.names
        assert displaced.std() == pytest.approx(0.003, rel=0.1)
        score = displaced * -(8.31446261815324e-3 * TEMPERATURE_K) / 0.003**2
        np.testing.assert_allclose(batch.forces.numpy(), score, rtol=1e-3, atol=0.1)
    np.testing.assert_array_equal(batch.weights.numpy(), WEIGHTS[batch.index])


def test_a_streamed_training_that_was_interrupted_equals_one_that_was_not_bit_for_bit(tmp_path: Path) -> None:
    products(tmp_path)
    whole = trainer(tmp_path / "whole", streaming(tmp_path))
    assert run(whole).finished
    first = trainer(tmp_path / "parts", streaming(tmp_path))
    assert run(first, stop_at=6).step == 6
    second = trainer(tmp_path / "parts", streaming(tmp_path))
    assert run(second).finished
    for name, value in whole.forcefield.state_dict().items():
        assert torch.equal(value, second.forcefield.state_dict()[name]), name
    assert (tmp_path / "whole/curves.jsonl").read_bytes() == (tmp_path / "parts/curves.jsonl").read_bytes()
    for one in (whole, first, second):
        one.members[0].feed.close()


def gradient(one: Trainer, batch: Labelled, total_weight: float) -> torch.Tensor:
    one.gradient_of([batch], [total_weight])
    return torch.cat([p.grad.flatten() for p in one.parameters]).double()


def stepped(one: Trainer) -> torch.Tensor:
    """The gradient that the next step follows, from where the parameters moved to."""
    before = [p.detach().clone() for p in one.parameters]
    one.optimizer = torch.optim.SGD(one.parameters, lr=1.0)
    one.settings = replace(SETTINGS, clip=1e9, warmup_steps=0, learning_rate=1.0, final_learning_rate=1.0)
    one.advance(False)
    moved = torch.cat([(old - new).flatten() for old, new in zip(before, one.parameters, strict=True)])
    for old, new in zip(before, one.parameters, strict=True):
        new.data = old
    return moved.double()


def of_weight(weights: np.ndarray) -> Labels:
    """Labels without noise, of frames of these weights."""
    source = labels()
    return Labels(replace(source.frames, weights=weights.astype(np.float32)), None, 5)


def test_an_epoch_of_weighted_frames_has_the_gradient_of_all_of_them_at_once(tmp_path: Path) -> None:
    """A frame in a hundred weighs a thousand times as much, so batches weigh very differently."""
    from test_learning import forcefield as resident_forcefield

    source = of_weight(np.where(np.arange(600) % 100 == 7, 1.0, 1e-3))
    member = alone(resident_forcefield(source), feed(source, SETTINGS))
    one, whole = Trainer([member], SETTINGS, ALONE, tmp_path), member.feed.same(480)
    expected = gradient(one, whole, float(whole.weights.double().sum()))
    mean = torch.zeros_like(expected)
    for step in range(480 // 32):
        one.step = step
        mean += stepped(one) / 15
    assert (mean - expected).norm() < 1e-3 * expected.norm()


def test_a_streamed_epoch_has_the_gradient_of_all_its_frames_at_once(tmp_path: Path) -> None:
    products(tmp_path, "none")
    one = trainer(tmp_path / "a", streaming(tmp_path))
    fed = one.members[0].feed
    batches = [fed.train(step) for step in range(fed.order.steps_per_epoch)]
    weights = torch.cat([batch.weights for batch in batches]).double()
    loaded, spec = open_labels(tmp_path / "prepare", tmp_path / "kernel", "toy", 1)
    train = ~held_out(loaded.frames.segment, loaded.frames.frame_index, *spec.held_out)
    assert fed.mean_weight == pytest.approx(loaded.frames.weights[train].mean(), rel=1e-12)
    whole = Labelled(
        np.concatenate([batch.index for batch in batches]),
        *(torch.cat([getattr(batch, name) for batch in batches]) for name in ("positions", "forces", "weights")),
    )
    # frames that fill no batch are in the mean weight, not in the epoch
    expected = gradient(one, whole, len(weights) * fed.mean_weight)
    mean = torch.zeros_like(expected)
    for step in range(len(batches)):
        one.step = step
        mean += stepped(one) / len(batches)
    assert (mean - expected).norm() < 1e-3 * expected.norm()
    one.members[0].feed.close()


def test_weights_of_one_are_divided_by_the_number_of_frames_exactly() -> None:
    assert feed(labels(), SETTINGS).mean_weight == 1.0


@pytest.mark.parametrize("kernel", [True, False])
def test_labels_made_in_parts_are_those_made_at_once_bit_for_bit(kernel: bool) -> None:
    source = labels() if kernel else of_weight(np.ones(600))
    index = np.arange(3, 580)
    whole, parts = source.batch(index, "test", 2), list(source.batches(index, "test", 2, 77))
    for name in ("index", "positions", "forces", "weights"):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))


def test_moments_of_blocks_are_those_of_all_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    source = labels()
    source = replace(source, frames=replace(source.frames, weights=0.5 + np.arange(600) % 3))
    whole = feed(source, SETTINGS).moments(SYSTEM)
    monkeypatch.setattr("hpc_cg.learning.resident.BLOCK_FRAMES", 101)
    found = feed(source, SETTINGS).moments(SYSTEM)
    assert (found.n_frames, found.weight) == (480, whole.weight)
    np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(found.variance, whole.variance, rtol=1e-9)
    np.testing.assert_allclose(found.torsions, whole.torsions, rtol=1e-12)


def test_replicas_start_from_frames_drawn_by_weight_whoever_asks(tmp_path: Path) -> None:
    products(tmp_path, "none")
    source = label_source(tmp_path / "prepare", tmp_path / "kernel", "toy")
    starts = Starts.of(source, 1)
    drawn = starts.of_replicas(range(300))
    np.testing.assert_array_equal(starts.of_replicas((17, 250)), drawn[[17, 250]])
    loaded, _ = open_labels(tmp_path / "prepare", tmp_path / "kernel", "toy", 1)
    number = {x.tobytes(): i for i, x in enumerate(loaded.frames.positions)}
    rows = np.asarray([number[x.tobytes()] for x in drawn])
    assert np.mean(rows % 2) == pytest.approx(2 / 3, abs=0.09)  # odd frames weigh twice as much as even ones
    assert rows.mean() == pytest.approx(N / 2, abs=4 * N / np.sqrt(12 * 300))


def test_the_priors_of_a_streamed_store_are_those_of_all_frames_where_all_are_asked_for(tmp_path: Path) -> None:
    products(tmp_path, "none")
    one = streaming(tmp_path, prior_frames=10**6)
    loaded, spec = open_labels(tmp_path / "prepare", tmp_path / "kernel", "toy", 1)
    train = ~held_out(loaded.frames.segment, loaded.frames.frame_index, *spec.held_out)
    expected = CoordinateMoments.of(loaded.frames.positions[train], SYSTEM, loaded.frames.weights[train])
    found = one.moments(SYSTEM)
    one.close()
    assert found.n_frames == expected.n_frames == one.n_train
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-10)
    np.testing.assert_allclose(found.variance, expected.variance, rtol=1e-8)
    np.testing.assert_array_equal(found.torsions, expected.torsions)


@pytest.mark.parametrize("case", ["none", "noise", "mixed", "stored"])
def test_labels_made_on_the_device_are_those_made_in_memory(case: str) -> None:
    source = labels()
    if case in ("none", "stored"):
        noise = np.random.default_rng(1).normal(0, 0.003, source.frames.positions.shape) if case == "stored" else None
        source = Labels(replace(source.frames, noise=noise), None, 5)
    elif case == "noise":
        source = replace(source, kernel=replace(source.kernel, mixing=None))
    for world in (ALONE, World(1, 3)):
        memory, device = (feed(source, SETTINGS, world, on).train(3) for on in (False, True))
        np.testing.assert_array_equal(memory.index, device.index)
        torch.testing.assert_close(device.positions, memory.positions)
        torch.testing.assert_close(device.forces, memory.forces, rtol=1e-5, atol=1e-2)


def test_a_training_on_the_device_is_the_one_in_memory_to_rounding(tmp_path: Path) -> None:
    from test_learning import forcefield as resident_forcefield

    source, ends = labels(), []
    for on_device in (False, True):
        member = alone(resident_forcefield(source), feed(source, SETTINGS, ALONE, on_device))
        one = Trainer([member], SETTINGS, ALONE, tmp_path / str(on_device))
        ends.append(run(one).validation.residual)
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)


def test_missing_forces_are_named_wherever_labels_are_made(tmp_path: Path) -> None:
    source = labels()
    bare = replace(source, frames=replace(source.frames, forces=None))
    for on_device in (False, True):
        with pytest.raises(MissingForces):
            feed(bare, SETTINGS, ALONE, on_device).train(0)
    products(tmp_path, "noise", forces=False)
    one = streaming(tmp_path)
    assert torch.isfinite(one.train(0).forces).all()
    one.close()


def test_more_processes_than_streams_and_too_few_frames_are_refused(tmp_path: Path) -> None:
    products(tmp_path)
    with pytest.raises(BrokenLaunch, match="set train.streams to 9 or more"):
        streaming(tmp_path, World(0, 9))
    source = label_source(tmp_path / "prepare", tmp_path / "kernel", "toy")
    with pytest.raises(TooFewFrames, match="train.batch_size"):
        Streaming(source, 1, 1024, 8, 1.0, 100, 100, ALONE, CPU)
    with pytest.raises(MissingInput, match="train.molecule"):
        label_source(tmp_path / "prepare", tmp_path / "kernel", "villin")


def test_a_shard_lost_during_a_training_ends_it_with_its_name_and_without_a_thread(tmp_path: Path) -> None:
    products(tmp_path)
    one = trainer(tmp_path / "train", streaming(tmp_path))
    source = one.members[0].feed.source
    writer.shard_files(source.store, source.spec, 3)["forces"].unlink()
    with pytest.raises(DamagedProduct, match="shard 3 of the store"):
        try:
            run(one)
            for step in range(10, 40):
                one.members[0].feed.train(step)
        finally:
            one.members[0].feed.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reads the store")]


def test_frames_of_a_streamed_store_are_named_when_a_training_diverges(tmp_path: Path) -> None:
    products(tmp_path)
    one = trainer(tmp_path / "train", streaming(tmp_path))
    batch = one.members[0].feed.train(0)
    batch.forces[5] = np.nan
    one.batches = [batch]
    assert f"segment 0 frame {batch.index[5]}" in str(one.diverged())
    batch.forces[5] = 0
    assert "the parameters themselves" in str(one.diverged())
    one.members[0].feed.close()


def test_gradients_of_processes_are_summed_beside_what_they_tell() -> None:
    weight = torch.ones(3, requires_grad=True)
    (weight.sum() * 2).backward()
    told = sum_gradients([weight], ALONE, torch.tensor([1.0, 0.0, 7.0]))
    assert told.tolist() == [1.0, 0.0, 7.0] and weight.grad.tolist() == [2.0, 2.0, 2.0]


def test_both_feeds_are_feeds(tmp_path: Path) -> None:
    products(tmp_path)
    one = streaming(tmp_path)
    assert isinstance(one, Feed) and isinstance(feed(labels(), SETTINGS), Feed)
    assert not one.in_memory and Resident.in_memory.fget(feed(labels(), SETTINGS))
    one.close()


def test_a_store_above_the_limit_is_streamed_by_the_stage_and_learns_as_well(tmp_path: Path) -> None:
    errors = {}
    for name, limit in (("loaded", 1.0), ("streamed", 1e-4)):
        (tmp_path / name).mkdir()
        changes = {"steps": 60, "batch_size": 32, "memory_limit_gb": limit, "streams": 4}
        study = read_study(write_study(tmp_path / name, train=changes, prepare={"shard_frames": 64}))
        for stage in ("prepare", "kernel", "train"):
            assert run_stage(study, stage) == 0
        errors[name] = read_json(study.folder("train") / "errors.json")
    assert errors["loaded"]["in_memory"] and not errors["streamed"]["in_memory"]
    assert errors["streamed"]["train_frames"] == errors["loaded"]["train_frames"]
    assert errors["streamed"]["residual"] == pytest.approx(errors["loaded"]["residual"], rel=0.05)


def test_estimates_from_a_part_of_the_archive_say_of_how_many_frames() -> None:
    sizes = {"reference": 40_000, "archive": 40_000, "model": 500, "bins": 64}
    assert sizes_note({"sizes": sizes}).startswith("40,000 reference frames against 500 model frames;")
    note = sizes_note({"sizes": sizes | {"archive": 9_000_000}})
    assert note.startswith("40,000 of 9,000,000 frames of the archive, evenly spread, against 500 model frames;")


def test_frames_that_are_looked_at_first_are_spread_over_all(tmp_path: Path) -> None:
    for one in (streaming(products(tmp_path)), feed(labels(), SETTINGS)):
        index = np.sort(one.same(24).index)
        assert len(index) == 24 and index[0] < 0.1 * one.n_train and index[-1] > 0.9 * one.n_train
