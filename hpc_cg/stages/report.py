"""Stage report: one self-contained page from the sealed products, and the few lines that the terminal shows."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic.dataclasses import dataclass

from hpc_cg.config import STRICT
from hpc_cg.files import digest, digest_bytes, read_arrays, read_json, write_json
from hpc_cg.share import Team
from hpc_cg.stages.judgement import DRAWN, SURFACES
from hpc_cg.stages.molecules import FAULTS, QUARANTINE, Place, trained_molecules
from hpc_cg.stages.product import need_seal
from hpc_cg.stages.progress import Heartbeat

if TYPE_CHECKING:
    from hpc_cg.report.page import Section
    from hpc_cg.stages.study import Study

BESIDE: frozenset[str] = frozenset()
"""Every setting is seen on the page."""

PAGE = "report.html"
LISTED = 100
"""Segments of the archive that the page names."""

NOTES = (
    "Kinetic temperatures are read from full-step velocities, which BAOAB leaves too cold for stiff modes: a mode "
    "of frequency ω shows T(1 − (ω·dt)²/4). Positions are what this report judges.",
    "The floor of a divergence is what two samples of the reference itself would show at the same two sizes: judge the "
    "excess over it.",
    "Times of a coarse-grained model are not those of the atoms: it moves faster, by a factor that is estimated only "
    "where timescales of slow motion are asked for.",
)


@dataclass(frozen=True, config=STRICT)
class ReportConfig:
    """The table [report].

    title   of the page; empty for the study's name
    """

    title: str = ""


def work(study: "Study", team: Team, progress: Heartbeat) -> None:
    """Draw, write the page, and the summary."""
    from hpc_cg.report import sections, slow
    from hpc_cg.report.page import ReportContent, write_page
    from hpc_cg.store.dataset import open_spec
    from hpc_cg.store.layout import STORE

    if team.share.index != 0:
        return
    progress("drawing", 0, 1, "page")
    prepared, simulated, trained = (study.folder(stage) for stage in ("prepare", "simulate", "train"))
    estimates = read_json(study.folder("aggregate") / "estimates.json")
    arrays = read_arrays(study.folder("aggregate") / "figures.npz")
    kernel = read_json(study.folder("kernel") / "kernel.json")
    lost = read_json(simulated / "quarantine.json")
    summary = summary_rows(study, estimates)
    system = open_spec(prepared / STORE, study.molecule).system
    simulate = study.tables["simulate"]
    record = kernel["molecules"][study.molecule]
    chapters = (
        sections.landscape(arrays),
        slow.section(estimates["slow"], arrays) if "slow" in estimates else None,
        sections.local_structure(arrays, system),
        sections.backmapping(estimates["backmap"], arrays) if "backmap" in estimates else None,
        sections.forces(
            read_json(Place(prepared, study.molecule).map_record),
            record["label_mean_square"],
            estimates["integration"],
            arrays,
        ),
        _learnt_kernel(study, record) if "flow" in study.tables else None,
        sections.training(_curves(trained / "curves.jsonl"), read_json(trained / "errors.json")),
        sections.simulation(arrays, simulate.save_ps, simulate.timestep_ps, lost),
        sections.exchange(read_json(simulated / "exchange.json")) if simulate.n_rungs > 1 else None,
    )
    content = ReportContent(
        title=study.tables["report"].title or study.study.name,
        subtitle=_subtitle(study, kernel),
        summary=tuple(summary),
        estimates=sections.estimate_rows(estimates),
        estimates_note=sections.sizes_note(estimates),
        sections=tuple(chapter for chapter in chapters if chapter is not None),
        quarantine=sections.left_out(
            read_json(prepared / QUARANTINE), read_json(prepared / FAULTS), lost, estimates["left_out"], _drawn(study)
        ),
        provenance=provenance(study),
        notes=NOTES,
    )
    write_page(study.folder("report") / PAGE, content)
    write_json(study.folder("report") / "summary.json", summary)
    progress("drawing", 1, 1, "page")


def _drawn(study: "Study") -> dict[str, Any] | None:
    """What is known of all stored labels of the molecule; None where they are drawn anew in training."""
    path = study.folder("kernel") / DRAWN
    return read_json(path)[study.molecule] if path.exists() else None


def _learnt_kernel(study: "Study", record: dict[str, Any]) -> "Section":
    from hpc_cg.report import sections, transitions

    fit, folder = read_json(study.folder("flow") / "errors.json"), study.folder("kernel")
    drawn = read_json(folder / DRAWN)[study.molecule]
    if fit["lag_ps"]:
        return transitions.section(record, fit, drawn)
    return sections.learnt_kernel(record, fit, drawn, read_arrays(folder / SURFACES), study.molecule)


def summary_rows(study: "Study", estimates: dict[str, Any]) -> list[tuple[str, str]]:
    """What a person asks first, as words and values."""
    from hpc_cg.report.sections import AGAINST
    from hpc_cg.report.tables import count, significant, with_error

    seals = {stage: need_seal(study.folder(stage), "report").summary for stage in study.upstream("report")}
    train, simulate = seals["train"], seals["simulate"]
    force_errors = {"force error": train}
    if "molecules" in train:
        force_errors = {"force error": train["molecules"][study.molecule]}
        force_errors[f"force error of all {len(train['molecules'])} molecules"] = train
    rows = [
        (
            "frames",
            f"{count(seals['prepare']['frames'])} of the archive, {count(estimates['sizes']['model'])} of the model",
        ),
        *(
            (
                name,
                f"{significant(own['residual'] ** 0.5)} kJ/mol/nm on held-out frames; noise floor of the labels "
                f"{significant(max(own['floor'], 0.0) ** 0.5)}",
            )
            for name, own in force_errors.items()
        ),
    ]
    for label, name in (
        ("free-energy error φ, ψ, root", "PMF error"),
        ("JS divergence φ, ψ", "JS divergence"),
        ("basin offset (α against the rest)", "α basin offset"),
        ("bond length, mean Wasserstein distance", "bond error"),
    ):
        for row in estimates["estimates"]:
            if row["label"] == label:
                floor = "" if row["floor"] is None else f"; floor {significant(row['floor']['mean'], 3)}"
                rows.append(
                    (name + AGAINST[row["against"]], f"{with_error(row['value'], row['error'])} {row['unit']}{floor}")
                )
    rate = simulate["replica_steps_per_s_and_process"]
    rows += [
        (
            "training rate",
            f"{significant(train['frames_per_s'], 3)} frames/s on {train['processes']} processes",
        ),
        ("simulation rate", f"{significant(rate, 3)} replica-steps/s on each process"),
        (
            "replicas lost",
            f"{simulate['diverged'] + simulate['mirrored']} of {simulate['replicas']} "
            f"({simulate['diverged']} diverged, {simulate['mirrored']} mirrored)",
        ),
    ]
    return rows


def _subtitle(study: "Study", kernel: dict[str, Any]) -> str:
    flow = study.tables.get("flow")
    sigma_nm = kernel["sigma_nm"] if flow is None else flow.sigma_nm
    blur = "" if kernel["kind"] == "none" else f", σ = {sigma_nm} nm"
    words = {
        "none": "mapped forces",
        "noise": "noise",
        "noise+forces": "noise with mapped forces",
        "flow": "draws of a learnt kernel",
        "flow+forces": "draws of a learnt kernel with mapped forces",
    }[kernel["kind"]]
    if flow is not None and flow.lag_ps:
        words = words.replace("draws of a learnt kernel", f"scores of transitions over {flow.lag_ps:g} ps")
    names = [molecule.name for molecule in trained_molecules(study)]
    of = f" of {', '.join(names)}" if len(names) > 1 else ""
    return f"{study.molecule} at {study.study.temperature_K:g} K, trained on {words}{of}{blur}"


def _curves(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def provenance(study: "Study") -> dict[str, Any]:
    """From the figures back to the files: settings, inputs, versions and digests of every product."""
    from hpc_cg.archive.catalogue import Catalogue

    chain: dict[str, Any] = {"study": {"file": str(study.path), "temperature_K": study.study.temperature_K}}
    for stage in study.stages[:-1]:
        seal = need_seal(study.folder(stage), "report")
        chain[stage] = {
            "identity": seal.identity,
            "inputs": seal.inputs,
            "settings": seal.settings,
            "made": seal.made,
        }
    place = Place(study.folder("prepare"), study.molecule)
    catalogue = Catalogue(place.index)
    chain["archive"] = {
        "segments": len(catalogue),
        "frames": catalogue.n_frames,
        "first": [
            {"path": found.path, "frames": found.n_frames, "stride_ps": found.stride_ps, "digest": found.digest}
            for found in catalogue[:LISTED]
        ],
    }
    chain["map"] = {
        key: value
        for key, value in read_json(place.map_record).items()
        if key not in ("mean_square", "ridge_tried", "atoms")
    }
    return chain


def finish(study: "Study") -> tuple[str, dict[str, Any]]:
    """Digest of the page and its path."""
    page = study.folder("report") / PAGE
    return digest([digest_bytes(page.read_bytes())]), {"page": str(page)}
