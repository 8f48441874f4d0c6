"""Diffusion models from checkpoints; what they hold is learning/checkpoint.py's, and runs no code."""

from pathlib import Path

from hpc_cg.diffusion.model import DiffusionModel
from hpc_cg.errors import DamagedProduct, NotSealed
from hpc_cg.learning.checkpoint import newest


def load_diffusion(root: Path) -> tuple[DiffusionModel, int]:
    """The model that the newest sealed checkpoint below ``root`` chooses, and its step.

    Its description is what ``DiffusionModel.describe`` says. Raises NotSealed, and DamagedProduct.
    """
    found = newest(root)
    if found is None:
        raise NotSealed(f"a diffusion model from {root}", "no sealed checkpoint there", "train one first")
    weights, step = found.chosen
    try:
        model = DiffusionModel.from_description(found.description)
        model.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError) as error:
        raise DamagedProduct(
            f"the checkpoint {root} at step {found.step}",
            f"a diffusion model that this version cannot build ({error})",
            "train again with this version, or use the version that trained it",
        ) from error
    return model.eval(), step
