"""Stage flow: fit the learnt kernel that undoes noise, or that foretells the frame a lag later, on any processes.

It is part of a study whose kernel is a learnt one. What it learns is κ(y | c): where a frame may have come from that
noise of width σ has displaced to c; or, with a lag, where a trajectory may be that was at c (Klein et al., arXiv
2506.19628). Stage kernel then makes labels of it.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from hpc_cg.config import STRICT, refuse_variance
from hpc_cg.files import digest, read_json, write_json
from hpc_cg.stages import transitions
from hpc_cg.stages.molecules import only_trained
from hpc_cg.stages.progress import Heartbeat

if TYPE_CHECKING:
    from hpc_cg.learning.distributed import World
    from hpc_cg.learning.labels import LabelSource
    from hpc_cg.stages.study import Study

BESIDE = frozenset({"checkpoint_every"})
"""A fit that is resumed is the one that was not interrupted."""

STREAMS = 16
LOOKED_AT, SETTLED_ON = 2000, 64
"""Frames that a kernel is begun with, and held-out ones that its steps are chosen on."""


@dataclass(frozen=True, config=STRICT)
class FlowConfig:
    """The table [flow]: a learnt kernel and how it is fitted.

    kind             "cnf": a conditional continuous flow, or "coupling": a coupling flow
    sigma_nm         standard deviation of the noise that it undoes, or that is on a transition's earlier frame; nm
    lag_ps           of transitions: time from the earlier frame to the later one; 0 for a kernel that undoes noise
    superpose        whether earlier frames are superposed on the later ones of their pairs
    n_layers         of the network; 0 for 5 (cnf) or 4 (coupling)
    width            hidden features of the network
    ema              decay of the average of the weights that is judged and used; 0 for the weights themselves
    early_stop       looks without a smaller held-out loss after which fitting ends; 0 for never
    fraction, subset of the frames to fit on, as in [train]; labels are drawn from the same frames
    """

    kind: Literal["cnf", "coupling"] = "cnf"
    sigma_nm: float = Field(default=0.005, gt=0, le=0.1)
    lag_ps: float = Field(default=0.0, ge=0)
    superpose: bool = False
    n_layers: int = Field(default=0, ge=0)
    width: int = Field(default=64, ge=1)
    steps: int = Field(default=4000, ge=1)
    batch_size: int = Field(default=256, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0)
    final_learning_rate: float = Field(default=5e-6, gt=0)
    warmup_steps: int = Field(default=50, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=10.0, gt=0)
    validate_every: int = Field(default=100, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    early_stop: int = Field(default=0, ge=0)
    ema: float = Field(default=0.0, ge=0, lt=1)
    seed: int = Field(default=1, ge=0)
    fraction: float = Field(default=1.0, gt=0, le=1)
    subset: int = Field(default=0, ge=0)
    memory_limit_gb: float = Field(default=8.0, gt=0)
    shuffle_gb: float = Field(default=1.0, gt=0)
    validation_frames: int = Field(default=20_000, ge=1)

    @model_validator(mode="after")
    def _settings_go_together(self) -> "FlowConfig":
        refuse_variance(self.sigma_nm)
        if abs(self.every * self.fraction - 1) > 2e-3:
            raise ValueError(f"fraction = {self.fraction} is not one over a whole number, as 0.1 or 0.01 are.")
        if self.final_learning_rate > self.learning_rate:
            final, peak = self.final_learning_rate, self.learning_rate
            raise ValueError(f"final_learning_rate = {final} is more than learning_rate = {peak}, the peak.")
        if self.superpose and not self.lag_ps:
            raise ValueError("superpose is for pairs of frames a lag apart: give lag_ps, or remove superpose.")
        return self

    @property
    def every(self) -> int:
        """Of so many frames to fit on, one is used."""
        return round(1 / self.fraction)


def source_of(study: "Study") -> "LabelSource":
    """The prepared frames, with noise that is drawn as they are asked for; or the pairs of transitions."""
    from hpc_cg.kernels.noise import NoiseKernel
    from hpc_cg.learning.labels import LabelSource
    from hpc_cg.store.dataset import open_spec
    from hpc_cg.store.layout import STORE

    config: FlowConfig = study.tables["flow"]
    if config.lag_ps:
        return transitions.pair_source(study)
    store = study.folder("prepare") / STORE
    noise = NoiseKernel(config.sigma_nm, study.study.temperature_K, None)
    return LabelSource(store, open_spec(store, only_trained(study)), noise)


def work(study: "Study", world: "World", progress: Heartbeat, stopped: Callable[[], bool]) -> bool:
    """Fit to the end, or until asked to stop; returns whether it came to the end."""
    from hpc_cg.kernels.fitted import FittedOn, Reach
    from hpc_cg.kernels.learnt import Shape, begin, describe, settled, way_nm
    from hpc_cg.kernels.noise import NoiseKernel
    from hpc_cg.learning.checkpoint import DENSITY
    from hpc_cg.learning.distributed import own_device, together
    from hpc_cg.learning.fitting import Fit, blurred, pairs_of
    from hpc_cg.learning.opening import Loading, open_feeds
    from hpc_cg.learning.settings import Settings
    from hpc_cg.randomness import stream

    config: FlowConfig = study.tables["flow"]
    folder, source = study.folder("flow"), source_of(study)
    device, transition = own_device(), config.lag_ps > 0
    if transition and not transitions.write_pairs(study, world, device, progress, stopped):
        return False
    how = Loading(
        stage="flow",
        batch_size=config.batch_size,
        every=config.every,
        subset=config.subset,
        memory_limit_gb=config.memory_limit_gb,
        n_streams=max(n for n in range(1, STREAMS + 1) if config.batch_size % n == 0),
        shuffle_gb=config.shuffle_gb,
        validation_frames=config.validation_frames,
        prior_frames=1,
    )
    (feed,) = open_feeds([source], [config.seed], how, world, device)
    with closing(feed):
        noise = NoiseKernel(config.sigma_nm, study.study.temperature_K, None)
        blur_nm = config.sigma_nm if transition else 0.0
        shape, types = Shape(config.kind, config.n_layers, config.width), source.spec.system.types
        target, condition = pairs_of(feed.same(LOOKED_AT), noise)
        condition = blurred(condition, blur_nm, stream(config.seed, "beginning"))
        prior_nm = way_nm(target, condition) if transition else config.sigma_nm
        density = begin(shape, types, config.sigma_nm, target, condition, config.seed, prior_nm)
        fitted_on = FittedOn(
            source.spec.molecule,
            source.spec.system.names,
            config.sigma_nm,
            study.study.temperature_K,
            Reach.of(condition, source.spec.system.bonds),
        )
        names = set(Settings.__dataclass_fields__)
        settings = Settings(**{name: value for name, value in asdict(config).items() if name in names})

        def settle() -> None:
            with fit.chosen_in_place():
                key = stream(config.seed, "settling")
                conditions = blurred(feed.validation()[0].positions[:SETTLED_ON], blur_nm, key)
                told = describe(settled(density, conditions, key))
                write_json(folder / DENSITY, told | {"fitted_on": asdict(fitted_on)})

        fit = Fit(density, feed, noise, settings, world, folder, blur_nm)
        outcome = fit.run(
            report=lambda step, note: progress(
                "fitting", step if world.rank == 0 else 0, settings.steps, "steps", note
            ),
            stopped=stopped,
            description=describe(density),
        )
        if outcome.finished and world.rank == 0:
            progress("choosing steps", settings.steps, settings.steps, "steps")
        if outcome.finished:
            together("the steps of the flow", lambda: settle() if world.rank == 0 else None, world, device)
    if world.rank == 0 and outcome.finished:
        write_json(
            folder / "errors.json",
            asdict(outcome)
            | {"train_frames": feed.n_train, "held_out_frames": feed.n_held_out, "processes": world.size}
            | {"kind": config.kind, "sigma_nm": config.sigma_nm, "lag_ps": config.lag_ps},
        )
    return outcome.finished


def finish(study: "Study") -> tuple[str, dict[str, Any]]:
    """Digest of the last checkpoint, and how the fit ended."""
    from hpc_cg.learning.checkpoint import SEALED, sealed

    folder = study.folder("flow")
    last = sealed(folder)[-1]
    return digest([last.name, read_json(last / SEALED)]), read_json(folder / "errors.json")


def done(study: "Study") -> tuple[int, int, str]:
    """Steps up to the newest sealed checkpoint, of how many."""
    sealed = sorted(path.parent.name for path in study.folder("flow").glob("step-*/SEALED"))
    return int(sealed[-1].removeprefix("step-")) if sealed else 0, study.tables["flow"].steps, "steps saved"
