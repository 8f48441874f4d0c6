"""Arrays with their rates of change along several directions: forward differentiation, which can be walked back.

A rate has the axis of directions in front of the value's axes. Products and sums are ordinary tensor operations; the
activation is one function with a hand-written way back, because as single operations it would take most of the time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


@dataclass(frozen=True)
class Dual:
    """A value, and its rates of change along directions (None: it does not change)."""

    value: Float[Tensor, "*axes"]
    rate: Float[Tensor, "direction *axes"] | None = None

    def __add__(self, other: "Dual") -> "Dual":
        if self.rate is None or other.rate is None:
            return Dual(self.value + other.value, other.rate if self.rate is None else self.rate)
        return Dual(self.value + other.value, self.rate + other.rate)

    def __mul__(self, other: "Dual") -> "Dual":
        rates = [a.rate * b.value for a, b in ((self, other), (other, self)) if a.rate is not None]
        return Dual(self.value * other.value, sum(rates[1:], rates[0]) if rates else None)

    def linear(self, weight: Float[Tensor, "out feature"], bias: Float[Tensor, "out"] | None = None) -> "Dual":
        """A linear map of the last axis."""
        rate = None if self.rate is None else functional.linear(self.rate, weight)
        return Dual(functional.linear(self.value, weight, bias), rate)

    def each(self, linear: Callable[[Tensor], Tensor]) -> "Dual":
        """The same linear map of value and rates; it counts axes from the last."""
        return Dual(linear(self.value), None if self.rate is None else linear(self.rate))

    def beside(self, other: "Dual") -> "Dual":
        """Joined along the last axis; both have rates, or neither."""
        rate = None if self.rate is None or other.rate is None else torch.cat((self.rate, other.rate), -1)
        return Dual(torch.cat((self.value, other.value), -1), rate)

    def through(self, value: Tensor, slope: Tensor) -> "Dual":
        """A function of one number, from its value and slope here."""
        return Dual(value, None if self.rate is None else slope * self.rate)

    def silu(self) -> "Dual":
        """x σ(x)."""
        if self.rate is None:
            return Dual(functional.silu(self.value))
        return Dual(*_SiLU.apply(self.value, self.rate))

    def sigmoid(self) -> "Dual":
        """1 / (1 + exp(−x))."""
        value = torch.sigmoid(self.value)
        return self.through(value, value * (1 - value))

    def tanh(self) -> "Dual":
        """The hyperbolic tangent."""
        value = torch.tanh(self.value)
        return self.through(value, 1 - value.square())


class _SiLU(torch.autograd.Function):
    """y = silu(a) and silu'(a) b, b along directions; the way back is written out, once."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        gate = torch.sigmoid(a)
        value, rest = a * gate, 1 - gate
        slope = torch.addcmul(gate, value, rest)
        bend = torch.addcmul(2 * gate, value, rest - gate).mul_(rest)
        ctx.save_for_backward(slope, bend, b)
        return value, slope * b

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pull_value: Tensor, pull_rate: Tensor) -> tuple[Tensor, Tensor]:
        slope, bend, b = ctx.saved_tensors
        bent = (pull_rate * b).sum(0) if len(b) > 1 else pull_rate[0] * b[0]
        return torch.addcmul(bent.mul_(bend), pull_value, slope), pull_rate * slope
