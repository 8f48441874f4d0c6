"""The page of a campaign: every figure with its spread over repeats, against the frames trained on, and failures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_cg.report import figures
from hpc_cg.report.page import Figure, Quarantined, ReportContent, Section
from hpc_cg.report.tables import NOTHING, Table, count, with_error

DRAWN = (
    ("excess force error", True),
    ("JS divergence, clean reference", True),
    ("JS divergence, noised reference", True),
    ("PMF error, clean reference", False),
    ("α basin offset", False),
    ("α offset by integration of the network's forces", False),
)
"""Figures that are drawn, and whether on a logarithmic axis."""

NOTES = (
    "A value is the mean over repeats ± their standard deviation, which is the spread of single models, not the error "
    "of the mean; a value without ± is that of one model.",
    "A model trained on noise aims at the density with noise: judge its divergence against the noised reference.",
)


@dataclass(frozen=True)
class Group:
    """Members that only repeat one another.

    labels     of their values, on every axis but the repeats'
    n_frames   trained on
    values     of each figure, one per member that has it; units by the figure's name
    """

    labels: tuple[str, ...]
    n_frames: int
    values: Mapping[str, tuple[float, ...]]
    units: Mapping[str, str]
    n_replicas: int
    n_mirrored: int
    n_diverged: int

    def mean(self, name: str) -> float:
        return float(np.mean(self.values[name]))

    def spread(self, name: str) -> float | None:
        """The standard deviation over repeats; None where there is but one."""
        values = self.values[name]
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


def content(
    title: str,
    axes: tuple[str, ...],
    groups: Sequence[Group],
    missing: Mapping[str, str],
    provenance: Mapping[str, Any],
) -> ReportContent:
    """What the page shows.

    axes      names of the axes that the groups' labels belong to
    missing   members without figures, and why
    """
    sections = [_table(axes, groups), *([_pictures(groups)] if groups else [])]
    done = sum(max((len(x) for x in group.values.values()), default=0) for group in groups)
    return ReportContent(
        title=title,
        subtitle=f"{done} members judged, {len(missing)} missing",
        sections=tuple(sections),
        quarantine=tuple(Quarantined("member", name, why) for name, why in missing.items()),
        provenance=provenance,
        notes=NOTES,
    )


def _table(axes: tuple[str, ...], groups: Sequence[Group]) -> Section:
    """A table per figure would be long: one row per group, figures side by side, three tables for the width."""
    names = list(dict.fromkeys(name for group in groups for name in group.values))
    tables = []
    for start in range(0, len(names), 4):
        some = names[start : start + 4]
        header = (*axes, "frames", *(_title(name, groups) for name in some))
        tables.append(Table(header, tuple(_row(group, some) for group in groups)))
    lost = tuple(
        (
            *group.labels,
            count(group.n_frames),
            count(group.n_replicas),
            count(group.n_mirrored),
            count(group.n_diverged),
        )
        for group in groups
    )
    tables.append(Table((*axes, "frames", "replicas", "mirrored", "diverged"), lost))
    return Section("Figures", "Each row holds the members that only repeat one another.", tables=tuple(tables))


def _row(group: Group, names: Sequence[str]) -> tuple[str, ...]:
    cells = (with_error(group.mean(name), group.spread(name)) if name in group.values else NOTHING for name in names)
    return (*group.labels, count(group.n_frames), *cells)


def _title(name: str, groups: Sequence[Group]) -> str:
    unit = groups[0].units.get(name, "") if groups else ""
    return f"{name} ({unit})" if unit else name


def _pictures(groups: Sequence[Group]) -> Section:
    """Each figure against the number of frames trained on, a line for what else differs."""
    by_size = len({group.n_frames for group in groups}) > 1
    panels = []
    for name, logarithmic in DRAWN:
        mine = [group for group in groups if name in group.values]
        if not mine:
            continue
        lines: dict[str, list[Group]] = {}
        for group in mine:
            lines.setdefault(_line(group, groups), []).append(group)
        panels.append(
            figures.Panel(
                _title(name, groups),
                tuple(
                    figures.Line(
                        label,
                        np.array([one.n_frames for one in some], np.float64),
                        np.array([one.mean(name) for one in some]),
                        np.array([one.spread(name) or 0.0 for one in some]),
                    )
                    for label, some in ((key, sorted(x, key=lambda one: one.n_frames)) for key, x in lines.items())
                ),
                logarithmic and all(one.mean(name) > 0 for one in mine),
            )
        )
    caption = "Means over repeats; bars are one standard deviation of single models."
    image = figures.lines_over_frames(panels, by_size)
    return Section("Against the frames trained on", figures=(Figure("Against the frames trained on", caption, image),))


def _line(group: Group, groups: Sequence[Group]) -> str:
    """What names a group's line: its labels on the axes along which groups of one size still differ."""
    if len({one.n_frames for one in groups}) == 1:
        return ", ".join(group.labels)
    moves = [
        place
        for place in range(len(group.labels))
        if len({one.labels[place] for one in groups if one.n_frames == group.n_frames}) > 1
    ]
    return ", ".join(group.labels[place] for place in moves) or "all"
