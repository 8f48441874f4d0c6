"""Milliseconds to draw a frame from the published conditional flow and label it with its force, on one core.

The molecule is chignolin, ten beads; weights and frames of an all-atom run are those in HPC_CG_DATA. Beside it the same
by the published way, written here: both ways along the path by dopri5 at a tolerance of 1e-4, the divergence by one
backward pass for each of the 3n coordinates, the force by the adjoint equation, whose right-hand side takes the
divergence again. Its force leaves out the gradient of the divergence.

Errors are of positions and scores that start from the same noise, against exact ones with many nodes, over the root
mean square of the score (positions: of the way). An estimated score has noise, and an error of its mean; that of the
mean along the score is its bias. With --figure PATH the cost is drawn against the error.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import h5py
import mdtraj
import torch
from measure import machine, print_table, seconds
from torch import Tensor

from hpc_cg.kernels.cnf import ConditionalFlow
from hpc_cg.kernels.density import Draw, centred, normals
from hpc_cg.kernels.egnn import EGNN
from hpc_cg.kernels.flow import FixedSteps, Times, solve
from hpc_cg.kernels.published import read_published
from hpc_cg.randomness import stream

N_BEADS, SIGMA_NM, UNIT_NM = 10, 0.005, 0.1
TOLERANCE, MOST_STEPS = 1e-4, 1000
NODES = (1, 2, 3, 4)
FINE = 12
N_TIMED = {"hutchinson": 64, "drop": 64, "exact": 8}
"""Frames in a timed call."""
N_JUDGED, N_PROBES, N_REFERENCE = 16, 16, 4
"""Frames that errors are taken over, estimates of each for the error of their mean, and frames of the published way."""

Kind = Literal["exact", "hutchinson", "drop"]


@dataclass(frozen=True)
class Published:
    """What the published way gives, and what it costs."""

    force: Tensor
    sample_ms: float
    force_ms: float
    n_evaluations: int


@dataclass(frozen=True)
class Row:
    """A way of ours: its cost per frame, and its errors as fractions."""

    kind: Kind
    n_nodes: int
    ms: float
    position_error: float
    score_error: float
    noise: float
    bias: float


def published(network: EGNN, noised: Tensor, noise: Tensor) -> Published:
    """Samples and forces (the score, without the divergence's gradient) of frames by the published way."""
    n_evaluations = 0

    def velocity(when: Times, state: Tensor) -> Tensor:
        nonlocal n_evaluations
        n_evaluations += 1
        return network(when, UNIT_NM * state.unflatten(1, (-1, 3))).flatten(1) / UNIT_NM

    def with_trace(when: Times, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            moving = state.detach().requires_grad_()
            moved = velocity(when, moving)
            rows = (torch.autograd.grad(moved[:, k].sum(), moving, retain_graph=True)[0] for k in range(3 * N_BEADS))
            trace = sum(row[:, k] for k, row in enumerate(rows))
        return moving, moved, trace

    def inverse(when: Times, state: Tensor) -> Tensor:
        _, moved, trace = with_trace(when, state[:, :-1])
        return torch.cat((moved.detach(), trace[:, None]), 1)

    def adjoint(when: Times, state: Tensor) -> Tensor:
        there, pulling = state.chunk(2, 1)
        moving, moved, _ = with_trace(when, there)
        (pulled,) = torch.autograd.grad(moved, moving, pulling)
        return torch.cat((moved.detach(), -pulled), 1)

    began = time.process_time()
    start = (noised + noise).flatten(1) / UNIT_NM
    with torch.no_grad():
        there = solve(velocity, start, 0.0, 1.0, TOLERANCE, MOST_STEPS)
        sampled = time.process_time()
        n_evaluations = 0
        origin = solve(inverse, torch.nn.functional.pad(there, (0, 1)), 1.0, 0.0, TOLERANCE, MOST_STEPS)[:, :-1]
        pull = -(origin - noised.flatten(1) / UNIT_NM) * (UNIT_NM / SIGMA_NM) ** 2
        ended = solve(adjoint, torch.cat((origin, pull), 1), 0.0, 1.0, TOLERANCE, MOST_STEPS)
    force = ended.chunk(2, 1)[1].unflatten(1, (-1, 3)) / UNIT_NM
    n = len(noised)
    return Published(force, 1e3 * (sampled - began) / n, 1e3 * (time.process_time() - sampled) / n, n_evaluations)


def variant(flow: ConditionalFlow, kind: Kind, n_nodes: int) -> ConditionalFlow:
    """The flow with scores of that kind, by RK4 with so many nodes."""
    integrator = FixedSteps("rk4", n_nodes, SIGMA_NM)
    return ConditionalFlow(flow.velocity, replace(flow.config, divergence=kind, integrator=integrator))


def carried(flow: ConditionalFlow, noised: Tensor, noise: Tensor, place: int = 0) -> Draw:
    """The draw that starts from given noise."""
    with torch.no_grad():
        return flow._carried(noised, noise, stream(place, "probes"))


def frames(folder: Path) -> Tensor:
    """Frames of the α carbons, evenly spread over the run, about their centre."""
    atoms = mdtraj.load_topology(str(folder / "topology.pdb")).select("name CA")
    with h5py.File(folder / "340K_1.h5") as file:
        positions = file["positions"]
        chosen = positions[:: len(positions) // N_JUDGED][:N_JUDGED, atoms]
    return centred(torch.from_numpy(chosen.astype("float32")))


def rms(array: Tensor) -> float:
    return float(array.double().square().mean().sqrt())


def row(flow: ConditionalFlow, kind: Kind, n_nodes: int, noised: Tensor, noise: Tensor, exact: Draw) -> Row:
    """Cost and errors of one way."""
    way = variant(flow, kind, n_nodes)
    timed = noised.repeat(-(-max(N_TIMED.values()) // len(noised)), 1, 1)[: N_TIMED[kind]]
    ms = 1e3 * seconds(lambda: way.draw(timed, stream(0, "time")), 2, clock=time.process_time) / len(timed)
    many = N_PROBES if kind == "hutchinson" else 1
    drawn = carried(way, noised.repeat(many, 1, 1), noise.repeat(many, 1, 1))
    assert not drawn.failed.any()
    scores = drawn.score.unflatten(0, (many, -1)).double()
    mean, truth = scores.mean(0), exact.score.double()
    size = rms(truth)
    noise_size = rms(scores - mean) * (many / (many - 1)) ** 0.5 if many > 1 else 0.0
    # the mean of so many estimates still has noise, which the mean square of the error does not owe to the way
    error = max(0.0, rms(mean - truth) ** 2 - noise_size**2 / many) ** 0.5
    return Row(
        kind,
        n_nodes,
        ms,
        rms(drawn.positions[: len(noised)] - exact.positions) / rms(exact.positions - noised - noise),
        error / size,
        noise_size / size,
        float(((mean - truth) * truth).sum() / truth.square().sum()),
    )


def draw_figure(path: Path, rows: list[Row], peer: Published, peer_error: float) -> None:
    """Cost per frame against the error of the score."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    lines: tuple[tuple[str, Kind, Callable[[Row], float]], ...] = (
        ("exact: error", "exact", lambda row: row.score_error),
        ("hutchinson: error of the mean", "hutchinson", lambda row: row.score_error),
        ("hutchinson: noise of a label", "hutchinson", lambda row: row.noise),
        ("drop: error", "drop", lambda row: row.score_error),
    )
    for label, kind, value in lines:
        chosen = [row for row in rows if row.kind == kind and value(row) > 0]  # zero: lost in the noise of the mean
        style = "o--" if "noise" in label else "o-"
        axes.loglog([row.ms for row in chosen], [100 * value(row) for row in chosen], style, ms=4, label=label)
    axes.loglog([peer.sample_ms + peer.force_ms], [100 * peer_error], "k*", ms=10, label="published way")
    axes.set(xlabel="ms per frame, one core", ylabel="% of the score", title="Chignolin: 1, 2, 3 and 4 nodes")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, help="draw the cost against the error into this file")
    arguments = parser.parse_args()
    data = Path(os.environ.get("HPC_CG_DATA", ""))
    if not (data / "chignolin").is_dir():
        print("HPC_CG_DATA does not name the folder with the published weights: nothing is measured")
        return
    torch.set_num_threads(1)
    flow = read_published(data / "chignolin/cln_cnf_sigma0.05A.pt", N_BEADS).requires_grad_(False)
    clean, key = frames(data / "chignolin_all_atom"), stream(0, "frames")
    noised, noise = (base + SIGMA_NM * centred(normals(key, clean)) for base in (clean, torch.zeros_like(clean)))
    exact = carried(variant(flow, "exact", FINE), noised, noise)
    few = slice(0, N_REFERENCE)
    peer = published(flow.velocity, noised[few], noise[few])
    peer_error = rms(peer.force - exact.score[few]) / rms(exact.score[few])
    kinds: tuple[Kind, ...] = ("hutchinson", "exact", "drop")
    rows = [row(flow, kind, n_nodes, noised, noise, exact) for kind in kinds for n_nodes in NODES]
    whole = peer.sample_ms + peer.force_ms
    print(
        f"\npublished way: {peer.sample_ms:.0f} ms to sample, {peer.force_ms:.0f} ms for the force "
        f"({peer.n_evaluations} evaluations) of one of {N_REFERENCE} frames; {100 * peer_error:.1f} % from the score"
    )
    header = ("way", "nodes", "ms/frame", "x faster", "positions %", "score %", "noise %", "bias %")
    cells = [
        [
            one.kind,
            str(one.n_nodes),
            f"{one.ms:.1f}",
            f"{whole / one.ms:.0f}",
            *(f"{100 * value:.2f}" for value in (one.position_error, one.score_error, one.noise, one.bias)),
        ]
        for one in rows
    ]
    print_table(f"{machine()}; process time", header, cells)
    if arguments.figure:
        draw_figure(arguments.figure, rows, peer, peer_error)


if __name__ == "__main__":
    main()
