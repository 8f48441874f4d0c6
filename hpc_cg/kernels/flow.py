"""Moving frames along a velocity field, with the score of their density.

A density p₀ carried by dx/dt = v(t, x) from t = 0 to 1 changes by the divergence of v, and so does its score
s = ∇ log p (Chen et al. 2018, arXiv 1806.07366; Klein et al., arXiv 2506.19628, eq. 14):

    d log p/dt = −∇·v        ds/dt = −Jᵀ s − ∇(∇·v),     J = ∂v/∂x

so one pass from a known p₀ gives the sample, its log-density and its score, in memory that does not grow with the
number of steps. The divergence is Σ ε·J ε over probes ε: a basis gives it exactly, random signs an estimate whose mean
is exact (Hutchinson); log p and s are linear in it, so their means are exact too.

The term with ∇(∇·v) costs several times the other, is a few per cent of it, and changes slowly. So fixed steps lead
from one Gauss-Legendre node of [0, 1] to the next; between nodes x and s follow v and −Jᵀ s by Runge-Kutta, at a node
s and log p are pushed by the divergence with the node's weight. Three nodes integrate polynomials of degree five.
Every node has random probes of its own, whose errors average out.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hpc_cg.kernels.density import finite

Times = float | Float[Tensor, "frame"]


class Pull(NamedTuple):
    """A velocity v, and Jᵀ s of a covector s."""

    velocity: Float[Tensor, "frame bead 3"]
    pulled: Float[Tensor, "frame bead 3"]


class Divergence(NamedTuple):
    """Σ ε·J ε over probes, and its gradient by the positions."""

    value: Float[Tensor, "frame"]
    gradient: Float[Tensor, "frame bead 3"]


class VelocityField(nn.Module, ABC):
    """v(t, x) on frames, with its derivatives; the time is one for all frames, or one for each."""

    @abstractmethod
    def forward(self, time: Times, positions: Float[Tensor, "frame bead 3"]) -> Float[Tensor, "frame bead 3"]:
        """Velocities, nm per unit of time; where gradients are recorded, differentiable by positions and parameters."""

    @abstractmethod
    def pull(
        self, time: Times, positions: Float[Tensor, "frame bead 3"], covectors: Float[Tensor, "frame bead 3"]
    ) -> Pull:
        """The velocity, and Jᵀ s for the covectors s."""

    @abstractmethod
    def divergence(
        self, time: Times, positions: Float[Tensor, "frame bead 3"], probes: Float[Tensor, "probe frame bead 3"]
    ) -> Divergence:
        """Σ ε·J ε over the probes ε, and its gradient by the positions."""


@dataclass(frozen=True)
class Carried:
    """Frames at the end of the way.

    positions        there
    score            of the carried density, there
    log_expansion    ∫ ∇·v dt along the way: by how much log p has fallen
    failed           frames that are no numbers, or whose integration did not converge
    """

    positions: Float[Tensor, "frame bead 3"]
    score: Float[Tensor, "frame bead 3"]
    log_expansion: Float[Tensor, "frame"]
    failed: Bool[Tensor, "frame"]


@runtime_checkable
class Integrator(Protocol):
    """A way to solve the equations above, with so many independent sets of probes."""

    @property
    def n_sets(self) -> int: ...

    def back(self, field: VelocityField, positions: Float[Tensor, "frame bead 3"]) -> Float[Tensor, "frame bead 3"]:
        """Where frames at t = 1 come from; what is not found is no number."""
        ...

    def carry(
        self,
        field: VelocityField,
        positions: Float[Tensor, "frame bead 3"],
        score: Float[Tensor, "frame bead 3"],
        probes: Float[Tensor, "set probe frame bead 3"],
        push: bool,
    ) -> Carried:
        """Frames and scores from t = 0 to 1; without ``push`` the score omits the term of the divergence."""
        ...


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: when the stages are, what they start from, how they are joined.

    The last, ``doubt``, joins the slopes to the difference from a simpler method, of the order below the step's (Heun:
    Euler) or two below (RK4: the rule of the middle): more than the error itself.
    """

    times: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    doubt: tuple[float, ...]


METHODS = {
    "heun": Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5), (-0.5, 0.5)),
    "rk4": Tableau(
        (0.0, 0.5, 0.5, 1.0),
        ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
        (1 / 6, 1 / 3, 1 / 3, 1 / 6),
        (1 / 6, -1 / 6, -1 / 6, 1 / 6),
    ),
}
DORMAND_PRINCE = Tableau(
    (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
)
"""Orders five and four (Dormand, Prince 1980, doi 10.1016/0771-050X(80)90013-3)."""

Rates = Callable[[Times, Tensor], Tensor]
"""dy/dt of a state (frame number)."""


class Step(NamedTuple):
    """The state after a step, the estimate of its error, and the last slope."""

    state: Tensor
    doubt: Tensor
    slope: Tensor


def step(rates: Rates, time: Times, length: Times, state: Tensor, method: Tableau, slope: Tensor | None = None) -> Step:
    """One step of each frame; ``slope`` at its start where that is known."""
    stretch = length[:, None] if isinstance(length, Tensor) else length
    slopes = [rates(time, state) if slope is None else slope]
    for when, start in zip(method.times[1:], method.stages[1:], strict=True):
        slopes.append(rates(time + when * length, state + stretch * _joined(start, slopes)))
    after = state + stretch * _joined(method.weights, slopes)
    return Step(after, stretch * _joined(method.doubt, slopes), slopes[-1])


def _joined(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    parts = [weight * slope for weight, slope in zip(weights, slopes, strict=False) if weight]
    return sum(parts[1:], parts[0])


@dataclass(frozen=True)
class FixedSteps:
    """Steps of a given number: n_nodes + 1, between the nodes and the two ends.

    method      "rk4" or "heun"
    n_nodes     Gauss-Legendre nodes at which the divergence acts
    doubt_nm    a frame whose estimated errors of position add up to more than this has not converged, nm
    """

    method: Literal["rk4", "heun"]
    n_nodes: int
    doubt_nm: float

    @property
    def n_sets(self) -> int:
        """A set of probes for each node."""
        return self.n_nodes

    def back(self, field: VelocityField, positions: Float[Tensor, "frame bead 3"]) -> Float[Tensor, "frame bead 3"]:
        """Where frames at t = 1 come from; what is not found is no number."""
        state = positions.flatten(1)

        def rates(time: Times, state: Tensor) -> Tensor:
            return field(time, state.unflatten(1, (-1, 3))).flatten(1)

        doubt = torch.zeros_like(state)
        for late, early in pairwise(reversed(self._stops())):
            state, error, _ = step(rates, late, early - late, state, METHODS[self.method])
            doubt += error.abs()
        return torch.where(self._doubtful(doubt)[:, None, None], torch.nan, state.unflatten(1, (-1, 3)))

    def carry(
        self,
        field: VelocityField,
        positions: Float[Tensor, "frame bead 3"],
        score: Float[Tensor, "frame bead 3"],
        probes: Float[Tensor, "set probe frame bead 3"],
        push: bool,
    ) -> Carried:
        """Frames and scores from t = 0 to 1; without ``push`` the score omits the term of the divergence."""

        def rates(time: Times, state: Tensor) -> Tensor:
            there, score = state.unflatten(1, (2, -1, 3)).unbind(1)
            velocity, pulled = field.pull(time, there, score)
            return torch.stack((velocity, -pulled), 1).flatten(1)

        weights = np.polynomial.legendre.leggauss(self.n_nodes)[1] / 2
        expansion = positions.new_zeros(len(positions))
        doubt = torch.zeros_like(positions).flatten(1)
        for place, (early, late) in enumerate(pairwise(self._stops())):
            state = torch.stack((positions, score), 1).flatten(1)
            state, error, _ = step(rates, early, late - early, state, METHODS[self.method])
            positions, score = state.unflatten(1, (2, -1, 3)).unbind(1)
            doubt += error[:, : doubt.shape[1]].abs()
            if place < self.n_nodes:
                weight = float(weights[place])
                divergence = field.divergence(late, positions, probes[place])
                expansion = expansion + weight * divergence.value
                score = score - weight * divergence.gradient if push else score
        failed = self._doubtful(doubt) | ~finite(positions, score, expansion)
        return Carried(positions, score, expansion, failed)

    def _stops(self) -> tuple[float, ...]:
        nodes = (np.polynomial.legendre.leggauss(self.n_nodes)[0] + 1) / 2
        return (0.0, *(float(node) for node in nodes), 1.0)

    def _doubtful(self, doubt: Tensor) -> Tensor:
        return ~(doubt.square().mean(1).sqrt() <= self.doubt_nm)  # also where it is no number


@dataclass(frozen=True)
class AdaptiveSteps:
    """Dormand and Prince's pair of orders five and four; each frame takes steps of its own.

    tolerance   the root mean square of a step's estimated error over tolerance × (1 + |state|) is at most one; the
                state is in units of ``unit_nm``
    unit_nm     unit of length of the state, nm
    max_steps   steps, rejected ones among them, after which a frame that is not at the end has failed
    """

    tolerance: float
    unit_nm: float
    max_steps: int = 1000

    @property
    def n_sets(self) -> int:
        """Probes stay the same all the way: what steps adapt to has to be smooth."""
        return 1

    def back(self, field: VelocityField, positions: Float[Tensor, "frame bead 3"]) -> Float[Tensor, "frame bead 3"]:
        """Where frames at t = 1 come from; what is not found is no number."""

        def rates(time: Times, state: Tensor) -> Tensor:
            return field(time, self.unit_nm * state.unflatten(1, (-1, 3))).flatten(1) / self.unit_nm

        state = solve(rates, positions.flatten(1) / self.unit_nm, 1.0, 0.0, self.tolerance, self.max_steps)
        return self.unit_nm * state.unflatten(1, (-1, 3))

    def carry(
        self,
        field: VelocityField,
        positions: Float[Tensor, "frame bead 3"],
        score: Float[Tensor, "frame bead 3"],
        probes: Float[Tensor, "set probe frame bead 3"],
        push: bool,
    ) -> Carried:
        """Frames and scores from t = 0 to 1; without ``push`` the score omits the term of the divergence."""
        unit, size = self.unit_nm, positions[0].numel()

        def rates(time: Times, state: Tensor) -> Tensor:
            there, score = state[:, :-1].unflatten(1, (2, -1, 3)).unbind(1)
            velocity, pulled = field.pull(time, unit * there, score / unit)
            value, gradient = field.divergence(time, unit * there, probes[0])
            fall = -pulled - gradient if push else -pulled
            return torch.cat((velocity.flatten(1) / unit, unit * fall.flatten(1), value[:, None]), 1)

        start = torch.cat((positions.flatten(1) / unit, unit * score.flatten(1), positions.new_zeros(len(score), 1)), 1)
        end = solve(rates, start, 0.0, 1.0, self.tolerance, self.max_steps)
        there, score = (part.unflatten(1, (-1, 3)) for part in (unit * end[:, :size], end[:, size:-1] / unit))
        return Carried(there, score, end[:, -1], ~finite(end))


def solve(
    rates: Rates, state: Float[Tensor, "frame number"], begin: float, end: float, tolerance: float, max_steps: int
) -> Float[Tensor, "frame number"]:
    """The state of every frame at ``end``, by adaptive steps; no numbers for frames that do not arrive."""
    span = end - begin
    time = state.new_full((len(state),), begin)
    length = state.new_full((len(state),), 0.05 * span)
    slope = rates(time, state)
    for _ in range(max_steps):
        rest = end - time
        length = torch.where(length.abs() > rest.abs(), rest, length)
        after, doubt, last = step(rates, time, length, state, DORMAND_PRINCE, slope)
        scale = tolerance * (1 + torch.maximum(state.abs(), after.abs()))
        error = (doubt / scale).square().mean(1).sqrt()
        taken = error <= 1
        state, slope = (torch.where(taken[:, None], new, old) for new, old in ((after, state), (last, slope)))
        time = torch.where(taken, torch.where(length == rest, end, time + length), time)
        if bool((time == end).all()):
            break
        length = length * torch.nan_to_num(0.9 * error**-0.2, nan=0.2, posinf=5.0).clamp(0.2, 5.0)
    return torch.where((time == end)[:, None], state, torch.nan)
