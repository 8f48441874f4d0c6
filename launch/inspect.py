"""Looking into products and archives: what is there, and is it whole."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from hpc_cg.errors import HpcCgError, MissingStride, UnknownUnit, UnreadableFile
from hpc_cg.files import read_json
from hpc_cg.stages.molecules import SOURCES, Place, look_at_sources, molecules_of
from hpc_cg.stages.product import State, audit, read_seal
from hpc_cg.stages.study import Study
from launch.status import explain

if TYPE_CHECKING:
    from hpc_cg.archive.index import Segment
    from hpc_cg.store.audit import Origin, StoreAudit
    from hpc_cg.store.layout import StoreSpec

SHOWN_SEGMENTS = 40


def archive_table(path: Path) -> Table:
    """The segments of an archive: a line each, no coordinates read. Raises MissingInput."""
    from hpc_cg.archive.listing import find

    segments: list[Segment] = []
    faults: list[str] = []
    for source in find([str(path.resolve())], Path.cwd()):
        try:
            segments += _described(source)
        except UnreadableFile as error:
            faults.append(str(error))
    shown = f", the first {SHOWN_SEGMENTS} shown" if len(segments) > SHOWN_SEGMENTS else ""
    frames = sum(segment.n_frames for segment in segments)
    bad = "".join(f"\n{fault}" for fault in faults[:SHOWN_SEGMENTS])
    table = Table(
        box=None,
        pad_edge=False,
        caption=f"{len(segments):,} segments{shown}, {frames:,} frames, {len(faults)} files that cannot be read{bad}",
        caption_justify="left",
    )
    words = ("segment", "format", "forces", "note", "digest")
    for name in ("segment", "format", "frames", "atoms", "stride (ps)", "K", "forces", "note", "digest"):
        table.add_column(name, justify="left" if name in words else "right", overflow="fold")
    for segment in segments[:SHOWN_SEGMENTS]:
        table.add_row(
            Path(segment.path).name + (f":{segment.inside}" if segment.inside else ""),
            segment.format,
            f"{segment.n_frames:,}",
            str(segment.n_atoms),
            f"{segment.stride_ps:g}" + ("" if segment.even else ", uneven") if segment.stride_ps else "not stated",
            "" if segment.temperature_K is None else f"{segment.temperature_K:g}",
            "yes" if segment.has_forces else "no",
            segment.note,
            segment.digest,
        )
    return table


def _described(path: Path) -> "list[Segment]":
    """The segments of a file; what a study would have to state of it is said in their notes."""
    from hpc_cg.archive.index import describe

    stated: dict[str, Any] = {}
    missing: list[str] = []
    while True:
        try:
            found = describe(path, molecule="any", **stated)
        except UnknownUnit:
            if "length_unit" in stated:
                raise
            stated |= {"length_unit": "nm", "force_unit": "kJ/mol/nm"}
            missing.append("units not stated")
        except MissingStride:
            stated["stride_ps"] = 1.0
            missing.append("time between frames not stated")
        else:
            return [_noted(one.segment, missing, "stride_ps" in stated) for one in found]


def _noted(segment: "Segment", missing: list[str], no_stride: bool) -> "Segment":
    noted = replace(segment, note="; ".join([*filter(None, [segment.note]), *missing]))
    return replace(noted, stride_ps=0.0) if no_stride else noted


def product_lines(study: Study, stage: str) -> Iterator[str]:
    """What a product is made of and from, as indented lines."""
    state = study.state(stage)
    yield f"{stage}: {state}"
    seal = read_seal(study.folder(stage))
    if seal is None:
        return
    yield f"  folder: {study.folder(stage)}"
    yield f"  identity: {seal.identity}"
    for title, content in (
        ("inputs", seal.inputs),
        ("settings", seal.settings),
        ("figures", seal.summary),
        ("made", seal.made),
    ):
        yield f"  {title}:"
        for key, value in content.items():
            yield f"    {key}: {json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value}"


def audit_study(study: Study, say: Callable[[str], Any], repair: bool = False) -> list[str]:
    """Check every sealed product of a study against what was sealed; ``say`` gets a line per product.

    Returns the faults. Products that are not sealed are named and not checked; a stale one is a fault. Nothing is
    written, unless ``repair`` is asked for: then shards with faults lose their commit records and the stage its seal,
    so that the next run of the stage makes these shards again and no others.
    """
    faults: list[str] = []
    for stage in study.stages:
        found: list[str] = []
        holes: dict[str, tuple[int, ...]] = {}
        try:
            state = study.state(stage)
            if state not in (State.SEALED, State.STALE):
                say(f"{stage:<10} {state}, nothing to audit")
                continue
            if state == State.STALE:
                found.append("stale, its settings or inputs have changed since")
            found += audit(study.folder(stage))
            for name, store in _stores(study, stage).items():
                found += store.faults
                holes |= {name: store.holes} if store.holes else {}
            found += _archive(study) if stage == "prepare" else []
        except (HpcCgError, OSError) as error:
            found.append(explain(error))
        say(f"{stage:<10} {'whole' if not found else f'{len(found)} faults'}")
        if holes and repair and state == State.SEALED:
            say(f"{'':<10} {_withdraw(study, stage, holes)}")
        elif holes:
            say(f"{'':<10} hpc-cg audit --repair withdraws the shards that are not whole; run {stage} then makes them")
        faults += [f"{stage}: {fault}" for fault in found]
    return faults


def _stores(study: Study, stage: str) -> "dict[str, StoreAudit]":
    """What an audit finds in the store of a stage, a molecule each; empty for a stage without one."""
    from hpc_cg.store.audit import audit as audit_store
    from hpc_cg.store.dataset import open_spec
    from hpc_cg.store.layout import STORE

    if stage not in ("prepare", "kernel") or (stage == "kernel" and study.tables["kernel"].draws != "stored"):
        return {}
    folder = study.folder(stage) / STORE
    names = [molecule.name for molecule in molecules_of(study.tables["prepare"])]
    specs = {name: open_spec(folder, name) for name in names}
    return {name: audit_store(folder, spec, _origin(study, spec)) for name, spec in specs.items()}


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


def _withdraw(study: Study, stage: str, holes: dict[str, tuple[int, ...]]) -> str:
    """Take back the commit records of shards and the seal of their stage; returns a sentence."""
    from hpc_cg.stages.product import unseal
    from hpc_cg.store.dataset import open_spec
    from hpc_cg.store.layout import STORE
    from hpc_cg.store.writer import withdraw

    store = study.folder(stage) / STORE
    unseal(study.folder(stage))
    for name, shards in holes.items():
        spec = open_spec(store, name)
        for shard in shards:
            withdraw(store, spec, shard)
    count = sum(len(shards) for shards in holes.values())
    return f"{count} shards withdrawn: hpc-cg run {stage} {study.path.name} makes them again"


def _archive(study: Study) -> list[str]:
    """Whether the archive is, file by file, the one that the store was made from, wherever it lies now."""
    recorded = read_json(study.folder("prepare") / SOURCES)
    now = {row[3]: row[0] for row in look_at_sources(study, {})["files"]}
    sealed = {row[3]: row[0] for row in recorded["files"]}
    lost = [path for digest, path in sealed.items() if digest not in now]
    faults = [
        f"the archive's {path} is {'not the one that the store was made from' if Path(path).exists() else 'gone'}"
        for path in lost
    ]
    new = [path for digest, path in now.items() if digest not in sealed and path not in lost]
    return faults + [f"the archive's {path} is not in the store" for path in new]
