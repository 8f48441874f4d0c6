"""CGSchNet: energies from bead types and distances, by continuous-filter convolutions over all pairs.

    x_i <- x_i + out(tanh(mix(sum_j W(d_ij) * in(x_j)))),     E = unit * sum_i readout(x_i),     F = -dE/dr

(Schuett et al. 2018, doi 10.1063/1.5019779; coarse-grained: Husic et al. 2020, doi 10.1063/5.0026133.) The
radial basis is ExpNormal with a cosine cutoff (Unke & Meuwly 2019, doi 10.1021/acs.jctc.9b00181), in the form
whose centres do not depend on the unit of length; the cutoff multiplies the basis and again the filter.

The forces are written out: each filter carries its derivative by distance along, and the network is walked
back by hand. So forces are a plain function of the parameters: training needs one backward pass, not two, and
inference none. Arrays run [bead or pair, frame, feature], because then a sum over neighbours is a sum of
whole rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hpc_cg.forcefield.pairs import couple, gather
from hpc_cg.forcefield.prediction import Prediction

PairSum = Callable[[Tensor, Tensor], Tensor]
"""``gather`` or ``couple`` of hpc_cg.forcefield.pairs, or something that gives the same."""

TINY = 1e-6
"""Distances (nm) below this count as this, so that two beads in one place give a number."""


@dataclass(frozen=True)
class SchNetConfig:
    """Shape of the network.

    cutoff_nm         distance beyond which beads do not see one another
    n_rbf             radial basis functions
    n_filters         features of a bead, and filters of a convolution
    n_blocks          interaction blocks
    terminal_widths   hidden widths of the readout
    energy_unit       kJ/mol for one unit of the last layer's output
    """

    cutoff_nm: float = 1.5
    n_rbf: int = 20
    n_filters: int = 128
    n_blocks: int = 2
    terminal_widths: tuple[int, ...] = (128,)
    energy_unit: float = 10.0


class Filter(NamedTuple):
    """A continuous filter and its derivative by distance (1/nm), for every pair and frame."""

    value: Float[Tensor, "pair frame feature"]
    slope: Float[Tensor, "pair frame feature"]


class RadialBasis(nn.Module):
    """phi_k(d) = C(d) exp(-beta (exp(-alpha d) - mu_k)^2), alpha = 5 / cutoff, C the cosine cutoff."""

    centres: Tensor

    def __init__(self, cutoff_nm: float, n_rbf: int):
        super().__init__()
        lowest = torch.exp(torch.tensor(-5.0, dtype=torch.float64))
        self.cutoff = cutoff_nm
        self.alpha = 5.0 / cutoff_nm
        self.beta = float((2.0 / n_rbf * (1.0 - lowest)) ** -2)
        centres = torch.linspace(float(lowest), 1.0, n_rbf, dtype=torch.float64)
        self.register_buffer("centres", centres.to(torch.get_default_dtype()), persistent=False)

    def forward(self, distances: Float[Tensor, "pair frame"]) -> Filter:
        """The basis functions and their derivatives."""
        envelope = self.envelope(distances)
        decay = torch.exp(-self.alpha * distances)[..., None]
        away = decay - self.centres
        bump = torch.exp(-self.beta * away.square())
        value = envelope.value * bump
        return Filter(value, (2.0 * self.alpha * self.beta) * decay * away * value + envelope.slope * bump)

    def envelope(self, distances: Float[Tensor, "pair frame"]) -> Filter:
        """The cosine cutoff (1 + cos(pi d / cutoff)) / 2, zero from the cutoff on, with one feature."""
        phase = (distances * (torch.pi / self.cutoff)).clamp_max(torch.pi)[..., None]
        inside = (distances < self.cutoff)[..., None]
        slope = -0.5 * torch.pi / self.cutoff * torch.sin(phase) * inside
        return Filter(0.5 * (1.0 + torch.cos(phase)) * inside, slope)


class Block(nn.Module):
    """The weights of one interaction block."""

    def __init__(self, n_rbf: int, n_filters: int):
        super().__init__()
        self.filter_in = nn.Linear(n_rbf, n_filters)
        self.filter_out = nn.Linear(n_filters, n_filters, bias=False)
        self.inward = nn.Linear(n_filters, n_filters, bias=False)
        self.mix = nn.Linear(n_filters, n_filters)
        self.outward = nn.Linear(n_filters, n_filters)

    def filter(self, basis: Filter, envelope: Filter) -> Filter:
        """The block's filter W(d) C(d), and its derivative by the product and chain rules."""
        hidden = torch.tanh(self.filter_in(basis.value))
        steepness = (1.0 - hidden.square()) * (basis.slope @ self.filter_in.weight.T)
        value, slope = self.filter_out(hidden), self.filter_out(steepness)
        return Filter(value * envelope.value, slope * envelope.value + value * envelope.slope)


class SchNet(nn.Module):
    """The network of one bead system, over all its pairs at once (meant for up to about a hundred beads)."""

    difference: Tensor
    types: Tensor
    first: Tensor
    second: Tensor

    def __init__(self, types: tuple[int, ...], config: SchNetConfig, seed: int = 0):
        super().__init__()
        self.config = config
        n = len(types)
        first, second = torch.triu_indices(n, n, 1)
        one_hot = torch.eye(n)
        buffers = {"types": torch.tensor(types), "first": first, "second": second}
        buffers |= {"difference": one_hot[second] - one_hot[first]}
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)
        widths = (config.n_filters, *config.terminal_widths)
        self.embedding = nn.Embedding(max(types) + 1, config.n_filters)
        self.basis = RadialBasis(config.cutoff_nm, config.n_rbf)
        blocks = [Block(config.n_rbf, config.n_filters) for _ in range(config.n_blocks)]
        readout = [nn.Linear(wide, narrow) for wide, narrow in pairwise(widths)]
        self.blocks = cast("Sequence[Block]", nn.ModuleList(blocks))
        self.readout = cast("Sequence[nn.Linear]", nn.ModuleList(readout))
        self.last = nn.Linear(widths[-1], 1, bias=False)
        self.initialise(seed)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw embeddings from N(0, 1) and weights Xavier-uniform; biases are zero. The same seed, the same
        network.
        """
        generator = torch.Generator().manual_seed(seed)
        self.embedding.weight.copy_(torch.randn(self.embedding.weight.shape, generator=generator))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight, generator=generator)
                if layer.bias is not None:
                    layer.bias.zero_()

    def forward(
        self, positions: Float[Tensor, "frame bead 3"], gather: PairSum = gather, couple: PairSum = couple
    ) -> Prediction:
        """Energy and forces (positions in nm); both can be differentiated by the parameters."""
        n_frames, n_beads, _ = positions.shape
        flat = positions.transpose(0, 1).reshape(n_beads, -1)
        vectors = (self.difference @ flat).view(-1, n_frames, 3)
        distances = vectors.square().sum(-1).clamp_min(TINY**2).sqrt()
        energy, slope = self.radial(distances, gather, couple)
        along = (slope / distances)[..., None] * vectors
        forces = -(self.difference.T @ along.view(len(along), -1)).view(n_beads, n_frames, 3)
        return Prediction(energy, forces.transpose(0, 1))

    def filters(self, distances: Float[Tensor, "pair frame"]) -> list[Filter]:
        """The filter of every block at the distances (nm)."""
        basis, envelope = self.basis(distances), self.basis.envelope(distances)
        return [block.filter(basis, envelope) for block in self.blocks]

    def radial(
        self, distances: Float[Tensor, "pair frame"], gather: PairSum = gather, couple: PairSum = couple
    ) -> tuple[Tensor, Tensor]:
        """Energy (frame; kJ/mol) and its derivative by every pair's distance (pair frame; kJ/mol/nm)."""
        filters = self.filters(distances)
        x = self.embedding(self.types)[:, None].expand(-1, distances.shape[1], -1)
        trace = []
        for block, kernel in zip(self.blocks, filters, strict=True):
            sent = block.inward(x)
            active = torch.tanh(block.mix(gather(kernel.value, sent)))
            x = x + block.outward(active)
            trace.append((sent, active))
        energy, back = self._read(x)
        slope = torch.zeros_like(distances)
        for place in reversed(range(len(self.blocks))):
            block, kernel, (sent, active) = self.blocks[place], filters[place], trace[place]
            pull = (back @ block.outward.weight * (1.0 - active.square())) @ block.mix.weight
            slope = slope + (couple(pull, sent) * kernel.slope).sum(-1)
            if place > 0:
                back = back + gather(kernel.value, pull) @ block.inward.weight
        return energy, slope

    def _read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energy (frame), and its derivative by the features x (bead frame feature)."""
        hidden: list[Tensor] = []
        for layer in self.readout:
            x = torch.tanh(layer(x))
            hidden.append(x)
        unit = self.config.energy_unit
        energy = unit * self.last(x)[..., 0].sum(0)
        back = (unit * self.last.weight).expand_as(x)
        for layer, x in zip(reversed(self.readout), reversed(hidden), strict=True):
            back = (back * (1.0 - x.square())) @ layer.weight
        return energy, back
