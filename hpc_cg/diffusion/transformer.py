"""The network of Arts et al. (arXiv 2302.00600): a graph transformer over all beads, whose scalar Φ sums over them.

Beads begin as their kind and the level, h = W (one-hot ⊕ t/T). Each layer, with LN a normalisation of features:

    r = Attention(LN h),   h <- g h' + (1 − g) h,   g = σ(w · (h', h, h' − h)) with h' = r
    r = FeedForward(LN h), the same residual        one hidden layer, four times as wide, with x Φ(x)

    Attention_i = W_o Σ_j softmax_j(q_i · (k_j + E e_ij) / √d) (v_j + E e_ij)

and Φ = Σ_i w · h_i. The map E of edges e_ij is W_layer W_edge: edges are embedded once and projected in each
layer, both linearly, so no pair needs an array of its own (edges.py), and the network's numbers are those of its
published form. With displacements as edges, as published, the network has to learn rotations from turned frames; with
squared distances it is invariant, and then mirror images look alike to it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from hpc_cg.diffusion.edges import WIDTH, EdgeForm, Edges, edges_of
from hpc_cg.diffusion.gelu import gelu
from hpc_cg.diffusion.predictor import Level, NoisePredictor
from hpc_cg.randomness import stream

FEEDFORWARD = 4
"""Width of a hidden layer over that of the features."""


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of the network.

    width        features of a bead
    n_layers     of attention and feed-forward
    n_heads      of attention, each of head_width numbers
    edges        "displacement", or "squared-distance"
    n_levels     T, by which levels are divided
    """

    width: int = 96
    n_layers: int = 2
    n_heads: int = 8
    head_width: int = 64
    edges: EdgeForm = "displacement"
    n_levels: int = 1000


class GraphTransformer(NoisePredictor):
    """Φ for frames of beads of the given kinds, numbered from zero."""

    types: Tensor

    def __init__(self, bead_types: Sequence[int], config: TransformerConfig, seed: int = 0):
        super().__init__()
        self.config, self.bead_types = config, tuple(bead_types)
        self.n_beads = len(self.bead_types)
        self.register_buffer("types", torch.tensor(self.bead_types), persistent=False)
        self.embedding = nn.Linear(max(self.bead_types) + 2, config.width)
        self.edge_embedding = nn.Linear(WIDTH[config.edges], config.width)
        layers = [Layer(config) for _ in range(config.n_layers)]
        self.layers = cast("Sequence[Layer]", nn.ModuleList(layers))
        self.last = nn.Linear(config.width, 1, bias=False)
        self._initialise(stream(seed, "graph transformer"))

    def potential(
        self, frames: Float[Tensor, "frame bead 3"], level: Level, twice: bool = True
    ) -> Float[Tensor, "frame"]:
        """Φ; with one level for all, what the first layer knows before it sees a frame is computed once."""
        edges = edges_of(self.config.edges, frames - frames.mean(1, keepdim=True), fused=not twice)
        h = self._beads(frames, level)
        for layer in self.layers:
            h = layer(h, edges, self.edge_embedding)
        return self.last(h).sum((1, 2))

    def _beads(self, like: Tensor, level: Level) -> Float[Tensor, "batch bead feature"]:
        """The first features; ``batch`` is 1 where all frames have one level."""
        kinds = self.embedding.weight.T[self.types] + self.embedding.bias
        times = level[:, None, None].to(like.dtype) if isinstance(level, Tensor) else level
        features = kinds + times / self.config.n_levels * self.embedding.weight[:, -1]
        return features if features.ndim == 3 else features[None]

    @torch.no_grad()
    def _initialise(self, key: np.random.Generator) -> None:
        """Weights and biases uniform within 1/√width of the input."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                for parameter in module.parameters():
                    parameter.copy_(torch.from_numpy(key.uniform(-bound, bound, tuple(parameter.shape))))

    def describe(self) -> dict[str, Any]:
        return {"bead_types": list(self.bead_types), "config": asdict(self.config)}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> "GraphTransformer":
        return GraphTransformer(description["bead_types"], TransformerConfig(**description["config"]))


class Layer(nn.Module):
    """Attention, then a feed-forward layer; each normalises what it reads, and a gate decides how much of it stays."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        width, hidden = config.width, FEEDFORWARD * config.width
        self.before_attention, self.before_feedforward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = EdgeAttention(width, config.n_heads, config.head_width)
        self.widen, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.attention_gate, self.feedforward_gate = Gate(width), Gate(width)

    def forward(
        self, h: Float[Tensor, "batch bead feature"], edges: Edges, embedding: nn.Linear
    ) -> Float[Tensor, "frame bead feature"]:
        h = self.attention_gate(self.attention(self.before_attention(h), edges, embedding), h)
        return self.feedforward_gate(self.narrow(gelu(self.widen(self.before_feedforward(h)))), h)


class Gate(nn.Module):
    """g new + (1 − g) old with g = σ(w · (new, old, new − old)), one number a bead."""

    def __init__(self, width: int):
        super().__init__()
        self.weigh = nn.Linear(3 * width, 1, bias=False)

    def forward(
        self, new: Float[Tensor, "frame bead feature"], old: Float[Tensor, "batch bead feature"]
    ) -> Float[Tensor, "frame bead feature"]:
        of_new, of_old, of_change = self.weigh.weight.chunk(3, 1)
        gate = torch.sigmoid(functional.linear(new, of_new + of_change) + functional.linear(old, of_old - of_change))
        return torch.lerp(old.expand_as(new), new, gate)


class EdgeAttention(nn.Module):
    """Multi-head attention whose keys and values see edges."""

    def __init__(self, width: int, n_heads: int, head_width: int):
        super().__init__()
        inner = n_heads * head_width
        self.n_heads, self.scale = n_heads, head_width**-0.5
        self.query, self.key, self.value = (nn.Linear(width, inner) for _ in range(3))
        self.edge = nn.Linear(width, inner)
        self.out = nn.Linear(inner, width)

    def forward(
        self, h: Float[Tensor, "batch bead feature"], edges: Edges, embedding: nn.Linear
    ) -> Float[Tensor, "frame bead feature"]:
        """The sum over all beads, each with itself among them; ``batch`` is 1 where h is the same for all frames."""
        queries, keys, values = (self._heads(part(h)) for part in (self.query, self.key, self.value))
        seen = (self.edge.weight @ embedding.weight).unflatten(0, (self.n_heads, -1))
        queries = queries * self.scale
        mix = self.out.weight.T.unflatten(0, (self.n_heads, -1))
        shift = functional.linear(self.edge(embedding.bias), self.out.weight, self.out.bias)
        if len(h) == 1:
            attention = torch.softmax(queries @ keys.mT + edges.scores(queries @ seen), -1)
            of_beads, means = _joined(attention) @ (values @ mix).flatten(1, 2), edges.means(attention)
        else:
            sums, means = edges.attend(queries, keys, values, queries @ seen)
            of_beads = _joined(sums) @ self.out.weight.T
        return of_beads + _joined(means) @ (seen.mT @ mix).flatten(0, 1) + shift

    def _heads(self, x: Float[Tensor, "batch bead inner"]) -> Float[Tensor, "batch head bead feature"]:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)


def _joined(x: Float[Tensor, "frame head bead feature"]) -> Float[Tensor, "frame bead head_and_feature"]:
    return x.transpose(1, 2).flatten(2)
