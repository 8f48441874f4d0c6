"""What every learnt kernel holds: a conditional density κ(y | c) that can be fitted, sampled and differentiated.

    loss(y, c)       falls as κ comes nearer to the law of the pairs (y, c)
    draw(c)          y ~ κ(· | c), with ∇_y log κ(y | c) and ∇_c log κ(y | c) there
    at(y, c)         the same at a y that is given: the later frame of a transition, or a test

A label is kT ∇_y log κ (Klein et al., arXiv 2506.19628, eqs. 7, 17); with the score of the condition a chain of
kernels gives quieter labels (eqs. 18-26). Lengths are in nm. What is random comes from a numpy Generator, drawn on the
host for all frames of a call before any is worked on: results depend neither on the device nor on how a call is cut
into tiles.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Draw:
    """Positions and what the density is like there.

    positions         y, nm
    score             ∇_y log κ(y | c), 1/nm
    condition_score   ∇_c log κ(y | c), 1/nm: what the condition feels
    log_density       log κ(y | c), normalised over the space in which y can move (nm to the power of its dimension)
    failed            frames without a label: left out and counted, never filled in
    """

    positions: Float[Tensor, "frame bead 3"]
    score: Float[Tensor, "frame bead 3"]
    condition_score: Float[Tensor, "frame bead 3"]
    log_density: Float[Tensor, "frame"]
    failed: Bool[Tensor, "frame"]


class ConditionalDensity(nn.Module, ABC):
    """κ(y | c) for frames y and c of shape (frame bead 3), nm.

    The module's parameters are what is fitted; ``state_dict`` with ``describe`` is all that a checkpoint needs.

    centred   whether y keeps the mean of c over the beads, and moves in the other 3n − 3 dimensions only
    """

    centred: bool

    @abstractmethod
    def loss(
        self,
        target: Float[Tensor, "frame bead 3"],
        condition: Float[Tensor, "frame bead 3"],
        key: np.random.Generator,
    ) -> Float[Tensor, "frame"]:
        """The loss of each frame, whose mean is made small by fitting."""

    @abstractmethod
    def draw(self, condition: Float[Tensor, "frame bead 3"], key: np.random.Generator) -> Draw:
        """One draw for each frame of the condition."""

    @abstractmethod
    def at(
        self,
        positions: Float[Tensor, "frame bead 3"],
        condition: Float[Tensor, "frame bead 3"],
        key: np.random.Generator,
    ) -> Draw:
        """The density and its scores at given positions; ``key`` serves where these are estimated."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """All that its weights do not hold, as JSON can hold it."""

    @classmethod
    @abstractmethod
    def from_description(cls, description: Mapping[str, Any]) -> "ConditionalDensity":
        """A density of that description, with fresh weights."""


def normals(key: np.random.Generator, like: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Standard normal numbers in the shape, type and place of ``like``; the same whatever these are."""
    return torch.from_numpy(key.standard_normal(tuple(like.shape), dtype=np.float32)).to(like)


def signs(key: np.random.Generator, like: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Numbers that are 1 or −1 with equal chance (Rademacher), in the shape, type and place of ``like``."""
    return torch.from_numpy(key.integers(0, 2, tuple(like.shape), dtype=np.int8)).to(like) * 2 - 1


def centred(positions: Float[Tensor, "*batch bead 3"]) -> Float[Tensor, "*batch bead 3"]:
    """Positions whose mean over the beads is the origin."""
    return positions - positions.mean(-2, keepdim=True)


def finite(*arrays: Float[Tensor, "frame ..."]) -> Bool[Tensor, "frame"]:
    """The frames in which every number of every array is finite."""
    flat = [array.isfinite().reshape(len(array), prod(array.shape[1:])) for array in arrays]
    return torch.stack([good.all(1) for good in flat]).all(0)
