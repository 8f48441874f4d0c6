"""How noise grows from level to level, and which physical width of noise a level stands for.

    x_t = √ᾱ_t x + √(1 − ᾱ_t) ε,     ᾱ_t = Π_{u ≤ t} (1 − β_u)
    β_t = 1 − f((t + 1)/T) / f(t/T),     f(u) = cos²((u + o) / (1 + o) · π/2)

the cosine schedule (Nichol, Dhariwal 2021, arXiv 2102.09672), with levels t counted from 0 and β at most 0.999, as Arts
et al. (arXiv 2302.00600) use it. x is a centred frame over the scale s of the data, so x_t/√ᾱ_t in nm is the frame with
noise of width

    σ_t = s √((1 − ᾱ_t)/ᾱ_t)

and a model at level t is one of the data that the noise kernel of that width blurs.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64

from hpc_cg.errors import UnfitLevel

LARGEST_BETA = 0.999


@dataclass(frozen=True)
class CosineSchedule:
    """n_levels T; offset o, by which the first steps are not too small."""

    n_levels: int = 1000
    offset: float = 0.008

    @cached_property
    def betas(self) -> Float64[np.ndarray, "level"]:
        """β_t: the variance of the noise that level t adds."""
        u = np.linspace(0.0, 1.0, self.n_levels + 1)
        kept = np.cos((u + self.offset) / (1 + self.offset) * np.pi / 2) ** 2
        return np.minimum(1 - kept[1:] / kept[:-1], LARGEST_BETA)

    @cached_property
    def signal(self) -> Float64[np.ndarray, "level"]:
        """ᾱ_t: the part of the variance that is the data's."""
        return np.exp(np.log1p(-self.betas).cumsum())

    @cached_property
    def noise(self) -> Float64[np.ndarray, "level"]:
        """1 − ᾱ_t, without the rounding of that difference."""
        return -np.expm1(np.log1p(-self.betas).cumsum())

    @cached_property
    def widths(self) -> Float64[np.ndarray, "level"]:
        """√((1 − ᾱ_t)/ᾱ_t): σ_t of data of scale 1."""
        return np.sqrt(self.noise / self.signal)

    def sigma_nm(self, level: int, scale_nm: float) -> float:
        """The width of noise (nm) that a level stands for; raises UnfitLevel."""
        return float(scale_nm * self.widths[self.checked(level)])

    def level_of(self, sigma_nm: float, scale_nm: float) -> int:
        """The level whose width of noise is nearest by ratio; raises UnfitLevel where none is within half a step."""
        wanted = np.log(sigma_nm / scale_nm) if sigma_nm > 0 else -np.inf
        known = np.log(self.widths)
        least, most = known[0] - 0.5 * (known[1] - known[0]), known[-1] + 0.5 * (known[-1] - known[-2])
        if not least <= wanted <= most:
            raise UnfitLevel(
                f"the noise level of width {sigma_nm:g} nm for data of scale {scale_nm:g} nm",
                f"levels from {scale_nm * self.widths[0]:.3g} to {scale_nm * self.widths[-1]:.3g} nm",
                "choose a width between these, or a schedule of more levels",
            )
        return int(np.abs(known - wanted).argmin())

    def checked(self, level: int) -> int:
        """The level; raises UnfitLevel where the schedule has none of that number."""
        if not 0 <= level < self.n_levels:
            raise UnfitLevel(
                f"noise level {level}",
                f"a schedule with levels 0 to {self.n_levels - 1}",
                "choose one of these; force fields are read off at 5 to 20 of 1000",
            )
        return level
