"""What a diffusion model is trained on: its minimiser, its draws, and that it comes back from a checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import torch
from exact_noise import SCALE_NM, SCHEDULE, ExactNoise, exact_model, frames, network

from hpc_cg.diffusion.model import DiffusionModel, LevelDraws, Spread, rotations
from hpc_cg.diffusion.stored import load_diffusion
from hpc_cg.diffusion.transformer import GraphTransformer, TransformerConfig
from hpc_cg.errors import DamagedProduct, NotSealed, TooFewFrames, UnfitLevel
from hpc_cg.learning import checkpoint
from hpc_cg.learning.average import Average
from hpc_cg.randomness import PerItem, stream

SMALL = TransformerConfig(width=16, n_layers=1, n_heads=2, head_width=8, edges="squared-distance")


def small(n_beads: int = 3, config: TransformerConfig = SMALL) -> DiffusionModel:
    return DiffusionModel(GraphTransformer(range(n_beads), config, seed=1), SCALE_NM)


@pytest.mark.parametrize("level", [0, 8, 100, 400, 999])
def test_the_exact_noise_has_the_loss_of_what_noise_hides_and_more_or_less_noise_has_more(level: int) -> None:
    covariance = network(4, 0)
    x, levels = frames(covariance, 20000, 1), torch.full((20000,), level)
    exact, more, less = (
        exact_model(covariance, strength).loss_at(x, levels, stream(0, "loss")).detach().numpy()
        for strength in (1.0, 1.1, 0.9)
    )
    variances = np.linalg.eigvalsh(covariance)[1:]
    signal, noise = SCHEDULE.signal[level], SCHEDULE.noise[level]
    hidden = (signal * variances / (signal * variances + noise)).sum() / 4
    assert abs(exact.mean() - hidden) < 4 * exact.std() / np.sqrt(len(x))
    told = 0.01 * (noise / (signal * variances + noise)).sum() / 4
    for other in (more, less):
        rise = other - exact
        assert abs(rise.mean() - told) < 4 * rise.std() / np.sqrt(len(x))


def test_a_short_training_comes_near_the_exact_noise() -> None:
    covariance = network(3, 0)
    model, exact = small(), exact_model(covariance).predictor
    positions = (SCALE_NM * frames(covariance, 4096, 1)).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    average = Average(list(model.parameters()), 0.99)
    n_steps = 250
    for step in range(n_steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / n_steps)
        optimizer.zero_grad()
        rows = stream(step, "rows").integers(0, len(positions), 256)
        model.loss(positions[rows], stream(step, "loss")).mean().backward()
        optimizer.step()
        average.update(step)
    errors = {}
    for level in (50, 100, 300, 700):
        x = frames(covariance, 500, 2)
        levels = torch.full((500,), level)
        blurred = model.blurred(x, frames(np.eye(3) - 1 / 3, 500, 3), levels)
        with torch.no_grad(), average.in_place():
            wanted, found = exact(blurred, level).noise, model.predictor(blurred.float(), level).noise
        errors[level] = float((found - wanted).square().mean() / wanted.square().mean()) ** 0.5
    assert max(errors.values()) < 0.3, errors


def test_a_frame_has_its_loss_whichever_frames_are_beside_it() -> None:
    model, positions, items = small().double(), SCALE_NM * frames(network(3, 0), 6, 1), np.arange(6)
    together = model.loss(positions, PerItem(0, "fit", 3, items))
    some = model.loss(positions[[4, 1]], PerItem(0, "fit", 3, items[[4, 1]]))
    torch.testing.assert_close(some, together[[4, 1]])
    assert (model.loss(positions, PerItem(0, "fit", 4, items)) - together).abs().min() > 0


def test_where_a_frame_is_and_how_it_is_turned_does_not_change_what_is_learnt() -> None:
    model, positions = exact_model(network(3, 0)), SCALE_NM * frames(network(3, 0), 6, 1)
    first, moved = (model.loss(x, stream(0, "loss")) for x in (positions, positions + 5.0))
    torch.testing.assert_close(moved, first)


def test_rotations_are_proper_and_prefer_no_direction() -> None:
    turns = rotations(torch.from_numpy(np.random.default_rng(0).normal(size=(20000, 4))))
    torch.testing.assert_close(turns @ turns.mT, torch.eye(3, dtype=turns.dtype).expand_as(turns))
    torch.testing.assert_close(torch.linalg.det(turns), torch.ones(len(turns), dtype=turns.dtype))
    assert turns.mean(0).abs().max() < 4 * (1 / 3 / 20000) ** 0.5
    assert (turns.square().mean(0) - 1 / 3).abs().max() < 4 * (4 / 45 / 20000) ** 0.5


def test_half_of_all_draws_are_of_the_first_hundred_levels() -> None:
    levels = LevelDraws().of(np.linspace(0, 1, 36000, endpoint=False), 1000)
    counts = np.bincount(levels, minlength=1000)
    assert len(counts) == 1000 and set(counts[:100]) <= {179, 180, 181} and set(counts[100:]) <= {19, 20, 21}


@pytest.mark.parametrize("draws", [LevelDraws(1000), LevelDraws(0), LevelDraws(share=1.0)])
def test_draws_that_a_schedule_does_not_have_are_refused(draws: LevelDraws) -> None:
    with pytest.raises(UnfitLevel, match="draws of noise levels"):
        DiffusionModel(ExactNoise(network(3, 0)), SCALE_NM, draws=draws)


def test_the_scale_is_the_spread_of_centred_frames_and_adds_up() -> None:
    positions = (SCALE_NM * frames(network(4, 0), 30, 1)).numpy() + np.arange(30)[:, None, None]
    centred = positions - positions.mean(1, keepdims=True)
    parts = Spread.of(positions[:10]) + Spread.of(positions[10:])
    assert parts.scale_nm == pytest.approx(np.sqrt((centred**2).mean()))
    weights = np.repeat([2.0, 0.0], 15)
    positions[20] = np.nan
    assert Spread.of(positions, weights).scale_nm == pytest.approx(np.sqrt((centred[:15] ** 2).mean()))
    with pytest.raises(TooFewFrames, match="the scale of frames"):
        _ = Spread.of(np.ones((3, 4, 3))).scale_nm


@pytest.mark.data
def test_the_scale_of_alanine_dipeptide_is_the_published_one(data_folder: Path) -> None:
    files = sorted((data_folder / "ala2_5bead").glob("*coord*.npy"))
    positions = np.concatenate([np.load(file) for file in files])
    assert 10 * Spread.of(0.1 * positions).scale_nm == pytest.approx(0.945, rel=0.02)


def test_a_model_comes_back_from_its_checkpoint_and_another_ones_weights_are_refused(tmp_path: Path) -> None:
    model, x = small(), frames(network(3, 0), 4, 1).float()
    with pytest.raises(NotSealed, match="no sealed checkpoint"):
        load_diffusion(tmp_path)

    def state(step: int, weights: DiffusionModel) -> checkpoint.Checkpoint:
        return checkpoint.Checkpoint(step, weights.state_dict(), {}, {"step": step}, model.describe())

    checkpoint.save(tmp_path, state(7, model))
    found, step = load_diffusion(tmp_path)
    assert step == 7 and found.scale_nm == SCALE_NM and found.schedule == model.schedule
    torch.testing.assert_close(found.predictor(x, 8).noise, model.predictor(x, 8).noise, rtol=0, atol=0)
    checkpoint.save(tmp_path, state(8, small(4)))
    with pytest.raises(DamagedProduct, match="a diffusion model that this version cannot build"):
        load_diffusion(tmp_path)
