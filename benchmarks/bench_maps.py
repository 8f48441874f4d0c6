"""Time and memory of the optimal force map from streamed moments, beside a solve with all forces in memory.

Forces are made up, with rigid pairs, for a chain of 60 beads in 300 atoms. Streamed, they come a block at a time as
from a reader and leave only second moments; in memory, all frames make one least-squares problem, solved for each bead
by its own equations. Both have to give the same map. Memory is what the process holds beyond a bare interpreter.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
from measure import print_table
from scipy.linalg import solve

from hpc_cg.mapping.moments import ForceMoments, GroupSum
from hpc_cg.mapping.optimal import optimal_force_map

N_BEADS, N_ATOMS, BLOCK = 60, 300, 2000
FRAMES = (10_000, 40_000, 160_000)
RIDGE = 10.0
GROUPS = tuple((i, i + 1) if i % 5 == 1 else (i,) for i in range(N_ATOMS) if i % 5 != 2)
"""Of every five atoms the second and the third are bound rigidly."""


def coordinate() -> np.ndarray:
    """Every fifth atom is a bead."""
    matrix = np.zeros((N_BEADS, N_ATOMS))
    matrix[np.arange(N_BEADS), np.arange(0, N_ATOMS, 5)] = 1.0
    return matrix


def blocks(n_frames: int) -> Iterator[np.ndarray]:
    """Forces with the correlations of a chain: neighbours pull at one another."""
    for start in range(0, n_frames, BLOCK):
        random = np.random.default_rng(start)
        pulls = random.normal(0, 800, (min(BLOCK, n_frames - start), N_ATOMS + 1, 3)).astype(np.float32)
        yield np.diff(pulls, axis=1) + random.normal(0, 200, (len(pulls), N_ATOMS, 3)).astype(np.float32)


def streamed(n_frames: int) -> np.ndarray:
    sums = GroupSum(GROUPS, N_ATOMS)
    total = ForceMoments.empty(sums.n_groups)
    for forces in blocks(n_frames):
        total = total + ForceMoments.of(forces, groups=sums)
    return optimal_force_map(coordinate(), GROUPS, total, RIDGE)


def in_memory(n_frames: int) -> np.ndarray:
    """The same problem as it is usually solved: all forces at once, Lagrange's equations for each bead."""
    forces = np.concatenate(list(blocks(n_frames))).astype(np.float64)
    expand = np.zeros((N_ATOMS, len(GROUPS)))
    for column, group in enumerate(GROUPS):
        expand[list(group), column] = 1
    rows = forces.transpose(0, 2, 1).reshape(-1, N_ATOMS) @ expand
    quadratic = rows.T @ rows / len(rows) + RIDGE * expand.T @ expand
    constraint = coordinate() @ expand
    system = np.block([[quadratic, constraint.T], [constraint, np.zeros((N_BEADS, N_BEADS))]])
    right = np.vstack([np.zeros((len(GROUPS), N_BEADS)), np.eye(N_BEADS)])
    return (expand @ solve(system, right, assume_a="sym")[: len(GROUPS)]).T


def measured(way: str, n_frames: int) -> tuple[float, float, np.ndarray]:
    """Seconds, MB, and the map, of a process of its own."""
    line = [sys.executable, __file__, way, str(n_frames)]
    done = subprocess.run(line, stdout=subprocess.PIPE, check=True)
    values = np.frombuffer(done.stdout, np.float64)
    return values[0], values[1], values[2:].reshape(N_BEADS, N_ATOMS)


def worker(way: str, n_frames: int) -> None:
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"streamed": streamed, "memory": in_memory}[way](n_frames)
    spent, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.buffer.write(np.concatenate([[spent, (peak - before) / 1000], found.ravel()]).tobytes())


def main() -> None:
    if len(sys.argv) == 3:
        worker(sys.argv[1], int(sys.argv[2]))
        return
    rows = []
    for n_frames in FRAMES:
        seconds, peak, found = measured("streamed", n_frames)
        other_seconds, other_peak, expected = measured("memory", n_frames)
        apart = np.abs(found - expected).max() / np.abs(expected).max()
        per_frame = f"{1e6 * seconds / n_frames:.0f}"
        rows.append([f"{n_frames:,} frames", per_frame, f"{peak:.0f}", f"{1e6 * other_seconds / n_frames:.0f}",
                     f"{other_peak:.0f}", f"{apart:.0e}"])  # fmt: skip
    header = ["", "streamed (µs/frame)", "MB", "in memory (µs/frame)", "MB", "largest difference"]
    print_table(f"optimal force map, {N_BEADS} beads of {N_ATOMS} atoms, making up the forces included", header, rows)


if __name__ == "__main__":
    main()
