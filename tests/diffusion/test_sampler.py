"""Samples of Gaussian data by exact noise, whose law is known."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from exact_noise import SCALE_NM, SCHEDULE, exact_model, network
from torch import Tensor

from hpc_cg.diffusion import sampler
from hpc_cg.diffusion.model import DiffusionModel
from hpc_cg.diffusion.sampler import ancestral, chosen_levels, deterministic
from hpc_cg.diffusion.schedule import CosineSchedule
from hpc_cg.errors import HpcCgError, SamplingDiverged

COVARIANCE = network(4, 0)


def modes(samples: Tensor) -> np.ndarray:
    """Amplitudes of the modes that move, over their exact widths."""
    variances, directions = np.linalg.eigh(COVARIANCE)
    parts = np.einsum("bm,fbx->fxm", directions, samples.double().numpy() / SCALE_NM)[..., 1:]
    return parts / np.sqrt(variances[1:])


@pytest.mark.parametrize("sample", [ancestral, deterministic])
def test_samples_have_the_covariance_of_the_data(sample) -> None:
    found = modes(sample(exact_model(COVARIANCE), 0, range(500))).reshape(-1, 3)
    products = found.T @ found / len(found)
    spread = np.sqrt((1 + np.eye(3)) / len(found))
    assert (np.abs(products - np.eye(3)) < 4 * spread + 0.01).all(), products
    assert (np.abs(found.mean(0)) < 4 / np.sqrt(len(found))).all()


def test_the_error_of_the_deterministic_sampler_is_of_second_order() -> None:
    model, samples = exact_model(COVARIANCE), range(50)
    start = SCALE_NM * sampler._first(model, sampler._key(0, samples), 50) / float(np.sqrt(SCHEDULE.signal[-1]))
    variances = np.linalg.eigvalsh(COVARIANCE)[1:]
    exact = modes(start) * np.sqrt(variances) / np.sqrt(variances + SCHEDULE.widths[-1] ** 2)
    found = [modes(deterministic(model, 0, samples, n)) for n in (10, 20, 40, 80)]
    errors = [float(np.sqrt(((one - exact) ** 2).mean() / (exact**2).mean())) for one in found]
    assert all(before / after > 3 for before, after in pairwise(errors)) and errors[-1] < 0.002, errors


@pytest.mark.parametrize("sample", [ancestral, deterministic])
def test_a_sample_does_not_depend_on_those_beside_it(sample) -> None:
    model = exact_model(COVARIANCE, schedule=CosineSchedule(100))
    whole = sample(model, 3, range(5))
    parts = torch.cat([sample(model, 3, [0, 1]), sample(model, 3, [2, 3, 4])])
    torch.testing.assert_close(parts, whole)
    assert (sample(model, 4, range(5)) - whole).abs().max() > 0.01 * SCALE_NM
    assert whole.mean(1).abs().max() < 1e-12


@pytest.mark.parametrize("sample", [ancestral, deterministic])
def test_samples_that_diverge_are_told_of(sample) -> None:
    with pytest.raises(SamplingDiverged, match=r"3 samples of a diffusion model: found \d that diverged at level \d+"):
        sample(exact_model(COVARIANCE, strength=-3.0), 0, [7, 8, 9])
    with pytest.raises(SamplingDiverged, match="sample 7, 8, 9 among them"):
        sample(exact_model(COVARIANCE, strength=float("nan")), 0, [7, 8, 9])


def test_levels_go_from_the_last_to_the_first_and_are_dense_where_noise_is_like_the_data() -> None:
    levels = chosen_levels(SCHEDULE, 20)
    widths = SCHEDULE.widths[levels]
    assert levels[0] == 999 and levels[-1] == 0 and len(levels) == 20
    assert (np.diff(levels) < 0).all() and widths[1] == pytest.approx(sampler.WIDE, rel=0.1)


@pytest.mark.parametrize("n_steps", [1, 1001])
def test_more_steps_than_levels_or_less_than_two_are_refused(n_steps: int) -> None:
    with pytest.raises(HpcCgError, match="choose from 2 to 1000|Choose from 2 to 1000"):
        chosen_levels(SCHEDULE, n_steps)


def test_single_precision_samples_as_double_does() -> None:
    double: DiffusionModel = exact_model(COVARIANCE)
    single = exact_model(COVARIANCE).float()
    torch.testing.assert_close(
        deterministic(single, 0, range(4)).double(), deterministic(double, 0, range(4)), atol=1e-4, rtol=0
    )
