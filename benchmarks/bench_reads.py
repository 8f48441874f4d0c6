"""Frames per second that a training reads from a store of 10 beads, beside reading frame by frame and the limits.

    streaming      shuffled batches from disk, blocks and windows as a training of a large store reads them
    resident       shuffled batches of a store that was loaded once, and the loading itself
    frame by frame shuffled frames, each its own read through zarr: what the order of blocks avoids
    limits         every chunk once, in order, positions and forces alone, decoded and dropped; and shuffled batches
                   out of a memory map of the same numbers, which no format or codec stands between

All in one process from files that the system has in memory. A batch is positions, forces and weights of 1024 frames
with the mapped forces as labels, as tensors. Nothing shuffled can be faster than the memory map.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measure import machine, print_table

from hpc_cg.beads import bead_system
from hpc_cg.learning.distributed import World
from hpc_cg.learning.feed import Feed
from hpc_cg.learning.labels import Labels, LabelSource
from hpc_cg.learning.resident import Resident
from hpc_cg.learning.streaming import Streaming
from hpc_cg.stages.train import TrainConfig
from hpc_cg.store import layout, writer
from hpc_cg.store.dataset import load, open_arrays, split, store_gib
from hpc_cg.store.layout import ShardFrames, StoreSpec
from hpc_cg.store.order import Order
from hpc_cg.store.stream import TRAIN

N_BEADS, N_FRAMES, BATCH = 10, 1_000_000, 1024
FRAME_BY_FRAME = 300
SHUFFLE_GB = 0.1
REPEATS = 3
WORLD, CPU = World(0, 1), torch.device("cpu")


def write_store(folder: Path, n_frames: int) -> StoreSpec:
    """A store of thermal noise around places, with forces of noise; segments of 10,000 frames, a tenth held out."""
    system = bead_system(("CA",) * N_BEADS, (0,) * N_BEADS, (12.0,) * N_BEADS, [(i, i + 1) for i in range(N_BEADS - 1)])
    shard, chunk = layout.choose_shards(n_frames, N_BEADS)
    spec = StoreSpec("m", system, n_frames, shard, chunk, ("positions", "forces"), (500, 10), "none", 300.0, 1, {})
    store = folder / layout.STORE
    layout.create(store, spec)
    for number in range(spec.n_shards):
        random, n, start = np.random.default_rng(number), spec.length(number), spec.frames_of(number)[0]
        arrays = {name: random.normal(size=(n, N_BEADS, 3)).astype(np.float32) for name in spec.arrays}
        frame = np.arange(start, start + n)
        writer.write_shard(store, spec, number, ShardFrames(arrays, frame % 10_000, frame // 10_000, np.ones(n)))
    writer.summarise(store, spec)
    return spec


def rate(n_frames: int, work: Callable[[], object]) -> float:
    """Frames per second of the median of some calls, after one that does not count."""
    times = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return n_frames / float(np.median(times[1:]))


def epoch(feed: Feed, first: list[int]) -> Callable[[], None]:
    """All batches of the next epoch."""
    steps = feed.n_train // BATCH

    def work() -> None:
        for step in range(first[0], first[0] + steps):
            feed.train(step)
        first[0] += steps

    return work


def frame_by_frame(store: Path, spec: StoreSpec) -> float:
    arrays = open_arrays(store, spec)
    chosen = np.random.default_rng(1).integers(0, spec.n_frames, FRAME_BY_FRAME)
    return rate(len(chosen), lambda: [arrays[name][frame] for frame in chosen for name in spec.arrays])


def chunk_by_chunk(store: Path, spec: StoreSpec) -> float:
    arrays, chunk = open_arrays(store, spec), spec.chunk_frames
    starts = range(0, spec.n_frames, chunk)
    return rate(spec.n_frames, lambda: [arrays[name][a : a + chunk] for a in starts for name in spec.arrays])


def memory_map(folder: Path, frames: dict[str, np.ndarray], order: np.ndarray) -> float:
    for name, values in frames.items():
        np.save(folder / f"{name}.npy", values)
    maps = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in frames]
    batches = order[: len(order) // BATCH * BATCH].reshape(-1, BATCH)
    return rate(batches.size, lambda: [torch.from_numpy(x[rows]) for rows in batches for x in maps])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=N_FRAMES)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hpc-cg-bench-") as name:
        folder = Path(name)
        spec, store = write_store(folder, asked.frames), folder / layout.STORE
        rates: dict[str, float] = {"frame by frame": frame_by_frame(store, spec)}
        source, config = LabelSource(store, spec, None), TrainConfig(batch_size=BATCH)
        streamed = Streaming(
            source, 1, BATCH, config.n_streams, SHUFFLE_GB, config.validation_frames, config.prior_frames, WORLD, CPU
        )
        order: Order = streamed.order
        rates["streaming"] = rate(order.steps_per_epoch * BATCH, epoch(streamed, [0]))
        streamed.close()
        rates["loading"] = rate(spec.n_frames, lambda: load(store, "m"))
        frames = load(store, "m")
        train, held_out = split(frames, spec.held_out)
        resident = Resident(Labels(frames, None, 1), train, held_out, 1, BATCH, WORLD, CPU)
        rates["resident"] = rate(resident.n_train // BATCH * BATCH, epoch(resident, [0]))
        rates["limit: chunk by chunk"] = chunk_by_chunk(store, spec)
        kept = {"positions": frames.positions, "forces": frames.forces, "weights": frames.weights}
        arrays = {key: values for key, values in kept.items() if values is not None}
        rates["limit: memory map"] = memory_map(folder, arrays, np.random.default_rng(2).permutation(train))
    one, chunks, mapped = (rates[key] for key in ("frame by frame", "limit: chunk by chunk", "limit: memory map"))
    rows = [
        [name, f"{value:,.0f}", f"{value / one:,.0f}", f"{value / chunks:.2f}", f"{value / mapped:.2f}"]
        for name, value in rates.items()
    ]
    n_blocks = int((streamed.counts[:, TRAIN] > 0).sum())
    window = f"{order.n_streams} streams, windows of {order.window_blocks} of {n_blocks} blocks"
    title = f"reading {spec.n_frames:,} frames of {N_BEADS} beads ({store_gib(spec):.2f} GiB) on {machine()}; {window}"
    print_table(title, ["frames per second", "rate", "of frames", "of chunks", "of the map"], rows)


if __name__ == "__main__":
    main()
