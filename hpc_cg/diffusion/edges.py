"""What one bead sees of another, in the two forms that need no array of features for every pair.

An edge e_ij enters attention through a linear map, k_j + E e_ij and v_j + E e_ij with E (feature edge), the same for
keys and values. With q_i · E e_ij = (Eᵀ q_i) · e_ij and Σ_j a_ij E e_ij = E Σ_j a_ij e_ij all that is needed are

    scores   c_i · e_ij       c_i = Eᵀ q_i, one or three numbers a head
    means    Σ_j a_ij e_ij    of each head

    displacement       e_ij = x_j − x_i      scores c_i · x_j: what does not depend on j is nothing to a softmax
    squared distance   e_ij = |x_j − x_i|²   nothing turns with the frame: exactly invariant

so that the cost of a pair is that of attention without edges.
"""

from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

EdgeForm = Literal["displacement", "squared-distance"]

WIDTH = {"displacement": 3, "squared-distance": 1}
"""Numbers of an edge."""


@runtime_checkable
class Edges(Protocol):
    """The edges of frames."""

    def scores(self, coefficients: Float[Tensor, "batch head bead edge"]) -> Float[Tensor, "frame head bead other"]:
        """c_i · e_ij, up to what is the same for all j; ``batch`` is frame, or 1 for coefficients of all frames."""
        ...

    def means(self, attention: Float[Tensor, "frame head bead other"]) -> Float[Tensor, "frame head bead edge"]:
        """Σ_j a_ij e_ij, for attention whose rows sum to 1."""
        ...

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Σ_j a_ij v_j and Σ_j a_ij e_ij of a_ij = softmax_j(q_i · k_j + c_i · e_ij); all (frame head bead feature)."""
        ...


class Displacements:
    """x_j − x_i.

    fused   whether attention is one operation, with x_j as three more features of keys and values: quicker, and
            without an array of pairs where the device can, but it is differentiated once only
    """

    def __init__(self, frames: Float[Tensor, "frame bead 3"], fused: bool):
        self.frames, self.fused = frames, fused

    def scores(self, coefficients: Float[Tensor, "batch head bead 3"]) -> Float[Tensor, "frame head bead other"]:
        rows = coefficients.flatten(1, 2)
        places = self.frames.transpose(1, 2)
        return (rows @ places).unflatten(1, coefficients.shape[1:3])

    def means(self, attention: Float[Tensor, "frame head bead other"]) -> Float[Tensor, "frame head bead 3"]:
        return (attention.flatten(1, 2) @ self.frames).unflatten(1, attention.shape[1:3]) - self.frames[:, None]

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        if not self.fused:
            return _attend(self, queries, keys, values, coefficients)
        places = self.frames[:, None].expand(-1, queries.shape[1], -1, -1)
        query, key, value = (
            torch.cat(parts, -1) for parts in ((queries, coefficients), (keys, places), (values, places))
        )
        found = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        sums, means = found.split((values.shape[-1], 3), -1)
        return sums, means - self.frames[:, None]


class SquaredDistances:
    """|x_j − x_i|²."""

    def __init__(self, frames: Float[Tensor, "frame bead 3"]):
        self.squares = (frames[:, :, None] - frames[:, None]).square().sum(-1)[:, None]

    def scores(self, coefficients: Float[Tensor, "batch head bead 1"]) -> Float[Tensor, "frame head bead other"]:
        return coefficients * self.squares

    def means(self, attention: Float[Tensor, "frame head bead other"]) -> Float[Tensor, "frame head bead 1"]:
        return (attention * self.squares).sum(-1, keepdim=True)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        return _attend(self, queries, keys, values, coefficients)


def _attend(edges: Edges, queries: Tensor, keys: Tensor, values: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    attention = torch.softmax(queries @ keys.mT + edges.scores(coefficients), -1)
    return attention @ values, edges.means(attention)


def edges_of(form: EdgeForm, frames: Float[Tensor, "frame bead 3"], fused: bool) -> Edges:
    """The edges of frames in one of the forms; fused, where the form allows it, they are differentiated once only."""
    return Displacements(frames, fused) if form == "displacement" else SquaredDistances(frames)
