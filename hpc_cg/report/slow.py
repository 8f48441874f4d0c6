"""What the page says of slow motion, by the summary and the arrays that ``stages/slow.py`` makes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hpc_cg.report import figures
from hpc_cg.report.page import Figure, Section
from hpc_cg.report.tables import NOTHING, Table, count, significant, with_error


def section(found: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Section:
    """Relaxation times of the reference's slow components, timescales of both, free energies over two components.

    found   lags, and where there are slow components what they stand on and what was found
    """
    if "features" not in found:
        text = f"There are too few frames for slow components at a lag of {found['lag_ps']:g} ps; see what is left out."
        return Section("Slow motion", text=text)
    components = tuple(
        (str(number), NOTHING if time is None else significant(time, 3))
        for number, time in enumerate(found["relaxation_ps"], start=1)
    )
    tables = [Table(("slow component", "relaxation time in the reference (ps)"), components)]
    if found["processes"]:
        tables.append(_timescales(found["processes"]))
    picture = _figure(arrays)
    text = (
        f"Slow components are those of the reference, by TICA on {count(found['features'])} distances and dihedrals "
        f"over {count(found['pairs'])} pairs of frames {found['lag_ps']:g} ps apart; both ensembles are laid on them. "
        f"{_times(found)}"
    )
    if picture is None:
        text += " No frame of the model lies within the reference's range of the two slowest."
    return Section("Slow motion", text=text, tables=tuple(tables), figures=() if picture is None else (picture,))


def _timescales(processes: Sequence[Mapping[str, Any]]) -> Table:
    rows = tuple(
        (
            str(number),
            *(with_error(*one[of]) for of in ("reference", "model", "ratio")),
            significant(one["overlap"], 3),
        )
        for number, one in enumerate(processes, start=1)
    )
    header = ("process", "reference (ps)", "model (ps)", "time of reference over time of model", "overlap")
    return Table(header, rows)


def _times(found: Mapping[str, Any]) -> str:
    if not found["states"]:
        return "No Markov models were asked for, which timescales of the model come from."
    if found["common"] is None:
        return "Markov models gave no timescales for both; see what is left out."
    text = (
        f"Timescales are those of Markov models on {found['states']} states of the reference, at a lag of "
        f"{found['lag_ps']:g} ps in the reference and {found['model_lag_ps']:g} ps in the model, which has not the "
        "molecule's friction. An overlap of 1 says that both processes are the same motion."
    )
    if found["misfit"] is None:
        return text
    return (
        f"{text} One factor for all processes would be {with_error(*found['common'])}; the mean square distance of "
        f"the ratios from it is {significant(found['misfit'], 3)} in their errors, and far above 1 there is no one "
        "factor."
    )


def _figure(arrays: Mapping[str, np.ndarray]) -> Figure | None:
    reference, model = arrays["slow_reference"], arrays["slow_model"]
    if not (reference[1:-1, 1:-1].any() and model[1:-1, 1:-1].any()):
        return None
    image = figures.slow_pair(reference, model, arrays["slow_edges"])
    caption = (
        "Free energy over the two slowest components of the reference, within its range, and the difference where "
        "both have frames."
    )
    return Figure("Free energy over slow components", caption, image)
