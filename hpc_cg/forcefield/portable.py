"""A force field for other programs: a file that needs torch and nothing of this package.

Two forms of one module, chosen by the suffix of the file:

    .pt2   torch.export: read in Python by torch.export.load(path).module(), compiled for one machine by AOTInductor
    .pt    TorchScript: read by torch::jit::load in C++, by openmm-torch, and in Python; also takes a single frame

Called with positions (frame bead 3; nm) either returns energy (frame; kJ/mol) and forces (frame bead 3; kJ/mol/nm). The
module holds the network itself and no tables. Beside it lie what the beads are (JSON) and, for who writes the network
down anew, its filters with their derivatives and its weights (npz).
"""

import io
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hpc_cg.errors import HpcCgError
from hpc_cg.files import write_arrays, write_bytes, write_json
from hpc_cg.forcefield.coordinates import torsions_of
from hpc_cg.forcefield.fitting import REPULSION_ENERGY
from hpc_cg.forcefield.forcefield import ForceField
from hpc_cg.forcefield.repulsion import INNER

FORMAT = 1
"""Version of the JSON and of the arrays beside an exported force field."""

KINDS = {".pt2": "torch.export", ".pt": "TorchScript"}
"""What a suffix stands for."""

FILTERS = "-network.npz"
"""End of the name of the file of filters and weights."""


class Portable(nn.Module):
    """The force field in plain tensor operations, all constants as buffers, so that it can be traced and moved."""

    def __init__(self, forcefield: ForceField, dtype: torch.dtype):
        super().__init__()
        own = deepcopy(forcefield).requires_grad_(False).to("cpu", dtype)
        self.prior, self.network = own.prior, own.network
        for module in self.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.clone())  # each with a memory of its own, as a file wants it

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Energy (frame; kJ/mol) and forces (frame bead 3; kJ/mol/nm) at positions (frame bead 3; nm)."""
        prior, network = self.prior(positions), self.network.predict(positions, self._convolve)
        return prior.energy + network.energy, prior.forces + network.forces

    def _convolve(self, distances: Tensor) -> list["IndexedConvolution"]:
        network = self.network
        return [IndexedConvolution(*kernel, network.first, network.second) for kernel in network.filters(distances)]


class IndexedConvolution(NamedTuple):
    """A convolution (schnet.Convolution) in operations that every reader of the file knows."""

    value: Float[Tensor, "pair frame feature"]
    slope: Float[Tensor, "pair frame feature"]
    first: Tensor
    second: Tensor

    def receive(self, sent: Tensor) -> Tensor:
        return self._gather(sent.expand(-1, self.value.shape[1], -1))

    def push(self, sent: Tensor, pull: Tensor, further: bool) -> tuple[Tensor, Tensor | None]:
        sent = sent.expand_as(pull)
        coupled = pull.index_select(0, self.first) * sent.index_select(0, self.second)
        coupled = coupled + pull.index_select(0, self.second) * sent.index_select(0, self.first)
        return (coupled * self.slope).sum(-1), self._gather(pull) if further else None

    def _gather(self, x: Tensor) -> Tensor:
        received = torch.zeros_like(x).index_add(0, self.first, self.value * x.index_select(0, self.second))
        return received.index_add(0, self.second, self.value * x.index_select(0, self.first))


class _AnyFrames(nn.Module):
    """A traced module that takes many frames or one."""

    def __init__(self, traced: torch.jit.ScriptModule):
        super().__init__()
        self.traced = traced

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        if positions.dim() == 2:
            energy, forces = self.traced(positions.unsqueeze(0))
            return energy[0], forces[0]
        energy, forces = self.traced(positions)
        return energy, forces


def write_portable(
    path: Path,
    forcefield: ForceField,
    temperature_K: float,
    example: Float[np.ndarray, "bead 3"],
    dtype: torch.dtype = torch.float32,
    about: dict[str, Any] | None = None,
) -> tuple[Path, ...]:
    """Write the force field for other programs, and beside it what it is; the paths of the three files.

    path            its suffix chooses the form, see KINDS
    temperature_K   at which it was trained and holds
    example         positions (nm) whose energy and forces are kept for who wants to check what a program computes
    dtype           of the positions it takes and of all it computes
    about           more for the JSON: plain values
    Raises HpcCgError for another suffix, DiskFull, FolderNotWritable.
    """
    if path.suffix not in KINDS:
        known = " or ".join(f"{suffix} ({kind})" for suffix, kind in KINDS.items())
        raise HpcCgError(f"exporting the force field to {path}", f"suffix {path.suffix!r}", f"end the name in {known}")
    module = Portable(forcefield, dtype).eval()
    frames = torch.as_tensor(np.stack([example, example]), dtype=dtype)
    content = _exported(module, frames) if path.suffix == ".pt2" else _scripted(module, frames)
    _check(content, path.suffix, module, frames)
    energy, forces = (value[0].numpy() for value in module(frames))
    beside = path.with_suffix(".json"), path.with_name(path.stem + FILTERS)
    described = _description(path, forcefield, temperature_K, dtype) | {
        "example": {"positions_nm": frames[0].tolist(), "energy_kJ_mol": float(energy), "forces": forces.tolist()},
        **(about or {}),
    }
    write_bytes(path, content)
    write_json(beside[0], described)
    write_arrays(beside[1], **network_arrays(forcefield))
    return (path, *beside)


def _description(path: Path, forcefield: ForceField, temperature_K: float, dtype: torch.dtype) -> dict[str, Any]:
    prior = forcefield.parameters_of_prior
    return {
        "format": FORMAT,
        "file": path.name,
        "kind": KINDS[path.suffix],
        "dtype": str(dtype).removeprefix("torch."),
        "takes": "positions (frame bead 3; nm)",
        "returns": ["energy (frame; kJ/mol)", "forces (frame bead 3; kJ/mol/nm)"],
        "temperature_K": temperature_K,
        **{name: list(value) for name, value in forcefield.system.to_json().items()},
        "masses_unit": "u",
        "torsions": [list(quad) for quad in torsions_of(forcefield.system)] if prior.torsion_sin.size else [],
        "prior": prior.to_json(),
        "repulsion": {"energy_kJ_mol": REPULSION_ENERGY, "straight_below": INNER, "power": 6},
        "network": forcefield.describe()["network"],
        "torch": torch.__version__,
    }


def _exported(module: Portable, frames: Tensor) -> bytes:
    """The module by torch.export, for any number of frames."""
    program = torch.export.export(module, (frames,), dynamic_shapes={"positions": {0: torch.export.Dim("frame")}})
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _scripted(module: Portable, frames: Tensor) -> bytes:
    """The module as TorchScript, for any number of frames."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # torch prefers .pt2, but C++ programs and openmm-torch read only this; lengths that become constants are those
        # of the molecule, and _check looks at the others
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, (frames,), check_trace=False)
        torch.jit.save(torch.jit.script(_AnyFrames(traced)), buffer)
    return buffer.getvalue()


def _check(content: bytes, suffix: str, module: Portable, frames: Tensor) -> None:
    """What was written computes what the module does, for other numbers of frames than it was made with."""
    file = io.BytesIO(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = torch.export.load(file).module() if suffix == ".pt2" else torch.jit.load(file)
    for some in (frames[:1], frames.repeat(2, 1, 1)[:3]):
        for value, wanted in zip(found(some), module(some), strict=True):
            torch.testing.assert_close(value, wanted)


def network_arrays(forcefield: ForceField, n_knots: int = 1024) -> dict[str, np.ndarray]:
    """The network as arrays, float64: filters at knots, and what else it has.

    knots_nm                  distances, equally spaced from 0 to the cutoff; filters are zero from there on
    filter_{b}_values         filter of block b at the knots (knot feature)
    filter_{b}_slopes         its derivative by distance (knot feature; 1/nm)
    bead_types, energy_unit   rows of embedding.weight of the beads; kJ/mol of one unit of the last layer
    embedding.weight, blocks.{b}.inward.weight, blocks.{b}.mix.*, blocks.{b}.outward.*, readout.{n}.*, last.weight

    With x the features of a bead, tanh of every hidden layer, and y = x W^T + bias of every layer:
    x <- x + outward(tanh(mix(sum over other beads of filter_b(d) * inward(x of the other))) for each block, and
    E = energy_unit * sum over beads of last(tanh(readout(x))).
    """
    network = deepcopy(forcefield.network).to("cpu", torch.float64)
    knots = torch.linspace(0.0, network.config.cutoff_nm, n_knots + 1, dtype=torch.float64)
    arrays = {
        "knots_nm": knots.numpy(),
        "bead_types": network.types.numpy(),
        "energy_unit": np.asarray(network.config.energy_unit),
    }
    with torch.no_grad():
        for number, one in enumerate(network.filters(knots[:, None])):
            arrays[f"filter_{number}_values"] = one.value[:, 0].numpy()
            arrays[f"filter_{number}_slopes"] = one.slope[:, 0].numpy()
    weights = {name: value.numpy() for name, value in network.state_dict().items() if ".filter_" not in name}
    return arrays | weights
