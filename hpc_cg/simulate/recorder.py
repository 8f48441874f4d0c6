"""What a simulation leaves on disk: one file per block of a group, and the ensemble store made of them.

A block file holds the frames of that block and the state to go on from, so a run is resumed from its last
block; it is written whole or not at all. The ensemble store is zarr v3: positions (replica frame bead 3),
energies (replica frame), and rungs (replica frame), where each replica was on its ladder of temperatures. Frames
of a quarantined replica are NaN from the frame in which it was found. No torch here.
"""

import re
import shutil
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from jaxtyping import Float, Int

from hpc_cg.beads import BeadSystem
from hpc_cg.errors import DamagedProduct, NotSealed
from hpc_cg.files import PARTIAL, explain_write_errors, read_arrays, write_arrays

REASONS = ("diverged", "mirrored")
"""Why a replica is quarantined."""

ENSEMBLE = "ensemble.zarr"
"""The name of the ensemble store inside the folder of the stage that wrote it."""

SCHEMA = 2
"""Version of the ensemble store's layout."""


@dataclass(frozen=True)
class Quarantine:
    """A replica that was taken out, the step at which that was found, and why (one of REASONS)."""

    replica: int
    step: int
    reason: str


class Maker(NamedTuple):
    """Who made a block: the engine's name, and the device it ran on."""

    engine: str
    device: str


@dataclass(frozen=True)
class BlockRecord:
    """One block of one group of replicas.

    replica_ids              which replicas of the ensemble the group holds
    positions                saved frames, nm, float32; NaN where quarantined
    energies                 potential energy of the saved frames, kJ/mol, float32; NaN where quarantined
    rungs                    of each replica in the saved frames on its ladder of temperatures; 0 where there is one
    swaps_tried              attempts of each pair of neighbours on the ladder, all ladders of the group together
    swaps_accepted           and how many of them were accepted
    state_rungs              rungs after the block
    state_*                  the state after the block, in the simulation's dtype (nm, ps, kJ/mol)
    step                     the step of that state, counted from the start of the run
    quarantined              all that are out so far, earlier blocks included
    kinetic_temperature_K    mean over the replicas that are in, for every saved frame, from full steps:
                             a stiff bond reads colder there than it is (see hpc_cg.simulate.langevin); replicas
                             of a ladder are scaled to the temperature of the run, each by that of its rung
    seconds                  wall time of the block
    device                   what it ran on: "cpu", "cuda"
    engine                   the name of the engine that made it
    """

    replica_ids: tuple[int, ...]
    positions: Float[np.ndarray, "saved replica bead 3"]
    energies: Float[np.ndarray, "saved replica"]
    rungs: Int[np.ndarray, "saved replica"]
    swaps_tried: Int[np.ndarray, "pair"]
    swaps_accepted: Int[np.ndarray, "pair"]
    state_rungs: Int[np.ndarray, "replica"]
    state_positions: Float[np.ndarray, "replica bead 3"]
    state_velocities: Float[np.ndarray, "replica bead 3"]
    state_forces: Float[np.ndarray, "replica bead 3"]
    state_energies: Float[np.ndarray, "replica"]
    step: int
    quarantined: tuple[Quarantine, ...]
    kinetic_temperature_K: Float[np.ndarray, "saved"]
    seconds: float
    device: str
    engine: str

    @property
    def maker(self) -> Maker:
        return Maker(self.engine, self.device)


_ARRAYS = (
    "positions",
    "energies",
    "rungs",
    "swaps_tried",
    "swaps_accepted",
    "state_rungs",
    "state_positions",
    "state_velocities",
    "state_forces",
    "state_energies",
    "kinetic_temperature_K",
)
_NAME = re.compile(r"group-(\d+)-block-(\d+)\.npz")


def block_path(folder: Path, group: int, block: int) -> Path:
    """Where a block is written."""
    return folder / f"group-{group:05d}-block-{block:05d}.npz"


def write_block(folder: Path, group: int, block: int, record: BlockRecord) -> Path:
    """Write a block, atomically; raises DiskFull, FolderNotWritable."""
    path = block_path(folder, group, block)
    rows = [(q.replica, q.step, REASONS.index(q.reason)) for q in record.quarantined]
    arrays = {name: getattr(record, name) for name in _ARRAYS}
    write_arrays(
        path,
        replica_ids=np.asarray(record.replica_ids, np.int64),
        step=np.asarray(record.step, np.int64),
        quarantined=np.asarray(rows, np.int64).reshape(-1, 3),
        seconds=np.asarray(record.seconds, np.float64),
        device=np.asarray(record.device),
        engine=np.asarray(record.engine),
        **arrays,
    )
    return path


def read_block(folder: Path, group: int, block: int) -> BlockRecord:
    """Read a block; raises MissingInput, UnreadableFile, DamagedProduct."""
    names = {"replica_ids", "step", "quarantined", "seconds", "device", "engine", *_ARRAYS}
    content = _read(block_path(folder, group, block), names)
    return BlockRecord(
        replica_ids=tuple(content["replica_ids"].tolist()),
        step=int(content["step"]),
        quarantined=tuple(Quarantine(int(r), int(s), REASONS[why]) for r, s, why in content["quarantined"]),
        seconds=float(content["seconds"]),
        device=str(content["device"]),
        engine=str(content["engine"]),
        **{name: content[name] for name in _ARRAYS},
    )


def read_maker(folder: Path, group: int, block: int) -> Maker:
    """Who made a block, without its frames; raises what ``read_block`` raises."""
    content = _read(block_path(folder, group, block), set(Maker._fields))
    return Maker(str(content["engine"]), str(content["device"]))


def _read(path: Path, names: set[str]) -> dict[str, np.ndarray]:
    content = read_arrays(path, names)
    missing = names - set(content)
    if missing:
        raise DamagedProduct(
            f"reading the block {path}",
            f"no array {', '.join(sorted(missing))} in it",
            "remove that file and run the simulation again, it goes on from the block before",
        )
    return content


def blocks_of(folder: Path) -> Counter[int]:
    """How many blocks of each group lie in a folder: one listing, however many there are."""
    with suppress(FileNotFoundError):
        matches = (_NAME.fullmatch(path.name) for path in folder.iterdir())
        return Counter(int(match[1]) for match in matches if match is not None)
    return Counter()


def last_block(folder: Path, group: int) -> int | None:
    """The number of the last block of a group such that it and all before it are there; None where there is
    none.
    """
    found = {
        int(match[2])
        for path in folder.glob(f"group-{group:05d}-block-*.npz")
        if (match := _NAME.fullmatch(path.name)) is not None
    }
    block = 0
    while block in found:
        block += 1
    return block - 1 if block else None


def write_zarr(
    path: Path,
    blocks: Path,
    n_groups: int,
    n_blocks: int,
    system: BeadSystem,
    frame_ps: float,
    attributes: dict[str, Any],
) -> None:
    """Put the block files of all groups together into an ensemble store, in place of an older one.

    Replicas follow one another by their number; memory holds one block at a time. ``attributes`` (plain JSON)
    are kept beside the store's own. Raises NotSealed where a block is missing, and what ``read_block``
    raises.
    """
    for group in range(n_groups):
        done = last_block(blocks, group)
        if done is None or done < n_blocks - 1:
            raise NotSealed(
                f"collecting the ensemble of {blocks}",
                f"group {group} with {0 if done is None else done + 1} of {n_blocks} blocks",
                "run the simulation again, it goes on from the last block",
            )
    n_replicas = sum(len(read_block(blocks, group, 0).replica_ids) for group in range(n_groups))
    beside = path.with_name(f".{path.name}{PARTIAL}")
    with explain_write_errors(path):
        shutil.rmtree(beside, ignore_errors=True)
        store = _create(beside, n_replicas, n_blocks, read_block(blocks, 0, 0), system)
        quarantined = [q for group in range(n_groups) for q in _fill(store, blocks, group, n_blocks)]
        store.attrs.update(attributes)
        store.attrs.update(
            schema=SCHEMA,
            system=system.to_json(),
            system_digest=system.digest,
            frame_ps=frame_ps,
            quarantined=[[q.replica, q.step, q.reason] for q in sorted(quarantined, key=lambda q: q.replica)],
        )
        shutil.rmtree(path, ignore_errors=True)
        beside.replace(path)


def _create(path: Path, n_replicas: int, n_blocks: int, first: BlockRecord, system: BeadSystem) -> zarr.Group:
    store = zarr.open_group(path, mode="w", zarr_format=3)
    saved, group_size = len(first.positions), len(first.replica_ids)
    shapes = {"positions": ("nm", (system.n_beads, 3), ("bead", "xyz")), "energies": ("kJ/mol", (), ())}
    for name, (unit, tail, axes) in shapes.items():
        array = store.create_array(
            name,
            shape=(n_replicas, saved * n_blocks, *tail),
            chunks=(group_size, saved, *tail),
            dtype="float32",
            fill_value=float("nan"),
            dimension_names=("replica", "frame", *axes),
        )
        array.attrs["unit"] = unit
    store.create_array(
        "rungs",
        shape=(n_replicas, saved * n_blocks),
        chunks=(group_size, saved),
        dtype="int16",
        dimension_names=("replica", "frame"),
    )
    return store


def _fill(store: zarr.Group, blocks: Path, group: int, n_blocks: int) -> tuple[Quarantine, ...]:
    quarantined: tuple[Quarantine, ...] = ()
    for block in range(n_blocks):
        record = read_block(blocks, group, block)
        rows = slice(record.replica_ids[0], record.replica_ids[-1] + 1)
        assert rows.stop - rows.start == len(record.replica_ids), "replicas of a group follow one another"
        frames = slice(block * len(record.positions), (block + 1) * len(record.positions))
        store["positions"][rows, frames] = record.positions.swapaxes(0, 1)  # type: ignore[index]
        store["energies"][rows, frames] = record.energies.swapaxes(0, 1)  # type: ignore[index]
        store["rungs"][rows, frames] = record.rungs.swapaxes(0, 1)  # type: ignore[index]
        quarantined = record.quarantined
    return quarantined
