"""Stage simulate: Langevin dynamics of many replicas with the newest checkpoint, block by block.

Replicas are simulated in groups of fixed size; the groups are what the team divides. A replica's
start, velocities and noise are keyed by its own number, so it does not matter who simulates which group.
"""

import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from hpc_cg import errors
from hpc_cg.config import STRICT
from hpc_cg.files import digest, digest_bytes, read_json
from hpc_cg.share import Stopped, Team
from hpc_cg.stages.gathering import put_together
from hpc_cg.stages.progress import Heartbeat

if TYPE_CHECKING:
    from hpc_cg.forcefield.forcefield import ForceField
    from hpc_cg.simulate.engine import Engine
    from hpc_cg.simulate.langevin import Dynamics
    from hpc_cg.simulate.recorder import Maker
    from hpc_cg.stages.study import Study


BESIDE = frozenset({"engine", "lost_budget"})
"""Engines differ by rounding, and blocks say which made them; the budget only judges."""


@dataclass(frozen=True, config=STRICT)
class SimulateConfig:
    """The table [simulate].

    time_ps          simulated time of each replica
    save_ps          time between saved frames
    block_ps         time between seals; about this much is lost by a kill
    group_size       replicas that one process simulates side by side
    temperature_K    left out: that of the study, which is the only one the model is right for
    temperatures_K   of replica exchange: the rungs of every ladder, rising, that of the study among them; empty for one
                     temperature. Replicas follow one another up the ladders, and all count in n_replicas
    exchange_ps      time between attempts to trade temperatures; a whole number of save_ps
    integrator       "baoab", or "overdamped": without inertia, which needs shorter steps
    engine           "compiled" (C, needs a compiler), "torch", or "auto": torch on a GPU, else compiled where it can be
    n_knots          intervals of the tables that hold the network's filters
    lost_budget      fraction of replicas that may be quarantined before the stage fails
    export           trajectories for other programs, one file per replica: "xtc", "dcd" or "none"
    molecule         of several that the network is trained on, the one to simulate, judge and report
    """

    n_replicas: int = Field(default=96, ge=1)
    time_ps: float = Field(default=100.0, gt=0)
    timestep_ps: float = Field(default=0.004, gt=0, le=0.02)
    friction_per_ps: float = Field(default=1.0, gt=0)
    save_ps: float = Field(default=0.2, gt=0)
    block_ps: float = Field(default=20.0, gt=0)
    group_size: int = Field(default=48, ge=1)
    temperature_K: float | None = Field(default=None, gt=0)
    temperatures_K: tuple[float, ...] = ()
    exchange_ps: float = Field(default=2.0, gt=0)
    integrator: Literal["baoab", "overdamped"] = "baoab"
    engine: Literal["auto", "compiled", "torch"] = "auto"
    n_knots: int = Field(default=2048, ge=16)
    lost_budget: float = Field(default=0.5, ge=0, le=1)
    export: Literal["xtc", "dcd", "none"] = "xtc"
    molecule: str = ""
    seed: int = Field(default=1, ge=0)

    @model_validator(mode="after")
    def _whole_steps(self) -> "SimulateConfig":
        save, block, total = self.save_steps, self.block_steps, round(self.time_ps / self.timestep_ps)
        if save < 1 or abs(save * self.timestep_ps - self.save_ps) > 1e-9:
            raise ValueError(f"save_ps = {self.save_ps} is no whole number of steps of {self.timestep_ps} ps.")
        if block % save or block < 1:
            raise ValueError(f"block_ps = {self.block_ps} is {block} steps; it must be a multiple of save_ps.")
        if abs(block * self.timestep_ps - self.block_ps) > 1e-9 or abs(total * self.timestep_ps - self.time_ps) > 1e-9:
            raise ValueError(f"block_ps and time_ps must be whole numbers of steps of {self.timestep_ps} ps.")
        if total % block:
            raise ValueError(f"time_ps = {self.time_ps} is no whole number of blocks of {self.block_ps} ps.")
        return self

    @model_validator(mode="after")
    def _whole_ladders(self) -> "SimulateConfig":
        rungs = self.temperatures_K
        if not rungs:
            return self
        if len(rungs) < 2 or rungs[0] <= 0 or any(b <= a for a, b in pairwise(rungs)):
            raise ValueError(f"temperatures_K = {list(rungs)} are no ladder: two or more, each above the one before.")
        steps = self.exchange_steps
        if steps < 1 or steps % self.save_steps or abs(steps * self.timestep_ps - self.exchange_ps) > 1e-9:
            raise ValueError(f"exchange_ps = {self.exchange_ps} is no whole number of save_ps = {self.save_ps}.")
        for name in ("n_replicas", "group_size"):
            if getattr(self, name) % len(rungs):
                raise ValueError(f"{name} = {getattr(self, name)} is no whole number of ladders of {len(rungs)}.")
        return self

    @property
    def save_steps(self) -> int:
        return round(self.save_ps / self.timestep_ps)

    @property
    def block_steps(self) -> int:
        return round(self.block_ps / self.timestep_ps)

    @property
    def exchange_steps(self) -> int:
        return round(self.exchange_ps / self.timestep_ps)

    @property
    def n_rungs(self) -> int:
        """Temperatures of a ladder; 1 where replicas do not trade them."""
        return max(1, len(self.temperatures_K))

    def ladder(self, temperature_K: float) -> tuple[float, ...]:
        """The temperature of every rung: of one, that of the study, where replicas do not trade them."""
        return self.temperatures_K or (temperature_K,)

    def rung_of(self, temperature_K: float) -> int:
        """The rung of a temperature that is on the ladder."""
        return self.temperatures_K.index(temperature_K) if self.temperatures_K else 0

    @property
    def n_blocks(self) -> int:
        return round(self.time_ps / self.timestep_ps) // self.block_steps

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The replicas of each group."""
        ids = tuple(range(self.n_replicas))
        return tuple(ids[first : first + self.group_size] for first in range(0, self.n_replicas, self.group_size))


def work(study: "Study", team: Team, progress: Heartbeat) -> None:
    """Simulate the groups from where they stand, then put the ensemble together."""
    first = team.share.index == 0
    lay_out(study)
    work_on(study, team.tell(pending(study) if first else ()), team, progress)
    if first:
        gather(study)


def lay_out(study: "Study") -> None:
    """Nothing has to be made before groups can be simulated; raises TemperatureMismatch or UnstableStep where none can
    be.
    """
    _temperature(study)
    if study.tables["simulate"].integrator == "overdamped":
        _short_enough(study)


def divisible(study: "Study") -> bool:
    """Whether there is work to divide."""
    return True


def n_items(study: "Study") -> int:
    """How many groups there are to simulate."""
    return len(study.tables["simulate"].groups)


def pending(study: "Study") -> tuple[int, ...]:
    """The groups that lack blocks."""
    config: SimulateConfig = study.tables["simulate"]
    there = _blocks_there(study)
    return tuple(group for group in range(len(config.groups)) if there[group] < config.n_blocks)


def work_on(study: "Study", groups: Sequence[int], team: Team, progress: Heartbeat) -> None:
    """Simulate some groups to their end. Raises Stopped, on every member, where the team was asked to stop before."""
    import torch

    from hpc_cg.learning.checkpoint import load_forcefield
    from hpc_cg.learning.labels import label_source
    from hpc_cg.learning.starts import Starts
    from hpc_cg.simulate.background import Background
    from hpc_cg.simulate.ensemble import Limits, run_block, state_of
    from hpc_cg.simulate.exchange import Exchange
    from hpc_cg.simulate.langevin import init
    from hpc_cg.simulate.recorder import Maker, Quarantine, last_block, read_block, write_block

    config: SimulateConfig = study.tables["simulate"]
    blocks = study.folder("simulate") / "blocks"
    source = label_source(study.folder("prepare"), study.folder("kernel"), study.molecule)
    starts = Starts.of(source, config.seed)
    forcefield = load_forcefield(study.folder("train"), study.molecule)[0]
    moving = _engine(study, forcefield)
    system, dynamics = forcefield.system, moving.dynamics
    ladder = config.ladder(dynamics.temperature_K)
    limits = Limits.of(system, forcefield.parameters_of_prior, max(ladder))
    exchange = Exchange(ladder, config.exchange_steps, config.seed)
    steps_of = {group: len(config.groups[group]) * config.block_steps for group in groups}
    there = _blocks_there(study)
    # every member counts what its share of the groups has behind it, so that together they count all of it once
    done = sum(steps_of[group] * there[group] for group in team.share.of(groups))
    total = sum(steps_of.values()) * config.n_blocks
    slow = config.engine == "auto" and moving.name == "torch" and moving.device.type == "cpu"
    said = ["slow, in torch: no compiled engine, the log says why"] if slow else []
    progress("simulating", done, total, "replica-steps", *said)
    asked, longest_s = False, 0.0

    def counted(group: int, lost: int) -> None:
        nonlocal done
        done += steps_of[group]
        note = "; ".join([f"{lost} replicas of this group lost"] * (lost > 0) + said)
        progress("simulating", done, total, "replica-steps", note)

    for group in team.take(groups, whole=False):
        replicas = config.groups[group]
        last = last_block(blocks, group)
        quarantined: tuple[Quarantine, ...] = ()
        if last is None:
            first = torch.from_numpy(starts.of_replicas(replicas)).to(moving.device)
            state, rungs = init(first, moving.evaluate, dynamics, replicas), exchange.first_rungs(replicas)
            heat = torch.from_numpy(exchange.heat(rungs, dynamics.temperature_K)).to(state.velocities)
            state = replace(state, velocities=state.velocities * heat[:, None, None])
        else:
            record = read_block(blocks, group, last)
            state, quarantined, rungs = state_of(record, moving.device), record.quarantined, record.state_rungs
            _say_who_goes_on(group, last, record.maker, Maker(moving.name, moving.device.type))
        with Background() as writer:
            for block in range(0 if last is None else last + 1, config.n_blocks):
                if asked := team.stop(longest_s):
                    break
                began = time.monotonic()
                result = run_block(
                    state,
                    moving,
                    system,
                    limits,
                    config.save_steps,
                    config.block_steps,
                    replicas,
                    quarantined,
                    exchange if config.n_rungs > 1 else None,
                    rungs,
                )
                writer(
                    partial(write_block, blocks, group, block, result.record),
                    partial(counted, group, len(result.quarantined)),
                )
                state, quarantined, rungs = result.state, result.quarantined, result.rungs
                longest_s = max(longest_s, time.monotonic() - began)
        if asked:
            break
    team.barrier()
    left = set(pending(study)) & set(groups) if team.share.index == 0 else ()
    if team.tell(bool(left)):
        raise Stopped


def _engine(study: "Study", forcefield: "ForceField") -> "Engine":
    """What moves the replicas by a force field; on a GPU where there is one."""
    import torch

    from hpc_cg.simulate.engine import engine

    config: SimulateConfig = study.tables["simulate"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return engine(config.engine, forcefield, _dynamics(study, forcefield), device, config.n_knots)


def _say_who_goes_on(group: int, last: int, before: "Maker", now: "Maker") -> None:
    """Warn where a group goes on by another engine: it makes the same trajectory up to rounding only."""
    if now != before:
        warnings.warn(
            f"group {group} of the simulation: blocks up to {last} were made by {before.engine} on {before.device}, "
            f"from here on they are made by {now.engine} on {now.device}",
            stacklevel=2,
        )


def _dynamics(study: "Study", forcefield: "ForceField") -> "Dynamics":
    from hpc_cg.simulate.langevin import Dynamics

    config: SimulateConfig = study.tables["simulate"]
    masses, temperature_K = forcefield.system.masses, _temperature(study)
    return Dynamics(masses, config.timestep_ps, config.friction_per_ps, temperature_K, config.seed, config.integrator)


def _short_enough(study: "Study") -> None:
    """Raises UnstableStep where a bond cannot but diverge without inertia."""
    from hpc_cg.learning.checkpoint import load_forcefield
    from hpc_cg.simulate.langevin import longest_overdamped_step

    config: SimulateConfig = study.tables["simulate"]
    forcefield = load_forcefield(study.folder("train"), study.molecule)[0]
    stiffness = forcefield.parameters_of_prior.bond_k
    longest_ps = longest_overdamped_step(_dynamics(study, forcefield), forcefield.system.bonds, stiffness)
    if config.timestep_ps >= longest_ps:
        raise errors.UnstableStep(
            f'simulate.timestep_ps = {config.timestep_ps} with integrator = "overdamped"',
            f"a bond of the priors that diverges from {longest_ps:.2g} ps on",
            f"set simulate.timestep_ps well below that (about {longest_ps / 100:.1g}, where widths of bonds are right "
            'to one per cent), raise simulate.friction_per_ps, with which it grows, or take integrator = "baoab"',
        )


def gather(study: "Study") -> None:
    """Put the ensemble together from the blocks of all groups."""
    import torch

    from hpc_cg.learning.checkpoint import load_forcefield
    from hpc_cg.learning.labels import label_source
    from hpc_cg.learning.starts import Starts

    config: SimulateConfig = study.tables["simulate"]
    source = label_source(study.folder("prepare"), study.folder("kernel"), study.molecule)
    sample = torch.from_numpy(Starts.of(source, config.seed).of_replicas(config.groups[0]))
    forcefield, step = load_forcefield(study.folder("train"), study.molecule)
    moving = _engine(study, forcefield)
    tables = {"table_error": moving.table_error(sample), "table_error_of": moving.name}
    put_together(study, tables | {"checkpoint_step": step})


def finish(study: "Study") -> tuple[str, dict[str, Any]]:
    """Check how many replicas were lost; digest and figures of the ensemble."""
    from hpc_cg.simulate.recorder import read_block

    config: SimulateConfig = study.tables["simulate"]
    folder = study.folder("simulate")
    quarantined = read_json(folder / "quarantine.json")
    if len(quarantined) > config.lost_budget * config.n_replicas:
        raise errors.TooManyFailures(
            f"at most {config.lost_budget:.0%} of {config.n_replicas} replicas lost",
            f"{len(quarantined)} ({quarantined[0]['reason']} first at step {quarantined[0]['step']})",
            f"train longer or on more frames, or shorten simulate.timestep_ps; see {folder / 'quarantine.json'}",
        )
    parts, seconds, temperatures = [], 0.0, []
    for group in range(len(config.groups)):
        for block in range(config.n_blocks):
            record = read_block(folder / "blocks", group, block)
            parts.append(digest_bytes(record.positions.tobytes()))
            seconds += record.seconds
            temperatures.append(record.kinetic_temperature_K)
    steps = config.n_replicas * config.n_blocks * config.block_steps
    summary = {
        "replicas": config.n_replicas,
        "ns": config.n_replicas * config.time_ps / 1000,
        "frames": steps // config.save_steps,
        "diverged": sum(row["reason"] == "diverged" for row in quarantined),
        "mirrored": sum(row["reason"] == "mirrored" for row in quarantined),
        "replica_steps_per_s_and_process": steps / seconds,
    }
    if config.integrator == "baoab":
        summary["kinetic_temperature_K"] = float(np.nanmean(np.concatenate(temperatures)))
    if config.n_rungs > 1:
        swaps = read_json(folder / "exchange.json")
        summary["swaps_accepted"] = sum(swaps["accepted"]) / max(1, sum(swaps["tried"]))
        summary["round_trips"] = sum(swaps["round_trips"])
    return digest(parts), summary | read_json(folder / "engine.json")


def done(study: "Study", groups: Sequence[int] | None = None) -> tuple[int, int, str]:
    """Blocks on disk, of how many; of all groups, or of some."""
    config: SimulateConfig = study.tables["simulate"]
    there, wanted = _blocks_there(study), range(len(config.groups)) if groups is None else groups
    return sum(there[group] for group in wanted), len(wanted) * config.n_blocks, "blocks"


def _blocks_there(study: "Study") -> Counter[int]:
    """How many blocks of each group are on disk; the folder is listed once."""
    from hpc_cg.simulate.recorder import blocks_of

    return blocks_of(study.folder("simulate") / "blocks")


def _temperature(study: "Study") -> float:
    from hpc_cg.simulate.exchange import geometric_ladder

    config: SimulateConfig = study.tables["simulate"]
    wanted = study.study.temperature_K if config.temperature_K is None else config.temperature_K
    if wanted != study.study.temperature_K:
        raise errors.TemperatureMismatch(
            f"simulate.temperature_K = {wanted}",
            f"a store and a model made at {study.study.temperature_K} K",
            "remove simulate.temperature_K: a coarse-grained force field is a free energy and holds at one temperature",
        )
    if config.temperatures_K and wanted not in config.temperatures_K:
        ladder = geometric_ladder(wanted, max(*config.temperatures_K, 1.2 * wanted), config.n_rungs)
        raise errors.TemperatureMismatch(
            f"simulate.temperatures_K = {list(config.temperatures_K)}",
            f"a study at {wanted} K, which is on no rung",
            f"put it on the ladder, e.g. {[round(rung, 1) for rung in ladder]}",
        )
    return wanted
