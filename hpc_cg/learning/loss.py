"""Force matching: the mean square of label minus model, and what it means.

    L = ⟨|F − F_model(R)|²⟩ = ⟨|F − ⟨F|R⟩|²⟩ + ⟨|⟨F|R⟩ − F_model(R)|²⟩

The first part is the noise of the labels, which no model removes. A model at the minimum is the conditional mean, for
which the noise is ⟨F²⟩ − ⟨F_model²⟩: that is the floor reported beside the loss, an upper bound for a model that has
not yet got there (Noid et al. 2008, doi 10.1063/1.2938860). All mean squares are per frame, bead and axis, in
(kJ/mol/nm)².
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def sum_of_squares(difference: Float[Tensor, "frame bead 3"], weights: Float[Tensor, "frame"]) -> Float[Tensor, ""]:
    """Σ over frames of weight times the mean square over beads and axes."""
    return (difference.square().mean(dim=(1, 2)) * weights).sum()


@dataclass(frozen=True)
class ForceErrors:
    """Mean squares over a set of frames, (kJ/mol/nm)².

    label     of the labels            delta      of labels minus prior forces
    model     of the model's forces    residual   of labels minus model
    """

    label: float
    delta: float
    model: float
    residual: float

    @property
    def floor(self) -> float:
        """Noise of the labels, ⟨F²⟩ − ⟨F_model²⟩."""
        return self.label - self.model

    @property
    def explained(self) -> float:
        """Fraction of the label's mean square that the model explains."""
        return 1 - self.residual / self.label

    @property
    def explained_delta(self) -> float:
        """Fraction of what the priors leave that the network explains."""
        return 1 - self.residual / self.delta

    def to_json(self) -> dict[str, Any]:
        """Everything above, by name."""
        follow = {"floor": self.floor, "explained": self.explained, "explained_delta": self.explained_delta}
        return asdict(self) | follow

    @staticmethod
    def pooled(errors: "Sequence[ForceErrors]") -> "ForceErrors":
        """The mean over molecules, each of which counts the same."""
        rows = [asdict(one) for one in errors]
        return ForceErrors(**{name: sum(row[name] for row in rows) / len(rows) for name in rows[0]})


def error_sums(
    label: Float[Tensor, "frame bead 3"],
    prior: Float[Tensor, "frame bead 3"],
    model: Float[Tensor, "frame bead 3"],
    weights: Float[Tensor, "frame"],
) -> Float[Tensor, "5"]:
    """Weighted sums that ``errors_of`` turns into ForceErrors; sums of several sets add up."""
    parts = [sum_of_squares(x, weights) for x in (label, label - prior, model, label - model)]
    return torch.stack([*parts, weights.sum()]).double()


def errors_of(sums: Float[Tensor, "5"]) -> ForceErrors:
    """Mean squares from the sums of any number of frames."""
    label, delta, model, residual, weight = sums.tolist()
    return ForceErrors(label / weight, delta / weight, model / weight, residual / weight)
