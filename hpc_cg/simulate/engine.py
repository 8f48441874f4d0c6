"""What moves an ensemble: the interface of the engines, and the choice among them.

    compiled   one pass in C on this machine's cores, made at first use       hpc_cg/simulate/compiled.py
    torch      dense batches, on a GPU as a captured graph                    hpc_cg/simulate/batch.py

Both make the same trajectory up to rounding: the same forces, steps and noise.
"""

import warnings
from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hpc_cg.errors import NoCompiler
from hpc_cg.forcefield.forcefield import ForceField
from hpc_cg.forcefield.prediction import Prediction
from hpc_cg.simulate.langevin import Dynamics, EnsembleState

Choice = Literal["auto", "compiled", "torch"]


@runtime_checkable
class Engine(Protocol):
    """Forces and steps of many replicas of one bead system."""

    @property
    def name(self) -> str:
        """Which engine this is, as in ``Choice``."""
        ...

    @property
    def dynamics(self) -> Dynamics:
        """What decides its trajectories beside forces and start."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its states lie."""
        ...

    def evaluate(self, positions: Float[Tensor, "replica bead 3"]) -> Prediction:
        """Energies and forces (nm, kJ/mol)."""
        ...

    def advance(
        self,
        state: EnsembleState,
        n_steps: int,
        replica_ids: Sequence[int],
        heat: Float[np.ndarray, "replica"] | None = None,
    ) -> EnsembleState:
        """The state n_steps later; noise is keyed by each replica's id and the step.

        heat   sqrt(T / temperature of the dynamics) of each replica, which scales its noise; one where it is left out
        """
        ...

    def table_error(self, positions: Float[Tensor, "frame bead 3"]) -> float:
        """Rms error of the network's forces as this engine gives them over their rms, at positions (nm)."""
        ...


def engine(
    choice: Choice, forcefield: ForceField, dynamics: Dynamics, device: torch.device | str = "cpu", n_knots: int = 2048
) -> Engine:
    """The engine of that name; "auto" takes torch on a GPU, else the compiled one, else, with a warning, torch.

    Raises NoCompiler where the compiled engine is asked for and cannot be had.
    """
    from hpc_cg.simulate.batch import TorchEngine
    from hpc_cg.simulate.compiled import CompiledEngine

    on_gpu = torch.device(device).type != "cpu"
    if choice == "compiled" or (choice == "auto" and not on_gpu):
        try:
            return CompiledEngine(forcefield, dynamics, n_knots)
        except NoCompiler as error:
            if choice == "compiled":
                raise
            warnings.warn(f"simulating with torch, which is several times slower: {error}", stacklevel=2)
    return TorchEngine(forcefield, dynamics, device, n_knots)
