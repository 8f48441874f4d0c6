"""The velocity field: its symmetries, and its derivatives against torch's own."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from hpc_cg.kernels import egnn
from hpc_cg.kernels.egnn import EGNN, EGNNConfig
from hpc_cg.kernels.flow import VelocityField

TYPES = (0, 1, 1, 2)


def network(dtype: torch.dtype = torch.float64) -> EGNN:
    """A small network whose layers move beads by as much as the distances between them."""
    field = EGNN(TYPES, EGNNConfig(n_layers=3, n_hidden=8), seed=1)
    for layer in field.layers:
        torch.nn.init.normal_(layer.shift_out.weight, generator=torch.Generator().manual_seed(2))
    return field.to(dtype).requires_grad_(False)


def frames(n_frames: int = 5) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(0, 0.3, (n_frames, len(TYPES), 3)))


def test_turned_and_shifted_frames_have_turned_velocities() -> None:
    field, x = network(), frames()
    turn = torch.from_numpy(Rotation.random(random_state=0).as_matrix())
    torch.testing.assert_close(field(0.3, x @ turn.T + 1.7), field(0.3, x) @ turn.T, rtol=1e-9, atol=1e-12)


def test_mirrored_frames_have_mirrored_velocities() -> None:
    field, x = network(), frames()
    torch.testing.assert_close(field(0.3, -x), -field(0.3, x), rtol=1e-9, atol=1e-12)


def test_like_beads_may_change_places_and_unlike_ones_may_not() -> None:
    field, x = network(), frames()
    like, unlike = [0, 2, 1, 3], [1, 0, 2, 3]
    torch.testing.assert_close(field(0.3, x[:, like]), field(0.3, x)[:, like], rtol=1e-9, atol=1e-12)
    assert (field(0.3, x[:, unlike]) - field(0.3, x)[:, unlike]).abs().max() > 1e-3


def test_velocities_have_no_mean_and_depend_on_time() -> None:
    field, x = network(), frames()
    assert field(0.3, x).mean(1).abs().max() < 1e-12
    assert (field(0.3, x) - field(0.9, x)).abs().max() > 1e-3


def test_every_frame_may_have_its_own_time() -> None:
    field, x = network(), frames()
    times = torch.linspace(0, 1, len(x), dtype=x.dtype)
    each = torch.cat([field(float(time), frame[None]) for time, frame in zip(times, x, strict=True)])
    torch.testing.assert_close(field(times, x), each)


def test_derivatives_are_those_of_the_jacobian() -> None:
    field, x = network(), frames(1)
    covectors, probes = frames(1).flip(1), torch.stack((frames(1).flip(2), frames(1).square()))

    def jacobian(x: Tensor) -> Tensor:
        with torch.enable_grad():
            return torch.autograd.functional.jacobian(lambda y: field(0.4, y), x, create_graph=True).reshape(12, 12)

    pull = field.pull(0.4, x, covectors)
    torch.testing.assert_close(pull.velocity, field(0.4, x))
    torch.testing.assert_close(pull.pulled.flatten(), jacobian(x).T @ covectors.flatten())
    moving, flat = x.clone().requires_grad_(), probes.reshape(2, 12)
    value = torch.einsum("pi,ij,pj->", flat, jacobian(moving), flat)
    (gradient,) = torch.autograd.grad(value, moving)
    divergence = field.divergence(0.4, x, probes)
    torch.testing.assert_close(divergence.value[0], value.detach())
    torch.testing.assert_close(divergence.gradient, gradient)


def test_shifts_are_no_direction_of_change() -> None:
    field, x = network(), frames(2)
    along = torch.ones(1, 2, len(TYPES), 3, dtype=x.dtype)
    assert field.divergence(0.4, x, along).value.abs().max() < 1e-12
    assert field.pull(0.4, x, along[0]).pulled.abs().max() < 1e-12


def test_tiles_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    field, x, probes = network(), frames(), frames().expand(2, -1, -1, -1)
    times = torch.linspace(0, 1, len(x), dtype=x.dtype)
    with torch.no_grad():
        whole = (field(times, x), *field.pull(times, x, x), *field.divergence(times, x, probes))
        monkeypatch.setitem(egnn.TILE, "cpu", 25)
        parts = (field(times, x), *field.pull(times, x, x), *field.divergence(times, x, probes))
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)


def test_single_precision_agrees_with_double() -> None:
    field: VelocityField = network(torch.float32)
    x, probes = frames().float(), frames().expand(2, -1, -1, -1)
    single, double = field.divergence(0.4, x, probes.float()), network().divergence(0.4, frames(), probes)
    for one, other in zip(single, double, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def test_a_fresh_network_hardly_moves_anything_and_is_decided_by_its_seed() -> None:
    fields = [EGNN(TYPES, EGNNConfig(n_layers=2, n_hidden=8), seed) for seed in (1, 1, 2)]
    first, again, other = (field(0.3, frames().float()) for field in fields)
    assert first.abs().max() < 0.02 * frames().abs().max()
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert (first - other).abs().max() > 0


def test_two_beads_in_one_place_have_finite_derivatives() -> None:
    x = frames(1)
    x[0, 1] = x[0, 0]
    divergence = network().divergence(0.4, x, torch.ones(1, 1, 4, 3, dtype=x.dtype) * x)
    assert divergence.value.isfinite().all() and divergence.gradient.isfinite().all()
