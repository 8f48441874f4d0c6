"""Passes two to four of prepare, over what is planned: rigid bonds, moments of forces and the fit, the shards.

In each the team divides the parts that are not there yet; then the first member puts them together in their order.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_cg.files import read_arrays, read_json, write_arrays, write_json
from hpc_cg.share import Team
from hpc_cg.stages.molecules import QUARANTINE
from hpc_cg.stages.planning import Planned, held_out_rule, missing, parts_of, present, spec_of
from hpc_cg.stages.progress import Heartbeat

if TYPE_CHECKING:
    from hpc_cg.mapping.shards import Mapping
    from hpc_cg.stages.prepare import PrepareConfig
    from hpc_cg.stages.study import Study
    from hpc_cg.store.layout import StoreSpec

LOST = "lost"
"""Records of moments that lack frames which could not be read."""


def check_topology(planned: Planned) -> None:
    """Raise TopologyMismatch where a few frames, spread over the archive, show other bonds than the topology."""
    from hpc_cg.mapping import checks
    from hpc_cg.mapping.shards import PAIR_FRAMES, sampled, spread

    if planned.topology is None:
        return
    atoms = np.arange(planned.topology.n_atoms) if planned.around.atoms is None else planned.around.atoms
    frames = (found.positions for found in sampled(planned.around, spread(planned.catalogue.n_frames, PAIR_FRAMES)))
    checks.check_bonds(planned.topology, atoms, frames, planned.catalogue[0].path)


def look_for_bonds(study: "Study", team: Team, progress: Heartbeat, planned: list[Planned]) -> None:
    """Which atoms are bound rigidly, found in frames spread over each archive.

    Raises TopologyMismatch, and InvalidMap where the atoms that are looked at cut through what is rigid.
    """
    from hpc_cg.mapping import checks, constraints
    from hpc_cg.mapping.constraints import DistanceMoments
    from hpc_cg.mapping.shards import distances, near_pairs, rigid_parts

    first = team.share.index == 0
    if first:
        for one in planned:
            if not one.place.pairs.exists():
                check_topology(one)
                write_arrays(one.place.pairs, pairs=near_pairs(one.around))
    team.barrier()
    parts = [rigid_parts(one.catalogue.n_frames) for one in planned]
    todo = team.tell(missing(planned, "distances", [len(part) for part in parts]) if first else [])
    progress("looking for bonds", 0, len(todo), "parts")
    for done, (number, part) in enumerate(team.take(todo), 1):
        one = planned[number]
        moments = distances(one.around, parts[number][part], read_arrays(one.place.pairs)["pairs"])
        write_arrays(one.place.part("distances", part), **moments.arrays())
        progress("looking for bonds", done, len(todo), "parts")
    team.barrier()
    if first:
        for one, mine in zip(planned, parts, strict=True):
            if one.place.groups.exists():
                continue
            pairs = read_arrays(one.place.pairs)["pairs"]
            total = DistanceMoments.empty(pairs)
            for part in range(len(mine)):
                total = total + DistanceMoments.from_arrays(pairs, read_arrays(one.place.part("distances", part)))
            threshold = study.tables["prepare"].rigid_threshold_nm
            groups = constraints.rigid_groups(total, one.around.n_atoms, threshold)
            if one.archive.atoms is not None and one.around.atoms is not None:
                groups = checks.refuse_cut_groups(groups, one.around.atoms, one.archive.atoms)
            write_json(one.place.groups, [list(group) for group in groups])
    team.barrier()


def measure_forces(study: "Study", team: Team, progress: Heartbeat, planned: list[Planned]) -> None:
    """Second moments of the forces of each part of the frames that maps are fitted on."""
    from hpc_cg.mapping.fitting import reduction
    from hpc_cg.mapping.shards import fit_ranges, measure

    config: "PrepareConfig" = study.tables["prepare"]
    ranges = [fit_ranges(one.catalogue.n_frames, config.fit_frames) for one in planned]
    first = team.share.index == 0
    if first:
        _forget_incomplete(planned)
    todo = team.tell(missing(planned, "moments", [len(own) for own in ranges]) if first else [])
    sizes = {
        (number, part): stop - start for number, own in enumerate(ranges) for part, (start, stop) in enumerate(own)
    }
    total = sum(sizes.values())
    done = total - sum(sizes[number, part] for number, part in todo) if first else 0
    progress("measuring forces", done, total, "frames")
    reductions = {
        number: reduction(
            planned[number].coordinate, planned[number].system, _groups(planned[number]), config.force_map
        )
        for number in {number for number, _ in todo}
    }
    for number, part in team.take(todo):
        one = planned[number]
        moments, lost = measure(
            one.archive, held_out_rule(study, one), reductions[number], ranges[number][part], config.force_limit
        )
        write_arrays(one.place.part("moments", part), **moments.arrays())
        if lost:
            write_json(one.place.part(LOST, part), lost)
        done += sizes[number, part]
        progress("measuring forces", done, total, "frames")
    team.barrier()


def _forget_incomplete(planned: list[Planned]) -> None:
    """Drop moments that lack frames which could not be read, and the fit made from them: reading is tried again."""
    for one in planned:
        for record in sorted(one.place.part(LOST, 0).parent.glob("*.json")):
            one.place.part("moments", int(record.stem)).unlink(missing_ok=True)
            one.place.map_record.unlink(missing_ok=True)
            record.unlink()


def _groups(planned: Planned) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(group) for group in read_json(planned.place.groups))


def fit(study: "Study", planned: Planned) -> None:
    """Fit the force maps of a molecule; keep the one asked for, and the evidence."""
    from hpc_cg.mapping import fitting
    from hpc_cg.mapping.moments import FitMoments
    from hpc_cg.mapping.shards import unit_warning

    config: "PrepareConfig" = study.tables["prepare"]
    place, groups = planned.place, _groups(planned) if config.forces else ()
    if not config.forces:
        check_topology(planned)  # with forces this was done when bonds were looked for
    if config.forces:
        parts = (
            FitMoments.from_arrays(read_arrays(place.part("moments", part)))
            for part in range(parts_of(study, planned)["moments"])
        )
        fitted = fitting.fit(planned.coordinate, planned.system, groups, parts, config.force_map, config.ridge)
    else:
        fitted = fitting.positions_only(planned.coordinate, planned.system)
    write_arrays(place.map_arrays, **fitted.arrays())
    warning = unit_warning(planned.archive) if config.forces else ""
    record = fitted.record() | {
        "rigid_groups": [list(group) for group in groups if len(group) > 1],
        "atoms": "all" if planned.archive.atoms is None else planned.archive.atoms.tolist(),
        "warnings": [warning] if warning else [],
    }
    write_json(place.map_record, record)


def map_frames(study: "Study", team: Team, progress: Heartbeat, planned: list[Planned]) -> None:
    """Write the shards of all molecules."""
    from hpc_cg.mapping.shards import mapped
    from hpc_cg.store import layout, writer

    store, first = study.folder("prepare") / layout.STORE, team.share.index == 0
    maps = [_mapping(one, study.tables["prepare"].forces) for one in planned]
    specs = [
        replace(spec, lineage=spec.lineage | {"map": map_digest})
        for spec, (_, map_digest) in zip((spec_of(study, one) for one in planned), maps, strict=True)
    ]
    if first:
        for spec in specs:
            layout.create(store, spec)
    team.barrier()
    todo = team.tell(_shards_to_write(store, specs, planned) if first else [])
    total = sum(spec.n_frames for spec in specs)
    done = total - sum(specs[number].length(shard) for number, shard in todo) if first else 0
    progress("mapping", done, total, "frames")
    for number, shard in team.take(todo):
        limit = study.tables["prepare"].force_limit
        content, quarantine = mapped(planned[number].archive, specs[number], maps[number][0], shard, limit)
        _keep_quarantine(planned[number].place.part("quarantine", shard), quarantine)
        writer.write_shard(store, specs[number], shard, content)
        done += specs[number].length(shard)
        progress("mapping", done, total, "frames")
    team.barrier()
    if first:
        rows = [
            row
            for one in planned
            for shard in sorted(present(one.place.part("quarantine", 0).parent))
            for row in read_json(one.place.part("quarantine", shard))
        ]
        write_json(study.folder("prepare") / QUARANTINE, rows)
        for spec in specs:
            writer.summarise(store, spec)
    team.barrier()


def _shards_to_write(store: Path, specs: "list[StoreSpec]", planned: list[Planned]) -> list[tuple[int, int]]:
    """(molecule, shard) of the shards that are not whole on disk or could not be read whole, the largest first."""
    from hpc_cg.store.writer import holes

    todo = [
        (number, shard)
        for number, (spec, one) in enumerate(zip(specs, planned, strict=True))
        for shard in sorted({*holes(store, spec), *_unread(one)})
    ]
    return sorted(todo, key=lambda item: (-planned[item[0]].archive.n_atoms * specs[item[0]].shard_frames, item))


def _keep_quarantine(path: Path, rows: list[dict[str, Any]]) -> None:
    """The list of a shard, written before the shard; a shard without faults has none."""
    if rows:
        write_json(path, rows)
    else:
        path.unlink(missing_ok=True)


def _unread(planned: Planned) -> set[int]:
    """Shards that a file was missing from when they were written; reading it is tried again."""
    path = planned.place.part("quarantine", 0).parent
    return {int(record.stem) for record in path.glob("*.json") if any(row.get("again") for row in read_json(record))}


def _mapping(planned: Planned, forces: bool) -> "tuple[Mapping, str]":
    """What to read for the fitted map of a molecule, and the map's digest."""
    from hpc_cg.mapping.maps import CGMap
    from hpc_cg.mapping.shards import mapping_of

    cg_map = CGMap.from_arrays(read_arrays(planned.place.map_arrays), planned.system)
    return mapping_of(planned.archive, cg_map, forces, planned.whole), cg_map.digest


@dataclass(frozen=True)
class Trial:
    """Seconds that some frames of a molecule took, and bytes that they take in the store."""

    read: float
    map: float
    write: float
    stored_bytes: int


def trial(study: "Study", planned: Planned, n_frames: int) -> Trial:
    """Map the first ``n_frames`` frames of a molecule whose map is fitted, and write them as one shard."""
    from hpc_cg.mapping.shards import blocks, mapped
    from hpc_cg.store import layout, writer

    mapping, _ = _mapping(planned, study.tables["prepare"].forces)
    spec = replace(spec_of(study, planned), n_frames=n_frames, shard_frames=n_frames)
    spec = replace(spec, chunk_frames=n_frames)
    store = study.folder("prepare") / layout.STORE
    layout.create(store, spec)
    mapped(planned.archive, spec, mapping, 0)  # once before the clock runs: files come from disk
    began = time.perf_counter()
    for _ in blocks(planned.archive, 0, n_frames, mapping.atoms, study.tables["prepare"].forces):
        pass
    has_read = time.perf_counter()
    content, _ = mapped(planned.archive, spec, mapping, 0)
    has_mapped = time.perf_counter()
    writer.write_shard(store, spec, 0, content)
    has_written = time.perf_counter()
    size = sum(path.stat().st_size for path in (store / spec.molecule).rglob("*") if path.is_file())
    read = has_read - began
    return Trial(read, max(has_mapped - has_read - read, 0.0), has_written - has_mapped, size)
