"""Replica-steps per second of the simulation engines: whole BAOAB steps, random numbers included, as a run makes them.

On a CPU: the compiled engine on one core and on all, the torch engine on one, and the compiled engine's rate of
arithmetic over that of one large float32 product. Its operations are counted by hand: matrix products, and sums over
the pairs within the cutoff; activations, distances and priors are not counted. One core is timed by the clock of used
time, many by the clock on the wall. On a GPU: the torch engine up to 100,000 replicas.

The peer is mlcg, the reference implementation of CGSchNet. With --mlcg PATH, a checkout whose requirements are
installed beside this project's, its network of the same shape evaluates forces here, without an integrator, on one
core. Without it, rates that were once measured on another machine (one core of AMD Zen 4) stand in their place; "at
equal peak" divides the ratio by that of the two machines' float32 products.
"""

import argparse
import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from measure import (
    DEVICE,
    MOLECULES,
    TEMPERATURE_K,
    Clock,
    Molecule,
    chain,
    machine,
    matrix_flops,
    mlcg_network,
    peak_flops,
    print_table,
    seconds,
)

from hpc_cg.simulate.batch import TorchEngine
from hpc_cg.simulate.compiled import CompiledEngine
from hpc_cg.simulate.engine import Engine
from hpc_cg.simulate.langevin import Dynamics, init

REPLICAS = (1, 10, 100, 1000)
GPU_REPLICAS = (1, 10, 100, 1000, 10_000, 100_000)
SAVE_EVERY = 50
"""Steps of one call at most: those between two saved frames."""

BEADS_AT_ONCE = 20_000
"""Beads times steps of one call, about."""

MOST_IN_TORCH = 100
"""Replicas of the torch engine on a CPU at most: more are not quicker, and take their time."""

MLCG_PEAK = 100e9
MLCG = {
    6: {1: 514, 10: 2973, 100: 5857, 1000: 3690},
    10: {1: 391, 10: 1248, 100: 1495},
    20: {1: 245, 10: 389, 100: 380},
    56: {1: 46, 10: 47},
}
"""Replica-steps per second of mlcg on one core of AMD Zen 4, and that core's float32 product; by beads and replicas."""


def dynamics(molecule: Molecule) -> Dynamics:
    return Dynamics((12.0,) * len(molecule.beads), 0.002, 1.0, TEMPERATURE_K, 1)


def stepper(molecule: Molecule, engine: Engine, n_replicas: int, least: int) -> tuple[Callable[[], object], int]:
    """A call that makes ``least`` steps or more, and how many replica-steps that are."""
    ids = range(n_replicas)
    start = init(torch.from_numpy(molecule.positions(n_replicas)).to(DEVICE), engine.evaluate, dynamics(molecule), ids)
    n_steps = max(least, min(SAVE_EVERY, BEADS_AT_ONCE // (len(molecule.beads) * n_replicas)))
    return lambda: engine.advance(start, n_steps, ids), n_replicas * n_steps


def rate(molecule: Molecule, engine: Engine, n_replicas: int, clock: Clock, least: int) -> float:
    """Replica-steps per second."""
    work, steps = stepper(molecule, engine, n_replicas, least)
    return steps / seconds(work, at_most_s=1.0, clock=clock)


def gain(molecule: Molecule, one: Engine, many: Engine, n_replicas: int) -> tuple[float, float]:
    """Replica-steps per second of ``many``, and how much quicker than ``one``, by turns, on the wall clock."""
    (alone, steps), (together, _) = (stepper(molecule, engine, n_replicas, 5) for engine in (one, many))
    times = [(seconds(alone, repeats=1, at_most_s=0.0), seconds(together, repeats=1, at_most_s=0.0)) for _ in range(4)]
    return steps / median(b for _, b in times), median(a / b for a, b in times)


def compiled_flops(molecule: Molecule) -> float:
    """Operations of one replica-step of the compiled engine: products of matrices and sums over pairs."""
    shape, n_beads = molecule.network, len(molecule.beads)
    width, blocks = shape.n_filters, shape.n_blocks
    inner = blocks + sum(range(blocks))  # mixing matrices, and senders from all blocks before
    widths = (blocks * width, *shape.terminal_widths)
    products = inner * width**2 + sum(a * b for a, b in pairwise(widths))
    apart = torch.pdist(torch.from_numpy(molecule.positions(1)[0]))
    pairs = int((apart < shape.cutoff_nm).sum())
    terms = 13 + 19 * (blocks - 1)  # multiply-adds of a pair and feature: spline, slope, and the sums both ways
    return 2.0 * (2 * n_beads * products + pairs * width * terms)


def cpu_row(molecule: Molecule, n_replicas: int, cores: int, mlcg: Path | None) -> list[str]:
    forcefield, moves = molecule.forcefield(), dynamics(molecule)
    single, all_cores = (CompiledEngine(forcefield, moves, n_threads=n) for n in (1, cores))
    peak = peak_flops(time.process_time, repeats=3)
    one = rate(molecule, single, n_replicas, time.process_time, 5)
    peak = 0.5 * (peak + peak_flops(time.process_time, repeats=3))
    many, times_quicker = gain(molecule, single, all_cores, n_replicas)
    torch_rate = rate(molecule, TorchEngine(forcefield, moves), min(n_replicas, MOST_IN_TORCH), time.process_time, 1)
    cells = [f"{molecule.name}, {n_replicas} replicas", f"{one:,.0f}", f"{one * compiled_flops(molecule) / peak:.0%}"]
    cells += [f"{many:,.0f}", f"{times_quicker:.2f}", f"{torch_rate:,.0f}", f"{one / torch_rate:.1f}"]
    if mlcg is not None:
        peer = n_replicas / seconds(mlcg_forces(mlcg, molecule, n_replicas), at_most_s=0.6, clock=time.process_time)
        return [*cells, f"{peer:,.0f}", f"{one / peer:.1f}"]
    published = MLCG[len(molecule.beads)].get(n_replicas)
    if published is None:
        return [*cells, "-", "-", "-"]
    ratio = one / published
    return [*cells, f"{published:,.0f}", f"{ratio:.1f}", f"{ratio * MLCG_PEAK / peak:.1f}"]


def gpu_row(molecule: Molecule, n_replicas: int, peak: float) -> list[str]:
    engine = TorchEngine(molecule.forcefield(), dynamics(molecule), DEVICE)
    found = rate(molecule, engine, n_replicas, time.perf_counter, 10)
    few = min(n_replicas, engine.batch)
    positions = torch.from_numpy(molecule.positions(few)).to(DEVICE)
    flops = matrix_flops(lambda: engine.evaluate(positions)) / few
    return [f"{molecule.name}, {n_replicas} replicas", f"{found:,.0f}", f"{found * flops / peak:.0%}"]


def mlcg_forces(path: Path, molecule: Molecule, n_replicas: int) -> Callable[[], object]:
    """A call that evaluates the peer's energy and forces once for all replicas (Angstrom, kcal/mol)."""
    model, batch = mlcg_network(path, molecule, torch.from_numpy(molecule.positions(n_replicas)))
    model.eval()
    return lambda: model(batch)


def on_cpu(quick: bool, mlcg: Path | None) -> None:
    cores = torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else len(os.sched_getaffinity(0))
    torch.set_num_threads(1)
    peak = peak_flops(time.process_time)
    header = ["replica-steps per second", "compiled", "of peak", f"{cores} cores", "gain", "torch", "ratio"]
    header += ["mlcg", "ratio"] if mlcg is not None else ["mlcg, published machine", "ratio", "at equal peak"]
    replicas = REPLICAS[::2] if quick else REPLICAS
    rows = [cpu_row(molecule, n_replicas, cores, mlcg) for molecule in MOLECULES for n_replicas in replicas]
    print_table(f"simulation on {machine()}; float32 product at {peak / 1e9:,.0f} GFLOP/s", header, rows)


def on_gpu(quick: bool) -> None:
    peak = peak_flops()
    replicas = GPU_REPLICAS[::2] if quick else GPU_REPLICAS
    rows = [gpu_row(chain(n_beads), n_replicas, peak) for n_beads in (10, 56, 200) for n_replicas in replicas]
    title = f"simulation on {machine()}; float32 product at {peak / 1e9:,.0f} GFLOP/s"
    print_table(title, ["replica-steps per second", "torch", "of peak"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mlcg", type=Path, metavar="PATH", help="checkout of mlcg, to time beside")
    parser.add_argument("--quick", action="store_true", help="every second number of replicas")
    chosen = parser.parse_args()
    if DEVICE.type == "cuda":
        on_gpu(chosen.quick)
    else:
        on_cpu(chosen.quick, chosen.mlcg)


if __name__ == "__main__":
    main()
