"""What a learnt kernel was fitted on, and so what it may be used for.

A kernel knows one molecule, one width of noise, one temperature, and conditions like those it was fitted to. These are
remembered by the distances of pairs of beads: of each pair the least and the largest in some displaced frames. A
condition in which a distance lies further outside than half of what lies between the two is out of reach. Chance does
not bring that about: of Gaussian distances 2000 frames span 3.4 standard deviations to either side, so out of reach is
beyond 6.8, where one in 10¹¹ lies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hpc_cg.errors import DamagedProduct, TemperatureMismatch

MOST_PAIRS = 512
MARGIN = 0.5
"""How far outside the span of a distance is still within reach, over that span."""

ROWS = 1 << 21
"""Distances that are worked on at once."""


@dataclass(frozen=True)
class Reach:
    """The distances that conditions had: least and largest of each pair, nm."""

    pairs: tuple[tuple[int, int], ...]
    low_nm: tuple[float, ...]
    high_nm: tuple[float, ...]

    @staticmethod
    def of(condition: Float[Tensor, "frame bead 3"], bonds: Sequence[tuple[int, int]] = ()) -> "Reach":
        """Of displaced frames, nm. Of many pairs the bonds are looked at, and others evenly spread."""
        others = [pair for pair in combinations(range(condition.shape[1]), 2) if pair not in set(bonds)]
        step = -(-len(others) // max(1, MOST_PAIRS - len(bonds)))
        pairs = tuple(sorted([*bonds, *others[:: max(1, step)]]))
        distances = _distances(condition, pairs)
        low, high = (tuple(values.tolist()) for values in (distances.amin(0), distances.amax(0)))
        return Reach(pairs, low, high)

    def holds(self, condition: Float[Tensor, "frame bead 3"]) -> Bool[Tensor, "frame"]:
        """Which conditions (nm) are within reach; those that are no numbers are not."""
        low, high = (torch.tensor(values).to(condition) for values in (self.low_nm, self.high_nm))
        room = MARGIN * (high - low)
        size = max(1, ROWS // max(1, len(self.pairs)))
        parts = [_distances(part, self.pairs) for part in condition.split(size)]
        return torch.cat([((d >= low - room) & (d <= high + room)).all(1) for d in parts])


def _distances(positions: Tensor, pairs: Sequence[tuple[int, int]]) -> Float[Tensor, "frame pair"]:
    first, second = torch.tensor(pairs, dtype=torch.long, device=positions.device).reshape(-1, 2).T
    return (positions[:, first] - positions[:, second]).norm(dim=-1)


@dataclass(frozen=True)
class FittedOn:
    """Of a learnt kernel.

    beads      their names
    sigma_nm   standard deviation of the noise that it undoes
    """

    molecule: str
    beads: tuple[str, ...]
    sigma_nm: float
    temperature_K: float
    reach: Reach

    @staticmethod
    def from_description(content: Mapping[str, Any]) -> "FittedOn":
        """Of what ``asdict`` gave and JSON kept."""
        reach = content["reach"]
        pairs = tuple((int(a), int(b)) for a, b in reach["pairs"])
        return FittedOn(
            content["molecule"],
            tuple(content["beads"]),
            content["sigma_nm"],
            content["temperature_K"],
            Reach(pairs, tuple(reach["low_nm"]), tuple(reach["high_nm"])),
        )

    def refuse_other(self, molecule: str, beads: Sequence[str], sigma_nm: float, temperature_K: float) -> None:
        """Raise where it is to be used for anything else: DamagedProduct, TemperatureMismatch."""
        again = "run the stage flow of this study again, or use the study that it was fitted in"
        if (self.molecule, self.beads) != (molecule, tuple(beads)):
            raise DamagedProduct(
                f"a learnt kernel of {molecule} with {_listed(beads)}",
                f"one that was fitted to {self.molecule} with {_listed(self.beads)}",
                again,
            )
        if self.sigma_nm != sigma_nm:
            raise DamagedProduct(
                f"a learnt kernel that undoes noise of {sigma_nm:g} nm",
                f"one that was fitted to noise of {self.sigma_nm:g} nm",
                f"set flow.sigma_nm = {self.sigma_nm:g}, or run the stage flow again",
            )
        if self.temperature_K != temperature_K:
            raise TemperatureMismatch(
                f"a learnt kernel at {temperature_K:g} K", f"one that was fitted at {self.temperature_K:g} K", again
            )


def _listed(beads: Sequence[str]) -> str:
    names = ", ".join(beads[:8]) + (", ..." if len(beads) > 8 else "")
    return f"{len(beads)} beads ({names})"
