"""Stage train: fit priors and a network to the labels of the kernel, on one process or many."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from hpc_cg.config import STRICT
from hpc_cg.errors import ConfigError, FitFailed
from hpc_cg.files import digest, read_json, write_bytes, write_json
from hpc_cg.stages.molecules import trained_molecules
from hpc_cg.stages.progress import Heartbeat

if TYPE_CHECKING:
    import torch

    from hpc_cg.beads import BeadSystem
    from hpc_cg.forcefield.fitting import PriorParameters
    from hpc_cg.learning.distributed import World
    from hpc_cg.learning.feed import Feed
    from hpc_cg.learning.mixture import Member
    from hpc_cg.stages.study import Study


BESIDE = frozenset({"accumulate", "compile", "pairs", "checkpoint_every", "tensorboard"})
"""These sum the same gradient in another order, or decide what is kept on the way."""

STREAMS = 16
PICTURE = "train-fit-failed.png"
"""In the folder of the run: the histogram that no prior could be fitted to."""
INTERVALS, FEWEST_INTERVALS = 16, 512
"""Of the grid for filters: for each radial function, and at least. Forces then err by less than 1e-4 of their rms."""


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """The table [train]. The network's defaults are the published ones for alanine dipeptide.

    batch_size         frames in the global batch, over all processes
    learning_rate      peak of the schedule: linear warm-up, then down to final_learning_rate
    schedule           "cosine", or "plateau": times plateau_factor after plateau_patience looks without a smaller error
    early_stop         looks without a smaller held-out error after which training ends; 0 for never. Then the weights
                       with the smallest error are simulated
    ema                decay of the average of the weights that is judged and simulated; 0 for the weights themselves
    accumulate         parts of each process's batch that are done one after another, to need less memory
    precision          "float32", or "bfloat16" for the matrix products of the network
    compile            whether torch.compile makes the training step
    decoy_every        one frame in so many gets a copy displaced by decoy_nm, without delta force; 0 for none
    tensorboard        whether to write the learning curves for TensorBoard too
    weight_decay       of AdamW
    filter_grid        intervals of the grid that filters are interpolated on in training; "auto" for INTERVALS for each
                       radial function, but not too few; 0 for the filters themselves
    pairs              who sums over pairs on a grid: "compiled" code (CPU), "torch", or "auto" for the first that works
    torsion_order      of the torsion priors' Fourier series; 0 for no torsions
    torsion_degree     "fixed": every torsion has that order. "best": each has the best up to it, by Akaike's criterion
    priors_per         whether each "term" has priors of its own, or all terms of the same "type" share them
    repulsion          whether beads that are not bonded repel, as (σ / r)^6
    repulsion_bonds    beads at least so many bonds apart repel
    repulsion_percentile  of the distances seen between beads of two types, which is their σ; 0 for the smallest
    repulsion_largest_nm  no σ is larger
    cutoff_nm          beads further apart than this do not see one another
    seed               of the initial weights, the order of samples and the noise
    fraction           of the frames to learn from: 1, or one over a whole number k for every k-th of them
    subset             of fraction 1/k: which one, 0 to k − 1 and round again
    molecule           of the study's several ones, the one to train on; empty where there is only one
    molecules          those that one network is trained on together, each with an equal part of every batch
    memory_limit_gb    largest store that is loaded; a larger one is streamed from disk, with the settings below
    streams            of a streamed store: parts that processes share out, a divisor of batch_size and at least as
                       many as processes; 0 for 16, or the largest divisor below. A divisor of a molecule's part of it
    shuffle_gb         of a streamed store: memory of the windows in which frames are shuffled, in all processes
    validation_frames  of a streamed store: at most so many held-out frames are looked at, of each molecule
    prior_frames       of a streamed store: at most so many frames priors are fitted on, of each molecule
    """

    steps: int = Field(default=2500, ge=1)
    batch_size: int = Field(default=256, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    final_learning_rate: float = Field(default=1e-5, gt=0)
    warmup_steps: int = Field(default=50, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=10.0, gt=0)
    validate_every: int = Field(default=100, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    cutoff_nm: float = Field(default=1.5, gt=0)
    n_rbf: int = Field(default=20, ge=2)
    n_filters: int = Field(default=128, ge=1)
    n_blocks: int = Field(default=2, ge=1)
    terminal_widths: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(128,), min_length=1)
    torsion_order: int = Field(default=8, ge=0, le=30)
    filter_grid: Annotated[int, Field(ge=0, le=1_000_000)] | Literal["auto"] = "auto"
    pairs: Literal["auto", "compiled", "torch"] = "auto"
    torsion_degree: Literal["fixed", "best"] = "fixed"
    priors_per: Literal["term", "type"] = "term"
    repulsion: bool = True
    repulsion_bonds: int = Field(default=4, ge=2, le=6)
    repulsion_percentile: float = Field(default=0.1, ge=0, le=5)
    repulsion_largest_nm: float = Field(default=0.6, gt=0)
    schedule: Literal["cosine", "plateau"] = "cosine"
    plateau_factor: float = Field(default=0.8, gt=0, lt=1)
    plateau_patience: int = Field(default=5, ge=1)
    early_stop: int = Field(default=0, ge=0)
    ema: float = Field(default=0.0, ge=0, lt=1)
    accumulate: int = Field(default=1, ge=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    decoy_every: int = Field(default=0, ge=0)
    decoy_nm: float = Field(default=0.05, gt=0)
    tensorboard: bool = False
    seed: int = Field(default=1, ge=0)
    fraction: float = Field(default=1.0, gt=0, le=1)
    subset: int = Field(default=0, ge=0)
    molecule: str = ""
    molecules: tuple[str, ...] = ()
    memory_limit_gb: float = Field(default=8.0, gt=0)
    streams: int = Field(default=0, ge=0)
    shuffle_gb: float = Field(default=1.0, gt=0)
    validation_frames: int = Field(default=20_000, ge=1)
    prior_frames: int = Field(default=100_000, ge=1)

    @model_validator(mode="after")
    def _molecules_share_a_batch_evenly(self) -> "TrainConfig":
        if self.molecule and self.molecules:
            raise ValueError("molecule names the only one to train on, molecules several: take one.")
        if len(set(self.molecules)) < len(self.molecules):
            raise ValueError(f"molecules = {list(self.molecules)} has the same name twice.")
        count = max(1, len(self.molecules))
        if self.batch_size % count:
            near = self.batch_size // count * count
            raise ValueError(
                f"batch_size = {self.batch_size} cannot be shared evenly by {count} molecules: take "
                f"{f'{near} or ' if near else ''}{near + count}."
            )
        if self.accumulate > self.molecule_frames:
            raise ValueError(f"accumulate = {self.accumulate} is more than {self._batch}.")
        if self.molecule_frames % self.n_streams:
            raise ValueError(f"streams = {self.streams} does not divide {self._batch}.")
        return self

    @model_validator(mode="after")
    def _fraction_is_one_of_equal_parts(self) -> "TrainConfig":
        if abs(self.every * self.fraction - 1) > 2e-3:
            raise ValueError(f"fraction = {self.fraction} is not one over a whole number, as 0.1 or 0.01 are.")
        return self

    @model_validator(mode="after")
    def _settings_go_together(self) -> "TrainConfig":
        if self.final_learning_rate > self.learning_rate:
            final, peak = self.final_learning_rate, self.learning_rate
            raise ValueError(f"final_learning_rate = {final} is more than learning_rate = {peak}, the peak.")
        if self.compile and self.pairs == "compiled":
            raise ValueError('compile = true makes tensor operations quicker, pairs = "compiled" has none: take one.')
        if self.compile and self.precision == "bfloat16":
            raise ValueError('compile = true does not round where precision = "bfloat16" rounds: take one.')
        if self.filter_grid == 0 and self.pairs == "compiled":
            raise ValueError('pairs = "compiled" interpolates filters, filter_grid = 0 does not: take one.')
        return self

    @property
    def molecule_frames(self) -> int:
        """Frames of each molecule in the global batch."""
        return self.batch_size // max(1, len(self.molecules))

    @property
    def _batch(self) -> str:
        """What batch there is of each molecule, in words."""
        each = f" for {len(self.molecules)} molecules, {self.molecule_frames} frames of each" if self.molecules else ""
        return f"batch_size = {self.batch_size}{each}"

    @property
    def every(self) -> int:
        """Of so many frames to train on, one is used."""
        return round(1 / self.fraction)

    @property
    def n_intervals(self) -> int:
        """Intervals of the grid for filters; 0 for none."""
        return max(FEWEST_INTERVALS, INTERVALS * self.n_rbf) if self.filter_grid == "auto" else self.filter_grid

    @property
    def n_streams(self) -> int:
        """Streams of a streamed store."""
        return self.streams or max(n for n in range(1, STREAMS + 1) if self.molecule_frames % n == 0)


class Fed(NamedTuple):
    """What one molecule is trained on: its feed, its beads, and the seed of what is drawn for it."""

    feed: "Feed"
    system: "BeadSystem"
    seed: int


def labels_per_use(study: "Study") -> int:
    """Of so many labels, one is trained on, so that a ``fraction`` of the archive's frames is learnt from.

    Labels of a learnt kernel are made of flow.fraction of these: of a smaller or equal part all labels serve. Raises
    ConfigError where one part is not within the other.
    """
    every, flow = study.tables["train"].every, study.tables.get("flow")
    made_of = 1 if flow is None else flow.every
    if max(every, made_of) % min(every, made_of):
        raise ConfigError(
            study.path.name,
            [
                f"train.fraction is 1/{every} and flow.fraction 1/{made_of}: labels are made of flow.fraction of the "
                "frames. Make the two the same, or one a whole part of the other."
            ],
        )
    return max(1, every // made_of)


def open_feeds(study: "Study", world: "World", device: "torch.device", opened: ExitStack) -> dict[str, Fed]:
    """What the trainer is fed with, by molecule: from memory where all stores fit, else from disk.

    opened   closes the feeds
    """
    from hpc_cg.learning import opening
    from hpc_cg.learning.labels import label_source
    from hpc_cg.learning.mixture import seed_of

    config: TrainConfig = study.tables["train"]
    names = [molecule.name for molecule in trained_molecules(study)]
    sources = [label_source(study.folder("prepare"), study.folder("kernel"), name) for name in names]
    seeds = [config.seed if len(names) == 1 else seed_of(config.seed, name) for name in names]
    how = opening.Loading(
        stage="train",
        batch_size=config.molecule_frames,
        every=labels_per_use(study),
        subset=config.subset,
        memory_limit_gb=config.memory_limit_gb,
        n_streams=config.n_streams,
        shuffle_gb=config.shuffle_gb,
        validation_frames=config.validation_frames,
        prior_frames=config.prior_frames,
    )
    found = {}
    feeds = opening.open_feeds(sources, seeds, how, world, device)
    for name, feed, source, seed in zip(names, feeds, sources, seeds, strict=True):
        opened.callback(feed.close)
        found[name] = Fed(feed, source.spec.system, seed)
    return found


def with_shared_types(study: "Study", fed: Mapping[str, Fed]) -> "tuple[tuple[str, ...], dict[str, BeadSystem]]":
    """The names of all bead types, and the beads of each molecule with the places of their types among these."""
    from hpc_cg.learning.mixture import vocabulary
    from hpc_cg.mapping.types import type_names

    systems = {name: one.system for name, one in fed.items()}
    names = [type_names(systems[one.name].types, one.map, one.bead_types, one.name) for one in trained_molecules(study)]
    rows, types = vocabulary(names)
    pairs = zip(systems.items(), types, strict=True)
    return tuple(rows), {name: replace(system, types=own) for (name, system), own in pairs}


def build(study: "Study", fed: Mapping[str, Fed]) -> "tuple[tuple[Member, ...], dict[str, Any]]":
    """The molecules with their priors and one network with fresh weights, and what a checkpoint says of them.

    Raises FitFailed.
    """
    from hpc_cg.forcefield.forcefield import ForceField, describe_several
    from hpc_cg.forcefield.schnet import SchNetConfig
    from hpc_cg.learning.mixture import Member

    config: TrainConfig = study.tables["train"]
    shape = SchNetConfig(
        cutoff_nm=config.cutoff_nm,
        n_rbf=config.n_rbf,
        n_filters=config.n_filters,
        n_blocks=config.n_blocks,
        terminal_widths=config.terminal_widths,
    )
    if len(fed) == 1:
        ((name, (feed, system, seed)),) = fed.items()
        forcefield = ForceField(system, fitted_priors(study, feed, system), shape, config.seed)
        return (Member(name, forcefield, feed, seed),), forcefield.describe()
    types, systems = with_shared_types(study, fed)
    forcefields: dict[str, ForceField] = {}
    for name, system in systems.items():
        try:
            priors = fitted_priors(study, fed[name].feed, system)
        except FitFailed as error:
            raise FitFailed(f"{name}: {error.asked}", error.found, error.change, error.evidence) from error
        if not forcefields:
            first = forcefields[name] = ForceField(system, priors, shape, config.seed, len(types))
        else:
            forcefields[name] = first.beside(system, priors)
    members = [Member(name, forcefields[name], one.feed, one.seed) for name, one in fed.items()]
    return tuple(members), describe_several(forcefields, types)


def fitted_priors(study: "Study", feed: "Feed", system: "BeadSystem") -> "PriorParameters":
    """Priors fitted to the distribution that a molecule is trained on. Raises FitFailed."""
    from hpc_cg.forcefield.fitting import Repulsion, fit_priors

    config: TrainConfig = study.tables["train"]
    repulsion = Repulsion(config.repulsion_bonds, config.repulsion_percentile, config.repulsion_largest_nm)
    return fit_priors(
        feed.moments(system),
        study.study.temperature_K,
        config.torsion_order,
        best_order=config.torsion_degree == "best",
        per=config.priors_per,
        repulsion=repulsion if config.repulsion else None,
    )


def drawn(study: "Study", error: FitFailed, draw: bool) -> FitFailed:
    """The error with the name of a picture of what could not be fitted, which is drawn beside the folder of the stage.

    draw   whether to draw it here, or to name it only, as all processes but one do
    """
    from hpc_cg.forcefield.histograms import Evidence
    from hpc_cg.report.figures import failed_fit

    if not isinstance(error.evidence, Evidence):
        return error
    picture = study.run_folder / PICTURE
    if draw:
        write_bytes(picture, failed_fit(error.evidence))
    return FitFailed(error.asked, error.found, f"look at {picture}, {error.change}", error.evidence)


def work(study: "Study", world: "World", progress: Heartbeat, stopped: Callable[[], bool]) -> bool:
    """Train to the end, or until asked to stop; returns whether it came to the end."""
    from hpc_cg.learning.distributed import own_device
    from hpc_cg.learning.loop import Trainer
    from hpc_cg.learning.settings import Settings

    config: TrainConfig = study.tables["train"]
    folder = study.folder("train")
    device = own_device()
    with ExitStack() as opened:
        fed = open_feeds(study, world, device, opened)
        try:
            members, description = build(study, fed)
        except FitFailed as error:
            told = drawn(study, error, world.rank == 0)
            world.barrier()  # every process fails at the same place; the first to leave would end the one that draws
            raise told from error
        if world.rank == 0:
            (study.run_folder / PICTURE).unlink(missing_ok=True)  # of an earlier try
        for member in members:
            member.forcefield.to(device)
        in_memory = all(member.feed.in_memory for member in members)
        where = "" if in_memory else ", frames streamed from disk"
        names = set(Settings.__dataclass_fields__)
        found = asdict(config) | {"filter_grid": config.n_intervals}
        settings = Settings(**{name: value for name, value in found.items() if name in names})
        trainer = Trainer(members, settings, world, folder)
        outcome = trainer.run(
            report=lambda step, note: progress(
                "training", step if world.rank == 0 else 0, settings.steps, "steps", note + where
            ),
            stopped=stopped,
            description=description,
        )
    if world.rank == 0 and outcome.finished:
        own = {
            member.name: errors.to_json()
            | {"train_frames": member.feed.n_train, "held_out_frames": member.feed.n_held_out}
            for member, errors in zip(members, outcome.of_molecules, strict=True)
        }
        whole = {name: sum(one[name] for one in own.values()) for name in ("train_frames", "held_out_frames")}
        write_json(
            folder / "errors.json",
            outcome.validation.to_json()
            | whole
            | {"in_memory": in_memory, "frames_per_s": outcome.frames_per_s, "processes": world.size}
            | {"step": outcome.step, "chosen_step": outcome.chosen_step, "pairs": trainer.exact[0].pairs}
            | {"grid_error": outcome.grid_error, "precision_error": outcome.precision_error}
            | {"precision_error_at_start": outcome.precision_error_at_start}
            | ({"molecules": own} if len(own) > 1 else {}),
        )
    return outcome.finished


def finish(study: "Study") -> tuple[str, dict[str, Any]]:
    """Digest of the last checkpoint and the errors on held-out frames."""
    from hpc_cg.learning.checkpoint import SEALED, sealed

    folder = study.folder("train")
    last = sealed(folder)[-1]
    return digest([last.name, read_json(last / SEALED)]), read_json(folder / "errors.json")


def done(study: "Study") -> tuple[int, int, str]:
    """Steps up to the newest sealed checkpoint, of how many."""
    sealed = sorted(path.parent.name for path in study.folder("train").glob("step-*/SEALED"))
    return int(sealed[-1].removeprefix("step-")) if sealed else 0, study.tables["train"].steps, "steps saved"
