"""The molecules of a study: what is asked of each, where its archive lies, and whether that is still what it was.

A study has one molecule, described by the table [prepare] itself, or several, each a [[prepare.molecules]] of its own
that takes from [prepare] what it does not say. Each is a group of the store.
"""

from collections.abc import Iterable, Sequence
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
NOTES = "notes.json"
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
        suffix = "json" if kind in ("quarantine", "lost") else "npz"
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


def trained_molecules(study: "Study") -> tuple[Molecule, ...]:
    """The molecules that a study trains on: those chosen, or the only one there is. Raises ConfigError."""
    known = {molecule.name: molecule for molecule in molecules_of(study.tables["prepare"])}
    train = study.tables["train"]
    for chosen in train.molecules:
        if chosen not in known:
            raise _no_molecule(study, f"train.molecules: {chosen!r} is not among the molecules", "has", known)
    chosen = train.molecules or (_one_of(study, "train.molecule", train.molecule, "has", tuple(known)),)
    return tuple(known[name] for name in chosen)


def only_trained(study: "Study") -> str:
    """The only molecule that a study trains on, for what knows one alone. Raises ConfigError."""
    names = tuple(molecule.name for molecule in trained_molecules(study))
    if len(names) > 1:
        raise errors.ConfigError(
            study.path.name,
            [f'kernel.kind = "{study.tables["kernel"].kind}" takes one molecule; train.molecules has {len(names)}.'],
        )
    return names[0]


def simulated_molecule(study: "Study") -> str:
    """The molecule that a study simulates: the one chosen, or the only one that it trains on. Raises ConfigError."""
    names = tuple(molecule.name for molecule in trained_molecules(study))
    return _one_of(study, "simulate.molecule", study.tables["simulate"].molecule, "trains on", names)


def _one_of(study: "Study", asked_by: str, chosen: str, verb: str, names: Sequence[str]) -> str:
    if chosen in names:
        return chosen
    if chosen or len(names) > 1:
        problem = f"{asked_by} = {chosen!r} is not among the molecules" if chosen else f"{asked_by} is missing"
        raise _no_molecule(study, problem, verb, names)
    return names[0]


def _no_molecule(study: "Study", problem: str, verb: str, names: Iterable[str]) -> errors.ConfigError:
    return errors.ConfigError(study.path.name, [f"{problem}: this study {verb} {', '.join(names)}."])


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

    Files that were only touched, or moved together, do not count as changed once their content is known. Raises
    MissingInput where the archive is not there: nothing is begun, and nothing moved aside, for want of it.
    """
    for molecule in molecules_of(study.tables["prepare"]):
        find_sources(study, molecule)
        if molecule.map != "identity":
            _need(topology_path(study, molecule), "the topology")
    recorded = recorded_sources(study)
    if recorded is not None and sources(study, all_files=True) == recorded["digests"]:
        return recorded["intent"]
    return {"archive": digest(_rows(study, None))}


def _need(path: Path, what: str) -> None:
    if not path.exists():
        raise errors.MissingInput(what, f"no file {path}", "restore it, or correct the study")


def recorded_sources(study: "Study") -> dict[str, Any] | None:
    """What was written down of the archive when it was indexed, None before; ``files`` has a row for each file: path,
    size, time of change, digest, molecule."""
    path = study.folder("prepare") / SOURCES
    return read_json(path) if path.exists() else None


def sources(study: "Study", all_files: bool = False) -> dict[str, str]:
    """Digests of the archive's files and of what else the maps are made from, as they are now.

    Files whose size and time of change are those recorded are not read again, and of a very large archive only some
    are looked at unless ``all_files`` are wanted. For a molecule whose archive has been removed the recorded digests
    stand: a store outlives its archive.
    """
    recorded = recorded_sources(study)
    try:
        step = 1 if recorded is None or all_files else -(-len(recorded["files"]) // LOOKED_AT)
        now = _rows(study, recorded, step)
    except errors.MissingInput:
        return recorded["digests"] if recorded else {}
    if recorded is not None and [row[:3] for row in recorded["files"]] == [row[:3] for row in now]:
        return recorded["digests"]
    known = {tuple(row[:3]): row[3] for row in recorded["files"]} if recorded else {}
    return look_at_sources(study, known)["digests"]


def moved(study: "Study") -> bool:
    """Whether the files lie elsewhere than where they were indexed, though their content is the same."""
    recorded = recorded_sources(study)
    return recorded is not None and [row[0] for row in recorded["files"]] != [row[0] for row in _rows(study, recorded)]


def record_sources(study: "Study", intended: dict[str, str], known: dict[tuple[str, int, int], str]) -> None:
    """Write down what the archive is now; ``known`` are digests of files by path, size and time of change."""
    write_json(study.folder("prepare") / SOURCES, look_at_sources(study, known) | {"intent": intended})


def look_at_sources(study: "Study", known: dict[tuple[str, int, int], str]) -> dict[str, Any]:
    """Every file with size, time of change, digest and molecule; the digest of all. Raises MissingInput."""
    rows = [
        [*row[:3], row[3] or known.get((row[0], row[1], row[2])) or _digest(Path(row[0])), row[4]]
        for row in _rows(study, recorded_sources(study))
    ]
    return {"files": rows, "digests": {"archive": digest([row[3] for row in rows])}}


def _digest(path: Path) -> str:
    try:
        return digest_file(path)
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _rows(study: "Study", recorded: dict[str, Any] | None, step: int = 1) -> list[list[Any]]:
    """A row for each file the store is made from, in order, each once: path, size, time of change, digest, molecule.

    The digest stands only where the file is gone and a record of it is taken instead; with a ``step`` only every so
    many files are looked at, and for the others the record stands in its place. Raises MissingInput.
    """
    before = {row[0]: row for row in recorded["files"]} if recorded else {}
    rows: dict[str, list[Any]] = {}
    for molecule in molecules_of(study.tables["prepare"]):
        try:
            listed = _files(study, molecule)
        except errors.MissingInput:
            own = [row for row in before.values() if row[4] == molecule.name]
            if not own:
                raise
            rows |= {row[0]: row for row in own if row[0] not in rows}
            continue
        for path in listed:
            if str(path) in rows:
                continue
            number = len(rows)
            if step > 1 and number % step and str(path) in before:
                rows[str(path)] = before[str(path)]
                continue
            size, changed = _looked_at(path)
            rows[str(path)] = [str(path), size, changed, None, molecule.name]
            if size < 0 and str(path) in before:
                rows[str(path)] = before[str(path)]
    return list(rows.values())


def _files(study: "Study", molecule: Molecule) -> list[Path]:
    """Every file that the store of a molecule is made from, in order. Raises MissingInput."""
    from hpc_cg.archive.listing import files_of

    found: list[Path] = []
    for source in find_sources(study, molecule):
        found += files_of(Path(source.path))
        found += [] if source.forces_path is None else [Path(source.forces_path)]
    found += [topology_path(study, molecule)] if molecule.map != "identity" else []
    return found + [study.root / name for name in (molecule.map_file, molecule.weights) if name]


def _looked_at(path: Path) -> tuple[int, int]:
    """Size and time of change: cheap to take, and changed where a file is; -1 for a file that is not there."""
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns
