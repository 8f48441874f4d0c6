"""The end of simulate: the blocks of all groups become one ensemble, with what there is to tell of them.

ensemble.zarr     every replica in time
trajectories/     the same for other programs
quarantine.json   the replicas that were taken out
engine.json       who made the blocks, and with which checkpoint
exchange.json     how replicas traded temperatures, where they did
"""

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_cg.files import write_json

if TYPE_CHECKING:
    from hpc_cg.stages.simulate import SimulateConfig
    from hpc_cg.stages.study import Study


def put_together(study: "Study", made_with: dict[str, Any]) -> None:
    """Write the ensemble and what is told of it; ``made_with`` goes into engine.json, beside who made the blocks."""
    config: SimulateConfig = study.tables["simulate"]
    folder = study.folder("simulate")
    write_json(folder / "quarantine.json", quarantine_rows(study))
    write_json(folder / "engine.json", engines_of(study) | made_with)
    if config.n_rungs > 1:
        write_json(folder / "exchange.json", swaps_of(study))
    collect(study)


def engines_of(study: "Study") -> dict[str, Any]:
    """Who made the blocks: engines and devices, how many blocks each made, and how many groups are by several."""
    from hpc_cg.simulate.recorder import read_maker

    config: SimulateConfig = study.tables["simulate"]
    folder, blocks = study.folder("simulate") / "blocks", range(config.n_blocks)
    makers = [[read_maker(folder, group, block) for block in blocks] for group in range(len(config.groups))]
    counts = Counter(maker for group in makers for maker in group)
    return {
        "engine": ", ".join(sorted({maker.engine for maker in counts})),
        "device": ", ".join(sorted({maker.device for maker in counts})),
        "engines": [maker._asdict() | {"blocks": counts[maker]} for maker in sorted(counts)],
        "mixed_engine_groups": sum(len(set(group)) > 1 for group in makers),
    }


def swaps_of(study: "Study") -> dict[str, Any]:
    """How replicas traded temperatures over the whole run: attempts and acceptances of each pair, round trips."""
    from hpc_cg.simulate.exchange import SwapCounts, round_trips
    from hpc_cg.simulate.recorder import read_block

    config: SimulateConfig = study.tables["simulate"]
    none = np.zeros(config.n_rungs - 1, dtype=np.int64)
    counts, trips = SwapCounts(none, none), []
    for group in range(len(config.groups)):
        records = [read_block(study.folder("simulate") / "blocks", group, block) for block in range(config.n_blocks)]
        counts = sum((SwapCounts(record.swaps_tried, record.swaps_accepted) for record in records), counts)
        rungs = np.concatenate([record.rungs for record in records])
        for ladder in np.split(rungs, rungs.shape[1] // config.n_rungs, axis=1):
            trips += round_trips(ladder).tolist()
    return {
        "temperatures_K": list(config.temperatures_K),
        "tried": counts.tried.tolist(),
        "accepted": counts.accepted.tolist(),
        "round_trips": trips,
        "ns": config.time_ps / 1000,
    }


def collect(study: "Study") -> None:
    """Write the ensemble store, and for other programs a topology with one trajectory per replica.

    Where replicas trade temperatures, one per ladder: its frames at the study's temperature.
    """
    import zarr

    from hpc_cg.simulate import export, recorder
    from hpc_cg.simulate.exchange import on_rung
    from hpc_cg.store.dataset import open_spec
    from hpc_cg.store.layout import STORE

    config: SimulateConfig = study.tables["simulate"]
    folder, temperature_K = study.folder("simulate"), study.study.temperature_K
    system = open_spec(study.folder("prepare") / STORE, study.molecule).system
    recorder.write_zarr(
        folder / recorder.ENSEMBLE,
        folder / "blocks",
        len(config.groups),
        config.n_blocks,
        system,
        config.save_ps,
        {
            "temperature_K": temperature_K,
            "temperatures_K": list(config.ladder(temperature_K)),
            "seed": config.seed,
            "timestep_ps": config.timestep_ps,
        },
    )
    if config.export == "none":
        return
    store = zarr.open_group(folder / recorder.ENSEMBLE, mode="r")
    topology = export.bead_topology(system)
    n_rungs, rung = config.n_rungs, config.rung_of(temperature_K)
    name = "replica" if n_rungs == 1 else "ladder"
    written = False
    for number in range(config.n_replicas // n_rungs):
        rows = slice(number * n_rungs, (number + 1) * n_rungs)
        positions, rungs = (np.asarray(store[array][rows]) for array in ("positions", "rungs"))  # type: ignore[index]
        frames = on_rung(positions, rungs, rung, n_rungs)[0]
        whole = np.isfinite(frames).all(axis=(1, 2))
        if whole.any():
            if not written:
                export.write_topology_pdb(folder / "trajectories" / "topology.pdb", system, frames[whole][0])
                written = True
            path = folder / "trajectories" / f"{name}-{number:05d}.{config.export}"
            export.write_trajectory(path, frames[whole], topology, config.save_ps)


def quarantine_rows(study: "Study") -> list[dict[str, Any]]:
    """The replicas that were taken out: step, reason, and the last good positions (nm), to look at or to start from."""
    from hpc_cg.simulate.recorder import read_block

    config: SimulateConfig = study.tables["simulate"]
    rows = []
    for group in range(len(config.groups)):
        last = read_block(study.folder("simulate") / "blocks", group, config.n_blocks - 1)
        for lost in last.quarantined:
            held = last.state_positions[last.replica_ids.index(lost.replica)]
            rows.append(vars(lost) | {"last_good_positions_nm": np.round(held.astype(np.float64), 5).tolist()})
    return rows
