"""A trained force field made ready for simulation: filters from a table, weights folded, no graph.

A filter depends on a distance only, so all filters of all blocks are F(d), a smooth curve in many dimensions.
Its singular value decomposition on a grid of distances leaves a few curves g_r(d),

    F(d) = sum_r g_r(d) V_r,

which are tabulated as cubic Hermite polynomials of d (value and derivative at the knots; the force is the
exact derivative of the tabulated energy). Features of the first block's senders are constants of the bead, so
that block's convolution and the layer after it are one matrix product of the g_r. And tanh(y) = 2 s(2y) - 1
with the logistic s, which is quicker: factors and constants go into the neighbouring weights.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hpc_cg.forcefield.forcefield import ForceField
from hpc_cg.forcefield.pairs import couple, gather
from hpc_cg.forcefield.prediction import Prediction
from hpc_cg.forcefield.schnet import SchNet

Evaluate = Callable[[Tensor], Prediction]
"""From positions (replica bead 3; nm) to energy (kJ/mol) and forces (kJ/mol/nm)."""

RANK_TOLERANCE = 1e-5
"""Singular values below this part of the largest are left out."""

SLOPE_LENGTH = 0.1
"""nm by which derivatives are scaled beside values in the decomposition."""


def evaluator(
    forcefield: ForceField, dtype: torch.dtype = torch.float32, tabulated: bool = True, n_knots: int = 1024
) -> Evaluate:
    """A quick function of positions that gives the force field's energy and forces, in ``dtype`` and without
    a graph.

    With ``tabulated`` the filters come from a table of ``n_knots`` intervals (see ``table_error``); without,
    from the network itself. The force field is copied: later training does not change what is returned.
    """
    own = deepcopy(forcefield).requires_grad_(False)
    if not tabulated:
        exact = own.to(dtype)
        return lambda positions: _without_graph(exact, positions)
    prior, network = own.prior.to(dtype), TabulatedNetwork(own.network, dtype, n_knots)

    def evaluate(positions: Tensor) -> Prediction:
        return _without_graph(prior, positions) + _without_graph(network, positions)

    return evaluate


def _without_graph(function: Evaluate, positions: Tensor) -> Prediction:
    with torch.inference_mode():
        return function(positions)


def table_error(forcefield: ForceField, positions: Float[Tensor, "frame bead 3"], n_knots: int = 1024) -> float:
    """Rms error of the tabulated forces over the rms network force, in float64, at the positions (nm)."""
    exact = deepcopy(forcefield.network).double()
    with torch.inference_mode():
        wanted = exact(positions.double()).forces
        found = TabulatedNetwork(exact, torch.float64, n_knots)(positions.double()).forces
    return relative_rms(found - wanted, wanted)


def relative_rms(error: Float[Tensor, "*shape"], wanted: Float[Tensor, "*shape"]) -> float:
    """Rms of an error over that of what is wanted, in float64; 0 where there is neither, as of one bead alone."""
    least = torch.finfo(wanted.dtype).tiny
    return float((error.square().mean() / wanted.square().mean().clamp_min(least)).sqrt())


@dataclass(frozen=True)
class FilterTable:
    """Cubic polynomials of g_r(d) on equal intervals up to the cutoff, and the vectors V_r of every block.

    The last row is zero and holds every distance from the cutoff on.
    """

    cutoff_nm: float
    polynomials: Float[Tensor, "knot 4 rank"]
    vectors: tuple[Float[Tensor, "rank feature"], ...]

    @staticmethod
    def of(network: SchNet, dtype: torch.dtype, n_knots: int) -> "FilterTable":
        """The table of a network's filters; polynomials are made in float64 and kept in ``dtype``."""
        exact, cutoff = deepcopy(network).double(), network.config.cutoff_nm
        device = exact.difference.device
        distances = torch.linspace(0.0, cutoff, n_knots + 1, dtype=torch.float64, device=device)
        with torch.no_grad():
            filters = exact.filters(distances[:, None])
        value = torch.cat([kernel.value[:, 0] for kernel in filters], -1)
        slope = torch.cat([kernel.slope[:, 0] for kernel in filters], -1)
        _, singular, vectors = torch.linalg.svd(torch.cat((value, SLOPE_LENGTH * slope)), full_matrices=False)
        vectors = vectors[singular > RANK_TOLERANCE * singular[0]]
        polynomials = _hermite(value @ vectors.T, slope @ vectors.T * (cutoff / n_knots))
        split = vectors.to(dtype).split(network.config.n_filters, dim=1)
        return FilterTable(cutoff, polynomials.to(dtype), tuple(part.contiguous() for part in split))

    def __call__(self, distances: Float[Tensor, "*shape"]) -> tuple[Tensor, Tensor]:
        """g (shape rank) at the distances, and dg/dd (1/nm)."""
        last = len(self.polynomials) - 1
        knots = distances * (last / self.cutoff_nm)
        row = knots.long().clamp(0, last)
        part = (knots - row)[..., None]
        c0, c1, c2, c3 = self.polynomials[row].unbind(-2)
        value = torch.addcmul(c0, torch.addcmul(c1, torch.addcmul(c2, c3, part), part), part)
        slope = torch.addcmul(c1, torch.addcmul(2.0 * c2, c3, part, value=3.0), part)
        return value, slope.mul_(last / self.cutoff_nm)


def _hermite(value: Tensor, slope: Tensor) -> Tensor:
    """Polynomials in the part (0..1) of each interval, from values and slopes per interval at the knots."""
    rise = value[1:] - value[:-1]
    c2 = 3.0 * rise - 2.0 * slope[:-1] - slope[1:]
    c3 = slope[:-1] + slope[1:] - 2.0 * rise
    rows = torch.stack((value[:-1], slope[:-1], c2, c3), 1)
    return torch.cat((rows, torch.zeros_like(rows[:1])))


class TabulatedNetwork:
    """The network with tabulated filters: the same energy and forces, only quicker and not trainable.

    The state of every bead is the row of all blocks' logistic activations so far; features x of the network
    are affine in it. Names: ``lift`` makes a block's senders from the state, ``mix`` a block's activation
    from what it receives, ``drop`` the first readout layer from the whole state.
    """

    def __init__(self, network: SchNet, dtype: torch.dtype, n_knots: int):
        self.n_beads, self.width = len(network.types), network.config.n_filters
        self.table = FilterTable.of(network, dtype, n_knots)
        self.first, self.second, self.difference = network.first, network.second, network.difference.to(dtype)
        self.square = self._square()
        self.gather = gather if self.square.device.type == "cpu" else self.summed
        with torch.no_grad():
            self._fold(deepcopy(network).double(), dtype)

    def _square(self) -> Tensor:
        """The number of the pair of every two beads; the diagonal has the number after the last."""
        square = torch.full((self.n_beads, self.n_beads), len(self.first), device=self.first.device)
        places = torch.arange(len(self.first), device=self.first.device)
        square[self.first, self.second], square[self.second, self.first] = places, places
        return square.flatten()

    def _fold(self, network: SchNet, dtype: torch.dtype) -> None:
        constant = network.embedding(network.types)
        state = constant.new_zeros(0, self.width)
        self.lift, self.mix = [], []
        for block in network.blocks:
            self.lift.append(_affine(constant @ block.inward.weight.T, state @ block.inward.weight.T, dtype))
            self.mix.append(_affine(2.0 * block.mix.bias, 2.0 * block.mix.weight.T, dtype))
            constant = constant + block.outward.bias - block.outward.weight.sum(1)
            state = torch.cat((state, 2.0 * block.outward.weight.T))
        weights, biases = (
            [layer.weight.T for layer in network.readout],
            [layer.bias for layer in network.readout],
        )
        self.drop = [_affine(2.0 * (constant @ weights[0] + biases[0]), 2.0 * state @ weights[0], dtype)]
        for weight, bias in zip(weights[1:], biases[1:], strict=True):
            self.drop.append(_affine(2.0 * (bias - weight.sum(0)), 4.0 * weight, dtype))
        last = network.config.energy_unit * network.last.weight[0]
        self.last, self.offset = (2.0 * last).to(dtype), float(-self.n_beads * last.sum())
        self.opening = self._opening(network, dtype)

    def _opening(self, network: SchNet, dtype: torch.dtype) -> Tensor:
        """The first block's convolution and mixing as one matrix, from (sender, rank) to feature."""
        block = network.blocks[0]
        sent = block.inward(network.embedding(network.types))
        received = self.table.vectors[0].double()[None] * sent[:, None]
        return (2.0 * received @ block.mix.weight.T).reshape(-1, self.width).to(dtype)

    def __call__(self, positions: Float[Tensor, "frame bead 3"]) -> Prediction:
        """Energy and forces of the network (positions in nm)."""
        n_frames, n_beads, _ = positions.shape
        flat = positions.transpose(0, 1).reshape(n_beads, 3 * n_frames)
        vectors = (self.difference @ flat).view(len(self.difference), n_frames, 3)
        distances = vectors.square().sum(-1).clamp_min(1e-12).sqrt()
        energy, slope = self._radial(distances)
        along = vectors * (slope / distances)[..., None]
        forces = (self.difference.T @ along.view(len(along), 3 * n_frames)).neg_().view(n_beads, n_frames, 3)
        return Prediction(energy, forces.transpose(0, 1))

    def _radial(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        curves, steepness = self.table(distances)
        n_frames, width, n_blocks = distances.shape[1], self.width, len(self.mix)
        rows = self.n_beads * n_frames
        state = curves.new_empty(rows, n_blocks * width)
        torch.sigmoid(self._opened(curves), out=state[:, :width])
        trace = []
        for place in range(1, n_blocks):
            kernel = (curves.view(distances.numel(), curves.shape[-1]) @ self.table.vectors[place]).view(
                *distances.shape, width
            )
            sent = _apply(self.lift[place], state[:, : place * width], n_frames)
            received = self.gather(kernel, sent.view(self.n_beads, n_frames, width))
            mixed = _apply(self.mix[place], received.view(rows, width), n_frames)
            torch.sigmoid(mixed, out=state[:, place * width : (place + 1) * width])
            trace.append((place, kernel, sent.view(self.n_beads, n_frames, width)))
        energy, back = self._read(state, n_frames)
        slope = torch.zeros_like(curves)
        for place, kernel, sent in reversed(trace):
            pull = (self._through(back, state, place) @ self.mix[place].weight.T).view_as(sent)
            slope += couple(pull, sent) @ self.table.vectors[place].T
            back[:, : place * width].addmm_(self.gather(kernel, pull).view(rows, width), self.lift[place].weight.T)
        slope += self._unopened(self._through(back, state, 0), n_frames)
        return energy, slope.mul_(steepness).sum(-1)

    def summed(self, kernel: Tensor, x: Tensor) -> Tensor:
        """As ``hpc_cg.forcefield.pairs.gather``, bead by bead in a fixed order: additions of an accelerator into one
        place come in any order, and then no run is repeated bit for bit.
        """
        wide = torch.cat((kernel, kernel.new_zeros(1, *kernel.shape[1:])))
        rows = self.square.view(self.n_beads, self.n_beads)
        return torch.stack([(wide.index_select(0, row) * x).sum(0) for row in rows])

    def _through(self, back: Tensor, state: Tensor, place: int) -> Tensor:
        """The derivative by a block's logistic arguments, from that by its values."""
        columns = slice(place * self.width, (place + 1) * self.width)
        return torch.ops.aten.sigmoid_backward(back[:, columns], state[:, columns])

    def _opened(self, curves: Tensor) -> Tensor:
        """Logistic arguments of the first block (bead x frame, feature)."""
        none = curves.new_zeros(1, *curves.shape[1:])
        spread = torch.cat((curves, none)).index_select(0, self.square)
        spread = spread.view(self.n_beads, self.n_beads, *curves.shape[1:]).transpose(1, 2)
        return torch.addmm(
            self.mix[0].constant, spread.reshape(self.n_beads * curves.shape[1], len(self.opening)), self.opening
        )

    def _unopened(self, pull: Tensor, n_frames: int) -> Tensor:
        """The derivative by every pair's curves, from that by the first block's arguments."""
        rank = self.table.polynomials.shape[-1]
        spread = (pull @ self.opening.T).view(self.n_beads, n_frames, self.n_beads, rank).transpose(1, 2)
        return spread[self.first, self.second] + spread[self.second, self.first]

    def _read(self, state: Tensor, n_frames: int) -> tuple[Tensor, Tensor]:
        """Energy (frame), and its derivative by the state."""
        hidden = []
        layer_input = state
        for layer in self.drop:
            layer_input = torch.sigmoid(_apply(layer, layer_input, n_frames))
            hidden.append(layer_input)
        energy = (layer_input @ self.last).view(self.n_beads, n_frames).sum(0) + self.offset
        back = self.last.expand_as(layer_input)
        for layer, active in zip(reversed(self.drop), reversed(hidden), strict=True):
            back = torch.ops.aten.sigmoid_backward(back, active) @ layer.weight.T
        return energy, back


@dataclass(frozen=True)
class Affine:
    """x -> constant + x weight; the constant is one row for all beads, or one row per bead."""

    constant: Float[Tensor, "*bead out"]
    weight: Float[Tensor, "in out"]


def _affine(constant: Tensor, weight: Tensor, dtype: torch.dtype) -> Affine:
    return Affine(constant.to(dtype), weight.to(dtype).contiguous())


def _apply(layer: Affine, x: Tensor, n_frames: int) -> Tensor:
    """The layer on rows that run over beads, and within a bead over frames."""
    if layer.constant.dim() == 1:
        return torch.addmm(layer.constant, x, layer.weight)
    out = layer.constant.repeat_interleave(n_frames, 0)
    return out.addmm_(x, layer.weight)
