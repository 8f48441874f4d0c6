"""The learnt kernels by name: how they begin, how they are used, and how they are written down.

A kernel is written down as a description, which is JSON, and its weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from hpc_cg.errors import DamagedProduct
from hpc_cg.kernels.cnf import CNFConfig, ConditionalFlow, refined
from hpc_cg.kernels.coupling import CouplingConfig, CouplingFlow
from hpc_cg.kernels.density import ConditionalDensity, centred
from hpc_cg.kernels.egnn import EGNN, EGNNConfig
from hpc_cg.kernels.flow import FixedSteps

KINDS: dict[str, type[ConditionalDensity]] = {"cnf": ConditionalFlow, "coupling": CouplingFlow}

PATH, DOUBT = 0.2, 0.1
"""Noise on the path of a continuous flow in fitting, and how far off it may be solved; over the noise undone."""


@dataclass(frozen=True)
class Shape:
    """Of the network of a learnt kernel.

    kind       of KINDS
    n_layers   of the EGNN, or coupling layers; 0 for the default
    width      features of a bead
    """

    kind: str
    n_layers: int
    width: int


def begin(
    shape: Shape,
    types: Sequence[int],
    sigma_nm: float,
    target: Float[Tensor, "frame bead 3"],
    condition: Float[Tensor, "frame bead 3"],
    seed: int,
    prior_nm: float | None = None,
) -> ConditionalDensity:
    """A kernel with fresh weights that is to undo noise of width ``sigma_nm``, or more than that.

    types               of the beads
    target, condition   frames and what noise made of them, as those it will be fitted to; nm
    prior_nm            width of the noise that a continuous flow carries; None for ``sigma_nm``
    """
    if shape.kind == "coupling":
        config = CouplingConfig(n_layers=shape.n_layers or CouplingConfig.n_layers, width=shape.width)
        return CouplingFlow.of(target, condition, config, seed)
    network = EGNN(types, EGNNConfig(shape.n_layers or EGNNConfig.n_layers, shape.width), seed)
    steps = FixedSteps("rk4", 2, DOUBT * sigma_nm)
    carried = sigma_nm if prior_nm is None else prior_nm
    flow = ConditionalFlow(network, CNFConfig(sigma_prior_nm=carried, sigma_path_nm=PATH * sigma_nm, integrator=steps))
    return flow.to(condition.device)


def way_nm(target: Float[Tensor, "frame bead 3"], condition: Float[Tensor, "frame bead 3"]) -> float:
    """Root mean square of the way from one to the other, per axis in which beads can move about their mean, nm."""
    way = centred(target - condition).double()
    return float(way.square().sum((1, 2)).mean().div(3 * (way.shape[1] - 1)).sqrt())


def settled(
    density: ConditionalDensity, condition: Float[Tensor, "frame bead 3"], key: np.random.Generator
) -> ConditionalDensity:
    """A fitted kernel as it is used: a continuous flow is solved in as many steps as it needs.

    condition   displaced frames that were not fitted on; nm
    Raises FitFailed where no number of steps is enough.
    """
    return refined(density, condition, key) if isinstance(density, ConditionalFlow) else density


def describe(density: ConditionalDensity) -> dict[str, Any]:
    """All but the weights, as JSON holds it."""
    kind = next(name for name, cls in KINDS.items() if isinstance(density, cls))
    return {"kind": kind, "density": density.describe()}


def from_description(content: Mapping[str, Any]) -> ConditionalDensity:
    """A density of that description, with fresh weights; raises DamagedProduct."""
    if content.get("kind") not in KINDS:
        raise DamagedProduct(
            "a learnt kernel",
            f"a description of kind {content.get('kind')!r}",
            f"fit again with this version; kinds are {', '.join(KINDS)}",
        )
    return KINDS[content["kind"]].from_description(content["density"])
