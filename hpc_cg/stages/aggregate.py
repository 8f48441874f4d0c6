"""Stage aggregate: judge the simulated ensemble against the archive, each figure beside its floor.

The reference is every usable frame of the store that fits in train.memory_limit_gb, clean: of a larger store, chunks
evenly spread over it, and the estimates say how many frames of how many. Where the kernel adds noise the model aims at
the noised density, so it is judged against that as well. Forces are checked without any simulation by integrating them
along ψ. Slow motion and whole structures are judged where ``slow_lag_ps`` asks for it (stages/slow.py).
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from hpc_cg import errors
from hpc_cg.config import STRICT
from hpc_cg.files import digest, read_json, write_arrays, write_json
from hpc_cg.share import Team
from hpc_cg.stages import backmapping, slow
from hpc_cg.stages.molecules import Place
from hpc_cg.stages.progress import Heartbeat

if TYPE_CHECKING:
    from hpc_cg.analysis.comparison import Comparison
    from hpc_cg.analysis.integration import PsiIntegration
    from hpc_cg.analysis.sample import Sample
    from hpc_cg.beads import BeadSystem
    from hpc_cg.learning.labels import Labels
    from hpc_cg.stages.study import Study
    from hpc_cg.store.dataset import StoreFrames

BESIDE: frozenset[str] = frozenset()
"""Every setting decides the estimates."""

FORCE_BATCH = 2048
LABEL_BATCH = 65_536


@dataclass(frozen=True, config=STRICT)
class AggregateConfig:
    """The table [aggregate].

    discard_fraction   beginning of each replica that is left out
    bins               bins per axis of the (φ, ψ) histograms, two of them for outliers
    block_ps           length of the reference's blocks in the bootstrap
    resamples          bootstrap draws
    backmap_frames     frames of the ensemble, and as many of the reference, whose atoms are rebuilt and minimised for
                       their energies; 0 for none
    slow_lag_ps        lag of the slow components, fitted on the reference (TICA); 0 to look at no slow motion
    slow_model_lag_ps  lag of the ensemble's Markov model; 0 for slow_lag_ps
    slow_states        states of the Markov models that give timescales; 0 for none
    slow_processes     slowest processes whose timescales are told
    folded_pdb         file of the folded structure, for the RMSD to it; empty for none
    contact_nm         beads nearer than this are in contact
    """

    discard_fraction: float = Field(default=0.1, ge=0, lt=1)
    bins: int = Field(default=64, ge=4)
    block_ps: float = Field(default=100.0, gt=0)
    resamples: int = Field(default=100, ge=10)
    backmap_frames: int = Field(default=0, ge=0)
    slow_lag_ps: float = Field(default=0.0, ge=0)
    slow_model_lag_ps: float = Field(default=0.0, ge=0)
    slow_states: int = Field(default=0, ge=0)
    slow_processes: int = Field(default=2, ge=1)
    folded_pdb: str = ""
    contact_nm: float = Field(default=1.0, gt=0)
    seed: int = Field(default=1, ge=0)

    @model_validator(mode="after")
    def _slow(self) -> "AggregateConfig":
        if not self.slow_lag_ps:
            for name in ("slow_model_lag_ps", "slow_states", "folded_pdb"):
                if getattr(self, name):
                    raise ValueError(f"{name} = {getattr(self, name)!r} does nothing with slow_lag_ps = 0: set a lag.")
        if self.slow_states and self.slow_states <= self.slow_processes:
            raise ValueError(
                f"slow_states = {self.slow_states} have at most {self.slow_states - 1} processes, and slow_processes = "
                f"{self.slow_processes} are asked for: ask for more states, or 0 for no timescales."
            )
        return self


def work(study: "Study", team: Team, progress: Heartbeat) -> None:
    """Compare, integrate, and keep numbers and arrays for the report; one member does it all."""
    from hpc_cg.learning.labels import Labels, label_source
    from hpc_cg.store.dataset import load
    from hpc_cg.store.layout import STORE
    from hpc_cg.store.writer import epoch_sums

    if team.share.index != 0:
        return
    config: AggregateConfig = study.tables["aggregate"]
    source = label_source(study.folder("prepare"), study.folder("kernel"), study.molecule)
    limit_gb = study.tables["train"].memory_limit_gb
    frames = load(source.store, study.molecule, limit_gb, part=True)
    labels, spec = Labels(frames, source.kernel, config.seed), source.spec
    if "flow" in study.tables:  # the frames that labels were drawn from may be few, and each there often
        frames = load(study.folder("prepare") / STORE, study.molecule, limit_gb, part=True)
    sizes = {"reference": frames.n_frames, "archive": int(epoch_sums(source.store, spec).counts.sum())}
    clean, noised = reference_samples(study, frames, labels)
    kept = kept_positions(study)
    model = model_sample(kept)
    against = "drawn" if "flow" in study.tables else "noised"
    target = noised if against == "noised" else None  # a learnt kernel aims at the clean density
    samples = {"reference": clean, "model": model} | ({} if target is None else {"noised": target})
    atoms = backmapping.backmapped(study, frames, samples, progress) if config.backmap_frames else None
    moving = None
    if config.slow_lag_ps:
        progress("judging slow motion", 0, 1, "parts")
        moving = slow.slow_motion(study, spec.system, frames, clean, model, slow.model_timeline(_whole(kept)))
    del kept
    steps = 3 if noised is not None else 2
    progress("comparing with the reference", 0, steps, "parts")
    comparisons = {"clean": _compare(config, clean, model, spec.system)}
    if noised is not None:
        progress(f"comparing with the {against} reference", 1, steps, "parts")
        comparisons[against] = _compare(config, noised, model, spec.system)
    progress("integrating forces", steps - 1, steps, "parts")
    integrations, left_out = integrate(study, labels, spec.system, blocks_of(study, labels.frames))
    judged = [row for name, found in comparisons.items() for row in _rows(name, found)] + lost_rows(study)
    judged += [] if moving is None else _rows("clean", moving.comparison)
    folder = study.folder("aggregate")
    write_json(
        folder / "estimates.json",
        {
            "sizes": sizes | {"model": len(model.positions), "bins": config.bins},
            "estimates": judged + ([] if atoms is None else [*atoms.rows]),
            "integration": {
                name: {key: value for key, value in asdict(result).items() if isinstance(value, float)}
                for name, result in integrations.items()
            },
            "left_out": [
                *left_out,
                *(text for found in comparisons.values() for text in found.left_out),
                *(() if atoms is None else atoms.left_out),
                *(() if moving is None else moving.comparison.left_out),
            ],
        }
        | ({} if atoms is None else {"backmap": atoms.samples})
        | ({} if moving is None else {"slow": moving.summary}),
    )
    arrays = _figures(config, study, clean, target, model, spec.system, integrations)
    arrays |= ({} if atoms is None else atoms.arrays) | ({} if moving is None else moving.arrays)
    write_arrays(folder / "figures.npz", **arrays)
    progress("integrating forces", steps, steps, "parts")


def reference_samples(study: "Study", frames: "StoreFrames", labels: "Labels") -> "tuple[Sample, Sample | None]":
    """All usable frames of the archive or a part evenly spread; and where labels are, if that is elsewhere.

    Positions stay float32, what is measured on them is float64.
    """
    from hpc_cg.analysis.sample import Sample

    clean = Sample(frames.positions, frames.weights.astype(np.float64), blocks_of(study, frames))
    labelled = labels.frames
    if labels.kernel is None and labelled.noise is None:
        return clean, None
    drawn = np.empty_like(labelled.positions)
    for part in labels.batches(np.arange(labelled.n_frames), "noised reference", 0, LABEL_BATCH):
        drawn[part.index] = part.positions
    return clean, Sample(drawn, labelled.weights.astype(np.float64), blocks_of(study, labelled))


def blocks_of(study: "Study", frames: "StoreFrames") -> np.ndarray:
    """The block of trajectory that each frame is in, for errors."""
    from hpc_cg.analysis.estimate import contiguous_blocks
    from hpc_cg.archive.catalogue import Catalogue

    config: AggregateConfig = study.tables["aggregate"]
    stride_ps = Catalogue(Place(study.folder("prepare"), study.molecule).index)[0].stride_ps
    lengths = np.bincount(frames.segment).tolist()
    return contiguous_blocks(lengths, max(1, round(config.block_ps / stride_ps)))


def kept_positions(study: "Study") -> np.ndarray:
    """The ensemble at the study's temperature, (replica frame bead 3), after the discarded beginning.

    Where replicas trade temperatures, each ladder is one: its frames are those of whichever replica is there.
    """
    import zarr

    from hpc_cg.simulate.recorder import ENSEMBLE

    config: AggregateConfig = study.tables["aggregate"]
    stored = zarr.open_array(study.folder("simulate") / ENSEMBLE, path="positions", mode="r")
    positions = _at_the_temperature(study, np.asarray(stored[:]))
    return positions[:, int(config.discard_fraction * positions.shape[1]) :]


def _whole(kept: np.ndarray) -> np.ndarray:
    """(replica frame) Which frames are there: those of a quarantined replica are not."""
    return np.isfinite(kept).all(axis=(2, 3))


def model_sample(kept: np.ndarray) -> "Sample":
    """The frames that are there of (replica frame bead 3); each replica is a block. Raises TooFewFrames."""
    from hpc_cg.analysis.sample import Sample

    whole = _whole(kept)
    if not whole.any():
        raise errors.TooFewFrames(
            "frames of the model", "none: every replica was lost", "train longer or on more frames"
        )
    _, blocks = np.unique(np.nonzero(whole)[0], return_inverse=True)
    return Sample(kept[whole], np.ones(int(whole.sum())), blocks)


def _at_the_temperature(study: "Study", values: np.ndarray) -> np.ndarray:
    """Of (replica, frame, ...) what belongs to the study's temperature: a row for each ladder, or each replica."""
    import zarr

    from hpc_cg.simulate.exchange import on_rung
    from hpc_cg.simulate.recorder import ENSEMBLE

    simulate = study.tables["simulate"]
    rungs = np.asarray(zarr.open_array(study.folder("simulate") / ENSEMBLE, path="rungs", mode="r")[:])
    return on_rung(values, rungs, simulate.rung_of(study.study.temperature_K), simulate.n_rungs)


def lost_rows(study: "Study") -> list[dict[str, Any]]:
    """What the comparison cannot see: the share of simulated time after which replicas were taken out, by reason.

    Every simulated replica counts, at the study's temperature; each is one block of the error, or each ladder.
    """
    from hpc_cg.analysis.estimate import replica_blocks, share_estimate
    from hpc_cg.simulate.recorder import REASONS

    config: AggregateConfig = study.tables["aggregate"]
    simulate = study.tables["simulate"]
    n_frames = simulate.n_blocks * simulate.block_steps // simulate.save_steps
    first = int(config.discard_fraction * n_frames)
    end = (np.arange(n_frames) + 1) * simulate.save_steps
    quarantine = read_json(study.folder("simulate") / "quarantine.json")
    rows = []
    for reason in REASONS:
        lost = np.zeros((simulate.n_replicas, n_frames), dtype=bool)
        for row in quarantine:
            if row["reason"] == reason:
                lost[row["replica"]] = end >= row["step"]
        unseen = _at_the_temperature(study, lost)[:, first:]
        share = share_estimate(unseen.ravel(), replica_blocks(*unseen.shape), f"replica time lost, {reason}")
        rows.append(asdict(share) | {"against": "clean", "floor": None, "excess": None})
    return rows


def integrate(
    study: "Study", labels: "Labels", system: "BeadSystem", blocks: np.ndarray
) -> "tuple[dict[str, PsiIntegration], list[str]]":
    """Free energy along ψ from the labels and from the trained force field, on the same frames."""
    import torch

    from hpc_cg.analysis.integration import psi_integration
    from hpc_cg.forcefield.evaluator import evaluator
    from hpc_cg.learning.checkpoint import load_forcefield

    forcefield, _ = load_forcefield(study.folder("train"), study.molecule)
    evaluate = evaluator(forcefield, tabulated=False)
    frames = labels.frames
    positions, labelled, predicted = (np.empty_like(frames.positions) for _ in range(3))
    for part in labels.batches(np.arange(frames.n_frames), "integration", 0, FORCE_BATCH):
        positions[part.index], labelled[part.index] = part.positions, part.forces
        predicted[part.index] = evaluate(torch.from_numpy(part.positions)).forces.numpy()
    results, left_out = {}, []
    for name, forces in (("labels", labelled), ("network", predicted)):
        try:
            results[name] = psi_integration(
                positions,
                forces,
                system,
                study.study.temperature_K,
                weights=frames.weights.astype(np.float64),
                blocks=blocks,
            )
        except (errors.TooFewFrames, errors.UnknownBeads) as error:
            left_out.append(f"integration of the {name} along ψ: {error}")
    return results, left_out


def _compare(config: AggregateConfig, reference: "Sample", model: "Sample", system: "BeadSystem") -> "Comparison":
    from hpc_cg.analysis.comparison import compare

    return compare(reference, model, system, config.seed, config.bins, config.resamples)


def _rows(against: str, comparison: "Comparison") -> list[dict[str, Any]]:
    rows = []
    for judged in comparison.judged:
        floor = None if judged.floor is None else asdict(judged.floor)
        rows.append(asdict(judged.estimate) | {"against": against, "floor": floor, "excess": judged.excess})
    return rows


def _figures(
    config: AggregateConfig,
    study: "Study",
    clean: "Sample",
    noised: "Sample | None",
    model: "Sample",
    system: "BeadSystem",
    integrations: "dict[str, PsiIntegration]",
) -> dict[str, np.ndarray]:
    """The arrays that the report draws: histograms on common edges, the replicas in time, the integrations."""
    import zarr

    from hpc_cg.analysis import features, landscape, marginals
    from hpc_cg.simulate.recorder import ENSEMBLE

    arrays: dict[str, np.ndarray] = {}
    samples = {"reference": clean, "model": model} | ({} if noised is None else {"noised": noised})
    for kind, measure in (("bond", marginals.bond_marginals), ("angle", marginals.angle_marginals)):
        for number, one in enumerate(measure(clean, model, system, noised)):
            arrays[f"{kind}_{number}_edges"] = one.reference.edges
            for name in samples:
                arrays[f"{kind}_{number}_{name}"] = getattr(one, name).density
    for name, result in integrations.items():
        arrays |= {f"integration_{name}_{key}": np.asarray(value) for key, value in asdict(result).items()}
    residues = features.backbones(system)
    if residues:
        for name, sample in samples.items():
            phi, psi = (features.dihedral(sample.positions, q) for q in (residues[0].phi, residues[0].psi))
            arrays[f"surface_{name}"] = landscape.histogram(phi, psi, landscape.Grid(config.bins), sample.weights)
        ensemble = np.asarray(zarr.open_array(study.folder("simulate") / ENSEMBLE, path="positions", mode="r")[:])
        flat = ensemble.reshape(-1, *ensemble.shape[2:])
        traces = features.dihedral(flat, residues[0].psi).reshape(ensemble.shape[:2])
        arrays["replica_psi"] = np.degrees(np.where(np.isfinite(ensemble[:, :, 0, 0]), traces, np.nan))
    return arrays


def finish(study: "Study") -> tuple[str, dict[str, Any]]:
    """Digest of the estimates, and the ones a person looks for first."""
    content = read_json(study.folder("aggregate") / "estimates.json")
    wanted = {"JS divergence φ, ψ": "JS", "free-energy error φ, ψ, root": "PMF error (kT)"}
    summary = {
        short: row["value"]
        for row in content["estimates"]
        for label, short in wanted.items()
        if row["label"] == label and row["against"] == "clean"
    }
    return digest(content), {"model_frames": content["sizes"]["model"]} | summary
