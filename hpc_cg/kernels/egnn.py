"""A velocity field on frames of beads that turns and moves with them: E(n) equivariant graph layers over all pairs.

Each layer sees the squared distances d² of the current positions and d₀² of the first ones:

    m_ij = φ_e(h_i, h_j, d²_ij, d₀²_ij) σ(w·φ_e + b)
    x_i <- x_i + (reach / layers) Σ_j (x_i − x_j) / (d_ij + 1) tanh φ_x(m_ij)
    h_i <- h_i + φ_h(h_i, Σ_j m_ij)

and the velocity is what the layers moved, x_last − x_first, without its mean (Satorras, Hoogeboom, Welling 2021, arXiv
2102.09844; in this form Klein et al., arXiv 2506.19628). The first features are the kind of the bead and the time.

Rates of change along directions ε run beside the values (dual.py), so J ε costs little more than v; walking back
through both gives the divergence along ε and its gradient. Arrays run [bead, other, frame, feature]: what reads one
bead's features acts on beads before these are paired, and sums over neighbours are sums of whole rows. A call is cut
into tiles of frames.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hpc_cg.kernels.dual import Dual
from hpc_cg.kernels.flow import Divergence, Pull, Times, VelocityField
from hpc_cg.randomness import stream

TILE = {"cpu": 16384, "cuda": 1 << 18}
"""Pairs × frames × (1 + directions) worked on at once: on a CPU, few enough that the last cache holds their arrays; on
a GPU, where every call has a price, as many as its memory takes."""

SOFT = 1e-8
"""Added to d² under the root, which has no slope at zero; in the network's unit, squared."""

Work = Callable[[Times, Tensor, Tensor], tuple[Tensor, ...]]
"""From times, positions and vectors of a tile of frames to arrays of frames."""


@dataclass(frozen=True)
class EGNNConfig:
    """Shape of the network.

    n_layers   layers
    n_hidden   width of every hidden array
    reach      the layers together move a bead at most so far for each neighbour, in the network's unit
    unit_nm    the network's unit of length, nm
    """

    n_layers: int = 5
    n_hidden: int = 64
    reach: float = 15.0
    unit_nm: float = 0.1


class EGNN(VelocityField):
    """v(t, x) for frames of beads of the given kinds, numbered from zero."""

    types: Tensor
    others: Tensor

    def __init__(self, bead_types: Sequence[int], config: EGNNConfig, seed: int):
        super().__init__()
        self.config, self.bead_types = config, tuple(bead_types)
        n_beads, width = len(self.bead_types), config.n_hidden
        others = [j for i in range(n_beads) for j in range(n_beads) if j != i]
        self.register_buffer("types", torch.tensor(self.bead_types), persistent=False)
        self.register_buffer("others", torch.tensor(others), persistent=False)
        self.embedding = nn.Linear(max(self.bead_types) + 2, width)
        self.layers = nn.ModuleList(Layer(width, last=k == config.n_layers - 1) for k in range(config.n_layers))
        self._initialise(stream(seed, "egnn"))

    def forward(self, time: Times, positions: Float[Tensor, "frame bead 3"]) -> Float[Tensor, "frame bead 3"]:
        """Velocities, nm per unit of time; where gradients are recorded, differentiable by positions and parameters."""
        if torch.is_grad_enabled():
            return self._frames_velocity(time, positions)
        return self._tiled(lambda *tile: (self._frames_velocity(*tile[:2]),), time, positions, positions, 1)[0]

    @torch.enable_grad()
    def pull(
        self, time: Times, positions: Float[Tensor, "frame bead 3"], covectors: Float[Tensor, "frame bead 3"]
    ) -> Pull:
        """The velocity, and Jᵀ s for the covectors s."""

        def work(time: Times, positions: Tensor, covectors: Tensor) -> tuple[Tensor, Tensor]:
            moving = positions.detach().requires_grad_()
            velocity = self._frames_velocity(time, moving)
            (pulled,) = torch.autograd.grad(velocity, moving, covectors)
            return velocity.detach(), pulled

        return Pull(*self._tiled(work, time, positions, covectors, 1))

    @torch.enable_grad()
    def divergence(
        self, time: Times, positions: Float[Tensor, "frame bead 3"], probes: Float[Tensor, "probe frame bead 3"]
    ) -> Divergence:
        """Σ ε·J ε over the probes ε, and its gradient by the positions."""

        def work(time: Times, positions: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
            moving, directions = positions.detach().requires_grad_(), probes.permute(1, 2, 0, 3)
            rate = self._velocity(time, Dual(moving.transpose(0, 1), directions)).rate
            assert rate is not None
            value = (rate * directions).sum((0, 1, 3))
            (gradient,) = torch.autograd.grad(value.sum(), moving)
            return value.detach(), gradient

        return Divergence(*self._tiled(work, time, positions, probes.transpose(0, 1), 1 + len(probes)))

    def _tiled(self, work: Work, time: Times, positions: Tensor, vectors: Tensor, n_arrays: int) -> tuple[Tensor, ...]:
        """The results of ``work`` on tiles of the frames, joined."""
        size = max(1, TILE[positions.device.type] // (len(self.others) * n_arrays))
        results = []
        for begin in range(0, max(1, len(positions)), size):
            tile = slice(begin, begin + size)
            now = time[tile] if isinstance(time, Tensor) else time
            results.append(work(now, positions[tile], vectors[tile]))
        return tuple(torch.cat(parts) for parts in zip(*results, strict=True))

    def _frames_velocity(self, time: Times, positions: Tensor) -> Tensor:
        return self._velocity(time, Dual(positions.transpose(0, 1))).value.transpose(0, 1)

    def _velocity(self, time: Times, positions: Dual) -> Dual:
        """v at positions (bead frame 3), which may have rates (direction bead frame 3)."""
        unit, strength = self.config.unit_nm, self.config.reach / len(self.layers)
        start = positions.each(lambda x: x / unit)
        when = time.to(start.value)[:, None] if isinstance(time, Tensor) else time
        kinds = self.embedding.weight.T[self.types] + self.embedding.bias
        features = Dual(kinds[:, None] + when * self.embedding.weight[:, -1])
        here, first = start, None
        for layer in cast(Sequence[Layer], self.layers):
            apart = here.each(lambda x: x.unsqueeze(-3) - self._of_others(x))
            squared = (apart * apart).each(lambda x: x.sum(-1, keepdim=True))
            first = first or squared
            message = layer.message(features, squared, first, self._of_others)
            moves = (apart * layer.shift(message, squared)).each(lambda x: strength * x.sum(-3))
            here = here + moves
            if layer is not self.layers[-1]:
                features = layer.advance(features, message)
        moved = here + start.each(torch.neg)
        return moved.each(lambda x: unit * (x - x.mean(-3, keepdim=True)))

    def _of_others(self, x: Float[Tensor, "*axes frame feature"]) -> Float[Tensor, "*axes other frame feature"]:
        """From an array of beads to one that holds, for each bead, all others."""
        n_beads = len(self.bead_types)
        return x.index_select(-3, self.others).unflatten(-3, (n_beads, n_beads - 1))

    @torch.no_grad()
    def _initialise(self, key: np.random.Generator) -> None:
        """Weights and biases uniform within 1/√width of the input; almost no motion at first."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                if name.endswith("shift_out"):
                    bound = 1e-3 * (6 / (module.in_features + 1)) ** 0.5
                for parameter in module.parameters():
                    parameter.copy_(torch.from_numpy(key.uniform(-bound, bound, tuple(parameter.shape))))


class Layer(nn.Module):
    """One layer: messages between beads, what they move, and, but in the last layer, what they teach."""

    def __init__(self, width: int, last: bool):
        super().__init__()
        self.edge_in = nn.Linear(2 * width + 2, width)
        self.edge_out = nn.Linear(width, width)
        self.gate = nn.Linear(width, 1)
        self.shift_in = nn.Linear(width, width)
        self.shift_out = nn.Linear(width, 1, bias=False)
        if not last:
            self.node_in = nn.Linear(2 * width, width)
            self.node_out = nn.Linear(width, width)

    def message(self, features: Dual, squared: Dual, first: Dual, of_others: Callable[[Tensor], Tensor]) -> Dual:
        """m_ij (bead other frame feature) from features (bead frame feature) and squared distances."""
        weight, width = self.edge_in.weight, self.edge_out.in_features
        own = features.linear(weight[:, :width], self.edge_in.bias).each(lambda x: x.unsqueeze(-3))
        other = features.linear(weight[:, width:-2]).each(of_others)
        distances = squared.beside(first).linear(weight[:, -2:])
        hidden = (own + other + distances).silu()
        raw = hidden.linear(self.edge_out.weight, self.edge_out.bias).silu()
        return raw * raw.linear(self.gate.weight, self.gate.bias).sigmoid()

    def shift(self, message: Dual, squared: Dual) -> Dual:
        """What x_i − x_j is multiplied with, before the reach (bead other frame 1)."""
        hidden = message.linear(self.shift_in.weight, self.shift_in.bias).silu()
        distance = torch.sqrt(squared.value + SOFT)
        damping = 1 / (distance + 1)
        return hidden.linear(self.shift_out.weight).tanh() * squared.through(
            damping, -damping.square() / (2 * distance)
        )

    def advance(self, features: Dual, message: Dual) -> Dual:
        """The features after the messages (bead frame feature)."""
        weight, width = self.node_in.weight, self.node_out.in_features
        heard = message.each(lambda x: x.sum(-3)).linear(weight[:, width:], self.node_in.bias)
        hidden = (features.linear(weight[:, :width]) + heard).silu()
        return features + hidden.linear(self.node_out.weight, self.node_out.bias)
