"""What the page says of a learnt kernel: labels, identities, denoising, and what it does to the free energy.

Records are those of ``stages/judgement.py``: ``judged`` of held-out draws, ``drawn`` of all labels.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hpc_cg.analysis.landscape import Grid
from hpc_cg.report import figures
from hpc_cg.report.page import Figure, Quarantined
from hpc_cg.report.tables import NOTHING, Table, count, significant, with_error

SHARDS = 20
"""Shards with labels that failed which the page names."""

VARIATES = {0: "Z₁ (noise and kernel)", 1: "Z₂ (mapped forces)"}


def labels(record: Mapping[str, Any]) -> Table:
    """The labels with each choice of control variates, beside those of the noise kernel at the same σ."""
    worth = record["judged"]["labels"]
    mixed = worth["noise+forces"] is not None
    rows = [
        (
            " and ".join(VARIATES[number] for number in one["used"]) or "none",
            _root(one["train"]),
            _root(one["held_out"]),
            significant(against["against_noise"], 3),
            *([significant(against["against_noise+forces"], 3)] if mixed else []),
        )
        for one, against in zip(record["choices"], worth["choices"], strict=True)
    ]
    blank = (NOTHING,) * (2 if mixed else 1)
    rows.append(("noise kernel", NOTHING, _root(worth["noise"]), *blank))
    if mixed:
        rows.append(("noise kernel with mapped forces", NOTHING, _root(worth["noise+forces"]), *blank))
    header = (
        "control variates",
        "rms label, fitted frames (kJ/mol/nm)",
        "rms label, held-out frames (kJ/mol/nm)",
        "worth so many labels of noise",
        *(["worth so many labels of noise with mapped forces"] if mixed else []),
    )
    return Table(header, tuple(rows))


def identities(judged: Mapping[str, Any]) -> Table:
    """What the score of every density obeys, as the draws obey it."""
    found = judged["identities"]
    return Table(
        ("identity, on held-out draws", "found", "if true"),
        (
            ("(mean score / its error)², mean over beads and axes", significant(found["misfit"], 3), "about 1"),
            (
                "virial, mean of (y − c) · score",
                with_error(found["virial"], found["virial_error"]),
                f"\u2212{found['dimension']}",
            ),
        ),
    )


def denoising(judged: Mapping[str, Any]) -> Table:
    """Widths, shifts and errors of local coordinates: clean, noised, drawn."""
    rows = tuple(
        (
            f"{row['kind']} ({row['unit']})",
            *(significant(row[f"{of}_width"], 3) for of in ("clean", "blurred", "drawn")),
            *(significant(row[f"{of}_{what}"], 3) for what in ("shift", "error") for of in ("blurred", "drawn")),
        )
        for row in judged["denoising"]
    )
    header = (
        "held-out frames",
        "width, clean",
        "width, noised",
        "width, drawn",
        "shift of the mean, noised",
        "shift of the mean, drawn",
        "error, noised",
        "error, drawn",
    )
    return Table(header, rows)


def surfaces(drawn: Mapping[str, Any]) -> Table | None:
    """Distances of noised and of drawn frames from the clean ones, with the floor; None where there are none."""
    found = drawn.get("surfaces", [])
    rows = tuple(
        (
            f"{name}, {one['label']} ({unit})",
            *(significant(one[f"{of}_{key}"], 3) for of in ("noised", "drawn")),
            with_error(one[f"{key}_floor"], one[f"{key}_floor_spread"]),
        )
        for one in found
        for name, key, unit in (("JS divergence", "js", "nat"), ("free-energy error, root", "pmf", "kT"))
    )
    return Table(("against the clean frames", "noised frames", "drawn frames", "floor"), rows) if rows else None


def text(judged: Mapping[str, Any], drawn: Mapping[str, Any]) -> str:
    """How the tables are to be read."""
    failed = f"{count(drawn['failed'])} of {count(drawn['frames'])} frames got no label."
    reach = judged["beyond"]
    if reach is None:
        failed += " What the kernel was fitted on is not known: it comes from an earlier version."
    elif reach:
        failed += f" Of {count(judged['draws'])} held-out frames {count(reach)} were noised out of its reach."
    found = drawn.get("surfaces", [])
    sizes = ""
    if found:
        sizes = (
            f" The floor is what two independent samples of {count(round(found[0]['n_clean']))} and "
            f"{count(round(found[0]['n_drawn']))} frames would show; draws keep some of their own clean frame, and a "
            "right kernel lies at the floor or below."
        )
    return (
        " What a label is worth in labels of the noise kernel at the same σ is the ratio of their mean squares: below "
        f"1 it is the louder one. {failed}{sizes}"
    )


def figure(arrays: Mapping[str, np.ndarray], molecule: str) -> Figure | None:
    """Free-energy surfaces of clean, noised and drawn frames; None for a molecule without φ and ψ."""
    names = [f"{molecule}_{name}" for name in ("clean", "drawn", "noised")]
    if names[0] not in arrays:
        return None
    clean, drawn, noised = (arrays[name] for name in names)
    image = figures.free_energy_pair(clean, drawn, noised, Grid(len(clean)), names=("Clean", "Noised", "Drawn"))
    caption = (
        "Free energy over φ and ψ of the frames that labels were drawn for: clean, with noise, and as the kernel drew "
        "them; and the difference of drawn and clean frames where both are."
    )
    return Figure("Free energy of clean, noised and drawn frames", caption, image)


def failed(drawn: Mapping[str, Any]) -> tuple[Quarantined, ...]:
    """Frames without a label, shard by shard."""
    reason = "the draw or its score is no number, or the noised frame is out of the kernel's reach"
    named, rest = drawn["shards"][:SHARDS], drawn["shards"][SHARDS:]
    rows = [
        Quarantined(f"{count(row['failed'])} labels", f"of {count(row['frames'])} in shard {row['shard']}", reason)
        for row in named
    ]
    if rest:
        more = sum(row["failed"] for row in rest)
        rows.append(Quarantined(f"{count(more)} more labels", f"in {count(len(rest))} shards: drawn.json", reason))
    return tuple(rows)


def _root(mean_square: float) -> str:
    return significant(mean_square**0.5)
