"""Where simulations start: frames of the distribution that a model is trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from hpc_cg.learning.labels import LabelSource, labelled
from hpc_cg.randomness import stream
from hpc_cg.store.dataset import read_frames
from hpc_cg.store.writer import epoch_sums


@dataclass(frozen=True, eq=False)
class Starts:
    """Frames drawn by weight, each by the number of its replica alone.

    shards   weight of each shard of the store: first one of them is drawn, then a frame of it, so that no more is read
    """

    source: LabelSource
    shards: Float[np.ndarray, "shard"]
    seed: int

    @staticmethod
    def of(source: LabelSource, seed: int) -> "Starts":
        return Starts(source, epoch_sums(source.store, source.spec).weights.sum(axis=1), seed)

    def of_replicas(self, replicas: Sequence[int]) -> Float[np.ndarray, "replica bead 3"]:
        """A start for each replica, with the kernel's noise; nm."""
        store, spec, kernel = self.source.store, self.source.spec, self.source.kernel
        rows = []
        for replica in replicas:
            key = stream(self.seed, "start", replica)
            first, stop = spec.frames_of(int(key.choice(len(self.shards), p=self.shards / self.shards.sum())))
            weights = read_frames(store, spec, first, stop, ()).weights.astype(np.float64)
            frame = first + int(key.choice(len(weights), p=weights / weights.sum()))
            found = read_frames(store, spec, frame, frame + 1, self.source.names).arrays
            noise = found.get("noise")
            if kernel is not None:
                noise = kernel.draw(found["positions"].shape, stream(self.seed, "start noise", replica))
            rows.append(labelled(kernel, found["positions"], noise, found.get("forces"))[0])
        return np.concatenate(rows)
