"""Langevin dynamics by BAOAB, and without inertia: one evaluation of the forces per step.

BAOAB is kick, drift, thermostat, drift, kick:

    B  v += dt F / 2m
    A  x += dt v / 2
    O  v <- c v + sqrt((1 - c^2) kT / m) R,    c = exp(-friction dt),    R standard normal

(Leimkuhler & Matthews 2013, doi 10.1093/amrx/abs010.) Positions are sampled with very small error in dt;
full-step velocities are not: a mode of frequency w reads the kinetic temperature T (1 - (w dt)^2 / 4), so a
stiff bond looks cold in a run whose positions are right.

Overdamped dynamics (Brownian; Ermak & McCammon 1978, doi 10.1063/1.436761) is the limit of large friction, where
velocities have no part and only positions move, by the mobility 1 / (m friction) of each bead:

    x <- x + dt F / (m friction) + sqrt(2 kT dt / (m friction)) R

It is right to first order in dt only: positions in a harmonic well of stiffness k have the variance
kT/k / (1 - dt k / (2 m friction)), and from dt = 2 m friction / k on every step throws the bead further out.

State in, state out; the random numbers are given by the caller. The compiled engine makes the same steps, see
hpc_cg/simulate/engine.c.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

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
class Overdamped:
    """The numbers of one step without inertia: ``mobility`` dt / (m friction) and ``spread`` of the noise, per bead."""

    mobility: Float[Tensor, "bead 1"]
    spread: Float[Tensor, "bead 1"]


@dataclass(frozen=True)
class Dynamics:
    """What decides a trajectory beside forces and start: masses (u) of the beads, timestep_ps, friction_per_ps,
    temperature_K, the seed of velocities and noise, and the integrator: with inertia or without.
    """

    masses: tuple[float, ...]
    timestep_ps: float
    friction_per_ps: float
    temperature_K: float
    seed: int
    integrator: Literal["baoab", "overdamped"] = "baoab"


Move = Callable[[EnsembleState, Evaluate, Tensor], EnsembleState]
"""One step: the state after, from the state before, the forces, and standard normal numbers (replica bead 3)."""


def move_of(dynamics: Dynamics, like: Tensor) -> Move:
    """A step of the dynamics, in the dtype and on the device of ``like``."""
    if dynamics.integrator == "overdamped":
        still = overdamped(dynamics, like)
        return lambda state, evaluate, normals: overdamped_step(state, evaluate, still, normals)
    moving = baoab(dynamics, like)
    return lambda state, evaluate, normals: step(state, evaluate, moving, normals)


def baoab(dynamics: Dynamics, like: Tensor) -> Baoab:
    """The numbers of a step, in the dtype and on the device of ``like``."""
    mass = np.asarray(dynamics.masses, dtype=np.float64)[:, None]
    decay = float(np.exp(-dynamics.friction_per_ps * dynamics.timestep_ps))
    spread = np.sqrt((1.0 - decay**2) * kT(dynamics.temperature_K) / mass)
    kick = torch.as_tensor(0.5 * dynamics.timestep_ps / mass).to(like)
    return Baoab(kick, torch.as_tensor(spread).to(like), 0.5 * dynamics.timestep_ps, decay)


def overdamped(dynamics: Dynamics, like: Tensor) -> Overdamped:
    """The numbers of a step without inertia, in the dtype and on the device of ``like``."""
    mass = np.asarray(dynamics.masses, dtype=np.float64)[:, None]
    mobility = dynamics.timestep_ps / (mass * dynamics.friction_per_ps)
    spread = np.sqrt(2.0 * kT(dynamics.temperature_K) * mobility)
    return Overdamped(torch.as_tensor(mobility).to(like), torch.as_tensor(spread).to(like))


def longest_overdamped_step(
    dynamics: Dynamics, bonds: Sequence[tuple[int, int]], stiffness: Float[np.ndarray, "bond"]
) -> float:
    """The step (ps) without inertia from which on a bond diverges: the least 2 m friction / k, m its reduced mass.

    stiffness   k of each bond in kJ/mol/nm²; neighbours and other terms make it stiffer only, so that no longer step
                holds. Infinite where there is no bond
    """
    if not bonds:
        return float("inf")
    first, second = np.asarray(dynamics.masses, dtype=np.float64)[np.asarray(bonds).T]
    return float((2.0 * dynamics.friction_per_ps * first * second / (first + second) / stiffness).min())


def init(
    positions: Float[Tensor, "replica bead 3"], evaluate: Evaluate, dynamics: Dynamics, replica_ids: Sequence[int]
) -> EnsembleState:
    """Step 0: the positions given (nm), and Maxwell's velocities keyed by (seed, replica); none without inertia."""
    shape = positions.shape[1:]
    draws = [stream(dynamics.seed, "velocities", replica).standard_normal(shape) for replica in replica_ids]
    normals = np.stack(draws)
    thermal = np.sqrt(kT(dynamics.temperature_K) / np.asarray(dynamics.masses, dtype=np.float64))[:, None]
    thermal = thermal * (dynamics.integrator == "baoab")
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


def overdamped_step(
    state: EnsembleState, evaluate: Evaluate, numbers: Overdamped, normals: Float[Tensor, "replica bead 3"]
) -> EnsembleState:
    """The state one step later without inertia, given standard normal numbers; velocities stay what they are."""
    positions = torch.addcmul(state.positions, numbers.mobility, state.forces).addcmul_(numbers.spread, normals)
    energies, forces = evaluate(positions)
    return EnsembleState(positions, state.velocities, forces, energies, state.step + 1)


def kinetic_temperatures(
    velocities: Float[Tensor, "replica bead 3"], masses: Sequence[float]
) -> Float[Tensor, "replica"]:
    """Kinetic temperature (K) of every replica; it reads cold with full-step velocities, see above."""
    mass = torch.as_tensor(np.asarray(masses, dtype=np.float64)[:, None]).to(velocities)
    return (mass * velocities.square()).sum((1, 2)) / (3 * len(masses) * BOLTZMANN)
