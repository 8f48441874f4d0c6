"""The axes on beads: orthonormal, turning with the molecule, and telling it from its mirror image."""

import numpy as np
import pytest
import torch
from torch import Tensor

from hpc_cg.errors import FitFailed
from hpc_cg.kernels.axes import local_axes, stiff_triangles

TRIANGLES = torch.tensor([[1, 2], [0, 2], [1, 3], [2, 1]])


def positions(seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(5, 4, 3)))


def rotation() -> Tensor:
    turn = torch.linalg.qr(torch.from_numpy(np.random.default_rng(3).normal(size=(3, 3)))).Q
    return turn * torch.linalg.det(turn)


def zigzag(n_beads: int, n_frames: int = 400) -> np.ndarray:
    """A chain whose torsions are free and whose bonds (0.38 nm) and angles are stiff."""
    random = np.random.default_rng(1)
    frames = np.zeros((n_frames, n_beads, 3))
    frames[:, 1, 0] = 0.38
    frames[:, 2] = (0.48, 0.37, 0.0)
    for bead in range(3, n_beads):
        first, second = (frames[:, bead - k] - frames[:, bead - k - 1] for k in (1, 2))
        across = np.cross(second, first)
        across /= np.linalg.norm(across, axis=1, keepdims=True)
        along = first / np.linalg.norm(first, axis=1, keepdims=True)
        phase = random.uniform(0, 2 * np.pi, (n_frames, 1))
        aside = np.cos(phase) * np.cross(across, along) + np.sin(phase) * across
        frames[:, bead] = frames[:, bead - 1] + 0.38 * (0.3 * along + np.sqrt(1 - 0.09) * aside)
    return frames + random.normal(0, 0.005, frames.shape)


def test_axes_are_orthonormal_and_right_handed() -> None:
    axes = local_axes(positions(), TRIANGLES)
    torch.testing.assert_close(axes @ axes.mT, torch.eye(3).double().expand_as(axes))
    torch.testing.assert_close(torch.linalg.det(axes), torch.ones(5, 4).double())


def test_axes_turn_with_the_molecule_and_do_not_feel_a_shift() -> None:
    turn = rotation()
    turned = local_axes(positions() @ turn.T + 7.0, TRIANGLES)
    torch.testing.assert_close(turned, local_axes(positions(), TRIANGLES) @ turn.T)


def test_a_mirror_image_has_other_coordinates_in_its_axes() -> None:
    mirror = torch.diag(torch.tensor((1.0, 1.0, -1.0))).double()

    def inside(x: Tensor) -> Tensor:
        return torch.einsum("fiab,fjb->fija", local_axes(x, TRIANGLES), x - x[:, :1])

    here, there = inside(positions()), inside(positions() @ mirror)
    torch.testing.assert_close(there[..., :2], here[..., :2])
    torch.testing.assert_close(there[..., 2], -here[..., 2])
    assert here[..., 2].abs().max() > 0.1


def test_a_bead_of_a_chain_and_its_partners_are_three_in_a_row() -> None:
    for bead, partners in enumerate(stiff_triangles(zigzag(8)).tolist()):
        assert max(bead, *partners) - min(bead, *partners) == 2


def test_beads_on_one_line_have_no_axes_and_are_refused() -> None:
    line = np.zeros((10, 4, 3))
    line[:, :, 0] = np.arange(4)
    with pytest.raises(FitFailed, match="on one line"):
        stiff_triangles(line + np.random.default_rng(0).normal(0, 0.01, line.shape))
    axes = local_axes(torch.from_numpy(line), TRIANGLES)
    assert not axes.isfinite().all((-1, -2)).any()


def test_two_beads_are_refused() -> None:
    with pytest.raises(FitFailed, match="bead 0 of 2"):
        stiff_triangles(np.random.default_rng(0).normal(size=(10, 2, 3)))
