"""Weights of the conditional flow that Klein et al. (arXiv 2506.19628) published, as a flow of this project.

Their file is a torch archive whose ``model_state_dict`` holds the graph network under long names, twice; it works in
Angstrom. Nothing but tensors is read from it.
"""

import re
from pathlib import Path
from zipfile import is_zipfile

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from hpc_cg.errors import MissingInput, UnknownBeads, UnreadableFile
from hpc_cg.kernels.cnf import CNFConfig, ConditionalFlow
from hpc_cg.kernels.egnn import EGNN, EGNNConfig

NETWORK = "_flow._dynamics._dynamics._dynamics_function.egnn."
PARTS = {
    "edge_mlp.0": "edge_in",
    "edge_mlp.2": "edge_out",
    "att_mlp.0": "gate",
    "coord_mlp.0": "shift_in",
    "coord_mlp.2": "shift_out",
    "node_mlp.0": "node_in",
    "node_mlp.2": "node_out",
}
"""The parts of a layer, by the peer's names and by ours."""

ANGSTROM_NM = 0.1


def read_published(path: Path, n_beads: int, config: CNFConfig | None = None) -> ConditionalFlow:
    """The flow of a published file, for a molecule of so many beads, each of a kind of its own, in the file's order.

    ``config`` has the σ that the weights were fitted with; the default is theirs for chignolin (0.05 Å). Raises
    MissingInput, UnreadableFile where it holds something else, UnknownBeads where it is for another molecule.
    """
    theirs = _network(path)
    embedding = theirs["embedding.weight"]
    n_known = embedding.shape[1] - 1
    if n_known != n_beads:
        raise UnknownBeads(
            f"published flow {path} for {n_beads} beads", f"weights for {n_known} beads", "use those of this molecule"
        )
    n_layers = 1 + max(int(name.split(".")[0][4:]) for name in theirs if name.startswith("gcl_"))
    shape = EGNNConfig(n_layers=n_layers, n_hidden=len(embedding), unit_nm=ANGSTROM_NM)
    network = EGNN(range(n_beads), shape, seed=0)
    ours = {name: theirs.get(_their_name(name)) for name in network.state_dict()}
    wrong = [
        name
        for name, value in network.state_dict().items()
        if (found := ours[name]) is None or found.shape != value.shape
    ]
    if wrong:
        raise UnreadableFile(
            f"published flow {path}",
            f"no weights of the right shape for {', '.join(wrong[:3])} in a network of {n_layers} layers of "
            f"{len(embedding)}",
            "use a file with a conditional flow of Klein et al.",
        )
    network.load_state_dict(ours)
    return ConditionalFlow(network, config or CNFConfig())


def _their_name(name: str) -> str:
    found = re.fullmatch(r"layers\.(\d+)\.(\w+)\.(weight|bias)", name)
    if found is None:
        return name
    part = next(theirs for theirs, ours in PARTS.items() if ours == found[2])
    return f"gcl_{found[1]}.{part}.{found[3]}"


def _network(path: Path) -> dict[str, Tensor]:
    """The arrays of the graph network, by the peer's names within it."""
    if not path.is_file():
        raise MissingInput(f"published flow {path}", "no such file", "name a file of weights")
    asked = f"published flow {path}"
    if not is_zipfile(path):
        raise UnreadableFile(asked, "no archive of torch", "download it again")
    try:
        if strange := get_unsafe_globals_in_checkpoint(path):
            raise UnreadableFile(asked, f"more than tensors in it ({strange[0]})", "do not trust it")
        content = torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, OSError) as error:
        raise UnreadableFile(
            asked, f"an archive that torch does not read ({error})"[:300], "download it again"
        ) from error
    weights = content.get("model_state_dict") if isinstance(content, dict) else None
    found = {name.removeprefix(NETWORK): value for name, value in (weights or {}).items() if name.startswith(NETWORK)}
    if "embedding.weight" not in found or not any(name.startswith("gcl_") for name in found):
        raise UnreadableFile(asked, "no graph network in it", "use a file with a conditional flow of Klein et al.")
    return found
