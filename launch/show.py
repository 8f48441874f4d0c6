"""What is in an archive of trajectories, and in the products of a study."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from hpc_cg.errors import MissingStride, UnknownUnit, UnreadableFile
from hpc_cg.files import read_json
from hpc_cg.stages.molecules import FAULTS, QUARANTINE, Place, molecules_of
from hpc_cg.stages.product import State, read_seal
from hpc_cg.stages.study import Study
from launch.lineage import lineage
from launch.plain import plain
from launch.words import figure

if TYPE_CHECKING:
    from hpc_cg.archive.index import Segment

SHOWN_SEGMENTS = 40


def segments_of(path: Path) -> "Iterator[Segment | UnreadableFile]":
    """The segments of an archive, one after another, and what cannot be read; no coordinates. Raises MissingInput."""
    from hpc_cg.archive.listing import find

    for source in find([str(path.resolve())], Path.cwd()):
        try:
            yield from _described(source)
        except UnreadableFile as error:
            yield error


def archive_json(path: Path) -> Iterator[str]:
    """A JSON object for each segment of an archive, and for each file that cannot be read. Raises MissingInput."""
    for found in segments_of(path):
        yield json.dumps({"unreadable": str(found)} if isinstance(found, UnreadableFile) else found.to_json())


def archive_table(path: Path, every: bool = False) -> Table:
    """The segments of an archive, a line each: the first SHOWN_SEGMENTS, or ``every`` one. Raises MissingInput."""
    table = Table(box=None, pad_edge=False, caption_justify="left")
    words = ("segment", "format", "forces", "note", "digest")
    for name in ("segment", "format", "frames", "atoms", "stride (ps)", "K", "forces", "note", "digest"):
        table.add_column(name, justify="left" if name in words else "right", overflow="fold")
    n_segments = n_frames = 0
    faults: list[str] = []
    for found in segments_of(path):
        if isinstance(found, UnreadableFile):
            faults.append(str(found))
            continue
        n_segments, n_frames = n_segments + 1, n_frames + found.n_frames
        if every or n_segments <= SHOWN_SEGMENTS:
            table.add_row(*(plain(cell) for cell in _cells(found)))
    shown = "" if n_segments <= len(table.rows) else f", the first {SHOWN_SEGMENTS} shown: --all shows every one"
    listed = "".join(f"\n{fault}" for fault in islice(faults, None if every else SHOWN_SEGMENTS))
    table.caption = plain(
        f"{n_segments:,} segments{shown}, {n_frames:,} frames, {len(faults)} files that cannot be read{listed}"
    )
    return table


def _cells(segment: "Segment") -> tuple[str, ...]:
    stride = f"{segment.stride_ps:g}" + ("" if segment.even else ", uneven") if segment.stride_ps else "not stated"
    return (
        Path(segment.path).name + (f":{segment.inside}" if segment.inside else ""),
        segment.format,
        f"{segment.n_frames:,}",
        str(segment.n_atoms),
        stride,
        "" if segment.temperature_K is None else f"{segment.temperature_K:g}",
        "yes" if segment.has_forces else "no",
        segment.note,
        segment.digest,
    )


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
    found = study.state(stage)
    yield f"{stage}: {found}"
    seal = read_seal(study.folder(stage))
    if seal is None:
        return
    yield f"  folder: {study.folder(stage)}"
    yield f"  identity: {seal.identity}"
    for title, content in (
        ("inputs", seal.inputs),
        ("settings", seal.settings),
        ("figures", {key: value for key, value in seal.summary.items() if key != "molecules" or stage != "train"}),
        ("made", seal.made),
    ):
        yield f"  {title}:"
        for key, value in content.items():
            yield f"    {key}: {json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value}"
    yield from lineage(study, stage)
    if stage == "train" and "molecules" in seal.summary:
        yield "  molecules, one network for all:"
        yield from map(_trained_line, seal.summary["molecules"].items())
    if stage == "prepare" and found == State.SEALED:
        yield "  molecules:"
        for molecule in molecules_of(study.tables["prepare"]):
            yield from _molecule_lines(study.folder(stage), molecule.name)


def _trained_line(molecule: tuple[str, dict[str, Any]]) -> str:
    """How well the forces of one of several molecules are known."""
    name, own = molecule
    error, floor = (figure(max(own[of], 0.0) ** 0.5) for of in ("residual", "floor"))
    frames = f"{own['held_out_frames']:,} held-out frames, {own['train_frames']:,} to train on"
    return f"    {name}: force error {error}, noise floor {floor} kJ/mol/nm; {frames}"


def _molecule_lines(folder: Path, name: str) -> Iterator[str]:
    """What a sealed store holds of one molecule, and how its forces were mapped."""
    from hpc_cg.archive.catalogue import Catalogue
    from hpc_cg.store.audit import open_store
    from hpc_cg.store.layout import STORE

    place = Place(folder, name)
    catalogue, fitted = Catalogue(place.index), read_json(place.map_record)
    n_beads = open_store(folder / STORE, name).system.n_beads
    yield f"    {name}: {len(catalogue):,} segments, {catalogue.n_frames:,} frames, {n_beads} beads"
    ridge = f", λ {figure(fitted['ridge'])} (kJ/mol/nm)²" if fitted["force_map"] == "optimal" else ""
    yield f"      force map: {fitted['force_map']}{ridge}; {len(fitted['rigid_groups']):,} rigid groups"
    if fitted["mean_square"]:
        yield "      mean square of the mapped forces, (kJ/mol/nm)²:"
        yield f"        {'':<8} {'fitted on':>12} {'held out':>12}"
    for map_name, sides in sorted(fitted["mean_square"].items(), key=lambda item: -item[1]["held_out"]):
        chosen = "  <- used" if map_name == fitted["force_map"] else ""
        yield f"        {map_name:<8} {figure(sides['train']):>12} {figure(sides['held_out']):>12}{chosen}"
    reasons: Counter[str] = Counter()
    for row in read_json(folder / QUARANTINE):
        if row["molecule"] == name:
            reasons[row["reason"]] += row["frames"]
    yield f"      quarantined: {sum(reasons.values()):,} frames"
    yield from (f"        {count:,}: {reason}" for reason, count in reasons.most_common(SHOWN_SEGMENTS))
    unread = [row for row in read_json(folder / FAULTS) if row["molecule"] == name]
    if unread:
        yield f"      files that could not be read: {len(unread):,}, listed in {folder / FAULTS}"
    yield from (f"      warning: {warning}" for warning in fitted["warnings"])
