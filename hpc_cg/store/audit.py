"""Is a store whole? Every frame of the plan once, every checksum as committed, every used frame a number."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpc_cg.store.dataset import read_shard
from hpc_cg.store.layout import StoreSpec
from hpc_cg.store.writer import checksums, read_commit


@dataclass(frozen=True)
class StoreAudit:
    """What an audit found: shards that are whole, and a sentence for each that is not."""

    n_shards: int
    n_frames: int
    n_good: int
    faults: tuple[str, ...]

    @property
    def whole(self) -> bool:
        return not self.faults


def audit(folder: Path, spec: StoreSpec) -> StoreAudit:
    """Read every shard of a store and compare it with its commit record."""
    faults: list[str] = []
    n_good = 0
    for shard in range(spec.n_shards):
        start, stop = spec.frames_of(shard)
        where = f"{spec.molecule} shard {shard} (frames {start} to {stop - 1})"
        commit = read_commit(folder, spec, shard)
        if commit is None:
            faults.append(f"{where}: no commit record")
            continue
        try:
            content = read_shard(folder, spec, shard)
        except (OSError, ValueError, RuntimeError) as error:
            faults.append(f"{where}: cannot be read ({error})")
            continue
        wrong = [name for name, crc in checksums(content).items() if commit.crc.get(name) != crc]
        if wrong:
            faults.append(f"{where}: checksum differs in {', '.join(wrong)}")
        used = content.weights > 0
        n_good += int(used.sum())
        unreal = [name for name, values in content.arrays.items() if not np.isfinite(values[used]).all()]
        if unreal:
            faults.append(f"{where}: used frames that are no numbers in {', '.join(unreal)}")
    return StoreAudit(spec.n_shards, spec.n_frames, n_good, tuple(faults))
