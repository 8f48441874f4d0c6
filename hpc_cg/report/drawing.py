"""What all pictures share: colours, style, legends, and how they become bytes.

Line drawings are SVG, images PNG at twice the screen's resolution. The same arrays give the same bytes. Colours are
those of Okabe and Ito, which people with any colour vision tell apart; the reference is always black, the model blue.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

REFERENCE, MODEL, NOISED, WARNING, GREY = "#1c2126", "#0072B2", "#E69F00", "#D55E00", "#8a939b"
WIDTH = 9.2
"""Inches; a point is then as large on the page as the word says."""

STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#5a636c",
    "axes.linewidth": 0.8,
    "axes.labelcolor": REFERENCE,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "xtick.color": "#5a636c",
    "ytick.color": "#5a636c",
    "xtick.labelcolor": REFERENCE,
    "ytick.labelcolor": REFERENCE,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "hatch.linewidth": 0.5,
    "svg.hashsalt": "hpc-cg",
}


def legend(figure: Figure, *axes: Axes, columns: int = 5) -> None:
    """A legend above the axes, where no data is; each name once."""
    entries = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if entries:
        figure.legend(entries.values(), entries.keys(), loc="outside upper right", ncols=columns, borderaxespad=0.1)


def readable_log(ax: Axes) -> None:
    """Plain numbers on a logarithmic axis so short that powers of ten alone would leave no label."""
    low, high = ax.get_ylim()
    if high / low < 30:
        ax.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 3, 5, 7) if high / low > 3 else "all"))
        ax.yaxis.set_minor_locator(mpl.ticker.NullLocator())
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


@contextmanager
def style() -> Iterator[None]:
    with mpl.rc_context(STYLE):
        yield


def svg(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    target = io.BytesIO()
    figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    return target.getvalue()


def png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=192, metadata={"Software": None})
    return target.getvalue()
