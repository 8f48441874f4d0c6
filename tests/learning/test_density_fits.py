"""Fits of a conditional density: resumed or shared, they are the same fit; and they find what is known exactly."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import TEMPERATURE_K, frames

from hpc_cg.errors import BadFrames, NotSealed, TrainingDiverged
from hpc_cg.kernels.learnt import Shape, begin, describe
from hpc_cg.kernels.noise import NoiseKernel
from hpc_cg.learning.checkpoint import load_density, newest
from hpc_cg.learning.distributed import World
from hpc_cg.learning.fitting import Fit, FitErrors, pairs_of
from hpc_cg.learning.labels import Labels
from hpc_cg.learning.resident import Resident
from hpc_cg.learning.settings import Settings
from hpc_cg.store.dataset import StoreFrames

N, NOISE = 400, NoiseKernel(0.003, TEMPERATURE_K, None)
SETTINGS = Settings(
    steps=8,
    batch_size=24,
    learning_rate=2e-3,
    final_learning_rate=1e-5,
    warmup_steps=2,
    weight_decay=0.0,
    clip=10.0,
    validate_every=3,
    checkpoint_every=3,
    seed=5,
    ema=0.9,
    early_stop=50,
)


def feed(world: World) -> Resident:
    positions, _ = frames(N, seed=0)
    zeros = np.zeros(N, dtype=np.int64)
    labels = Labels(StoreFrames(positions, None, None, np.ones(N), zeros, np.arange(N)), NOISE, seed=5)
    index = np.arange(N)
    return Resident(labels, index[:320], index[320:], 5, SETTINGS.batch_size, world, torch.device("cpu"))


def fit(folder: Path, kind: str = "coupling", world: World | None = None) -> Fit:
    source = feed(world or World(0, 1))
    density = begin(Shape(kind, 2, 8), range(5), NOISE.sigma_nm, *pairs_of(source.same(300), NOISE), seed=1)
    return Fit(density, source, NOISE, SETTINGS, world or World(0, 1), folder)


def run(one: Fit, stop_at: int = 10**9) -> FitErrors:
    return one.run(lambda step, note: None, lambda: one.step + 1 >= stop_at, describe(one.density))


def test_labels_of_noise_tell_where_frames_came_from() -> None:
    found = feed(World(0, 1)).same(50)
    clean, displaced = pairs_of(found, NOISE)
    np.testing.assert_allclose(clean.numpy(), frames(N, seed=0)[0][found.index], atol=1e-6)
    assert float((displaced - clean).std()) == pytest.approx(0.003, rel=0.1)


@pytest.mark.parametrize("kind", ["cnf", "coupling"])
def test_a_stopped_and_resumed_fit_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path, kind: str) -> None:
    whole = fit(tmp_path / "whole", kind)
    ended = run(whole)
    assert not run(fit(tmp_path / "parts", kind), stop_at=5).finished
    assert replace(run(fit(tmp_path / "parts", kind)), frames_per_s=0.0) == replace(ended, frames_per_s=0.0)
    one, two = (newest(tmp_path / name).chosen[0] for name in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("kind", ["cnf", "coupling"])
def test_gradients_of_shares_add_up_to_that_of_the_batch(tmp_path: Path, kind: str) -> None:
    whole = fit(tmp_path, kind)
    whole.gradient()
    wanted = [p.grad.clone() for p in whole.parameters if p.grad is not None]
    found = [torch.zeros_like(gradient) for gradient in wanted]
    for rank in range(3):
        part = fit(tmp_path, kind, World(rank, 3))
        part.gradient()
        for total, parameter in zip(found, (p for p in part.parameters if p.grad is not None), strict=True):
            total += parameter.grad
    for one, two in zip(wanted, found, strict=True):
        torch.testing.assert_close(one, two, rtol=2e-4, atol=1e-6)


def test_a_fit_makes_the_held_out_loss_smaller(tmp_path: Path) -> None:
    one = fit(tmp_path)
    before = one.look().error
    assert run(one).held_out < before - 0.01


def test_frames_that_spoil_a_fit_are_named(tmp_path: Path) -> None:
    one = fit(tmp_path)
    one.feed.labels.frames.positions[one.feed.train(0).index[3]] = np.nan
    with pytest.raises(TrainingDiverged, match=f"frame {one.feed.train(0).index[3]}"):
        run(one)


def test_held_out_frames_that_spoil_a_fit_are_named(tmp_path: Path) -> None:
    one = fit(tmp_path)
    one.feed.labels.frames.positions[350] = np.nan
    with pytest.raises(BadFrames, match="frame 350"):
        run(one)


def test_a_folder_without_a_fit_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(NotSealed, match="stage flow"):
        load_density(tmp_path)
