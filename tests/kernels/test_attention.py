"""Kernel attention against sums written out, and what does not change it."""

import numpy as np
import torch
from torch import Tensor, nn

from hpc_cg.kernels.attention import (
    ALANINE_LENGTH_SCALES_NM,
    CALPHA_LENGTH_SCALES_NM,
    Block,
    KernelAttention,
    Transformer,
    kernel_weights,
)

N_FRAMES, N_BEADS, WIDTH = 2, 4, 5
SCALES = torch.tensor((0.3, 1.0, 4.0), dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def randomised(module: nn.Module) -> nn.Module:
    """In float64, with all parameters drawn anew."""
    module = module.double()
    with torch.no_grad():
        for place, parameter in enumerate(module.parameters()):
            parameter.copy_(0.5 * random(*parameter.shape, seed=place))
    return module


def test_weights_are_gaussians_of_the_distance_shared_out_among_all_beads() -> None:
    positions = random(N_FRAMES, N_BEADS, 3)
    weights = kernel_weights(positions, SCALES).view(N_FRAMES, N_BEADS, len(SCALES), N_BEADS)
    for frame in range(N_FRAMES):
        for head, scale in enumerate(SCALES):
            for i in range(N_BEADS):
                apart = (positions[frame] - positions[frame, i]).norm(dim=-1)
                row = torch.exp(-((apart / scale) ** 2))
                torch.testing.assert_close(weights[frame, i, head], row / row.sum())


def test_attention_is_the_sum_over_heads_of_a_matrix_times_the_mean_of_the_others() -> None:
    positions, x = random(N_FRAMES, N_BEADS, 3), random(N_FRAMES, N_BEADS, WIDTH, seed=1)
    attention = randomised(KernelAttention(WIDTH, len(SCALES)))
    weights = kernel_weights(positions, SCALES)
    rows = weights.view(N_FRAMES, N_BEADS, len(SCALES), N_BEADS)
    matrices = attention.mix.weight.view(WIDTH, len(SCALES), WIDTH)
    expected = torch.einsum("fihj,fjd,ohd->fio", rows, x, matrices)
    torch.testing.assert_close(attention(x, weights), expected)


def test_a_short_length_scale_looks_at_the_bead_itself_and_a_long_one_at_all_alike() -> None:
    positions = random(N_FRAMES, N_BEADS, 3)
    near, far = kernel_weights(positions, torch.tensor((1e-3, 1e3))).view(N_FRAMES, N_BEADS, 2, N_BEADS).unbind(2)
    torch.testing.assert_close(near, torch.eye(N_BEADS).double().expand_as(near))
    torch.testing.assert_close(far, torch.full_like(far, 1 / N_BEADS), atol=1e-4, rtol=0)


def test_default_length_scales_reach_from_a_bond_to_the_whole() -> None:
    for scales, bond in ((ALANINE_LENGTH_SCALES_NM, 0.15), (CALPHA_LENGTH_SCALES_NM, 0.38)):
        chain = torch.zeros(1, 10, 3)
        chain[0, :, 0] = bond * torch.arange(10)
        weights = kernel_weights(chain, torch.tensor(scales)).view(10, len(scales), 10)
        assert weights[0, 0, 0] > 0.85  # the shortest: mostly the bead itself
        assert weights[0, -1, 4] > 0.05  # the longest: four bonds away
        assert len(scales) == 6


def test_weights_do_not_feel_rotations_and_shifts_and_follow_permutations() -> None:
    positions = random(N_FRAMES, N_BEADS, 3)
    turn = torch.linalg.qr(random(3, 3, seed=2)).Q
    weights = kernel_weights(positions, SCALES)
    torch.testing.assert_close(kernel_weights(positions @ turn.T + 2.0, SCALES), weights)
    order = [2, 0, 3, 1]
    moved = kernel_weights(positions[:, order], SCALES).view(N_FRAMES, N_BEADS, len(SCALES), N_BEADS)
    before = weights.view(N_FRAMES, N_BEADS, len(SCALES), N_BEADS)
    torch.testing.assert_close(moved, before[:, order][..., order])


def test_weights_of_beads_in_one_place_have_a_gradient() -> None:
    positions = torch.zeros(1, 3, 3, requires_grad=True)
    kernel_weights(positions, torch.tensor((0.1, 1.0))).square().sum().backward()
    assert positions.grad is not None
    assert positions.grad.isfinite().all()


def test_a_block_normalises_the_sum_after_each_of_its_two_layers() -> None:
    block = randomised(Block(WIDTH, 7, len(SCALES)))
    assert isinstance(block, Block)
    weights, x = kernel_weights(random(N_FRAMES, N_BEADS, 3), SCALES), random(N_FRAMES, N_BEADS, WIDTH, seed=1)

    def normalised(values: Tensor, layer: nn.LayerNorm) -> Tensor:
        away = values - values.mean(-1, keepdim=True)
        return away / (away.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias

    middle = normalised(x + block.attention(x, weights), block.after_attention)
    hidden = (middle @ block.widen.weight.T + block.widen.bias).clamp_min(0.0)
    end = middle + hidden @ block.narrow.weight.T + block.narrow.bias
    torch.testing.assert_close(block(x, weights), normalised(end, block.after_feedforward))


def test_a_transformer_follows_permutations_of_its_beads() -> None:
    network = randomised(Transformer(6, 3, WIDTH, 7, 11, 2, len(SCALES)))
    positions, features = random(N_FRAMES, N_BEADS, 3), random(N_FRAMES, N_BEADS, 6, seed=1)
    said = network(features, kernel_weights(positions, SCALES))
    order = [3, 1, 0, 2]
    moved = network(features[:, order], kernel_weights(positions[:, order], SCALES))
    torch.testing.assert_close(moved, said[:, order])
    assert said.std() > 0.01
