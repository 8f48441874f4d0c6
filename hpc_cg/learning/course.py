"""What every training shares: steps of the optimizer by many processes, looks at held-out frames, checkpoints.

A step is a function of (seed, step), so a run that was stopped and resumed is the run that was not. All that can change
lives in the model, its average, the optimizer, the progress on held-out frames and the step: what a checkpoint holds.
"""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from hpc_cg.files import write_text
from hpc_cg.learning import checkpoint as checkpoints
from hpc_cg.learning.average import Average
from hpc_cg.learning.distributed import World, sum_gradients
from hpc_cg.learning.feed import Feed
from hpc_cg.learning.schedule import Progress
from hpc_cg.learning.settings import Settings

NAMED = 5
"""Frames of each process, and of each molecule, that are named when a training fails."""


@dataclass(frozen=True)
class Look:
    """What a look at the held-out frames has shown.

    error    by which weights are compared
    row      for the learning curves
    errors   all that there is to say, as JSON holds it
    note     in few words
    """

    error: float
    row: Mapping[str, float]
    errors: Any
    note: str


class Course(ABC):
    """One training on one process of a world.

    scale   what the loss is divided by
    """

    scale = 1.0

    def __init__(self, model: nn.Module, settings: Settings, world: World, folder: Path):
        self.model, self.settings, self.world, self.folder = model, settings, world, folder
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.average = Average(self.parameters, settings.ema)
        self.progress = Progress()
        self.best: dict[str, Any] | None = None
        self.step = 0
        self.curves: list[dict[str, Any]] = []
        self.running = [0.0, 0]
        self.seconds = 0.0

    @abstractmethod
    def gradient(self) -> Tensor:
        """This process's part of the loss of the step, with its gradient in the parameters."""

    @abstractmethod
    def look(self) -> Look:
        """Look at the held-out frames with the weights that are judged."""

    @abstractmethod
    def diverged(self) -> Exception:
        """What to raise where the loss of the step is no number."""

    def start(self) -> Look:
        """What is done once, after the newest checkpoint was read and before the first step; the first look."""
        return self.look()

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or held-out errors have not become smaller for long enough."""
        return self.step >= self.settings.steps or self.progress.ended(self.settings.pace)

    def go_on(
        self, report: Callable[[int, str], None], stopped: Callable[[], bool], description: dict[str, Any]
    ) -> Look:
        """Train to the end, or until any process is asked to stop; goes on from the newest checkpoint.

        report    called with the step and a short note after each step
        stopped   asked at each step boundary
        Returns the last look.
        """
        self.resume()
        last, ask_stop = self.start(), False
        report(self.step, last.note)
        while not self.finished and not ask_stop:
            began = time.perf_counter()
            ask_stop = self.advance(stopped())
            self.seconds += time.perf_counter() - began
            if self.step % self.settings.validate_every == 0 or self.step == self.settings.steps:
                last = self.look()
                self.record(last)
            if self.step % self.settings.checkpoint_every == 0 or self.finished or ask_stop:
                self.save(description)
            report(self.step, last.note)
        return last

    def advance(self, stop: bool) -> bool:
        """One step of the optimizer; returns whether any process asked to stop."""
        loss = self.gradient()
        told = torch.stack([loss, loss.new_tensor(float(stop))])
        loss, stops = sum_gradients(self.parameters, self.world, told)
        if not torch.isfinite(loss):
            raise self.diverged()
        rate = self.settings.pace.rate(self.step, self.progress.reductions)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimizer.step()
        self.average.update(self.step)
        self.step += 1
        self.running = [self.running[0] + float(loss) * self.scale, self.running[1] + 1]
        return bool(stops > 0)

    def record(self, look: Look) -> None:
        """Take in a look at held-out frames: a row of the curves, with the mean loss since the last one."""
        told = {
            "step": self.step,
            "train": self.running[0] / self.running[1],
            "learning_rate": self.settings.pace.rate(self.step - 1, self.progress.reductions),
        }
        self.curves.append(told | dict(look.row))
        self.running = [0.0, 0]
        if self.world.rank == 0:
            lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in self.curves)
            write_text(self.folder / "curves.jsonl", lines)
        self.progress = self.progress.after(self.step, look.error, self.settings.pace)
        if self.settings.early_stop and self.progress.best_step == self.step:
            self.best = {"model": self.averaged(), "errors": look.errors}

    @property
    def frames_per_s(self) -> float:
        """Of all processes."""
        return self.step * self.settings.batch_size / self.seconds if self.seconds else 0.0

    def averaged(self) -> dict[str, Tensor]:
        """A copy of the weights that are judged: their average, where there is one."""
        with self.average.in_place():
            return {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}

    @property
    def chosen_step(self) -> int:
        """The step whose weights are used."""
        return self.step if self.best is None else self.progress.best_step

    @contextmanager
    def chosen_in_place(self) -> Iterator[None]:
        """The weights that are used instead of those that are trained, while this lasts."""
        if self.best is None:
            with self.average.in_place():
                yield
            return
        own = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.best["model"])
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def save(self, description: dict[str, Any]) -> None:
        """Write a checkpoint, by the first process while the others wait."""
        if self.world.rank == 0:
            chosen, errors = (self.best["model"], self.best["errors"]) if self.best else (None, None)
            state = checkpoints.Checkpoint(
                step=self.step,
                model={name: value.cpu() for name, value in self.model.state_dict().items()},
                optimizer=self.optimizer.state_dict(),
                cursor=self.cursor() | {"best_errors": errors},
                description=description,
                average=self.averaged() if self.settings.ema else None,
                best=chosen,
            )
            checkpoints.save(self.folder, state)
        self.world.barrier()

    def names(self, feed: Feed, bad: Int[np.ndarray, "frame"]) -> list[str]:
        """Where some of the frames come from that any process found bad; every process calls this."""
        own = torch.from_numpy(bad[:NAMED]).long()
        found = torch.zeros((self.world.size, NAMED), dtype=torch.int64)
        found[self.world.rank, : len(own)] = own + 1  # zero is no frame
        found = self.world.sum_(found.to(self.device)).cpu()
        return feed.names((found[found > 0] - 1).numpy())

    def cursor(self) -> dict[str, Any]:
        """What goes on besides weights and optimizer, as JSON holds it."""
        return {
            "step": self.step,
            "curves": self.curves,
            "running": self.running,
            "seconds": self.seconds,
            "progress": asdict(self.progress),
        }

    def resume(self) -> None:
        """Go on from the newest checkpoint, where there is one."""
        found = checkpoints.newest(self.folder)
        if found is None:
            return
        if found.average is not None:
            self.model.load_state_dict(found.average)
            self.average = Average(self.parameters, self.settings.ema)
        self.model.load_state_dict(found.model)
        self.optimizer.load_state_dict(found.optimizer)
        self.take_up(found.cursor)
        if found.best is not None:
            self.best = {"model": found.best, "errors": found.cursor["best_errors"]}

    def take_up(self, cursor: Mapping[str, Any]) -> None:
        """Go on from what ``cursor`` said."""
        self.step, self.curves, self.running = cursor["step"], cursor["curves"], cursor["running"]
        self.seconds, self.progress = cursor["seconds"], Progress(**cursor["progress"])
