"""The graph transformer: its published form, its symmetries, and its derivatives."""

import numpy as np
import pytest
import torch
from exact_noise import published_potential
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional

from hpc_cg.diffusion.gelu import gelu
from hpc_cg.diffusion.transformer import GraphTransformer, TransformerConfig

TYPES = (0, 1, 1, 2)
FORMS = ("displacement", "squared-distance")
LEVELS = torch.tensor([3, 700, 20, 0])

forms = pytest.mark.parametrize("form", FORMS)
level = pytest.mark.parametrize("level", [20, LEVELS], ids=["one", "each"])


def network(form: str, dtype: torch.dtype = torch.float64) -> GraphTransformer:
    """A small network with normal weights, so that what it computes is far from linear."""
    config = TransformerConfig(width=8, n_layers=3, n_heads=2, head_width=4, edges=form)  # type: ignore[arg-type]
    made = GraphTransformer(TYPES, config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return made.to(dtype)


def frames(n_frames: int = 4) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(0, 1, (n_frames, len(TYPES), 3)))


def turn() -> Tensor:
    return torch.from_numpy(Rotation.random(random_state=0).as_matrix())


@forms
@level
def test_it_is_the_published_network(form: str, level: int | Tensor) -> None:
    made, x = network(form), frames().requires_grad_()
    wanted = published_potential(made, x, level)
    torch.testing.assert_close(made.potential(x, level), wanted, rtol=1e-10, atol=1e-12)
    (gradient,) = torch.autograd.grad(wanted.sum(), x)
    with torch.no_grad():
        torch.testing.assert_close(made(x, level).noise, -gradient, rtol=1e-9, atol=1e-11)


@forms
def test_noise_is_minus_the_gradient_of_the_potential(form: str) -> None:
    made, x, h = network(form), frames(2), 1e-5
    noise = made(x, 20).noise.detach()
    for bead, axis in ((0, 0), (1, 2), (3, 1)):
        step = torch.zeros_like(x)
        step[:, bead, axis] = h
        slope = (made.potential(x + step, 20) - made.potential(x - step, 20)) / (2 * h)
        torch.testing.assert_close(-slope, noise[:, bead, axis], rtol=1e-6, atol=1e-8)


@forms
def test_noise_has_no_curl(form: str) -> None:
    made = network(form)
    jacobian = torch.autograd.functional.jacobian(lambda x: made(x, 20).noise, frames(1)).reshape(12, 12)
    assert jacobian.abs().max() > 0.1
    torch.testing.assert_close(jacobian, jacobian.T, rtol=1e-9, atol=1e-11)


@forms
def test_noise_has_no_mean_and_ignores_where_the_frame_is(form: str) -> None:
    made, x = network(form), frames()
    there, here = made(x + 1.7, 20), made(x, 20)
    assert here.noise.mean(1).abs().max() < 1e-12 < here.noise.abs().max()
    torch.testing.assert_close(there.noise, here.noise, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(there.potential, here.potential, rtol=1e-9, atol=1e-11)


def test_with_squared_distances_it_turns_with_the_frame_and_does_not_know_mirror_images() -> None:
    made, x = network("squared-distance"), frames()
    torch.testing.assert_close(made(x @ turn().T, 20).noise, made(x, 20).noise @ turn().T, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(made(-x, 20).noise, -made(x, 20).noise, rtol=1e-9, atol=1e-12)


def test_with_displacements_it_has_to_learn_rotations_and_can_tell_mirror_images() -> None:
    made, x = network("displacement"), frames()
    for other in (x @ turn().T, -x):
        assert (made(other, 20).potential - made(x, 20).potential).abs().max() > 1e-2


@forms
def test_like_beads_may_change_places_and_unlike_ones_may_not(form: str) -> None:
    made, x, like, unlike = network(form), frames(), [0, 2, 1, 3], [1, 0, 2, 3]
    torch.testing.assert_close(made(x[:, like], 20).noise, made(x, 20).noise[:, like], rtol=1e-9, atol=1e-12)
    assert (made(x[:, unlike], 20).noise - made(x, 20).noise[:, unlike]).abs().max() > 1e-2


@forms
def test_every_frame_may_have_its_own_level(form: str) -> None:
    made, x = network(form), frames()
    together = made(x, LEVELS)
    for place, number in enumerate(LEVELS.tolist()):
        alone = made(x[place : place + 1], number)
        torch.testing.assert_close(together.noise[place : place + 1], alone.noise, rtol=1e-9, atol=1e-12)
    assert (made(x, 20).noise - made(x, 700).noise).abs().max() > 1e-2


@forms
def test_without_a_graph_it_predicts_the_same(form: str) -> None:
    made, x = network(form), frames()
    graph = made(x, LEVELS)
    assert graph.noise.requires_grad and graph.potential.requires_grad
    for quiet in (torch.no_grad, torch.inference_mode):
        with quiet():
            found = made(x * 1.0, LEVELS * 1)
            assert not found.noise.requires_grad and not found.potential.requires_grad
            torch.testing.assert_close(found.noise, graph.noise.detach(), rtol=1e-9, atol=1e-12)


@forms
def test_a_loss_of_the_noise_has_the_gradient_of_finite_differences(form: str) -> None:
    made, x, h = network(form), frames(), 1e-5
    parameters = list(made.parameters())

    def loss() -> Tensor:
        return (made(x, LEVELS).noise - x.flip(1)).square().mean()

    gradients = torch.autograd.grad(loss(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * h * direction)
            values.append(float(loss()))
            with torch.no_grad():
                parameter.sub_(sign * h * direction)
        assert float((gradient * direction).sum()) == pytest.approx(
            (values[0] - values[1]) / (2 * h), rel=1e-4, abs=1e-7
        )


def test_the_activation_has_the_derivatives_of_torchs_own() -> None:
    x = torch.linspace(-4, 4, 41, dtype=torch.float64).requires_grad_()
    derivatives = []
    for activation in (gelu, functional.gelu):
        (slope,) = torch.autograd.grad(activation(x).sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad((slope * x.square()).sum(), x)
        derivatives.append((activation(x), slope, bend))
    for found, wanted in zip(*derivatives, strict=True):
        torch.testing.assert_close(found, wanted)


def test_single_precision_agrees_with_double() -> None:
    single, double = (
        network("displacement", d)(frames().to(d), 20).noise.double() for d in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(single, double, rtol=1e-3, atol=1e-4 * float(double.abs().max()))


def test_weights_are_decided_by_the_seed_and_its_description_is_enough() -> None:
    config = TransformerConfig(width=8, n_layers=1, n_heads=2, head_width=4, edges="squared-distance")
    first, again, other = (GraphTransformer(TYPES, config, seed) for seed in (1, 1, 2))
    rebuilt = GraphTransformer.from_description(first.describe())
    rebuilt.load_state_dict(first.state_dict())
    x = frames().float()
    for same in (again, rebuilt):
        torch.testing.assert_close(same(x, 20).noise, first(x, 20).noise, rtol=0, atol=0)
    assert (other(x, 20).noise - first(x, 20).noise).abs().max() > 0
