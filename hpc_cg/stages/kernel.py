"""Stage kernel: which density the model is trained on, and how its force labels are made.

    none           the mapped forces at the positions of the archive
    noise          positions blurred by σ, labelled with the score of the noise; needs no forces
    noise+forces   the same, with the mapped forces mixed in by the W of least mean square
    flow           frames drawn by the learnt kernel of stage flow, labelled with its score; needs no forces. Of a
                   transition kernel: the frames of the archive that have one a lag before them
    flow+forces    the same, with the mapped forces mixed in

Labels are drawn here once and stored, or redrawn at each step of the training (``draws``): then this stage only fits W.
Those of a learnt kernel are always stored.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from hpc_cg.config import STRICT, refuse_variance
from hpc_cg.errors import MissingForces
from hpc_cg.files import digest, read_arrays, read_json, write_json
from hpc_cg.share import Team
from hpc_cg.stages import judgement, learnt, transitions
from hpc_cg.stages.molecules import Place, molecules_of, only_trained
from hpc_cg.stages.progress import Heartbeat

NOISE = ("noise", "noise+forces")
"""Kinds that displace frames by noise."""

LEARNT = ("flow", "flow+forces")
"""Kinds that draw from what stage flow has fitted."""

WITHOUT_FORCES = ("noise", "flow")
"""Kinds for archives of positions alone."""

KERNEL = "kernel.json"
"""What was fitted, in the folder of the stage."""

if TYPE_CHECKING:
    from hpc_cg.kernels.kernel import Kernel
    from hpc_cg.kernels.transition import TransitionKernel
    from hpc_cg.stages.study import Study
    from hpc_cg.store.layout import StoreSpec


BESIDE = frozenset({"failure_budget"})
"""It judges what failed, and decides nothing of the labels."""


@dataclass(frozen=True, config=STRICT)
class KernelConfig:
    """The table [kernel].

    kind       "none", "noise", "noise+forces", "flow" or "flow+forces"
    sigma_nm   standard deviation of the noise (not a variance); nm. That of a learnt kernel is flow.sigma_nm
    draws      "redrawn" at each training step, or "stored" once
    ridge      λ of the mixing, (kJ/mol/nm)² per frame and axis
    seed       of stored draws
    failure_budget   fraction of the frames that may fail to get a stored label
    """

    kind: Literal["none", "noise", "noise+forces", "flow", "flow+forces"] = "none"
    sigma_nm: float = Field(default=0.0, ge=0, le=0.1)
    draws: Literal["redrawn", "stored"] = "redrawn"
    ridge: float = Field(default=0.0, ge=0)
    seed: int = Field(default=1, ge=0)
    failure_budget: float = Field(default=0.001, ge=0, le=1)

    @model_validator(mode="after")
    def _noise_needs_a_width(self) -> "KernelConfig":
        refuse_variance(self.sigma_nm)
        if self.kind in LEARNT and self.sigma_nm != 0:
            raise ValueError(f'kind = "{self.kind}" undoes the noise of flow.sigma_nm: remove sigma_nm here.')
        if self.kind in NOISE and self.sigma_nm == 0:
            raise ValueError(f'kind = "{self.kind}" needs sigma_nm above 0, e.g. sigma_nm = 0.005.')
        if self.kind == "none" and (self.sigma_nm != 0 or self.draws == "stored"):
            raise ValueError('kind = "none" draws nothing: remove sigma_nm and draws, or choose kind = "noise".')
        return self

    @property
    def is_stored(self) -> bool:
        """Whether labels are drawn here, not in training."""
        return self.draws == "stored" or self.kind in LEARNT


def build(config: KernelConfig, second_moment: np.ndarray, temperature_K: float) -> "Kernel":
    """The kernel of the settings; W is fitted to the second moment of the mapped forces, (kJ/mol/nm)²."""
    from hpc_cg.kernels.mixing import optimal_mixing
    from hpc_cg.kernels.noise import MappedForces, NoiseKernel

    if config.kind == "none":
        return MappedForces()
    mixing = None
    if config.kind == "noise+forces":
        mixing = optimal_mixing(second_moment, config.sigma_nm, temperature_K, config.ridge)
    return NoiseKernel(config.sigma_nm, temperature_K, mixing)


def stored_spec(config: KernelConfig, source: "StoreSpec", lineage: dict[str, str], drawn: bool = True) -> "StoreSpec":
    """The spec of the store of labels: the frames of the source, with a draw for each.

    lineage   identities of the products that labels are made from
    drawn     whether labels are elsewhere than the frames
    """
    from dataclasses import replace

    return replace(
        source,
        arrays=("positions", "noise", "forces") if drawn else ("positions", "forces"),
        kernel=config.kind + (f", sigma {config.sigma_nm} nm" if config.sigma_nm else ""),
        seed=config.seed,
        lineage=source.lineage | lineage,
    )


def work(study: "Study", team: Team, progress: Heartbeat) -> None:
    """Fit W, and where draws are stored label every shard."""
    first = team.share.index == 0
    if first:
        lay_out(study)
    team.barrier()
    work_on(study, team.tell(pending(study) if first else ()), team, progress)
    team.barrier()
    if first:
        gather(study)


def lay_out(study: "Study") -> None:
    """What must be there before shards can be labelled: the fitted kernel, and stores with empty arrays."""
    from hpc_cg.store import layout

    config: KernelConfig = study.tables["kernel"]
    if config.kind not in WITHOUT_FORCES and not study.tables["prepare"].forces:
        without = "flow" if config.kind in LEARNT else "noise"
        raise MissingForces(
            f'kernel.kind = "{config.kind}"',
            "a store prepared with prepare.forces = false",
            f'set kernel.kind = "{without}", or prepare an archive with forces',
        )
    drawn = {"draws": "stored" if config.is_stored else "redrawn"}
    record = learnt.record_of if config.kind in LEARNT else _record
    records = {name: record(study, name) for name in _molecules(study)}
    settings = {name: value for name, value in asdict(config).items() if name not in BESIDE}
    write_json(study.folder("kernel") / KERNEL, settings | drawn | {"molecules": records})
    for _, spec in _stores(study):
        layout.create(study.folder("kernel") / layout.STORE, spec)


def divisible(study: "Study") -> bool:
    """Whether there is work to divide: where labels are drawn anew in training, only W is fitted."""
    return study.tables["kernel"].is_stored


def n_items(study: "Study") -> int:
    """How many shards there are to label."""
    return len(_shards(study))


def pending(study: "Study") -> tuple[int, ...]:
    """The shards that lack labels, counted through the molecules; none where draws are not stored."""
    from hpc_cg.store import layout, writer

    store = study.folder("kernel") / layout.STORE
    holes = {spec.molecule: set(writer.holes(store, spec)) for _, spec in _stores(study)}
    return tuple(i for i, (_, spec, shard) in enumerate(_shards(study)) if shard in holes[spec.molecule])


def work_on(study: "Study", items: Sequence[int], team: Team, progress: Heartbeat) -> None:
    """Label some of the shards. Raises Stopped, on every member, where the team was asked to stop before."""
    shards, kernels = _shards(study), _kernels(study)
    first = team.share.index == 0
    total = sum(spec.length(shard) for _, spec, shard in shards)
    todo = sum(shards[i][1].length(shards[i][2]) for i in items)
    done = total - todo if first else 0
    progress("drawing labels", done, total, "frames")
    for i in team.take(items):
        source, spec, shard = shards[i]
        label_shard(study, kernels[spec.molecule], source, spec, shard)
        done += spec.length(shard)
        progress("drawing labels", done, total, "frames")


def gather(study: "Study") -> None:
    """Add up what the records of the shards say."""
    from hpc_cg.store import layout, writer

    stores, flow = _stores(study), study.tables.get("flow")
    for _, spec in stores:
        writer.summarise(study.folder("kernel") / layout.STORE, spec)
    if not stores:
        return
    made_of, noise = study.folder("prepare") / layout.STORE, (0.0, 1)
    if transitions.is_transition(study):
        pairs = transitions.pair_source(study)
        made_of, stores = pairs.store, tuple((pairs.spec, spec) for _, spec in stores)
    elif flow is not None:
        noise = flow.sigma_nm, flow.every
    judgement.put_together(study.folder("kernel"), made_of, stores, *noise)


def _molecules(study: "Study") -> tuple[str, ...]:
    """The molecules that get a kernel: all of the study, or the one that a learnt one was fitted to."""
    if study.tables["kernel"].kind in LEARNT:
        return (only_trained(study),)
    return tuple(one.name for one in molecules_of(study.tables["prepare"]))


def _kernels(study: "Study") -> "dict[str, Kernel | TransitionKernel]":
    """The kernel of each molecule."""
    config: KernelConfig = study.tables["kernel"]
    if config.kind in LEARNT:
        records = read_json(study.folder("kernel") / KERNEL)["molecules"]
        return {name: learnt.kernel_of(study, records[name]) for name in _molecules(study)}
    moments = {name: _fitted(study, name)["second_moment"] for name in _molecules(study)}
    return {name: build(config, moment, study.study.temperature_K) for name, moment in moments.items()}


def _fitted(study: "Study", molecule: str) -> dict[str, np.ndarray]:
    """What the map of a molecule was fitted on."""
    return read_arrays(Place(study.folder("prepare"), molecule).map_arrays)


def _stores(study: "Study") -> "tuple[tuple[StoreSpec, StoreSpec], ...]":
    """Of each molecule, the store of its frames and that of its labels; none where draws are not stored."""
    from hpc_cg.stages.product import need_seal
    from hpc_cg.store import layout
    from hpc_cg.store.dataset import open_spec

    config: KernelConfig = study.tables["kernel"]
    if not config.is_stored:
        return ()
    prepared = study.folder("prepare")
    lineage = {name: need_seal(study.folder(name), "kernel").identity for name in study.upstream("kernel")}
    sources = [open_spec(prepared / layout.STORE, name) for name in _molecules(study)]
    drawn = not transitions.is_transition(study)
    return tuple((source, stored_spec(config, source, lineage, drawn)) for source in sources)


def _shards(study: "Study") -> "list[tuple[StoreSpec, StoreSpec, int]]":
    return [(source, spec, shard) for source, spec in _stores(study) for shard in range(spec.n_shards)]


def _record(study: "Study", molecule: str) -> dict[str, Any]:
    """W, and the mean square of the labels per frame and axis on frames fitted on and held out, (kJ/mol/nm)²."""
    from hpc_cg.kernels.mixing import label_mean_square

    config: KernelConfig = study.tables["kernel"]
    fitted, kernel = _fitted(study, molecule), _kernels(study)[molecule]
    moments = {"train": fitted["second_moment"], "held_out": fitted["second_moment_held_out"]}
    if config.kind == "none":
        values = {side: float(np.diag(moment).mean()) for side, moment in moments.items()}
        return {"mixing": None, "label_mean_square": values}
    mixing = getattr(kernel, "mixing", None)
    values = {
        side: float(label_mean_square(mixing, moment, config.sigma_nm, study.study.temperature_K).mean())
        for side, moment in moments.items()
    }
    return {"mixing": None if mixing is None else mixing.tolist(), "label_mean_square": values}


def label_shard(
    study: "Study", kernel: "Kernel | TransitionKernel", source: "StoreSpec", spec: "StoreSpec", shard: int
) -> None:
    """Draw one label for each frame of a shard and write it; frames that fail get weight zero."""
    from hpc_cg.frames import BeadFrames
    from hpc_cg.kernels.transition import TransitionKernel
    from hpc_cg.randomness import stream
    from hpc_cg.store import layout
    from hpc_cg.store.subset import read_subset
    from hpc_cg.store.writer import write_shard

    if isinstance(kernel, TransitionKernel):
        transitions.label_shard(study, kernel, spec, shard)
        return
    flow = study.tables.get("flow")
    part = (1, 0) if flow is None else (flow.every, flow.subset)
    clean = read_subset(study.folder("prepare") / layout.STORE, source, shard, *part)
    positions = clean.arrays["positions"]
    condition = BeadFrames(positions, clean.arrays.get("forces", np.zeros_like(positions)), clean.weights)
    sample = kernel.sample(condition, stream(spec.seed, "noise", shard))
    failed = sample.failed[:, None, None]
    noise = sample.positions - condition.positions
    content = layout.ShardFrames(
        arrays={
            "positions": condition.positions,
            "noise": np.where(failed, np.nan, noise),
            "forces": np.where(failed, np.nan, sample.forces),
        },
        frame_index=clean.frame_index,
        segment=clean.segment,
        weights=np.where(sample.failed, 0, clean.weights),
    )
    if flow is not None:
        judgement.keep_surface(study.folder("kernel"), source, spec, shard, content, flow.sigma_nm, flow.every)
    write_shard(study.folder("kernel") / layout.STORE, spec, shard, content)


def finish(study: "Study") -> tuple[str, dict[str, Any]]:
    """Digest and figures of the kernel."""
    from hpc_cg.store import layout, writer
    from hpc_cg.store.dataset import open_spec

    folder = study.folder("kernel")
    fitted = read_json(folder / KERNEL)
    flow = study.tables.get("flow")
    summary: dict[str, Any] = {
        "kind": fitted["kind"],
        "sigma_nm": fitted["sigma_nm"] if flow is None else flow.sigma_nm,
        "label_mean_square": {name: record["label_mean_square"] for name, record in fitted["molecules"].items()},
    }
    crc: list[Any] = []
    if study.tables["kernel"].is_stored:
        drawn = read_json(folder / judgement.DRAWN)
        judgement.refuse_failed(drawn, study.tables["kernel"].failure_budget)
        summary["labelled"], summary["failed"] = 0, sum(one["failed"] for one in drawn.values())
        for name in fitted["molecules"]:
            spec = open_spec(folder / layout.STORE, name)
            commits = writer.committed(folder / layout.STORE, spec)
            assert len(commits) == spec.n_shards, "a stage is finished when every shard is committed"
            crc.append([commits[shard].crc for shard in range(spec.n_shards)])
            summary["labelled"] += sum(commit.n_good for commit in commits.values())
    return digest([fitted, crc]), summary


def done(study: "Study", items: Sequence[int] | None = None) -> tuple[int, int, str] | None:
    """Shards labelled, of how many; of all, or of some. None where draws are not stored."""
    if not study.tables["kernel"].is_stored:
        return None
    wanted = set(range(n_items(study))) if items is None else set(items)
    return len(wanted - set(pending(study))), len(wanted), "shards labelled"
