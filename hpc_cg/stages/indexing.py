"""Pass one of prepare: the index of the archive, in parts that the team divides; no coordinates are read.

What cannot be read is listed and counted against a budget; segments that do not belong into one store are refused.
"""

import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_cg import errors
from hpc_cg.files import write_json
from hpc_cg.share import Team
from hpc_cg.stages import molecules
from hpc_cg.stages.molecules import FAULTS, NOTES, Molecule, Place
from hpc_cg.stages.progress import Heartbeat

if TYPE_CHECKING:
    from hpc_cg.archive.catalogue import Catalogue, Source
    from hpc_cg.archive.index import Described
    from hpc_cg.stages.prepare import PrepareConfig
    from hpc_cg.stages.study import Study

SAME_STRIDE = 0.01
"""How far the times between frames of two trajectories may differ: they are read from rounded times."""


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
    config: "PrepareConfig" = study.tables["prepare"]
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
    config: "PrepareConfig" = study.tables["prepare"]
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
