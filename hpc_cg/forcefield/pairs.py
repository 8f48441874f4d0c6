"""The two sums over pairs that a convolution on all pairs is made of, each the derivative of the other.

    gather(W, x)_i = sum_j W_ij * x_j,      couple(a, b)_ij = a_i * b_j + a_j * b_i

For symmetric W, d gather(W, x) = gather(dW, x) + gather(W, dx), and g . gather(W, x) = couple(g, x) . W: so
either has a gradient made of the other, to any order. On a CPU they run pair by pair, in place, because a row
then stays in cache; where a row is short, with all later beads at once, and on an accelerator all pairs at once,
because every call has a price.
"""

from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

SHORT_ROW = 16_384
"""Numbers of a row (frame feature) below which a CPU takes all later beads of a bead at once."""


def later_pairs(n_beads: int) -> list[slice]:
    """The places of the pairs (i, j > i), for each bead i: they follow one another."""
    ends = [0]
    for i in range(n_beads):
        ends.append(ends[-1] + n_beads - 1 - i)
    return [slice(first, last) for first, last in pairwise(ends)]


def all_pairs(n_beads: int) -> list[tuple[int, int]]:
    """Every pair of beads once, (i, j) with i < j."""
    return [(i, j) for i in range(n_beads) for j in range(i + 1, n_beads)]


def gather(
    kernel: Float[Tensor, "pair frame feature"], x: Float[Tensor, "bead frame feature"]
) -> Float[Tensor, "bead frame feature"]:
    """What every bead receives from all others."""
    return _Gather.apply(kernel, x)


def couple(
    a: Float[Tensor, "bead frame feature"], b: Float[Tensor, "bead frame feature"]
) -> Float[Tensor, "pair frame feature"]:
    """The symmetric product of the two ends of every pair."""
    return _Couple.apply(a, b)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(kernel, x)
        received = torch.zeros_like(x, memory_format=torch.contiguous_format)
        if x.device.type != "cpu":
            first, second = torch.triu_indices(len(x), len(x), 1, device=x.device)
            return received.index_add_(0, first, kernel * x[second]).index_add_(0, second, kernel * x[first])
        if x[0].numel() < SHORT_ROW:
            for i, places in enumerate(later_pairs(len(x))):
                received[i] += (kernel[places] * x[i + 1 :]).sum(0)
                received[i + 1 :].addcmul_(kernel[places], x[i])
            return received
        for place, (i, j) in enumerate(all_pairs(len(x))):
            received[i].addcmul_(kernel[place], x[j])
            received[j].addcmul_(kernel[place], x[i])
        return received

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        kernel, x = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            couple(grads[0], x) if wanted[0] else None,
            gather(kernel, grads[0]) if wanted[1] else None,
        )


class _Couple(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        if a.device.type != "cpu":
            first, second = torch.triu_indices(len(a), len(a), 1, device=a.device)
            return torch.addcmul(a[first] * b[second], a[second], b[first])
        pairs = all_pairs(len(a))
        products = a.new_empty(len(pairs), *a.shape[1:])
        if a[0].numel() < SHORT_ROW:
            for i, places in enumerate(later_pairs(len(a))):
                torch.mul(a[i + 1 :], b[i], out=products[places]).addcmul_(a[i], b[i + 1 :])
            return products
        for place, (i, j) in enumerate(pairs):
            torch.mul(a[i], b[j], out=products[place]).addcmul_(a[j], b[i])
        return products

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return gather(grads[0], b) if wanted[0] else None, gather(grads[0], a) if wanted[1] else None
