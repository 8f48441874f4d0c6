"""Slow motion as a part of aggregate: the reference's slow components, and both ensembles laid on them.

Pairs of frames a lag apart come from whole segments of the archive and from whole replicas, never across a gap or a
frame that was quarantined. Segments whose frames are not evenly spaced in time are left out. Features are distances and
dihedrals of all beads, or of CA beads where there are more than MOST_BEADS.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from hpc_cg import errors
from hpc_cg.files import digest_content
from hpc_cg.stages import molecules
from hpc_cg.stages.molecules import Place

if TYPE_CHECKING:
    from hpc_cg.analysis.comparison import Comparison
    from hpc_cg.analysis.lagged import Timeline
    from hpc_cg.analysis.sample import Sample
    from hpc_cg.analysis.slow import Run, SlowComparison, SlowSettings
    from hpc_cg.beads import BeadSystem
    from hpc_cg.stages.study import Study
    from hpc_cg.store.dataset import StoreFrames

MOST_BEADS = 40
"""Beads whose distances are features: TICA takes the square of the features, of which there is one for each pair."""

MOST_COUNTS = 1 << 26
"""Numbers that histograms of distances may hold, of all blocks and pairs together: half a gigabyte."""


@dataclass(frozen=True)
class Found:
    """What the estimates, the page and the figures get.

    comparison   rows, all against the clean reference, and a sentence for each that could not be made
    summary      lags, features, relaxation times of the slow components, timescales and their ratios; for the page
    arrays       counts of both ensembles over the two slowest components, and the edges of the cells
    """

    comparison: "Comparison"
    summary: dict[str, Any]
    arrays: dict[str, np.ndarray]


def check(study: "Study") -> None:
    """Raise ConfigError where a study asks for slow motion that its simulation or its files cannot give."""
    config, simulate = study.tables["aggregate"], study.tables["simulate"]
    if not config.slow_lag_ps:
        return
    problems = []
    if simulate.n_rungs > 1:
        problems.append(
            f"aggregate.slow_lag_ps needs replicas that keep their temperature, and simulate.temperatures_K has a "
            f"ladder of {simulate.n_rungs}: set slow_lag_ps = 0, or simulate without replica exchange."
        )
    elif config.slow_states:
        problems += _unfit_lag(study)
    folded = _folded_path(study)
    if folded is not None and not folded.is_file():
        problems.append(f"aggregate.folded_pdb = {config.folded_pdb!r}: no file {folded}.")
    if problems:
        raise errors.ConfigError(study.path.name, problems)


def _unfit_lag(study: "Study") -> list[str]:
    """Why the ensemble has no pairs of frames at the lag of its Markov model; nothing where it has."""
    config, simulate = study.tables["aggregate"], study.tables["simulate"]
    try:
        lag = model_lag(study)
    except errors.UnfitLag as error:
        return [f"{error.asked} has no frames that far apart: simulate saves {error.found}; {error.change}."]
    n_frames = simulate.n_blocks * simulate.block_steps // simulate.save_steps
    kept = n_frames - int(config.discard_fraction * n_frames)
    if lag < kept:
        return []
    return [
        f"{_asked(study, model=True)} is {lag} frames, and replicas have {kept} once discard_fraction is left out: "
        "set aggregate.slow_model_lag_ps to less, or simulate longer."
    ]


def sources(study: "Study") -> dict[str, str]:
    """Digest of the file of the folded structure, where slow motion is judged by one."""
    path = _folded_path(study)
    if path is None or not study.tables["aggregate"].slow_lag_ps:
        return {}
    return {"folded_pdb": digest_content(path)} if path.is_file() else {}


def slow_motion(
    study: "Study", system: "BeadSystem", frames: "StoreFrames", clean: "Sample", model: "Sample", times: "Timeline"
) -> Found:
    """Judge an ensemble's slow motion.

    frames   of the store; ``clean`` is the same ones with their blocks
    times    replica and number of each frame of ``model``
    Raises UnfitLag for a lag that no segment has, AtomCountMismatch, TopologyMismatch and what reading raises for a
    folded structure of other beads.
    """
    from hpc_cg.analysis.comparison import Comparison
    from hpc_cg.analysis.slow import Run, compare_slow

    simulate = study.tables["simulate"]
    left_out: tuple[str, ...] = ()
    reference, n_uneven = reference_run(study, frames, clean)
    if n_uneven:
        left_out = (f"slow motion: frames of {n_uneven} segments, which are not evenly spaced in time",)
    settings = _settings(study, system, max(clean.n_blocks, model.n_blocks))
    lag = model_lag(study) if settings.n_states else 1
    try:
        found = compare_slow(reference, Run(model, times, simulate.save_ps, lag), settings)
    except errors.UnfitLag as error:
        raise errors.UnfitLag(f"{_asked(study)}, {error.asked}", error.found, error.change) from error
    except errors.TooFewFrames as error:
        return Found(Comparison((), (*left_out, f"slow motion: {error}")), _lags(study), {})
    comparison = Comparison(found.rows.judged, (*left_out, *found.rows.left_out))
    return Found(comparison, _summary(study, settings, reference, found), _planes(settings, reference, model, found))


def model_timeline(whole: Bool[np.ndarray, "replica frame"]) -> "Timeline":
    """Replica and number of each frame that is there, replica after replica."""
    from hpc_cg.analysis.lagged import Timeline

    return Timeline(*np.nonzero(whole))


def reference_run(study: "Study", frames: "StoreFrames", clean: "Sample") -> "tuple[Run, int]":
    """The reference's frames in evenly spaced segments, and the number of segments that are not.

    Raises UnfitLag where the lag is no whole number of frames.
    """
    from hpc_cg.analysis.lagged import Timeline
    from hpc_cg.analysis.sample import Sample
    from hpc_cg.analysis.slow import Run
    from hpc_cg.archive.catalogue import Catalogue
    from hpc_cg.store.pairs import lag_frames

    catalogue = Catalogue(Place(study.folder("prepare"), study.molecule).index)
    stride_ps = catalogue[0].stride_ps
    try:
        lag = lag_frames(study.tables["aggregate"].slow_lag_ps, stride_ps)
    except errors.UnfitLag as error:
        raise errors.UnfitLag(_asked(study), error.found, error.change) from error
    uneven = [number for number in np.unique(frames.segment).tolist() if not catalogue[number].even]
    sample, timeline = clean, Timeline(frames.segment, frames.frame_index)
    if uneven:
        even = ~np.isin(frames.segment, uneven)
        _, blocks = np.unique(clean.blocks[even], return_inverse=True)
        sample = Sample(clean.positions[even], clean.weights[even], blocks)
        timeline = Timeline(frames.segment[even], frames.frame_index[even])
    return Run(sample, timeline, stride_ps, lag), len(uneven)


def model_lag(study: "Study") -> int:
    """The lag of Markov models in frames of the ensemble; raises UnfitLag."""
    from hpc_cg.store.pairs import lag_frames

    config = study.tables["aggregate"]
    try:
        return lag_frames(config.slow_model_lag_ps or config.slow_lag_ps, study.tables["simulate"].save_ps)
    except errors.UnfitLag as error:
        raise errors.UnfitLag(_asked(study, model=True), error.found, error.change) from error


def looked_at(system: "BeadSystem") -> list[int]:
    """Beads whose distances are features: all, CA beads where these are too many, and of these some evenly spread."""
    beads = list(range(system.n_beads))
    if len(beads) <= MOST_BEADS:
        return beads
    alphas = [bead for bead in beads if system.names[bead].rpartition(":")[2] == "CA"]
    chosen = alphas if len(alphas) > 2 else beads
    return chosen[:: math.ceil(len(chosen) / MOST_BEADS)]


def distant(system: "BeadSystem", beads: Sequence[int], most: int) -> tuple[tuple[int, int], ...]:
    """Pairs that no bond and no angle holds; of more than ``most`` of them, some evenly spread."""
    held = {*system.bonds, *((first, last) for first, _, last in system.angles)}
    pairs = tuple(pair for pair in combinations(beads, 2) if pair not in held)
    return pairs[:: math.ceil(len(pairs) / most)] if pairs else ()


def _settings(study: "Study", system: "BeadSystem", n_blocks: int) -> "SlowSettings":
    from hpc_cg.analysis.choice import Choice
    from hpc_cg.analysis.distortion import N_BINS
    from hpc_cg.analysis.slow import SlowSettings

    config, beads = study.tables["aggregate"], looked_at(system)
    path = _folded_path(study)
    return SlowSettings(
        choice=Choice(tuple(combinations(beads, 2)), system.dihedrals),
        pairs=distant(system, beads, max(1, MOST_COUNTS // (n_blocks * N_BINS))),
        folded=None if path is None else read_folded(study, system, path),
        n_states=config.slow_states,
        n_processes=config.slow_processes,
        contact_nm=config.contact_nm,
        n_resamples=config.resamples,
        seed=config.seed,
    )


def _folded_path(study: "Study") -> Path | None:
    name = study.tables["aggregate"].folded_pdb
    return study.root / name if name else None


def read_folded(study: "Study", system: "BeadSystem", path: Path) -> Float[np.ndarray, "bead 3"]:
    """The beads of the first model in a PDB file, nm, mapped as the molecule is.

    Raises MissingInput, UnreadableFile, and AtomCountMismatch or TopologyMismatch where its beads are others. Residues
    may be numbered otherwise.
    """
    import mdtraj

    from hpc_cg.mapping import maps, topology

    (molecule,) = (one for one in molecules.molecules_of(study.tables["prepare"]) if one.name == study.molecule)
    known = topology.load_topology(path)
    positions = mdtraj.load(str(path)).xyz[0].astype(np.float64)
    asked = f"the folded structure {path} for the beads of {molecule.name}"
    if molecule.map == "identity":
        if len(positions) != system.n_beads:
            raise errors.AtomCountMismatch(
                asked, f"{len(positions)} atoms for {system.n_beads} beads", "give a file with an atom for each bead"
            )
        return positions
    if molecule.atoms != "all":
        chosen = topology.select(known, molecule.atoms)
        known, positions = known.subset(chosen), positions[chosen]
    matrix_file = study.root / molecule.map_file if molecule.map_file else None
    choice = maps.MapChoice(molecule.map, molecule.beads, molecule.selections, matrix_file, molecule.bead_types)
    coordinate, own = maps.coordinate_map(known, choice)
    if [_unnumbered(name) for name in own.names] != [_unnumbered(name) for name in system.names]:
        raise errors.TopologyMismatch(
            asked,
            f"the {own.n_beads} beads {_told(own.names)} instead of the {system.n_beads} beads {_told(system.names)}",
            "give the structure of this molecule, with the same residues and atom names",
        )
    return coordinate @ positions


def _unnumbered(name: str) -> str:
    """The label of a bead without the number of its residue."""
    return re.sub(r"\d+(?=:)", "", name)


def _told(names: Sequence[str]) -> str:
    return " ".join(names) if len(names) < 9 else " ".join((*names[:8], "..."))


def _asked(study: "Study", model: bool = False) -> str:
    config = study.tables["aggregate"]
    if model and config.slow_model_lag_ps:
        return f"aggregate.slow_model_lag_ps = {config.slow_model_lag_ps:g}"
    return f"aggregate.slow_lag_ps = {config.slow_lag_ps:g}" + (" of the ensemble" if model else "")


def _lags(study: "Study") -> dict[str, Any]:
    config = study.tables["aggregate"]
    return {"lag_ps": config.slow_lag_ps, "model_lag_ps": config.slow_model_lag_ps or config.slow_lag_ps}


def _summary(study: "Study", settings: "SlowSettings", reference: "Run", found: "SlowComparison") -> dict[str, Any]:
    told = {row.estimate.label: [row.estimate.value, row.estimate.error] for row in found.rows.judged}
    relaxation = (found.tica.timescales[: len(found.points[0].T)] * reference.stride_ps).tolist()
    scaling, processes = found.scaling, []
    if scaling is not None:
        for number, (ratio, overlap) in enumerate(zip(scaling.ratios, scaling.overlap, strict=True), start=1):
            times = {whose: told[f"implied timescale {number} of the {whose}"] for whose in ("reference", "model")}
            processes.append({**times, "ratio": [ratio.value, ratio.error], "overlap": overlap})
    return {
        **_lags(study),
        "features": settings.choice.n_features,
        "pairs": found.tica.n_pairs,
        "states": settings.n_states,
        "relaxation_ps": [time if math.isfinite(time) else None for time in relaxation],
        "processes": processes,
        "common": None if scaling is None else [scaling.common.value, scaling.common.error],
        "misfit": None if scaling is None else scaling.misfit,
    }


def _planes(
    settings: "SlowSettings", reference: "Run", model: "Sample", found: "SlowComparison"
) -> dict[str, np.ndarray]:
    from hpc_cg.analysis.slow import plane_cells, plane_edges

    n_bins, weights = settings.n_bins, reference.sample.weights
    cells = plane_cells(found.points[0], weights, list(found.points), n_bins)
    counts = [
        np.bincount(own, w, minlength=n_bins**2).reshape(n_bins, n_bins)
        for own, w in zip(cells, (weights, model.weights), strict=True)
    ]
    edges = plane_edges(found.points[0], weights, n_bins)
    return {"slow_reference": counts[0], "slow_model": counts[1], "slow_edges": edges}
