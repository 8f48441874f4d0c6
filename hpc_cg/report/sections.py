"""The chapters of the page, from plain numbers and arrays: what aggregate and the seals hold, in words and pictures.

Arrays have the names that the stage aggregate gives them: ``surface_*`` (counts over φ, ψ), ``bond_i_*`` and
``angle_i_*`` (densities on ``*_edges``), ``integration_*_*`` (fields of PsiIntegration), ``replica_psi`` (degrees).
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from hpc_cg.analysis.comparison import Judged
from hpc_cg.analysis.estimate import Estimate
from hpc_cg.analysis.floor import Floor
from hpc_cg.analysis.geometry import Density
from hpc_cg.analysis.integration import PsiIntegration
from hpc_cg.analysis.landscape import Grid
from hpc_cg.analysis.marginals import Marginal, term_label
from hpc_cg.beads import BeadSystem
from hpc_cg.report import figures, learnt
from hpc_cg.report.page import Figure, Quarantined, Section
from hpc_cg.report.tables import NOTHING, Row, Table, count, judged_row, significant, with_error

Arrays = Mapping[str, np.ndarray]
DRAWN = 30
"""Bonds, and angles, that are drawn: of more, some are taken along the chain."""

AGAINST = {"clean": "", "noised": " (noised reference)", "drawn": " (frames that the kernel drew)"}
"""What is said of an estimate's reference."""

LISTED = 200
"""Runs of quarantined frames that the page names."""


def estimate_rows(estimates: Mapping[str, Any]) -> tuple[Row, ...]:
    """The lines of the table of estimates; those against another reference than the clean one say so."""
    rows = []
    for found in estimates["estimates"]:
        estimate = Estimate(**{field.name: found[field.name] for field in fields(Estimate)})
        row = judged_row(Judged(estimate, None if found["floor"] is None else Floor(**found["floor"])))
        rows.append(replace(row, label=row.label + AGAINST[found["against"]]))
    return tuple(rows)


def sizes_note(estimates: Mapping[str, Any]) -> str:
    """The sample sizes and bins that the estimates belong to."""
    sizes = estimates["sizes"]
    fewer = sizes["reference"] < sizes["archive"]
    of = f" of {sizes['archive']:,} frames of the archive, evenly spread," if fewer else " reference frames"
    return (
        f"{sizes['reference']:,}{of} against {sizes['model']:,} model frames; φ, ψ histograms of "
        f"{sizes['bins']} × {sizes['bins']} bins; errors by resampling blocks of trajectory and replicas."
    )


def landscape(arrays: Arrays) -> Section | None:
    """Free-energy surfaces side by side; None for a molecule without φ and ψ."""
    if "surface_model" not in arrays:
        return None
    counts = arrays["surface_model"]
    image = figures.free_energy_pair(
        arrays["surface_reference"], counts, arrays.get("surface_noised"), Grid(len(counts))
    )
    caption = "Free energy over φ and ψ, and the difference where both have frames."
    return Section("Free-energy surface", figures=(Figure("Free energy over φ and ψ", caption, image),))


def local_structure(arrays: Arrays, system: BeadSystem) -> Section:
    """Each bond and each angle, model beside reference."""
    bonds = figures.bond_histograms(_marginals(arrays, "bond", system, system.bonds))
    angles = figures.angle_histograms(_marginals(arrays, "angle", system, system.angles))
    pictures = (
        Figure("Bond lengths", _which("bond", len(system.bonds)), bonds),
        Figure("Angles", _which("angle", len(system.angles)), angles),
    )
    return Section("Local structure", figures=pictures)


def backmapping(found: Mapping[str, Mapping[str, int | float]], arrays: Arrays) -> Section:
    """Energies of frames whose atoms were rebuilt and minimised around held beads.

    found   of each ensemble: frames, those not minimised and wrong-handed, mean and width of the others (kJ/mol)
    """
    words = {"reference": "reference", "noised": "reference with noise", "model": "model"}
    rows = tuple(
        (
            words[name],
            *(count(int(found[name][key])) for key in ("frames", "failed", "mirrored")),
            *(significant(found[name][key], 5) if key in found[name] else NOTHING for key in ("mean", "width")),
        )
        for name in words
        if name in found
    )
    header = ("frames of", "frames", "not minimised", "wrong-handed", "mean (kJ/mol)", "width (kJ/mol)")
    text = (
        "All atoms are rebuilt around the beads, which are held, and minimised in amber14 with OBC2 solvent: beads "
        "that stand where atoms cannot, as in bonds that are too wide, cost energy. Frames of the reference are "
        "treated alike. Means and widths are of the frames that were minimised and are not wrong-handed."
    )
    pictures: tuple[Figure, ...] = ()
    if "backmap_edges" in arrays:
        shapes = {
            name: Density(arrays["backmap_edges"], arrays[f"backmap_{name}"])
            for name in words
            if f"backmap_{name}" in arrays
        }
        caption = "Energy of each frame with its atoms rebuilt and minimised around the beads."
        image = figures.energy_histograms(Marginal("Backmapped energies", **shapes))
        pictures = (Figure("Backmapped energies", caption, image),)
    return Section("Backmapped energies", text=text, tables=(Table(header, rows),), figures=pictures)


def forces(
    fitted: Mapping[str, Any],
    labels: Mapping[str, float],
    integrated: Mapping[str, Mapping[str, float]],
    arrays: Arrays,
) -> Section:
    """The force maps and their noise, and what the forces integrate to.

    fitted       of the stage prepare: mean squares of each map, which is used, what the slice map breaks
    labels       mean square of the kernel's labels, on fitted and held-out frames
    integrated   differences along ψ by source of the forces
    """
    found = fitted["mean_square"]
    squares = {name + (" (used)" if name == fitted["force_map"] else ""): square for name, square in found.items()}
    squares["labels of the kernel"] = labels
    tables = [
        Table(
            ("force map", "rms force, fitted frames (kJ/mol/nm)", "rms force, held-out frames (kJ/mol/nm)"),
            tuple((name, _root(square["train"]), _root(square["held_out"])) for name, square in squares.items()),
        )
    ]
    pictures: list[Figure] = []
    if "labels" in integrated:
        rows = tuple(
            (
                name,
                with_error(x["difference_kT"], x["error_kT"]),
                with_error(x["histogram_kT"], x["histogram_error_kT"]),
            )
            for name, x in integrated.items()
        )
        tables.append(Table(("forces", "α → β by integration (kT)", "by the histogram (kT)"), rows))
        results = {name: _integration(arrays, name) for name in integrated}
        caption = (
            "Mean force along ψ and the free energy it integrates to, beside the histogram of the same frames: labels "
            "that are right agree within their error, and a network that is right agrees with both."
        )
        image = figures.psi_integration(results["labels"], results.get("network"))
        pictures.append(Figure("Integration along ψ", caption, image))
    broken = fitted["slice_breaks_rigid_groups"]
    text = "A map is valid where atoms held together rigidly share one coefficient. " + (
        f"Here the slice map is not: it splits {len(broken)} rigid groups." if broken else "Here every map is."
    )
    if fitted["ridge_tried"]:
        text += (
            f" The ridge of the optimal map, {significant(fitted['ridge'], 3)} (kJ/mol/nm)², was the best of "
            f"{len(fitted['ridge_tried'])} in cross-validation over blocks of trajectory."
        )
    text += "".join(f" {warning}" for warning in fitted["warnings"])
    return Section("Forces", text=text, tables=tuple(tables), figures=tuple(pictures))


def learnt_kernel(
    record: Mapping[str, Any], fit: Mapping[str, Any], drawn: Mapping[str, Any], arrays: Arrays, molecule: str
) -> Section:
    """What the fitted kernel's labels are like, with and without control variates, and what it does to the density.

    record   of the stage kernel: mean squares with each choice of variates, and what held-out draws say
    fit      of the stage flow: how the fit ended
    drawn    of all labels: how many failed, and how far the draws are from the clean frames
    arrays   counts over φ and ψ of the molecule, where it has these
    """
    judged = record["judged"]
    text = (
        f"A {fit['kind']} kernel that undoes noise of {fit['sigma_nm']:g} nm, fitted on "
        f"{count(fit['train_frames'])} frames; the weights of step {count(fit['chosen_step'])}, with a loss of "
        f"{significant(fit['held_out'])} on held-out frames, draw the labels. The last choice of control variates is "
        f"what is used.{learnt.text(judged, drawn)}"
    )
    tables = (learnt.labels(record), learnt.identities(judged), learnt.denoising(judged), learnt.surfaces(drawn))
    picture = learnt.figure(arrays, molecule)
    return Section(
        "Learnt kernel",
        text=text,
        tables=tuple(table for table in tables if table is not None),
        figures=() if picture is None else (picture,),
    )


def training(curves: Sequence[Mapping[str, float]], errors: Mapping[str, Any]) -> Section:
    """Learning curves with the noise floor, and the errors on held-out frames at the end.

    errors   of the stage train; those of each molecule too, where one network is trained on several
    """

    def column(name: str) -> np.ndarray:
        return np.asarray([row[name] for row in curves], dtype=np.float64)

    curve = figures.LearningCurve(
        label="force matching",
        step=column("step"),
        training=column("train"),
        learning_rate=column("learning_rate"),
        validation_step=column("step"),
        validation=column("residual"),
        noise_floor=errors["floor"],
    )
    table = Table(
        ("on held-out frames", "value"),
        (
            ("rms of the labels (kJ/mol/nm)", _root(errors["label"])),
            ("rms of the labels minus priors (kJ/mol/nm)", _root(errors["delta"])),
            ("rms error of the model (kJ/mol/nm)", _root(errors["residual"])),
            ("noise floor of the labels, estimated (kJ/mol/nm)", _root(errors["floor"])),
            ("explained fraction of the labels", significant(errors["explained"], 3)),
            ("explained fraction of what the priors leave", significant(errors["explained_delta"], 3)),
        ),
    )
    caption = "Mean square error of the forces; the noise floor is the part of it that no model can remove."
    picture = Figure("Learning curves", caption, figures.learning_curves([curve]))
    if "molecules" not in errors:
        return Section("Training", tables=(table,), figures=(picture,))
    each = Table(
        (
            "molecule",
            "frames to train on",
            "held-out frames",
            "rms of the labels minus priors (kJ/mol/nm)",
            "rms error (kJ/mol/nm)",
            "noise floor (kJ/mol/nm)",
        ),
        tuple(
            (
                name,
                f"{own['train_frames']:,}",
                f"{own['held_out_frames']:,}",
                *(_root(own[of]) for of in ("delta", "residual", "floor")),
            )
            for name, own in errors["molecules"].items()
        ),
    )
    text = f"One network is trained on {len(each.rows)} molecules; errors and curves are means over these."
    return Section("Training", text=text, tables=(table, each), figures=(picture,))


def simulation(arrays: Arrays, save_ps: float, timestep_ps: float, lost: Sequence[Mapping[str, Any]]) -> Section | None:
    """ψ of every replica in time, with those that were taken out; None for a molecule without φ and ψ."""
    if "replica_psi" not in arrays:
        return None
    psi = arrays["replica_psi"]
    stopped = [figures.Stop(row["replica"], row["step"] * timestep_ps, row["reason"]) for row in lost]
    time_ps = (np.arange(psi.shape[1]) + 1) * save_ps
    image = figures.replicas_over_time(time_ps, psi, "ψ (degrees)", cyclic=True, stopped=stopped)
    return Section("Simulation", figures=(Figure("Replicas", "ψ of each replica in time.", image),))


def exchange(swaps: Mapping[str, Any]) -> Section:
    """How often neighbours on the ladder of temperatures trade places, and how replicas get around on it.

    swaps   temperatures_K of the rungs; tried and accepted of each pair; round_trips of each replica; its ns
    """
    temperatures = swaps["temperatures_K"]
    rows = tuple(
        (f"{low:g} K, {high:g} K", f"{tried:,}", significant(accepted / tried, 3) if tried else "none tried")
        for low, high, tried, accepted in zip(
            temperatures[:-1], temperatures[1:], swaps["tried"], swaps["accepted"], strict=True
        )
    )
    trips = np.asarray(swaps["round_trips"])
    text = (
        f"Replicas trade temperatures on a ladder of {len(temperatures)}; only frames at the study's temperature are "
        f"judged. {int(trips.sum()):,} round trips from the lowest rung to the highest and back: "
        f"{significant(float(trips.sum()) / (len(trips) * swaps['ns']), 3)} in a nanosecond of a replica, and "
        f"{int((trips == 0).sum())} of {len(trips)} replicas made none."
    )
    return Section("Replica exchange", text=text, tables=(Table(("rungs", "attempts", "accepted share"), rows),))


def left_out(
    frames: Sequence[Mapping[str, Any]],
    unreadable: Sequence[Mapping[str, str]],
    replicas: Sequence[Mapping[str, Any]],
    estimates: Sequence[str],
    labels: Mapping[str, Any] | None = None,
) -> tuple[Quarantined, ...]:
    """Everything that was left out of the numbers: files, frames, labels, replicas, estimates, and why.

    Of a long list of frames the first LISTED runs are named and the others counted.
    """
    rest = frames[LISTED:]
    more = f"{sum(row['frames'] for row in rest):,} more frames"
    return (
        *(Quarantined("file", row["path"], row["reason"]) for row in unreadable),
        *(Quarantined(_frames(row), row["path"], row["reason"]) for row in frames[:LISTED]),
        *([Quarantined(more, "see quarantine.json of the stage prepare", "")] if rest else []),
        *(learnt.failed(labels) if labels is not None else ()),
        *(Quarantined(f"replica {row['replica']}", f"from step {row['step']}", row["reason"]) for row in replicas),
        *(Quarantined("estimate", "comparison with the reference", text) for text in estimates),
    )


def _which(kind: str, count: int) -> str:
    step = -(-count // DRAWN)
    one = f"Each {kind}" if step <= 1 else f"One {kind} in {step}, of {count},"
    return f"{one} of the model and of the reference."


def _frames(row: Mapping[str, Any]) -> str:
    first, count = row["frame"], row["frames"]
    return f"frame {first}" if count == 1 else f"frames {first} to {first + count - 1}"


def _marginals(arrays: Arrays, kind: str, system: BeadSystem, terms: Sequence[tuple[int, ...]]) -> list[Marginal]:
    made = []
    step = -(-len(terms) // DRAWN)
    for number, term in list(enumerate(terms))[::step] if terms else []:
        edges = arrays[f"{kind}_{number}_edges"]
        shapes = {
            name: Density(edges, arrays[f"{kind}_{number}_{name}"])
            for name in ("reference", "model", "noised")
            if f"{kind}_{number}_{name}" in arrays
        }
        made.append(Marginal(term_label(system, term), **shapes))
    return made


def _integration(arrays: Arrays, name: str) -> PsiIntegration:
    values: dict[str, Any] = {}
    for field in fields(PsiIntegration):
        value = arrays[f"integration_{name}_{field.name}"]
        values[field.name] = float(value) if value.ndim == 0 else value
    return PsiIntegration(**values)


def _root(mean_square: float) -> str:
    """A mean square as a root; a floor that came out below zero is zero within its error."""
    return significant(max(mean_square, 0.0) ** 0.5)
