"""On real data: a small flow, fitted for a few seconds, takes the noise off the bonds of alanine dipeptide."""

from pathlib import Path

import h5py
import mdtraj
import numpy as np
import pytest
import torch
from torch import Tensor

from hpc_cg.kernels.coupling import CouplingConfig, CouplingFlow
from hpc_cg.kernels.density import Draw, normals
from hpc_cg.mapping.maps import slice_map
from hpc_cg.randomness import stream

pytestmark = pytest.mark.data
SIGMA_NM = 0.005


@pytest.fixture(scope="module")
def frames(data_folder: Path) -> Tensor:
    """Six beads of two runs, every other frame, (run, frame, bead, 3), nm."""
    folder = data_folder / "ala2_all_atom"
    coordinate, _ = slice_map(mdtraj.load(folder / "topology.pdb").topology, "alanine-six")
    runs = []
    for run in (1, 2):
        with h5py.File(folder / f"300K_{run}.h5") as file:
            beads = coordinate @ np.asarray(file["positions"][::2], dtype=np.float64)
        runs.append(beads - beads.mean(1, keepdims=True))
    return torch.from_numpy(np.stack(runs).astype(np.float32))


@pytest.fixture(scope="module")
def drawn(frames: Tensor) -> tuple[Tensor, Tensor, Draw, Tensor]:
    """Clean held-out frames, the same with noise, draws from these, and log κ at the clean ones."""
    key = stream(0, "alanine")
    noisy = frames + SIGMA_NM * normals(key, frames)
    flow = CouplingFlow.of(frames[0], noisy[0], CouplingConfig(4, 1, 16, 16, 32, 4), 0)
    optimizer = torch.optim.Adam(flow.parameters(), fused=True)
    for step in range(200):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * (1 + np.cos(np.pi * step / 200))
        clean = frames[0][key.integers(0, len(frames[0]), 128)]
        optimizer.zero_grad()
        flow.loss(clean, clean + SIGMA_NM * normals(key, clean), key).mean().backward()
        optimizer.step()
    held, condition = frames[1, ::4], noisy[1, ::4]
    return held, condition, flow.draw(condition, key), flow.at(held, condition, key).log_density


@pytest.mark.parametrize("bond", [(0, 1), (1, 2), (2, 3), (2, 4), (4, 5)])
def test_draws_have_bonds_that_are_less_wide_by_most_of_the_noise(drawn: tuple, bond: tuple[int, int]) -> None:
    clean, noisy, draw, _ = drawn
    lengths = [(x[:, bond[0]] - x[:, bond[1]]).norm(dim=-1) for x in (clean, noisy, draw.positions)]
    before, after = ((x.var() - lengths[0].var()).item() for x in lengths[1:])
    assert before > 4e-5
    assert after < 0.25 * before
    assert lengths[2].mean().item() == pytest.approx(lengths[0].mean().item(), abs=0.001)


def test_it_knows_more_than_the_noise(drawn: tuple) -> None:
    """log κ(R | c) beyond log N(R; c, σ²), held out, in nats; 6.9 is what long fits reach."""
    clean, noisy, _, log_density = drawn
    noise = torch.distributions.Normal(noisy, SIGMA_NM).log_prob(clean).sum((1, 2))
    assert 4.0 < (log_density - noise).mean().item() < 8.0


def test_labels_are_louder_than_those_of_the_noise_but_not_by_much(drawn: tuple) -> None:
    _, _, draw, _ = drawn
    assert not draw.failed.any()
    assert 1.5 < draw.score.square().mean().item() * SIGMA_NM**2 < 4.5
