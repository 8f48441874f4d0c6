"""κ(y | c) by a continuous flow: noise about the condition, carried along a velocity field of positions.

    y = Φ(c + z),   z ~ N(0, σ_p²),   Φ the flow of dX/dt = v(t, X) from 0 to 1

This is the flow of displacements y − c whose field sees them with the condition added (Klein et al., arXiv 2506.19628,
eqs. 15, 16), seen in the laboratory's frame: there the condition only says where the noise sits. So with z = Φ⁻¹(y) − c

    log κ(y | c) = log N(z; 0, σ_p²) − ∫ ∇·v dt        ∇_c log κ(y | c) = z / σ_p²,

and ∇_y log κ obeys the equation of flow.py from −z/σ_p² at t = 0. Displacements have no mean over the beads, and the
densities are over the 3n − 3 numbers that are left: y has the centre of c.

The condition is the caller's: to undo noise, c is a clean frame with fresh noise of the same σ on it, and the pairs
(clean, c) are what the flow is fitted on; y then is a fresh sample of the clean frames near c, and kT ∇_y log κ a label
of it. Fitting matches velocities (eqs. 27-32): with x₁ = y − c, x₀ ~ N(0, σ_p²) and t uniform in [0, 1],

    ⟨|v(t, c + (1−t) x₀ + t x₁ + σ_path ξ) − (x₁ − x₀)|²⟩.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import helmert
from torch import Tensor

from hpc_cg.errors import FitFailed
from hpc_cg.kernels.density import ConditionalDensity, Draw, centred, normals, signs
from hpc_cg.kernels.egnn import EGNN, EGNNConfig
from hpc_cg.kernels.flow import AdaptiveSteps, FixedSteps, VelocityField

INTEGRATORS = {"fixed": FixedSteps, "adaptive": AdaptiveSteps}
ROUND_TRIP = 0.1
"""A given frame has failed if back and forth it misses itself by more than this, root mean square, over σ_p."""


@dataclass(frozen=True)
class CNFConfig:
    """How a flow is fitted and integrated.

    sigma_prior_nm   σ_p, the noise that is carried
    sigma_path_nm    σ_path, noise on the path while fitting
    divergence       how the log-determinant enters the score: "exact"; "hutchinson", by random probes, an unbiased
                     label; "drop", not at all, as published: a bias of some per cent
    n_probes         of "hutchinson" and, for the log-density alone, of "drop"
    integrator       how equations are solved
    """

    sigma_prior_nm: float = 0.005
    sigma_path_nm: float = 0.001
    divergence: Literal["exact", "hutchinson", "drop"] = "hutchinson"
    n_probes: int = 1
    integrator: FixedSteps | AdaptiveSteps = field(default_factory=lambda: FixedSteps("rk4", 2, 0.0005))


class ConditionalFlow(ConditionalDensity):
    """The kernel above, for a velocity field that moves and turns with the frames, such as EGNN."""

    centred = True

    def __init__(self, velocity: VelocityField, config: CNFConfig):
        super().__init__()
        self.velocity, self.config = velocity, config

    def loss(
        self,
        target: Float[Tensor, "frame bead 3"],
        condition: Float[Tensor, "frame bead 3"],
        key: np.random.Generator,
    ) -> Float[Tensor, "frame"]:
        """Mean square of the velocity's error over σ_p², per axis in which beads can move."""
        condition, update = centred(condition), centred(target - condition)
        start = self._noise(condition, key)
        time = torch.from_numpy(key.random(len(condition))).to(condition)
        blur = self.config.sigma_path_nm * centred(normals(key, condition))
        there = condition + torch.lerp(start, update, time[:, None, None]) + blur
        error = (self.velocity(time, there) - (update - start)).square().sum((1, 2))
        return error / (self._n_axes(condition) * self.config.sigma_prior_nm**2)

    @torch.no_grad()
    def draw(self, condition: Float[Tensor, "frame bead 3"], key: np.random.Generator) -> Draw:
        """One draw for each frame of the condition, with the condition's centre."""
        around = centred(condition)
        drawn = self._carried(around, self._noise(condition, key), key)
        return replace(drawn, positions=drawn.positions + (condition - around))

    @torch.no_grad()
    def at(
        self,
        positions: Float[Tensor, "frame bead 3"],
        condition: Float[Tensor, "frame bead 3"],
        key: np.random.Generator,
    ) -> Draw:
        """The density and its scores at given positions, whose centre is of no account.

        Frames that the flow carries back and forth to somewhere else have failed.
        """
        there, around = centred(positions), centred(condition)
        drawn = self._carried(around, self.config.integrator.back(self.velocity, there) - around, key)
        miss = (drawn.positions - there).square().mean((1, 2)).sqrt()
        lost = ~(miss <= ROUND_TRIP * self.config.sigma_prior_nm)  # also where it is no number
        return replace(drawn, positions=positions, failed=drawn.failed | lost)

    def describe(self) -> dict[str, Any]:
        """Configuration, kinds of beads and shape of the network."""
        assert isinstance(self.velocity, EGNN)
        kind = {value: name for name, value in INTEGRATORS.items()}[type(self.config.integrator)]
        return {
            **asdict(self.config),
            "integrator": {"kind": kind, **asdict(self.config.integrator)},
            "bead_types": list(self.velocity.bead_types),
            "network": asdict(self.velocity.config),
        }

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> "ConditionalFlow":
        """A flow of that description, with fresh weights."""
        settings = dict(description)
        network = EGNN(settings.pop("bead_types"), EGNNConfig(**settings.pop("network")), seed=0)
        steps = dict(settings.pop("integrator"))
        integrator = INTEGRATORS[steps.pop("kind")](**steps)
        return cls(network, CNFConfig(**settings, integrator=integrator))

    def _noise(self, like: Tensor, key: np.random.Generator) -> Tensor:
        return self.config.sigma_prior_nm * centred(normals(key, like))

    def _n_axes(self, frames: Tensor) -> int:
        return 3 * (frames.shape[1] - 1)

    def _carried(self, condition: Tensor, noise: Tensor, key: np.random.Generator) -> Draw:
        """What becomes of condition + noise, both centred."""
        config, variance = self.config, self.config.sigma_prior_nm**2
        probes = self._probes(condition, key)
        end = config.integrator.carry(
            self.velocity, condition + noise, -noise / variance, probes, push=config.divergence != "drop"
        )
        size = -0.5 * noise.square().sum((1, 2)) / variance
        log_density = size - 0.5 * self._n_axes(noise) * np.log(2 * np.pi * variance) - end.log_expansion
        return Draw(end.positions, end.score, noise / variance, log_density, end.failed)

    def _probes(self, like: Tensor, key: np.random.Generator) -> Tensor:
        """Directions (set probe frame bead 3) over which the divergence is summed."""
        n_sets, n_probes = self.config.integrator.n_sets, self.config.n_probes
        if self.config.divergence == "exact":
            basis = np.einsum("kb,ad->kabd", helmert(like.shape[1]), np.eye(3)).reshape(-1, 1, *like.shape[1:])
            return torch.from_numpy(basis).to(like).expand(n_sets, -1, len(like), -1, -1)
        return centred(signs(key, like.expand(n_sets, n_probes, *like.shape))) / n_probes**0.5


@dataclass(frozen=True)
class Refinement:
    """How far draws move when the nodes are twice as many.

    positions   root mean square of the change over that of the way from condition and noise
    score       root mean square of the change over that of the score
    """

    positions: float
    score: float


def refinement(flow: ConditionalFlow, condition: Float[Tensor, "frame bead 3"], key: np.random.Generator) -> Refinement:
    """The change of draws of these conditions on doubling the nodes, with the same noise and exact scores."""
    assert isinstance(flow.config.integrator, FixedSteps)
    exact = ConditionalFlow(flow.velocity, replace(flow.config, divergence="exact"))
    twice = with_nodes(exact, 2 * flow.config.integrator.n_nodes)
    coarse, fine = exact.draw(condition, deepcopy(key)), twice.draw(condition, deepcopy(key))
    start = condition + fine.condition_score * flow.config.sigma_prior_nm**2

    def relative(change: Tensor, whole: Tensor) -> float:
        return float((change.double().square().mean() / whole.double().square().mean()).sqrt())

    return Refinement(
        relative(fine.positions - coarse.positions, fine.positions - start),
        relative(fine.score - coarse.score, fine.score),
    )


def with_nodes(flow: ConditionalFlow, n_nodes: int) -> ConditionalFlow:
    """The same flow, integrated by fixed steps with so many nodes."""
    assert isinstance(flow.config.integrator, FixedSteps)
    integrator = replace(flow.config.integrator, n_nodes=n_nodes)
    return ConditionalFlow(flow.velocity, replace(flow.config, integrator=integrator))


def refined(
    flow: ConditionalFlow,
    condition: Float[Tensor, "frame bead 3"],
    key: np.random.Generator,
    tolerance: float = 0.005,
    most: int = 32,
) -> ConditionalFlow:
    """The flow with the fewest nodes for which twice as many change positions and scores by less than ``tolerance``.

    ``condition`` are frames that were not fitted on. Raises FitFailed where ``most`` nodes are not enough.
    """
    n_nodes, found = 1, Refinement(np.inf, np.inf)
    while n_nodes <= most:
        found = refinement(candidate := with_nodes(flow, n_nodes), condition, key)
        if max(found.positions, found.score) < tolerance:
            return candidate
        n_nodes += max(1, n_nodes // 2)
    raise FitFailed(
        f"fixed steps for the flow with an error below {tolerance:g}",
        f"{found.positions:.2g} of the way and {found.score:.2g} of the score with {most} nodes",
        "fit the flow longer or with a larger sigma_path_nm: its velocity field is too rough",
    )
