"""What every kernel promises, whatever it is made of; each kernel inherits the claims."""

from abc import ABC, abstractmethod
from dataclasses import replace

import numpy as np
import torch

from hpc_cg.frames import BeadFrames
from hpc_cg.kernels.cnf import CNFConfig, ConditionalFlow
from hpc_cg.kernels.control import Controls
from hpc_cg.kernels.coupling import CouplingConfig, CouplingFlow
from hpc_cg.kernels.density import ConditionalDensity, normals
from hpc_cg.kernels.egnn import EGNN, EGNNConfig
from hpc_cg.kernels.flow import FixedSteps
from hpc_cg.kernels.gaussian import GaussianKernel
from hpc_cg.kernels.kernel import Kernel, KernelSample
from hpc_cg.kernels.noise import MappedForces, NoiseKernel
from hpc_cg.kernels.reverse import ReverseKernel
from hpc_cg.units import kT

N_BEADS, SIGMA_NM, TEMPERATURE_K = 4, 0.02, 300.0


def frames(n_frames: int, seed: int = 0) -> BeadFrames:
    """A bent chain with much thermal motion, and forces that have nothing to do with it."""
    random = np.random.default_rng(seed)
    rest = 0.15 * np.stack((np.arange(N_BEADS), np.arange(N_BEADS) % 2, np.arange(N_BEADS) % 3 == 2), 1)
    positions = rest + random.normal(0, 0.02, (n_frames, N_BEADS, 3))
    forces = random.normal(0, 300.0, positions.shape)
    return BeadFrames(positions.astype(np.float32), forces.astype(np.float32), np.ones(n_frames, np.float32))


def repeated(n_frames: int) -> BeadFrames:
    """One frame many times, without force."""
    one = frames(1)
    positions = np.repeat(one.positions, n_frames, axis=0)
    return BeadFrames(positions, np.zeros_like(positions), np.ones(n_frames, np.float32))


class KernelContract(ABC):
    """The claims."""

    @abstractmethod
    def kernel(self, temperature_K: float = TEMPERATURE_K) -> Kernel:
        """One to be looked at."""

    def sample(self, condition: BeadFrames, seed: int = 1, temperature_K: float = TEMPERATURE_K) -> KernelSample:
        return self.kernel(temperature_K).sample(condition, np.random.default_rng(seed))

    def test_it_is_a_kernel_that_gives_a_frame_for_a_frame(self) -> None:
        assert isinstance(self.kernel(), Kernel)
        found = self.sample(frames(7))
        assert found.positions.shape == found.forces.shape == (7, N_BEADS, 3)
        assert found.positions.dtype == found.forces.dtype == np.float32
        assert found.log_density.shape == found.failed.shape == (7,)
        assert np.isfinite(found.forces).all() and np.isfinite(found.log_density).all() and not found.failed.any()

    def test_the_same_key_gives_the_same_draws(self) -> None:
        one, two = self.sample(frames(5)), self.sample(frames(5))
        np.testing.assert_array_equal(one.positions, two.positions)
        np.testing.assert_array_equal(one.forces, two.forces)

    def test_no_frames_give_no_labels(self) -> None:
        assert self.sample(frames(0)).forces.shape == (0, N_BEADS, 3)

    def test_a_frame_that_is_no_number_fails_alone(self) -> None:
        good = frames(6)
        spoilt = replace(good, positions=good.positions.copy(), forces=good.forces.copy())
        spoilt.positions[2, 1], spoilt.forces[2, 1] = np.nan, np.nan
        found, wanted = self.sample(spoilt), self.sample(good)
        assert found.failed.tolist() == [False, False, True, False, False, False]
        others = ~found.failed
        np.testing.assert_allclose(found.forces[others], wanted.forces[others], rtol=1e-4, atol=1e-2)


class ScoreContract(KernelContract):
    """Of kernels whose label is a score: the claims of every normalised density, however good a model of anything."""

    n_dimensions = 3 * N_BEADS

    def test_the_mean_label_of_one_frame_is_that_of_its_control_variates(self) -> None:
        """E[∇ log κ(y | c)] = 0, and variates have no mean either where no force is mixed in."""
        labels = self.sample(repeated(6000)).forces.astype(np.float64).reshape(6000, -1)
        error = labels.std(axis=0) / np.sqrt(len(labels))
        assert np.abs(labels.mean(axis=0) / error).max() < 4.5  # of 12 normal numbers

    def test_labels_are_forces_at_the_temperature_of_the_data(self) -> None:
        one, twice = self.sample(frames(20)), self.sample(frames(20), temperature_K=2 * TEMPERATURE_K)
        np.testing.assert_array_equal(one.positions, twice.positions)
        np.testing.assert_allclose(twice.forces, 2 * one.forces, rtol=1e-5)


class PlainContract(ScoreContract):
    """Of labels without control variates."""

    def test_the_virial_counts_the_dimensions(self) -> None:
        """E[(y − c) · ∇ log κ(y | c)] = −dim for every c that y does not depend on."""
        condition = repeated(6000)
        found = self.sample(condition)
        virial = ((found.positions - condition.positions) * found.forces).sum((1, 2)) / kT(TEMPERATURE_K)
        error = virial.std() / np.sqrt(len(virial))
        assert abs(virial.mean() + self.n_dimensions) < 4 * error
        assert error < 0.1 * self.n_dimensions


def reverse(density: ConditionalDensity, temperature_K: float, weight: float = 0.0) -> ReverseKernel:
    n = N_BEADS
    centre = np.eye(n) - 1 / n if density.centred else np.eye(n)
    controls = Controls(weight * centre[None]) if weight else None
    return ReverseKernel(density, SIGMA_NM, temperature_K, False, controls, torch.device("cpu"))


def continuous() -> ConditionalFlow:
    """Carried far by a network with random weights."""
    network = EGNN(range(N_BEADS), EGNNConfig(n_layers=2, n_hidden=8), seed=1)
    for layer in network.layers:
        torch.nn.init.normal_(layer.shift_out.weight, 0, 0.02, generator=torch.Generator().manual_seed(3))
    return ConditionalFlow(network, CNFConfig(SIGMA_NM, 0.2 * SIGMA_NM, "hutchinson", 1, FixedSteps("rk4", 4, 1.0)))


def coupling() -> CouplingFlow:
    """With random numbers added to its weights."""
    target = torch.from_numpy(frames(500).positions)
    noise = SIGMA_NM * normals(np.random.default_rng(1), target)
    flow = CouplingFlow.of(target, target + noise, CouplingConfig(4, 1, 8, 8, 12, 4, (0.1, 0.3)), 3)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.05 * normals(np.random.default_rng(5), parameter))
    return flow


class TestMappedForces(KernelContract):
    def kernel(self, temperature_K: float = TEMPERATURE_K) -> Kernel:
        return MappedForces()


class TestNoise(PlainContract):
    def kernel(self, temperature_K: float = TEMPERATURE_K) -> Kernel:
        return NoiseKernel(SIGMA_NM, temperature_K, None)


class TestNoiseWithForces(KernelContract):
    def kernel(self, temperature_K: float = TEMPERATURE_K) -> Kernel:
        return NoiseKernel(SIGMA_NM, temperature_K, 0.3 * np.eye(N_BEADS))


class TestGaussianReverse(PlainContract):
    def kernel(self, temperature_K: float = TEMPERATURE_K) -> Kernel:
        n = 3 * N_BEADS
        density = GaussianKernel.reverse(np.zeros((N_BEADS, 3)), 4e-4 * np.eye(n), SIGMA_NM, centred=False)
        return reverse(density, temperature_K)


class TestContinuousFlow(PlainContract):
    n_dimensions = 3 * N_BEADS - 3

    def kernel(self, temperature_K: float = TEMPERATURE_K) -> Kernel:
        return reverse(continuous(), temperature_K)


class TestContinuousFlowWithControls(ScoreContract):
    def kernel(self, temperature_K: float = TEMPERATURE_K) -> Kernel:
        return reverse(continuous(), temperature_K, weight=0.4)


class TestCouplingFlow(PlainContract):
    def kernel(self, temperature_K: float = TEMPERATURE_K) -> Kernel:
        return reverse(coupling(), temperature_K)


class TestCouplingFlowWithControls(ScoreContract):
    def kernel(self, temperature_K: float = TEMPERATURE_K) -> Kernel:
        return reverse(coupling(), temperature_K, weight=0.4)
