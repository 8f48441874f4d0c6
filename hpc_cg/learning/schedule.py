"""How fast to learn, and when to stop: what a look at the held-out frames changes, as a value.

All schedules begin with a linear warm-up. "cosine" then falls from the peak to the final rate over the steps that are
left; "plateau" stays at the peak and is multiplied by ``factor`` after each ``patience`` looks without a smaller error,
down to the final rate. Early stopping ends a training after so many looks without a smaller error.
"""

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Schedule:
    """The learning rate of each step.

    kind        "cosine" or "plateau"
    stop_after  looks without a smaller held-out error after which training ends; 0 for never
    """

    kind: str
    steps: int
    learning_rate: float
    final_learning_rate: float
    warmup_steps: int
    factor: float = 0.8
    patience: int = 5
    stop_after: int = 0

    def rate(self, step: int, reductions: int = 0) -> float:
        """Learning rate of a step (counted from 0), after so many reductions."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.kind == "plateau":
            return max(self.final_learning_rate, self.learning_rate * self.factor**reductions)
        along = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        wave = 0.5 * (1 + math.cos(math.pi * along))
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * wave


@dataclass(frozen=True)
class Progress:
    """What the looks at held-out frames have shown so far; plain numbers, so that a checkpoint can hold them.

    best        smallest error, of step best_step; None before the first look
    waited      looks since then
    idle        looks since then or since the rate was last reduced
    reductions  of the rate
    """

    best: float | None = None
    best_step: int = 0
    waited: int = 0
    idle: int = 0
    reductions: int = 0

    def after(self, step: int, error: float, schedule: Schedule) -> "Progress":
        """The progress after a look at ``step`` that found the mean square ``error``."""
        if math.isfinite(error) and (self.best is None or error < self.best):
            return Progress(error, step, reductions=self.reductions)
        waited, idle, reductions = self.waited + 1, self.idle + 1, self.reductions
        if schedule.kind == "plateau" and idle >= schedule.patience:
            idle, reductions = 0, reductions + 1
        return replace(self, waited=waited, idle=idle, reductions=reductions)

    def ended(self, schedule: Schedule) -> bool:
        """Whether training has waited long enough for a smaller error."""
        return 0 < schedule.stop_after <= self.waited
