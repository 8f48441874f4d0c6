"""The activation x Φ(x), Φ the normal distribution function, with first and second derivative in few passes.

As single operations its second derivative, which training on gradients needs, takes most of a step's time.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

DENSITY = 1 / math.sqrt(2 * math.pi)


def gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x Φ(x); it can be differentiated twice."""
    return _Gelu.apply(x)


class _Gelu(torch.autograd.Function):
    """x Φ(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return functional.gelu(x)

    @staticmethod
    def backward(ctx: Any, pull: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _Pulled.apply(x, pull)
        return torch.ops.aten.gelu_backward(pull, x)


class _Pulled(torch.autograd.Function):
    """pull · (Φ(x) + x φ(x)), whose slope by x is pull · φ(x) (2 − x²)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pull: Tensor) -> Tensor:
        ctx.save_for_backward(x, pull)
        return torch.ops.aten.gelu_backward(pull, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pull_back: Tensor) -> tuple[Tensor, Tensor]:
        x, pull = ctx.saved_tensors
        square = x * x
        bend = torch.exp(-0.5 * square).mul_(square.neg_().add_(2.0)).mul_(pull).mul_(pull_back).mul_(DENSITY)
        return bend, torch.ops.aten.gelu_backward(pull_back, x)
