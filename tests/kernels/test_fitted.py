"""What a learnt kernel was fitted on: conditions out of its reach are told, and other uses are refused."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from gaussians import frames, network, on_axes

from hpc_cg import errors
from hpc_cg.frames import BeadFrames
from hpc_cg.kernels.fitted import FittedOn, Reach
from hpc_cg.kernels.gaussian import GaussianKernel
from hpc_cg.kernels.reverse import ReverseKernel

SIGMA, TEMPERATURE_K, N = 0.3, 300.0, 50_000


def conditions(n_frames: int, seed: int, wider: float = 1.0) -> torch.Tensor:
    """Gaussian frames of three beads, far enough apart for their distances to be nearly Gaussian."""
    places = 30.0 * np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0)])
    return torch.from_numpy(places + wider * frames(on_axes(network(3, 1)), n_frames, seed)).float()


def test_other_frames_of_the_same_law_are_within_reach_and_wider_ones_are_not() -> None:
    reach = Reach.of(conditions(2000, seed=1))
    assert reach.pairs == ((0, 1), (0, 2), (1, 2))
    assert reach.holds(conditions(N, seed=2)).all()
    out = (~reach.holds(conditions(N, seed=2, wider=4.0))).double().mean()
    assert 0.1 < out < 0.5  # beyond 6.8/4 = 1.7 standard deviations in one of three distances


def test_a_frame_out_of_reach_has_failed_and_its_neighbours_have_not() -> None:
    density = GaussianKernel.noise(3, SIGMA, centred=False)
    known = conditions(2000, seed=1)
    kernel = ReverseKernel(density, SIGMA, TEMPERATURE_K, False, None, torch.device("cpu"), Reach.of(known))
    positions = known[:6].numpy().copy()
    positions[2, 0] += 50.0
    positions[4] = np.nan
    condition = BeadFrames(positions, np.zeros_like(positions), np.ones(6, np.float32))
    found = kernel.sample(condition, np.random.default_rng(1))
    assert found.failed.tolist() == [False, False, True, False, True, False]


def test_of_many_pairs_the_bonds_and_some_others_are_looked_at() -> None:
    chain = torch.randn(20, 100, 3)
    bonds = [(i, i + 1) for i in range(99)]
    pairs = Reach.of(chain, bonds).pairs
    assert set(bonds) <= set(pairs) and 300 < len(pairs) <= 512 and len(set(pairs)) == len(pairs)


def test_it_is_remembered_as_json() -> None:
    told = FittedOn("toy", ("A", "B", "C"), SIGMA, TEMPERATURE_K, Reach.of(conditions(20, seed=1)))
    assert FittedOn.from_description(json.loads(json.dumps(asdict(told)))) == told


@pytest.mark.parametrize(
    ("use", "error", "words"),
    [
        (("villin", ("A", "B"), 0.3, 300.0), errors.DamagedProduct, r"villin with 2 beads \(A, B\).*toy with 3 beads"),
        (("toy", ("A", "B", "X"), 0.3, 300.0), errors.DamagedProduct, "A, B, X"),
        (("toy", ("A", "B", "C"), 0.1, 300.0), errors.DamagedProduct, r"noise of 0\.1 nm.*flow\.sigma_nm = 0\.3"),
        (("toy", ("A", "B", "C"), 0.3, 350.0), errors.TemperatureMismatch, "350 K.*fitted at 300 K"),
    ],
)
def test_other_uses_are_refused(use: tuple, error: type[Exception], words: str) -> None:
    told = FittedOn("toy", ("A", "B", "C"), SIGMA, TEMPERATURE_K, Reach.of(conditions(20, seed=1)))
    told.refuse_other("toy", ("A", "B", "C"), SIGMA, TEMPERATURE_K)
    with pytest.raises(error, match=words):
        told.refuse_other(*use)
