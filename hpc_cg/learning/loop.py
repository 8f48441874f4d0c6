"""The trainer: force matching on delta forces, on any number of processes, readable from top to bottom.

One network is trained, on one molecule or on several at once (``mixture.py``). A step is a function of (seed, step):
which frames, which noise. So a run that was stopped and resumed is the run that was not, and one process sees the
samples that many see. Everything that can change lives in the model, its average, the optimizer, the progress on
held-out frames and the step, and these are what a checkpoint holds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpc_cg.errors import BadFrames, TrainingDiverged
from hpc_cg.learning.board import open_board, write_row
from hpc_cg.learning.course import Course, Look
from hpc_cg.learning.decoys import decoys_of
from hpc_cg.learning.distributed import World, check_gradients, together
from hpc_cg.learning.feed import Labelled
from hpc_cg.learning.forces import (
    Forces,
    Part,
    Way,
    Ways,
    choose_grid,
    compiled_by_torch,
    precision_error,
    refuse_precision,
    sizes_of,
)
from hpc_cg.learning.loss import ForceErrors, error_sums, errors_of, sum_of_squares
from hpc_cg.learning.mixture import Member
from hpc_cg.learning.settings import Settings

CHECK_FRAMES = 32


@dataclass(frozen=True)
class Outcome:
    """How a training ended: all its steps done, ended early, or stopped at a step boundary and saved.

    validation       errors of the weights that simulation uses, those of ``chosen_step``: the mean over molecules
    of_molecules     the same of each molecule
    grid_error       of these weights: rms error of forces that the grid causes, over the rms of the network's forces; 0
                     without a grid. Of several molecules, the largest
    precision_error  the same that bfloat16 causes; 0 in float32
    precision_error_at_start  of the weights that training began with, which decided whether it may be used
    """

    finished: bool
    step: int
    chosen_step: int
    validation: ForceErrors
    of_molecules: tuple[ForceErrors, ...]
    frames_per_s: float
    grid_error: float
    precision_error: float
    precision_error_at_start: float


class Trainer(Course):
    """One training on one process of a world.

    members   the molecules; all have the same network, which is kept as that of the first
    """

    def __init__(self, members: Sequence[Member], settings: Settings, world: World, folder: Path):
        self.members = tuple(members)
        self.forcefield = self.members[0].forcefield
        super().__init__(self.forcefield, settings, world, folder)
        self.grid = together("the grid of filters", lambda: choose_grid(settings, self.device), world, self.device)
        half = settings.precision == "bfloat16"
        self.exact = tuple(Way(member.forcefield, self.grid) for member in self.members)
        self.ways = Ways(tuple(Way(member.forcefield, self.grid, half) for member in self.members))
        self.network_forces: Forces = self.ways
        self.batches: list[Labelled] = []
        self.error_at_start = 0.0
        self.board: Any = None

    def run(
        self, report: Callable[[int, str], None], stopped: Callable[[], bool], description: dict[str, Any]
    ) -> Outcome:
        """Train to the end, or until any process is asked to stop; as ``Course.go_on``.

        Raises TrainingDiverged and BadFrames with the frames that caused it; OtherNumbers, MissingExtra; BrokenLaunch
        where another process raises one of these two.
        """
        last = self.go_on(report, stopped, description)
        if self.board is not None:
            self.board.close()
        errors = tuple(ForceErrors(**own) for own in (last.errors if self.best is None else self.best["errors"]))
        with self.chosen_in_place():
            ways = self._grid_error(), self._precision_error()
        pooled = ForceErrors.pooled(errors)
        rate, at_start = self.frames_per_s, self.error_at_start
        return Outcome(self.finished, self.step, self.chosen_step, pooled, errors, rate, *ways, at_start)

    def start(self) -> Look:
        if self.settings.tensorboard:
            self.board = together("train.tensorboard", self._open_board, self.world, self.device)
        errors = self.validate()
        self.scale = ForceErrors.pooled(errors).delta
        if not np.isfinite(self.scale):
            raise self._bad_held_out()
        self._check_ways()
        if self.world.size > 1:
            self._check_world()
        return self._look(errors)

    def _open_board(self) -> Any:
        """What the first process writes learning curves to; None on the others."""
        return open_board(self.folder, self.step + 1) if self.world.rank == 0 else None

    def gradient(self) -> Tensor:
        # not the weight of this very batch, which would make a heavy frame count less among heavy ones; as each of n
        # molecules has one n-th of the batch, the sum of their losses is the mean
        totals = [self.settings.batch_size * member.feed.mean_weight for member in self.members]
        self.batches = [member.feed.train(self.step) for member in self.members]
        return self.gradient_of(self.batches, totals)

    def _parts(self, batches: Sequence[Labelled]) -> Iterator[list[Part]]:
        """The batches of all molecules in as many parts as are done one after another; none is empty."""
        count = self.settings.accumulate
        for first in range(count):
            parts = [(number, batch.part(slice(first, None, count))) for number, batch in enumerate(batches)]
            if present := [(number, frames) for number, frames in parts if len(frames.index)]:
                yield present

    def gradient_of(self, batches: Sequence[Labelled], total_weights: Sequence[float]) -> Tensor:
        """This process's part of the loss, and its gradient in the parameters.

        Takes a batch of each molecule, and what the sum over its frames is divided by.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.device, dtype=self.parameters[0].dtype)
        every = self.settings.decoy_every
        scale = self.scale * (1.0 + (1.0 / every if every else 0.0))
        totals = [weight * scale for weight in total_weights]
        for part in self._parts(batches):
            with torch.no_grad():
                deltas = [frames.forces - self._prior(number, frames) for number, frames in part]
            loss = loss + self._backward(part, deltas, totals)
            decoys = self._decoys(part) if every else []
            if decoys:
                loss = loss + self._backward(decoys, [frames.forces for _, frames in decoys], totals)
        return loss

    def _decoys(self, part: Sequence[Part]) -> list[Part]:
        """The decoys of those molecules that have some in this part."""
        every, sigma_nm = self.settings.decoy_every, self.settings.decoy_nm
        seeds = [member.seed for member in self.members]
        found = [(number, decoys_of(frames, every, sigma_nm, seeds[number], self.step)) for number, frames in part]
        return [(number, decoys) for number, decoys in found if decoys is not None]

    def _backward(self, part: Sequence[Part], deltas: Sequence[Tensor], totals: Sequence[float]) -> Tensor:
        numbers = tuple(number for number, _ in part)
        found = self.network_forces(numbers, [frames.positions for _, frames in part])
        terms = [
            sum_of_squares(delta - forces, frames.weights) / totals[number]
            for (number, frames), delta, forces in zip(part, deltas, found, strict=True)
        ]
        loss = sum(terms[1:], terms[0])
        loss.backward()
        return loss.detach()

    def _prior(self, number: int, frames: Labelled) -> Tensor:
        """Forces of a molecule's priors."""
        return self.members[number].forcefield.prior(frames.positions).forces

    @torch.no_grad()
    def validate(self) -> tuple[ForceErrors, ...]:
        """Errors on each molecule's held-out frames, with the same noise at every look; shared by the processes."""
        sums = torch.zeros(len(self.members), 5, dtype=torch.float64, device=self.device)
        with self.average.in_place():
            for number, member in enumerate(self.members):
                for frames in member.feed.validation():
                    prior = self._prior(number, frames)
                    model = prior + self.exact[number](frames.positions)
                    sums[number] += error_sums(frames.forces, prior, model, frames.weights)
        return tuple(errors_of(own) for own in self.world.sum_(sums).cpu())

    @torch.no_grad()
    def _grid_error(self) -> float:
        """What the grid does to the forces, on the same frames on every process; the largest of any molecule."""
        if self.grid is None:
            return 0.0
        found = []
        for member, way in zip(self.members, self.exact, strict=True):
            positions = member.feed.same(CHECK_FRAMES).positions
            exact = member.forcefield.delta(positions)
            found.append(float(((way(positions) - exact).square().mean() / exact.square().mean()).sqrt()))
        return max(found)

    def _precision_error(self) -> float:
        """The largest of any molecule."""
        if self.settings.precision == "float32":
            return 0.0
        pairs = zip(self.ways.each, self.members, strict=True)
        return float(np.max([precision_error(way, member.feed.validation(), self.world) for way, member in pairs]))

    def _check_ways(self) -> None:
        """Compare the quicker ways to forces with the plain one.

        The precision at the first step only: an interruption must not change whether a training may go on.
        """
        if self.step == 0:
            self.error_at_start = self._precision_error()
            refuse_precision(self.error_at_start)
        if self.settings.compile:
            # every batch of this process is cut into parts of the same one or two sizes
            batches = [member.feed.train(self.step) for member in self.members]
            parts = {sizes_of(part): part for part in self._parts(batches)}
            self.network_forces = together(
                "train.compile", lambda: compiled_by_torch(self.ways, tuple(parts.values())), self.world, self.device
            )

    def _check_world(self) -> None:
        batches = [member.feed.same(CHECK_FRAMES) for member in self.members]
        totals = [float(batch.weights.sum()) for batch in batches]
        n_frames = max(len(batch.index) for batch in batches)
        check_gradients(
            lambda part: self.gradient_of([batch.part(part) for batch in batches], totals),
            self.parameters,
            n_frames,
            self.world,
        )

    def diverged(self) -> TrainingDiverged:
        """The error that names frames of all processes whose labels or forces are no numbers."""
        bad = [self._bad(number, batch) for number, batch in enumerate(self.batches)]
        where = self._names(bad) or ["no single frame: the parameters themselves"]
        return TrainingDiverged(
            f"a finite loss at step {self.step}",
            f"none, caused by {', '.join(where)}",
            "lower train.learning_rate, or look at those frames; the newest checkpoint is kept",
        )

    @torch.no_grad()
    def _bad_held_out(self) -> BadFrames:
        """The error that names held-out frames of all processes whose labels, or priors, are no numbers."""
        bad = []
        for number, member in enumerate(self.members):
            found = [np.arange(0)]
            for frames in member.feed.validation():
                squares = (frames.forces - self._prior(number, frames)).square().mean(dim=(1, 2)) * frames.weights
                found.append(frames.index[~torch.isfinite(squares).cpu().numpy()])
            bad.append(np.concatenate(found))
        where = self._names(bad) or ["no single frame: their sum"]
        return BadFrames(
            "errors of the priors on held-out frames",
            f"one that is no number, caused by {', '.join(where)}",
            "look at those frames in the archive, and at prepare.force_limit",
        )

    def _names(self, bad: Sequence[np.ndarray]) -> list[str]:
        """Where some of the frames come from that any process found bad; ``bad`` has those of each molecule."""
        names = []
        for member, index in zip(self.members, bad, strict=True):
            of = f"{member.name}: " if len(self.members) > 1 else ""
            names += [of + name for name in self.names(member.feed, index)]
        return names

    @torch.no_grad()
    def _bad(self, number: int, batch: Labelled) -> np.ndarray:
        """Which frames of a molecule have labels or forces that are no numbers."""
        found = [np.arange(0)]
        for ((_, frames),) in self._parts([batch]):
            forces = self._prior(number, frames) + self.ways.each[number](frames.positions)
            right = torch.isfinite(frames.forces - forces).all(dim=2).all(dim=1).cpu().numpy()
            found.append(frames.index[~right])
        return np.concatenate(found)

    def look(self) -> Look:
        return self._look(self.validate())

    def _look(self, errors: Sequence[ForceErrors]) -> Look:
        """Held-out errors; of several molecules the row has their mean, and the residual of each."""
        pooled = ForceErrors.pooled(errors)
        row = asdict(pooled) | {"floor": pooled.floor}
        if len(self.members) > 1:
            row |= {f"residual {member.name}": own.residual for member, own in zip(self.members, errors, strict=True)}
        note = f"force error {pooled.residual**0.5:.1f}, noise floor {max(pooled.floor, 0) ** 0.5:.1f} kJ/mol/nm"
        return Look(pooled.residual, row, [asdict(own) for own in errors], note)

    def record(self, look: Look) -> None:
        super().record(look)
        if self.board is not None:
            write_row(self.board, self.curves[-1])

    def cursor(self) -> dict[str, Any]:
        return super().cursor() | {"precision_error_at_start": self.error_at_start}

    def take_up(self, cursor: Mapping[str, Any]) -> None:
        super().take_up(cursor)
        self.error_at_start = cursor["precision_error_at_start"]
