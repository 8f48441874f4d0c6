"""The noise kernel against exact cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_cg.errors import FitFailed, MissingForces
from hpc_cg.frames import BeadFrames
from hpc_cg.kernels.kernel import Kernel
from hpc_cg.kernels.mixing import label_mean_square, optimal_mixing
from hpc_cg.kernels.noise import MappedForces, NoiseKernel, mixed_force, score_force
from hpc_cg.randomness import stream
from hpc_cg.units import BOLTZMANN, kT

UNIT_KT = 1 / BOLTZMANN
"""The temperature at which kT is 1 kJ/mol."""


def one_dimensional_labels(mixing: np.ndarray | None, n: int = 400_000) -> tuple[np.ndarray, np.ndarray]:
    """U = 2 x², kT = 1, noise variance 0.05, force noise 3: noised positions and labels."""
    random = np.random.default_rng(0)
    x = random.normal(0, 0.5, (n, 1, 3))
    forces = -4 * x + random.normal(0, 3, x.shape)
    kernel = NoiseKernel(np.sqrt(0.05), UNIT_KT, mixing)
    sample = kernel.sample(BeadFrames(x, forces, np.ones(n)), stream(0, "test"))
    return sample.positions.ravel(), sample.forces.ravel()


@pytest.mark.parametrize(
    ("mixing", "mean_square"),
    [(None, 19.99), (np.eye(1), 13.00), (np.full((1, 1), 0.6058), 7.87)],
)
def test_every_mixing_gives_the_mean_force_of_the_noised_density(mixing: np.ndarray | None, mean_square: float) -> None:
    positions, forces = one_dimensional_labels(mixing)
    slope = (positions @ forces) / (positions @ positions)
    assert slope == pytest.approx(-1 / (1 / 4 + 0.05), rel=0.02)
    assert np.mean(forces**2) == pytest.approx(mean_square, rel=0.01)


def test_adding_noise_and_mapped_forces_is_wrong_by_a_factor_of_two() -> None:
    random = np.random.default_rng(0)
    x, noise = random.normal(0, 0.5, 400_000), random.normal(0, np.sqrt(0.05), 400_000)
    y, forces = x + noise, -4 * x + score_force(noise, np.sqrt(0.05), UNIT_KT)
    assert (y @ forces) / (y @ y) == pytest.approx(-6.66, rel=0.02)


def test_mixing_of_the_one_dimensional_case_is_the_known_one() -> None:
    moment = np.array([[13.0]])
    mixing = optimal_mixing(moment, np.sqrt(0.05), UNIT_KT, 0.0)
    assert mixing[0, 0] == pytest.approx(20 / 33, rel=1e-9)
    assert label_mean_square(mixing, moment, np.sqrt(0.05), UNIT_KT)[0] == pytest.approx(7.87, abs=0.01)


def test_labels_of_a_gaussian_network_regress_to_its_noised_mean_force() -> None:
    random = np.random.default_rng(1)
    root = random.normal(size=(4, 4))
    stiffness, sigma = root @ root.T + np.eye(4), 0.4
    covariance = np.linalg.inv(stiffness)
    x = np.einsum("bm,fma->fba", np.linalg.cholesky(covariance), random.normal(size=(200_000, 4, 3)))
    forces = -stiffness @ x
    moment = np.einsum("fba,fca->bc", forces, forces) / (3 * len(x))
    mixing = optimal_mixing(moment, sigma, UNIT_KT, 0.0)
    kernel = NoiseKernel(sigma, UNIT_KT, mixing)
    sample = kernel.sample(BeadFrames(x, forces, np.ones(len(x))), stream(2, "test"))
    y, label = (a.transpose(0, 2, 1).reshape(-1, 4) for a in (sample.positions, sample.forces))
    slope = np.linalg.lstsq(y, label, rcond=None)[0].T
    exact = -np.linalg.inv(covariance + sigma**2 * np.eye(4))
    np.testing.assert_allclose(slope, exact, atol=0.03 * np.abs(exact).max())
    assert np.mean(sample.forces**2) == pytest.approx(
        label_mean_square(mixing, moment, sigma, UNIT_KT).mean(), rel=0.01
    )
    # for exact forces −Kx the best W is (1/σ²)(K + 1/σ²)⁻¹
    np.testing.assert_allclose(mixing, np.linalg.inv(stiffness * sigma**2 + np.eye(4)), atol=0.03)


def test_no_other_mixing_has_a_smaller_mean_square() -> None:
    random = np.random.default_rng(4)
    root = random.normal(size=(3, 3))
    moment = root @ root.T
    best = optimal_mixing(moment, 0.7, UNIT_KT, 0.0)
    least = label_mean_square(best, moment, 0.7, UNIT_KT).sum()
    for _ in range(20):
        other = best + random.normal(0, 0.05, best.shape)
        assert label_mean_square(other, moment, 0.7, UNIT_KT).sum() > least


@settings(max_examples=20, deadline=None)
@given(sigma=st.floats(1e-3, 0.1), n_beads=st.integers(1, 6), seed=st.integers(0, 1000))
def test_score_has_zero_mean_and_obeys_the_virial(sigma: float, n_beads: int, seed: int) -> None:
    frames = BeadFrames(np.zeros((4000, n_beads, 3)), np.zeros((4000, n_beads, 3)), np.ones(4000))
    sample = NoiseKernel(sigma, 300.0, None).sample(frames, stream(seed, "test"))
    score = sample.forces / kT(300.0)
    assert np.abs(score.mean()) * sigma < 5 / np.sqrt(score.size)
    virial = np.sum(score * sample.positions, axis=(1, 2)).mean()
    assert virial == pytest.approx(-3 * n_beads, rel=0.1)


def test_forces_are_the_gradient_of_the_log_density() -> None:
    kernel, key = NoiseKernel(0.01, 300.0, None), np.random.default_rng(0)
    condition = BeadFrames(key.normal(size=(1, 3, 3)), np.zeros((1, 3, 3)), np.ones(1))
    sample = kernel.sample(condition, stream(0, "test"))
    shift = np.zeros((1, 3, 3))
    shift[0, 1, 2] = 1e-5

    def log_density(y: np.ndarray) -> float:
        return float(-0.5 * np.sum((y - condition.positions) ** 2) / 0.01**2)

    slope = (log_density(sample.positions + shift) - log_density(sample.positions - shift)) / 2e-5
    assert sample.forces[0, 1, 2] == pytest.approx(kT(300.0) * slope, rel=1e-5)
    normalisation = -9 * np.log(0.01 * np.sqrt(2 * np.pi))
    assert sample.log_density[0] == pytest.approx(log_density(sample.positions) + normalisation, rel=1e-6)


@pytest.mark.parametrize(
    "kernel", [MappedForces(), NoiseKernel(0.01, 300.0, None), NoiseKernel(0.01, 300.0, 0.5 * np.eye(2))]
)
def test_the_same_key_gives_the_same_draws_and_bad_frames_fail(kernel: Kernel) -> None:
    random = np.random.default_rng(0)
    positions, forces = random.normal(size=(2, 5, 2, 3))
    positions[3] = forces[3] = np.nan
    frames = BeadFrames(positions, forces, np.ones(5))
    first, second = (kernel.sample(frames, stream(7, "draws")) for _ in range(2))
    np.testing.assert_array_equal(first.positions, second.positions)
    np.testing.assert_array_equal(first.forces, second.forces)
    assert first.failed.tolist() == [False, False, False, True, False]


def test_mixing_without_forces_is_refused() -> None:
    with pytest.raises(MissingForces, match="noise kernel without forces"):
        NoiseKernel(0.01, 300.0, np.eye(2)).label(np.zeros((1, 2, 3)), None)


def test_a_moment_that_is_not_positive_is_refused() -> None:
    with pytest.raises(FitFailed, match="not positive"):
        optimal_mixing(np.array([[-1e9]]), 0.01, 300.0, 0.0)


def test_full_mixing_is_the_mapped_force() -> None:
    score, forces = np.random.default_rng(0).normal(size=(2, 4, 2, 3))
    np.testing.assert_allclose(mixed_force(score, forces, np.eye(2)), forces)


@pytest.mark.data
@pytest.mark.parametrize(
    ("sigma", "rms_score", "rms_label", "diagonal"),
    [
        (0.001, 59.7, 24.11, (0.81, 0.86, 0.84, 0.81, 0.86)),
        (0.002, 29.83, 19.23, (0.53, 0.63, 0.59, 0.54, 0.63)),
        (0.005, 11.95, 10.64, (0.17, 0.25, 0.21, 0.18, 0.24)),
        (0.01, 5.96, 5.76, (0.05, 0.08, 0.07, 0.06, 0.08)),
    ],
)
def test_mixing_on_explicit_water_data_meets_its_anchors(
    data_folder, sigma: float, rms_score: float, rms_label: float, diagonal: tuple[float, ...]
) -> None:
    """Anchors in kcal/mol/Angstrom, with kT = 0.59616 kcal/mol."""
    unit = 41.84
    forces = np.load(data_folder / "ala2_5bead" / "ala2_forces.npy").astype(np.float64) * unit
    temperature_K = 0.59616 * 4.184 / BOLTZMANN
    moment = np.einsum("fba,fca->bc", forces, forces) / (3 * len(forces))
    mixing = optimal_mixing(moment, sigma, temperature_K, 0.0)
    assert kT(temperature_K) / sigma / unit == pytest.approx(rms_score, rel=0.005)
    rms = np.sqrt(label_mean_square(mixing, moment, sigma, temperature_K).mean())
    assert rms / unit == pytest.approx(rms_label, rel=0.005)
    np.testing.assert_allclose(np.diag(mixing), diagonal, atol=0.011)
