"""An exponential moving average of the weights, which fluctuates less than they do.

    a <- d a + (1 - d) w,     d = min(decay, (1 + step) / (10 + step))

The smaller decay at the beginning lets the average forget where training began (as in Inception's, Szegedy et al. 2016,
doi 10.1109/CVPR.2016.308). The weights themselves go on being trained.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """The average of some parameters; the parameters themselves where ``decay`` is 0."""

    def __init__(self, parameters: Sequence[Tensor], decay: float):
        self.parameters, self.decay = list(parameters), decay
        self.values = [p.detach().clone() for p in parameters] if decay else []

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights that step ``step`` (counted from 0) has led to."""
        if self.decay:
            kept = min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1.0 - kept)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The average instead of the parameters, while this lasts."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for value, parameter in zip(self.values, self.parameters, strict=bool(self.values)):
            kept = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(kept)
