"""A group of replicas simulated side by side, a block of steps at a time.

Noise is keyed by (seed, replica, step), so a resumed run equals an uninterrupted one and does not depend on who shares
its group. At every saved frame, and only there, a replica that diverged, or that turned into its mirror image, is
quarantined: it is set back to its last good frame, held there, and recorded as NaN from then on; the others never
notice, because replicas do not interact. Where they trade temperatures (see hpc_cg.simulate.exchange) they do so at
saved frames, after these are judged and recorded.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hpc_cg.beads import BeadSystem
from hpc_cg.forcefield.coordinates import bond_lengths, improper_products
from hpc_cg.forcefield.fitting import PriorParameters
from hpc_cg.simulate.engine import Engine
from hpc_cg.simulate.exchange import Exchange, SwapCounts, Swaps, all_traded, velocity_factors
from hpc_cg.simulate.langevin import Dynamics, EnsembleState, kinetic_temperatures
from hpc_cg.simulate.recorder import BlockRecord, Quarantine
from hpc_cg.units import kT

WIDTHS = 8.0
"""Thermal widths of its prior that a bond may be off before its replica counts as diverged."""

FEWEST_WIDTHS = 6.0
"""Fewer widths than this are thermal."""


@dataclass(frozen=True)
class Limits:
    """When a replica counts as lost.

    A bond (nm) outside [shortest, longest], an absolute energy above ``energy`` (kJ/mol), any number that is
    none: diverged. An improper product whose sign is not ``hands``: mirrored.
    """

    bonds: tuple[tuple[int, int], ...]
    shortest: Float[np.ndarray, "bond"]
    longest: Float[np.ndarray, "bond"]
    impropers: tuple[tuple[int, int, int, int], ...]
    hands: Float[np.ndarray, "improper"]
    energy: float

    @staticmethod
    def of(system: BeadSystem, prior: PriorParameters, temperature_K: float) -> "Limits":
        """Bonds within WIDTHS of their priors and half to twice their length, 1000 kT per bead, the priors' hands.

        Nothing thermal gets that far off; a replica caught in a minimum that the network made up does. Of soft bonds,
        half and twice the length count where they are at least FEWEST_WIDTHS off.
        """
        width = WIDTHS * np.sqrt(kT(temperature_K) / prior.bond_k)
        least = FEWEST_WIDTHS / WIDTHS * width
        return Limits(
            bonds=system.bonds,
            shortest=np.maximum(np.minimum(0.5 * prior.bond_0, prior.bond_0 - least), prior.bond_0 - width),
            longest=np.minimum(np.maximum(2.0 * prior.bond_0, prior.bond_0 + least), prior.bond_0 + width),
            impropers=system.impropers,
            hands=np.sign(prior.improper_0),
            energy=1000.0 * kT(temperature_K) * system.n_beads,
        )

    def judge(
        self, positions: Float[np.ndarray, "replica bead 3"], energies: Float[np.ndarray, "replica"]
    ) -> tuple[Bool[np.ndarray, "replica"], Bool[np.ndarray, "replica"]]:
        """Which replicas diverged, and which of the others are mirrored."""
        finite = np.isfinite(positions).all(axis=(1, 2)) & (np.abs(energies) <= self.energy)
        safe = np.where(finite[:, None, None], positions, 0.0)
        with np.errstate(invalid="ignore"):
            lengths, products = bond_lengths(safe, self.bonds), improper_products(safe, self.impropers)
            bonded = ((lengths >= self.shortest) & (lengths <= self.longest)).all(axis=1)
            mirrored = (products * self.hands < 0).any(axis=1)
        diverged = ~(finite & bonded)
        return diverged, mirrored & ~diverged


@dataclass(frozen=True)
class BlockResult:
    """What a block gives: the state to go on from, and the record to write (frames, quarantine, temperature,
    time).
    """

    state: EnsembleState
    record: BlockRecord

    @property
    def rungs(self) -> Int[np.ndarray, "replica"]:
        return self.record.state_rungs

    @property
    def quarantined(self) -> tuple[Quarantine, ...]:
        return self.record.quarantined


def state_of(record: BlockRecord, device: torch.device | str = "cpu") -> EnsembleState:
    """The state that a recorded block ended in, bit for bit."""
    arrays = (record.state_positions, record.state_velocities, record.state_forces, record.state_energies)
    positions, velocities, forces, energies = (torch.as_tensor(array.copy(), device=device) for array in arrays)
    return EnsembleState(positions, velocities, forces, energies, record.step)


def run_block(
    state: EnsembleState,
    engine: Engine,
    system: BeadSystem,
    limits: Limits,
    save_every: int,
    n_steps: int,
    replica_ids: Sequence[int],
    quarantined: tuple[Quarantine, ...] = (),
    exchange: Exchange | None = None,
    rungs: Int[np.ndarray, "replica"] | None = None,
) -> BlockResult:
    """Simulate ``n_steps``, a multiple of ``save_every``: the steps between saved frames.

    ``quarantined`` are those of earlier blocks. The frame at the start is judged but not saved.

    exchange   how replicas trade temperatures, at multiples of save_every; left out: all have that of the dynamics
    rungs      where the replicas are on their ladders; left out: where they begin
    """
    assert n_steps % save_every == 0, f"{n_steps} steps, saved every {save_every}"
    began = time.perf_counter()
    ladders = exchange or Exchange((engine.dynamics.temperature_K,), save_every, engine.dynamics.seed)
    assert ladders.every % save_every == 0, f"temperatures traded every {ladders.every}, saved every {save_every}"
    group = _Group(system, limits, tuple(replica_ids), engine.dynamics, ladders)
    rungs = ladders.first_rungs(replica_ids) if rungs is None else rungs
    visited: list[np.ndarray] = []
    decided: list[Swaps] = []
    out = list(quarantined)
    state = group.judged(state, state, out)
    frames: list[np.ndarray] = []
    energies: list[np.ndarray] = []
    temperatures: list[float] = []
    for _ in range(n_steps // save_every):
        state = group.judged(engine.advance(state, save_every, group.replica_ids, group.heat(rungs)), state, out)
        inside = group.inside(out)
        visited.append(rungs)
        frames.append(np.where(inside[:, None, None], _array(state.positions), np.nan).astype(np.float32))
        energies.append(np.where(inside, _array(state.energies), np.nan).astype(np.float32))
        temperatures.append(group.temperature(state, inside, rungs))
        swaps = ladders.attempt(state.step, group.replica_ids, rungs, _array(state.energies), inside)
        state, rungs = group.traded(state, swaps, rungs)
        decided += swaps
    counts = SwapCounts.of(decided, len(ladders.temperatures_K))
    record = BlockRecord(
        replica_ids=tuple(replica_ids),
        positions=np.stack(frames),
        energies=np.stack(energies),
        rungs=np.stack(visited).astype(np.int16),
        swaps_tried=counts.tried,
        swaps_accepted=counts.accepted,
        state_rungs=rungs,
        state_positions=_array(state.positions),
        state_velocities=_array(state.velocities),
        state_forces=_array(state.forces),
        state_energies=_array(state.energies),
        step=state.step,
        quarantined=tuple(out),
        kinetic_temperature_K=np.asarray(temperatures, np.float64),
        seconds=time.perf_counter() - began,
        device=state.positions.device.type,
        engine=engine.name,
    )
    return BlockResult(state, record)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()


@dataclass(frozen=True)
class _Group:
    """What stays the same while a group runs."""

    system: BeadSystem
    limits: Limits
    replica_ids: tuple[int, ...]
    dynamics: Dynamics
    ladders: Exchange

    def heat(self, rungs: Int[np.ndarray, "replica"]) -> Float[np.ndarray, "replica"]:
        """What the noise of each replica is scaled by."""
        return self.ladders.heat(rungs, self.dynamics.temperature_K)

    def traded(
        self, state: EnsembleState, swaps: Sequence[Swaps], rungs: Int[np.ndarray, "replica"]
    ) -> tuple[EnsembleState, Int[np.ndarray, "replica"]]:
        """State and rungs after the swaps: velocities follow the temperature, nothing else moves."""
        after = all_traded(rungs, swaps)
        if np.array_equal(after, rungs):
            return state, rungs
        factors = velocity_factors(self.ladders.temperatures_K, rungs, after)
        scale = torch.from_numpy(factors)[:, None, None].to(state.velocities)
        return replace(state, velocities=state.velocities * scale), after

    def inside(self, out: Sequence[Quarantine]) -> Bool[np.ndarray, "replica"]:
        """Which replicas of the group are not quarantined."""
        return ~np.isin(self.replica_ids, [q.replica for q in out])

    def judged(self, state: EnsembleState, before: EnsembleState, out: list[Quarantine]) -> EnsembleState:
        """Add to ``out`` who is lost at this state; all that are out are held at the state before."""
        diverged, mirrored = self.limits.judge(_array(state.positions), _array(state.energies))
        inside = self.inside(out)
        for reason, found in (("diverged", diverged), ("mirrored", mirrored)):
            out.extend(Quarantine(self.replica_ids[row], state.step, reason) for row in np.flatnonzero(found & inside))
        held = torch.from_numpy(~self.inside(out)).to(state.positions.device)
        if not bool(held.any()):
            return state
        wide = held[:, None, None]
        return replace(
            state,
            positions=torch.where(wide, before.positions, state.positions),
            velocities=torch.where(wide, before.velocities, state.velocities),
            forces=torch.where(wide, before.forces, state.forces),
            energies=torch.where(held, before.energies, state.energies),
        )

    def temperature(
        self, state: EnsembleState, inside: Bool[np.ndarray, "replica"], rungs: Int[np.ndarray, "replica"]
    ) -> float:
        """Mean kinetic temperature (K) of the replicas that are in, each scaled from its rung's.

        NaN where none is in, and without inertia, where velocities have no part.
        """
        if not inside.any() or self.dynamics.integrator == "overdamped":
            return float("nan")
        found = _array(kinetic_temperatures(state.velocities, self.system.masses)) / self.heat(rungs) ** 2
        return float(found[inside].mean())
