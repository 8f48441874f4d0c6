"""Stage report: one self-contained page from the sealed products, and the few lines that the terminal shows."""

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic.dataclasses import dataclass

from hpc_cg.config import STRICT
from hpc_cg.files import digest, digest_bytes, read_arrays, read_json, write_json
from hpc_cg.share import Team
from hpc_cg.stages.product import need_seal
from hpc_cg.stages.progress import Heartbeat

if TYPE_CHECKING:
    from hpc_cg.report.page import Quarantined, Section
    from hpc_cg.report.tables import Row
    from hpc_cg.stages.study import Study

PAGE = "report.html"
MAPS = ("slice", "uniform", "optimal")
NOTES = (
    "Kinetic temperatures are read from full-step velocities, which BAOAB leaves too cold for stiff modes: a mode "
    "of frequency ω shows T(1 − (ω·dt)²/4). Positions are what this report judges.",
    "The floor of a divergence is what two samples of the reference itself would show at the same two sizes: judge the "
    "excess over it.",
    "Times of a coarse-grained model are not those of the atoms: it moves faster, by a factor that is not estimated "
    "here.",
)


@dataclass(frozen=True, config=STRICT)
class ReportConfig:
    """The table [report].

    title   of the page; empty for the study's name
    """

    title: str = ""


def work(study: "Study", team: Team, progress: Heartbeat) -> None:
    """Draw, write the page, and the summary."""
    from hpc_cg.report.page import ReportContent, write_page

    if team.share.index != 0:
        return
    progress("drawing", 0, 1, "page")
    estimates = read_json(study.folder("aggregate") / "estimates.json")
    summary = summary_rows(study, estimates)
    arrays = read_arrays(study.folder("aggregate") / "figures.npz")
    sections = [
        _landscape(arrays),
        _local(study, arrays),
        _forces(study, estimates, arrays),
        _training(study),
    ]
    content = ReportContent(
        title=study.tables["report"].title or study.study.name,
        subtitle=_subtitle(study),
        summary=tuple(summary),
        estimates=tuple(_estimate_rows(estimates)),
        estimates_note=_sizes(estimates),
        sections=tuple(section for section in [*sections, _simulation(study, arrays)] if section is not None),
        quarantine=tuple(_quarantine(study, estimates)),
        provenance=provenance(study),
        notes=NOTES,
    )
    write_page(study.folder("report") / PAGE, content)
    write_json(study.folder("report") / "summary.json", summary)
    progress("drawing", 1, 1, "page")


def summary_rows(study: "Study", estimates: dict[str, Any]) -> list[tuple[str, str]]:
    """What a person asks first, as words and values."""
    from hpc_cg.report.tables import count, significant, with_error

    seals = {stage: need_seal(study.folder(stage), "report").summary for stage in study.upstream("report")}
    train, simulate = seals["train"], seals["simulate"]
    rows = [
        (
            "frames",
            f"{count(seals['prepare']['frames'])} of the archive, {count(estimates['sizes']['model'])} of the model",
        ),
        (
            "force error",
            f"{significant(train['residual'] ** 0.5)} kJ/mol/nm on held-out frames; noise floor of the labels "
            f"{significant(max(train['floor'], 0.0) ** 0.5)}",
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
                against = "" if row["against"] == "clean" else " (noised reference)"
                rows.append((name + against, f"{with_error(row['value'], row['error'])} {row['unit']}{floor}"))
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


def _subtitle(study: "Study") -> str:
    kernel = read_json(study.folder("kernel") / "kernel.json")
    blur = "" if kernel["kind"] == "none" else f", σ = {kernel['sigma_nm']} nm"
    words = {"none": "mapped forces", "noise": "noise", "noise+forces": "noise with mapped forces"}[kernel["kind"]]
    return f"{study.tables['prepare'].molecule} at {study.study.temperature_K:g} K, trained on {words}{blur}"


def _sizes(estimates: dict[str, Any]) -> str:
    sizes = estimates["sizes"]
    return (
        f"{sizes['reference']:,} reference frames against {sizes['model']:,} model frames; φ, ψ histograms of "
        f"{sizes['bins']} × {sizes['bins']} bins; errors by resampling blocks of trajectory and replicas."
    )


def _estimate_rows(estimates: dict[str, Any]) -> "list[Row]":
    from dataclasses import replace

    from hpc_cg.analysis.comparison import Judged
    from hpc_cg.analysis.estimate import Estimate
    from hpc_cg.analysis.floor import Floor
    from hpc_cg.report.tables import judged_row

    rows = []
    for row in estimates["estimates"]:
        estimate = Estimate(**{name: row[name] for name in ("value", "error", "n_effective", "unit", "label")})
        judged = judged_row(Judged(estimate, None if row["floor"] is None else Floor(**row["floor"])))
        if row["against"] == "noised":
            judged = replace(judged, label=f"{judged.label} (noised reference)")
        rows.append(judged)
    return rows


def _landscape(arrays: dict[str, np.ndarray]) -> "Section | None":
    from hpc_cg.analysis.landscape import Grid
    from hpc_cg.report import figures
    from hpc_cg.report.page import Figure, Section

    if "surface_model" not in arrays:
        return None
    counts = arrays["surface_model"]
    image = figures.free_energy_pair(
        arrays["surface_reference"], counts, arrays.get("surface_noised"), Grid(len(counts))
    )
    caption = "Free energy over φ and ψ, and the difference where both have frames."
    return Section("Free-energy surface", figures=(Figure("Free energy over φ and ψ", caption, image),))


def _local(study: "Study", arrays: dict[str, np.ndarray]) -> "Section":
    from hpc_cg.analysis.geometry import Density
    from hpc_cg.analysis.marginals import Marginal, term_label
    from hpc_cg.report import figures
    from hpc_cg.report.page import Figure, Section

    system = _system(study)

    def panels(kind: str, terms: tuple[tuple[int, ...], ...]) -> list[Marginal]:
        made = []
        for number, term in enumerate(terms):
            shapes = {
                name: Density(arrays[f"{kind}_{number}_edges"], arrays[f"{kind}_{number}_{name}"])
                for name in ("reference", "model", "noised")
                if f"{kind}_{number}_{name}" in arrays
            }
            made.append(Marginal(term_label(system, term), **shapes))
        return made

    pictures = [
        Figure(
            "Bond lengths",
            "Each bond of the model and of the reference.",
            figures.bond_histograms(panels("bond", system.bonds)),
        )
    ]
    pictures.append(
        Figure(
            "Angles",
            "Each angle of the model and of the reference.",
            figures.angle_histograms(panels("angle", system.angles)),
        )
    )
    return Section("Local structure", figures=tuple(pictures))


def _forces(study: "Study", estimates: dict[str, Any], arrays: dict[str, np.ndarray]) -> "Section":
    from hpc_cg.report import figures
    from hpc_cg.report.page import Figure, Section
    from hpc_cg.report.tables import Table, significant, with_error

    fitted = read_json(study.folder("prepare") / "map.json")
    kernel = read_json(study.folder("kernel") / "kernel.json")
    measured = {name + (" (used)" if name == fitted["force_map"] else ""): fitted["mean_square"][name] for name in MAPS}
    measured["labels of the kernel"] = kernel["label_mean_square"]
    maps = Table(
        ("force map", "rms force, fitted frames (kJ/mol/nm)", "rms force, held-out frames (kJ/mol/nm)"),
        tuple(
            (name, significant(square["train"] ** 0.5), significant(square["held_out"] ** 0.5))
            for name, square in measured.items()
        ),
    )
    results = estimates["integration"]
    tables = [maps]
    pictures: list[Figure] = []
    if "labels" in results:
        rows = tuple(
            (
                name,
                with_error(values["difference_kT"], values["error_kT"]),
                with_error(values["histogram_kT"], values["histogram_error_kT"]),
            )
            for name, values in results.items()
        )
        tables.append(Table(("forces", "α → β by integration (kT)", "by the histogram (kT)"), rows))
        found = {name: _integration(arrays, name) for name in results}
        image = figures.psi_integration(found["labels"], found.get("network"))
        caption = (
            "Mean force along ψ and the free energy it integrates to, beside the histogram of the same frames: labels "
            "that "
            "are right agree within their error, and a network that is right agrees with both."
        )
        pictures.append(Figure("Integration along ψ", caption, image))
    broken = fitted["slice_breaks_rigid_groups"]
    text = "A map is valid where atoms held together rigidly share one coefficient. " + (
        f"Here the slice map is not: it splits {len(broken)} rigid groups." if broken else "Here every map is."
    )
    return Section("Forces", text=text, tables=tuple(tables), figures=tuple(pictures))


def _integration(arrays: dict[str, np.ndarray], name: str) -> Any:
    from dataclasses import fields

    from hpc_cg.analysis.integration import PsiIntegration

    values: dict[str, Any] = {}
    for field in fields(PsiIntegration):
        value = arrays[f"integration_{name}_{field.name}"]
        values[field.name] = float(value) if value.ndim == 0 else value
    return PsiIntegration(**values)


def _training(study: "Study") -> "Section":
    import json

    from hpc_cg.report import figures
    from hpc_cg.report.page import Figure, Section
    from hpc_cg.report.tables import Table, significant

    lines = (study.folder("train") / "curves.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]

    def column(name: str) -> np.ndarray:
        return np.asarray([row[name] for row in rows], dtype=np.float64)

    found = read_json(study.folder("train") / "errors.json")
    curve = figures.LearningCurve(
        "force matching",
        column("step"),
        column("train"),
        column("learning_rate"),
        column("step"),
        column("residual"),
        found["floor"],
    )
    table = Table(
        ("on held-out frames", "value"),
        (
            ("rms of the labels (kJ/mol/nm)", significant(found["label"] ** 0.5)),
            ("rms of the labels minus priors (kJ/mol/nm)", significant(found["delta"] ** 0.5)),
            ("rms error of the model (kJ/mol/nm)", significant(found["residual"] ** 0.5)),
            ("noise floor of the labels (kJ/mol/nm)", significant(max(found["floor"], 0.0) ** 0.5)),
            ("explained fraction of the labels", significant(found["explained"], 3)),
            ("explained fraction of what the priors leave", significant(found["explained_delta"], 3)),
        ),
    )
    caption = "Mean square error of the forces; the noise floor is the part of it that no model can remove."
    image = figures.learning_curves([curve])
    return Section("Training", tables=(table,), figures=(Figure("Learning curves", caption, image),))


def _simulation(study: "Study", arrays: dict[str, np.ndarray]) -> "Section | None":
    from hpc_cg.report import figures
    from hpc_cg.report.page import Figure, Section

    if "replica_psi" not in arrays:
        return None
    config = study.tables["simulate"]
    psi = arrays["replica_psi"]
    stopped = [
        figures.Stop(row["replica"], row["step"] * config.timestep_ps, row["reason"])
        for row in read_json(study.folder("simulate") / "quarantine.json")
    ]
    time_ps = (np.arange(psi.shape[1]) + 1) * config.save_ps
    image = figures.replicas_over_time(time_ps, psi, "ψ (degrees)", cyclic=True, stopped=stopped)
    return Section("Simulation", figures=(Figure("Replicas", "ψ of each replica in time.", image),))


def _quarantine(study: "Study", estimates: dict[str, Any]) -> "list[Quarantined]":
    from hpc_cg.report.page import Quarantined

    rows = [
        Quarantined(f"frame {row['frame']}", row["path"], row["reason"])
        for row in read_json(study.folder("prepare") / "quarantine.json")
    ]
    rows += [
        Quarantined(f"replica {row['replica']}", f"from step {row['step']}", row["reason"])
        for row in read_json(study.folder("simulate") / "quarantine.json")
    ]
    return rows + [Quarantined("estimate", "aggregate", text) for text in estimates["left_out"]]


def provenance(study: "Study") -> dict[str, Any]:
    """From the figures back to the files: settings, inputs, versions and digests of every product."""
    chain: dict[str, Any] = {"study": {"file": str(study.path), "temperature_K": study.study.temperature_K}}
    for stage in study.upstream("report"):
        seal = need_seal(study.folder(stage), "report")
        chain[stage] = {
            "identity": seal.identity,
            "inputs": seal.inputs,
            "settings": seal.settings,
            "made": seal.made,
        }
    segments = read_json(study.folder("prepare") / "segments.json")
    chain["archive"] = [{key: row[key] for key in ("path", "n_frames", "stride_ps", "digest")} for row in segments]
    chain["map"] = {
        key: value for key, value in read_json(study.folder("prepare") / "map.json").items() if key != "mean_square"
    }
    return chain


def _system(study: "Study") -> Any:
    from hpc_cg.store.dataset import open_spec
    from hpc_cg.store.layout import STORE

    return open_spec(study.folder("prepare") / STORE, study.tables["prepare"].molecule).system


def finish(study: "Study") -> tuple[str, dict[str, Any]]:
    """Digest of the page and its path."""
    page = study.folder("report") / PAGE
    return digest([digest_bytes(page.read_bytes())]), {"page": str(page)}
