"""The pictures of a campaign's page: figures over frames trained on, and errors against each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from hpc_cg.report.drawing import GREY, MODEL, NOISED, REFERENCE, WARNING, WIDTH, legend, readable_log, style, svg


@dataclass(frozen=True)
class Line:
    """A figure against the number of frames trained on, with the spread of each point."""

    label: str
    n_frames: Float[np.ndarray, "point"]
    value: Float[np.ndarray, "point"]
    spread: Float[np.ndarray, "point"]


@dataclass(frozen=True)
class Panel:
    """One figure of a campaign: what it is, with its unit, and a line for each kind of model."""

    quantity: str
    lines: tuple[Line, ...]
    logarithmic: bool = False


@dataclass(frozen=True)
class Point:
    """Two errors of one kind of model, each with its spread."""

    label: str
    x: float
    y: float
    x_spread: float = 0.0
    y_spread: float = 0.0


@dataclass(frozen=True)
class Cloud:
    """The kinds of models that are compared with one another, and the places of those that none of them dominates."""

    title: str
    points: tuple[Point, ...]
    front: tuple[int, ...]


def lines_over_frames(panels: Sequence[Panel], by_size: bool = True) -> bytes:
    """Figures of a campaign against the frames trained on, two panels in a row; SVG.

    by_size   False where all were trained on the same number: then the kinds stand side by side
    """
    n_rows = -(-len(panels) // 2)
    labels = list(dict.fromkeys(line.label for panel in panels for line in panel.lines))
    with style():
        figure = Figure(figsize=(WIDTH, 0.6 + 2.6 * n_rows), layout="constrained")
        axes = figure.subplots(n_rows, 2, squeeze=False).ravel()
        for ax, panel in zip(axes, panels, strict=False):
            for line in panel.lines:
                number = labels.index(line.label)
                # side by side, so that bars of equal sizes do not lie on one another
                x = line.n_frames * 1.06 ** (number - len(labels) / 2) if by_size else np.full(len(line.value), number)
                ax.errorbar(
                    x, line.value, line.spread, ls="-" if by_size else "none", ms=4, capsize=2.5, lw=1.2,
                    label=line.label, **_look(number),
                )  # fmt: skip
            if panel.logarithmic:
                ax.set_yscale("log")
                readable_log(ax)
                ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
                ax.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
            elif min(line.value.min() for line in panel.lines) < 0:
                ax.axhline(0, color=GREY, lw=0.8, zorder=0)
            if by_size:
                ax.set_xscale("log")
                ax.set_xlabel("frames trained on")
            else:
                ax.set_xticks([])
            ax.set_ylabel(panel.quantity)
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        legend(figure, *axes[: len(panels)], columns=4)
        return svg(figure)


def errors_together(clouds: Sequence[Cloud], x_quantity: str, y_quantity: str) -> bytes:
    """Two errors of all models of a campaign, a panel for each cloud, with the front of the best compromises; SVG."""
    columns = min(3, len(clouds))
    n_rows = -(-len(clouds) // columns)
    labels = list(dict.fromkeys(point.label for cloud in clouds for point in cloud.points))
    with style():
        figure = Figure(figsize=(WIDTH, 1.2 + 3.0 * n_rows), layout="constrained")
        axes = figure.subplots(n_rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for ax, cloud in zip(axes, clouds, strict=False):
            best = sorted((cloud.points[place].x, cloud.points[place].y) for place in cloud.front)
            if len(best) > 1:
                ax.step(*zip(*best, strict=True), where="post", color=GREY, lw=0.9, zorder=0, label="Pareto front")
            for one in cloud.points:
                ax.errorbar(
                    one.x, one.y, one.y_spread, one.x_spread, ls="none", ms=5.5, capsize=2.5, lw=1.2, label=one.label,
                    **_look(labels.index(one.label)),
                )  # fmt: skip
            ax.set_title(cloud.title)
            ax.set_xscale("log")
            ax.set_yscale("log")
            ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        low, high = axes[0].get_ylim()
        if high / low < 30:
            axes[0].yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 3, 5, 7)))
        axes[0].yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes[0].yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        for ax in axes[len(clouds) :]:
            ax.set_visible(False)
        figure.supxlabel(x_quantity, fontsize=9.5)
        figure.supylabel(y_quantity, fontsize=9.5)
        legend(figure, *axes[: len(clouds)], columns=4)
        return svg(figure)


def _look(number: int) -> dict[str, Any]:
    """The colour and marker of a kind of model by its number in the legend."""
    colours = (REFERENCE, MODEL, WARNING, "#009E73", "#CC79A7", NOISED)
    return {"color": colours[number % len(colours)], "marker": "os^Dv"[number // len(colours) % 5]}
