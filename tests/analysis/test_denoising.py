"""What kernels take back of the noise, on beads that fluctuate as a Gaussian."""

import numpy as np
import pytest
import torch

from hpc_cg.analysis import denoising
from hpc_cg.analysis.denoising import Denoising, DenoisingSums
from hpc_cg.analysis.features import angles, bond_lengths
from hpc_cg.beads import BeadSystem, bead_system
from hpc_cg.errors import TooFewFrames
from hpc_cg.kernels.gaussian import GaussianKernel
from hpc_cg.randomness import stream

SIGMA, SPREAD = 0.004, 0.003
PLACES = np.array([(0.0, 0, 0), (0.5, 0, 0), (0.9, 0.3, 0), (1.4, 0.3, 0.1)])
COVARIANCE = SPREAD**2 * np.eye(12)


def chain(n_beads: int = 4) -> BeadSystem:
    return bead_system(("a",) * n_beads, (0,) * n_beads, (12.0,) * n_beads, [(i, i + 1) for i in range(n_beads - 1)])


def samples(n: int = 40_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clean frames, blurred ones, and draws of the kernel that is right for them."""
    clean = PLACES + SPREAD * np.random.default_rng(0).normal(size=(n, 4, 3))
    blurred = clean + SIGMA * np.random.default_rng(1).normal(size=clean.shape)
    kernel = GaussianKernel.reverse(PLACES, COVARIANCE, SIGMA, centred=False)
    return clean, blurred, kernel.draw(torch.from_numpy(blurred), stream(0, "draws")).positions.numpy()


def by_kind(sums: DenoisingSums) -> dict[str, Denoising]:
    return {row.kind: row for row in sums.table()}


def test_the_right_kernel_gives_the_widths_back_and_the_errors_that_noise_leaves() -> None:
    found = by_kind(DenoisingSums.of(chain(), *samples()))
    assert list(found) == ["bonds", "angles", "pairs"]
    for row in found.values():
        assert row.drawn_width == pytest.approx(row.clean_width, rel=0.01)
        assert row.drawn_shift < 0.02 * row.clean_width
    unknown = SIGMA**2 * SPREAD**2 / (SIGMA**2 + SPREAD**2)  # variance of a coordinate given the blurred frame
    for kind in ("bonds", "pairs"):  # so long that they are linear in the displacements
        row = found[kind]
        assert row.clean_width == pytest.approx(np.sqrt(2) * SPREAD, rel=0.01)
        assert row.blurred_width == pytest.approx(np.sqrt(2 * SPREAD**2 + 2 * SIGMA**2), rel=0.01)
        assert row.blurred_error == pytest.approx(np.sqrt(2) * SIGMA, rel=0.01)
        assert row.drawn_error == pytest.approx(np.sqrt(4 * unknown), rel=0.01)


def test_a_kernel_that_returns_its_condition_takes_nothing_back() -> None:
    clean, blurred, _ = samples(500)
    for row in DenoisingSums.of(chain(), clean, blurred, blurred).table():
        assert (row.drawn_width, row.drawn_shift, row.drawn_error) == (
            row.blurred_width,
            row.blurred_shift,
            row.blurred_error,
        )


def test_numbers_are_those_of_the_coordinates_themselves() -> None:
    clean, blurred, drawn = samples(300)
    found = by_kind(DenoisingSums.of(chain(), clean, blurred, drawn))
    for kind, q in (
        ("bonds", [bond_lengths(x, chain().bonds) for x in (clean, blurred, drawn)]),
        ("angles", [angles(x, chain().angles) for x in (clean, blurred, drawn)]),
        ("pairs", [bond_lengths(x, [(0, 2), (0, 3), (1, 3)]) for x in (clean, blurred, drawn)]),
    ):
        row = found[kind]
        assert row.unit == ("rad" if kind == "angles" else "nm")
        assert row.blurred_width == pytest.approx(np.sqrt(np.mean(q[1].var(axis=0))), rel=1e-6)
        assert row.blurred_shift == pytest.approx(np.sqrt(np.mean((q[1] - q[0]).mean(axis=0) ** 2)), rel=1e-6)
        assert row.drawn_error == pytest.approx(np.sqrt(np.mean((q[2] - q[0]) ** 2)), rel=1e-9)


def test_sums_do_not_depend_on_blocks_and_leave_out_draws_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    clean, blurred, drawn = samples(200)
    weights = np.where(np.arange(200) % 7 == 3, 0.0, 1 + np.arange(200) % 2)
    drawn[weights == 0] = np.nan
    whole = DenoisingSums.of(chain(), clean, blurred, drawn, weights)
    monkeypatch.setattr(denoising, "BLOCK_NUMBERS", 50)
    parts = [
        DenoisingSums.of(chain(), clean[rows], blurred[rows], drawn[rows], weights[rows])
        for rows in (slice(0, 61), slice(61, 200))
    ]
    times = np.repeat(np.arange(200), weights.astype(int))
    repeated = DenoisingSums.of(chain(), clean[times], blurred[times], drawn[times])
    for other in (parts[0] + parts[1], repeated):
        assert other.weight == whole.weight
        for row, same in zip(other.table(), whole.table(), strict=True):
            np.testing.assert_allclose(list(vars(row).values())[2:], list(vars(same).values())[2:], rtol=1e-6)


def test_two_beads_have_bonds_alone_and_no_frames_nothing() -> None:
    clean, blurred, drawn = (a[:, :2] for a in samples(20))
    sums = DenoisingSums.of(chain(2), clean, blurred, drawn)
    assert [row.kind for row in sums.table()] == ["bonds"]
    with pytest.raises(TooFewFrames):
        DenoisingSums.of(chain(2), clean, blurred, drawn, np.zeros(20)).table()
