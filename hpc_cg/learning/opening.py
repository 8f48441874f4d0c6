"""What a training is fed with: from memory where the stores fit, else from disk."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hpc_cg.errors import OutOfMemory, TooFewFrames
from hpc_cg.learning.distributed import World
from hpc_cg.learning.feed import Feed
from hpc_cg.learning.labels import Labels, LabelSource
from hpc_cg.learning.resident import Resident
from hpc_cg.learning.streaming import Streaming
from hpc_cg.store.dataset import load, split, store_gib


@dataclass(frozen=True)
class Loading:
    """How frames are drawn, and held in memory.

    stage              whose settings these are, for messages
    batch_size         frames of a step from each store
    every, subset      of so many frames to train on one is used, and which of the first ones
    memory_limit_gb    largest size of all stores that are loaded; the rest is of larger ones
    n_streams          parts of a store that processes share out
    shuffle_gb         memory of the windows in which frames are shuffled, in all processes
    validation_frames  at most so many held-out frames of a store are looked at
    prior_frames       at most so many frames of a store priors are fitted on
    """

    stage: str
    batch_size: int
    every: int
    subset: int
    memory_limit_gb: float
    n_streams: int
    shuffle_gb: float
    validation_frames: int
    prior_frames: int


def open_feeds(
    sources: Sequence[LabelSource], seeds: Sequence[int], how: Loading, world: World, device: torch.device
) -> list[Feed]:
    """The feed of each store, all of them from memory or all from disk.

    seeds   of what is drawn for each
    Raises TooFewFrames, and OutOfMemory where a part is asked of stores that do not fit; as the feeds do.
    """
    needed = sum(store_gib(source.spec) for source in sources)
    if needed <= how.memory_limit_gb:
        return [_loaded(source, seed, how, world, device) for source, seed in zip(sources, seeds, strict=True)]
    if how.every > 1:
        raise OutOfMemory(
            f"{how.stage}.fraction = 1/{how.every}",
            f"a store that is streamed: {needed:.3g} GiB for a limit of {how.memory_limit_gb:g} GiB",
            f"raise {how.stage}.memory_limit_gb: a part of the frames is taken only of a store in memory",
        )
    return [
        Streaming(
            source,
            seed=seed,
            batch_size=how.batch_size,
            n_streams=how.n_streams,
            shuffle_gb=min(how.shuffle_gb, how.memory_limit_gb) / len(sources),
            validation_frames=how.validation_frames,
            prior_frames=how.prior_frames,
            world=world,
            device=device,
        )
        for source, seed in zip(sources, seeds, strict=True)
    ]


def _loaded(source: LabelSource, seed: int, how: Loading, world: World, device: torch.device) -> Resident:
    name = source.spec.molecule
    labels = Labels(load(source.store, name, how.memory_limit_gb), source.kernel, seed)
    train, held_out = split(labels.frames, source.spec.held_out)
    part = train[how.subset % how.every :: how.every]
    if not len(part):
        raise TooFewFrames(
            f"{how.stage}.fraction = {1 / how.every:g}, subset {how.subset}",
            f"{len(train)} frames of {name} to train on",
            "choose a larger fraction",
        )
    return Resident(labels, part, held_out, seed, how.batch_size, world, device)
