"""Looking into products and archives: what is there, and is it whole."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from hpc_cg.errors import HpcCgError
from hpc_cg.files import read_json
from hpc_cg.stages.product import State, audit, read_seal
from hpc_cg.stages.study import Study
from launch.status import explain

SHOWN_SEGMENTS = 40


def archive_table(path: Path) -> Table:
    """The segments of an archive: a line each, no coordinates read. Raises MissingInput, UnreadableFile."""
    from hpc_cg.archive.index import scan

    segments = scan([str(path.resolve())], Path.cwd(), molecule="any", length_unit="nm", force_unit="kJ/mol/nm")
    frames = sum(segment.n_frames for segment in segments)
    table = Table(
        box=None,
        pad_edge=False,
        caption=f"{len(segments)} segments, {frames:,} frames",
        caption_justify="left",
    )
    for name in ("segment", "frames", "atoms", "stride (ps)", "K", "forces", "digest"):
        table.add_column(name, justify="left" if name in ("segment", "forces", "digest") else "right", overflow="fold")
    for segment in segments[:SHOWN_SEGMENTS]:
        table.add_row(
            Path(segment.path).name,
            f"{segment.n_frames:,}",
            str(segment.n_atoms),
            f"{segment.stride_ps:g}",
            "" if segment.temperature_K is None else f"{segment.temperature_K:g}",
            "yes" if segment.has_forces else "no",
            segment.digest,
        )
    return table


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


def audit_study(study: Study, say: Callable[[str], Any]) -> list[str]:
    """Check every sealed product of a study against what was sealed; ``say`` gets a line per product.

    Nothing is written. Returns the faults. Products that are not sealed are named and not checked; a stale one is a
    fault.
    """
    faults: list[str] = []
    for stage in study.stages:
        found: list[str] = []
        try:
            state = study.state(stage)
            if state not in (State.SEALED, State.STALE):
                say(f"{stage:<10} {state}, nothing to audit")
                continue
            if state == State.STALE:
                found.append("stale, its settings or inputs have changed since")
            found += audit(study.folder(stage))
            found += _MORE[stage](study) if stage in _MORE else []
        except (HpcCgError, OSError) as error:
            found.append(explain(error))
        say(f"{stage:<10} {'whole' if not found else f'{len(found)} faults'}")
        faults += [f"{stage}: {fault}" for fault in found]
    return faults


def _store(study: Study, stage: str) -> list[str]:
    from hpc_cg.store.audit import audit as audit_store
    from hpc_cg.store.dataset import open_spec
    from hpc_cg.store.layout import STORE

    folder = study.folder(stage) / STORE
    return list(audit_store(folder, open_spec(folder, study.tables["prepare"].molecule)).faults)


def _prepare(study: Study) -> list[str]:
    return _store(study, "prepare") + _archive(study)


def _archive(study: Study) -> list[str]:
    """Whether the archive holds the segments that the store was made from, wherever it lies now, and no others."""
    from hpc_cg.stages.prepare import scan

    sealed = {row["digest"]: row["path"] for row in read_json(study.folder("prepare") / "segments.json")}
    now = {segment.digest: segment.path for segment in scan(study)}
    lost = [path for digest, path in sealed.items() if digest not in now]
    faults = [
        f"the archive's {path} is {'not the one that the store was made from' if Path(path).exists() else 'gone'}"
        for path in lost
    ]
    new = [path for digest, path in now.items() if digest not in sealed and path not in lost]
    return faults + [f"the archive's {path} is not in the store" for path in new]


def _kernel(study: Study) -> list[str]:
    return _store(study, "kernel") if study.tables["kernel"].draws == "stored" else []


_MORE: dict[str, Callable[[Study], list[str]]] = {"prepare": _prepare, "kernel": _kernel}
"""What is checked beyond the files themselves: the stores keep checksums of their own."""
