"""The page of a campaign: every figure with its spread over repeats, against the frames trained on, and failures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from hpc_cg.report import campaign_figures as figures
from hpc_cg.report.page import Figure, Quarantined, ReportContent, Section
from hpc_cg.report.tables import NOTHING, Table, count, significant, with_error

DRAWN = (
    ("excess force error", True),
    ("JS divergence, clean reference", True),
    ("JS divergence, noised reference", True),
    ("PMF error, clean reference", False),
    ("α basin offset", False),
    ("α offset by integration of the network's forces", False),
)
"""Figures that are drawn, and whether on a logarithmic axis."""

TOGETHER = ("bond error, clean reference", "PMF error, clean reference")
"""What a model must have both small: local and global structure."""

NEEDED_FOR = "excess force error"
"""The figure for which frames are counted."""

NOTES = (
    "A value is the mean over repeats ± their standard deviation, which is the spread of single models, not the error "
    "of the mean; a value without ± is that of one model.",
    "A model trained on noise aims at the density with noise: judge its divergence against the noised reference. One "
    "trained on labels of a learnt kernel aims at the clean density.",
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
    sections = [
        _table(axes, groups),
        *_together(groups),
        *_frames_needed(groups),
        *([_pictures(groups)] if groups else []),
    ]
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
        lines = _lines(name, groups)
        if not lines:
            continue
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
                    for label, some in lines.items()
                ),
                logarithmic and all(one.mean(name) > 0 for some in lines.values() for one in some),
            )
        )
    caption = "Means over repeats; bars are one standard deviation of single models."
    image = figures.lines_over_frames(panels, by_size)
    return Section("Against the frames trained on", figures=(Figure("Against the frames trained on", caption, image),))


def _together(groups: Sequence[Group]) -> list[Section]:
    """Errors of local and of global structure against each other; nothing where no group has both."""
    both = [group for group in groups if all(name in group.values for name in TOGETHER)]
    clouds, rows = [], []
    for n_frames in sorted({group.n_frames for group in both}, reverse=True):
        some = [group for group in both if group.n_frames == n_frames]
        points = tuple(
            figures.Point(
                _line(group, groups),
                *(group.mean(name) for name in TOGETHER),
                *(group.spread(name) or 0.0 for name in TOGETHER),
            )
            for group in some
        )
        front = tuple(pareto_front(np.array([(point.x, point.y) for point in points])).tolist())
        clouds.append(figures.Cloud(f"{count(n_frames)} frames", points, front))
        lost = f"{count(sum(one.n_diverged for one in some))} of {count(sum(one.n_replicas for one in some))}"
        rows.append((count(n_frames), ", ".join(points[place].label for place in front), lost))
    if not clouds:
        return []
    image = figures.errors_together(clouds, *(_title(name, groups) for name in TOGETHER))
    caption = "Means over repeats; bars are one standard deviation of single models. Lower left is better."
    words = "Models that no other one of as many frames beats in both errors are on the Pareto front."
    table = Table(("frames", "on the front", "replicas diverged, of all models"), tuple(rows))
    title = "Local and global structure"
    return [Section(title, words, tables=(table,), figures=(Figure(title, caption, image),))]


def pareto_front(errors: Float[np.ndarray, "model error"]) -> Int64[np.ndarray, "best"]:
    """The models that no other has both errors at most as large as, and one of them smaller; ascending."""
    no_worse = (errors[:, None] <= errors[None]).all(-1)
    better = (errors[:, None] < errors[None]).any(-1)
    return np.flatnonzero(~(no_worse & better).any(0))


def _lines(name: str, groups: Sequence[Group]) -> dict[str, list[Group]]:
    """The groups that have a figure, by what names their line, with growing numbers of frames."""
    lines: dict[str, list[Group]] = {}
    for group in sorted((one for one in groups if name in one.values), key=lambda one: one.n_frames):
        lines.setdefault(_line(group, groups), []).append(group)
    order = [_line(group, groups) for group in groups]
    return dict(sorted(lines.items(), key=lambda line: order.index(line[0])))


def _frames_needed(groups: Sequence[Group]) -> list[Section]:
    """How many frames each other line needs for the force error of the first one; nothing where lines are too short."""
    lines = _lines(NEEDED_FOR, groups)
    long = {label: some for label, some in lines.items() if len(some) > 1}
    if len(long) < 2 or next(iter(long)) != next(iter(lines)):
        return []
    (reference, wanted), *others = long.items()
    rows = []
    for one in wanted:
        error = one.mean(NEEDED_FOR)
        cells = (_needed(some, error, one.n_frames) for _, some in others)
        rows.append((f"{reference}, {count(one.n_frames)}", with_error(error, one.spread(NEEDED_FOR)), *cells))
    header = (reference + ", frames", _title(NEEDED_FOR, groups), *(label for label, _ in others))
    words = (
        f"Frames that are needed for the {NEEDED_FOR} of {reference} on so many frames, errors interpolated as power "
        "laws; how many times fewer in brackets."
    )
    return [Section("Frames needed", words, tables=(Table(header, tuple(rows)),))]


def _needed(line: Sequence[Group], error: float, n_frames: int) -> str:
    """In words, the frames at which a line has an error."""
    needed = frames_at(
        np.array([one.n_frames for one in line], np.float64), np.array([one.mean(NEEDED_FOR) for one in line]), error
    )
    if needed is None:
        least = line[0].mean(NEEDED_FOR) <= error
        return f"fewer than {count(line[0].n_frames)}" if least else f"more than {count(line[-1].n_frames)}"
    return f"{count(round(needed))} ({significant(n_frames / needed, 2)} ×)"


def frames_at(frames: Float[np.ndarray, "size"], errors: Float[np.ndarray, "size"], error: float) -> float | None:
    """The fewest frames with an error, between sizes along a power law; None where no size is on either side of it.

    frames   growing, above zero
    """
    above = errors > error
    falls = np.flatnonzero(above[:-1] & ~above[1:])
    if above[0] and len(falls):
        first = falls[0]
        logarithms = np.log(frames[first : first + 2]), np.log(errors[first : first + 2])
        part = (np.log(error) - logarithms[1][0]) / (logarithms[1][1] - logarithms[1][0])
        return float(np.exp(logarithms[0][0] + part * (logarithms[0][1] - logarithms[0][0])))
    return None


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
