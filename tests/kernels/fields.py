"""Velocity fields that tests know all about."""

import numpy as np
import torch
from torch import Tensor

from hpc_cg.kernels.flow import Divergence, Pull, Times, VelocityField


class GaussianField(VelocityField):
    """What flow matching finds for frames R ~ N(mean, covariance on each axis) and noise of variance s².

    Frames on the way are R + (1 − t) noise, so v = −(1 − t) s² C(t)⁻¹ (x − mean) with C(t) = covariance + (1 − t)² s²,
    and the flow from 0 to 1 is x − mean -> G (x − mean) with G = (covariance / (covariance + s²))^½. ``covariance``
    leaves out the centre: it has one eigenvalue of zero.
    """

    def __init__(self, covariance: np.ndarray, mean: np.ndarray, noise_variance: float):
        super().__init__()
        values, vectors = np.linalg.eigh(covariance)
        self.moving = torch.from_numpy(values > 1e-9 * values.max())
        self.values = torch.from_numpy(values).where(self.moving, 1.0)
        self.vectors = torch.from_numpy(vectors)
        self.mean, self.noise = torch.from_numpy(mean), noise_variance

    def of_spectrum(self, numbers: Tensor) -> Tensor:
        """The matrix (bead bead) with these eigenvalues, none for the centre."""
        return self.vectors @ torch.diag_embed(numbers * self.moving) @ self.vectors.T

    @property
    def flow_map(self) -> Tensor:
        """G."""
        return self.of_spectrum((self.values / (self.values + self.noise)).sqrt())

    def rate(self, time: Times) -> Tensor:
        """A(t) of v = A (x − mean), for each frame or for all."""
        rest = 1 - torch.as_tensor(time, dtype=torch.float64).reshape(-1, 1)
        return self.of_spectrum(-rest * self.noise / (self.values + rest**2 * self.noise))

    def forward(self, time: Times, positions: Tensor) -> Tensor:
        return self.rate(time) @ (positions - self.mean)

    def pull(self, time: Times, positions: Tensor, covectors: Tensor) -> Pull:
        return Pull(self(time, positions), self.rate(time).mT @ covectors)

    def divergence(self, time: Times, positions: Tensor, probes: Tensor) -> Divergence:
        value = (probes * (self.rate(time) @ probes)).sum((0, 2, 3))
        return Divergence(value, torch.zeros_like(positions))


class SwellingField(VelocityField):
    """v = (power + 1) t^power x: frames swell by a factor e, wherever they are."""

    def __init__(self, power: int):
        super().__init__()
        self.power = power

    def forward(self, time: Times, positions: Tensor) -> Tensor:
        t = torch.as_tensor(time, dtype=positions.dtype).reshape(-1, 1, 1)
        return (self.power + 1) * t**self.power * positions

    def pull(self, time: Times, positions: Tensor, covectors: Tensor) -> Pull:
        return Pull(self(time, positions), self(time, covectors))

    def divergence(self, time: Times, positions: Tensor, probes: Tensor) -> Divergence:
        return Divergence((probes * self(time, probes)).sum((0, 2, 3)), torch.zeros_like(positions))


class RoughField(VelocityField):
    """A field that swings hundreds of times on the way, but only for frames whose first number is positive."""

    def forward(self, time: Times, positions: Tensor) -> Tensor:
        t = torch.as_tensor(time, dtype=positions.dtype).reshape(-1, 1, 1)
        return torch.sin(2e3 * t) * (positions[:, :1, :1] > 0) * torch.ones_like(positions)

    def pull(self, time: Times, positions: Tensor, covectors: Tensor) -> Pull:
        return Pull(self(time, positions), torch.zeros_like(covectors))

    def divergence(self, time: Times, positions: Tensor, probes: Tensor) -> Divergence:
        return Divergence(torch.zeros_like(positions[:, 0, 0]), torch.zeros_like(positions))
