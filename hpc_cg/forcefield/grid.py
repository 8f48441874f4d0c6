"""Filters on a grid of distances: evaluated once for a whole batch, and interpolated for every pair.

A filter is a function of one distance. With its value and slope at knots, a cubic Hermite polynomial of each interval

    W(d) = w_0(t) W_k + w_1(t) h W'_k + w_2(t) W_{k+1} + w_3(t) h W'_{k+1},    t = d / h - k,

is continuous with its derivative, which is the W'(d) of the forces: so these are exactly minus the gradient of the
interpolated energy, whatever the grid's error, which falls as h^3 for forces. All is linear in the knots, so a
gradient in the network's weights passes through. Only knots beside a distance of the batch are evaluated.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from hpc_cg.forcefield.schnet import Filter


@dataclass(frozen=True)
class Grid:
    """How filters are evaluated in training.

    n_intervals   equal intervals up to the cutoff
    compiled      whether pairs are done by compiled code (``fused.py``); else by tensor operations
    all_knots     whether to evaluate knots that no distance is beside, so that shapes do not depend on the data
    """

    n_intervals: int
    compiled: bool = False
    all_knots: bool = False


class Places(NamedTuple):
    """Where distances lie: interval (-1 from the cutoff on) and the part of it below, 0 to 1."""

    row: Int[Tensor, "pair frame"]
    part: Float[Tensor, "pair frame"]


class Knots(NamedTuple):
    """Distances at which filters are evaluated, their step (nm), and where a batch lies among them."""

    distances: Float[Tensor, "knot"]
    step: float
    places: Places


def knots_for(distances: Float[Tensor, "pair frame"], cutoff_nm: float, grid: Grid) -> Knots:
    """The knots that a batch needs. A distance that is no number is in the first interval, at no number."""
    last, step = grid.n_intervals, cutoff_nm / grid.n_intervals
    along = distances / step
    row = along.detach().to(torch.int32).clamp_(0, last - 1)
    beyond = distances.detach() >= cutoff_nm
    part = (along - row).masked_fill(beyond, 0.0)
    row.masked_fill_(beyond, -1)
    if grid.all_knots:
        every = torch.arange(last + 1, device=distances.device, dtype=distances.dtype)
        return Knots(every * step, step, Places(row, part))
    # one place more, in front, collects what is beyond the cutoff
    used = torch.zeros(last + 2, dtype=torch.bool, device=distances.device)
    flat = row.flatten().long() + 1
    used[flat] = True
    used[flat + 1] = True
    used[0], used[1:3] = False, True
    number = used.cumsum(0, dtype=torch.int32) - 1
    found = (used.nonzero()[:, 0] - 1).to(distances.dtype) * step
    row = torch.where(row < 0, row, number[flat].view_as(row))
    return Knots(found, step, Places(row, part))


def table(filters: "Filter", step: float) -> Float[Tensor, "knot two_features"]:
    """Values, and slopes times the step, of filters at knots (knot 1 feature)."""
    return torch.cat((filters.value[:, 0], step * filters.slope[:, 0]), 1)


def interpolate(
    knots: Float[Tensor, "knot two_features"], places: Places, step: float
) -> tuple[Float[Tensor, "pair frame feature"], Float[Tensor, "pair frame feature"]]:
    """Filters and their derivatives at the places, zero beyond the cutoff."""
    rows = knots.view(2 * len(knots), -1)
    inside = (places.row >= 0)[..., None]
    index = (2 * places.row.clamp_min(0).long()[..., None] + torch.arange(4, device=rows.device)).view(-1, 4)
    t, zero = places.part[..., None], places.part.new_zeros(())
    u = 1.0 - t
    value = torch.cat((u * u * (1.0 + 2.0 * t), t * u * u, t * t * (3.0 - 2.0 * t), -t * t * u), -1)
    slope = torch.cat((-6.0 * t * u, u * (1.0 - 3.0 * t), 6.0 * t * u, t * (3.0 * t - 2.0)), -1) / step
    shape = (*places.row.shape, rows.shape[1])

    def mix(weights: Tensor) -> Tensor:
        weights = torch.where(inside, weights, zero).view(-1, 4)
        return functional.embedding_bag(index, rows, mode="sum", per_sample_weights=weights).view(shape)

    return mix(value), mix(slope)
