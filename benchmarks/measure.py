"""What the benchmarks share: medians over repeats, the arithmetic peak of this machine, molecules to time, a table.

A rate is the median over repeats of the same work, after one call that does not count. Matrix products are counted by
torch as the work runs, elementwise work is not; their rate over that of one large product, timed in the same run, is
the fraction of the arithmetic peak.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from hpc_cg.beads import BeadSystem
from hpc_cg.forcefield.coordinates import CoordinateMoments
from hpc_cg.forcefield.fitting import fit_priors
from hpc_cg.forcefield.forcefield import ForceField
from hpc_cg.forcefield.schnet import SchNetConfig
from hpc_cg.mapping.maps import identity_map
from hpc_cg.stages.train import TrainConfig

TEMPERATURE_K = 300.0
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GEMM_SIZE = 2048
SPREAD_NM = 0.004


@dataclass(frozen=True)
class Molecule:
    """Beads to time, and the published shape of the network for them."""

    name: str
    beads: tuple[str, ...]
    bond_nm: float
    network: SchNetConfig

    def positions(self, n_frames: int) -> np.ndarray:
        """Frames of a zigzag chain with thermal noise; shape (frame, bead, 3), nm, float32."""
        chain = [i for i, name in enumerate(self.beads) if name != "CB"]
        places = np.zeros((len(self.beads), 3))
        for order, bead in enumerate(chain):
            places[bead] = (0.85 * self.bond_nm * order, 0.5 * self.bond_nm * (order % 2), 0.02 * order)
        for bead, name in enumerate(self.beads):
            if name == "CB":
                places[bead] = places[bead - 1] + np.array((0.0, 0.5, 0.85)) * self.bond_nm
        noise = np.random.default_rng(1).normal(0.0, SPREAD_NM, (n_frames, *places.shape))
        return (places + noise).astype(np.float32)

    def forcefield(self) -> ForceField:
        """A force field with fitted priors and fresh weights: time does not depend on what was learnt."""
        system: BeadSystem = identity_map(self.beads)[1]
        moments = CoordinateMoments.of(self.positions(500), system)
        priors = fit_priors(moments, TEMPERATURE_K, TrainConfig().torsion_order)
        return ForceField(system, priors, self.network, seed=1).to(DEVICE)


def chain(n_beads: int) -> Molecule:
    """A chain of alpha carbons, with the published shape of the network for proteins."""
    network = SchNetConfig(cutoff_nm=3.0, n_rbf=128, terminal_widths=(128, 64))
    return Molecule(f"chain, {n_beads} beads", ("CA",) * n_beads, 0.38, network)


MOLECULES = (
    Molecule("alanine, 6 beads", ("C", "N", "CA", "CB", "C", "N"), 0.15, SchNetConfig()),
    chain(10),
    chain(20),
    chain(56),
)
"""Alanine dipeptide, and as many beads as chignolin, Trp-cage and protein G have."""


Clock = Callable[[], float]
"""time.perf_counter, or time.process_time: what this process's threads used, together."""


def seconds(
    work: Callable[[], object], repeats: int = 5, at_most_s: float = 2.0, clock: Clock = time.perf_counter
) -> float:
    """Median time of one call; fewer repeats, but two at least, where they would take longer than ``at_most_s``."""
    times: list[float] = []
    _timed(work, clock)
    while len(times) < 2 or (len(times) < repeats and sum(times) < at_most_s):
        times.append(_timed(work, clock))
    return median(times)


def peak_flops(clock: Clock = time.perf_counter, repeats: int = 9) -> float:
    """Floating-point operations per second of a large float32 matrix product on this machine's threads."""
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE, device=DEVICE) for _ in range(2))
    return 2.0 * GEMM_SIZE**3 / seconds(lambda: a @ b, repeats, clock=clock)


def matrix_flops(work: Callable[[], object]) -> float:
    """Floating-point operations that the matrix products of one call take."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def mlcg_network(path: Path, molecule: Molecule, positions: torch.Tensor) -> tuple[Any, Any]:
    """The peer's network of the same shape and a batch of frames for it (Angstrom, kcal/mol), from a checkout."""
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
    model = GradientsOut(network, targets="forces").to(DEVICE)
    points = [AtomicData.from_points(pos=10 * x, atom_types=torch.arange(n_beads)) for x in positions.cpu()]
    return model, collate(AtomicData, points, increment=True, add_batch=True)[0].to(DEVICE)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A title, a header and rows with aligned columns; the first column is words, the others are numbers."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    print(f"\n{title}")
    for row in (header, *rows):
        cells = [
            f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  " + "  ".join(cells).rstrip())


def machine() -> str:
    """The line that says what the numbers were measured on."""
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{torch.get_num_threads()} threads"
    return f"{device}, torch {torch.__version__}"


def _timed(work: Callable[[], object], clock: Clock) -> float:
    began = clock()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return clock() - began
