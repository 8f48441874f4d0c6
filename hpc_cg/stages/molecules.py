"""The molecules of a study: what is asked of each, where its archive lies, and whether that is still what it was.

A study has one molecule, described by the table [prepare] itself, or several, each a [[prepare.molecules]] of its own
that takes from [prepare] what it does not say. Each is a group of the store.
"""

from dataclasses import dataclass as plain_dataclass
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from hpc_cg import errors
from hpc_cg.config import STRICT
from hpc_cg.files import digest, digest_file, read_json, write_json

if TYPE_CHECKING:
    from hpc_cg.archive.catalogue import Source
    from hpc_cg.stages.study import Study

MapKind = Literal[
    "alanine-six",
    "alanine-five",
    "calpha",
    "five-bead",
    "backbone",
    "heavy",
    "com",
    "selections",
    "matrix",
    "identity",
]
BeadTypes = Literal["", "residue", "residue-termini", "unique", "element"]
LengthUnit = Literal["", "nm", "angstrom"]
ForceUnit = Literal["", "kJ/mol/nm", "kJ/mol/angstrom", "kcal/mol/angstrom"]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

SOURCES, QUARANTINE, FAULTS = "sources.json", "quarantine.json", "unreadable.json"
LOOKED_AT = 1000
"""Files of a sealed archive whose size and time of change are looked at when a state is asked for."""


@dataclass(frozen=True, config=STRICT)
class MoleculeConfig:
    """One [[prepare.molecules]]: settings as in [prepare], which stand where nothing is said here."""

    name: str = Field(pattern=NAME)
    archive: tuple[str, ...] | None = None
    topology: str | None = None
    atoms: str | None = None
    map: MapKind | None = None
    beads: tuple[str, ...] | None = None
    selections: tuple[str, ...] | None = None
    map_file: str | None = None
    bead_types: BeadTypes | None = None
    force_files: str | None = None
    weights: str | None = None
    length_unit: LengthUnit | None = None
    force_unit: ForceUnit | None = None
    stride_ps: float | None = Field(default=None, ge=0)


@plain_dataclass(frozen=True)
class Molecule:
    """One molecule of a study, nothing left open; fields as the settings of [prepare] say."""

    name: str
    archive: tuple[str, ...]
    topology: str
    atoms: str
    map: MapKind
    beads: tuple[str, ...]
    selections: tuple[str, ...]
    map_file: str
    bead_types: BeadTypes
    force_files: str
    weights: str
    length_unit: LengthUnit
    force_unit: ForceUnit
    stride_ps: float


@plain_dataclass(frozen=True)
class Place:
    """Where the records of one molecule lie below the stage's folder."""

    folder: Path
    molecule: str

    @property
    def index(self) -> Path:
        return self.folder / "index" / self.molecule

    @property
    def map_arrays(self) -> Path:
        return self.folder / "maps" / f"{self.molecule}.npz"

    @property
    def map_record(self) -> Path:
        return self.folder / "maps" / f"{self.molecule}.json"

    @property
    def pairs(self) -> Path:
        return self.folder / "pairs" / f"{self.molecule}.npz"

    @property
    def groups(self) -> Path:
        return self.folder / "groups" / f"{self.molecule}.json"

    def part(self, kind: str, number: int) -> Path:
        suffix = "json" if kind == "quarantine" else "npz"
        return self.folder / kind / self.molecule / f"{number:06d}.{suffix}"


def molecules_of(config: Any) -> tuple[Molecule, ...]:
    """The molecules that a table [prepare] asks for."""
    own = {field.name: getattr(config, field.name) for field in fields(Molecule) if field.name != "name"}
    if not config.molecules:
        return (Molecule(name=config.molecule, **own),)
    said = [{field.name: getattr(entry, field.name) for field in fields(MoleculeConfig)} for entry in config.molecules]
    return tuple(
        Molecule(**own | {name: value for name, value in entry.items() if value is not None}) for entry in said
    )


def only_molecule(study: "Study", asked_by: str, chosen: str = "") -> str:
    """The molecule that a stage works on: the one chosen, or the only one there is. Raises ConfigError."""
    names = [molecule.name for molecule in molecules_of(study.tables["prepare"])]
    if chosen in names:
        return chosen
    if chosen or len(names) > 1:
        asked = f"{asked_by} = {chosen!r} is no molecule" if chosen else f"{asked_by} is missing"
        raise errors.ConfigError(study.path.name, [f"{asked}: this study has {', '.join(names)}."])
    return names[0]


def topology_path(study: "Study", molecule: Molecule) -> Path:
    """The file of the atoms, which the stage reference writes where the study names none."""
    return study.root / molecule.topology if molecule.topology else study.folder("reference") / "topology.pdb"


def find_sources(study: "Study", molecule: Molecule) -> "tuple[Source, ...]":
    """The files of a molecule's archive, in order; no file is opened. Raises MissingInput, ConfigError."""
    from hpc_cg.archive.catalogue import Source
    from hpc_cg.archive.listing import find

    if molecule.archive:
        patterns, root = molecule.archive, study.root
    elif "reference" in study.tables:
        patterns, root = ("*.h5",), study.folder("reference")
    else:
        raise errors.ConfigError(
            study.path.name, [f"prepare.archive of {molecule.name} is missing: name files, or add [reference]."]
        )
    found = find(patterns, root)
    if not molecule.force_files or not study.tables["prepare"].forces:
        return tuple(Source(str(path), None) for path in found)
    pairs = [(path, _forces_of(path, molecule.force_files)) for path in found]
    forces = {second for _, second in pairs}
    return tuple(Source(str(path), str(second)) for path, second in pairs if path not in forces)


def _forces_of(path: Path, pattern: str) -> Path:
    """The file of a trajectory's forces, by prepare.force_files."""
    return path.parent / pattern.replace("{stem}", path.stem).replace("{name}", path.name)


def intent(study: "Study") -> dict[str, str]:
    """What tells a half-made store of this archive from one of another: names, sizes, times of change of its files.

    A file that was only touched does not count as changed once its content is known.
    """
    path = study.folder("prepare") / SOURCES
    recorded = read_json(path) if path.exists() else None
    if recorded is not None and sources(study) == recorded["digests"]:
        return recorded["intent"]
    return {"archive": digest(_signature(_files(study)))}


def sources(study: "Study") -> dict[str, str]:
    """Digests of the archive's files and of what else the maps are made from, as they are now.

    Files whose size and time of change are those recorded are not read again, and of a very large archive only some
    are looked at (``hpc-cg audit`` looks at all). For an archive that has been removed the recorded digests stand: a
    store outlives its archive.
    """
    path = study.folder("prepare") / SOURCES
    recorded = read_json(path) if path.exists() else None
    try:
        listed = _files(study)
    except errors.MissingInput:
        return recorded["digests"] if recorded else {}
    if recorded is not None and [row[0] for row in recorded["files"]] == [str(file) for file in listed]:
        step = -(-len(listed) // LOOKED_AT)
        if _signature(listed[::step]) == [row[:3] for row in recorded["files"]][::step]:
            return recorded["digests"]
    known = {(row[0], row[1], row[2]): row[3] for row in recorded["files"]} if recorded else {}
    return look_at_sources(study, known)["digests"]


def record_sources(study: "Study", intended: dict[str, str], known: dict[tuple[str, int, int], str]) -> None:
    """Write down what the archive is now; ``known`` are digests of files by path, size and time of change."""
    write_json(study.folder("prepare") / SOURCES, look_at_sources(study, known) | {"intent": intended})


def look_at_sources(study: "Study", known: dict[tuple[str, int, int], str]) -> dict[str, Any]:
    """Every file with size, time of change and digest; digests of the whole. Raises MissingInput."""
    listed = _files(study)
    rows = [
        [*row, known.get((row[0], row[1], row[2])) or digest_file(file)]
        for file, row in zip(listed, _signature(listed), strict=True)
    ]
    return {"files": rows, "digests": {"archive": digest([row[3] for row in rows])}}


def _files(study: "Study") -> list[Path]:
    """Every file that the store is made from, each once, in order. Raises MissingInput."""
    from hpc_cg.archive.listing import files_of

    found: dict[str, None] = {}
    for molecule in molecules_of(study.tables["prepare"]):
        for source in find_sources(study, molecule):
            found |= dict.fromkeys(str(path) for path in files_of(Path(source.path)))
            found |= {} if source.forces_path is None else {source.forces_path: None}
        more = [topology_path(study, molecule)] if molecule.map != "identity" else []
        more += [study.root / name for name in (molecule.map_file, molecule.weights) if name]
        found |= dict.fromkeys(str(path) for path in more if path.exists())
    return [Path(path) for path in found]


def _signature(paths: list[Path]) -> list[list[Any]]:
    """Path, size and time of change of each file: cheap to take, and changed where a file is."""
    looked_at = [(path, path.stat()) for path in paths]
    return [[str(path), found.st_size, found.st_mtime_ns] for path, found in looked_at]
