"""Independent frames from a diffusion model, by undoing noise from the last level to the first.

**Ancestral** (Ho, Jain, Abbeel 2020, arXiv 2006.11239): every level, each with fresh noise,

    x_{t−1} = (x_t − β_t ε̂/√(1 − ᾱ_t))/√(1 − β_t) + √(β_t (1 − ᾱ_{t−1})/(1 − ᾱ_t)) ξ

**Deterministic**: with y = x/√ᾱ and σ = √((1 − ᾱ)/ᾱ) the flow that has the same marginals is dy/dσ = ε̂ (Song et al.
2021, arXiv 2011.13456), and D = y − σ ε̂ is the frame expected. In λ = −ln σ a step from σ to σ' is

    y' = (σ'/σ) y + (1 − σ'/σ) D̃,     D̃ = D + (h/2h₋)(D − D₋),   h, h₋ this step in λ and the one before

of second order with one evaluation a step (DPM-Solver++ 2M: Lu et al. 2022, arXiv 2211.01095); the last step, to σ = 0,
gives D. Only levels that were trained on are evaluated.

What is random in a sample is keyed by its number, so samples do not depend, but for rounding, on those beside them.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hpc_cg.diffusion.model import DiffusionModel
from hpc_cg.diffusion.schedule import CosineSchedule
from hpc_cg.errors import HpcCgError, SamplingDiverged
from hpc_cg.kernels.density import centred, normals
from hpc_cg.randomness import PerItem

FAR = 1000.0
"""Coordinates in units of the data's scale, beyond which a sample is none."""

WIDE = 50.0
"""Noise over the data's scale, above which one step of the deterministic sampler is enough."""

CURVE = 7.0
"""Steps of the deterministic sampler are even in σ^(1/7) (Karras et al. 2022, arXiv 2206.00364)."""

NAMED = 5
"""Samples that are named when sampling fails."""


@torch.no_grad()
def ancestral(model: DiffusionModel, seed: int, samples: Sequence[int]) -> Float[Tensor, "sample bead 3"]:
    """Samples (nm, centred) of those numbers by all levels; raises SamplingDiverged."""
    schedule, key = model.schedule, _key(seed, samples)
    x = _first(model, key, len(samples))
    for level in range(schedule.n_levels - 1, -1, -1):
        beta, noise = float(schedule.betas[level]), float(schedule.noise[level])
        found = model.predictor(x, level).noise
        x = (x - beta / noise**0.5 * found) / (1 - beta) ** 0.5
        if level > 0:
            x = x + (beta * float(schedule.noise[level - 1]) / noise) ** 0.5 * centred(normals(key, x))
        _refuse_diverged(x, samples, level)
    return model.scale_nm * centred(x)


@torch.no_grad()
def deterministic(
    model: DiffusionModel, seed: int, samples: Sequence[int], n_steps: int = 50
) -> Float[Tensor, "sample bead 3"]:
    """Samples (nm, centred) of those numbers by at most ``n_steps`` evaluations; raises SamplingDiverged.

    They differ from those of many steps by an error of second order; those of a number begin in the same noise.
    """
    schedule = model.schedule
    levels = chosen_levels(schedule, n_steps)
    widths = [*(float(schedule.widths[level]) for level in levels), 0.0]
    y = _first(model, _key(seed, samples), len(samples)) / float(np.sqrt(schedule.signal[levels[0]]))
    before, last_step = None, 0.0
    for place, level in enumerate(levels):
        here, there = widths[place], widths[place + 1]
        expected = y - here * model.predictor(y * float(np.sqrt(schedule.signal[level])), level).noise
        if there == 0.0:
            y = expected
        else:
            step = float(np.log(here / there))
            ahead = expected if before is None else expected + step / (2 * last_step) * (expected - before)
            y, before, last_step = torch.lerp(ahead, y, there / here), expected, step
        _refuse_diverged(y * float(np.sqrt(schedule.signal[level])), samples, level)
    return model.scale_nm * centred(y)


def chosen_levels(schedule: CosineSchedule, n_steps: int) -> list[int]:
    """Levels from the last to the first at which a deterministic sampler looks: n_steps, or fewer where some coincide.

    After the last level they begin where noise is WIDE times the data; below they are even in σ^(1/7).
    """
    if not 2 <= n_steps <= schedule.n_levels:
        raise HpcCgError(
            "samples by a deterministic sampler",
            f"{n_steps} steps",
            f"choose from 2 to {schedule.n_levels}, the levels of the schedule",
        )
    widths = schedule.widths
    wanted = np.linspace(min(WIDE, widths[-1]) ** (1 / CURVE), widths[0] ** (1 / CURVE), n_steps - 1) ** CURVE
    nearest = np.abs(np.log(widths)[None] - np.log(wanted)[:, None]).argmin(axis=1)
    nearest[-1] = 0
    return sorted({schedule.n_levels - 1, *nearest.tolist()}, reverse=True)


def _key(seed: int, samples: Sequence[int]) -> PerItem:
    numbers: Int64[np.ndarray, "sample"] = np.asarray(samples, dtype=np.int64)
    return PerItem(seed, "diffusion sample", 0, numbers)


def _first(model: DiffusionModel, key: PerItem, n_samples: int) -> Float[Tensor, "sample bead 3"]:
    """Noise alone, at the last level."""
    like = next((p for p in (*model.parameters(), *model.buffers()) if p.is_floating_point()), torch.zeros(()))
    return centred(normals(key, like.new_empty(n_samples, model.predictor.n_beads, 3)))


def _refuse_diverged(x: Tensor, samples: Sequence[int], level: int) -> None:
    lost = ~(x.abs().amax((1, 2)) < FAR)
    if not bool(lost.any()):
        return
    numbers = [samples[place] for place in torch.nonzero(lost)[:NAMED, 0].tolist()]
    raise SamplingDiverged(
        f"{len(x)} samples of a diffusion model",
        f"{int(lost.sum())} that diverged at level {level}, sample {', '.join(map(str, numbers))} among them",
        "train for longer or at a lower learning rate, or take more steps",
    )
