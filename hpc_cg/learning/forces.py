"""The way to the network's forces in training, chosen once: grid, compiled pairs, precision, torch.compile.

What is not the plain way is compared with it at the start: a faster way that gives other numbers is refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpc_cg.errors import NoCompiler, OtherNumbers
from hpc_cg.forcefield import fused
from hpc_cg.forcefield.forcefield import ForceField
from hpc_cg.forcefield.grid import Grid
from hpc_cg.forcefield.together import forces_together
from hpc_cg.learning.distributed import World
from hpc_cg.learning.feed import Labelled
from hpc_cg.learning.settings import Settings

BFLOAT16_TOLERANCE = 0.02
"""Rms difference of forces in bfloat16 from those in float32, over their rms."""

COMPILE_TOLERANCE = 1e-4
"""The same for what torch.compile makes, of forces and of gradients."""

CHECKED = 256
"""Held-out frames of each process that forces are compared on."""


@dataclass(frozen=True)
class Way:
    """How the network's forces are had.

    grid   how filters are interpolated; None for the filters themselves
    half   whether matrix products are done in bfloat16
    """

    forcefield: ForceField
    grid: Grid | None
    half: bool = False

    def __call__(self, positions: Tensor) -> Tensor:
        """Forces of the network (frame bead 3; kJ/mol/nm)."""
        return self.forcefield.delta(positions, self.grid, self.half)

    @property
    def pairs(self) -> str:
        """Who sums over pairs of beads."""
        return "compiled" if self.grid is not None and self.grid.compiled else "torch"


Part = tuple[int, Labelled]
"""Frames of one molecule, behind its number."""

Forces = Callable[[Sequence[int], Sequence[Tensor]], list[Tensor]]
"""From the numbers of some molecules and positions of each (frame bead 3) to the forces of each."""


@dataclass(frozen=True)
class Ways:
    """The ways of all molecules that are trained on, to be asked for their forces together."""

    each: tuple[Way, ...]

    def __call__(self, numbers: Sequence[int], positions: Sequence[Tensor]) -> list[Tensor]:
        """Forces of the network on frames of the molecules with these numbers (each frame bead 3; kJ/mol/nm)."""
        ways = [self.each[number] for number in numbers]
        if len(ways) == 1:
            return [ways[0](positions[0])]
        return forces_together([way.forcefield.network for way in ways], positions, ways[0].grid, ways[0].half)


def choose_grid(settings: Settings, device: torch.device) -> Grid | None:
    """How filters are interpolated in training; raises NoCompiler where compiled code is wanted and cannot be had."""
    if not settings.filter_grid:
        return None
    on_cpu = device.type == "cpu"
    if settings.pairs == "compiled":
        if not on_cpu:
            raise NoCompiler(
                'sums over pairs by compiled code (train.pairs = "compiled")',
                f"a training on {device.type}, for which there is none",
                'set train.pairs = "auto"',
            )
        fused.require()
    compiled = settings.pairs != "torch" and on_cpu and not settings.compile and fused.available()
    # an accelerator has arithmetic to spare, and would wait to learn which knots are used; torch.compile likewise
    return Grid(settings.filter_grid, compiled, all_knots=not on_cpu or settings.compile)


def precision_error(way: Way, held_out: Sequence[Labelled], world: World) -> float:
    """The rms difference of a way's forces from those in float32, over their rms, on held-out frames."""
    plain = Way(way.forcefield, way.grid)
    device = next(way.forcefield.parameters()).device
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    with torch.no_grad():
        for part in held_out[:1]:
            wanted, found = plain(part.positions[:CHECKED]), way(part.positions[:CHECKED])
            sums += torch.stack([(found - wanted).square().sum(), wanted.square().sum()]).double()
    apart, whole = world.sum_(sums).tolist()
    return (apart / whole) ** 0.5 if whole else float("inf")


def refuse_precision(error: float) -> None:
    """Raises OtherNumbers where the error of the precision is larger than BFLOAT16_TOLERANCE."""
    if not error <= BFLOAT16_TOLERANCE:
        raise OtherNumbers(
            'the forces of float32 with train.precision = "bfloat16"',
            f"a relative difference of {error:.1e} on held-out frames, more than {BFLOAT16_TOLERANCE}",
            'set train.precision = "float32"',
        )


@dataclass(frozen=True)
class CompiledWay:
    """Ways as torch.compile makes them, for the numbers of frames that come again and again.

    torch.compile makes a step for each number of frames, and no more than some; another number goes the plain way.

    n_frames   by molecule: its number and how many frames, of all that are asked for together
    """

    plain: Ways
    quick: Forces
    n_frames: frozenset[tuple[tuple[int, int], ...]]

    def __call__(self, numbers: Sequence[int], positions: Sequence[Tensor]) -> list[Tensor]:
        """Forces of the network, as ``Ways`` gives them."""
        asked = tuple(zip(numbers, map(len, positions), strict=True))
        return self.quick(numbers, positions) if asked in self.n_frames else self.plain(numbers, positions)


def compiled_by_torch(ways: Ways, samples: Sequence[Sequence[Part]]) -> CompiledWay:
    """The ways as torch.compile makes them for as many frames as each sample has: one or two numbers in a training.

    They are compared on the samples: forces, and gradients of a loss. Raises OtherNumbers where they differ, or where
    this torch cannot compile it here.
    """
    quick = torch.compile(ways, dynamic=False)
    for sample in samples:
        _compare(ways, quick, sample)
    return CompiledWay(ways, quick, frozenset(sizes_of(sample) for sample in samples))


def sizes_of(parts: Sequence[Part]) -> tuple[tuple[int, int], ...]:
    """Which molecules there are frames of, and how many."""
    return tuple((number, len(frames.index)) for number, frames in parts)


def _compare(ways: Ways, quick: Forces, sample: Sequence[Part]) -> None:
    """Raises OtherNumbers where ``quick`` fails, or gives other forces or gradients than the ways."""
    parameters = [p for p in ways.each[0].forcefield.parameters() if p.requires_grad]
    wanted, gradient = _forces_and_gradient(ways, sample, parameters)
    try:
        found, other = _forces_and_gradient(quick, sample, parameters)
    except Exception as error:
        raise OtherNumbers(
            "the training step with train.compile",
            f"torch.compile failing ({type(error).__name__}: {' '.join(str(error).split())[:200]})",
            "set train.compile = false, or install a C++ compiler",
        ) from error
    for what, one, two in (("forces", found, wanted), ("gradients", other, gradient)):
        difference = float((one - two).norm() / two.norm())
        if not difference <= COMPILE_TOLERANCE:
            raise OtherNumbers(
                f"the same {what} with train.compile",
                f"a relative difference of {difference:.1e}",
                "set train.compile = false",
            )


def _forces_and_gradient(ways: Forces, sample: Sequence[Part], parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    found = ways(tuple(number for number, _ in sample), [frames.positions for _, frames in sample])
    terms = [(forces - frames.forces).square().mean() for forces, (_, frames) in zip(found, sample, strict=True)]
    gradient = torch.autograd.grad(torch.stack(terms).sum(), parameters)
    flat = [torch.cat([part.reshape(-1) for part in parts]) for parts in (found, gradient)]
    return flat[0].detach(), flat[1]
