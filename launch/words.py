"""The three or four figures of each product that a person asks for first, in words and with units."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_cg.stages.product import Seal
from hpc_cg.stages.report import PAGE
from hpc_cg.stages.study import Study


@dataclass(frozen=True)
class Figure:
    """One figure of a seal's summary.

    keys     where it stands; several are added up
    before   words before it
    after    its unit
    root     show the root of a mean square
    some     say how many there are of these, and nothing where there is none
    """

    keys: tuple[str, ...]
    before: str = ""
    after: str = ""
    root: bool = False
    some: bool = False

    def words(self, summary: dict[str, Any]) -> str:
        values = [summary[key] for key in self.keys]
        if self.some:
            count = sum(value if isinstance(value, int) else len(value) for value in values)
            return f"{count:,} {self.after}{'s' * (count > 1)}" if count else ""
        shown = values[0] if len(values) == 1 else sum(values)
        if self.root:
            shown = math.sqrt(max(shown, 0.0))  # a noise floor is a difference, and may come out below zero
        return " ".join(part for part in (self.before, figure(shown), self.after) if part)


FIGURES: dict[str, tuple[Figure, ...]] = {
    "reference": (Figure(("trajectories",), after="trajectories"), Figure(("ns",), after="ns")),
    "prepare": (
        Figure(("frames",), after="frames"),
        Figure(("shards",), after="shards"),
        Figure(("beads",), after="beads"),
        Figure(("quarantined",), after="frames quarantined"),
        Figure(("unreadable_files",), after="unreadable file", some=True),
        Figure(("warnings",), after="warning", some=True),
    ),
    "flow": (
        Figure(("kind",)),
        Figure(("sigma_nm",), "σ", "nm"),
        Figure(("held_out",), "held-out loss"),
        Figure(("frames_per_s",), after="frames/s"),
    ),
    "kernel": (Figure(("kind",), "kind"), Figure(("sigma_nm",), "σ", "nm")),
    "train": (
        Figure(("residual",), "force error", "kJ/mol/nm", root=True),
        Figure(("floor",), "noise floor", root=True),
        Figure(("frames_per_s",), after="frames/s"),
    ),
    "simulate": (
        Figure(("replicas",), after="replicas"),
        Figure(("ns",), after="ns"),
        Figure(("diverged", "mirrored"), after="lost"),
        Figure(("swaps_accepted",), after="of swaps accepted"),
        Figure(("replica_steps_per_s_and_process",), after="replica-steps/s each"),
        Figure(("engine",), "engine"),
        Figure(("mixed_engine_groups",), after="mixed-engine group", some=True),
    ),
    "aggregate": (Figure(("JS",), "JS"), Figure(("PMF error (kT)",), "PMF error", "kT")),
}
"""What is shown of each stage's summary; the units are those of the summary, of its root where ``root`` is set."""


def figures(study: Study, stage: str, seal: Seal) -> str:
    """One line of figures of a sealed product; figures that its summary does not have are left out."""
    if stage == "report":
        return str(near(study.folder(stage) / PAGE, study.root))
    found = (one.words(seal.summary) for one in FIGURES[stage] if set(one.keys) <= set(seal.summary))
    return ", ".join(filter(None, found))


def near(path: Path, root: Path) -> Path:
    """A path as seen from the current folder, or else from ``root``, where it lies below one of them."""
    for start in (Path.cwd(), root):
        if path.is_relative_to(start):
            return path.relative_to(start)
    return path


def figure(value: float | int | str) -> str:
    """A number with three digits that count, or with all of those before the point; words as they are."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def size(n_bytes: float) -> str:
    """Bytes for people, in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"
