"""The transition kernel, with laws that are known exactly: what its labels mean, with superposed frames too."""

import numpy as np
import pytest
import torch
from gaussians import UNIT_KT, frames, network, on_axes

from hpc_cg.frames import BeadFrames
from hpc_cg.kernels import control
from hpc_cg.kernels.gaussian import GaussianKernel
from hpc_cg.kernels.transition import TransitionKernel, superposed

N, DECAY, SIGMA = 60_000, 0.6, 0.05


def chain(n_beads: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A step of an Ornstein–Uhlenbeck process on beads with a fixed mean: covariance, frames before and after."""
    keep = np.eye(n_beads) - 1 / n_beads
    covariance = on_axes(keep @ network(n_beads, seed) @ keep)
    before, kick = frames(covariance, N, seed), frames(covariance, N, seed + 1)
    return covariance, before, DECAY * before + np.sqrt(1 - DECAY**2) * kick


def law(covariance: np.ndarray) -> GaussianKernel:
    """Of y given c = x + σξ, in the space without the mean."""
    gain = DECAY * covariance @ np.linalg.inv(covariance + SIGMA**2 * np.eye(len(covariance)))
    return GaussianKernel(gain, np.zeros(len(gain)), covariance - gain @ covariance * DECAY, centred=True)


def kernel(covariance: np.ndarray, with_forces: bool, controls: control.Controls | None = None) -> TransitionKernel:
    return TransitionKernel(law(covariance), SIGMA, UNIT_KT, with_forces, controls, torch.device("cpu"))


def slope(positions: np.ndarray, forces: np.ndarray) -> np.ndarray:
    """The linear force of least square error, which is the exact one for Gaussian frames."""
    return np.linalg.pinv(positions.reshape(N, -1), rcond=1e-6) @ forces.reshape(N, -1)


def test_labels_of_an_exact_chain_have_its_mean_force() -> None:
    covariance, before, after = chain(3, seed=4)
    later = BeadFrames(after, np.zeros_like(after), np.ones(N))
    found = kernel(covariance, False).sample(later, before, np.random.default_rng(7))
    assert not found.failed.any()
    wanted = -np.linalg.pinv(covariance, rcond=1e-9)
    assert np.linalg.norm(slope(after, found.forces) - wanted) < 0.05 * np.linalg.norm(wanted)
    np.testing.assert_allclose(found.forces.sum(axis=1), 0.0, atol=1e-3)


def test_mapped_forces_of_the_later_frame_make_labels_quieter_and_leave_their_mean() -> None:
    covariance, before, after = chain(3, seed=4)
    wanted = -np.linalg.pinv(covariance, rcond=1e-9)
    noise = np.random.default_rng(1).normal(0, 1, after.shape)
    later = BeadFrames(after, (after.reshape(N, -1) @ wanted).reshape(after.shape) + noise, np.ones(N))
    bare = kernel(covariance, True)
    labels = bare.labels(later, bare.link(after, before, np.random.default_rng(7))[0])
    moments = labels.moments()
    alone, both = control.judge(moments, moments)
    assert both.train < 0.95 * min(alone.train, np.square(later.forces).mean())
    found = kernel(covariance, True, both.controls).sample(later, before, np.random.default_rng(7))
    assert np.square(found.forces).mean() == pytest.approx(both.train, rel=1e-4)
    assert np.linalg.norm(slope(after, found.forces) - wanted) < 0.05 * np.linalg.norm(wanted)


def test_a_wrong_law_gives_a_wrong_mean_force() -> None:
    covariance, before, after = chain(3, seed=4)
    wrong = TransitionKernel(law(1.2 * covariance), SIGMA, UNIT_KT, False, None, torch.device("cpu"))
    later = BeadFrames(after, np.zeros_like(after), np.ones(N))
    found = wrong.sample(later, before, np.random.default_rng(7))
    wanted = -np.linalg.pinv(covariance, rcond=1e-9)
    assert np.linalg.norm(slope(after, found.forces) - wanted) > 0.1 * np.linalg.norm(wanted)


def test_frames_are_superposed_by_rotations_alone() -> None:
    random = np.random.default_rng(2)
    later = random.normal(size=(50, 5, 3))
    turned, _ = np.linalg.qr(random.normal(size=(50, 3, 3)))
    turned *= np.linalg.det(turned)[:, None, None]
    earlier = (later - later.mean(1, keepdims=True)) @ turned + random.normal(size=(50, 1, 3))
    np.testing.assert_allclose(superposed(earlier, later), later, atol=1e-12)
    mirrored = earlier * [1, 1, -1]
    found = superposed(mirrored, later)
    assert np.abs(found - later).max(axis=(1, 2)).min() > 0.05
    still = np.einsum("fbi,fbj->fij", found - found.mean(1, keepdims=True), later - later.mean(1, keepdims=True))
    np.testing.assert_allclose(still, still.transpose(0, 2, 1), atol=1e-9)  # no small turn comes nearer


def test_the_mean_over_superposed_pasts_of_the_exact_score_is_the_mean_force() -> None:
    """Two beads in space, whose vector r follows an Ornstein–Uhlenbeck process with ⟨r r⟩ = 1: the force on r is −r.

    The earlier vector, turned onto the later one and blurred by σ, is c. Its law given y is an integral over the
    earlier length ρ, with density ∝ ρ exp(−(ρ² + a²y²)/2s²) sinh(aρy/s²), s² = 1 − a².
    """
    a, sigma = 0.6, 0.5
    variance = 1 - a**2
    lengths = torch.linspace(1e-3, 7, 700, dtype=torch.float64)
    random = np.random.default_rng(3)
    later = torch.tensor([[0.9, 0.4, -0.3]], dtype=torch.float64).expand(20_000, 3).contiguous()
    before = a * later.numpy() + np.sqrt(variance) * random.normal(size=later.shape)
    pairs = (np.stack([np.zeros_like(v), v], axis=1) for v in (before, later.numpy()))
    vector = np.diff(superposed(*pairs), axis=1)[:, 0]
    condition = torch.from_numpy(vector + sigma * random.normal(size=vector.shape))
    there = later.clone().requires_grad_()
    size = there.norm(dim=1)[:, None]
    along = (condition * there / size).sum(1)[:, None]
    log_length = (
        torch.log(lengths)
        - (lengths**2 + (a * size) ** 2) / (2 * variance)
        + torch.log(torch.sinh(a * lengths * size / variance))
        - torch.log(size)
    )
    blur = -(condition.square().sum(1)[:, None] - 2 * lengths * along + lengths**2) / (2 * sigma**2)
    joint = torch.logsumexp(log_length + blur, 1) - 0.5 * size[:, 0] ** 2
    (score,) = torch.autograd.grad(joint.sum(), there)
    mean, error = score.mean(0), score.std(0) / len(score) ** 0.5
    assert float(score.std()) > 0.5 and bool(((mean + later[0]).abs() < 4 * error).all())


def test_the_same_key_gives_the_same_labels_and_bad_forces_fail_where_they_are_used() -> None:
    covariance, before, after = chain(3, seed=4)
    forces = np.zeros((5, 3, 3), np.float32)
    forces[2] = np.nan
    later = BeadFrames(after[:5], forces, np.ones(5))
    one, two, other = (kernel(covariance, False).sample(later, before[:5], np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.forces, two.forces)
    assert not np.array_equal(one.forces, other.forces) and not one.failed.any()
    mixed = kernel(covariance, True).sample(later, before[:5], np.random.default_rng(1))
    assert mixed.failed.tolist() == [False, False, True, False, False]
