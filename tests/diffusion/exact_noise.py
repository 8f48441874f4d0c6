"""Noise predicted exactly, for Gaussian data that look alike from every side; and the published form of the network."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hpc_cg.diffusion.model import DiffusionModel, LevelDraws
from hpc_cg.diffusion.predictor import Level, NoisePredictor
from hpc_cg.diffusion.schedule import CosineSchedule
from hpc_cg.diffusion.transformer import GraphTransformer

SCALE_NM = 0.1
SCHEDULE = CosineSchedule()


def network(n_beads: int, seed: int) -> np.ndarray:
    """A covariance of beads without their mean, the same on every axis; its mean variance is 1."""
    root = np.random.default_rng(seed).normal(size=(n_beads, n_beads))
    keep = np.eye(n_beads) - 1 / n_beads
    covariance = keep @ np.linalg.inv(root @ root.T + 0.5 * np.eye(n_beads)) @ keep
    return covariance * n_beads / np.trace(covariance)


def frames(covariance: np.ndarray, n_frames: int, seed: int) -> Tensor:
    """Frames of that covariance, in units of the scale."""
    variances, modes = np.linalg.eigh(covariance)
    random = np.random.default_rng(seed).normal(size=(n_frames, len(variances), 3))
    return torch.from_numpy((modes * np.sqrt(variances.clip(0))) @ random)


class ExactNoise(NoisePredictor):
    """ε̂ = √(1 − ᾱ) (ᾱ C + 1 − ᾱ)⁻¹ x, times ``strength``."""

    strength: Tensor

    def __init__(self, covariance: np.ndarray, strength: float = 1.0, schedule: CosineSchedule = SCHEDULE):
        super().__init__()
        self.n_beads = len(covariance)
        variances, self.modes = np.linalg.eigh(covariance)
        self.variances = variances.clip(0)
        self.register_buffer("strength", torch.tensor(strength, dtype=torch.float64))
        signal, noise = schedule.signal[:, None], schedule.noise[:, None]
        gains = np.sqrt(noise) / (signal * self.variances + noise)
        gains[:, 0] = 0  # the mean over the beads
        self.matrices = torch.from_numpy((self.modes * gains[:, None]) @ self.modes.T)

    def potential(self, frames: Tensor, level: Level, twice: bool = True) -> Tensor:
        matrix = self.matrices[level].to(frames)
        return -0.5 * self.strength.to(frames) * (frames * (matrix @ frames)).sum((1, 2))

    def describe(self) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> "ExactNoise":
        raise NotImplementedError


def exact_model(covariance: np.ndarray, strength: float = 1.0, schedule: CosineSchedule = SCHEDULE) -> DiffusionModel:
    draws = LevelDraws(few=schedule.n_levels // 10)
    return DiffusionModel(ExactNoise(covariance, strength, schedule), SCALE_NM, schedule, draws)


def published_potential(network: GraphTransformer, frames: Tensor, level: Level) -> Tensor:
    """Φ as published: with an array of features for every pair of beads, and one-hot vectors."""
    config, (n_frames, n_beads) = network.config, frames.shape[:2]
    apart = frames[:, None] - frames[:, :, None]
    edges = apart if config.edges == "displacement" else apart.square().sum(-1, keepdim=True)
    edges = network.edge_embedding(edges)
    kinds = functional.one_hot(network.types, max(network.bead_types) + 1).to(frames).expand(n_frames, -1, -1)
    times = torch.as_tensor(level).to(frames).reshape(-1, 1, 1).expand(n_frames, n_beads, 1) / config.n_levels
    h = network.embedding(torch.cat((kinds, times), -1))
    for layer in network.layers:
        part, read = layer.attention, layer.before_attention(h)
        q, k, v = (
            linear(read).unflatten(-1, (config.n_heads, -1)).transpose(1, 2)
            for linear in (part.query, part.key, part.value)
        )
        seen = part.edge(edges).unflatten(-1, (config.n_heads, -1)).permute(0, 3, 1, 2, 4)
        weights = torch.einsum("fhid,fhijd->fhij", q, k[:, :, None] + seen) * config.head_width**-0.5
        mixed = torch.einsum("fhij,fhijd->fhid", weights.softmax(-1), v[:, :, None] + seen)
        h = gated(layer.attention_gate.weigh, part.out(mixed.transpose(1, 2).flatten(2)), h)
        hidden = functional.gelu(layer.widen(layer.before_feedforward(h)))
        h = gated(layer.feedforward_gate.weigh, layer.narrow(hidden), h)
    return network.last(h).sum((1, 2))


def gated(weigh: nn.Linear, new: Tensor, old: Tensor) -> Tensor:
    gate = torch.sigmoid(weigh(torch.cat((new, old, new - old), -1)))
    return new * gate + old * (1 - gate)
