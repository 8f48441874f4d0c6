"""Is a store whole? Every frame of the plan once, every checksum as committed, every used frame a number."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from hpc_cg.errors import DamagedProduct, HpcCgError
from hpc_cg.store.dataset import open_arrays, open_spec, read_shard
from hpc_cg.store.layout import StoreSpec, damage, torn
from hpc_cg.store.writer import Commit, checksums, committed

Origin = Callable[[int], tuple[Int64[np.ndarray, "frame"], Int64[np.ndarray, "frame"]]]
"""Segment and frame within it of each frame of a shard, as the plan says."""


@dataclass(frozen=True)
class StoreAudit:
    """What an audit found: shards that are whole, and a sentence for each that is not.

    holes   the shards that have to be made again
    """

    n_shards: int
    n_frames: int
    n_good: int
    faults: tuple[str, ...]
    holes: tuple[int, ...]

    @property
    def whole(self) -> bool:
        return not self.faults


def open_store(folder: Path, molecule: str) -> StoreSpec:
    """The spec of a store whose descriptions can be read and are those of its spec; raises DamagedProduct."""
    faults = torn(folder, molecule)
    try:
        if not faults:
            spec = open_spec(folder, molecule)
            faults = damage(folder, spec)
        if not faults:
            open_arrays(folder, spec)
    except HpcCgError as error:
        faults = (error.found,)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        faults = (f"descriptions that cannot be read ({error})",)
    if faults:
        raise DamagedProduct(f"the store {folder / molecule}", "; ".join(faults), "make it again")
    return spec


def audit(folder: Path, spec: StoreSpec, origin: Origin | None = None) -> StoreAudit:
    """Read every shard of a store and compare it with its commit record, and with the plan where that is given.

    spec   of ``open_store``, which looks at what describes the shards
    """
    faults: list[str] = []
    holes: list[int] = []
    n_good = 0
    commits = committed(folder, spec)
    for shard in range(spec.n_shards):
        good, wrong = _look(folder, spec, shard, commits.get(shard), origin)
        n_good += good
        start, stop = spec.frames_of(shard)
        faults += [f"{spec.molecule} shard {shard} (frames {start} to {stop - 1}): {fault}" for fault in wrong]
        holes += [shard] if wrong else []
    return StoreAudit(spec.n_shards, spec.n_frames, n_good, tuple(faults), tuple(holes))


def _look(
    folder: Path, spec: StoreSpec, shard: int, commit: Commit | None, origin: Origin | None
) -> tuple[int, list[str]]:
    """Used frames of a shard, and what is wrong with it."""
    if commit is None:
        return 0, ["no commit record"]
    try:
        content = read_shard(folder, spec, shard, check=False)
    except DamagedProduct as error:
        return 0, [error.found]
    except (OSError, ValueError, RuntimeError) as error:
        return 0, [f"cannot be read ({error})"]
    faults: list[str] = []
    differ = [name for name, crc in checksums(content).items() if commit.crc.get(name) != crc]
    if differ:
        faults.append(f"checksum differs in {', '.join(differ)}")
    if not (np.isfinite(content.weights).all() and (content.weights >= 0).all()):
        faults.append("weights that are no numbers at or above zero")
    used = content.weights > 0
    whole = {name: values for name, values in content.arrays.items() if name not in differ}
    unreal = [name for name, values in whole.items() if not np.isfinite(values[used]).all()]
    if unreal:
        faults.append(f"used frames that are no numbers in {', '.join(unreal)}")
    if origin is not None:
        segment, frame = origin(shard)
        if not (np.array_equal(content.segment, segment) and np.array_equal(content.frame_index, frame)):
            faults.append("frames other than those of the plan")
    return int(used.sum()), faults
