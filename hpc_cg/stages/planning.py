"""What prepare has to do for a molecule that is indexed: a function of study and index, the same on all ranks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpc_cg import errors
from hpc_cg.files import read_json
from hpc_cg.stages import molecules
from hpc_cg.stages.molecules import Molecule, Place

if TYPE_CHECKING:
    import mdtraj

    from hpc_cg.archive.catalogue import Catalogue
    from hpc_cg.archive.trail import Trail
    from hpc_cg.beads import BeadSystem
    from hpc_cg.mapping.shards import Archive
    from hpc_cg.mapping.whole import Whole
    from hpc_cg.stages.prepare import PrepareConfig
    from hpc_cg.stages.study import Study
    from hpc_cg.store.layout import StoreSpec

LARGEST_SHARD = 2 << 30
"""Bytes that an array of a shard may have: a shard is made in memory."""

MAPPED_BOND_NM = 0.5
"""How far apart bonded beads of archives that are mapped already may be."""


@dataclass(frozen=True)
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
    config: "PrepareConfig" = study.tables["prepare"]
    return max(1, round(config.held_out_block_ps / planned.catalogue[0].stride_ps)), config.held_out_period


def spec_of(study: "Study", planned: Planned) -> "StoreSpec":
    """The store of a molecule, but for the digest of its map."""
    from hpc_cg.store.layout import StoreSpec, choose_shards

    config: "PrepareConfig" = study.tables["prepare"]
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


def parts_of(study: "Study", planned: Planned) -> dict[str, int]:
    """How much there is to do for a molecule."""
    from hpc_cg.mapping.shards import fit_ranges, rigid_parts

    config: "PrepareConfig" = study.tables["prepare"]
    n_frames = planned.catalogue.n_frames
    return {
        "frames": n_frames,
        "groups": len(rigid_parts(n_frames)) if config.forces else 0,
        "moments": len(fit_ranges(n_frames, config.fit_frames)) if config.forces else 0,
        "shards": spec_of(study, planned).n_shards,
    }


def missing(planned: list[Planned], kind: str, counts: list[int]) -> list[tuple[int, int]]:
    """(molecule, part) of the parts of one kind that are not there yet."""
    return [
        (number, part)
        for number, (one, count) in enumerate(zip(planned, counts, strict=True))
        for part in sorted(set(range(count)) - present(one.place.part(kind, 0).parent))
    ]


def present(folder: Path) -> set[int]:
    """Numbers of the records in a folder, by one look at it."""
    return {int(path.stem) for path in folder.glob("*.[nj]*") if path.stem.isdecimal()} if folder.is_dir() else set()
