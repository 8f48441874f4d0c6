"""The trainer: force matching on delta forces, on any number of processes, readable from top to bottom.

A step is a function of (seed, step): which frames, which noise. So a run that was stopped and resumed is the run that
was not, and one process sees the samples that many see. Everything that can change lives in the model, the optimizer
and the step, and these are what a checkpoint holds.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpc_cg.errors import TrainingDiverged
from hpc_cg.files import write_text
from hpc_cg.forcefield import fused
from hpc_cg.forcefield.forcefield import ForceField
from hpc_cg.forcefield.grid import Grid
from hpc_cg.learning import checkpoint as checkpoints
from hpc_cg.learning.distributed import World, check_gradients, sum_gradients
from hpc_cg.learning.feed import Feed, Labelled
from hpc_cg.learning.loss import ForceErrors, error_sums, errors_of, sum_of_squares

CHECK_FRAMES = 32
NAMED = 5
"""Frames of each process that are named when a training fails."""


@dataclass(frozen=True)
class Settings:
    """How to train.

    steps             optimizer steps in all
    batch_size        frames in the global batch, over all processes
    learning_rate     its peak; linear warm-up over warmup_steps, then a cosine to final_learning_rate
    clip              largest norm of the gradient of the loss divided by the delta labels' mean square
    validate_every    steps between looks at the held-out frames
    checkpoint_every  steps between checkpoints
    filter_grid       intervals of the grid that filters are interpolated on; 0 for the filters themselves
    pairs             who sums over pairs on a grid: "compiled", "torch", or "auto"
    """

    steps: int
    batch_size: int
    learning_rate: float
    final_learning_rate: float
    warmup_steps: int
    weight_decay: float
    clip: float
    validate_every: int
    checkpoint_every: int
    seed: int
    filter_grid: int = 0
    pairs: str = "auto"

    def rate(self, step: int) -> float:
        """Learning rate of a step (counted from 0)."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        along = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        wave = 0.5 * (1 + math.cos(math.pi * along))
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * wave


@dataclass(frozen=True)
class Outcome:
    """How a training ended: all its steps done, or stopped at a step boundary and saved."""

    finished: bool
    step: int
    validation: ForceErrors
    frames_per_s: float
    grid_error: float
    """Rms error of the forces that the grid causes, over the rms of the network's forces; 0 without a grid."""


def choose_grid(settings: Settings, device: torch.device) -> Grid | None:
    """How filters are interpolated in training; raises MissingExtra where compiled code is wanted and cannot be had."""
    if not settings.filter_grid:
        return None
    on_cpu = device.type == "cpu"
    if settings.pairs == "compiled" and on_cpu:
        fused.require()
    compiled = settings.pairs != "torch" and on_cpu and fused.available()
    # an accelerator has arithmetic to spare, and would wait to learn which knots are used
    return Grid(settings.filter_grid, compiled, all_knots=not on_cpu)


class Trainer:
    """One training on one process of a world."""

    def __init__(
        self,
        forcefield: ForceField,
        feed: Feed,
        settings: Settings,
        world: World,
        folder: Path,
    ):
        self.forcefield, self.feed, self.settings, self.world, self.folder = forcefield, feed, settings, world, folder
        self.device = next(forcefield.parameters()).device
        self.grid = choose_grid(settings, self.device)
        self.parameters = [p for p in forcefield.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.step = 0
        self.scale = 1.0
        self.curves: list[dict[str, Any]] = []
        self.running = [0.0, 0]
        self.seconds = 0.0

    def run(
        self, report: Callable[[int, str], None], stopped: Callable[[], bool], description: dict[str, Any]
    ) -> Outcome:
        """Train to the end, or until any process is asked to stop; resumes from the newest checkpoint.

        report    called with the step and a short note after each step
        stopped   asked at each step boundary
        Raises TrainingDiverged with the frames that caused it.
        """
        self._resume()
        errors = self._validate()
        self.scale = errors.delta
        if self.world.size > 1:
            self._check_world()
        note, ask_stop = self._note(errors), False
        report(self.step, note)
        while self.step < self.settings.steps and not ask_stop:
            began = time.perf_counter()
            ask_stop = self._train_one_step(stopped())
            self.seconds += time.perf_counter() - began
            if self.step % self.settings.validate_every == 0 or self.step == self.settings.steps:
                errors = self._validate()
                note = self._note(errors)
                self._record(errors)
            if self.step % self.settings.checkpoint_every == 0 or self.step == self.settings.steps or ask_stop:
                self._save(description)
            report(self.step, note)
        rate = self.step * self.settings.batch_size / self.seconds if self.seconds else 0.0
        return Outcome(self.step == self.settings.steps, self.step, errors, rate, self._grid_error())

    @property
    def pairs(self) -> str:
        """Who sums over pairs of beads."""
        return "compiled" if self.grid is not None and self.grid.compiled else "torch"

    def _train_one_step(self, stop: bool) -> bool:
        """One step of the optimizer; returns whether any process asked to stop."""
        batch = self.feed.train(self.step)
        # not the weight of this very batch, which would make a heavy frame count less among heavy ones
        loss = self._gradient(batch, self.settings.batch_size * self.feed.mean_weight)
        told = torch.stack([loss, loss.new_tensor(float(stop))])
        loss, stops = sum_gradients(self.parameters, self.world, told)
        if not torch.isfinite(loss):
            raise self._diverged(batch)
        rate = self.settings.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimizer.step()
        self.step += 1
        self.running = [self.running[0] + float(loss) * self.scale, self.running[1] + 1]
        return bool(stops > 0)

    def _gradient(self, batch: Labelled, total_weight: float) -> Tensor:
        """This process's part of the loss, and its gradient in the parameters."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            delta = batch.forces - self.forcefield.prior(batch.positions).forces
        loss = sum_of_squares(delta - self.forcefield.delta(batch.positions, self.grid), batch.weights) / (
            total_weight * self.scale
        )
        loss.backward()
        return loss.detach()

    def _validate(self) -> ForceErrors:
        """Errors on the held-out frames, with the same noise at every look; shared by the processes."""
        sums = torch.zeros(5, dtype=torch.float64, device=self.device)
        for part in self.feed.validation():
            with torch.no_grad():
                prior = self.forcefield.prior(part.positions).forces
                network = self.forcefield.delta(part.positions, self.grid)
            sums += error_sums(part.forces, prior, prior + network, part.weights)
        return errors_of(self.world.sum_(sums).cpu())

    def _grid_error(self) -> float:
        """What the grid does to the forces of the present weights, on the same frames on every process."""
        if self.grid is None:
            return 0.0
        positions = self.feed.same(CHECK_FRAMES).positions
        with torch.no_grad():
            exact = self.forcefield.delta(positions)
            found = self.forcefield.delta(positions, self.grid)
        return float(((found - exact).square().mean() / exact.square().mean()).sqrt())

    def _check_world(self) -> None:
        batch = self.feed.same(CHECK_FRAMES)
        total = float(batch.weights.sum())
        n_frames = len(batch.index)
        check_gradients(lambda part: self._gradient(batch.part(part), total), self.parameters, n_frames, self.world)

    def _diverged(self, batch: Labelled) -> TrainingDiverged:
        """The error that names frames of all processes whose labels or forces are no numbers."""
        with torch.enable_grad():
            forces = self.forcefield.prior(batch.positions).forces + self.forcefield.delta(batch.positions).detach()
        bad = ~torch.isfinite(batch.forces - forces).all(dim=2).all(dim=1).cpu().numpy()
        own = torch.from_numpy(batch.index[bad][:NAMED]).long()
        found = torch.zeros((self.world.size, NAMED), dtype=torch.int64)
        found[self.world.rank, : len(own)] = own + 1  # zero is no frame
        found = self.world.sum_(found.to(self.device)).cpu()
        where = self.feed.names((found[found > 0] - 1).numpy()) or ["no single frame: the parameters themselves"]
        return TrainingDiverged(
            f"a finite loss at step {self.step}",
            f"none, caused by {', '.join(where)}",
            "lower train.learning_rate, or look at those frames; the newest checkpoint is kept",
        )

    def _record(self, errors: ForceErrors) -> None:
        """A row of the learning curves: the mean training loss since the last row, and the held-out errors."""
        row = {
            "step": self.step,
            "train": self.running[0] / self.running[1],
            "learning_rate": self.settings.rate(self.step - 1),
            "floor": errors.floor,
        }
        self.curves.append(row | asdict(errors))
        self.running = [0.0, 0]
        if self.world.rank == 0:
            lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in self.curves)
            write_text(self.folder / "curves.jsonl", lines)

    def _note(self, errors: ForceErrors) -> str:
        return f"force error {errors.residual**0.5:.1f}, noise floor {max(errors.floor, 0) ** 0.5:.1f} kJ/mol/nm"

    def _save(self, description: dict[str, Any]) -> None:
        if self.world.rank == 0:
            state = checkpoints.Checkpoint(
                step=self.step,
                model={name: value.cpu() for name, value in self.forcefield.state_dict().items()},
                optimizer=self.optimizer.state_dict(),
                cursor={"step": self.step, "curves": self.curves, "running": self.running, "seconds": self.seconds},
                description=description,
            )
            checkpoints.save(self.folder, state)
        self.world.barrier()

    def _resume(self) -> None:
        found = checkpoints.newest(self.folder)
        if found is None:
            return
        self.forcefield.load_state_dict(found.model)
        self.optimizer.load_state_dict(found.optimizer)
        self.step, self.curves, self.running = found.step, found.cursor["curves"], found.cursor["running"]
        self.seconds = found.cursor["seconds"]
