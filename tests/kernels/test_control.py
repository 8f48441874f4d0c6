"""Control variates: the mean force stays, the mean square falls, by numbers that are known without sampling."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from gaussians import UNIT_KT, frames, network, on_axes, tensor

from hpc_cg.errors import BadFrames, FitFailed, TooFewFrames
from hpc_cg.kernels.control import LabelMoments, Labels, fit, judge, labels
from hpc_cg.kernels.density import Draw
from hpc_cg.kernels.gaussian import GaussianKernel
from hpc_cg.kernels.mixing import label_mean_square, optimal_mixing
from hpc_cg.mapping.moments import ForceMoments
from hpc_cg.randomness import stream

SIGMA = 0.3
KEY = stream(0, "nothing here is random")


def linear(gain: float, variance: float) -> GaussianKernel:
    """N(y; gain c, variance) of one bead, on each axis."""
    return GaussianKernel(gain * np.eye(3), np.zeros(3), variance * np.eye(3), centred=False)


def links_of(kernels: list[GaussianKernel], *positions: np.ndarray) -> list[Draw]:
    """The densities of a chain at given frames."""
    ends = pairwise([tensor(x) for x in positions])
    return [kernel.at(y, c, KEY) for kernel, (c, y) in zip(kernels, ends, strict=True)]


def exact_moments(kernels: list[GaussianKernel], law: list[tuple[float, float]]) -> tuple[LabelMoments, np.ndarray]:
    """Moments of labels of one bead without sampling, and the products ⟨R label⟩, ⟨R Z⟩ ... over ⟨R²⟩.

    A chain S → ... → R with S ~ N(0, 1), each frame gain · (the one before) + √variance ξ by ``law``, the atomistic
    force −S + ξ. Everything is linear in the independent ξ, so moments follow from what each alone makes.
    """
    units = np.eye(len(law) + 2)
    chain = [units[0]]
    for (gain, variance), own in zip(law, units[1:], strict=False):
        chain.append(gain * chain[-1] + np.sqrt(variance) * own)
    positions = [np.stack([x, 0 * x, 0 * x], axis=1)[:, None] for x in chain]
    found = labels(
        links_of(kernels, *positions), -positions[0] + units[-1][:, None, None] * [1.0, 0, 0], UNIT_KT, False
    )
    rows = np.stack([found.forces[:, 0, 0], *(z[:, 0, 0] for z in found.variates)])
    moments = LabelMoments(ForceMoments(1.0, 3 * rows @ rows.T), 1, False)
    return moments, rows @ chain[-1] / (chain[-1] @ chain[-1])


REVERSE = (1 / (1 + SIGMA**2), SIGMA**2 / (1 + SIGMA**2))
"""Gain and variance of what undoes the noise on N(0, 1)."""


def noise_and_reverse() -> list[GaussianKernel]:
    return [GaussianKernel.noise(1, SIGMA, centred=False), linear(*REVERSE)]


@pytest.mark.parametrize(
    ("used", "mean_square", "weights"),
    [((), 12.11, (0, 0)), ((0,), 6.316, (0.522, 0)), ((1,), 12.11, (0, 0)), ((0, 1), 1.73, (0.935, 0.792))],
)
def test_the_one_dimensional_case_has_the_known_numbers(
    used: tuple[int, ...], mean_square: float, weights: tuple[float, float]
) -> None:
    moments, slopes = exact_moments(noise_and_reverse(), [(1.0, SIGMA**2), REVERSE])
    controls = fit(moments, used)
    assert controls.mean_square(moments)[0] == pytest.approx(mean_square, abs=0.006)
    np.testing.assert_allclose(controls.matrices.ravel(), weights, atol=0.0005)
    slope = slopes[0] + controls.matrices.ravel() @ slopes[1:]
    assert slope == pytest.approx(-1, abs=1e-12)
    np.testing.assert_allclose(slopes[1:], 0, atol=1e-12)  # so for any weights


def test_the_same_numbers_come_from_formulas_on_paper() -> None:
    gain, variance = REVERSE
    moments, _ = exact_moments(noise_and_reverse(), [(1.0, SIGMA**2), REVERSE])
    # label −r/V; Z₁ = −n/σ² + A r/V; Z₂ = −S + φ + n/σ²; r, n, S, φ independent
    label, first, second = 1 / variance, 1 / SIGMA**2 + gain**2 / variance, 2 + 1 / SIGMA**2
    exact = [[label, -gain / variance, 0], [-gain / variance, first, -1 / SIGMA**2], [0, -1 / SIGMA**2, second]]
    np.testing.assert_allclose(moments.mean, exact, rtol=1e-9, atol=1e-9)
    assert fit(moments, (0,)).mean_square(moments)[0] == pytest.approx(label - (gain / variance) ** 2 / first)


def test_draws_of_the_chain_have_the_exact_moments() -> None:
    n = 100_000
    clean = np.random.default_rng(1).normal(size=(n, 1, 3))
    forces = -clean + np.random.default_rng(2).normal(size=clean.shape)
    noise, reverse = noise_and_reverse()
    noised = noise.draw(tensor(clean), stream(3, "noise"))
    drawn = reverse.draw(noised.positions, stream(4, "reverse"))
    moments = labels([noised, drawn], forces, UNIT_KT, False).moments()
    exact, _ = exact_moments(noise_and_reverse(), [(1.0, SIGMA**2), REVERSE])
    np.testing.assert_allclose(moments.mean, exact.mean, atol=0.15)


def test_for_the_noise_kernel_the_variate_is_the_mapped_force_and_the_weight_that_of_its_mixing() -> None:
    random = np.random.default_rng(0)
    root = random.normal(size=(3, 3))
    second, one = 40 * root @ root.T, np.eye(3)
    c = (1 / SIGMA) ** 2
    for ridge in (0.0, 2.5):
        # ⟨η η⟩ = c, ⟨η (F − η)⟩ = −c, ⟨(F − η)(F − η)⟩ = M + c: what ``mixing.py`` does in closed form
        gram = np.block([[c * one, -c * one], [-c * one, second + c * one]])
        moments = LabelMoments(ForceMoments(1.0, 3 * gram), 3, False)
        controls, mixing = fit(moments, (0,), ridge), optimal_mixing(second, SIGMA, UNIT_KT, ridge)
        np.testing.assert_allclose(controls.matrices[0], mixing, rtol=1e-12)
        exact = label_mean_square(mixing, second, SIGMA, UNIT_KT)
        np.testing.assert_allclose(controls.mean_square(moments), exact, rtol=1e-12)
    clean, forces, noise = random.normal(size=(3, 5, 3, 3))
    found = labels(links_of([GaussianKernel.noise(3, SIGMA, False)], clean, clean + noise), forces, UNIT_KT, False)
    np.testing.assert_allclose(found.forces, -noise / SIGMA**2, rtol=1e-9)
    np.testing.assert_allclose(found.variates[0], forces + noise / SIGMA**2, rtol=1e-9)


def two_wells(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A density of one coordinate and the derivative of its logarithm."""
    parts = np.stack([0.6 * np.exp(-((x + 0.8) ** 2) / 0.5), 0.4 * np.exp(-((x - 1) ** 2) / 0.18)])
    slopes = np.stack([-4 * (x + 0.8), -(x - 1) / 0.09])
    return parts.sum(0) / (0.6 * np.sqrt(0.5 * np.pi) + 0.4 * np.sqrt(0.18 * np.pi)), (parts * slopes).sum(
        0
    ) / parts.sum(0)


def normal(x: np.ndarray, variance: float) -> np.ndarray:
    return np.exp(-(x**2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)


def test_any_weights_keep_the_mean_force_of_what_a_wrong_kernel_draws() -> None:
    """By quadrature: data in two wells, undone by a kernel that is right for a Gaussian only."""
    s, z = np.meshgrid(np.linspace(-5, 5, 801), np.linspace(-5, 5, 801), indexing="ij")
    (p, force), (gain, variance) = two_wells(s), REVERSE
    at = np.array([-1.3, -0.2, 0.3, 1.1])

    def density(r: np.ndarray) -> np.ndarray:
        return p * normal(z - s, SIGMA**2) * normal(r[:, None, None] - gain * z, variance)

    total = density(at).sum((1, 2))
    exact = (np.log(density(at + 1e-4).sum((1, 2))) - np.log(density(at - 1e-4).sum((1, 2)))) / 2e-4
    for r, weights, mean_force in zip(at, density(at) / total[:, None, None], exact, strict=True):
        chosen = weights > 1e-14
        clean, noised = (np.repeat(x[chosen][:, None, None], 3, axis=2) for x in (s, z))
        links = links_of(noise_and_reverse(), clean, noised, np.full_like(clean, r))
        found = labels(links, np.repeat(force[chosen][:, None, None], 3, axis=2), UNIT_KT, False)
        means = [float(weights[chosen] @ x[:, 0, 0]) for x in (found.forces, *found.variates)]
        np.testing.assert_allclose(means, [mean_force, 0, 0], atol=1e-5)


def test_transitions_are_exact_for_own_draws_and_for_a_trajectory_only_with_the_right_kernel() -> None:
    """An Ornstein–Uhlenbeck process of variance 1 and its transitions after a time in which e⁻ᵗ = 0.6."""
    truth, wrong = (0.6, 0.64), (0.5, 0.9)
    _, right = exact_moments([linear(*truth)], [truth])
    np.testing.assert_allclose(right, [-1, 0], atol=1e-12)
    _, own = exact_moments([linear(*wrong)], [wrong])
    np.testing.assert_allclose(own, [-1 / (0.25 + 0.9), 0], atol=1e-12)  # the force of what it draws
    _, trajectory = exact_moments([linear(*wrong)], [truth])
    # label −(y − a x)/v, Z = −x + φ + a (y − a x)/v, ⟨x|y⟩ = 0.6 y
    np.testing.assert_allclose(trajectory, [-(1 - 0.3) / 0.9, -0.6 + 0.5 * (1 - 0.3) / 0.9], atol=1e-12)
    assert abs(trajectory[0] + 1) > 0.2 and abs(trajectory[1]) > 0.2


def harmonic(centred: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames of three beads, their forces with noise on them, and the covariance of a frame's beads."""
    covariance = network(3, 1)
    keep = np.eye(3) - (1 / 3 if centred else 0)
    clean = frames(on_axes(keep @ covariance @ keep), 60_000, seed=1)
    exact = -np.linalg.pinv(keep @ covariance @ keep, rcond=1e-10)
    return clean, exact @ clean + np.random.default_rng(2).normal(0, 2, clean.shape), keep @ covariance @ keep


def slope(positions: np.ndarray, forces: np.ndarray) -> np.ndarray:
    """Least squares of forces on positions, bead by bead; of least norm where positions are centred."""
    x, f = (a.transpose(0, 2, 1).reshape(-1, a.shape[1]) for a in (positions, forces))
    return np.linalg.lstsq(x, f, rcond=1e-6)[0].T


def chains(centred: bool, covariance: np.ndarray) -> dict[str, tuple[list[GaussianKernel], np.ndarray]]:
    """Chains of kernels, and the covariance of the frames that each draws."""
    noise, zero, one = GaussianKernel.noise(3, SIGMA, centred), np.zeros((3, 3)), np.eye(3)
    keep = one - (1 / 3 if centred else 0)
    reverse = GaussianKernel.reverse(zero, on_axes(covariance), SIGMA, centred)
    poor = GaussianKernel.reverse(zero, on_axes(0.6 * one), SIGMA, centred)
    memory, noised = 0.6 / 0.69, covariance + SIGMA**2 * keep
    transition = GaussianKernel(on_axes(0.5 * one), np.zeros(9), on_axes(0.75 * covariance), centred)
    return {
        "noise": ([noise], noised),
        "reverse": ([noise, reverse], covariance),
        "a poor reverse": ([noise, poor], memory**2 * noised + SIGMA**2 * memory * keep),
        "transition": ([transition], covariance),
        "three links": ([noise, reverse, noise], noised),
    }


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("name", ["noise", "reverse", "a poor reverse", "transition", "three links"])
def test_labels_of_any_kernel_regress_to_the_mean_force_and_the_naive_sum_does_not(name: str, centred: bool) -> None:
    clean, forces, covariance = harmonic(centred)
    kernels, drawn = chains(centred, covariance)[name]
    links: list[Draw] = []
    for number, kernel in enumerate(kernels):
        links.append(kernel.draw(links[-1].positions if links else tensor(clean), stream(number, name)))
    exact = -np.linalg.pinv(drawn, rcond=1e-10)
    found, positions = labels(links, forces, UNIT_KT, centred), links[-1].positions.numpy()
    half = np.arange(len(clean)) < 30_000
    chosen = judge(found.moments(half.astype(float)), found.moments((~half).astype(float)))
    assert [one.used for one in chosen][:2] == [(), (0,)] and len(chosen) == 2 ** len(kernels)
    for one in chosen:
        label = one.controls.apply(found)
        np.testing.assert_allclose(slope(positions, label), exact, atol=0.035 * np.abs(exact).max())
        assert one.train == pytest.approx(one.controls.mean_square(found.moments(half.astype(float))).mean())
        assert one.held_out == pytest.approx(np.mean(label[~half] ** 2))
        assert one.held_out == pytest.approx(one.train, rel=0.05)
        if centred:
            np.testing.assert_allclose(label.sum(axis=1), 0, atol=1e-9)
    assert chosen[-1].held_out < 0.93 * chosen[0].held_out
    naive = slope(positions, found.forces + forces)
    assert np.abs(naive - exact).max() > 0.2 * np.abs(exact).max()


def random_labels(n_frames: int, n_beads: int, centred: bool, seed: int) -> Labels:
    values = np.random.default_rng(seed).normal(size=(3, n_frames, n_beads, 3))
    values[0] -= 0.5 * values[1]
    if centred:
        values -= values.mean(axis=2, keepdims=True)
    return Labels(values[0], (values[1], values[2]), np.zeros(n_frames, dtype=bool), centred)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_no_other_weights_make_it_smaller(centred: bool, ridge: float) -> None:
    moments = random_labels(200, 4, centred, seed=1).moments()
    best = fit(moments, (0, 1), ridge)

    def cost(matrices: np.ndarray) -> float:
        return float(type(best)(matrices).mean_square(moments).sum() + ridge * np.sum(matrices**2))

    random = np.random.default_rng(0)
    for _ in range(20):
        step = random.normal(0, 0.03, best.matrices.shape)
        assert cost(best.matrices + step) > cost(best.matrices) - 1e-12
    if centred:
        np.testing.assert_allclose(best.matrices.sum(axis=1), 0, atol=1e-12)


def test_moments_add_up_with_weights_and_leave_out_frames_that_failed() -> None:
    found = random_labels(90, 3, False, seed=2)
    weights = np.random.default_rng(3).integers(0, 3, 90).astype(np.float64)
    found.failed[5], found.forces[5] = True, np.nan
    weights[5] = 2

    def rows(chosen: np.ndarray) -> Labels:
        return Labels(found.forces[chosen], tuple(z[chosen] for z in found.variates), found.failed[chosen], False)

    first, rest = np.arange(40), np.arange(40, 90)
    parts = rows(first).moments(weights[first]) + rows(rest).moments(weights[rest])
    repeated = rows(np.repeat(np.arange(90), (weights * ~found.failed).astype(int))).moments()
    assert parts.sums.count == repeated.sums.count == weights.sum() - 2
    np.testing.assert_allclose(parts.sums.gram, repeated.sums.gram, rtol=1e-12)
    with pytest.raises(AssertionError, match="other labels"):
        _ = parts + random_labels(9, 3, True, seed=2).moments()


def test_variates_without_forces_are_those_that_need_none() -> None:
    clean, noised, drawn = np.random.default_rng(0).normal(size=(3, 6, 1, 3))
    links = links_of(noise_and_reverse(), clean, noised, drawn)
    without, with_forces = (labels(links, forces, UNIT_KT, False) for forces in (None, -clean))
    assert (len(without.variates), len(with_forces.variates)) == (1, 2)
    np.testing.assert_array_equal(without.variates[0], with_forces.variates[0])


def test_frames_fail_where_a_link_failed_or_forces_are_no_numbers() -> None:
    clean, noised, drawn = np.random.default_rng(0).normal(size=(3, 6, 1, 3))
    forces = -clean
    noised[1, 0, 0] = forces[4, 0, 2] = np.nan
    links = links_of(noise_and_reverse(), clean, noised, drawn)
    found = labels(links, forces, UNIT_KT, False)
    assert np.flatnonzero(found.failed).tolist() == [1, 4]
    assert found.moments().sums.count == 4
    assert labels(links, None, UNIT_KT, False).failed.sum() == 1


@pytest.mark.parametrize("spoil", [lambda z: z[0], lambda z: 2 * z[0]])
def test_a_variate_that_copies_another_is_refused_without_a_ridge(spoil: Callable[[tuple], np.ndarray]) -> None:
    found = random_labels(50, 2, False, seed=4)
    copied = Labels(found.forces, (found.variates[0], spoil(found.variates)), found.failed, False).moments()
    with pytest.raises(FitFailed, match="a ridge above 0"):
        fit(copied, (0, 1))
    assert np.isfinite(fit(copied, (0, 1), 1e-3).matrices).all()


def test_too_few_frames_and_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(FitFailed, match="fewer frames than beads"):
        fit(random_labels(1, 4, False, seed=0).moments(), (0,))
    empty = random_labels(0, 4, False, seed=0).moments()
    with pytest.raises(TooFewFrames, match="no frame that has one"):
        fit(empty, (0,))
    broken = random_labels(5, 4, False, seed=0)
    broken.variates[0][2, 0, 0] = np.inf
    with pytest.raises(BadFrames):
        broken.moments()
