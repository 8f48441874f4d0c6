"""How to train: the settings of the trainer, and what follows from them."""

from dataclasses import dataclass

from hpc_cg.learning.schedule import Schedule


@dataclass(frozen=True)
class Settings:
    """How to train. Stage train says the same words to a user.

    steps             optimizer steps in all
    batch_size        frames in the global batch, over all processes
    learning_rate     its peak; linear warm-up over warmup_steps, then as the schedule says, to final_learning_rate
    clip              largest norm of the gradient of the loss divided by the delta labels' mean square
    validate_every    steps between looks at the held-out frames
    checkpoint_every  steps between checkpoints
    filter_grid       intervals of the grid that filters are interpolated on; 0 for the filters themselves
    pairs             who sums over pairs on a grid: "compiled", "torch", or "auto"
    schedule          "cosine", or "plateau" with its factor and patience
    early_stop        looks without a smaller error after which training ends; 0 for never
    ema               decay of the average of the weights; 0 for none
    accumulate        parts of a batch that are done one after another
    precision         "float32", or "bfloat16" for the matrix products of the network
    decoy_every       one frame in so many has a displaced copy without delta force; 0 for none
    decoy_nm          standard deviation of the displacement
    """

    steps: int
    batch_size: int
    learning_rate: float
    final_learning_rate: float
    warmup_steps: int
    weight_decay: float
    clip: float
    validate_every: int
    checkpoint_every: int
    seed: int
    filter_grid: int = 0
    pairs: str = "auto"
    schedule: str = "cosine"
    plateau_factor: float = 0.8
    plateau_patience: int = 5
    early_stop: int = 0
    ema: float = 0.0
    accumulate: int = 1
    precision: str = "float32"
    compile: bool = False
    decoy_every: int = 0
    decoy_nm: float = 0.05
    tensorboard: bool = False

    @property
    def pace(self) -> Schedule:
        """The learning rate of each step, and when to stop."""
        return Schedule(
            self.schedule,
            self.steps,
            self.learning_rate,
            self.final_learning_rate,
            self.warmup_steps,
            self.plateau_factor,
            self.plateau_patience,
            self.early_stop,
        )
