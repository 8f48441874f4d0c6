"""What every part of a force field returns for a batch of frames."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Prediction(NamedTuple):
    """energy in kJ/mol, and forces = -d energy / d positions in kJ/mol/nm."""

    energy: Float[Tensor, "frame"]
    forces: Float[Tensor, "frame bead 3"]

    def __add__(self, other: "Prediction") -> "Prediction":  # type: ignore[override]
        return Prediction(self.energy + other.energy, self.forces + other.forces)
