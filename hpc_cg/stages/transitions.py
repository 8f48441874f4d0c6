"""Transitions of a study: stage flow pairs frames a lag apart, stage kernel labels the later ones.

The pairs are a store with the rows of that of prepare, below the folder of stage flow: positions are of the later
frame, noise is what leads from there to the earlier one, and forces are the score that a kernel of noise σ would have
for it (``learning/fitting.py`` turns that back). Rows that are no pair's later frame weigh nothing, and neither do
pairs to train on whose earlier frame is held out. A pair has the weight of its earlier frame: what follows is the
molecule's own doing.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_cg.errors import TooFewFrames, UnfitLag
from hpc_cg.stages import judgement
from hpc_cg.stages.molecules import Place, only_trained
from hpc_cg.stages.progress import Heartbeat

if TYPE_CHECKING:
    import torch

    from hpc_cg.beads import BeadSystem
    from hpc_cg.kernels.transition import TransitionKernel
    from hpc_cg.learning.distributed import World
    from hpc_cg.learning.labels import LabelSource
    from hpc_cg.stages.study import Study
    from hpc_cg.store.layout import StoreSpec
    from hpc_cg.store.subset import Beside


@dataclass(frozen=True)
class Lag:
    """The lag in frames, and the segments whose frames are not evenly spaced in time: these have no pairs."""

    frames: int
    uneven: frozenset[int]


def is_transition(study: "Study") -> bool:
    """Whether the learnt kernel of a study is one of transitions."""
    return "flow" in study.tables and study.tables["flow"].lag_ps > 0


def lag_of(study: "Study") -> Lag:
    """The lag of a study's transitions; raises UnfitLag where it is no whole number of frames."""
    from hpc_cg.archive.catalogue import Catalogue
    from hpc_cg.store.pairs import lag_frames

    catalogue = Catalogue(Place(study.folder("prepare"), only_trained(study)).index)
    try:
        frames = lag_frames(study.tables["flow"].lag_ps, catalogue[0].stride_ps)
    except UnfitLag as error:
        raise UnfitLag(_asked(study), error.found, error.change) from error
    return Lag(frames, frozenset(number for number, segment in enumerate(catalogue) if not segment.even))


def pair_source(study: "Study") -> "LabelSource":
    """The store of pairs, laid out or to be."""
    from hpc_cg.learning.labels import LabelSource
    from hpc_cg.stages.product import need_seal
    from hpc_cg.store.layout import STORE

    config = study.tables["flow"]
    words = f"transition over {config.lag_ps:g} ps{', superposed' * config.superpose}, sigma {config.sigma_nm} nm"
    made_from = {"prepare": need_seal(study.folder("prepare"), "flow").identity}
    spec = _prepared(study).spec
    arrays = ("positions", "noise", "forces")
    spec = replace(spec, arrays=arrays, kernel=words, lineage=spec.lineage | made_from)
    return LabelSource(study.folder("flow") / STORE, spec, None)


def write_pairs(
    study: "Study", world: "World", device: "torch.device", progress: Heartbeat, stopped: Callable[[], bool]
) -> bool:
    """Write the shards of pairs that are missing, divided among the processes; whether all are there now.

    Raises UnfitLag and TooFewFrames, where there are no pairs to fit on or to judge by, DamagedProduct.
    """
    import torch

    from hpc_cg.learning.distributed import together
    from hpc_cg.store import writer

    first, source = world.rank == 0, pair_source(study)
    lag = together("the lag of transitions", lambda: lag_of(study), world, device)
    together("the store of pairs", lambda: _lay_out(study, source, lag) if first else None, world, device)
    todo = writer.holes(source.store, source.spec)
    world.barrier()  # whoever came later would miss in its list what others have written meanwhile
    n_done = source.spec.n_frames - sum(map(source.spec.length, todo))

    def pair() -> bool:
        done = n_done if first else 0
        for shard in todo[world.rank :: world.size]:
            if stopped():
                return False
            progress("pairing frames", done, source.spec.n_frames, "frames")
            _write_shard(study, source, lag, shard)
            done += source.spec.length(shard)
        return True

    whole = together("the pairs of frames", pair, world, device)
    if int(world.sum_(torch.tensor(int(not whole), device=device))):
        return False
    count = partial(writer.summarise, source.store, source.spec)
    together("the count of pairs", lambda: count() if first else None, world, device)
    return True


def pairs_in_shard(study: "Study", lag: Lag, start: int, stop: int) -> dict[str, np.ndarray]:
    """Pairs whose later frame is one of the rows ``start`` to ``stop`` of the store, and that may be used.

    Their rows, weights, and positions later and earlier (superposed, where that is asked for).
    """
    from hpc_cg.kernels.transition import superposed
    from hpc_cg.store.pairs import read_pairs

    prepared = _prepared(study)
    begin, end = max(0, start - lag.frames), max(0, stop - lag.frames)
    if end == begin:
        shape = (0, prepared.spec.system.n_beads, 3)
        nothing = np.zeros(shape, np.float32)
        return {"rows": np.arange(0), "weights": np.zeros(0, np.float32), "later": nothing, "earlier": nothing}
    found = read_pairs(prepared.folder, prepared.spec, lag.frames, begin, end, uneven=lag.uneven)
    used = found.train | found.judge
    later, earlier = found.later["positions"][used], found.earlier["positions"][used]
    if study.tables["flow"].superpose:
        earlier = superposed(earlier, later)
    rows = found.index[used] + lag.frames
    return {"rows": rows, "weights": found.weights[used], "later": later, "earlier": earlier}


def _lay_out(study: "Study", source: "LabelSource", lag: Lag) -> None:
    from hpc_cg.store import layout
    from hpc_cg.store.pairs import count_pairs

    prepared = _prepared(study)
    try:
        train, judge = count_pairs(prepared.folder, prepared.spec, lag.frames, lag.uneven).sum(axis=0).tolist()
    except (UnfitLag, TooFewFrames) as error:
        raise type(error)(f"{_asked(study)}, {lag.frames} frames", error.found, error.change) from error
    if not train or not judge:
        raise TooFewFrames(
            f"{_asked(study)}, {lag.frames} frames",
            f"{train} pairs to fit on, of frames that are not held out, and {judge} to judge by",
            "shorten the lag, or lengthen prepare.held_out_block_ps",
        )
    layout.create(source.store, source.spec)


def _write_shard(study: "Study", source: "LabelSource", lag: Lag, shard: int) -> None:
    from hpc_cg.kernels.noise import NoiseKernel
    from hpc_cg.store.dataset import read_frames
    from hpc_cg.store.layout import ShardFrames
    from hpc_cg.store.writer import write_shard

    prepared, spec = _prepared(study), source.spec
    start, stop = spec.frames_of(shard)
    numbering = read_frames(prepared.folder, prepared.spec, start, stop, ())
    pairs = pairs_in_shard(study, lag, start, stop)
    rows, way = pairs["rows"] - start, pairs["earlier"] - pairs["later"]
    label = NoiseKernel(study.tables["flow"].sigma_nm, spec.temperature_K, None).label(way, None)
    arrays = {name: np.full((stop - start, spec.system.n_beads, 3), np.nan, np.float32) for name in spec.arrays}
    for name, values in (("positions", pairs["later"]), ("noise", way), ("forces", label)):
        arrays[name][rows] = values
    weights = np.zeros(stop - start, np.float32)
    weights[rows] = pairs["weights"]
    write_shard(source.store, spec, shard, ShardFrames(arrays, numbering.frame_index, numbering.segment, weights))


def record_of(study: "Study", kernel: "TransitionKernel", n_frames: int) -> dict[str, Any]:
    """The weight of the control variate and what labels are like, on ``n_frames`` pairs and half as many held out.

    label_mean_square, choices   as of a kernel that undoes noise; the only variate is the mapped force less the label
    identities                   on held-out pairs, what is 1, and −dimension, for the true law of the pairs; and of
                                 each bond how stiff labels tell it to be over how stiff it is
    """
    from hpc_cg.frames import BeadFrames
    from hpc_cg.randomness import stream
    from hpc_cg.store.order import spread
    from hpc_cg.store.stream import HELD_OUT, TRAIN, read_picks
    from hpc_cg.store.writer import epoch_sums

    source, beside, config = pair_source(study), _forces_beside(study), study.tables["kernel"]
    counts = epoch_sums(source.store, source.spec).counts
    drawn: dict[int, judgement.Drawn] = {}
    conditions: dict[int, np.ndarray] = {}
    for side, wanted in ((TRAIN, n_frames), (HELD_OUT, n_frames // 2)):
        picks = spread(counts[:, side], wanted)
        slots = np.arange(sum(len(pick.ranks) for pick in picks))
        found = read_picks(source.store, source.spec, counts[:, side], side, picks, slots, ("positions", "noise"))
        positions = found.arrays["positions"]
        forces = np.zeros_like(positions) if beside is None else beside.rows(found.index)["forces"]
        key = stream(config.seed, "control variates", side)
        link, conditions[side] = kernel.link(positions, positions + found.arrays["noise"], key)
        later = BeadFrames(positions, forces, found.weights)
        drawn[side] = judgement.Drawn(later, (link,), kernel.labels(later, link))
    identities = _identities(kernel, source.spec.system, drawn[HELD_OUT], conditions[HELD_OUT])
    return judgement.choose(kernel, drawn[TRAIN], drawn[HELD_OUT], config)[1] | {"identities": identities}


def _identities(
    kernel: "TransitionKernel", system: "BeadSystem", drawn: "judgement.Drawn", condition: np.ndarray
) -> dict[str, Any]:
    from hpc_cg.analysis.identities import ScoreSums, stretch_ratios

    positions, score = drawn.condition.positions, drawn.links[-1].score.cpu().numpy()
    sums = ScoreSums.of(score, positions, condition, kernel.density.centred, drawn.weights)
    found = stretch_ratios(drawn.labels.forces, positions, system.bonds, kernel.temperature_K, drawn.weights)
    names = [f"{system.names[a]}–{system.names[b]}" for a, b in system.bonds]
    return {
        "pairs": sums.n_draws,
        "misfit": sums.misfit,
        "virial": sums.virial.value,
        "virial_error": sums.virial.error,
        "dimension": sums.dimension,
        "stretch": [[name, *row] for name, row in zip(names, found.tolist(), strict=True)],
    }


def label_shard(study: "Study", kernel: "TransitionKernel", spec: "StoreSpec", shard: int) -> None:
    """Label the later frame of each pair of a shard and write it; other rows, and those that fail, get weight zero."""
    from hpc_cg.frames import BeadFrames
    from hpc_cg.randomness import stream
    from hpc_cg.store.layout import STORE, ShardFrames
    from hpc_cg.store.subset import read_subset
    from hpc_cg.store.writer import write_shard

    flow, source = study.tables["flow"], pair_source(study)
    pairs = read_subset(source.store, source.spec, shard, flow.every, flow.subset, _forces_beside(study))
    rows = np.flatnonzero(pairs.weights > 0)
    positions, way, forces = (pairs.arrays[name][rows] for name in ("positions", "noise", "forces"))
    later = BeadFrames(positions, forces, pairs.weights[rows])
    sample = kernel.sample(later, positions + way, stream(spec.seed, "noise", shard))
    good, weights = rows[~sample.failed], np.zeros_like(pairs.weights)
    weights[good] = pairs.weights[good]
    arrays = {name: np.full(pairs.arrays["positions"].shape, np.nan, np.float32) for name in spec.arrays}
    arrays["positions"][good] = positions[~sample.failed]
    arrays["forces"][good] = sample.forces[~sample.failed]
    content = ShardFrames(arrays, pairs.frame_index, pairs.segment, weights)
    write_shard(study.folder("kernel") / STORE, spec, shard, content)


@dataclass(frozen=True)
class _Prepared:
    folder: Path
    spec: "StoreSpec"


def _prepared(study: "Study") -> _Prepared:
    from hpc_cg.store.dataset import open_spec
    from hpc_cg.store.layout import STORE

    store = study.folder("prepare") / STORE
    return _Prepared(store, open_spec(store, only_trained(study)))


def _forces_beside(study: "Study") -> "Beside | None":
    """The mapped forces of later frames, where they are mixed in."""
    from hpc_cg.store.subset import Beside

    prepared = _prepared(study)
    with_forces = study.tables["kernel"].kind == "flow+forces"
    return Beside(prepared.folder, prepared.spec, ("forces",)) if with_forces else None


def _asked(study: "Study") -> str:
    return f"flow.lag_ps = {study.tables['flow'].lag_ps:g}"
