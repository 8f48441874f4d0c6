"""Stage prepare: from an archive of atoms to a zarr store of beads with mapped forces, by any number of ranks.

Two passes over the archive, each a list of shards that the team divides. The first sums moments: distances between
atoms (which are rigid?) and products of forces (which map is least noisy?). One member adds the records up in the order
of the shards and fits the maps. The second pass maps and writes. Records and shards are the same bytes whoever makes
them.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from hpc_cg import errors
from hpc_cg.config import STRICT
from hpc_cg.files import digest, read_arrays, read_json, write_arrays, write_json
from hpc_cg.share import Team
from hpc_cg.stages.progress import Heartbeat

if TYPE_CHECKING:
    from hpc_cg.archive.index import Segment
    from hpc_cg.frames import AtomFrames
    from hpc_cg.mapping.maps import CGMap
    from hpc_cg.stages.study import Study
    from hpc_cg.store.layout import StoreSpec

BLOCK_BYTES = 32 << 20
CONSTRAINT_SAMPLES = 2000


@dataclass(frozen=True, config=STRICT)
class PrepareConfig:
    """The table [prepare].

    archive              files, folders or globs, relative to the study; empty where [reference] makes the archive
    topology             PDB of the atoms; empty for archives that are already mapped (map = "identity")
    map                  which atoms become beads
    beads                bead names in chain order, for map = "identity"
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
    map: Literal["alanine-six", "alanine-five", "identity"] = "alanine-six"
    beads: tuple[str, ...] = ()
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


@dataclass(frozen=True)
class Piece:
    """Frames start to stop of one segment, as part of a shard."""

    segment: int
    start: int
    stop: int


def pieces_of(lengths: tuple[int, ...], start: int, stop: int) -> tuple[Piece, ...]:
    """The parts of segments (of the given lengths, one after another) that global frames start to stop fall on."""
    pieces, first = [], 0
    for number, length in enumerate(lengths):
        low, high = max(start, first), min(stop, first + length)
        if low < high:
            pieces.append(Piece(number, low - first, high - first))
        first += length
    return tuple(pieces)


def scan(study: "Study") -> tuple["Segment", ...]:
    """The segments of the study's archive, in order; no coordinates are read. Raises MissingInput, MissingForces."""
    from hpc_cg.archive import index

    config: PrepareConfig = study.tables["prepare"]
    paths, root = config.archive, study.root
    if not paths:
        if "reference" not in study.tables:
            raise errors.ConfigError(study.path.name, ["prepare.archive is missing: name files, or add [reference]."])
        paths, root = ("*.h5",), study.folder("reference")
    segments = index.scan(
        paths,
        root,
        molecule=config.molecule,
        length_unit=config.length_unit,
        force_unit=config.force_unit,
        stride_ps=config.stride_ps or None,
    )
    for segment in segments:
        if not segment.has_forces:
            raise errors.MissingForces(
                f"mapped forces from {segment.path}",
                "positions only",
                "point prepare.archive at files with forces",
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
        arrays=("positions", "forces"),
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


def blocks(segments: tuple["Segment", ...], spec: "StoreSpec", shard: int) -> "Iterator[tuple[Piece, AtomFrames]]":
    """The frames of a shard, read in blocks of bounded memory."""
    from hpc_cg.archive import readers

    lengths = tuple(segment.n_frames for segment in segments)
    for piece in pieces_of(lengths, *spec.frames_of(shard)):
        segment = segments[piece.segment]
        step = max(1, BLOCK_BYTES // (24 * segment.n_atoms))
        for start in range(piece.start, piece.stop, step):
            stop = min(start + step, piece.stop)
            yield Piece(piece.segment, start, stop), readers.read(segment, start, stop)


def measure(segments: tuple["Segment", ...], spec: "StoreSpec", shard: int) -> dict[str, np.ndarray]:
    """First pass, one shard: moments of distances and of forces, for training and held-out blocks apart."""
    from hpc_cg.mapping.constraints import DistanceMoments
    from hpc_cg.mapping.optimal import ForceMoments
    from hpc_cg.store.dataset import held_out

    every = max(1, spec.n_frames // CONSTRAINT_SAMPLES)
    pairs = _pairs(segments)
    distances = DistanceMoments.empty(pairs)
    moments = {False: ForceMoments.empty(segments[0].n_atoms), True: ForceMoments.empty(segments[0].n_atoms)}
    for piece, frames in blocks(segments, spec, shard):
        index = np.arange(piece.start, piece.stop)
        good = frames.finite
        sampled = frames.positions[good & (index % every == 0)]
        distances = distances + DistanceMoments.of(sampled, pairs)
        out = held_out(np.full(len(index), piece.segment), index, *spec.held_out)
        assert frames.forces is not None, "segments without forces are refused by scan"
        for side in (False, True):
            moments[side] = moments[side] + ForceMoments.of(frames.forces[good & (out == side)])
    return {
        "distance_count": np.asarray(distances.count),
        "distance_mean": distances.mean,
        "distance_m2": distances.m2,
        "train_count": np.asarray(moments[False].count),
        "train_gram": moments[False].gram,
        "held_out_count": np.asarray(moments[True].count),
        "held_out_gram": moments[True].gram,
    }


def _pairs(segments: tuple["Segment", ...]) -> np.ndarray:
    """Pairs of atoms that may be rigid: those near one another in the first good frame of the archive."""
    from hpc_cg.archive import readers
    from hpc_cg.mapping.constraints import candidate_pairs

    frames = readers.read(segments[0], 0, min(segments[0].n_frames, 100))
    good = np.flatnonzero(frames.finite)
    if not len(good):
        raise errors.BadFrames(
            f"positions and forces from {segments[0].path}",
            f"no numbers in any of its first {frames.n_frames} frames",
            "leave that file out, or make it again",
        )
    return candidate_pairs(frames.positions[good[0]])


def fit_maps(study: "Study", segments: tuple["Segment", ...], spec: "StoreSpec", coordinate: np.ndarray) -> None:
    """Add up the moments of all shards in order, fit the three force maps, keep the one asked for and the evidence."""
    from hpc_cg.mapping import constraints, optimal
    from hpc_cg.mapping.maps import CGMap

    config: PrepareConfig = study.tables["prepare"]
    folder = study.folder("prepare")
    pairs = _pairs(segments)
    distances = constraints.DistanceMoments.empty(pairs)
    train = held = optimal.ForceMoments.empty(coordinate.shape[1])
    for shard in range(spec.n_shards):
        record = read_arrays(_moments_path(folder, shard))
        distances = distances + constraints.DistanceMoments(
            pairs, int(record["distance_count"]), record["distance_mean"], record["distance_m2"]
        )
        train = train + optimal.ForceMoments(int(record["train_count"]), record["train_gram"])
        held = held + optimal.ForceMoments(int(record["held_out_count"]), record["held_out_gram"])
    if not train.count or not held.count:
        raise errors.TooFewFrames(
            f"blocks of {config.held_out_block_ps} ps, one in {config.held_out_period} held out",
            f"{train.count} frames to fit on and {held.count} held out",
            "give longer trajectories, or shorten prepare.held_out_block_ps",
        )
    groups = constraints.rigid_groups(distances, coordinate.shape[1], config.rigid_threshold_nm)
    candidates = {
        "slice": optimal.slice_force_map(coordinate),
        "uniform": optimal.uniform_force_map(coordinate, groups),
        "optimal": optimal.optimal_force_map(coordinate, groups, train, config.ridge),
    }
    force = candidates[config.force_map]
    if config.force_map != "slice":
        optimal.check_map(coordinate, force, groups)
    cg_map = CGMap(coordinate=coordinate, force=force, system=spec.system)
    mean_squares = {
        name: {
            "train": float(optimal.mean_square(matrix, train).mean()),
            "held_out": float(optimal.mean_square(matrix, held).mean()),
        }
        for name, matrix in candidates.items()
    }
    write_arrays(
        folder / "map.npz",
        **cg_map.arrays(),
        second_moment=optimal.bead_second_moment(force, train),
        second_moment_held_out=optimal.bead_second_moment(force, held),
    )
    broken = [
        f"atoms {', '.join(map(str, group))}"
        for group in groups
        if len(group) > 1 and np.ptp(candidates["slice"][:, list(group)], axis=1).any()
    ]
    write_json(
        folder / "map.json",
        {
            "force_map": config.force_map,
            "mean_square": mean_squares,
            "rigid_groups": [list(group) for group in groups if len(group) > 1],
            "orthogonality": float(cg_map.orthogonality),
            "slice_breaks_rigid_groups": broken,
            "digest": cg_map.digest,
        },
    )


def map_shard(
    segments: tuple["Segment", ...], spec: "StoreSpec", cg_map: "CGMap", folder: Path, shard: int
) -> list[dict[str, Any]]:
    """Second pass, one shard: map its frames, write them, return what was quarantined and why."""
    from hpc_cg.store import layout
    from hpc_cg.store.writer import write_shard

    positions, forces, weights, frame_index, segment_index = [], [], [], [], []
    quarantine: list[dict[str, Any]] = []
    for piece, frames in blocks(segments, spec, shard):
        good = frames.finite
        assert frames.forces is not None, "segments without forces are refused by scan"
        mapped = cg_map.apply_positions(frames.positions)
        # centred in double precision: absolute coordinates far from the origin would cost digits
        mapped = mapped - mapped.mean(axis=1, keepdims=True)
        positions.append(np.where(good[:, None, None], mapped, np.nan))
        forces.append(np.where(good[:, None, None], cg_map.apply_forces(frames.forces), np.nan))
        weights.append(good.astype(np.float32))
        index = np.arange(piece.start, piece.stop)
        frame_index.append(index)
        segment_index.append(np.full(len(index), piece.segment))
        path = segments[piece.segment].path
        quarantine += [
            {"path": path, "frame": int(i), "reason": "positions or forces that are no numbers"} for i in index[~good]
        ]
    content = layout.ShardFrames(
        arrays={"positions": np.concatenate(positions), "forces": np.concatenate(forces)},
        frame_index=np.concatenate(frame_index),
        segment=np.concatenate(segment_index),
        weights=np.concatenate(weights),
    )
    write_json(_quarantine_path(folder, shard), quarantine)
    write_shard(folder / layout.STORE, spec, shard, content)
    return quarantine


def work(study: "Study", team: Team, progress: Heartbeat) -> None:
    """Both passes; what is done already is skipped."""
    from hpc_cg.mapping.maps import CGMap
    from hpc_cg.store import layout
    from hpc_cg.store.writer import read_commit

    folder = study.folder("prepare")
    first = team.share.index == 0
    segments = scan(study)
    spec, coordinate = plan(study, segments)
    shards = tuple(range(spec.n_shards))
    if first:
        _start_over_if_changed(folder, spec)
    team.barrier()

    done = 0
    todo = [shard for shard in shards if not _moments_path(folder, shard).exists()]
    progress("measuring forces", done, spec.n_frames, "frames")
    for shard in team.take(todo):
        write_arrays(_moments_path(folder, shard), **measure(segments, spec, shard))
        done += spec.frames_of(shard)[1] - spec.frames_of(shard)[0]
        progress("measuring forces", done, spec.n_frames, "frames")
    team.barrier()
    if first:
        fit_maps(study, segments, spec, coordinate)
        write_json(folder / "segments.json", [segment.to_json() for segment in segments])
    team.barrier()

    cg_map = CGMap.from_arrays(read_arrays(folder / "map.npz"), spec.system)
    spec = _with_map(spec, cg_map)
    if first and not (folder / layout.STORE / spec.molecule / "zarr.json").exists():
        layout.create(folder / layout.STORE, spec)
    team.barrier()
    done = 0
    todo = [shard for shard in shards if read_commit(folder / layout.STORE, spec, shard) is None]
    progress("mapping", done, spec.n_frames, "frames")
    for shard in team.take(todo):
        map_shard(segments, spec, cg_map, folder, shard)
        done += spec.frames_of(shard)[1] - spec.frames_of(shard)[0]
        progress("mapping", done, spec.n_frames, "frames")


def finish(study: "Study") -> tuple[str, dict[str, Any]]:
    """Check the quarantine against the budget; digest and figures of the store."""
    from hpc_cg.store import layout
    from hpc_cg.store.dataset import open_spec
    from hpc_cg.store.writer import read_commit

    config: PrepareConfig = study.tables["prepare"]
    folder = study.folder("prepare")
    spec = open_spec(folder / layout.STORE, config.molecule)
    quarantine = [row for shard in range(spec.n_shards) for row in read_json(_quarantine_path(folder, shard))]
    write_json(folder / "quarantine.json", quarantine)
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


def archive_digest(study: "Study") -> str:
    """Digest of the archive as it is now, to be compared with the one a store was made from."""
    return digest([segment.digest for segment in scan(study)])


def _with_map(spec: "StoreSpec", cg_map: "CGMap") -> "StoreSpec":
    from dataclasses import replace

    return replace(spec, lineage=spec.lineage | {"map": cg_map.digest})


def _start_over_if_changed(folder: Path, spec: "StoreSpec") -> None:
    """Refuse to continue a half-made store on an archive that has changed since."""
    path = folder / "plan.json"
    planned = {
        "archive": spec.lineage["archive"],
        "n_frames": spec.n_frames,
        "shard_frames": spec.shard_frames,
    }
    if path.exists() and read_json(path) != planned:
        raise errors.DamagedProduct(
            f"continuing the store in {folder}",
            "an archive that has changed since it was begun",
            f"move {folder} away and run prepare again",
        )
    write_json(path, planned)


def _moments_path(folder: Path, shard: int) -> Path:
    return folder / "moments" / f"{shard:06d}.npz"


def _quarantine_path(folder: Path, shard: int) -> Path:
    return folder / "quarantine" / f"{shard:06d}.json"
