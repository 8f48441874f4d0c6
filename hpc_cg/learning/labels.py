"""The labelled frames that a model is trained on: drawn afresh at each step, or stored.

Redrawn noise is keyed by (seed, purpose, step) for the whole global batch, of which each process takes its share, so
the labels do not depend on the number of processes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from hpc_cg.errors import MissingForces
from hpc_cg.files import read_json
from hpc_cg.kernels.noise import NoiseKernel
from hpc_cg.randomness import stream
from hpc_cg.store.dataset import StoreFrames, load, open_spec
from hpc_cg.store.layout import STORE, StoreSpec


@dataclass(frozen=True)
class Batch:
    """Labelled frames; ``index`` says where in the store's usable frames they come from."""

    index: Int[np.ndarray, "frame"]
    positions: Float[np.ndarray, "frame bead 3"]
    forces: Float[np.ndarray, "frame bead 3"]
    weights: Float[np.ndarray, "frame"]

    def part(self, part: slice) -> "Batch":
        return Batch(self.index[part], self.positions[part], self.forces[part], self.weights[part])


@dataclass(frozen=True)
class Labels:
    """Frames of a store and how to label them.

    kernel   a noise kernel whose draws are made here; None where ``frames`` holds the labels already
    """

    frames: StoreFrames
    kernel: NoiseKernel | None
    seed: int

    def batch(self, index: Int[np.ndarray, "frame"], purpose: str, step: int) -> Batch:
        """Labels for the given frames; the same (purpose, step) gives the same draws. Raises MissingForces."""
        frames = self.frames
        positions = frames.positions[index]
        forces = None if frames.forces is None else frames.forces[index]
        if self.kernel is not None:
            noise = self.kernel.draw(positions.shape, stream(self.seed, purpose, step))
            positions, forces = positions + noise, self.kernel.label(noise, forces)
        elif frames.noise is not None:
            positions = positions + frames.noise[index]
        if forces is None:
            raise MissingForces("labels to train on", "a store without forces", 'choose kernel.kind = "noise"')
        return Batch(index, positions, forces, frames.weights[index])


def open_labels(
    prepared: Path, kernel: Path, molecule: str, seed: int, memory_limit_gb: float = 8.0
) -> tuple[Labels, StoreSpec]:
    """The labels that the products of prepare and kernel (their folders) give, and the spec of the prepared store.

    Raises OutOfMemory, MissingInput.
    """
    fitted = read_json(kernel / "kernel.json")
    spec = open_spec(prepared / STORE, molecule)
    source = kernel if fitted["draws"] == "stored" else prepared
    frames = load(source / STORE, molecule, memory_limit_gb)
    drawn = None
    if fitted["kind"] != "none" and fitted["draws"] == "redrawn":
        mixing = None if fitted["mixing"] is None else np.asarray(fitted["mixing"], dtype=np.float64)
        drawn = NoiseKernel(fitted["sigma_nm"], spec.temperature_K, mixing)
    return Labels(frames, drawn, seed), spec
