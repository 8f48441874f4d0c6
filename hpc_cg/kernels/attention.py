"""Attention whose weights are functions of distance: each head of a bead looks as far as its length scale.

    A_ij^h = exp(−d_ij²/ℓ_h²) / Σ_k exp(−d_ik²/ℓ_h²),     out_i = Σ_h M_h Σ_j A_ij^h x_j

(kernel self-attention; Klein et al., Timewarp, arXiv 2302.01170, sec. 4). The weights depend on the condition alone, so
they are made once for all blocks of all layers. A value matrix and the part of the output matrix that reads it are one
matrix M_h here: nothing lies between the two. A block is attention and a feed-forward layer, each with a residual sum
and a normalisation after it.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

ALANINE_LENGTH_SCALES_NM = (0.1, 0.2, 0.5, 0.7, 1.0, 1.2)
"""Of the heads, for molecules of heavy atoms: from one bond to the whole of a small peptide."""

CALPHA_LENGTH_SCALES_NM = (0.2, 0.4, 0.6, 0.9, 1.4, 2.0)
"""Of the heads, for chains of alpha carbons 0.38 nm apart: from the bead itself over its neighbours to a whole fold."""


def kernel_weights(
    positions: Float[Tensor, "frame bead 3"], length_scales: Float[Tensor, "head"]
) -> Float[Tensor, "frame receiver_and_head bead"]:
    """A_ij^h at the positions (nm), rows (bead, head) with the head running faster; each row sums to 1."""
    squares = (positions[:, :, None] - positions[:, None]).square().sum(-1)
    kernel = torch.exp(-squares[:, :, None] / length_scales.square()[:, None])
    return (kernel / kernel.sum(-1, keepdim=True)).flatten(1, 2)


class KernelAttention(nn.Module):
    """Σ_h M_h Σ_j A_ij^h x_j, without bias."""

    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.mix = nn.Linear(n_heads * width, width, bias=False)

    def forward(
        self, x: Float[Tensor, "frame bead feature"], weights: Float[Tensor, "frame receiver_and_head bead"]
    ) -> Float[Tensor, "frame bead feature"]:
        return self.mix((weights @ x).unflatten(1, (x.shape[1], -1)).flatten(2))


class Block(nn.Module):
    """Attention, then a feed-forward layer of one hidden layer with ReLU; sum and normalisation after each."""

    def __init__(self, width: int, feedforward: int, n_heads: int):
        super().__init__()
        self.attention = KernelAttention(width, n_heads)
        self.widen, self.narrow = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        self.after_attention, self.after_feedforward = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(
        self, x: Float[Tensor, "frame bead feature"], weights: Float[Tensor, "frame receiver_and_head bead"]
    ) -> Float[Tensor, "frame bead feature"]:
        x = self.after_attention(x + self.attention(x, weights))
        return self.after_feedforward(x + self.narrow(torch.relu(self.widen(x))))


class Transformer(nn.Module):
    """Perceptron, blocks of kernel attention, perceptron: from features of beads to ``n_out`` numbers a bead.

    The last layer begins at zero, and with it all that the network says.
    """

    def __init__(self, n_in: int, n_out: int, width: int, hidden: int, feedforward: int, n_blocks: int, n_heads: int):
        super().__init__()
        self.inward = nn.Sequential(nn.Linear(n_in, hidden), nn.SiLU(), nn.Linear(hidden, width))
        self.blocks = cast(
            "Sequence[Block]", nn.ModuleList(Block(width, feedforward, n_heads) for _ in range(n_blocks))
        )
        self.outward = nn.Sequential(nn.Linear(width, hidden), nn.SiLU())
        self.last = nn.Linear(hidden, n_out)

    def forward(
        self, features: Float[Tensor, "frame bead feature"], weights: Float[Tensor, "frame receiver_and_head bead"]
    ) -> Float[Tensor, "frame bead out"]:
        x = self.inward(features)
        for block in self.blocks:
            x = block(x, weights)
        return self.last(self.outward(x))
