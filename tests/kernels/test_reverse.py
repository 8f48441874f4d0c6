"""A learnt kernel in use, with one that is known exactly: where its draws are, and what its labels mean."""

import numpy as np
import torch
from gaussians import frames, network, on_axes

from hpc_cg.frames import BeadFrames
from hpc_cg.kernels.gaussian import GaussianKernel
from hpc_cg.kernels.reverse import ReverseKernel
from hpc_cg.units import kT

SIGMA, TEMPERATURE_K, N = 0.3, 300.0, 60_000


def test_draws_have_the_clean_density_and_labels_its_mean_force() -> None:
    covariance = on_axes(network(3, 1))
    clean = frames(covariance, N, seed=4)
    density = GaussianKernel.reverse(np.zeros((3, 3)), covariance, SIGMA, centred=False)
    kernel = ReverseKernel(density, SIGMA, TEMPERATURE_K, False, None, torch.device("cpu"))
    condition = BeadFrames(clean.astype(np.float32), np.zeros((N, 3, 3), np.float32), np.ones(N, np.float32))
    found = kernel.sample(condition, np.random.default_rng(7))
    assert not found.failed.any()
    y, label = (values.reshape(N, 9).astype(np.float64) for values in (found.positions, found.forces))
    np.testing.assert_allclose(y.T @ y / N, covariance, atol=0.03 * np.abs(covariance).max())
    slope = np.linalg.lstsq(y, label, rcond=None)[0]
    wanted = -kT(TEMPERATURE_K) * np.linalg.inv(covariance)
    assert np.linalg.norm(slope - wanted) < 0.05 * np.linalg.norm(wanted)


def test_the_same_key_gives_the_same_draws() -> None:
    density = GaussianKernel.reverse(np.zeros((3, 3)), on_axes(network(3, 1)), SIGMA, centred=False)
    kernel = ReverseKernel(density, SIGMA, TEMPERATURE_K, True, None, torch.device("cpu"))
    zeros = np.zeros((5, 3, 3), np.float32)
    condition = BeadFrames(zeros, zeros, np.ones(5, np.float32))
    one, two, other = (kernel.sample(condition, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.forces, two.forces)
    assert not np.array_equal(one.forces, other.forces)


def test_a_frame_with_forces_that_are_no_numbers_has_failed_where_they_are_used() -> None:
    density = GaussianKernel.noise(3, SIGMA, centred=False)
    zeros = np.zeros((4, 3, 3), np.float32)
    forces = zeros.copy()
    forces[2] = np.nan
    for with_forces in (False, True):
        kernel = ReverseKernel(density, SIGMA, TEMPERATURE_K, with_forces, None, torch.device("cpu"))
        found = kernel.sample(BeadFrames(zeros, forces, np.ones(4, np.float32)), np.random.default_rng(1))
        assert found.failed.tolist() == [False, False, with_forces, False]
