"""The engine in C: all steps between two saved frames in one call, replicas in tiles over this machine's cores.

A replica's trajectory is the same bits for any number of threads and any companions (see hpc_cg/simulate/engine.c).
"""

import ctypes
import weakref
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hpc_cg.compiler import Source, library
from hpc_cg.errors import NoCompiler
from hpc_cg.forcefield.evaluator import relative_rms
from hpc_cg.forcefield.forcefield import ForceField
from hpc_cg.forcefield.prediction import Prediction
from hpc_cg.simulate.langevin import Dynamics, EnsembleState, baoab, overdamped
from hpc_cg.simulate.noise import key_of
from hpc_cg.simulate.packing import MAX_LAYERS, Packed, pack

SOURCE = Source(Path(__file__).with_name("engine.c"), "the compiled simulation engine", 'simulate.engine = "torch"')

TILE_ROWS = 56
"""Beads that a tile holds, about: enough to keep products of matrices busy, few enough for the second-level cache."""

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
_NEW: list = [_POINTER, _LONG, _POINTER, _LONG]
_RUN: list = [_POINTER, _INT, _INT, _INT, _POINTER, ctypes.c_uint64, _LONG, _INT, _FLOAT, _FLOAT, *[_POINTER] * 8]


class CompiledEngine:
    """The force field in single precision, with filters from cubic B-splines of ``n_knots`` intervals.

    The force field is copied: later training does not change the engine. Raises NoCompiler where the library cannot be
    made, or has no room for so many layers.
    """

    name = "compiled"
    device = torch.device("cpu")

    def __init__(self, forcefield: ForceField, dynamics: Dynamics, n_knots: int = 2048, n_threads: int | None = None):
        layers = max(len(forcefield.network.blocks), len(forcefield.network.readout))
        if layers > MAX_LAYERS:
            raise NoCompiler("the compiled simulation engine", f"a network of {layers} layers", f"at most {MAX_LAYERS}")
        self.n_threads = n_threads or torch.get_num_threads()
        self.n_knots, self.system, self.network = n_knots, forcefield.system, deepcopy(forcefield.network).cpu()
        self.dynamics = dynamics
        self.key = np.array(key_of(dynamics.seed), np.uint32)
        self.handle = _Handle(pack(self.network, self.system, forcefield.parameters_of_prior, n_knots))

    def evaluate(self, positions: Float[Tensor, "replica bead 3"]) -> Prediction:
        """Energies and forces (nm, kJ/mol)."""
        return self._evaluated(self.handle, positions)

    def advance(
        self,
        state: EnsembleState,
        n_steps: int,
        replica_ids: Sequence[int],
        heat: Float[np.ndarray, "replica"] | None = None,
    ) -> EnsembleState:
        """The state n_steps later; noise is keyed by each replica's id and the step, and scaled by its heat."""
        assert state.positions.dtype == torch.float32, "the compiled engine works in single precision"
        assert n_steps > 0 and len(replica_ids) == len(state.positions)
        return self._run(self.handle, state, n_steps, replica_ids, heat)

    def table_error(self, positions: Float[Tensor, "frame bead 3"]) -> float:
        """Rms error of the network's forces over their rms, against the network itself in float64, at positions (nm).

        It holds the splines' error and that of single precision.
        """
        with torch.inference_mode():
            wanted = deepcopy(self.network).double()(positions.double()).forces
        alone = _Handle(pack(self.network, self.system, None, self.n_knots))
        error = self._evaluated(alone, positions.float()).forces.double() - wanted
        return relative_rms(error, wanted)

    def _numbers(self) -> tuple[int, float, float, Tensor, Tensor]:
        """Of a step: inertia or not, drift, decay, and per bead kick (or mobility) and spread."""
        if self.dynamics.integrator == "overdamped":
            still = overdamped(self.dynamics, torch.zeros(0))
            return 0, 0.0, 0.0, still.mobility, still.spread
        moving = baoab(self.dynamics, torch.zeros(0))
        return 1, moving.drift, moving.decay, moving.kick, moving.spread

    def _evaluated(self, handle: "_Handle", positions: Tensor) -> Prediction:
        still, none = torch.zeros_like(positions), torch.zeros(len(positions))
        state = EnsembleState(positions, still, still, none, 0)
        found = self._run(handle, state, 0, range(len(positions)))
        return Prediction(found.energies, found.forces)

    def _run(
        self,
        handle: "_Handle",
        state: EnsembleState,
        n_steps: int,
        ids: Sequence[int],
        heat: Float[np.ndarray, "replica"] | None = None,
    ) -> EnsembleState:
        n_replicas, n_beads, _ = state.positions.shape
        assert n_beads == self.system.n_beads, f"{n_beads} beads, the force field has {self.system.n_beads}"
        parts = (state.positions, state.velocities, state.forces, state.energies)
        x, v, f, e = (part.detach().numpy().astype(np.float32, order="C", copy=True) for part in parts)
        inertia, drift, decay, *per_bead = self._numbers()
        kick, spread = (np.ascontiguousarray(part.numpy().ravel()) for part in per_bead)
        scale = np.ascontiguousarray(np.ones(n_replicas) if heat is None else heat, dtype=np.float32)
        tile = max(1, min(round(TILE_ROWS / n_beads), -(-n_replicas // self.n_threads)))
        arrays = (kick, spread, scale, self.key, x, v, f, e)
        numbers = np.array(ids, np.int64)
        handle.run(
            *(n_replicas, tile, self.n_threads, numbers.ctypes.data, state.step, n_steps),
            *(inertia, drift, decay, *(array.ctypes.data for array in arrays)),
        )
        positions, velocities, forces, energies = (torch.from_numpy(part) for part in (x, v, f, e))
        return EnsembleState(positions, velocities, forces, energies, state.step + n_steps)


class _Handle:
    """A force field in the library's memory, which is given back when nobody needs it any more."""

    def __init__(self, packed: Packed):
        code = library(SOURCE)
        new, self._run = code.engine_new, code.engine_run
        new.restype, new.argtypes, code.engine_free.argtypes = _POINTER, _NEW, [_POINTER]
        self._run.argtypes = _RUN
        ints, floats = packed.ints, packed.floats
        self._address = new(ints.ctypes.data, len(ints), floats.ctypes.data, len(floats))
        if not self._address:
            raise MemoryError(f"no room for the engine's {floats.nbytes / 1e6:.0f} MB")
        weakref.finalize(self, code.engine_free, self._address)

    def run(self, *arguments: float | int) -> None:
        """Call the library; raises MemoryError."""
        if self._run(self._address, *arguments):
            raise MemoryError(f"no room for the engine's tiles of {arguments[1]} replicas")
