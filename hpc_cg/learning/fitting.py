"""Fitting of a conditional density to pairs of clean and displaced frames, on any number of processes.

The feed gives frames displaced by c = R + σ ξ with the score of that noise as labels, which says where they came from:
R = c + F σ²/kT. So a density is fitted with the order of samples, the streams and the noise of any training. Pairs that
are no noise's, as those of a transition, are stored as if σ had made them, and their condition is blurred afresh here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hpc_cg.errors import BadFrames, TrainingDiverged
from hpc_cg.kernels.density import ConditionalDensity, normals
from hpc_cg.kernels.noise import NoiseKernel
from hpc_cg.learning.course import Course, Look
from hpc_cg.learning.distributed import World, check_gradients
from hpc_cg.learning.feed import Feed, Labelled
from hpc_cg.learning.settings import Settings
from hpc_cg.randomness import PerItem
from hpc_cg.units import kT

CHECK_FRAMES = 32


@dataclass(frozen=True)
class FitErrors:
    """How a fit ended.

    held_out    mean loss of the held-out frames with the weights that are used, those of ``chosen_step``
    frames_per_s  over all processes
    """

    finished: bool
    step: int
    chosen_step: int
    held_out: float
    frames_per_s: float


def pairs_of(
    frames: Labelled, noise: NoiseKernel
) -> tuple[Float[Tensor, "frame bead 3"], Float[Tensor, "frame bead 3"]]:
    """Clean frames and what noise made of them, from displaced frames that have its score as labels; nm."""
    shift = noise.sigma_nm**2 / kT(noise.temperature_K)
    return frames.positions + shift * frames.forces, frames.positions


def blurred(
    condition: Float[Tensor, "frame bead 3"], blur_nm: float, key: np.random.Generator
) -> Float[Tensor, "frame bead 3"]:
    """The condition with noise of that standard deviation, nm; 0 draws nothing."""
    return condition + blur_nm * normals(key, condition) if blur_nm else condition


class Fit(Course):
    """The fit of one density.

    noise    the kernel whose displacements the feed's frames have; it mixes in no forces
    blur_nm  standard deviation of more noise, on the condition alone, that is drawn anew at each step
    """

    def __init__(
        self,
        density: ConditionalDensity,
        feed: Feed,
        noise: NoiseKernel,
        settings: Settings,
        world: World,
        folder: Path,
        blur_nm: float = 0.0,
    ):
        super().__init__(density, settings, world, folder)
        self.density, self.feed = density, feed
        self.noise, self.blur_nm = noise, blur_nm
        self._batch: Labelled | None = None

    def run(
        self, report: Callable[[int, str], None], stopped: Callable[[], bool], description: dict[str, Any]
    ) -> FitErrors:
        """Fit to the end, or until any process is asked to stop; as ``Course.go_on``. Raises TrainingDiverged and
        BadFrames with the frames that caused it.
        """
        last = self.go_on(report, stopped, description)
        held_out = float(last.error if self.best is None else self.best["errors"])
        return FitErrors(self.finished, self.step, self.chosen_step, held_out, self.frames_per_s)

    def start(self) -> Look:
        if self.world.size > 1:
            batch = self.feed.same(CHECK_FRAMES)
            total, n_frames = float(batch.weights.sum()), len(batch.index)
            check_gradients(lambda part: self._gradient(batch.part(part), total), self.parameters, n_frames, self.world)
        first = self.look()
        if not np.isfinite(first.error):
            raise self._bad_held_out()
        return first

    def gradient(self) -> Tensor:
        self._batch = self.feed.train(self.step)
        # not the weight of this very batch, which would make a heavy frame count less among heavy ones
        return self._gradient(self._batch, self.settings.batch_size * self.feed.mean_weight)

    def _gradient(self, batch: Labelled, total_weight: float) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = (self.losses(batch, "fit", self.step) * batch.weights).sum() / total_weight
        loss.backward()
        return loss.detach()

    def losses(self, batch: Labelled, purpose: str, step: int) -> Float[Tensor, "frame"]:
        """The loss of each frame; what is random in it belongs to the frame and the step."""
        key = PerItem(self.settings.seed, purpose, step, batch.index)
        target, condition = pairs_of(batch, self.noise)
        return self.density.loss(target, blurred(condition, self.blur_nm, key), key)

    @torch.no_grad()
    def look(self) -> Look:
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        with self.average.in_place():
            for part in self.feed.validation():
                losses = self.losses(part, "held-out fit", 0)
                sums += torch.stack([(losses * part.weights).sum(), part.weights.sum()]).double()
        total, weight = self.world.sum_(sums).tolist()
        error = total / weight
        return Look(error, {"held_out": error}, error, f"held-out loss {error:.4f}")

    @torch.no_grad()
    def diverged(self) -> TrainingDiverged:
        assert self._batch is not None, "a step had a batch"
        where = self.names(self.feed, self._bad([self._batch], "fit", self.step))
        return TrainingDiverged(
            f"a finite loss at step {self.step} of the fit",
            f"none, caused by {', '.join(where) or 'no single frame: the parameters themselves'}",
            "lower flow.learning_rate, or look at those frames; the newest checkpoint is kept",
        )

    @torch.no_grad()
    def _bad_held_out(self) -> BadFrames:
        where = self.names(self.feed, self._bad(self.feed.validation(), "held-out fit", 0))
        return BadFrames(
            "the loss of held-out frames",
            f"one that is no number, caused by {', '.join(where) or 'no single frame: their sum'}",
            "look at those frames in the archive, and at prepare.force_limit",
        )

    def _bad(self, batches: Sequence[Labelled], purpose: str, step: int) -> np.ndarray:
        """Which frames have a loss that is no number."""
        found = [np.arange(0)]
        for batch in batches:
            found.append(batch.index[~torch.isfinite(self.losses(batch, purpose, step)).cpu().numpy()])
        return np.concatenate(found)
