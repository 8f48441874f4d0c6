"""How much of the noise a reverse kernel takes back, in bonds, angles and distances of pairs.

Frames R are blurred to R + σξ, and a kernel draws R'' from those. For each coordinate q

    shift   ⟨q⟩ − ⟨q(R)⟩             of blurred frames and of draws: zero for a kernel that is right
    width   standard deviation of q   that of R for a kernel that is right; blurred bonds have √(s² + 2σ²)
    error   √⟨(q − q(R))²⟩           of a right kernel √2 times what blurred frames leave unknown

Sums over frames, so that stores of any size can be judged.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float, Float64

from hpc_cg.analysis.features import angles, bond_lengths
from hpc_cg.beads import BeadSystem
from hpc_cg.errors import TooFewFrames

BLOCK_NUMBERS = 1 << 21
"""Coordinates of one kind that are worked on at once."""


@dataclass(frozen=True)
class Denoising:
    """One kind of coordinate, as root mean squares over all of the kind; nm or radians.

    Of clean frames, of blurred ones and of draws: ``width``; of blurred ones and of draws: ``shift`` and ``error``.
    """

    kind: str
    unit: str
    clean_width: float
    blurred_width: float
    drawn_width: float
    blurred_shift: float
    drawn_shift: float
    blurred_error: float
    drawn_error: float


@dataclass(frozen=True, eq=False)
class DenoisingSums:
    """Sums over frames, a row for each of clean, blurred and drawn; ``a + b`` are those of both sets of frames.

    weight          Σ w
    first, second   Σ w q and Σ w q² by kind of coordinate
    apart           Σ w (q − q of the clean frame)² by kind
    """

    weight: float
    first: dict[str, Float64[np.ndarray, "3 coordinate"]]
    second: dict[str, Float64[np.ndarray, "3 coordinate"]]
    apart: dict[str, Float64[np.ndarray, "3 coordinate"]]

    @staticmethod
    def of(
        system: BeadSystem,
        clean: Float[np.ndarray, "frame bead 3"],
        blurred: Float[np.ndarray, "frame bead 3"],
        drawn: Float[np.ndarray, "frame bead 3"],
        weights: Float[np.ndarray, "frame"] | None = None,
    ) -> "DenoisingSums":
        """Of frames, what became of them by noise, and what a kernel drew from that; nm.

        weights   of the frames, 1 by default; those of weight 0, where the kernel failed, are not looked at
        """
        w = np.ones(len(clean)) if weights is None else weights.astype(np.float64)
        used = np.flatnonzero(w > 0)
        first, second, apart = {}, {}, {}
        for kind, coordinate, terms in _kinds(system):
            sums = np.zeros((3, 3, len(terms)))
            step = max(1, BLOCK_NUMBERS // len(terms))
            for rows in (used[start : start + step] for start in range(0, len(used), step)):
                q = np.stack([coordinate(frames[rows], terms) for frames in (clean, blurred, drawn)])
                sums += [np.einsum("f,sfc->sc", w[rows], power) for power in (q, q**2, (q - q[0]) ** 2)]
            first[kind], second[kind], apart[kind] = sums
        return DenoisingSums(float(w[used].sum()), first, second, apart)

    def __add__(self, other: "DenoisingSums") -> "DenoisingSums":
        sums = ({kind: a[kind] + b[kind] for kind in a} for a, b in zip(self._parts(), other._parts(), strict=True))
        return DenoisingSums(self.weight + other.weight, *sums)

    def _parts(self) -> tuple[dict[str, np.ndarray], ...]:
        return self.first, self.second, self.apart

    def table(self) -> tuple[Denoising, ...]:
        """Bonds, angles and distances of pairs that are not bonded, as far as there are any; raises TooFewFrames."""
        if not self.weight > 0:
            raise TooFewFrames("what a kernel takes back of the noise", "no draws", "draw for more frames")
        found = []
        for kind in self.first:
            first, second, apart = (part[kind] / self.weight for part in self._parts())
            widths, shifts, errors = (
                np.sqrt(np.mean(squares, axis=1)).tolist()
                for squares in ((second - first**2).clip(0), (first - first[0]) ** 2, apart)
            )
            unit = "rad" if kind == "angles" else "nm"
            found.append(Denoising(kind, unit, *widths, *shifts[1:], *errors[1:]))
        return tuple(found)


def _kinds(system: BeadSystem) -> Iterator[tuple[str, Callable[..., np.ndarray], tuple]]:
    pairs = tuple(pair for pair in combinations(range(system.n_beads), 2) if pair not in system.bonds)
    for kind, coordinate, terms in (
        ("bonds", bond_lengths, system.bonds),
        ("angles", angles, system.angles),
        ("pairs", bond_lengths, pairs),
    ):
        if terms:
            yield kind, coordinate, terms
