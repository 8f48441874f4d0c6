"""The engine in torch: dense batches of replicas, a bundle of steps at a time, on a GPU as a captured graph.

A stepper owns the tensors of a batch of fixed size and moves them a bundle of steps onward in place, with nothing that
waits for the device: random numbers come from counters there, and the step's number is a tensor too. On a GPU one
bundle is captured once and replayed, so that a step costs no launches from here; elsewhere it is called. Replicas do
not interact, so many of them go through the same stepper, batch after batch.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hpc_cg.forcefield.evaluator import Evaluate, evaluator, table_error
from hpc_cg.forcefield.forcefield import ForceField
from hpc_cg.forcefield.prediction import Prediction
from hpc_cg.simulate.langevin import Dynamics, EnsembleState, Move, move_of
from hpc_cg.simulate.noise import Key, key_of, normals

BATCH_BYTES = {"cpu": 2**28, "cuda": 2**31}
"""What the widest array over pairs may take; a batch has no more replicas than fit."""

BUNDLE_NUMBERS = 2**21
"""Normal numbers that are drawn at once, about."""

MOST_STEPS = 10
"""Steps of a captured bundle at most: by then launches no longer count, and capturing stays quick."""


class TorchEngine:
    """The force field with its tables (``n_knots`` intervals, or none: filters from the network), in ``dtype``.

    batch   replicas that go through the network at once; as many as memory is meant for, where it is left out
    """

    name = "torch"

    def __init__(
        self,
        forcefield: ForceField,
        dynamics: Dynamics,
        device: torch.device | str = "cpu",
        n_knots: int = 2048,
        dtype: torch.dtype = torch.float32,
        tabulated: bool = True,
        batch: int | None = None,
    ):
        self.device, self.n_knots = torch.device(device), n_knots
        self.forcefield = deepcopy(forcefield).to(self.device)
        n_beads = forcefield.system.n_beads
        pairs = n_beads * (n_beads - 1) // 2 * forcefield.config.n_filters * dtype.itemsize
        self.batch = batch or max(1, BATCH_BYTES["cpu" if self.device.type == "cpu" else "cuda"] // max(pairs, 1))
        self.force = evaluator(self.forcefield, dtype, tabulated, n_knots)
        self.dynamics = dynamics
        self.move = move_of(dynamics, torch.zeros(0, dtype=dtype, device=self.device))
        self.key, self.n_beads = key_of(dynamics.seed), n_beads
        self.steppers: dict[tuple[int, int], Stepper] = {}

    def evaluate(self, positions: Float[Tensor, "replica bead 3"]) -> Prediction:
        """Energies and forces (nm, kJ/mol)."""
        parts = [self.force(part) for part in positions.split(self.batch)]
        energies, forces = zip(*parts, strict=True)
        return Prediction(torch.cat(energies), torch.cat(forces))

    def advance(
        self,
        state: EnsembleState,
        n_steps: int,
        replica_ids: Sequence[int],
        heat: Float[np.ndarray, "replica"] | None = None,
    ) -> EnsembleState:
        """The state n_steps later; noise is keyed by each replica's id and the step, and scaled by its heat."""
        assert len(replica_ids) == len(state.positions)
        ids, parts = torch.tensor(replica_ids, device=self.device), []
        scale = torch.as_tensor(np.ones(len(ids)) if heat is None else heat).to(state.positions)
        size = min(self.batch, len(ids))
        for first in range(0, len(ids), size):
            rows = torch.arange(first, first + size, device=self.device).clamp_max(len(ids) - 1)
            parts.append(self._advanced(_rows(state, rows), n_steps, ids[rows], scale[rows]))
        joined = (torch.cat(tensors)[: len(ids)] for tensors in zip(*parts, strict=True))
        positions, velocities, forces, energies = joined
        return EnsembleState(positions, velocities, forces, energies, state.step + n_steps)

    def table_error(self, positions: Float[Tensor, "frame bead 3"]) -> float:
        """Rms error of the tabulated forces over the rms network force, in float64, at positions (nm)."""
        return table_error(self.forcefield, positions.to(self.device), self.n_knots)

    def _advanced(self, state: EnsembleState, n_steps: int, ids: Tensor, heat: Tensor) -> tuple[Tensor, ...]:
        """Positions, velocities, forces and energies of one batch n_steps later."""
        batch = Batch.of(state, ids, heat)
        for length in self.bundles(len(ids), n_steps):
            stepper = self.steppers.get((len(ids), length))
            if stepper is None:
                stepper = Stepper(batch, self.force, self.move, self.key, length)
                self.steppers[len(ids), length] = stepper
            batch = stepper(batch)
        return tuple(part.clone() for part in (batch.positions, batch.velocities, batch.forces, batch.energies))

    def bundles(self, n_replicas: int, n_steps: int) -> list[int]:
        """The lengths of the bundles that make up some steps: as few as may be, and of two lengths at most."""
        longest = max(1, BUNDLE_NUMBERS // (3 * self.n_beads * n_replicas))
        if self.device.type != "cpu":
            longest = min(longest, MOST_STEPS)
        count = -(-n_steps // longest)
        return [n_steps * (place + 1) // count - n_steps * place // count for place in range(count)]


@dataclass(frozen=True)
class Batch:
    """The tensors that a bundle of steps changes in place; the next step's number, the replicas' ids and their heat."""

    positions: Float[Tensor, "replica bead 3"]
    velocities: Float[Tensor, "replica bead 3"]
    forces: Float[Tensor, "replica bead 3"]
    energies: Float[Tensor, "replica"]
    step: Tensor
    ids: Tensor
    heat: Float[Tensor, "replica"]

    @staticmethod
    def of(state: EnsembleState, ids: Tensor, heat: Tensor) -> "Batch":
        """A batch with tensors of its own."""
        parts = (state.positions, state.velocities, state.forces, state.energies)
        positions, velocities, forces, energies = (part.clone() for part in parts)
        step = torch.full((), state.step, device=ids.device)
        return Batch(positions, velocities, forces, energies, step, ids.clone(), heat.clone())

    def take(self, other: "Batch") -> None:
        """Become equal to another batch, in place."""
        for name, mine in vars(self).items():
            mine.copy_(getattr(other, name))


class Stepper:
    """Moves batches of one size a fixed number of steps onward."""

    def __init__(self, like: Batch, force: Evaluate, one_step: Move, key: Key, n_steps: int):
        self.own = replace(like, **{name: part.clone() for name, part in vars(like).items()})
        self.force, self.one_step, self.key, self.n_steps = force, one_step, key, n_steps
        self.offsets = torch.arange(n_steps, device=like.ids.device)
        self.move = self._captured() if like.ids.device.type == "cuda" else self.bundle

    def __call__(self, batch: Batch) -> Batch:
        """The batch that many steps later; it is this stepper's own and changes with the next call."""
        if batch is not self.own:
            with torch.inference_mode():
                self.own.take(batch)
        self.move()
        return self.own

    def bundle(self) -> None:
        """The steps, in place, without a question to the device."""
        own = self.own
        with torch.inference_mode():
            steps = own.step + self.offsets
            noise = normals(self.key, steps, own.ids, own.positions.shape[1], own.positions.dtype)
            noise.mul_(own.heat[:, None, None])
            state = EnsembleState(own.positions, own.velocities, own.forces, own.energies, 0)
            for place in range(self.n_steps):
                state = self.one_step(state, self.force, noise[place])
            parts = (state.positions, state.velocities, state.forces, state.energies)
            own.take(Batch(*parts, own.step + self.n_steps, own.ids, own.heat))

    def _captured(self) -> Callable[[], None]:
        """The bundle as a graph of the device: warmed up on a stream of its own, captured, from then on replayed."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self.bundle()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.bundle()
        return graph.replay


def _rows(state: EnsembleState, rows: Tensor) -> EnsembleState:
    parts = (state.positions, state.velocities, state.forces, state.energies)
    positions, velocities, forces, energies = (part[rows] for part in parts)
    return EnsembleState(positions, velocities, forces, energies, state.step)
