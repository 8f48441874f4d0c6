"""Integrators against flows that are known."""

import numpy as np
import pytest
import torch
from fields import GaussianField, RoughField, SwellingField
from torch import Tensor

from hpc_cg.kernels.flow import AdaptiveSteps, FixedSteps, Integrator

N_BEADS = 4


def gaussian() -> GaussianField:
    random = np.random.default_rng(0)
    root = random.normal(size=(N_BEADS, N_BEADS))
    centre = np.eye(N_BEADS) - 1 / N_BEADS
    return GaussianField(centre @ root @ root.T @ centre, random.normal(size=(N_BEADS, 3)), 0.5)


def frames(n_frames: int = 3) -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(1)
    x, s = random.normal(size=(2, n_frames, N_BEADS, 3))
    x[:, 0] -= x.sum(1)
    return torch.from_numpy(x), torch.from_numpy(s - s.mean(1, keepdims=True))


def basis(n_frames: int, n_sets: int = 1) -> Tensor:
    directions = torch.eye(3 * N_BEADS, dtype=torch.float64).reshape(-1, 1, N_BEADS, 3)
    return directions.expand(n_sets, -1, n_frames, -1, -1)


def errors(integrator: Integrator) -> tuple[float, float, float]:
    """Of positions, score and log-expansion of the Gaussian field's flow."""
    field, (x, s) = gaussian(), frames()
    centre = field.mean.mean(0)
    start = field.mean - centre + x
    field.mean = field.mean - centre
    carried = integrator.carry(field, start, s, basis(len(x), integrator.n_sets), push=True)
    inverse = torch.linalg.pinv(field.flow_map)
    expansion = 3 * (field.values / (field.values + field.noise))[field.moving].log().sum() / 2
    assert not carried.failed.any()
    return (
        float((carried.positions - field.mean - field.flow_map @ x).abs().max()),
        float((carried.score - inverse @ s).abs().max()),
        float((carried.log_expansion - expansion).abs().max()),
    )


@pytest.mark.parametrize(("method", "order"), [("heun", 2), ("rk4", 4)])
def test_errors_of_fixed_steps_fall_with_their_order(method: str, order: int) -> None:
    coarse, fine = (errors(FixedSteps(method, n, 10.0)) for n in (15, 30))  # type: ignore[arg-type]
    for one, other in zip(coarse[:2], fine[:2], strict=True):
        assert np.log2(one / other) == pytest.approx(order, abs=0.5)


def test_enough_fixed_steps_give_positions_score_and_expansion_exactly() -> None:
    assert max(errors(FixedSteps("rk4", 60, 10.0))) < 1e-6


def test_adaptive_steps_keep_their_tolerance() -> None:
    assert max(errors(AdaptiveSteps(1e-4, 1.0))) < 1e-2
    assert max(errors(AdaptiveSteps(1e-9, 1.0))) < 1e-7


def test_three_nodes_integrate_a_divergence_of_fifth_degree_in_time() -> None:
    x, s = frames()
    for power, error in ((5, 0.0), (6, 1e-3)):
        carried = FixedSteps("rk4", 3, 10.0).carry(SwellingField(power), x, s, basis(len(x), 3), push=True)
        miss = abs(carried.log_expansion[0] - 3 * N_BEADS)
        assert miss < 1e-12 if error == 0.0 else miss > error


@pytest.mark.parametrize("integrator", [FixedSteps("rk4", 30, 10.0), AdaptiveSteps(1e-8, 1.0)])
def test_frames_come_back_to_where_they_started(integrator: Integrator) -> None:
    field, (x, s) = gaussian(), frames()
    x = x + field.mean
    there = integrator.carry(field, x, s, basis(len(x), integrator.n_sets), push=True).positions
    torch.testing.assert_close(integrator.back(field, there), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("integrator", [FixedSteps("rk4", 3, 1e-3), AdaptiveSteps(1e-6, 1.0, max_steps=60)])
def test_frames_that_steps_cannot_follow_fail_alone(integrator: Integrator) -> None:
    x, s = frames(4)
    x[:, 0, 0] = torch.tensor([1.0, -1.0, np.nan, -2.0])
    carried = integrator.carry(RoughField(), x, s, basis(4, integrator.n_sets), push=True)
    assert carried.failed.tolist() == [True, False, True, False]
    torch.testing.assert_close(carried.positions[1::2], x[1::2])
    origin = integrator.back(RoughField(), x)
    assert origin.isfinite().all((1, 2)).tolist() == [False, True, False, True]


def test_adaptive_steps_of_a_frame_do_not_depend_on_its_neighbours() -> None:
    field, (x, s) = gaussian(), frames()
    integrator = AdaptiveSteps(1e-4, 1.0)
    together = integrator.carry(field, x, s, basis(3), push=True)
    alone = [integrator.carry(field, x[i : i + 1], s[i : i + 1], basis(1), push=True) for i in range(3)]
    torch.testing.assert_close(together.positions, torch.cat([one.positions for one in alone]), rtol=1e-12, atol=1e-12)
