"""Stage train: fit priors and a network to the labels of the kernel, on one process or many."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from hpc_cg.config import STRICT
from hpc_cg.files import digest, read_json, write_json
from hpc_cg.stages.progress import Heartbeat

if TYPE_CHECKING:
    from hpc_cg.beads import BeadSystem
    from hpc_cg.forcefield.forcefield import ForceField
    from hpc_cg.learning.distributed import World
    from hpc_cg.learning.labels import Labels
    from hpc_cg.stages.study import Study


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """The table [train]. The network's defaults are the published ones for alanine dipeptide.

    batch_size       frames in the global batch, over all processes
    learning_rate    peak of the schedule: linear warm-up, then a cosine to final_learning_rate
    weight_decay     of AdamW
    torsion_order    of the torsion priors' Fourier series; 0 for bonds, angles and impropers alone
    cutoff_nm        beads further apart than this do not see one another
    seed             of the initial weights, the order of samples and the noise
    memory_limit_gb  largest store that is loaded
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
    seed: int = Field(default=1, ge=0)
    memory_limit_gb: float = Field(default=8.0, gt=0)


def build(study: "Study", labels: "Labels", system: "BeadSystem", train: np.ndarray) -> "ForceField":
    """A force field with priors fitted to the distribution trained on, and fresh weights. Raises FitFailed."""
    from hpc_cg.forcefield.coordinates import CoordinateMoments, fit_priors
    from hpc_cg.forcefield.forcefield import ForceField
    from hpc_cg.forcefield.schnet import SchNetConfig

    config: TrainConfig = study.tables["train"]
    batch = labels.batch(train, "prior noise", 0)
    moments = CoordinateMoments.of(batch.positions, system, batch.weights)
    priors = fit_priors(moments, study.study.temperature_K, config.torsion_order)
    return ForceField(
        system,
        priors,
        SchNetConfig(
            cutoff_nm=config.cutoff_nm,
            n_rbf=config.n_rbf,
            n_filters=config.n_filters,
            n_blocks=config.n_blocks,
            terminal_widths=config.terminal_widths,
        ),
        seed=config.seed,
    )


def work(study: "Study", world: "World", progress: Heartbeat, stopped: Callable[[], bool]) -> bool:
    """Train to the end, or until asked to stop; returns whether it came to the end."""
    import torch

    from hpc_cg.learning.labels import open_labels
    from hpc_cg.learning.loop import Settings, Trainer
    from hpc_cg.store.dataset import split

    config: TrainConfig = study.tables["train"]
    folder = study.folder("train")
    molecule = study.tables["prepare"].molecule
    labels, spec = open_labels(
        study.folder("prepare"), study.folder("kernel"), molecule, config.seed, config.memory_limit_gb
    )
    train, validation = split(labels.frames, spec.held_out)
    forcefield = build(study, labels, spec.system, train)
    if torch.cuda.is_available():
        forcefield = forcefield.to(torch.device("cuda", torch.cuda.current_device()))
    names = set(Settings.__dataclass_fields__)
    settings = Settings(**{name: value for name, value in asdict(config).items() if name in names})
    trainer = Trainer(forcefield, labels, train, validation, settings, world, folder)
    outcome = trainer.run(
        report=lambda step, note: progress("training", step if world.rank == 0 else 0, settings.steps, "steps", note),
        stopped=stopped,
        description=forcefield.describe(),
    )
    if world.rank == 0 and outcome.finished:
        errors = outcome.validation
        write_json(
            folder / "errors.json",
            asdict(errors)
            | {
                "floor": errors.floor,
                "explained": errors.explained,
                "explained_delta": errors.explained_delta,
            }
            | {"train_frames": len(train), "held_out_frames": len(validation)}
            | {"frames_per_s": outcome.frames_per_s, "processes": world.size},
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
