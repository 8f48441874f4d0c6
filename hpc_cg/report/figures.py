"""The pictures of a study's report, from plain arrays to bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator

from hpc_cg.analysis.integration import PsiIntegration
from hpc_cg.analysis.landscape import ANGLE_GRID, Grid, free_energy
from hpc_cg.analysis.marginals import Marginal
from hpc_cg.forcefield.histograms import Evidence
from hpc_cg.report.drawing import GREY, MODEL, NOISED, REFERENCE, WARNING, WIDTH, legend, png, readable_log, style, svg


@dataclass(frozen=True)
class LearningCurve:
    """A training run: mean squares in (kJ/mol/nm)², learning rate; noise_floor where it is known."""

    label: str
    step: Float[np.ndarray, "step"]
    training: Float[np.ndarray, "step"]
    learning_rate: Float[np.ndarray, "step"]
    validation_step: Float[np.ndarray, "check"]
    validation: Float[np.ndarray, "check"]
    noise_floor: float | None = None


@dataclass(frozen=True)
class Stop:
    """Where a replica was taken out: its row, the time in ps, and why."""

    replica: int
    time_ps: float
    reason: str


def free_energy_pair(
    reference: Float[np.ndarray, "bin bin"],
    model: Float[np.ndarray, "bin bin"],
    noised: Float[np.ndarray, "bin bin"] | None = None,
    grid: Grid = ANGLE_GRID,
    limit_kT: float | None = None,
    names: tuple[str, str, str] | None = None,
) -> bytes:
    """Free energies of φ and ψ side by side on one scale, and their difference; PNG.

    The arguments are (weighted) counts of ``landscape.histogram``; ``noised`` is the reference with the
    kernel's noise, and where it is given the difference is to it. Bins without frames stay white. The scale
    ends at ``limit_kT``, or at the highest free energy there is. With ``names`` of reference, noised and model the
    difference is to the reference in any case.
    """
    target = reference if noised is None or names is not None else noised
    first, second, third = names or ("Reference", "Reference with noise", "Model")
    surfaces = [(first, reference), (second, noised), (third, model)]
    maps = [(title, free_energy(counts)) for title, counts in surfaces if counts is not None]
    name = f"{third} − {first.lower() if target is reference else 'with noise'}"
    edges = np.degrees(grid.edges)
    plane = _Plane((edges, edges), ("φ (degrees)", "ψ (degrees)"), limit_kT, angles=True)
    return _surfaces(plane, maps, (name, free_energy_shift(target, model)))


def slow_pair(
    reference: Float[np.ndarray, "bin bin"], model: Float[np.ndarray, "bin bin"], edges: Float[np.ndarray, "2 edge"]
) -> bytes:
    """Free energies over the two slowest components side by side on one scale, and their difference; PNG.

    The arguments are (weighted) counts with outlier bins around them, and the edges of the others along each component,
    in standard deviations of the reference. Bins without frames stay white. Raises TooFewFrames where one has none.
    """
    maps = [(title, free_energy(counts)) for title, counts in (("Reference", reference), ("Model", model))]
    labels = tuple(f"{which} component (st. dev.)" for which in ("slowest", "second"))
    plane = _Plane((edges[0], edges[1]), (labels[0], labels[1]))
    return _surfaces(plane, maps, ("Model − reference", free_energy_shift(reference, model)))


def free_energy_shift(
    reference: Float[np.ndarray, "bin bin"], model: Float[np.ndarray, "bin bin"]
) -> Float[np.ndarray, "inner inner"]:
    """-ln of the ratio of probabilities in each bin, in kT; NaN where either is empty."""
    p, q = (counts[1:-1, 1:-1] / counts.sum() for counts in (reference, model))
    both = (p > 0) & (q > 0)
    shift = np.full(p.shape, np.nan)
    shift[both] = np.log(p[both] / q[both])
    return shift


def bond_histograms(panels: Sequence[Marginal]) -> bytes:
    """Bond lengths of the model and the reference, one small picture per bond; edges in nm; SVG."""
    return _small_multiples(panels, "bond length (nm)", "density (1/nm)", 1.0)


def angle_histograms(panels: Sequence[Marginal]) -> bytes:
    """Angles, one small picture each; edges in rad, shown in degrees; SVG."""
    return _small_multiples(panels, "angle (degrees)", "density (1/degree)", 180 / np.pi)


def energy_histograms(panel: Marginal) -> bytes:
    """Energies of the model's frames and of the reference's in one picture; edges in kJ/mol; SVG."""
    with style():
        figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        ax = figure.subplots()
        _densities(ax, panel, 1.0)
        ax.set(xlabel="energy after minimising (kJ/mol)", ylabel="density (mol/kJ)", ylim=(0, None))
        legend(figure, ax)
        return svg(figure)


def learning_curves(curves: Sequence[LearningCurve]) -> bytes:
    """Training and validation mean squares with the noise floor, and the learning rate below; SVG."""
    with style():
        figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        colours = (MODEL, "#009E73", "#CC79A7", NOISED, GREY)
        for i, curve in enumerate(curves):
            colour = colours[i % len(colours)]
            top.plot(curve.step, curve.training, color=colour, alpha=0.35, lw=0.8, label="training")
            name = f"validation, {curve.label}" if len(curves) > 1 else "validation"
            mark = "o" if len(curve.validation) < 60 else ""
            top.plot(curve.validation_step, curve.validation, mark, ls="-", ms=3, color=colour, label=name)
            if curve.noise_floor is not None:
                top.axhline(curve.noise_floor, color=WARNING, lw=1, ls="--", label="noise floor")
            bottom.plot(curve.step, curve.learning_rate, color=colour)
        top.set_yscale("log")
        readable_log(top)
        top.set_ylabel("mean square (kJ/mol/nm)²")
        legend(figure, top)
        bottom.set(xlabel="step", ylabel="learning rate")
        if all((curve.learning_rate > 0).all() for curve in curves):
            bottom.set_yscale("log")
        return svg(figure)


def replicas_over_time(
    time_ps: Float[np.ndarray, "frame"],
    values: Float[np.ndarray, "replica frame"],
    quantity: str,
    cyclic: bool = False,
    stopped: Sequence[Stop] = (),
) -> bytes:
    """One line of colour per replica; hatched where it no longer ran, a cross where it was taken out; PNG.

    quantity   with its unit, e.g. "ψ (degrees)"; ``cyclic`` for one in degrees that closes at ±180
    """
    n_replicas = len(values)
    with style():
        figure = Figure(figsize=(WIDTH, float(np.clip(0.9 + 0.05 * n_replicas, 2.4, 6.0))), layout="constrained")
        ax = figure.subplots()
        ax.patch.set(facecolor="white", edgecolor=GREY, hatch="//////", lw=0)
        low, high = (-180.0, 180.0) if cyclic else _span(values)
        rows = np.arange(n_replicas + 1) - 0.5
        image = ax.pcolormesh(
            _time_edges(time_ps), rows, values, cmap="twilight" if cyclic else "viridis", vmin=low, vmax=high
        )
        for reason in sorted({stop.reason for stop in stopped}):
            mine = [stop for stop in stopped if stop.reason == reason]
            mark = "X" if reason == "diverged" else "D"
            ax.plot(
                [s.time_ps for s in mine], [s.replica for s in mine], mark, ms=7, mec="white", mew=0.8,
                color=WARNING, label=reason, clip_on=False,
            )  # fmt: skip
        ax.invert_yaxis()
        ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.set(xlabel="time (ps)", ylabel="replica")
        bar = figure.colorbar(image, ax=ax, label=quantity, pad=0.01, aspect=25)
        if cyclic:
            bar.locator = MultipleLocator(90)
            bar.update_ticks()
        legend(figure, ax)
        return png(figure)


def psi_integration(labels: PsiIntegration, network: PsiIntegration | None = None) -> bytes:
    """Mean force along ψ, and the free energy it integrates to beside that of the histogram; SVG.

    labels    from the labels that were trained on; ``network`` from the force field on the same frames
    The bands are one standard error wide on either side.
    """
    sources = [("labels", labels, MODEL)]
    sources += [] if network is None else [("force field", network, NOISED)]
    with style():
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for name, result, colour in sources:
            psi = np.degrees(result.centres)
            _band(left, psi, result.mean_force, result.mean_force_error, colour, name)
            _band(right, psi, result.free_energy, result.free_energy_error, colour, "")
        right.plot(np.degrees(labels.centres), labels.histogram, color=REFERENCE, label="histogram of the frames")
        left.axhline(0, color=GREY, lw=0.8, zorder=0)
        left.set(xlabel="ψ (degrees)", ylabel="mean force along ψ (kJ/mol/rad)")
        right.set(xlabel="ψ (degrees)", ylabel="free energy (kT)")
        for ax in (left, right):
            ax.xaxis.set_major_locator(MultipleLocator(30))
        legend(figure, left, right)
        return svg(figure)


def failed_fit(evidence: Evidence) -> bytes:
    """The histogram that no prior could be fitted to, with what was tried, and its tails on a log scale; PNG."""
    edges, counts = evidence.edges, evidence.counts
    density = counts / np.diff(edges) / max(float(counts.sum()), 1e-300)
    filled = np.flatnonzero(counts)
    span = (0, len(counts)) if not len(filled) else (max(filled[0] - 3, 0), min(filled[-1] + 4, len(counts)))
    top = float(density.max(initial=0.0)) or 1.0
    least = 0.3 * float(density[filled].min(initial=top))
    with style():
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for ax, floor in ((left, 0.0), (right, least)):
            ax.stairs(np.maximum(density, floor), edges, baseline=floor, fill=True, color=GREY, label="frames")
            if evidence.curve is not None:
                values, curve = evidence.curve
                ax.plot(values, curve / np.trapezoid(curve, values), color=WARNING, label="tried")
            ax.set(xlim=(edges[span[0]], edges[span[1]]), xlabel=evidence.quantity)
        left.set(title=evidence.label, ylabel="frames (normalised)", ylim=(0.0, 1.1 * top))
        right.set(title="the same, logarithmic", yscale="log", ylim=(least, 3 * top))
        if not len(filled):
            left.text(0.5, 0.5, "no frame with a number", transform=left.transAxes, ha="center", color=WARNING)
        legend(figure, left)
        return png(figure)


def _small_multiples(panels: Sequence[Marginal], xlabel: str, ylabel: str, factor: float) -> bytes:
    assert panels, "no coordinate to draw"
    columns = min(len(panels), 3 if len(panels) in (3, 5, 6, 9) else 4)
    n_rows = -(-len(panels) // columns)
    with style():
        figure = Figure(figsize=(WIDTH, 0.6 + 1.75 * n_rows), layout="constrained")
        axes = figure.subplots(n_rows, columns, squeeze=False).ravel()
        for ax, panel in zip(axes, panels, strict=False):
            _densities(ax, panel, factor)
            ax.set_title(panel.label)
            ax.set_ylim(bottom=0)
            ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            ax.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        figure.supxlabel(xlabel, fontsize=9.5)
        figure.supylabel(ylabel, fontsize=9.5)
        legend(figure, axes[0])
        return svg(figure)


def _densities(ax: Axes, panel: Marginal, factor: float) -> None:
    """The densities of one coordinate, that of the reference filled; edges in its unit times ``factor``."""
    kinds = (
        ("reference", panel.reference),
        ("reference with noise", panel.noised),
        ("model", panel.model),
    )
    colours = {"reference": REFERENCE, "reference with noise": NOISED, "model": MODEL}
    for name, density in kinds:
        if density is None:
            continue
        fill = name == "reference"
        ax.stairs(
            density.density / factor, density.edges * factor, label=name, fill=fill, lw=1.5,
            color="#cfd4d8" if fill else colours[name],
        )  # fmt: skip


@dataclass(frozen=True)
class _Plane:
    """Edges of the cells along both axes, what the axes are, and where the scale ends (None: at the highest there is).

    angles   both axes are angles in degrees
    """

    edges: tuple[np.ndarray, np.ndarray]
    labels: tuple[str, str]
    limit_kT: float | None = None
    angles: bool = False


def _surfaces(plane: _Plane, maps: Sequence[tuple[str, np.ndarray]], difference: tuple[str, np.ndarray]) -> bytes:
    """Free energies side by side on one scale, and a difference, each with its title."""
    limit = plane.limit_kT
    top = float(np.ceil(max(np.nanmax(surface) for _, surface in maps))) if limit is None else limit
    with style():
        # square panels, and room for titles, labels and colour bars
        figure = Figure(figsize=(WIDTH, (WIDTH - 0.7) / (len(maps) + 1) + 1.5), layout="constrained")
        axes = figure.subplots(1, len(maps) + 1, sharex=True, sharey=True)
        for ax, (title, surface) in zip(axes, maps, strict=False):
            image = _surface(ax, surface, plane, title, "viridis", (0.0, max(top, 1.0)))
        change = _surface(axes[-1], difference[1], plane, difference[0], "RdBu_r", (-3.0, 3.0))
        axes[0].set_ylabel(plane.labels[1])
        bar: dict[str, Any] = {"orientation": "horizontal", "aspect": 38, "pad": 0.03}
        figure.colorbar(
            image,
            ax=axes[:-1],
            extend="neither" if limit is None else "max",
            label="free energy (kT)",
            shrink=0.6,
            **bar,
        )
        bar["aspect"] = 20
        figure.colorbar(change, ax=axes[-1], extend="both", label="difference (kT)", **bar)
        return png(figure)


def _surface(
    ax: Axes, surface: np.ndarray, plane: _Plane, title: str, colours: str, span: tuple[float, float]
) -> mpl.collections.QuadMesh:
    mesh = ax.pcolormesh(*plane.edges, surface.T, cmap=colours, vmin=span[0], vmax=span[1])
    ax.set(title=title, xlabel=plane.labels[0])
    if plane.angles:
        ax.set_aspect("equal")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MultipleLocator(120) if plane.angles else MaxNLocator(5))
    for side in ("top", "right"):
        ax.spines[side].set_visible(True)
    return mesh


def _band(ax: Axes, x: np.ndarray, y: np.ndarray, error: np.ndarray, colour: str, label: str) -> None:
    ax.fill_between(x, y - error, y + error, color=colour, alpha=0.22, lw=0)
    ax.plot(x, y, color=colour, label=label or None)


def _span(values: np.ndarray) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    return (float(np.quantile(known, 0.005)), float(np.quantile(known, 0.995))) if len(known) else (0.0, 1.0)


def _time_edges(time: np.ndarray) -> np.ndarray:
    half = (time[1] - time[0]) / 2 if len(time) > 1 else 0.5
    return np.append(time - half, time[-1] + half)
