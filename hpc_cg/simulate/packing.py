"""A force field as two lists of numbers, in the order in which hpc_cg/simulate/engine.c reads them.

Filters become cubic B-splines on equal intervals of the distance, all blocks side by side: with h = cutoff / n_knots,
coefficients c solve (c[k] + 4 c[k+1] + c[k+2]) / 6 = W(k h) at every knot, with the true slopes at both ends. What one
block adds to a bead's features and what the next takes from them is one matrix, and so is what the readout takes:

    features = constant + [a_0 ... a_b] state,     sent = features inward,     read = features readout

Widths are padded with zeros to multiples of PAD.
"""

from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import solve_banded

from hpc_cg.beads import BeadSystem
from hpc_cg.forcefield.coordinates import torsions_of
from hpc_cg.forcefield.fitting import REPULSION_ENERGY, PriorParameters
from hpc_cg.forcefield.repulsion import INNER
from hpc_cg.forcefield.schnet import SchNet

PAD = 32
"""Widths are multiples of this, as in the engine's source."""

MAX_LAYERS = 8
"""Blocks, and hidden layers of the readout, that the engine has room for."""


@dataclass(frozen=True)
class Packed:
    """The two lists, int32 and float32."""

    ints: np.ndarray
    floats: np.ndarray


@dataclass
class _Lists:
    """The lists while they are written."""

    ints: list[np.ndarray] = field(default_factory=list)
    floats: list[np.ndarray] = field(default_factory=list)

    def whole(self, *values: int) -> None:
        self.ints.append(np.asarray(values, np.int32))

    def terms(self, rows: tuple[tuple[int, ...], ...]) -> None:
        """Beads of terms, place by place."""
        self.ints.append(np.asarray(rows, np.int32).T.ravel())

    def numbers(self, *arrays: np.ndarray | float) -> None:
        self.floats += [np.asarray(array, np.float64).ravel() for array in arrays]

    def layer(self, constant: np.ndarray, weight: np.ndarray) -> None:
        """x -> constant + x weight; the constant is one row, or one per bead."""
        constant = np.atleast_2d(constant)
        self.whole(len(constant), *weight.shape)
        self.numbers(constant, weight)

    def packed(self) -> Packed:
        return Packed(np.concatenate(self.ints), np.concatenate(self.floats).astype(np.float32))


def pack(network: SchNet, system: BeadSystem, prior: PriorParameters | None, n_knots: int) -> Packed:
    """The lists of a network with priors, or of the network alone."""
    lists = _Lists()
    _network(lists, deepcopy(network).double().cpu(), n_knots)
    _prior(lists, system, prior)
    _repulsion(lists, prior)
    return lists.packed()


def _network(lists: _Lists, network: SchNet, n_knots: int) -> None:
    width, n_blocks = network.config.n_filters, len(network.blocks)
    last = network.config.energy_unit * _array(network.last.weight)[0]
    constant = _array(network.embedding.weight)[_array(network.types)]
    lists.whole(len(constant), _padded(width), n_blocks, len(network.readout), n_knots)
    lists.numbers(network.config.cutoff_nm, _splines(network, n_knots))
    lists.numbers(_wide(constant @ _array(network.blocks[0].inward.weight).T, 1))
    state = np.zeros((0, width))
    for block in network.blocks:
        inward = _array(block.inward.weight).T
        lists.layer(_wide(constant @ inward, 1), _wide(state @ inward, 1))
        lists.layer(_wide(_array(block.mix.bias), 0), _wide(_array(block.mix.weight).T, 0, 1))
        constant = constant + _array(block.outward.bias)
        state = np.concatenate((state, _wide(_array(block.outward.weight).T, 0)))
    for place, layer in enumerate(network.readout):
        weight, bias = _array(layer.weight).T, _array(layer.bias)
        if place == 0:
            weight, bias = state @ weight, constant @ weight + bias
        lists.layer(_wide(bias, bias.ndim - 1), _wide(weight, 0, 1))
    lists.numbers(_wide(last, 0))


def _splines(network: SchNet, n_knots: int) -> Float[np.ndarray, "coefficient block feature"]:
    """Coefficients of the filters of all blocks."""
    distances = torch.linspace(0.0, network.config.cutoff_nm, n_knots + 1, dtype=torch.float64)
    with torch.no_grad():
        filters = network.filters(distances[:, None])
    value = np.stack([_wide(_array(kernel.value[:, 0]), 1) for kernel in filters], 1)
    slope = np.stack([_wide(_array(kernel.slope[:, 0]), 1) for kernel in filters], 1)
    return spline_coefficients(value, slope[[0, -1]] * (network.config.cutoff_nm / n_knots))


def spline_coefficients(
    value: Float[np.ndarray, "knot *curve"], ends: Float[np.ndarray, "2 *curve"]
) -> Float[np.ndarray, "coefficient *curve"]:
    """Coefficients of the cubic B-splines through values at equal knots, with slopes per interval at the ends."""
    n = len(value) + 2
    bands = np.zeros((5, n))  # bands[2 + row - column, column]
    bands[3, : n - 2], bands[2, 1 : n - 1], bands[1, 2:] = 1 / 6, 4 / 6, 1 / 6
    bands[2, 0], bands[0, 2] = -0.5, 0.5
    bands[4, n - 3], bands[2, n - 1] = -0.5, 0.5
    wanted = np.concatenate((ends[:1], value, ends[1:])).reshape(n, -1)
    return solve_banded((2, 2), bands, wanted).reshape(n, *value.shape[1:])


def _prior(lists: _Lists, system: BeadSystem, prior: PriorParameters | None) -> None:
    if prior is None:
        lists.whole(0, 0, 0, 0, 0)
        return
    n_torsions, order = prior.torsion_sin.shape if prior.torsion_sin.size else (0, 0)
    torsions = torsions_of(system) if n_torsions else ()
    lists.whole(len(system.bonds), len(system.angles), len(system.impropers), n_torsions, order)
    for terms in (system.bonds, system.angles, system.impropers, torsions):
        lists.terms(terms)
    lists.numbers(prior.bond_k, prior.bond_0, prior.angle_k, prior.angle_0, prior.improper_k, prior.improper_0)
    lists.numbers(prior.torsion_sin.T, prior.torsion_cos.T)


def _repulsion(lists: _Lists, prior: PriorParameters | None) -> None:
    """Pairs with V = ε (σ / r)^6, and 1/r where each goes on as its tangent."""
    pairs = np.zeros((0, 2), np.int64) if prior is None else prior.repulsion_pairs
    sigma = np.zeros(0) if prior is None else prior.repulsion_sigma
    assert len({frozenset(pair) for pair in pairs.tolist()}) == len(pairs), "pairs repel once"
    lists.whole(len(pairs))
    lists.terms(tuple(tuple(pair) for pair in pairs.tolist()))
    lists.numbers(REPULSION_ENERGY * sigma**6, 1.0 / (INNER * sigma))


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def _padded(width: int) -> int:
    return -(-width // PAD) * PAD


def _wide(array: np.ndarray, *axes: int) -> np.ndarray:
    """The array with zeros after its end along axes, up to a multiple of PAD."""
    return np.pad(array, [(0, _padded(n) - n if axis in axes else 0) for axis, n in enumerate(array.shape)])
