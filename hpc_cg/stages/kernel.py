"""Stage kernel: which density the model is trained on, and how its force labels are made.

    none           the mapped forces at the positions of the archive
    noise          positions blurred by σ, labelled with the score of the noise; needs no forces
    noise+forces   the same, with the mapped forces mixed in by the W of least mean square

Labels are drawn here once and stored, or redrawn at each step of the training (``draws``): then this stage only fits W.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from hpc_cg.config import STRICT
from hpc_cg.errors import MissingForces
from hpc_cg.files import digest, read_arrays, read_json, write_json
from hpc_cg.share import Team
from hpc_cg.stages.molecules import Place, molecules_of
from hpc_cg.stages.progress import Heartbeat

if TYPE_CHECKING:
    from hpc_cg.kernels.kernel import Kernel
    from hpc_cg.stages.study import Study
    from hpc_cg.store.layout import StoreSpec


BESIDE: frozenset[str] = frozenset()
"""Every setting decides the labels."""


@dataclass(frozen=True, config=STRICT)
class KernelConfig:
    """The table [kernel].

    kind       "none", "noise" or "noise+forces"
    sigma_nm   standard deviation of the noise (not a variance); nm
    draws      "redrawn" at each training step, or "stored" once
    ridge      λ of the mixing, (kJ/mol/nm)² per frame and axis
    seed       of stored draws
    """

    kind: Literal["none", "noise", "noise+forces"] = "none"
    sigma_nm: float = Field(default=0.0, ge=0, le=0.1)
    draws: Literal["redrawn", "stored"] = "redrawn"
    ridge: float = Field(default=0.0, ge=0)
    seed: int = Field(default=1, ge=0)

    @model_validator(mode="after")
    def _noise_needs_a_width(self) -> "KernelConfig":
        if self.kind != "none" and self.sigma_nm == 0:
            raise ValueError(f'kind = "{self.kind}" needs sigma_nm above 0, e.g. sigma_nm = 0.005.')
        if self.kind == "none" and (self.sigma_nm != 0 or self.draws == "stored"):
            raise ValueError('kind = "none" draws nothing: remove sigma_nm and draws, or choose kind = "noise".')
        return self


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


def stored_spec(config: KernelConfig, source: "StoreSpec", prepared: str) -> "StoreSpec":
    """The spec of the store of labels: the frames of the source, with a draw of the noise for each."""
    from dataclasses import replace

    return replace(
        source,
        arrays=("positions", "noise", "forces"),
        kernel=f"{config.kind}, sigma {config.sigma_nm} nm",
        seed=config.seed,
        lineage=source.lineage | {"prepare": prepared},
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
    if config.kind != "noise" and not study.tables["prepare"].forces:
        raise MissingForces(
            f'kernel.kind = "{config.kind}"',
            "a store prepared with prepare.forces = false",
            'set kernel.kind = "noise", or prepare an archive with forces',
        )
    records = {name: _record(study, kernel, fitted) for name, (kernel, fitted) in _kernels(study).items()}
    write_json(study.folder("kernel") / "kernel.json", asdict(config) | {"molecules": records})
    for _, spec in _stores(study):
        layout.create(study.folder("kernel") / layout.STORE, spec)


def divisible(study: "Study") -> bool:
    """Whether there is work to divide: where labels are drawn anew in training, only W is fitted."""
    return study.tables["kernel"].draws == "stored"


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
        label_shard(study, kernels[spec.molecule][0], source, spec, shard)
        done += spec.length(shard)
        progress("drawing labels", done, total, "frames")


def gather(study: "Study") -> None:
    """Add up what the records of the shards say."""
    from hpc_cg.store import layout, writer

    for _, spec in _stores(study):
        writer.summarise(study.folder("kernel") / layout.STORE, spec)


def _kernels(study: "Study") -> "dict[str, tuple[Kernel, dict[str, np.ndarray]]]":
    """The kernel of each molecule, and what its map was fitted on."""
    found = {}
    for molecule in molecules_of(study.tables["prepare"]):
        fitted = read_arrays(Place(study.folder("prepare"), molecule.name).map_arrays)
        kernel = build(study.tables["kernel"], fitted["second_moment"], study.study.temperature_K)
        found[molecule.name] = kernel, fitted
    return found


def _stores(study: "Study") -> "tuple[tuple[StoreSpec, StoreSpec], ...]":
    """Of each molecule, the store of its frames and that of its labels; none where draws are not stored."""
    from hpc_cg.stages.product import need_seal
    from hpc_cg.store import layout
    from hpc_cg.store.dataset import open_spec

    config: KernelConfig = study.tables["kernel"]
    if config.draws != "stored":
        return ()
    prepared = study.folder("prepare")
    identity = need_seal(prepared, "kernel").identity
    sources = [open_spec(prepared / layout.STORE, one.name) for one in molecules_of(study.tables["prepare"])]
    return tuple((source, stored_spec(config, source, identity)) for source in sources)


def _shards(study: "Study") -> "list[tuple[StoreSpec, StoreSpec, int]]":
    return [(source, spec, shard) for source, spec in _stores(study) for shard in range(spec.n_shards)]


def _record(study: "Study", kernel: "Kernel", fitted: dict[str, np.ndarray]) -> dict[str, Any]:
    """W, and the mean square of the labels per frame and axis on frames fitted on and held out, (kJ/mol/nm)²."""
    from hpc_cg.kernels.mixing import label_mean_square

    config: KernelConfig = study.tables["kernel"]
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


def label_shard(study: "Study", kernel: "Kernel", source: "StoreSpec", spec: "StoreSpec", shard: int) -> None:
    """Draw one label for each frame of a shard and write it; frames that fail get weight zero."""
    from hpc_cg.frames import BeadFrames
    from hpc_cg.randomness import stream
    from hpc_cg.store import layout
    from hpc_cg.store.dataset import read_shard
    from hpc_cg.store.writer import write_shard

    clean = read_shard(study.folder("prepare") / layout.STORE, source, shard)
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
    write_shard(study.folder("kernel") / layout.STORE, spec, shard, content)


def finish(study: "Study") -> tuple[str, dict[str, Any]]:
    """Digest and figures of the kernel."""
    from hpc_cg.store import layout, writer
    from hpc_cg.store.dataset import open_spec

    folder = study.folder("kernel")
    fitted = read_json(folder / "kernel.json")
    summary: dict[str, Any] = {
        "kind": fitted["kind"],
        "sigma_nm": fitted["sigma_nm"],
        "label_mean_square": {name: record["label_mean_square"] for name, record in fitted["molecules"].items()},
    }
    crc: list[Any] = []
    if study.tables["kernel"].draws == "stored":
        summary["labelled"] = 0
        for name in fitted["molecules"]:
            spec = open_spec(folder / layout.STORE, name)
            commits = writer.committed(folder / layout.STORE, spec)
            assert len(commits) == spec.n_shards, "a stage is finished when every shard is committed"
            crc.append([commits[shard].crc for shard in range(spec.n_shards)])
            summary["labelled"] += sum(commit.n_good for commit in commits.values())
    return digest([fitted, crc]), summary


def done(study: "Study", items: Sequence[int] | None = None) -> tuple[int, int, str] | None:
    """Shards labelled, of how many; of all, or of some. None where draws are not stored."""
    if study.tables["kernel"].draws != "stored":
        return None
    wanted = set(range(n_items(study))) if items is None else set(items)
    return len(wanted - set(pending(study))), len(wanted), "shards labelled"
