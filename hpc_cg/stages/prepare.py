"""Stage prepare: from an archive of atoms to a zarr store of beads with mapped forces, by any number of ranks.

Two passes over the archive, each a list of shards that the team divides. The first sums moments: distances between
atoms (which are rigid?) and products of forces (which map is least noisy?). One member adds the records up in the order
of the shards and fits the maps. The second pass maps and writes. Records and shards are the same bytes whoever makes
them.
"""

import operator
from dataclasses import asdict, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from hpc_cg import errors
from hpc_cg.config import STRICT
from hpc_cg.files import digest, digest_file, read_arrays, read_json, write_arrays, write_json
from hpc_cg.share import Team
from hpc_cg.stages.progress import Heartbeat

if TYPE_CHECKING:
    from hpc_cg.archive.index import Segment
    from hpc_cg.mapping.maps import CGMap
    from hpc_cg.stages.study import Study
    from hpc_cg.store.layout import StoreSpec


SOURCES = "sources.json"


@dataclass(frozen=True, config=STRICT)
class PrepareConfig:
    """The table [prepare].

    archive              files, folders or globs, relative to the study; empty where [reference] makes the archive
    topology             PDB of the atoms; empty for archives that are already mapped (map = "identity")
    map                  which atoms become beads
    beads                bead names in chain order, for map = "identity"
    forces               whether to map forces; false for archives of positions alone, enough for kernel.kind = "noise"
    force_map            "optimal", "uniform" or "slice"
    ridge                λ of the optimal map, (kJ/mol/nm)² per frame and axis
    rigid_threshold_nm   atoms whose distance varies less than this are one rigid group
    held_out_block_ps    length of the blocks of trajectory that are held out
    held_out_period      one block in so many is held out
    stride_ps            time between frames, for archives that do not say
    failure_budget       fraction of frames that may be quarantined
    """

    archive: tuple[str, ...] = ()
    topology: str = ""
    molecule: str = Field(default="molecule", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    map: Literal["alanine-six", "alanine-five", "calpha", "identity"] = "alanine-six"
    beads: tuple[str, ...] = ()
    forces: bool = True
    force_map: Literal["optimal", "uniform", "slice"] = "optimal"
    ridge: float = Field(default=0.0, ge=0)
    rigid_threshold_nm: float = Field(default=1e-4, gt=0)
    held_out_block_ps: float = Field(default=50.0, gt=0)
    held_out_period: int = Field(default=10, ge=2)
    length_unit: Literal["nm", "angstrom"] = "nm"
    force_unit: Literal["kJ/mol/nm", "kJ/mol/angstrom", "kcal/mol/angstrom"] = "kJ/mol/nm"
    stride_ps: float = Field(default=0.0, ge=0)
    shard_frames: int = Field(default=0, ge=0)
    failure_budget: float = Field(default=0.001, ge=0, le=1)


def scan(study: "Study") -> tuple["Segment", ...]:
    """The segments of the study's archive, in order; no coordinates are read.

    Raises MissingInput, MissingForces, MixedArchive, TemperatureMismatch.
    """
    from hpc_cg.archive import index

    config: PrepareConfig = study.tables["prepare"]
    paths, root = _archive(study)
    segments = index.scan(
        paths,
        root,
        molecule=config.molecule,
        length_unit=config.length_unit,
        force_unit=config.force_unit,
        stride_ps=config.stride_ps or None,
    )
    for segment in segments:
        if abs(segment.stride_ps - segments[0].stride_ps) > 1e-6:
            raise errors.MixedArchive(
                "one time between frames in the whole archive",
                f"{segments[0].stride_ps:g} ps in {segments[0].path} and {segment.stride_ps:g} ps in {segment.path}",
                "prepare them as two studies",
            )
        if config.forces and not segment.has_forces:
            raise errors.MissingForces(
                f"mapped forces from {segment.path}",
                "positions only",
                "point prepare.archive at files with forces, or set prepare.forces = false to train on noise alone",
            )
        made_at = segment.temperature_K
        if made_at is not None and abs(made_at - study.study.temperature_K) > 0.5:
            raise errors.TemperatureMismatch(
                f"study.temperature_K = {study.study.temperature_K}",
                f"{segment.path}, made at {made_at} K",
                "set the study's temperature to that of the archive, or choose other files",
            )
    return segments


def _topology(study: "Study") -> Path:
    config: PrepareConfig = study.tables["prepare"]
    return study.root / config.topology if config.topology else study.folder("reference") / "topology.pdb"


def plan(study: "Study", segments: tuple["Segment", ...]) -> "tuple[StoreSpec, np.ndarray]":
    """The store to be written, and the coordinate map; the same for whoever plans. Raises AtomCountMismatch."""
    from hpc_cg.mapping import maps
    from hpc_cg.store.layout import StoreSpec, choose_shards

    config: PrepareConfig = study.tables["prepare"]
    if config.map == "identity":
        coordinate, system = maps.identity_map(config.beads)
        source = f"the {len(config.beads)} names of prepare.beads"
    else:
        topology = maps.load_topology(_topology(study))
        coordinate, system = maps.slice_map(topology, config.map)
        source = f"the topology {_topology(study)}"
    for segment in segments:
        if segment.n_atoms != coordinate.shape[1]:
            raise errors.AtomCountMismatch(
                f"{coordinate.shape[1]} atoms, as in {source}",
                f"{segment.n_atoms} atoms in {segment.path}",
                "give the topology that belongs to the trajectories",
            )
    n_frames = sum(segment.n_frames for segment in segments)
    shard_frames, chunk_frames = choose_shards(n_frames, system.n_beads)
    if config.shard_frames:
        shard_frames = chunk_frames = config.shard_frames
    spec = StoreSpec(
        molecule=config.molecule,
        system=system,
        n_frames=n_frames,
        shard_frames=shard_frames,
        chunk_frames=chunk_frames,
        arrays=("positions", "forces") if config.forces else ("positions",),
        held_out=held_out_rule(config, segments),
        kernel="none",
        temperature_K=study.study.temperature_K,
        seed=0,
        lineage={"archive": digest([segment.digest for segment in segments])},
    )
    return spec, coordinate


def held_out_rule(config: PrepareConfig, segments: tuple["Segment", ...]) -> tuple[int, int]:
    """Frames per held-out block, and one block in how many is held out."""
    return max(1, round(config.held_out_block_ps / segments[0].stride_ps)), config.held_out_period


def fit_maps(study: "Study", spec: "StoreSpec", coordinate: np.ndarray) -> None:
    """Add up the moments of all shards in order, fit the three force maps, keep the one asked for and the evidence."""
    from hpc_cg.mapping import constraints, optimal
    from hpc_cg.mapping.maps import CGMap
    from hpc_cg.mapping.shards import ShardMoments

    config: PrepareConfig = study.tables["prepare"]
    folder = study.folder("prepare")
    # added in the order of the shards, so that rounding is the same whoever made them
    moments = reduce(
        operator.add,
        (ShardMoments.from_arrays(read_arrays(_moments_path(folder, shard))) for shard in range(spec.n_shards)),
    )
    train, held = moments.train, moments.held_out
    if config.forces and not (train.count and held.count):
        raise errors.TooFewFrames(
            f"blocks of {config.held_out_block_ps} ps, one in {config.held_out_period} held out",
            f"{train.count} frames to fit on and {held.count} held out",
            "give longer trajectories, or shorten prepare.held_out_block_ps",
        )
    groups = constraints.rigid_groups(moments.distances, coordinate.shape[1], config.rigid_threshold_nm)
    candidates = {"slice": optimal.slice_force_map(coordinate)}
    if config.forces:
        candidates["uniform"] = optimal.uniform_force_map(coordinate, groups)
        candidates["optimal"] = optimal.optimal_force_map(coordinate, groups, train, config.ridge)
    chosen = config.force_map if config.forces else "slice"
    force = candidates[chosen]
    if chosen != "slice":
        optimal.check_map(coordinate, force, groups)
    cg_map = CGMap(coordinate=coordinate, force=force, system=spec.system)
    mean_squares = {
        name: {
            "train": float(optimal.mean_square(matrix, train).mean()),
            "held_out": float(optimal.mean_square(matrix, held).mean()),
        }
        for name, matrix in candidates.items()
        if config.forces
    }
    nothing = np.zeros((spec.system.n_beads, spec.system.n_beads))
    write_arrays(
        folder / "map.npz",
        **cg_map.arrays(),
        second_moment=optimal.bead_second_moment(force, train) if config.forces else nothing,
        second_moment_held_out=optimal.bead_second_moment(force, held) if config.forces else nothing,
    )
    broken = [
        f"atoms {', '.join(map(str, group))}"
        for group in groups
        if len(group) > 1 and np.ptp(candidates["slice"][:, list(group)], axis=1).any()
    ]
    write_json(
        folder / "map.json",
        {
            "force_map": chosen if config.forces else "none",
            "mean_square": mean_squares,
            "rigid_groups": [list(group) for group in groups if len(group) > 1],
            "orthogonality": float(cg_map.orthogonality),
            "slice_breaks_rigid_groups": broken,
            "digest": cg_map.digest,
        },
    )


def work(study: "Study", team: Team, progress: Heartbeat) -> None:
    """Both passes; what is done already is skipped."""
    from hpc_cg.mapping.maps import CGMap
    from hpc_cg.mapping.shards import mapped, measure, near_pairs
    from hpc_cg.store import layout
    from hpc_cg.store.writer import read_commit, write_shard

    folder = study.folder("prepare")
    first = team.share.index == 0
    segments = scan(study)
    spec, coordinate = plan(study, segments)
    shards = tuple(range(spec.n_shards))
    if first:
        write_json(folder / "plan.json", {"n_frames": spec.n_frames, "n_shards": spec.n_shards})
    pairs = near_pairs(segments)
    todo = [shard for shard in shards if not _moments_path(folder, shard).exists()]
    done = _frames(spec, shards, todo) if first else 0
    progress("measuring forces", done, spec.n_frames, "frames")
    for shard in team.take(todo):
        write_arrays(_moments_path(folder, shard), **measure(segments, spec, pairs, shard).arrays())
        done += spec.frames_of(shard)[1] - spec.frames_of(shard)[0]
        progress("measuring forces", done, spec.n_frames, "frames")
    team.barrier()
    if first and not (folder / "map.json").exists():  # once: another processor would round the fit differently
        write_json(folder / "segments.json", [segment.to_json() for segment in segments])
        fit_maps(study, spec, coordinate)
    team.barrier()

    cg_map = CGMap.from_arrays(read_arrays(folder / "map.npz"), spec.system)
    spec = _with_map(spec, cg_map)
    if first:
        layout.create(folder / layout.STORE, spec)
    team.barrier()
    todo = [shard for shard in shards if read_commit(folder / layout.STORE, spec, shard) is None]
    done = _frames(spec, shards, todo) if first else 0
    progress("mapping", done, spec.n_frames, "frames")
    for shard in team.take(todo):
        content, quarantine = mapped(segments, spec, cg_map, shard)
        write_json(_quarantine_path(folder, shard), quarantine)
        write_shard(folder / layout.STORE, spec, shard, content)
        done += spec.frames_of(shard)[1] - spec.frames_of(shard)[0]
        progress("mapping", done, spec.n_frames, "frames")
    team.barrier()
    if first:
        rows = [row for shard in shards for row in read_json(_quarantine_path(folder, shard))]
        write_json(folder / "quarantine.json", rows)
        write_json(folder / SOURCES, _look_at_sources(study))


def finish(study: "Study") -> tuple[str, dict[str, Any]]:
    """Check the quarantine against the budget; digest and figures of the store."""
    from hpc_cg.store import layout
    from hpc_cg.store.dataset import open_spec
    from hpc_cg.store.writer import read_commit

    config: PrepareConfig = study.tables["prepare"]
    folder = study.folder("prepare")
    spec = open_spec(folder / layout.STORE, config.molecule)
    quarantine = read_json(folder / "quarantine.json")
    if len(quarantine) > config.failure_budget * spec.n_frames:
        worst = quarantine[0]
        raise errors.TooManyFailures(
            f"at most {config.failure_budget:.2%} of {spec.n_frames} frames quarantined",
            f"{len(quarantine)}, the first in {worst['path']}, frame {worst['frame']}: {worst['reason']}",
            f"mend the archive, or raise prepare.failure_budget; the list is in {folder / 'quarantine.json'}",
        )
    commits = [read_commit(folder / layout.STORE, spec, shard) for shard in range(spec.n_shards)]
    assert all(commits), "a stage is finished when every shard is committed"
    chosen = read_json(folder / "map.json")
    summary = {
        "frames": spec.n_frames,
        "quarantined": len(quarantine),
        "beads": spec.system.n_beads,
        "shards": spec.n_shards,
        "mean_square": chosen["mean_square"],
    }
    return digest([spec.digest, [asdict(commit)["crc"] for commit in commits if commit]]), summary


def done(study: "Study") -> tuple[int, int, str] | None:
    """Shards on disk, of how many; None before the plan is there."""
    folder = study.folder("prepare")
    n_moments = len(list((folder / "moments").glob("*.npz")))
    n_commits = len(list((folder / "commits" / study.tables["prepare"].molecule).glob("*.json")))
    total = read_json(folder / "plan.json")["n_shards"] if (folder / "plan.json").exists() else 0
    return (n_moments + n_commits, 2 * total, "shards measured and mapped") if total else None


def sources(study: "Study") -> dict[str, str]:
    """Digests of the archive's files and of the topology as they are now.

    Files whose size and time of change are those recorded are not read again; of an archive that has been removed the
    recorded digest is taken, for a store outlives its archive.
    """
    path = study.folder("prepare") / SOURCES
    recorded = read_json(path) if path.exists() else None
    try:
        signature = _signature(study)
    except errors.MissingInput:
        return recorded["digests"] if recorded else {}
    if recorded is not None and recorded["signature"] == signature:
        return recorded["digests"]
    return _look_at_sources(study)["digests"]


def _look_at_sources(study: "Study") -> dict[str, Any]:
    config: PrepareConfig = study.tables["prepare"]
    digests = {"archive": digest([digest_file(path) for path in _source_files(study)])}
    if config.map != "identity" and _topology(study).exists():
        digests["topology"] = digest_file(_topology(study))
    return {"signature": _signature(study), "digests": digests}


def _signature(study: "Study") -> list[list[Any]]:
    """Path, size and time of change of each source file: cheap to take, and changed where a file is."""
    config: PrepareConfig = study.tables["prepare"]
    topology = [] if config.map == "identity" else [_topology(study)]
    looked_at = [(path, path.stat()) for path in [*_source_files(study), *topology] if path.exists()]
    return [[str(path), found.st_size, found.st_mtime_ns] for path, found in looked_at]


def _source_files(study: "Study") -> list[Path]:
    """Every file of the archive, forces beside coordinates too. Raises MissingInput."""
    from hpc_cg.archive.index import files_of, find

    paths, root = _archive(study)
    return [path for source in find(paths, root) for path in files_of(source)]


def _archive(study: "Study") -> tuple[tuple[str, ...], Path]:
    """Where the archive lies: patterns, and the folder they start from. Raises ConfigError."""
    config: PrepareConfig = study.tables["prepare"]
    if config.archive:
        return config.archive, study.root
    if "reference" not in study.tables:
        raise errors.ConfigError(study.path.name, ["prepare.archive is missing: name files, or add [reference]."])
    return ("*.h5",), study.folder("reference")


def _frames(spec: "StoreSpec", shards: tuple[int, ...], todo: list[int]) -> int:
    """Frames of the shards that are not to be done."""
    return sum(spec.frames_of(shard)[1] - spec.frames_of(shard)[0] for shard in set(shards) - set(todo))


def _with_map(spec: "StoreSpec", cg_map: "CGMap") -> "StoreSpec":
    return replace(spec, lineage=spec.lineage | {"map": cg_map.digest})


def _moments_path(folder: Path, shard: int) -> Path:
    return folder / "moments" / f"{shard:06d}.npz"


def _quarantine_path(folder: Path, shard: int) -> Path:
    return folder / "quarantine" / f"{shard:06d}.json"
