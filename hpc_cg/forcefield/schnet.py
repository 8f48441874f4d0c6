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
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hpc_cg.forcefield.fused import FusedConvolution
from hpc_cg.forcefield.grid import Grid, Places, interpolate, knots_for, table
from hpc_cg.forcefield.pairs import couple, gather
from hpc_cg.forcefield.prediction import Prediction

TINY = 1e-6
"""Distances (nm) below this count as this, so that two beads in one place give a number."""

NOTHING = -50.0
"""Basis functions below exp of this are zero. Smaller float32 numbers are subnormal, and products of these can take a
processor fifty times as long."""


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


def _cut(values: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Values that follow one another, cut into the shapes of ``like``."""
    return [part.view_as(one) for part, one in zip(values.split([x.numel() for x in like]), like, strict=True)]


def through_tanh(back: Tensor, values: Tensor) -> Tensor:
    """back (1 - values^2), the derivative by the arguments of tanh from that by its values."""
    return torch.ops.aten.tanh_backward(back, values)


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
        exponent = -self.beta * away.square()
        bump = torch.exp(exponent.clamp_min(NOTHING)).masked_fill(exponent < NOTHING, 0.0)
        value = envelope.value * bump
        return Filter(value, (2.0 * self.alpha * self.beta) * decay * away * value + envelope.slope * bump)

    def envelope(self, distances: Float[Tensor, "pair frame"]) -> Filter:
        """The cosine cutoff (1 + cos(pi d / cutoff)) / 2, zero from the cutoff on, with one feature."""
        phase = (distances * (torch.pi / self.cutoff)).clamp_max(torch.pi)[..., None]
        inside = (distances < self.cutoff)[..., None]
        slope = -0.5 * torch.pi / self.cutoff * torch.sin(phase) * inside
        return Filter(0.5 * (1.0 + torch.cos(phase)) * inside, slope)


@runtime_checkable
class Convolution(Protocol):
    """A continuous-filter convolution at the distances of a batch. Senders are (bead, frame or 1, feature)."""

    def receive(self, sent: Tensor) -> Tensor:
        """sum_j W_ij * sent_j, (bead frame feature)."""
        ...

    def push(self, sent: Tensor, pull: Tensor, further: bool) -> tuple[Tensor, Tensor | None]:
        """The way back from ``pull``, the derivative of the energy by what was received.

        Returns the derivative by every pair's distance (pair frame), and where it is wanted ``further`` that by
        ``sent`` (bead frame feature).
        """
        ...


Convolve = Callable[[Tensor], Sequence[Convolution]]
"""From the distances of all pairs (pair frame; nm) to the convolution of every block."""


class DenseConvolution(NamedTuple):
    """A convolution with the filter of every pair, as tensors."""

    value: Float[Tensor, "pair frame feature"]
    slope: Float[Tensor, "pair frame feature"]

    def receive(self, sent: Tensor) -> Tensor:
        return gather(self.value, sent.to(self.value.dtype).expand(-1, self.value.shape[1], -1))

    def push(self, sent: Tensor, pull: Tensor, further: bool) -> tuple[Tensor, Tensor | None]:
        pull, sent = pull.to(self.value.dtype), sent.to(self.value.dtype)
        coupled = couple(pull, sent.expand_as(pull))
        return (coupled * self.slope).sum(-1), gather(self.value, pull) if further else None


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
        steepness = through_tanh(basis.slope @ self.filter_in.weight.T, hidden)
        value, slope = self.filter_out(hidden), self.filter_out(steepness)
        return Filter(value * envelope.value, slope * envelope.value + value * envelope.slope)


class Beads(NamedTuple):
    """What a batch begins with.

    features     first features of the beads (bead, frame or 1, feature)
    difference   of the positions of the two beads of each pair, as a matrix
    present      which beads there are; None where all are
    """

    features: Tensor
    difference: Float[Tensor, "pair bead"]
    present: Bool[Tensor, "bead frame"] | None


class Geometry(NamedTuple):
    """The beads of a batch, and where they lie from one another (nm)."""

    beads: Beads
    vectors: Float[Tensor, "pair frame 3"]
    distances: Float[Tensor, "pair frame"]


class SchNet(nn.Module):
    """The network of one bead system, over all its pairs at once (meant for up to about a hundred beads).

    ``beside`` is the same network for another molecule; ``padded`` takes frames of several molecules in one batch. For
    these, ``n_types`` are the types of all molecules, the rows of the embedding.
    """

    difference: Tensor
    types: Tensor
    first: Tensor
    second: Tensor

    def __init__(self, types: tuple[int, ...], config: SchNetConfig, seed: int = 0, n_types: int | None = None):
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
        self.embedding = nn.Embedding(n_types or max(types) + 1, config.n_filters)
        self.basis = RadialBasis(config.cutoff_nm, config.n_rbf)
        blocks = [Block(config.n_rbf, config.n_filters) for _ in range(config.n_blocks)]
        readout = [nn.Linear(wide, narrow) for wide, narrow in pairwise(widths)]
        self.blocks = cast("Sequence[Block]", nn.ModuleList(blocks))
        self.readout = cast("Sequence[nn.Linear]", nn.ModuleList(readout))
        self.last = nn.Linear(widths[-1], 1, bias=False)
        self.initialise(seed)

    def beside(self, types: tuple[int, ...]) -> "SchNet":
        """This network for another molecule: other beads, and the very same parameters."""
        other = SchNet(types, self.config, n_types=len(self.embedding.weight))
        other.embedding, other.blocks, other.readout, other.last = self.embedding, self.blocks, self.readout, self.last
        return other

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
        self, positions: Float[Tensor, "frame bead 3"], grid: Grid | None = None, half: bool = False
    ) -> Prediction:
        """Energy and forces (positions in nm); both can be differentiated by the parameters.

        grid   how filters are interpolated; None for the filters themselves
        half   whether matrix products with features of beads are done in bfloat16; filters and distances are not
        """
        return self.predict(positions, partial(self.convolutions, grid=grid), half)

    def padded(
        self,
        positions: Float[Tensor, "frame bead 3"],
        types: Int[Tensor, "frame bead"],
        grid: Grid | None = None,
        half: bool = False,
    ) -> Prediction:
        """The same for frames of different molecules in one batch, whose types are rows of the embedding.

        types   -1 where a frame has no bead: there positions may be anything, and forces are zero
        """
        return self.predict(positions, partial(self.convolutions, grid=grid), half, types)

    def predict(
        self,
        positions: Float[Tensor, "frame bead 3"],
        convolve: Convolve,
        half: bool = False,
        types: Int[Tensor, "frame bead"] | None = None,
    ) -> Prediction:
        """Energy and forces by the convolutions that ``convolve`` makes of all pairs' distances.

        types   of the beads of every frame, as for ``padded``; None for those of the system
        """
        seen = self.geometry(positions, types)
        return self.evaluate(seen, convolve(seen.distances), half)

    def geometry(
        self, positions: Float[Tensor, "frame bead 3"], types: Int[Tensor, "frame bead"] | None = None
    ) -> Geometry:
        """What of the positions the network looks at; types as for ``predict``."""
        beads = self._beads() if types is None else self._padded_beads(types)
        difference, present = beads.difference, beads.present
        if present is not None:
            positions = torch.where(present.T[..., None], positions, 0.0)
        n_frames, n_beads, _ = positions.shape
        flat = positions.transpose(0, 1).reshape(n_beads, 3 * n_frames)
        vectors = (difference @ flat).view(len(difference), n_frames, 3)
        distances = vectors.square().sum(-1).clamp_min(TINY**2).sqrt()
        if present is not None:
            both = difference.abs() @ present.to(difference.dtype) > 1.5  # 2 where a pair has both of its beads
            distances = torch.where(both, distances, 2.0 * self.config.cutoff_nm)
        return Geometry(beads, vectors, distances)

    def evaluate(self, seen: Geometry, convolutions: Sequence[Convolution], half: bool = False) -> Prediction:
        """Energy and forces, given the convolution of every block."""
        (x, difference, present), vectors, distances = seen
        n_frames, n_beads = distances.shape[1], difference.shape[1]
        with torch.autocast(distances.device.type, torch.bfloat16) if half else nullcontext():
            energy, slope = self.radial(convolutions, x, present)
        along = (slope / distances)[..., None] * vectors
        forces = -(difference.T @ along.view(len(along), 3 * n_frames)).view(n_beads, n_frames, 3)
        return Prediction(energy, forces.transpose(0, 1))

    def _beads(self) -> Beads:
        return Beads(self.embedding(self.types)[:, None], self.difference, None)

    def _padded_beads(self, types: Int[Tensor, "frame bead"]) -> Beads:
        n_beads = types.shape[1]
        first, second = torch.triu_indices(n_beads, n_beads, 1, device=types.device)
        one_hot = torch.eye(n_beads, device=types.device, dtype=self.difference.dtype)
        features = self.embedding(types.T.clamp_min(0))
        return Beads(features, one_hot[second] - one_hot[first], (types >= 0).T)

    def filters(self, distances: Float[Tensor, "pair frame"]) -> list[Filter]:
        """The filter of every block at the distances (nm)."""
        basis, envelope = self.basis(distances), self.basis.envelope(distances)
        return [block.filter(basis, envelope) for block in self.blocks]

    def convolutions(self, distances: Float[Tensor, "pair frame"], grid: Grid | None = None) -> Sequence[Convolution]:
        """The convolution of every block at the distances (nm)."""
        return self.convolutions_of([distances], grid)[0]

    def convolutions_of(self, distances: Sequence[Tensor], grid: Grid | None = None) -> list[Sequence[Convolution]]:
        """The convolutions at the distances of several batches (each pair frame; nm): one evaluation of the grid."""
        if grid is None:
            return [[DenseConvolution(*kernel) for kernel in self.filters(batch)] for batch in distances]
        one = len(distances) == 1
        flat = distances[0] if one else torch.cat([batch.flatten() for batch in distances])[:, None]
        knots, step, whole = knots_for(flat, self.config.cutoff_nm, grid)
        tables = [table(kernel, step) for kernel in self.filters(knots[:, None])]
        places = (
            [whole] if one else [Places(*found) for found in zip(*(_cut(x, distances) for x in whole), strict=True)]
        )
        if grid.compiled and not flat.requires_grad:  # compiled code has no gradient by positions
            return [[FusedConvolution(rows, there, step) for rows in tables] for there in places]
        return [[DenseConvolution(*interpolate(rows, there, step)) for rows in tables] for there in places]

    def radial(
        self, convolutions: Sequence[Convolution], x: Tensor, present: Bool[Tensor, "bead frame"] | None = None
    ) -> tuple[Float[Tensor, "frame"], Float[Tensor, "pair frame"]]:
        """Energy (kJ/mol) and its derivative by every pair's distance (kJ/mol/nm), from the first features x.

        present   which beads have an energy; None where all have
        """
        trace = []
        for block, convolution in zip(self.blocks, convolutions, strict=True):
            sent = block.inward(x)
            active = torch.tanh(block.mix(convolution.receive(sent)))
            x = x + block.outward(active)
            trace.append((sent, active))
        energy, back = self._read(x, present)
        slopes = []
        for place in reversed(range(len(self.blocks))):
            block, (sent, active) = self.blocks[place], trace[place]
            pull = through_tanh(back @ block.outward.weight, active) @ block.mix.weight
            slope, received = convolutions[place].push(sent, pull, further=place > 0)
            slopes.append(slope)
            if received is not None:
                back = back + received @ block.inward.weight
        return energy, sum(slopes[1:], slopes[0])

    def _read(self, x: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
        """Energy (frame), and its derivative by the features x (bead frame feature)."""
        hidden: list[Tensor] = []
        for layer in self.readout:
            x = torch.tanh(layer(x))
            hidden.append(x)
        unit = self.config.energy_unit
        energies = unit * self.last(x)[..., 0].to(self.last.weight.dtype)
        if present is not None:
            energies = torch.where(present, energies, 0.0)
        back = (unit * self.last.weight).expand_as(x)
        for layer, x in zip(reversed(self.readout), reversed(hidden), strict=True):
            back = through_tanh(back, x) @ layer.weight
        return energies.sum(0), back
