"""Decoys: displaced copies of frames, on which the network should add nothing to the priors.

Far from the data a network knows nothing, and may say anything. Copies of one frame in k, displaced by N(0, sigma^2)
and labelled with a delta force of zero, keep it flat there. A decoy belongs to its frame: which frames have one is
drawn by the seed and the frame, so that any part of the frames has its share; where it lies, by the step too. So any
number of processes trains on the same ones.
"""

import numpy as np
import torch
from jaxtyping import Bool, Int

from hpc_cg.learning.feed import Labelled, as_tensor
from hpc_cg.randomness import hashed, stream


def has_decoy(index: Int[np.ndarray, "frame"], every: int, seed: int) -> Bool[np.ndarray, "frame"]:
    """Which frames have a decoy: each with the probability 1 / ``every``."""
    return hashed(seed, "has a decoy", index) % np.uint64(every) == 0


def decoys_of(batch: Labelled, every: int, sigma_nm: float, seed: int, step: int) -> Labelled | None:
    """The decoys of a batch, whose ``forces`` are delta forces of zero; None where no frame has one."""
    chosen = np.flatnonzero(has_decoy(batch.index, every, seed))
    if not len(chosen):
        return None
    rows = torch.from_numpy(chosen).to(batch.positions.device)
    positions = batch.positions.index_select(0, rows)
    shape = positions.shape[1:]
    normals = [stream(seed, "decoy", step, index).standard_normal(shape) for index in batch.index[chosen].tolist()]
    displaced = positions + sigma_nm * as_tensor(np.stack(normals), positions.device)
    weights = batch.weights.index_select(0, rows)
    return Labelled(batch.index[chosen], displaced, torch.zeros_like(displaced), weights)
