"""The force field: fixed priors plus a trained network, energy and forces together.

    V(r) = V_prior(r) + V_network(r),     F = -dV/dr

Forces are computed inside ``forward``, so that a data-parallel wrapper sees every use of the parameters. The
network alone is what training fits to the delta forces F - F_prior (Wang et al. 2019, doi
10.1021/acscentsci.8b00913).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hpc_cg.beads import BeadSystem
from hpc_cg.forcefield.fitting import PriorParameters
from hpc_cg.forcefield.grid import Grid
from hpc_cg.forcefield.prediction import Prediction
from hpc_cg.forcefield.priors import Prior
from hpc_cg.forcefield.schnet import SchNet, SchNetConfig


class ForceField(nn.Module):
    """Prior plus network for one bead system. Units nm, kJ/mol, kJ/mol/nm. Masses play no part.

    n_types   of the network, where it is to know more types of beads than this system has
    """

    def __init__(
        self,
        system: BeadSystem,
        prior: PriorParameters,
        config: SchNetConfig | None = None,
        seed: int = 0,
        n_types: int | None = None,
    ):
        super().__init__()
        self.system, self.parameters_of_prior, self.config = system, prior, config or SchNetConfig()
        self.prior = Prior(system, prior)
        self.network = SchNet(system.types, self.config, seed, n_types)

    def beside(self, system: BeadSystem, prior: PriorParameters) -> "ForceField":
        """The force field of another molecule, with priors of its own and the very same network."""
        other = ForceField(system, prior, self.config)
        other.network = self.network.beside(system.types)
        return other

    def forward(self, positions: Float[Tensor, "frame bead 3"]) -> Prediction:
        """Energy and forces of priors and network together."""
        return self.prior(positions) + self.network(positions)

    def delta(
        self, positions: Float[Tensor, "frame bead 3"], grid: Grid | None = None, half: bool = False
    ) -> Float[Tensor, "frame bead 3"]:
        """Forces of the network alone, which training compares with the delta forces; see ``SchNet.forward``."""
        return self.network(positions, grid, half).forces

    def prior_forces(self, positions: Float[Tensor, "frame bead 3"]) -> Float[Tensor, "frame bead 3"]:
        """Forces of the priors alone, without a graph."""
        with torch.no_grad():
            return self.prior(positions).forces

    def describe(self) -> dict[str, Any]:
        """All but the trained weights, as plain JSON that ``from_description`` reads."""
        content = {
            "system": self.system.to_json(),
            "prior": self.parameters_of_prior.to_json(),
            "network": asdict(self.config),
        }
        return json.loads(json.dumps(content))

    @staticmethod
    def from_description(content: dict[str, Any], molecule: str | None = None) -> "ForceField":
        """A force field of that description, with freshly drawn weights (load a state dict into it).

        molecule   which one of those that ``describe_several`` has described
        """
        network = dict(content["network"])
        network["terminal_widths"] = tuple(network["terminal_widths"])
        n_types = len(content["vocabulary"]) if "vocabulary" in content else None
        own = content["molecules"][molecule] if "molecules" in content else content
        system, prior = BeadSystem.from_json(own["system"]), PriorParameters.from_json(own["prior"])
        return ForceField(system, prior, SchNetConfig(**network), n_types=n_types)


def describe_several(forcefields: Mapping[str, ForceField], vocabulary: Sequence[str]) -> dict[str, Any]:
    """As ``ForceField.describe``, of molecules with one network.

    vocabulary   what each row of the network's embedding stands for
    """
    parts = {name: one.describe() for name, one in forcefields.items()}
    network = next(iter(parts.values()))["network"]
    molecules = {name: {"system": part["system"], "prior": part["prior"]} for name, part in parts.items()}
    return {"network": network, "vocabulary": list(vocabulary), "molecules": molecules}
