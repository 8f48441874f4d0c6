"""How the models of Arts et al. (arXiv 2302.00600) were trained, by molecule, as their published settings say.

Common to all: cosine schedule of 1000 levels, displacement edges, half of all draws at levels below 100, AdamW with a
weight decay of 10⁻¹², a cosine of the learning rate down to 10⁻⁵, an average of the weights with decay 0.995 every ten
steps.
"""

from dataclasses import dataclass

from hpc_cg.diffusion.transformer import TransformerConfig


@dataclass(frozen=True)
class Preset:
    """Settings for one molecule.

    network     its shape
    batch_size, learning_rate, n_steps   of training
    level       of the force field
    """

    network: TransformerConfig
    batch_size: int
    learning_rate: float
    n_steps: int
    level: int


def _preset(width: int, n_layers: int, batch_size: int, learning_rate: float, n_steps: int, level: int) -> Preset:
    return Preset(TransformerConfig(width=width, n_layers=n_layers), batch_size, learning_rate, n_steps, level)


PRESETS = {
    "alanine-dipeptide": _preset(96, 2, 1024, 3e-4, 1_000_000, 8),
    "chignolin": _preset(64, 3, 512, 4e-4, 1_000_000, 20),
    "trp-cage": _preset(128, 3, 512, 4e-4, 1_000_000, 15),
    "bba": _preset(96, 3, 512, 4e-4, 1_500_000, 5),
    "villin": _preset(128, 3, 512, 4e-4, 2_000_000, 5),
    "protein-g": _preset(128, 3, 256, 4e-4, 3_000_000, 5),
}
