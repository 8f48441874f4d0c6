"""Checkpoints: a folder per saved step, sealed last; the newest sealed one counts.

    step-000020000/   model.pt  optimizer.pt  cursor.json  description.json  SEALED
                      average.pt (with train.ema)  best.pt (with train.early_stop)

Training goes on from the model. Simulation uses the weights with the smallest held-out error where training looks for
them, else their average where there is one, else the model.

Tensors are loaded with ``weights_only=True``, everything else is JSON: a checkpoint runs no code. What is needed to
continue is the step, because the order of samples and all noise are functions of the seed and the step.
"""

import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpc_cg.errors import DamagedProduct, MissingInput, NotSealed
from hpc_cg.files import digest_bytes, explain_write_errors, fsync_folder, read_json, write_bytes, write_json
from hpc_cg.forcefield.forcefield import ForceField
from hpc_cg.kernels.density import ConditionalDensity
from hpc_cg.kernels.fitted import FittedOn
from hpc_cg.kernels.learnt import from_description

SEALED = "SEALED"
DENSITY = "density.json"
"""How a fitted kernel is used, beside its checkpoints."""


@dataclass(frozen=True)
class Checkpoint:
    """A training as it stood after ``step`` steps.

    average   of the weights, None where none is kept
    best      of all weights that were judged, those with the smallest held-out error; None where none are kept
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    cursor: dict[str, Any]
    description: dict[str, Any]
    average: dict[str, Tensor] | None = None
    best: dict[str, Tensor] | None = None

    @property
    def chosen(self) -> tuple[dict[str, Tensor], int]:
        """The weights that simulation uses, and the step that they are of."""
        if self.best is not None:
            return self.best, self.cursor["progress"]["best_step"]
        return (self.model if self.average is None else self.average), self.step


def _folder(root: Path, step: int) -> Path:
    return root / f"step-{step:09d}"


def save(root: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write a checkpoint and seal it; of the older ones ``keep`` - 1 stay."""
    folder = _folder(root, checkpoint.step)
    if (folder / SEALED).exists():
        return folder
    tensors: dict[str, Any] = {"model.pt": checkpoint.model, "optimizer.pt": checkpoint.optimizer}
    tensors |= {"average.pt": checkpoint.average, "best.pt": checkpoint.best}
    parts = {name: _bytes(value) for name, value in tensors.items() if value is not None}
    for name, content in parts.items():
        write_bytes(folder / name, content)
    write_json(folder / "cursor.json", checkpoint.cursor)
    write_json(folder / "description.json", checkpoint.description)
    write_json(folder / SEALED, {name: digest_bytes(content) for name, content in parts.items()})
    with explain_write_errors(root):
        fsync_folder(root)
        for old in sealed(root)[:-keep]:
            (old / SEALED).unlink()  # no half-removed folder may pass for a checkpoint
            shutil.rmtree(old)
    return folder


def sealed(root: Path) -> list[Path]:
    """Folders of sealed checkpoints, oldest first."""
    return sorted(path.parent for path in root.glob(f"step-*/{SEALED}"))


def load(folder: Path) -> Checkpoint:
    """Read a sealed checkpoint; raises DamagedProduct where its bytes are not those that were sealed."""
    seals = read_json(folder / SEALED)
    parts = {}
    for name, expected in seals.items():
        content = (folder / name).read_bytes()
        if digest_bytes(content) != expected:
            raise DamagedProduct(
                f"the checkpoint {folder}",
                f"{name} with other bytes than were sealed",
                "remove that folder; an older one is used",
            )
        parts[name] = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    cursor = read_json(folder / "cursor.json")
    return Checkpoint(
        cursor["step"],
        parts["model.pt"],
        parts["optimizer.pt"],
        cursor,
        read_json(folder / "description.json"),
        parts.get("average.pt"),
        parts.get("best.pt"),
    )


def newest(root: Path) -> Checkpoint | None:
    """The newest sealed checkpoint below ``root``, or None."""
    found = sealed(root)
    return load(found[-1]) if found else None


def load_forcefield(root: Path, molecule: str | None = None) -> tuple[ForceField, int]:
    """The force field that the newest sealed checkpoint below ``root`` chooses, and its step.

    molecule   whose force field, of a network that was trained on several
    Raises NotSealed; MissingInput where the network was not trained on that molecule.
    """
    found = newest(root)
    if found is None:
        raise NotSealed(
            f"a trained force field from {root}",
            "no sealed checkpoint there",
            "run the stage train of this study first",
        )
    known = found.description.get("molecules")
    if known is not None and molecule not in known:
        raise MissingInput(
            f"the force field of {molecule}",
            f"a network trained on {', '.join(known)} in {root}",
            "name one of these as simulate.molecule",
        )
    model, step = found.chosen
    try:
        forcefield = ForceField.from_description(found.description, molecule)
        forcefield.load_state_dict(model)
    except (KeyError, TypeError, RuntimeError) as error:
        raise DamagedProduct(
            f"the checkpoint {root} at step {found.step}",
            f"a force field that this version cannot build ({error})",
            "train again with this version, or use the version that trained it",
        ) from error
    return forcefield.eval(), step


def load_density(root: Path) -> tuple[ConditionalDensity, int]:
    """The learnt kernel that the newest sealed checkpoint below ``root`` chooses, and its step; raises NotSealed."""
    found = newest(root)
    if found is None:
        raise NotSealed(
            f"a learnt kernel from {root}", "no sealed checkpoint there", "run the stage flow of this study first"
        )
    weights, step = found.chosen
    told = read_json(root / DENSITY)
    try:
        density = from_description(told)
        _refuse_others_weights(root, found, told, density)
        density.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError) as error:
        raise DamagedProduct(
            f"the checkpoint {root} at step {found.step}",
            f"a learnt kernel that this version cannot build ({error})",
            "fit again with this version, or use the version that fitted it",
        ) from error
    return density.eval(), step


def fitted_on(root: Path) -> FittedOn | None:
    """What the learnt kernel below ``root`` was fitted on; None where an earlier version fitted it and kept no word."""
    found = read_json(root / DENSITY).get("fitted_on")
    return None if found is None else FittedOn.from_description(found)


def _refuse_others_weights(root: Path, found: Checkpoint, told: dict[str, Any], density: ConditionalDensity) -> None:
    """Raise DamagedProduct where a checkpoint is not that of the kernel which lies beside it."""
    weights, known = found.chosen[0], density.state_dict()
    faults = [
        f"{name} is {tuple(weights[name].shape) if name in weights else 'missing'} in the weights and "
        f"{tuple(known[name].shape) if name in known else 'unknown'} in {DENSITY}"
        for name in sorted(weights.keys() | known.keys())
        if name not in weights or name not in known or weights[name].shape != known[name].shape
    ]
    of = (content.get("density", {}) for content in (found.description, told))
    kept, wanted = ({key: value for key, value in content.items() if key != "integrator"} for content in of)
    faults += [f"{key} differs" for key in sorted(kept.keys() & wanted.keys()) if kept[key] != wanted[key]]
    if not faults:
        return
    about = told.get("fitted_on", {})
    whose = f" of {about['molecule']} with {len(about['beads'])} beads" if about else ""
    more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
    raise DamagedProduct(
        f"the weights of a {told['kind']} kernel{whose} from {root}",
        f"those of another molecule or shape in step {found.step}: {faults[0]}{more}",
        "remove that folder and run the stage flow again, or put the study's own checkpoint back",
    )


def _bytes(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
