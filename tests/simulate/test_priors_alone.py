"""Priors alone, simulated, keep the distributions that they were fitted to."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from hpc_cg.beads import BeadSystem, bead_system
from hpc_cg.forcefield.coordinates import CoordinateMoments, dihedral_angles, internal_coordinates, torsions_of
from hpc_cg.forcefield.fitting import PriorParameters, fit_priors
from hpc_cg.forcefield.priors import Prior
from hpc_cg.simulate.langevin import Dynamics, baoab, init, step

TEMPERATURE_K = 300.0
CHAIN = bead_system("abcde", range(5), [12.0] * 5, [(i, i + 1) for i in range(4)])
LENGTH, WIDTH = 0.38, 0.025


def placed(lengths: np.ndarray, cosines: np.ndarray, torsions: np.ndarray) -> np.ndarray:
    """Frames of a chain with the given bond lengths, cosines of angles, and dihedrals."""
    n_frames, n_bonds = lengths.shape
    frames = np.zeros((n_frames, n_bonds + 1, 3))
    frames[:, 1, 0] = lengths[:, 0]
    for bead in range(2, n_bonds + 1):
        back = frames[:, bead - 1] - frames[:, bead - 2]
        back /= np.linalg.norm(back, axis=1, keepdims=True)
        before = np.tile([0.0, 1.0, 0.0], (n_frames, 1)) if bead == 2 else frames[:, bead - 2] - frames[:, bead - 3]
        normal = np.cross(before, back)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        side, cosine = np.cross(normal, back), cosines[:, bead - 2, None]
        turn = np.zeros((n_frames, 1)) if bead == 2 else torsions[:, bead - 3, None]
        sine = np.sqrt(1 - cosine**2)
        direction = -cosine * back + sine * (np.cos(turn) * side + np.sin(turn) * normal)
        frames[:, bead] = frames[:, bead - 1] + lengths[:, bead - 1, None] * direction
    return frames


def drawn(n_frames: int) -> np.ndarray:
    """A loose chain: bonds and angles of one peak each, dihedrals of two."""
    random = np.random.default_rng(7)
    lengths = random.normal(LENGTH, WIDTH, (n_frames, 4))
    cosines = np.clip(random.normal([-0.3, -0.6, 0.1], [0.25, 0.15, 0.1], (n_frames, 3)), -0.99, 0.99)
    first = random.random((n_frames, 2)) < [0.7, 0.4]
    torsions = np.where(first, random.normal(0.9, 0.4, (n_frames, 2)), random.normal(-2.4, 0.5, (n_frames, 2)))
    return placed(lengths, cosines, torsions)


def simulated(system: BeadSystem, prior: PriorParameters, frames: np.ndarray, n_steps: int) -> np.ndarray:
    """Frames of replicas that start from the frames given and feel the priors alone, every 50 steps."""
    alone, replicas = Prior(system, prior), range(len(frames))
    moves = Dynamics(system.masses, 0.006, 5.0, TEMPERATURE_K, seed=1)
    state = init(torch.tensor(frames, dtype=torch.float32), alone, moves, replicas)
    numbers = baoab(moves, state.positions)
    generator = torch.Generator().manual_seed(3)
    kept = []
    with torch.inference_mode():
        for place in range(1, n_steps + 1):
            state = step(state, alone, numbers, torch.randn(state.positions.shape, generator=generator))
            if place % 50 == 0 and place > n_steps // 5:
                kept.append(state.positions.numpy().copy())
    return np.concatenate(kept).astype(np.float64)


@dataclass(frozen=True)
class Samples:
    seen: np.ndarray
    model: np.ndarray


@pytest.fixture(scope="module")
def samples() -> Samples:
    frames = drawn(40_000)
    prior = fit_priors(CoordinateMoments.of(frames, CHAIN), TEMPERATURE_K, torsion_order=8)
    return Samples(frames, simulated(CHAIN, prior, frames[:400], 3000))


def test_dihedrals_of_the_chain_are_those_asked_for() -> None:
    asked = np.array([[0.9, -2.0]])
    frame = placed(np.full((1, 4), 0.38), np.array([[-0.3, -0.6, 0.1]]), asked)
    assert dihedral_angles(frame, torsions_of(CHAIN)) == pytest.approx(asked)
    assert internal_coordinates(frame, CHAIN)[0] == pytest.approx([0.38] * 4 + [-0.3, -0.6, 0.1])


def test_bonds_keep_length_and_width(samples: Samples) -> None:
    seen, model = (internal_coordinates(x, CHAIN)[:, :4] for x in (samples.seen, samples.model))
    # a centre at the mean would leave bonds too long by 2 s² / r
    assert np.abs(model.mean(0) - seen.mean(0)).max() < 0.3 * (2 * WIDTH**2 / LENGTH)
    assert model.std(0) == pytest.approx(seen.std(0), rel=0.03)


def test_angles_keep_mean_and_width(samples: Samples) -> None:
    seen, model = (internal_coordinates(x, CHAIN)[:, 4:] for x in (samples.seen, samples.model))
    assert np.abs((model.mean(0) - seen.mean(0)) / seen.std(0)).max() < 0.06
    assert model.std(0) == pytest.approx(seen.std(0), rel=0.05)


def test_torsions_keep_their_two_peaks(samples: Samples) -> None:
    for column in range(2):
        histograms = []
        for frames in (samples.seen, samples.model):
            angles = dihedral_angles(frames, torsions_of(CHAIN))[:, column]
            counts = np.histogram(angles, bins=24, range=(-np.pi, np.pi))[0]
            histograms.append(counts / counts.sum())
        seen, model = histograms
        assert 0.5 * np.abs(seen - model).sum() < 0.1
        assert 0.5 * np.abs(seen - model[::-1]).sum() > 0.4  # the mirror image is told apart
