"""Langevin dynamics by BAOAB: kick, drift, thermostat, drift, kick; one evaluation of the forces per step.

    B  v += dt F / 2m
    A  x += dt v / 2
    O  v <- c v + sqrt((1 - c^2) kT / m) R,    c = exp(-friction dt),    R standard normal

(Leimkuhler & Matthews 2013, doi 10.1093/amrx/abs010.) Positions are sampled with very small error in dt;
full-step velocities are not: a mode of frequency w reads the kinetic temperature T (1 - (w dt)^2 / 4), so a
stiff bond looks cold in a run whose positions are right. State in, state out; the random numbers are given by
the caller. The compiled engine makes the same steps, see hpc_cg/simulate/engine.c.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hpc_cg.forcefield.evaluator import Evaluate
from hpc_cg.randomness import stream
from hpc_cg.units import BOLTZMANN, kT


@dataclass(frozen=True)
class EnsembleState:
    """Replicas side by side at one step: nm, nm/ps, kJ/mol/nm, kJ/mol, all of one dtype."""

    positions: Float[Tensor, "replica bead 3"]
    velocities: Float[Tensor, "replica bead 3"]
    forces: Float[Tensor, "replica bead 3"]
    energies: Float[Tensor, "replica"]
    step: int


@dataclass(frozen=True)
class Baoab:
    """The numbers of one step: ``kick`` dt/2m and ``spread`` of the noise per bead, ``drift`` dt/2 (ps),
    ``decay``.
    """

    kick: Float[Tensor, "bead 1"]
    spread: Float[Tensor, "bead 1"]
    drift: float
    decay: float


@dataclass(frozen=True)
class Dynamics:
    """What decides a trajectory beside forces and start: masses (u) of the beads, timestep_ps, friction_per_ps,
    temperature_K, and the seed of velocities and noise.
    """

    masses: tuple[float, ...]
    timestep_ps: float
    friction_per_ps: float
    temperature_K: float
    seed: int


def baoab(dynamics: Dynamics, like: Tensor) -> Baoab:
    """The numbers of a step, in the dtype and on the device of ``like``."""
    mass = np.asarray(dynamics.masses, dtype=np.float64)[:, None]
    decay = float(np.exp(-dynamics.friction_per_ps * dynamics.timestep_ps))
    spread = np.sqrt((1.0 - decay**2) * kT(dynamics.temperature_K) / mass)
    kick = torch.as_tensor(0.5 * dynamics.timestep_ps / mass).to(like)
    return Baoab(kick, torch.as_tensor(spread).to(like), 0.5 * dynamics.timestep_ps, decay)


def init(
    positions: Float[Tensor, "replica bead 3"], evaluate: Evaluate, dynamics: Dynamics, replica_ids: Sequence[int]
) -> EnsembleState:
    """Step 0: the positions given (nm), and Maxwell's velocities keyed by (seed, replica)."""
    shape = positions.shape[1:]
    draws = [stream(dynamics.seed, "velocities", replica).standard_normal(shape) for replica in replica_ids]
    normals = np.stack(draws)
    thermal = np.sqrt(kT(dynamics.temperature_K) / np.asarray(dynamics.masses, dtype=np.float64))[:, None]
    energies, forces = evaluate(positions)
    return EnsembleState(positions, torch.as_tensor(normals * thermal).to(positions), forces, energies, 0)


def step(
    state: EnsembleState, evaluate: Evaluate, numbers: Baoab, normals: Float[Tensor, "replica bead 3"]
) -> EnsembleState:
    """The state one step later, given standard normal numbers."""
    velocities = torch.addcmul(state.velocities, numbers.kick, state.forces)
    positions = torch.add(state.positions, velocities, alpha=numbers.drift)
    velocities = torch.addcmul(velocities * numbers.decay, numbers.spread, normals)
    positions = torch.add(positions, velocities, alpha=numbers.drift)
    energies, forces = evaluate(positions)
    velocities = torch.addcmul(velocities, numbers.kick, forces)
    return EnsembleState(positions, velocities, forces, energies, state.step + 1)


def kinetic_temperatures(
    velocities: Float[Tensor, "replica bead 3"], masses: Sequence[float]
) -> Float[Tensor, "replica"]:
    """Kinetic temperature (K) of every replica; it reads cold with full-step velocities, see above."""
    mass = torch.as_tensor(np.asarray(masses, dtype=np.float64)[:, None]).to(velocities)
    return (mass * velocities.square()).sum((1, 2)) / (3 * len(masses) * BOLTZMANN)
