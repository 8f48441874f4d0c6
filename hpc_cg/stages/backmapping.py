"""Backmapped energies as a part of aggregate: frames of the ensemble and of the reference, treated alike.

Conformers come from every other block of the reference's trajectories (aggregate.block_ps), the reference frames that
are judged from the blocks between, so that none is rebuilt from itself or from a neighbour. The same conformers serve
the model's frames. Where there is noise on the frames that a model is trained on, the reference with noise is treated
as well.
"""

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_cg import errors
from hpc_cg.stages import molecules
from hpc_cg.stages.progress import Heartbeat

if TYPE_CHECKING:
    import mdtraj

    from hpc_cg.analysis.backmap import Backmapped
    from hpc_cg.analysis.comparison import Judged
    from hpc_cg.analysis.rebuild import Conformers
    from hpc_cg.analysis.sample import Sample
    from hpc_cg.stages.aggregate import AggregateConfig
    from hpc_cg.stages.planning import Planned
    from hpc_cg.stages.study import Study
    from hpc_cg.store.dataset import StoreFrames

CONFORMERS = 500
"""Frames of all atoms, spread over their blocks, that rebuilding starts from."""

BINS, TAIL = 40, 0.005
"""Of the histograms that are drawn; a few frames with large energies would hide the others."""

NO_SINGLE_ATOMS = ("identity", "com")
"""Maps whose beads never are single atoms, which is told before anything is computed."""


@dataclass(frozen=True)
class Found:
    """What the estimates, the page and the figures get.

    rows      of estimates.json; left_out has a sentence for each comparison that could not be made
    samples   frames, mean and width of each ensemble's energies (kJ/mol), and what was lost
    arrays    densities of the energies on common edges
    """

    rows: tuple[dict[str, Any], ...]
    left_out: tuple[str, ...]
    samples: dict[str, dict[str, int | float]]
    arrays: dict[str, np.ndarray]


def check(study: "Study") -> None:
    """Raise ConfigError where a study asks for backmapped energies of beads that are no atoms."""
    if not study.tables["aggregate"].backmap_frames:
        return
    name = study.molecule
    (chosen,) = (one for one in molecules.molecules_of(study.tables["prepare"]) if one.name == name)
    if chosen.map in NO_SINGLE_ATOMS:
        raise errors.ConfigError(
            study.path.name,
            [
                f'aggregate.backmap_frames needs beads that are single atoms, and map = "{chosen.map}" of {name} has '
                "none: set it to 0, or choose another map."
            ],
        )


def backmapped(
    study: "Study",
    frames: "StoreFrames",
    samples: "dict[str, Sample]",
    progress: Heartbeat,
) -> Found:
    """Rebuild, minimise and judge aggregate.backmap_frames frames of each sample.

    frames    of the store, whose atoms the conformers are
    samples   "reference", "model", and "noised" where there is noise; all but the model are frame by frame ``frames``
    Raises MissingExtra, InvalidMap, UnknownAtoms, TooFewFrames, MissingInput and ChangedFile where the archive is not
    what it was.
    """
    from hpc_cg.analysis.backmap import Minimiser, backmap
    from hpc_cg.analysis.rebuild import bead_atoms
    from hpc_cg.mapping.shards import spread

    n_frames = study.tables["aggregate"].backmap_frames
    planned = _planned(study)
    held = bead_atoms(None if planned.topology is None else planned.coordinate, planned.system.names)
    topology = _looked_at(planned)
    minimiser = Minimiser(topology, held)
    blocks = samples["reference"].blocks
    given, judged = np.flatnonzero(blocks % 2 == 0), np.flatnonzero(blocks % 2 == 1)
    if not len(judged):
        raise errors.TooFewFrames(
            "reference frames for backmapped energies apart from the conformers",
            "one block of trajectory",
            "shorten aggregate.block_ps, or set aggregate.backmap_frames = 0",
        )
    conformers = _conformers(planned, frames, given[spread(len(given), CONFORMERS)], held)
    chosen = {
        name: spread(sample.n_frames, n_frames) if name == "model" else judged[spread(len(judged), n_frames)]
        for name, sample in samples.items()
    }
    total, done, found = sum(len(own) for own in chosen.values()), 0, {}
    progress("rebuilding atoms", 0, total, "frames")
    for name, own in chosen.items():

        def tell(number: int, before: int = done) -> None:
            progress("rebuilding atoms", before + number, total, "frames")

        found[name] = backmap(_taken(samples[name], own), conformers, topology, minimiser, tell)
        done += len(own)
    return _compared(study, found)


def _compared(study: "Study", found: "dict[str, Backmapped]") -> Found:
    from hpc_cg.analysis.backmap import judge, lost_shares
    from hpc_cg.analysis.geometry import common_edges, density

    config: "AggregateConfig" = study.tables["aggregate"]
    model, temperature_K = found["model"], study.study.temperature_K
    comparisons = [
        (against, partial(judge, found[name], model, temperature_K, config.seed, config.resamples))
        for name, against in (("reference", "clean"), ("noised", "noised"))
        if name in found
    ]
    rows: list[dict[str, Any]] = []
    left_out = []
    for against, compare in (*comparisons, ("clean", partial(lost_shares, model))):
        try:
            rows += [_row(against, judged) for judged in compare()]
        except errors.TooFewFrames as error:
            left_out.append(str(error))
    whole = {name: one for name, one in found.items() if one.kept.any()}
    arrays = {}
    if {"reference", "model"} <= whole.keys():
        arrays["backmap_edges"] = edges = common_edges(
            *(one.energies[one.kept] for one in whole.values()), n_bins=BINS, tail=TAIL
        )
        for name, one in whole.items():
            arrays[f"backmap_{name}"] = density(one.energies[one.kept], edges, one.weights[one.kept]).density
    return Found(tuple(rows), tuple(left_out), {name: _summary(one) for name, one in found.items()}, arrays)


def _row(against: str, judged: "Judged") -> dict[str, Any]:
    floor = None if judged.floor is None else asdict(judged.floor)
    return asdict(judged.estimate) | {"against": against, "floor": floor, "excess": judged.excess}


def _summary(one: "Backmapped") -> dict[str, int | float]:
    from hpc_cg.analysis.geometry import width

    kept, counts = one.kept, {"frames": len(one.kept), "mirrored": int(one.mirrored.sum())}
    counts["failed"] = int(one.failed.sum())
    if not kept.any():
        return {**counts}
    energies, weights = one.energies[kept], one.weights[kept]
    mean = float(np.average(energies, weights=weights))
    return {**counts, "mean": mean, "width": width(energies, weights)}


def _planned(study: "Study") -> "Planned":
    from hpc_cg.archive.trail import Trail, suspects
    from hpc_cg.stages.planning import plan

    folder = study.folder("aggregate")
    known = frozenset((*suspects(folder), *suspects(study.folder("prepare"))))
    (molecule,) = (one for one in molecules.molecules_of(study.tables["prepare"]) if one.name == study.molecule)
    return plan(study, molecule, Trail(folder, 0, known))


def _looked_at(planned: "Planned") -> "mdtraj.Topology":
    assert planned.topology is not None, "archives of beads are refused before"
    atoms = planned.archive.atoms
    return planned.topology if atoms is None else planned.topology.subset(atoms)


def _conformers(planned: "Planned", frames: "StoreFrames", chosen: np.ndarray, held: np.ndarray) -> "Conformers":
    from hpc_cg.analysis.rebuild import Conformers
    from hpc_cg.mapping.shards import sampled

    numbers = planned.catalogue.first[frames.segment[chosen]] + frames.frame_index[chosen]
    read = [found.positions for found in sampled(planned.archive, np.sort(numbers))]
    if not read:
        raise errors.MissingInput(
            f"frames of all atoms for backmapped energies of {planned.molecule.name}",
            f"none that can be read, of {len(numbers)} in the archive",
            "restore the archive, or set aggregate.backmap_frames = 0",
        )
    return Conformers(np.concatenate(read), held)


def _taken(sample: "Sample", chosen: np.ndarray) -> "Sample":
    """The chosen frames of a sample; blocks keep their numbers."""
    return replace(
        sample, positions=sample.positions[chosen], weights=sample.weights[chosen], blocks=sample.blocks[chosen]
    )
