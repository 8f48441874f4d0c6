"""Gaussian kernels against what is known of them on paper."""

import numpy as np
import pytest
import torch
from gaussians import frames, network, on_axes, tensor

from hpc_cg.errors import FitFailed, TooFewFrames
from hpc_cg.frames import BeadFrames
from hpc_cg.kernels.gaussian import GaussianKernel, PositionMoments
from hpc_cg.kernels.noise import NoiseKernel
from hpc_cg.randomness import stream

SIGMA = 0.3
KEEP = on_axes(np.eye(3) - 1 / 3)
"""Takes out the mean over three beads."""


def some(seed: int, n_frames: int = 4) -> torch.Tensor:
    return tensor(np.random.default_rng(seed).normal(size=(n_frames, 3, 3)))


def reverse(centred: bool) -> GaussianKernel:
    return GaussianKernel.reverse(some(0, 1)[0].numpy(), on_axes(network(3, 1)), SIGMA, centred)


def slopes(kernel: GaussianKernel) -> tuple[np.ndarray, np.ndarray]:
    """∂ score / ∂ y and ∂ score / ∂ c: constant, for the score is linear."""
    unit, zero = torch.eye(9, dtype=torch.float64).reshape(9, 3, 3), torch.zeros(9, 3, 3, dtype=torch.float64)
    key = stream(0, "test")
    base = kernel.at(zero, zero, key).score
    ends = (kernel.at(unit, zero, key).score - base, kernel.at(zero, unit, key).score - base)
    return ends[0].reshape(9, 9).numpy().T, ends[1].reshape(9, 9).numpy().T


def test_the_mean_of_the_reverse_score_is_the_mean_force_of_the_data() -> None:
    by_y, by_c = slopes(reverse(centred=False))
    # what a frame R was drawn from is, on average over p(S') κ(R|S') = p(R) N(S'|R), R itself
    np.testing.assert_allclose(by_y + by_c, -np.linalg.inv(on_axes(network(3, 1))), rtol=1e-9, atol=1e-9)


def test_without_the_mean_over_beads_it_is_the_mean_force_in_the_space_that_is_left() -> None:
    by_y, by_c = slopes(reverse(centred=True))
    exact = -np.linalg.pinv(KEEP @ on_axes(network(3, 1)) @ KEEP, rcond=1e-10)
    np.testing.assert_allclose(by_y + by_c, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("centred", [False, True])
def test_blurred_data_come_back_as_they_were(centred: bool) -> None:
    kernel = reverse(centred)
    keep = KEEP if centred else np.eye(9)
    covariance = keep @ on_axes(network(3, 1)) @ keep
    gain, noise = kernel.gain.numpy(), kernel.covariance.numpy()
    blurred = covariance + SIGMA**2 * keep
    np.testing.assert_allclose(gain @ blurred @ gain.T + noise, covariance, atol=1e-12)
    mean = keep @ some(0, 1).numpy().ravel()
    np.testing.assert_allclose(gain @ mean + kernel.offset.numpy(), mean, atol=1e-12)


def any_kernel(centred: bool) -> GaussianKernel:
    """One whose gain is not symmetric."""
    random = np.random.default_rng(7)
    root = random.normal(size=(9, 9))
    return GaussianKernel(random.normal(size=(9, 9)), random.normal(size=9), root @ root.T + np.eye(9), centred)


@pytest.mark.parametrize("centred", [False, True])
def test_the_score_vanishes_at_the_mean_of_the_density(centred: bool) -> None:
    kernel, condition = any_kernel(centred), some(2)
    whole = condition.reshape(4, 9).numpy()
    rest = whole @ KEEP if centred else whole
    mean = np.einsum("ij,fj->fi", kernel.gain.numpy(), rest) + kernel.offset.numpy() + whole - rest
    draw = kernel.at(tensor(mean.reshape(4, 3, 3)), condition, stream(0, "test"))
    np.testing.assert_allclose(draw.score, 0, atol=1e-9)


@pytest.mark.parametrize("centred", [False, True])
def test_scores_are_gradients_of_the_log_density(centred: bool) -> None:
    kernel, y, c = any_kernel(centred), some(1).requires_grad_(), some(2).requires_grad_()
    draw = kernel.at(y, c, stream(0, "test"))
    by_y, by_c = torch.autograd.grad(draw.log_density.sum(), (y, c))
    torch.testing.assert_close(draw.score, by_y)
    torch.testing.assert_close(draw.condition_score, by_c)
    if centred:
        for score in (draw.score, draw.condition_score):
            assert float(score.detach().sum(1).abs().max()) < 1e-9
    step = 1e-5 * some(3)
    ends = [kernel.at(y + sign * step, c, stream(0, "test")).log_density for sign in (1, -1)]
    torch.testing.assert_close((ends[0] - ends[1]) / 2, (draw.score * step).sum((1, 2)), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("centred", [False, True])
def test_draws_have_the_mean_and_the_covariance_of_the_density(centred: bool) -> None:
    kernel, n = reverse(centred), 40_000
    condition = some(2, 1).expand(n, 3, 3)
    draw = kernel.draw(condition, stream(0, "test"))
    steps = (draw.positions - condition).reshape(n, 9).numpy()
    np.testing.assert_allclose(np.cov(steps.T), kernel.covariance.numpy(), atol=5 * SIGMA**2 / np.sqrt(n))
    again = kernel.at(draw.positions, condition, stream(9, "other"))
    torch.testing.assert_close(again.log_density, draw.log_density)
    entropy = np.linalg.slogdet(
        2 * np.pi * np.e * kernel.covariance.numpy() + (1e9 * (np.eye(9) - KEEP) if centred else 0)
    )
    exact = -0.5 * (entropy[1] - (3 * np.log(1e9) if centred else 0))
    assert float(draw.log_density.mean()) == pytest.approx(exact, abs=5 * np.sqrt(4.5 / n))
    if centred:
        torch.testing.assert_close(draw.positions.mean(1), condition.mean(1))


def test_a_shift_of_the_condition_shifts_the_draws_of_a_centred_kernel() -> None:
    kernel, shift = reverse(centred=True), 7.0 * some(5, 1)[:, :1]
    one, other = (kernel.draw(some(2) + by, stream(0, "test")) for by in (0, shift))
    torch.testing.assert_close(other.positions, one.positions + shift)
    torch.testing.assert_close(other.score, one.score)


def test_the_blurring_kernel_is_the_noise_kernel() -> None:
    kernel, condition = GaussianKernel.noise(3, SIGMA, centred=False), some(2)
    sample = NoiseKernel(SIGMA, 300.0, None).sample(
        BeadFrames(condition.numpy(), condition.numpy(), np.ones(4)), stream(0, "test")
    )
    draw = kernel.at(tensor(sample.positions), condition, stream(0, "test"))
    np.testing.assert_allclose(draw.score.numpy() * 300.0 * 8.31446261815324e-3, sample.forces, rtol=1e-5)
    np.testing.assert_allclose(draw.log_density.numpy(), sample.log_density, rtol=1e-5)


def test_moments_add_up_and_give_the_kernel_of_their_frames() -> None:
    covariance, n = on_axes(network(3, 1)), 30_000
    positions = frames(covariance, n, seed=4) + some(0, 1).numpy()
    weights = np.random.default_rng(5).integers(0, 3, n).astype(np.float64)
    positions[weights == 0] = np.nan
    parts = [PositionMoments.of(positions[rows], weights[rows]) for rows in (slice(0, 999), slice(999, n))]
    whole = parts[0] + parts[1]
    assert whole.count == weights.sum()
    np.testing.assert_allclose(whole.mean, some(0, 1)[0], atol=0.02)
    np.testing.assert_allclose(whole.covariance, covariance, atol=0.04)
    fitted = GaussianKernel.reverse(whole.mean, whole.covariance, SIGMA, centred=False)
    np.testing.assert_allclose(fitted.gain, reverse(centred=False).gain, atol=0.04)


def test_its_state_and_description_are_all_that_a_kernel_is() -> None:
    kernel = reverse(centred=True)
    back = GaussianKernel.from_description(kernel.describe())
    back.load_state_dict(kernel.state_dict())
    one, other = (k.draw(some(2), stream(0, "test")) for k in (kernel, back))
    torch.testing.assert_close(one.positions, other.positions, rtol=0, atol=0)
    torch.testing.assert_close(one.log_density, other.log_density, rtol=0, atol=0)


def test_the_loss_is_least_for_the_right_kernel() -> None:
    data = tensor(frames(on_axes(network(3, 1)), 5000, seed=1))
    noised = data + SIGMA * some(6, 5000)
    zero = np.zeros((3, 3))
    kernels = [GaussianKernel.reverse(zero, factor * on_axes(network(3, 1)), SIGMA, False) for factor in (0.7, 1, 1.4)]
    losses = [float(kernel.loss(data, noised, stream(0, "t")).mean()) for kernel in kernels]
    assert losses[1] < min(losses[0], losses[2])


def test_a_frame_that_is_no_number_fails_alone() -> None:
    condition = some(2)
    condition[1, 0, 0] = torch.nan
    assert reverse(centred=False).draw(condition, stream(0, "test")).failed.tolist() == [False, True, False, False]


def test_data_that_do_not_vary_in_some_direction_are_refused() -> None:
    flat = KEEP @ on_axes(network(3, 1)) @ KEEP
    assert GaussianKernel.reverse(np.zeros((3, 3)), flat, SIGMA, centred=True)
    with pytest.raises(FitFailed, match="do not vary"):
        GaussianKernel.reverse(np.zeros((3, 3)), flat, SIGMA, centred=False)
    with pytest.raises(TooFewFrames):
        _ = PositionMoments.of(np.zeros((0, 3, 3))).mean
