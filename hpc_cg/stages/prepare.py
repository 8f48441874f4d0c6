"""Stage prepare: from archives of atoms to a zarr store of beads with mapped forces, by any number of ranks.

Four passes, each a list of parts that the team divides:

    indexing           what each file holds and where its frames are; no coordinates are read
    looking for bonds  distances between atoms in frames spread over the archive: which of them are rigid?
    measuring forces   second moments of forces, from which the map of least noise follows
    mapping            the shards of the store

After a pass one member puts its parts together, in their order. Parts and shards are the same bytes whoever makes them,
and what is there is not made again.
"""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from hpc_cg import errors
from hpc_cg.config import STRICT
from hpc_cg.files import digest, read_json, write_json
from hpc_cg.share import Team
from hpc_cg.stages import molecules
from hpc_cg.stages.indexing import index
from hpc_cg.stages.molecules import (
    FAULTS,
    NAME,
    NOTES,
    QUARANTINE,
    BeadTypes,
    ForceUnit,
    LengthUnit,
    MapKind,
    MoleculeConfig,
    Place,
)
from hpc_cg.stages.passes import fit, look_for_bonds, map_frames, measure_forces
from hpc_cg.stages.planning import parts_of, plan, present
from hpc_cg.stages.progress import Heartbeat

if TYPE_CHECKING:
    from hpc_cg.stages.study import Study

BESIDE = frozenset({"failure_budget", "file_budget"})
"""Budgets judge what is left out, and decide nothing of the store."""

PLAN = "plan.json"
LISTED_NOTES = 5


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


def work(study: "Study", team: Team, progress: Heartbeat) -> None:
    """All passes; what is done already is skipped. Raises Stopped where the team was asked to stop."""
    from hpc_cg.archive.trail import Trail, suspects

    first, folder = team.share.index == 0, study.folder("prepare")
    index(study, team, progress)
    trail = Trail(folder, team.share.index, frozenset(team.tell(suspects(folder) if first else [])))
    planned = [plan(study, molecule, trail) for molecule in molecules.molecules_of(study.tables["prepare"])]
    if first:
        write_json(folder / PLAN, {one.molecule.name: parts_of(study, one) for one in planned})
    if study.tables["prepare"].forces:
        look_for_bonds(study, team, progress, planned)
        measure_forces(study, team, progress, planned)
    if first:
        for one in planned:
            if not one.place.map_record.exists():  # once: another processor would round the fit differently
                fit(study, one)
    team.barrier()
    map_frames(study, team, progress, planned)


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
