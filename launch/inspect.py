"""Are the products of a study whole? And taking back those parts that are not, so that they are made again.

Everything is looked at first, and only then is anything repaired: a stage does not count as stale because the one
before it was repaired a moment ago.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_cg.errors import DamagedProduct, HpcCgError, MissingInput
from hpc_cg.files import read_json
from hpc_cg.stages.molecules import Place, look_at_sources, molecules_of, only_trained, recorded_sources
from hpc_cg.stages.product import ADDED, Seal, State, differences, read_seal, set_aside, state, unsealed
from hpc_cg.stages.study import Study
from launch.status import explain
from launch.words import near

if TYPE_CHECKING:
    from hpc_cg.store.audit import Origin
    from hpc_cg.store.layout import StoreSpec

BY_SHARD = ("commits", "quarantine")
"""Folders of a product that hold a record for each shard of each molecule."""


@dataclass(frozen=True)
class Finding:
    """What an audit found of one stage.

    state    None where it cannot be told
    notes    what to know of, and no fault
    shards   by molecule, those that have to be made again; an entry without any where only their summary has to
    broken   whether records beside the shards are damaged, so that the product can only be made again as a whole
    gone     whether files of the archive are gone, so that nothing could be made again
    """

    state: State | None
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    shards: dict[str, tuple[int, ...]] = field(default_factory=dict)
    broken: bool = False
    gone: bool = False

    @property
    def repairable(self) -> bool:
        """Whether a repair would do anything; what is stale is made again without one."""
        return (self.broken or bool(self.shards)) and self.state in (State.SEALED, None)


def audit_study(study: Study, say: Callable[[str], Any], repair: bool = False) -> list[str]:
    """Check every sealed product of a study against what was sealed; ``say`` gets lines for each product.

    Returns the faults. Products that are not sealed are named and not checked; a stale one is a fault. Nothing is
    written, unless ``repair`` is asked for: then shards with faults lose their commit records and the stage its seal,
    so that the next run of the stage makes these shards again and no others; and a product whose other records are
    damaged is moved to superseded/, nothing deleted. Shards that lack frames because a file could not be read are
    withdrawn too.
    """
    found: dict[str, Finding] = {}
    for stage in study.stages:
        found[stage] = one = _finding(study, stage, found)
        if one.state not in (State.SEALED, State.STALE, None):
            say(f"{stage:<10} {one.state}, nothing to audit")
            continue
        count = len(one.faults)
        say(f"{stage:<10} {'whole' if not count else f'{count} fault' + 's' * (count > 1)}")
        for note in (*one.notes, *([] if repair else _advice(study, stage, one))):
            say(f"{'':<10} {note}")
    faults = [f"{stage}: {fault}" for stage, one in found.items() for fault in one.faults]
    for stage, one in found.items():
        if repair and one.repairable:
            try:
                say(f"{stage:<10} {_repaired(study, stage, one)}")
            except (HpcCgError, OSError) as error:
                faults.append(f"{stage}: not repaired: {explain(error)}")
    return faults


def _finding(study: Study, stage: str, before: Mapping[str, Finding]) -> Finding:
    folder = study.folder(stage)
    try:
        seal = read_seal(folder)
    except DamagedProduct as error:
        return Finding(None, (explain(error),), broken=True)
    except (HpcCgError, OSError) as error:
        return Finding(None, (explain(error),))
    if seal is None:
        return Finding(state(folder, "", dict))
    try:
        return _looked_into(study, stage, seal, before)
    except (HpcCgError, OSError) as error:
        return Finding(None, (explain(error),))


def _looked_into(study: Study, stage: str, seal: Seal, before: Mapping[str, Finding]) -> Finding:
    """What a sealed product is, file by file and shard by shard."""
    differ = differences(study.folder(stage), seal)
    parts = {name: _shard_of(name) for name in differ}
    broken = any(parts[name] is None and not text.endswith(ADDED) for name, text in differ.items())
    found = _state(study, stage, seal, before, broken)
    faults = ["stale, its settings or inputs have changed since"] if found == State.STALE else []
    notes: list[str] = []
    again: dict[str, list[int]] = {}
    gone = False
    if stage == "prepare" and not broken:
        wrong, notes, gone = _archive(study)
        faults += wrong
        again, unread = _unread(study, differ)
        notes += unread
    plan = before.get("prepare")  # the index that says where the frames of a kernel's store come from
    with_plan = not broken and (plan is None or (plan.state == State.SEALED and not plan.broken))
    holes, in_stores, undescribed = _stores(study, stage, with_plan)
    told = {("commits", name, shard) for name, some in holes.items() for shard in some}
    faults += [text for name, text in differ.items() if (name.split("/")[0], *(parts[name] or ())) not in told]
    recorded = [(name, [] if shard is None else [shard]) for name, shard in filter(None, parts.values())]
    shards: dict[str, set[int]] = {}
    for name, some in (*recorded, *holes.items(), *again.items()):
        shards.setdefault(name, set()).update(some)
    return Finding(
        state=found,
        faults=(*faults, *in_stores),
        notes=tuple(notes),
        shards={name: tuple(sorted(some)) for name, some in shards.items()},
        broken=broken or undescribed,
        gone=gone,
    )


def _shard_of(name: str) -> tuple[str, int | None] | None:
    """Molecule and shard that a record of a product tells of; no shard for what adds them up; None for other files."""
    parts = name.split("/")
    if len(parts) != 3 or parts[0] not in BY_SHARD:
        return None
    stem = Path(parts[2]).stem
    return parts[1], int(stem) if stem.isdecimal() else None


def _state(study: Study, stage: str, seal: Seal, before: Mapping[str, Finding], broken: bool) -> State:
    """Sealed or stale; of damaged records by the settings alone, since what the inputs were may not be readable."""
    if any(before[name].state != State.SEALED for name in study.upstream(stage)):
        return State.STALE
    if broken:
        return State.SEALED if seal.fingerprint == study.fingerprint(stage) else State.STALE
    return state(study.folder(stage), study.fingerprint(stage), partial(study.inputs, stage))


def _stores(study: Study, stage: str, with_plan: bool) -> tuple[dict[str, tuple[int, ...]], list[str], bool]:
    """Of the store of a stage: the shards that are not right, faults, and whether what describes it is damaged."""
    from hpc_cg.store.audit import audit, open_store
    from hpc_cg.store.layout import STORE

    holes: dict[str, tuple[int, ...]] = {}
    faults: list[str] = []
    damaged = False
    folder = study.folder(stage) / STORE
    for molecule in _stored(study, stage):
        try:
            spec = open_store(folder, molecule)
        except DamagedProduct as error:
            faults.append(explain(error))
            damaged = True
            continue
        found = audit(folder, spec, _origin(study, spec) if with_plan else None)
        faults += found.faults
        holes |= {molecule: found.holes} if found.holes else {}
    return holes, faults, damaged


def _stored(study: Study, stage: str) -> tuple[str, ...]:
    """The molecules of which a stage has a store: of a learnt kernel's labels and pairs, the one it was fitted to."""
    every = tuple(molecule.name for molecule in molecules_of(study.tables["prepare"]))
    flow = study.tables.get("flow")
    if stage == "flow" and flow is not None and flow.lag_ps:
        return (only_trained(study),)
    if stage == "kernel" and study.tables["kernel"].is_stored:
        return every if flow is None else (only_trained(study),)
    return every if stage == "prepare" else ()


def _origin(study: Study, spec: "StoreSpec") -> "Origin":
    """Where the frames of each shard come from, by the index of the archive."""
    import numpy as np

    from hpc_cg.archive.catalogue import Catalogue

    catalogue = Catalogue(Place(study.folder("prepare"), spec.molecule).index)

    def origin(shard: int) -> tuple[np.ndarray, np.ndarray]:
        pieces = list(catalogue.pieces(*spec.frames_of(shard)))
        segment = np.concatenate([np.full(piece.stop - piece.start, piece.segment) for piece in pieces])
        return segment, np.concatenate([np.arange(piece.start, piece.stop) for piece in pieces])

    return origin


def _unread(study: Study, differ: Mapping[str, str]) -> tuple[dict[str, list[int]], list[str]]:
    """Shards written while a file could not be read, by molecule, and a sentence for each molecule that has some."""
    folder = study.folder("prepare")
    found: dict[str, list[int]] = {}
    notes: list[str] = []
    for molecule in molecules_of(study.tables["prepare"]):
        rows: list[dict[str, Any]] = []
        for path in sorted(Place(folder, molecule.name).part("quarantine", 0).parent.glob("*.json")):
            if path.relative_to(folder).as_posix() not in differ:
                again = [row for row in read_json(path) if row.get("again")]
                found.setdefault(molecule.name, []).extend([int(path.stem)] if again else [])
                rows += again
        if rows:
            notes.append(
                f"note: {sum(row['frames'] for row in rows):,} frames of {molecule.name} are left out because "
                f"{rows[0]['path']} {'and others ' if len({row['path'] for row in rows}) > 1 else ''}"
                "could not be read then"
            )
    return {name: shards for name, shards in found.items() if shards}, notes


def _archive(study: Study) -> tuple[list[str], list[str], bool]:
    """Whether the archive is, file by file, the one that the store was made from: faults, notes, and is some gone."""
    recorded = recorded_sources(study)
    try:
        rows = look_at_sources(study, {})["files"]
    except MissingInput as error:
        return [], [f"note: {explain(error)} The store stays valid without its archive"], True
    now = {row[3]: row[0] for row in rows}
    sealed = {row[3]: row[0] for row in recorded["files"]} if recorded else {}
    gone = [path for path in sealed.values() if not Path(path).exists()]
    lost = [(digest, path) for digest, path in sealed.items() if digest not in now]
    faults = [f"the archive's {path} is {_what_became_of(path, rows)}" for _, path in lost]
    added = [path for digest, path in now.items() if digest not in sealed and path not in dict(lost).values()]
    faults += [f"the archive's {path} is not in the store" for path in added]
    moved = [(path, now[digest]) for digest, path in sealed.items() if digest in now and now[digest] != path]
    notes = [f"note: {len(moved):,} files of the archive lie elsewhere now, the first {moved[0][1]}"] if moved else []
    removed = [path for digest, path in sealed.items() if path in gone and now.get(digest) == path]
    if removed:
        notes.append(
            f"note: {len(removed):,} of {len(sealed):,} files of the archive are gone, the first {removed[0]}: the "
            "store stays valid, and could not be made again"
        )
    return faults, notes, bool(removed)


def _what_became_of(path: str, rows: list[list[Any]]) -> str:
    if not Path(path).exists():
        return "gone"
    unread = next((row[3] for row in rows if row[0] == path and str(row[3]).startswith("unreadable")), None)
    return "not the one that the store was made from" if unread is None else unread


def _advice(study: Study, stage: str, found: Finding) -> list[str]:
    """What a repair would do, and what would follow."""
    again = f"hpc-cg run {stage} {study.path.name}"
    if found.state == State.STALE:
        return [f"{again} makes it again, and keeps what is there in superseded/"]
    if not found.repairable:
        return []
    if found.gone:
        return ["its archive is gone, so it could not be made again: hpc-cg audit --repair leaves it as it is"]
    if found.broken:
        return [f"hpc-cg audit --repair moves {near(study.folder(stage), study.root)} to superseded/; {again} makes it"]
    count = sum(len(shards) for shards in found.shards.values())
    return [
        f"hpc-cg audit --repair withdraws {_shards(count)}; {again} then makes {'it' if count < 2 else 'them'} again"
    ]


def _repaired(study: Study, stage: str, found: Finding) -> str:
    """Take back what is not right of one product; returns a sentence. Raises FolderBusy, FolderNotWritable."""
    again = f"hpc-cg run {stage} {study.path.name}"
    if found.gone:
        return "left as it is: its archive is gone, so it could not be made again"
    if found.broken:
        return f"moved to {near(set_aside(study.folder(stage)), study.root)}: {again} makes it again"
    from hpc_cg.store.audit import open_store
    from hpc_cg.store.layout import STORE
    from hpc_cg.store.writer import COUNTS, commit_path, withdraw

    store = study.folder(stage) / STORE
    with unsealed(study.folder(stage)):
        for name, shards in found.shards.items():
            spec = open_store(store, name)
            commit_path(store, spec, 0).with_name(COUNTS).unlink(missing_ok=True)
            for shard in shards:
                withdraw(store, spec, shard)
    count = sum(len(shards) for shards in found.shards.values())
    return f"{_shards(count)} withdrawn: {again} makes {'it' if count < 2 else 'them'} again"


def _shards(count: int) -> str:
    return f"{count} shard{'s' * (count != 1)}" if count else "the summary of all shards"
