"""The labelled frames that a model is trained on: drawn afresh at each step, or stored.

Redrawn noise is keyed by (seed, purpose, step) for the whole global batch, of which each process takes its share, so
the labels do not depend on the number of processes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from hpc_cg.errors import MissingForces, MissingInput
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


def labelled(
    kernel: NoiseKernel | None,
    positions: Float[np.ndarray, "frame bead 3"],
    noise: Float[np.ndarray, "frame bead 3"] | None,
    forces: Float[np.ndarray, "frame bead 3"] | None,
) -> tuple[Float[np.ndarray, "frame bead 3"], Float[np.ndarray, "frame bead 3"]]:
    """Where the labels of frames hold, and the labels: nm and kJ/mol/nm.

    noise    displacements: drawn for ``kernel``, or stored with their labels, which then are ``forces``
    Raises MissingForces.
    """
    if noise is not None:
        positions = positions + noise
    if kernel is not None:
        forces = kernel.label(noise, forces)
    if forces is None:
        raise MissingForces("labels to train on", "a store without forces", 'choose kernel.kind = "noise"')
    return positions, forces


@dataclass(frozen=True)
class Labels:
    """Frames of a store in memory and how to label them.

    kernel   a noise kernel whose draws are made here; None where ``frames`` holds the labels already
    """

    frames: StoreFrames
    kernel: NoiseKernel | None
    seed: int

    def batch(self, index: Int[np.ndarray, "frame"], purpose: str, step: int, part: slice | None = None) -> Batch:
        """Labels for the given frames; the same (purpose, step) gives the same draws. Raises MissingForces.

        part   which of the frames are wanted; the others get their draws all the same
        """
        mine, noise = index, self.draw(len(index), purpose, step)
        if part is not None:
            mine, noise = index[part], None if noise is None else noise[part]
        return self._labelled(mine, noise)

    def batches(self, index: Int[np.ndarray, "frame"], purpose: str, step: int, size: int) -> Iterator[Batch]:
        """The labels of ``batch``, ``size`` frames at a time, for more frames than should be labelled at once."""
        key, beads = stream(self.seed, purpose, step), self.frames.positions.shape[1:]
        for first in range(0, len(index), size):
            mine = index[first : first + size]
            # one generator for all parts: drawn one after another, the numbers are those of one draw
            yield self._labelled(mine, None if self.kernel is None else self.kernel.draw((len(mine), *beads), key))

    def _labelled(self, mine: np.ndarray, noise: np.ndarray | None) -> Batch:
        frames = self.frames
        if noise is None and frames.noise is not None:
            noise = frames.noise[mine]
        forces = None if frames.forces is None else frames.forces[mine]
        positions, forces = labelled(self.kernel, frames.positions[mine], noise, forces)
        return Batch(mine, positions, forces, frames.weights[mine])

    def draw(self, n_frames: int, purpose: str, step: int) -> Float[np.ndarray, "frame bead 3"] | None:
        """The displacements of a purpose and step, nm; None where they are stored or there are none."""
        if self.kernel is None:
            return None
        return self.kernel.draw((n_frames, *self.frames.positions.shape[1:]), stream(self.seed, purpose, step))


@dataclass(frozen=True)
class LabelSource:
    """Where the labels of a study come from.

    store    the store of the frames, with the labels where these are stored
    kernel   a noise kernel whose draws are made while training; None where the store holds the labels
    """

    store: Path
    spec: StoreSpec
    kernel: NoiseKernel | None

    @property
    def names(self) -> tuple[str, ...]:
        """The arrays of the store that labels are made of."""
        unused = {"forces"} if self.kernel is not None and self.kernel.mixing is None else set()
        return tuple(name for name in self.spec.arrays if name not in unused)


def label_source(prepared: Path, kernel: Path, molecule: str) -> LabelSource:
    """The source that the products of prepare and kernel (their folders) give; raises MissingInput."""
    fitted = read_json(kernel / "kernel.json")
    if molecule not in fitted["molecules"]:
        raise MissingInput(
            f"the kernel of {molecule}",
            f"kernels of {', '.join(fitted['molecules'])} in {kernel}",
            "name one of these as train.molecule",
        )
    drawn = None
    stored = fitted["kind"] != "none" and fitted["draws"] == "stored"
    store = (kernel if stored else prepared) / STORE
    spec = open_spec(store, molecule)
    if fitted["kind"] != "none" and not stored:
        found = fitted["molecules"][molecule]["mixing"]
        mixing = None if found is None else np.asarray(found, dtype=np.float64)
        drawn = NoiseKernel(fitted["sigma_nm"], spec.temperature_K, mixing)
    return LabelSource(store, spec, drawn)


def open_labels(
    prepared: Path, kernel: Path, molecule: str, seed: int, memory_limit_gb: float = 8.0, part: bool = False
) -> tuple[Labels, StoreSpec]:
    """The labels that the products of prepare and kernel (their folders) give, in memory, and the spec of the store.

    part   where frames do not all fit, take stretches of them, evenly spread, that do
    Raises OutOfMemory, MissingInput, DamagedProduct.
    """
    source = label_source(prepared, kernel, molecule)
    frames = load(source.store, molecule, memory_limit_gb, part)
    return Labels(frames, source.kernel, seed), open_spec(prepared / STORE, molecule)
