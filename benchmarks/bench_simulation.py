"""Replica-steps per second of the simulation engine, beside the network's own filters and the arithmetic peak.

Each rate is that of whole BAOAB steps, random numbers included: with tabulated filters, as stage simulate runs them,
and with the filters from the network. The last columns are the ratio of the two, and the fraction of the peak that the
matrix products of the tabulated path reach. With --mlcg PATH, the checkout of that library, its CGSchNet of the same
shape is timed too: force evaluations alone, without an integrator.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measure import DEVICE, MOLECULES, TEMPERATURE_K, Molecule, machine, matrix_flops, peak_flops, print_table, seconds

from hpc_cg.forcefield.evaluator import Evaluate, evaluator
from hpc_cg.simulate.langevin import baoab, init, step

REPLICAS = (1, 10, 100, 1000)
ROWS_AT_ONCE = 100
"""Replica-steps that one timed call does at least, so that short steps are timed in bundles."""


def stepper(molecule: Molecule, evaluate: Evaluate, n_replicas: int) -> tuple[Callable[[], None], int]:
    """A call that makes some steps of all replicas, and how many steps that are."""
    masses = (12.0,) * len(molecule.beads)
    positions = torch.from_numpy(molecule.positions(n_replicas)).to(DEVICE)
    start = init(positions, evaluate, masses, TEMPERATURE_K, 1, range(n_replicas))
    numbers = baoab(masses, 0.002, 1.0, TEMPERATURE_K, positions)
    random = np.random.Generator(np.random.Philox(1))
    n_steps = max(1, ROWS_AT_ONCE // n_replicas)

    def work() -> None:
        state = start
        for _ in range(n_steps):
            normals = torch.from_numpy(random.standard_normal(positions.shape, dtype=np.float32)).to(DEVICE)
            state = step(state, evaluate, numbers, normals)

    return work, n_steps


def mlcg_forces(path: Path, molecule: Molecule, n_replicas: int) -> Callable[[], object]:
    """A call that evaluates the peer's energy and forces once for all replicas (Angstrom, kcal/mol)."""
    sys.path.insert(0, str(path / "src"))
    from mlcg.data.atomic_data import AtomicData
    from mlcg.nn import CosineCutoff, ExpNormalBasis, GradientsOut, StandardSchNet
    from torch_geometric.data.collate import collate

    shape, n_beads = molecule.network, len(molecule.beads)
    cutoff = CosineCutoff(0.0, 10 * shape.cutoff_nm)
    network = StandardSchNet(
        ExpNormalBasis(cutoff, num_rbf=shape.n_rbf, trainable=False),
        cutoff,
        list(shape.terminal_widths),
        hidden_channels=shape.n_filters,
        embedding_size=n_beads,
        num_filters=shape.n_filters,
        num_interactions=shape.n_blocks,
    )
    model = GradientsOut(network, targets="forces").to(DEVICE).eval()
    frames = torch.from_numpy(10 * molecule.positions(n_replicas))
    points = [AtomicData.from_points(pos=frame, atom_types=torch.arange(n_beads)) for frame in frames]
    batch, _, _ = collate(AtomicData, points, increment=True, add_batch=True)
    return lambda: model(batch.to(DEVICE))


def row(molecule: Molecule, n_replicas: int, peak: float, mlcg: Path | None) -> list[str]:
    forcefield = molecule.forcefield()
    rates, flops = [], 0.0
    for tabulated in (False, True):
        work, n_steps = stepper(molecule, evaluator(forcefield, tabulated=tabulated), n_replicas)
        time = seconds(work, at_most_s=0.6)
        rates.append(n_replicas * n_steps / time)
        if tabulated:
            flops = matrix_flops(work) / time
    cells = [f"{molecule.name}, {n_replicas} replicas", f"{rates[1]:,.0f}", f"{rates[0]:,.0f}"]
    cells += [f"{rates[1] / rates[0]:.1f}", f"{flops / peak:.0%}"]
    if mlcg is not None:
        peer = n_replicas / seconds(mlcg_forces(mlcg, molecule, n_replicas), at_most_s=0.6)
        cells += [f"{peer:,.0f}", f"{rates[1] / peer:.1f}"]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mlcg", type=Path, metavar="PATH", help="checkout of mlcg, to time beside")
    mlcg: Path | None = parser.parse_args().mlcg
    peak = peak_flops()
    header = ["replica-steps per second", "tabulated", "exact", "ratio", "of peak"]
    header += ["mlcg", "ratio"] if mlcg is not None else []
    rows = [row(molecule, n_replicas, peak, mlcg) for molecule in MOLECULES for n_replicas in REPLICAS]
    print_table(f"simulation on {machine()}; float32 product at {peak / 1e9:,.0f} GFLOP/s", header, rows)


if __name__ == "__main__":
    main()
