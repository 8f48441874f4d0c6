"""Velocity fields whose flows are known, for tests."""

import numpy as np
import torch
from torch import Tensor, nn

from hpc_cg.kernels.flow import Divergence, Pull, Times


class LinearField(nn.Module):
    """v(t, x) = A(t) (x − centre) + drift, with A acting on beads.

    A comes in the form rate(t) = slope of G(t) times G(t)⁻¹, so x(t) − centre = G(t) (x(0) − centre) where there is no
    drift; G(t) = (1 − t) + t ``last`` is the identity at first.
    """

    def __init__(self, last: np.ndarray, centre: np.ndarray):
        super().__init__()
        self.last, self.centre = torch.from_numpy(last), torch.from_numpy(centre)

    def rate(self, time: Times) -> Tensor:
        """A(t) of shape (frame or 1, bead, bead)."""
        t = torch.as_tensor(time, dtype=torch.float64).reshape(-1, 1, 1)
        one = torch.eye(len(self.last), dtype=torch.float64)
        return (self.last - one) @ torch.linalg.inv((1 - t) * one + t * self.last)

    def forward(self, time: Times, positions: Tensor) -> Tensor:
        return self.rate(time) @ (positions - self.centre)

    def pull(self, time: Times, positions: Tensor, covectors: Tensor) -> Pull:
        return Pull(self(time, positions), self.rate(time).mT @ covectors)

    def divergence(self, time: Times, positions: Tensor, probes: Tensor) -> Divergence:
        value = (probes * (self.rate(time) @ probes)).sum((0, 2, 3))
        return Divergence(value.expand(len(positions)), torch.zeros_like(positions))


class RoughField(nn.Module):
    """A field that no steps follow: it swings thousands of times on the way, faster where x is positive."""

    def forward(self, time: Times, positions: Tensor) -> Tensor:
        t = torch.as_tensor(time, dtype=positions.dtype).reshape(-1, 1, 1)
        return 50 * torch.sin(1e4 * t * (1 + positions.clamp(0, 1))) + 0 * positions

    def pull(self, time: Times, positions: Tensor, covectors: Tensor) -> Pull:
        return Pull(self(time, positions), 0 * covectors)

    def divergence(self, time: Times, positions: Tensor, probes: Tensor) -> Divergence:
        return Divergence(0 * positions[:, 0, 0], 0 * positions)
