"""Looking into products and archives: what is there, and is it whole."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from hpc_cg.errors import HpcCgError
from hpc_cg.files import read_json
from hpc_cg.stages.product import State, read_seal
from hpc_cg.stages.study import Study

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

    Returns the faults. Products that are not sealed are named and not checked; a stale one is a fault.
    """
    faults: list[str] = []
    for stage in study.stages:
        state = study.state(stage)
        if state not in (State.SEALED, State.STALE):
            say(f"{stage:<10} {state}, nothing to audit")
            continue
        found = [f"{stage}: stale, its settings or inputs have changed since"] if state == State.STALE else []
        try:
            found += [f"{stage}: {fault}" for fault in _AUDITS[stage](study)]
        except HpcCgError as error:
            found.append(f"{stage}: {error}")
        say(f"{stage:<10} {'whole' if not found else f'{len(found)} faults'}")
        faults += found
    return faults


def _reference(study: Study) -> list[str]:
    config = study.tables["reference"]
    files = sorted(study.folder("reference").glob("*.h5"))
    missing = config.n_trajectories - len(files)
    return (
        [f"{missing} of {config.n_trajectories} trajectories are missing"] if missing else _content(study, "reference")
    )


def _content(study: Study, stage: str) -> list[str]:
    """Compute the digest of a product again and compare it with the sealed one."""
    from importlib import import_module

    seal = read_seal(study.folder(stage))
    content, _ = import_module(f"hpc_cg.stages.{stage}").finish(study)
    return [] if seal is not None and content == seal.content else ["its content is not what was sealed"]


def _store(study: Study, stage: str) -> list[str]:
    from hpc_cg.store.audit import audit
    from hpc_cg.store.dataset import open_spec
    from hpc_cg.store.layout import STORE

    folder = study.folder(stage) / STORE
    return list(audit(folder, open_spec(folder, study.tables["prepare"].molecule)).faults) + _content(study, stage)


def _prepare(study: Study) -> list[str]:
    faults = _store(study, "prepare")
    for row in read_json(study.folder("prepare") / "segments.json"):
        path = Path(row["path"])
        if not path.exists():
            faults.append(f"the archive's {path} is gone")
    planned = read_json(study.folder("prepare") / "plan.json")["archive"]
    if not faults:
        from hpc_cg.stages.prepare import archive_digest

        if archive_digest(study) != planned:
            faults.append("the archive is not the one that the store was made from")
    return faults


def _kernel(study: Study) -> list[str]:
    return _store(study, "kernel") if study.tables["kernel"].draws == "stored" else _content(study, "kernel")


def _train(study: Study) -> list[str]:
    from hpc_cg.files import digest_bytes
    from hpc_cg.learning.checkpoint import SEALED, sealed

    faults = _content(study, "train")
    for folder in sealed(study.folder("train")):
        for name, expected in read_json(folder / SEALED).items():
            if digest_bytes((folder / name).read_bytes()) != expected:
                faults.append(f"{folder.name}/{name} holds other bytes than were sealed")
    return faults


_AUDITS: dict[str, Callable[[Study], list[str]]] = {
    "reference": _reference,
    "prepare": _prepare,
    "kernel": _kernel,
    "train": _train,
    "simulate": lambda study: _content(study, "simulate"),
    "aggregate": lambda study: _content(study, "aggregate"),
    "report": lambda study: _content(study, "report"),
}
