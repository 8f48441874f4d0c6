"""Stage prepare: from archives of atoms to a zarr store of beads with mapped forces, by any number of ranks.

Four passes, each a list of parts that the team divides:

    indexing           what each file holds and where its frames are; no coordinates are read
    looking for bonds  distances between atoms in frames spread over the archive: which of them are rigid?
    measuring forces   second moments of forces, from which the map of least noise follows
    mapping            the shards of the store

After a pass one member puts its parts together, in their order. Parts and shards are the same bytes whoever makes them,
and what is there is not made again.
"""

import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from hpc_cg import errors
from hpc_cg.config import STRICT
from hpc_cg.files import digest, read_arrays, read_json, write_arrays, write_json
from hpc_cg.share import Team
from hpc_cg.stages import molecules
from hpc_cg.stages.molecules import (
    FAULTS,
    NAME,
    QUARANTINE,
    BeadTypes,
    ForceUnit,
    LengthUnit,
    MapKind,
    Molecule,
    MoleculeConfig,
    Place,
)
from hpc_cg.stages.progress import Heartbeat

if TYPE_CHECKING:
    import mdtraj

    from hpc_cg.archive.catalogue import Catalogue, Source
    from hpc_cg.archive.index import Described
    from hpc_cg.archive.trail import Trail
    from hpc_cg.beads import BeadSystem
    from hpc_cg.mapping.shards import Archive, Mapping
    from hpc_cg.mapping.whole import Whole
    from hpc_cg.stages.study import Study
    from hpc_cg.store.layout import StoreSpec


PLAN, LOST, NOTES = "plan.json", "lost", "notes.json"
SAME_STRIDE = 0.01
"""How far the times between frames of two trajectories may differ: they are read from rounded times."""

LISTED_NOTES = 5
LARGEST_SHARD = 2 << 30
"""Bytes that an array of a shard may have: a shard is made in memory."""

MAPPED_BOND_NM = 0.5
"""How far apart bonded beads of archives that are mapped already may be."""


@dataclass(frozen=True, config=STRICT)
class PrepareConfig:
    """The table [prepare].

    archive              files, folders, globs or manifests, relative to the study; empty where [reference] makes it
    topology             file of the atoms; empty for archives that are already mapped (map = "identity")
    atoms                which atoms of the files are looked at, as a selection; "all" for all
    map                  which atoms become beads
    molecule             name of the only molecule, its group in the store
    beads                bead names in chain order, for map = "identity"
    selections           a selection for each bead, for map = "selections"
    map_file             file of the matrix (bead, atom), for map = "matrix"
    bead_types           which beads share parameters; empty for what is usual with the map
    force_files          file of the forces beside each trajectory, where that is another: "{stem}_forces.trr"
    weights              file of statistical weights of the frames; empty where all count the same
    molecules            several molecules: settings of each, where they differ from those above
    forces               whether to map forces; false for archives of positions alone, enough for kernel.kind = "noise"
    force_map            "optimal", "uniform" or "slice"
    ridge                λ of the optimal map, (kJ/mol/nm)² per frame and axis, or "auto": by cross-validation
    fit_frames           frames, spread over the archive, that maps are fitted on; 0 for all
    force_limit          largest component of an atomic force, kJ/mol/nm; frames beyond it are quarantined
    rigid_threshold_nm   atoms whose distance varies less than this are one rigid group; at least the grid that
                         positions are rounded to
    held_out_block_ps    length of the blocks of trajectory that are held out
    held_out_period      one block in so many is held out
    length_unit, force_unit   of the archive, where neither format nor file says
    stride_ps            time between frames, for archives that do not say
    shard_frames         frames in a shard; 0 chooses
    failure_budget       fraction of frames that may be quarantined
    file_budget          fraction of files that may be unreadable
    """

    archive: tuple[str, ...] = ()
    topology: str = ""
    molecule: str = Field(default="molecule", pattern=NAME)
    atoms: str = "all"
    map: MapKind = "alanine-six"
    beads: tuple[str, ...] = ()
    selections: tuple[str, ...] = ()
    map_file: str = ""
    bead_types: BeadTypes = ""
    force_files: str = ""
    weights: str = ""
    molecules: tuple[MoleculeConfig, ...] = ()
    forces: bool = True
    force_map: Literal["optimal", "uniform", "slice"] = "optimal"
    ridge: float | Literal["auto"] = "auto"
    fit_frames: int = Field(default=200_000, ge=0)
    force_limit: float = Field(default=1e5, gt=0)
    rigid_threshold_nm: float = Field(default=1e-4, gt=0)
    held_out_block_ps: float = Field(default=50.0, gt=0)
    held_out_period: int = Field(default=10, ge=2)
    length_unit: LengthUnit = ""
    force_unit: ForceUnit = ""
    stride_ps: float = Field(default=0.0, ge=0)
    shard_frames: int = Field(default=0, ge=0)
    failure_budget: float = Field(default=0.001, ge=0, le=1)
    file_budget: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _says_what_the_map_needs(self) -> "PrepareConfig":
        if self.molecules and self.molecule != "molecule":
            raise ValueError("molecule names the only molecule: remove it, or the [[prepare.molecules]].")
        names = [entry.name for entry in self.molecules]
        if len(set(names)) < len(names):
            raise ValueError("two of the [[prepare.molecules]] have the same name: give each its own.")
        if self.ridge != "auto" and not self.ridge >= 0:
            raise ValueError(f'ridge = {self.ridge}: give a number at or above zero, or "auto".')
        for molecule in molecules.molecules_of(self):
            plain = molecule.force_files.replace("{stem}", "", 1).replace("{name}", "", 1)
            if molecule.force_files and (plain == molecule.force_files or "{" in plain or "}" in plain):
                raise ValueError(
                    f"force_files = {molecule.force_files!r} of {molecule.name} would give many trajectories the same "
                    'forces: name files by {stem} or {name} of the trajectory, e.g. "{stem}_forces.trr".'
                )
            for kind, setting in (("identity", "beads"), ("selections", "selections"), ("matrix", "map_file")):
                if molecule.map == kind and not getattr(molecule, setting):
                    raise ValueError(f'map = "{kind}" of {molecule.name} needs {setting}.')
        return self


@plain_dataclass(frozen=True)
class Planned:
    """One molecule of the study with all that follows from its index and its topology.

    coordinate   matrix over the atoms that are looked at
    whole        makes the Whole of some of these atoms
    around       the same frames, with the neighbours of these atoms
    topology     of all atoms of the files; None for archives that are mapped already
    """

    molecule: Molecule
    place: Place
    archive: "Archive"
    around: "Archive"
    topology: "mdtraj.Topology | None"
    coordinate: np.ndarray
    system: "BeadSystem"
    whole: "Callable[[np.ndarray], Whole]"

    @property
    def catalogue(self) -> "Catalogue":
        return self.archive.catalogue


def work(study: "Study", team: Team, progress: Heartbeat) -> None:
    """All passes; what is done already is skipped. Raises Stopped where the team was asked to stop."""
    from hpc_cg.archive.trail import Trail, suspects

    first, folder = team.share.index == 0, study.folder("prepare")
    index(study, team, progress)
    trail = Trail(folder, team.share.index, frozenset(team.tell(suspects(folder) if first else [])))
    planned = [plan(study, molecule, trail) for molecule in molecules.molecules_of(study.tables["prepare"])]
    if first:
        write_json(folder / PLAN, {one.molecule.name: _parts_of(study, one) for one in planned})
    if study.tables["prepare"].forces:
        look_for_bonds(study, team, progress, planned)
        measure_forces(study, team, progress, planned)
    if first:
        for one in planned:
            if not one.place.map_record.exists():  # once: another processor would round the fit differently
                fit(study, one)
    team.barrier()
    map_frames(study, team, progress, planned)


def index(study: "Study", team: Team, progress: Heartbeat) -> None:
    """Describe every file of the archives; raises TooManyFailures where too many cannot be read, MissingInput."""
    from hpc_cg.archive import catalogue
    from hpc_cg.archive.weights import check_weights

    first, folder = team.share.index == 0, study.folder("prepare")
    wanted = molecules.molecules_of(study.tables["prepare"])
    places = {molecule.name: Place(folder, molecule.name) for molecule in wanted}
    if team.tell(first and _is_indexed(study, places.values())):
        return
    intended = molecules.intent(study) if first else {}
    if first:
        if molecules.recorded_sources(study) is not None:  # the same files in another place, or a damaged index
            shutil.rmtree(folder / "index", ignore_errors=True)
            (folder / molecules.SOURCES).unlink()
        for molecule in wanted:
            catalogue.begin(places[molecule.name].index, molecules.find_sources(study, molecule))
    team.barrier()
    sources = {name: catalogue.sources_of(place.index) for name, place in places.items()}
    todo = team.tell(
        [
            (number, part)
            for number, molecule in enumerate(wanted)
            for part in range(catalogue.n_parts(sources[molecule.name]))
            if not catalogue.is_done(places[molecule.name].index, part)
        ]
        if first
        else []
    )
    progress("indexing", 0, len(todo), "parts")
    for done, (number, part) in enumerate(team.take(todo), 1):
        molecule = wanted[number]
        catalogue.describe_part(
            places[molecule.name].index, sources[molecule.name], part, partial(_describe, study, molecule)
        )
        progress("indexing", done, len(todo), "parts")
    team.barrier()
    if first:
        faults = [
            {"molecule": name, **fault}
            for name, place in places.items()
            for fault in catalogue.merge(place.index, sources[name])
        ]
        _check_faults(study, faults, sum(len(found) for found in sources.values()))
        known: dict[tuple[str, int, int], str] = {}
        notes: list[dict[str, str]] = []
        for molecule in wanted:
            segments = catalogue.Catalogue(places[molecule.name].index)
            check_weights(study.root / molecule.weights if molecule.weights else None, segments)
            notes += [{"path": segment.path, "note": segment.note} for segment in segments if segment.note]
            _check_segments(study, segments)
            whole = (segment for segment in segments if not segment.inside and segment.forces_path is None)
            known |= {(segment.path, segment.size, segment.mtime_ns): segment.digest for segment in whole}
        write_json(folder / NOTES, notes)
        molecules.record_sources(study, intended, known)
    team.barrier()


def _is_indexed(study: "Study", places: "Iterable[Place]") -> bool:
    """Whether the index is there, whole, and says where the files lie now."""
    from hpc_cg.archive.catalogue import Catalogue

    if molecules.recorded_sources(study) is None or molecules.moved(study):
        return False
    try:
        return all(len(Catalogue(place.index)) for place in places)
    except (errors.HpcCgError, OSError, ValueError, KeyError):
        return False  # torn: it is made again


def _describe(study: "Study", molecule: Molecule, source: "Source") -> "tuple[Described, ...]":
    from hpc_cg.archive.index import describe

    return describe(
        Path(source.path),
        molecule=molecule.name,
        want_forces=study.tables["prepare"].forces,
        forces_path=None if source.forces_path is None else Path(source.forces_path),
        length_unit=molecule.length_unit or None,
        force_unit=molecule.force_unit or None,
        stride_ps=molecule.stride_ps or None,
        temperature_K=study.study.temperature_K,
    )


def _check_faults(study: "Study", faults: list[dict[str, str]], n_files: int) -> None:
    """Keep the list of files that could not be read; raise TooManyFailures above the budget, or where none is left."""
    config: PrepareConfig = study.tables["prepare"]
    listed = study.folder("prepare") / FAULTS
    write_json(listed, faults)
    if faults and (len(faults) > config.file_budget * n_files or len(faults) == n_files):
        raise errors.TooManyFailures(
            f"at most {config.file_budget:.2%} of {n_files} files that cannot be read",
            f"{len(faults)}, the first: {faults[0]['reason']}",
            f"mend them or take them out, or raise prepare.file_budget; the list is in {listed}",
        )


def _check_segments(study: "Study", catalogue: "Catalogue") -> None:
    """Raise where segments do not belong into one store: MixedArchive, MissingForces, TemperatureMismatch."""
    config: PrepareConfig = study.tables["prepare"]
    if not len(catalogue):
        raise errors.MissingInput(
            f"trajectories at {study.study.temperature_K:g} K in {catalogue.folder.name}",
            "none in its files",
            "correct prepare.archive or study.temperature_K",
        )
    head = catalogue[0]
    seen: dict[str, str] = {}
    for segment in catalogue:
        if seen.setdefault(segment.digest, segment.path) != segment.path:
            raise errors.MixedArchive(
                f"each trajectory of {segment.molecule} once: a copy would be trained on where the other is held out",
                f"the same content in {seen[segment.digest]} and {segment.path}",
                "take one of them out of prepare.archive",
            )
        if segment.n_atoms != head.n_atoms:
            raise errors.MixedArchive(
                f"one number of atoms in the archive of {segment.molecule}",
                f"{head.n_atoms} in {head.path} and {segment.n_atoms} in {segment.path}",
                "name them as two [[prepare.molecules]]",
            )
        if abs(segment.stride_ps - head.stride_ps) > SAME_STRIDE * head.stride_ps:
            raise errors.MixedArchive(
                f"one time between frames in the archive of {segment.molecule}",
                f"{head.stride_ps:g} ps in {head.path} and {segment.stride_ps:g} ps in {segment.path}",
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


def plan(study: "Study", molecule: Molecule, trail: "Trail") -> Planned:
    """What is to be done for a molecule that is indexed; the same for whoever plans. Raises AtomCountMismatch."""
    from hpc_cg.archive.catalogue import Catalogue
    from hpc_cg.archive.weights import open_weights
    from hpc_cg.mapping import checks, maps, topology
    from hpc_cg.mapping.shards import Archive
    from hpc_cg.mapping.whole import Whole

    place = Place(study.folder("prepare"), molecule.name)
    catalogue = Catalogue(place.index)
    choice = maps.MapChoice(
        kind=molecule.map,
        beads=molecule.beads,
        selections=molecule.selections,
        matrix_file=study.root / molecule.map_file if molecule.map_file else None,
        bead_types=molecule.bead_types,
    )
    if molecule.map == "identity":
        atoms, known = None, None
        n_atoms, source = len(molecule.beads), f"the {len(molecule.beads)} names of prepare.beads"
    else:
        path = molecules.topology_path(study, molecule)
        known = topology.load_topology(path)
        n_atoms, source = known.n_atoms, f"the topology {path}"
        atoms = None if molecule.atoms == "all" else topology.select(known, molecule.atoms)
    found = int(catalogue.n_atoms_of[0])
    if found != n_atoms:
        raise errors.AtomCountMismatch(
            f"{n_atoms} atoms, as in {source}",
            f"{found} atoms in {catalogue[0].path}",
            "give the topology that belongs to the trajectories",
        )
    looked_at = np.arange(n_atoms) if atoms is None else atoms
    coordinate, system = maps.coordinate_map(known if known is None or atoms is None else known.subset(atoms), choice)

    def whole(chosen: np.ndarray) -> Whole:
        if known is None:
            return Whole.along(list(system.bonds), np.zeros(len(chosen), np.int64), MAPPED_BOND_NM)
        return Whole.of(known, looked_at[chosen])

    def seen(of_files: np.ndarray) -> Whole:
        return whole(of_files) if known is None else Whole.among(known, of_files)

    archive = Archive(
        catalogue=catalogue,
        atoms=atoms,
        weights=open_weights(study.root / molecule.weights if molecule.weights else None, catalogue),
        trail=trail,
        whole=seen(looked_at),
    )
    around = archive
    if known is not None and atoms is not None:
        near = checks.with_neighbours(known, atoms)
        around = replace(archive, atoms=near, whole=seen(near))
    return Planned(molecule, place, archive, around, known, coordinate, system, whole)


def held_out_rule(study: "Study", planned: Planned) -> tuple[int, int]:
    """Frames per held-out block, and one block in how many is held out."""
    config: PrepareConfig = study.tables["prepare"]
    return max(1, round(config.held_out_block_ps / planned.catalogue[0].stride_ps)), config.held_out_period


def spec_of(study: "Study", planned: Planned) -> "StoreSpec":
    """The store of a molecule, but for the digest of its map."""
    from hpc_cg.store.layout import StoreSpec, choose_shards

    config: PrepareConfig = study.tables["prepare"]
    n_frames = planned.catalogue.n_frames
    shard_frames, chunk_frames = choose_shards(n_frames, planned.system.n_beads)
    if config.shard_frames:
        shard_frames = chunk_frames = min(config.shard_frames, n_frames)
    if shard_frames * planned.system.n_beads * 12 > LARGEST_SHARD:
        raise errors.ConfigError(
            study.path.name,
            [f"prepare.shard_frames = {config.shard_frames}: a shard would pass 2 GiB; lower it."],
        )
    recorded = read_json(study.folder("prepare") / molecules.SOURCES)
    return StoreSpec(
        molecule=planned.molecule.name,
        system=planned.system,
        n_frames=n_frames,
        shard_frames=shard_frames,
        chunk_frames=chunk_frames,
        arrays=("positions", "forces") if config.forces else ("positions",),
        held_out=held_out_rule(study, planned),
        kernel="none",
        temperature_K=study.study.temperature_K,
        seed=0,
        lineage=recorded["digests"],
    )


def _parts_of(study: "Study", planned: Planned) -> dict[str, int]:
    """How much there is to do for a molecule."""
    from hpc_cg.mapping.shards import fit_ranges, rigid_parts

    config: PrepareConfig = study.tables["prepare"]
    n_frames = planned.catalogue.n_frames
    return {
        "frames": n_frames,
        "groups": len(rigid_parts(n_frames)) if config.forces else 0,
        "moments": len(fit_ranges(n_frames, config.fit_frames)) if config.forces else 0,
        "shards": spec_of(study, planned).n_shards,
    }


def _missing(planned: list[Planned], kind: str, counts: list[int]) -> list[tuple[int, int]]:
    """(molecule, part) of the parts of one kind that are not there yet."""
    return [
        (number, part)
        for number, (one, count) in enumerate(zip(planned, counts, strict=True))
        for part in sorted(set(range(count)) - present(one.place.part(kind, 0).parent))
    ]


def present(folder: Path) -> set[int]:
    """Numbers of the records in a folder, by one look at it."""
    return {int(path.stem) for path in folder.glob("*.[nj]*") if path.stem.isdecimal()} if folder.is_dir() else set()


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
    todo = team.tell(_missing(planned, "distances", [len(part) for part in parts]) if first else [])
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

    config: PrepareConfig = study.tables["prepare"]
    ranges = [fit_ranges(one.catalogue.n_frames, config.fit_frames) for one in planned]
    first = team.share.index == 0
    if first:
        _forget_incomplete(planned)
    todo = team.tell(_missing(planned, "moments", [len(own) for own in ranges]) if first else [])
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

    config: PrepareConfig = study.tables["prepare"]
    place, groups = planned.place, _groups(planned) if config.forces else ()
    if not config.forces:
        check_topology(planned)  # with forces this was done when bonds were looked for
    if config.forces:
        parts = (
            FitMoments.from_arrays(read_arrays(place.part("moments", part)))
            for part in range(_parts_of(study, planned)["moments"])
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


@plain_dataclass(frozen=True)
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
    content, _ = mapped(planned.archive, spec, mapping, 0)  # once before the clock runs: files come from disk
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


def finish(study: "Study") -> tuple[str, dict[str, Any]]:
    """Check the quarantine against the budget; digest and figures of the store."""
    from hpc_cg.store import layout, writer
    from hpc_cg.store.dataset import open_spec

    config: PrepareConfig = study.tables["prepare"]
    folder = study.folder("prepare")
    names = [molecule.name for molecule in molecules.molecules_of(config)]
    specs = [open_spec(folder / layout.STORE, name) for name in names]
    n_frames, quarantine = sum(spec.n_frames for spec in specs), read_json(folder / QUARANTINE)
    n_quarantined = sum(row["frames"] for row in quarantine)
    if n_quarantined > config.failure_budget * n_frames:
        worst = quarantine[0]
        raise errors.TooManyFailures(
            f"at most {config.failure_budget:.2%} of {n_frames} frames quarantined",
            f"{n_quarantined}, the first in {worst['path']}, frame {worst['frame']}: {worst['reason']}",
            f"mend the archive, or raise prepare.failure_budget; the list is in {folder / QUARANTINE}",
        )
    crc = []
    for spec in specs:
        commits = writer.committed(folder / layout.STORE, spec)
        assert len(commits) == spec.n_shards, "a stage is finished when every shard is committed"
        crc.append([commits[shard].crc for shard in range(spec.n_shards)])
        if not any(commit.n_good for commit in commits.values()):
            raise errors.TooFewFrames(
                f"frames of {spec.molecule} that can be used",
                f"none of {spec.n_frames}: all are quarantined or weigh nothing",
                f"look at {folder / QUARANTINE} and at prepare.weights",
            )
    records = {name: read_json(Place(folder, name).map_record) for name in names}
    notes = read_json(folder / NOTES)
    summary = {
        "frames": n_frames,
        "quarantined": n_quarantined,
        "unreadable_files": len(read_json(folder / FAULTS)),
        "molecules": len(names),
        "beads": max(spec.system.n_beads for spec in specs),
        "shards": sum(spec.n_shards for spec in specs),
        "mean_square": {name: record["mean_square"] for name, record in records.items()},
        "warnings": [
            *(warning for record in records.values() for warning in record["warnings"]),
            *(f"{row['path']}: {row['note']}" for row in notes[:LISTED_NOTES]),
            *([f"{len(notes) - LISTED_NOTES} more notes in {NOTES}"] if len(notes) > LISTED_NOTES else []),
        ],
    }
    return digest([[spec.digest for spec in specs], crc]), summary


def done(study: "Study") -> tuple[int, int, str] | None:
    """Parts and shards on disk, of how many; None before the plan is there."""
    folder = study.folder("prepare")
    if not (folder / PLAN).exists():
        return None
    plans = read_json(folder / PLAN)
    there = sum(len(present(folder / kind / name)) for name in plans for kind in ("distances", "moments", "commits"))
    total = sum(plan["groups"] + plan["moments"] + plan["shards"] for plan in plans.values())
    return there, total, "parts measured and mapped"
