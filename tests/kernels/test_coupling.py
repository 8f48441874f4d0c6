"""The coupling flow: exact inverses and determinants, scores, symmetries, and the law it is fitted to."""

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from hpc_cg.errors import UnknownBeads
from hpc_cg.kernels import coupling
from hpc_cg.kernels.coupling import CouplingConfig, CouplingFlow
from hpc_cg.kernels.density import Draw, normals
from hpc_cg.randomness import stream

SMALL = CouplingConfig(4, 1, 8, 8, 12, 4, (0.1, 0.3))
SIGMA_NM = 0.02


def key(seed: int = 0) -> np.random.Generator:
    return stream(seed, "test")


def molecule(n_frames: int, n_beads: int = 4, seed: int = 0) -> Tensor:
    """Frames of a bent chain with much thermal motion, nm, float64."""
    random = np.random.default_rng(seed)
    rest = 0.15 * np.stack((np.arange(n_beads), np.arange(n_beads) % 2, np.arange(n_beads) % 3 == 2), 1)
    return torch.from_numpy(rest + random.normal(0, 0.02, (n_frames, n_beads, 3)))


def shaken(flow: CouplingFlow, size: float = 0.1, seed: int = 5) -> CouplingFlow:
    """With random numbers added to all parameters: no longer the flow it begins as."""
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(size * normals(np.random.default_rng(seed), parameter))
    return flow


def flow_for(n_beads: int = 4, config: CouplingConfig = SMALL) -> CouplingFlow:
    """A shaken flow in float64, for frames like those of ``molecule``."""
    target = molecule(500, n_beads)
    noise = SIGMA_NM * normals(key(1), target)
    return shaken(CouplingFlow.of(target, target + noise, config, 3).double())


def rotation(seed: int = 2) -> Tensor:
    turn = torch.linalg.qr(torch.from_numpy(np.random.default_rng(seed).normal(size=(3, 3)))).Q
    return turn * torch.linalg.det(turn)


def log_density_by_hand(flow: CouplingFlow, y: Tensor, auxiliary: Tensor, condition: Tensor) -> Tensor:
    """log κ(y, a | c) − log N(a; 0, 1) from the change of variables."""
    context = flow.context(condition)
    base, log_det = flow.to_base(flow.local(y, condition, context), auxiliary, context)
    scales = 4.0 * torch.tanh(flow.base / 4.0)
    normal = torch.distributions.Normal(torch.zeros_like(scales), torch.exp(scales))
    standard = torch.distributions.Normal(torch.zeros_like(auxiliary), torch.ones_like(auxiliary))
    joint = normal.log_prob(base).sum((1, 2, 3)) + log_det - 3 * flow.n_beads * math.log(flow.unit_nm)
    return joint - standard.log_prob(auxiliary).sum((1, 2))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_the_way_back_undoes_the_way_there(dtype: torch.dtype, tolerance: float) -> None:
    flow = flow_for().to(dtype)
    context = flow.context(molecule(50, seed=1).to(dtype))
    base = normals(key(), torch.empty(50, 2, 4, 3, dtype=dtype))
    with torch.no_grad():
        moved, auxiliary = flow.from_base(base, context)
        again, _ = flow.to_base(moved, auxiliary, context)
    assert (again - base).abs().max() < tolerance
    assert (moved - base[:, 0]).abs().max() > 0.3


def test_the_log_determinant_is_that_of_the_jacobian() -> None:
    flow = flow_for(3)
    condition = molecule(1, 3, seed=1)
    context = flow.context(condition)

    def base_of(values: Tensor) -> Tensor:
        moved, auxiliary = values.view(1, 2, 3, 3).unbind(1)
        return flow.to_base(flow.local(moved, condition, context), auxiliary, context)[0].flatten()

    values = torch.stack((molecule(1, 3, seed=2), normals(key(), condition)), 1).flatten()
    _, expected = torch.linalg.slogdet(torch.autograd.functional.jacobian(base_of, values))
    moved = flow.local(values.view(1, 2, 3, 3)[:, 0], condition, context)
    _, log_det = flow.to_base(moved, values.view(1, 2, 3, 3)[:, 1], context)
    assert abs(log_det.item()) > 0.1
    assert (log_det - 9 * math.log(flow.unit_nm)).item() == pytest.approx(expected.item(), abs=1e-9)


def test_a_fresh_flow_is_the_noise_kernel_of_the_displacements_it_was_made_for() -> None:
    target = molecule(3000).float()
    condition = target + SIGMA_NM * normals(key(1), target)
    flow = CouplingFlow.of(target, condition, SMALL, 3)
    assert flow.unit_nm == pytest.approx(SIGMA_NM, rel=0.02)
    at = flow.at(target, condition, key())
    away = (target - condition) / flow.unit_nm
    expected = -0.5 * away.square().sum((1, 2)) - 12 * math.log(flow.unit_nm * math.sqrt(2 * math.pi))
    torch.testing.assert_close(at.log_density, expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(at.score, -away / flow.unit_nm, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(at.condition_score, away / flow.unit_nm, rtol=1e-4, atol=1e-3)


def test_scores_are_finite_differences_of_the_log_density() -> None:
    flow = flow_for()
    condition, step = molecule(3, seed=1), 1e-6
    positions = condition + SIGMA_NM * normals(key(2), condition)
    at = flow.at(positions, condition, key())
    for frame, bead, axis in ((0, 0, 0), (1, 2, 1), (2, 3, 2)):
        shift = torch.zeros_like(positions)
        shift[frame, bead, axis] = step
        for score, moved in ((at.score, (shift, 0 * shift)), (at.condition_score, (0 * shift, shift))):
            ends = [
                flow.at(positions + sign * moved[0], condition + sign * moved[1], key()).log_density[frame]
                for sign in (1, -1)
            ]
            slope = (ends[0] - ends[1]) / (2 * step)
            assert slope.item() == pytest.approx(score[frame, bead, axis].item(), rel=1e-5, abs=1e-5 / SIGMA_NM)


def test_scores_gathered_on_the_way_of_a_draw_are_gradients_at_its_auxiliary() -> None:
    flow = flow_for()
    condition = molecule(20, seed=1).requires_grad_()
    draw = flow.draw(condition.detach(), key())
    random = normals(key(), condition.new_empty(20, 2, 4, 3))
    with torch.no_grad():
        scales = 4.0 * torch.tanh(flow.base / 4.0)
        _, auxiliary = flow.from_base(random * torch.exp(scales), flow.context(condition))
    positions = draw.positions.clone().requires_grad_()
    log_density = log_density_by_hand(flow, positions, auxiliary, condition)
    score, condition_score = torch.autograd.grad(log_density.sum(), (positions, condition))
    torch.testing.assert_close(draw.log_density, log_density.detach())
    torch.testing.assert_close(draw.score, score)
    torch.testing.assert_close(draw.condition_score, condition_score)


def test_scores_of_own_draws_have_zero_mean_and_obey_the_virial() -> None:
    flow, n_frames = flow_for(3), 20_000
    condition = molecule(1, 3, seed=1).expand(n_frames, -1, -1).contiguous()
    draw = flow.draw(condition, key())
    for score in (draw.score, draw.condition_score):
        error = score.std(0) / math.sqrt(n_frames)
        assert (score.mean(0).abs() < 5 * error).all()
        assert (error * flow.unit_nm < 0.03).all()
    virial = (draw.score * (draw.positions - condition)).sum((1, 2))
    assert virial.mean().item() == pytest.approx(-9, abs=5 * virial.std().item() / math.sqrt(n_frames))
    assert virial.std().item() / math.sqrt(n_frames) < 0.1


def test_the_density_is_normalised_over_displacements_and_auxiliaries() -> None:
    """Importance sampling from a wide normal law of the displacements, the auxiliaries being N(0, 1)."""
    flow, n_frames, wide = flow_for(3, CouplingConfig(2, 1, 8, 8, 8, 4, (0.1, 0.3))), 40_000, 1.3
    condition = molecule(1, 3, seed=1).expand(n_frames, -1, -1)
    noise = normals(key(4), condition.contiguous())
    with torch.no_grad():
        random = np.random.default_rng(0)
        auxiliary = torch.from_numpy(random.normal(size=noise.shape))
        width = wide * flow.unit_nm
        log_weight = log_density_by_hand(flow, condition + width * noise, auxiliary, condition)
    log_proposal = -0.5 * noise.square().sum((1, 2)) - 9 * math.log(width * math.sqrt(2 * math.pi))
    weight = torch.exp(log_weight - log_proposal)
    error = weight.std().item() / math.sqrt(n_frames)
    assert error < 0.06
    assert weight.mean().item() == pytest.approx(1.0, abs=4 * error)


def test_the_density_turns_and_shifts_with_the_molecule_and_so_do_draws_of_one_key() -> None:
    flow, condition, turn = flow_for(), molecule(10, seed=1), rotation()
    positions = condition + SIGMA_NM * normals(key(2), condition)
    moved = condition @ turn.T + 3.0
    for here, there in (
        (flow.at(positions, condition, key()), flow.at(positions @ turn.T + 3.0, moved, key())),
        (flow.draw(condition, key()), flow.draw(moved, key())),
    ):
        torch.testing.assert_close(there.log_density, here.log_density)
        torch.testing.assert_close(there.positions, here.positions @ turn.T + 3.0)
        torch.testing.assert_close(there.score, here.score @ turn.T, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(there.condition_score, here.condition_score @ turn.T, rtol=1e-6, atol=1e-6)


def test_scores_together_feel_no_force_and_no_torque() -> None:
    """What shifts and turns change nothing of: the sum over target and condition, of forces and of r × force."""
    draw = (flow := flow_for()).draw(condition := molecule(10, seed=1), key())
    total = draw.score + draw.condition_score
    scale = draw.score.abs().max() * flow.n_beads
    assert total.sum(1).abs().max() < 1e-9 * scale
    torque = torch.linalg.cross(draw.positions, draw.score) + torch.linalg.cross(condition, draw.condition_score)
    assert torque.sum(1).abs().max() < 1e-9 * scale


def test_a_mirror_image_is_another_molecule() -> None:
    flow, condition = flow_for(), molecule(10, seed=1)
    positions = condition + SIGMA_NM * normals(key(2), condition)
    mirror = torch.diag(torch.tensor((1.0, 1.0, -1.0))).double()
    here = flow.at(positions, condition, key()).log_density
    there = flow.at(positions @ mirror, condition @ mirror, key()).log_density
    assert (here - there).abs().min() > 1e-3


def test_the_density_follows_a_permutation_of_beads_with_all_that_tells_them_apart() -> None:
    flow, order = flow_for(), [2, 0, 3, 1]
    place = {bead: new for new, bead in enumerate(order)}
    triangles = [[place[partner] for partner in flow.triangles.tolist()[bead]] for bead in order]
    other = CouplingFlow(4, triangles, flow.unit_nm, flow.config, 0).double()
    # of the condition (bead, axis) of vectors, then (bead) of distances; of the other half (axis, bead)
    columns = [3 * bead + axis for bead in order for axis in range(3)] + [12 + bead for bead in order]
    all_columns = columns + [16 + 4 * axis + bead for axis in range(3) for bead in order]
    state = flow.state_dict()
    for name, value in state.items():
        if name in ("feature_mean", "feature_spread"):
            state[name] = value[order][:, columns]
        elif name == "embedding":
            state[name] = value[order]
        elif name == "base":
            state[name] = value[:, order]
        elif name.endswith("linear"):
            state[name] = value[order][:, all_columns]
        elif name.endswith("inward.0.weight"):
            n = flow.config.embedding
            state[name] = value[:, [*range(n), *(n + column for column in all_columns)]]
    other.load_state_dict(state)
    condition, auxiliary = molecule(10, seed=1), normals(key(3), molecule(10))
    positions = condition + SIGMA_NM * normals(key(2), condition)
    here = log_density_by_hand(flow, positions, auxiliary, condition)
    there = log_density_by_hand(other, positions[:, order], auxiliary[:, order], condition[:, order])
    torch.testing.assert_close(there, here)
    mixed = log_density_by_hand(flow, positions[:, order], auxiliary[:, order], condition[:, order])
    assert (mixed - here).abs().min() > 1e-3


STIFFNESS = ((0, 1, 3.0), (1, 2, 2.0), (2, 3, 4.0), (0, 2, 1.0), (1, 3, 0.5))
NOISE_NM = 0.5


def gaussian_network() -> np.ndarray:
    """The stiffness K (kT/nm²) of four beads joined by springs of no length."""
    matrix = np.zeros((4, 4))
    for i, j, k in STIFFNESS:
        matrix[[i, j], [i, j]] += k
        matrix[[i, j], [j, i]] -= k
    return matrix


def gaussian_pairs(n_frames: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Clean frames of the network with their centre at rest, and the same with noise; float32."""
    eigenvalues, modes = np.linalg.eigh(gaussian_network())
    root = modes[:, 1:] / np.sqrt(eigenvalues[1:])
    clean = torch.from_numpy(np.einsum("bm,fma->fba", root, random.normal(size=(n_frames, 3, 3))).astype(np.float32))
    return clean, clean + NOISE_NM * normals(random, clean)


@pytest.fixture(scope="module")
def fitted() -> CouplingFlow:
    """A small flow fitted to the reverse of the noise for a few seconds."""
    flow = CouplingFlow(4, [[1, 2], [0, 2], [1, 3], [2, 0]], NOISE_NM, CouplingConfig(4, 1, 8, 8, 8, 4, (0.5, 2.0)), 0)
    random, n_steps = key(10), 300
    optimizer = torch.optim.Adam(flow.parameters(), fused=True)
    for step in range(n_steps):
        for group in optimizer.param_groups:
            group["lr"] = 8e-3 * (1 + math.cos(math.pi * step / n_steps))
        optimizer.zero_grad()
        flow.loss(*gaussian_pairs(256, random), random).mean().backward()
        optimizer.step()
    return flow


@pytest.fixture(scope="module")
def drawn(fitted: CouplingFlow) -> tuple[np.ndarray, np.ndarray, np.ndarray, Draw]:
    """Conditions, draws and their scores, as rows of beads (one for each frame and axis), and the draws."""
    _, condition = gaussian_pairs(30_000, key(11))
    draw = fitted.draw(condition, key(12))
    rows = [
        values.double().numpy().transpose(0, 2, 1).reshape(-1, 4) for values in (condition, draw.positions, draw.score)
    ]
    return rows[0], rows[1], rows[2], draw


def reverse() -> np.ndarray:
    """Covariance of the reverse kernel, (K + 1/σ²)⁻¹ on each axis; its mean is this times c/σ²."""
    return np.linalg.inv(gaussian_network() + np.eye(4) / NOISE_NM**2)


def test_a_flow_fitted_to_gaussian_data_has_the_mean_and_covariance_of_the_reverse_kernel(drawn) -> None:
    condition, positions, _, _ = drawn
    mean = reverse() / NOISE_NM**2
    np.testing.assert_allclose(np.linalg.lstsq(condition, positions)[0].T, mean, atol=0.03 * mean.max())
    rest = positions - condition @ mean.T
    np.testing.assert_allclose(rest.T @ rest / len(rest), reverse(), atol=0.06 * reverse().max())


def test_its_log_density_is_that_of_the_reverse_kernel(fitted: CouplingFlow) -> None:
    clean, condition = gaussian_pairs(10_000, key(13))
    entropy = 1.5 * np.linalg.slogdet(2 * np.pi * np.e * reverse())[1]
    assert fitted.at(clean, condition, key(14)).log_density.mean().item() == pytest.approx(-entropy, abs=0.1)


def test_its_labels_average_to_the_mean_force_of_the_clean_density(drawn) -> None:
    """kT = 1. The centre of clean frames lies still here, that of a draw spreads by twice the noise of a centre."""
    _, positions, score, draw = drawn
    exact = -gaussian_network() - np.full((4, 4), 1 / (2 * 4 * NOISE_NM**2))
    slope = np.linalg.lstsq(positions, score)[0].T
    np.testing.assert_allclose(slope, exact, atol=0.06 * np.abs(exact).max())
    precision = np.trace(np.linalg.inv(reverse())) / 4
    assert draw.score.square().mean().item() == pytest.approx(precision, rel=0.05)


def test_the_same_key_gives_the_same_draws_however_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    flow, condition = flow_for(), molecule(30, seed=1)
    once, again = flow.draw(condition, key()), flow.draw(condition, key())
    monkeypatch.setattr(coupling, "ROWS", 28)
    cut = flow.draw(condition, key())
    for name in ("positions", "score", "condition_score", "log_density"):
        assert torch.equal(getattr(once, name), getattr(again, name))
        torch.testing.assert_close(getattr(cut, name), getattr(once, name))
    assert not torch.equal(flow.draw(condition, key(1)).positions, once.positions)


def test_no_frames_give_no_draws() -> None:
    assert flow_for().draw(molecule(0), key()).positions.shape == (0, 4, 3)


def test_frames_without_numbers_or_axes_fail_and_leave_the_others_alone() -> None:
    flow, condition = flow_for(), molecule(6, seed=1)
    whole = flow.draw(condition, key())
    condition[1, 2, 0] = torch.nan
    condition[4] = 0.0
    draw = flow.draw(condition, key())
    assert draw.failed.tolist() == [False, True, False, False, True, False]
    good = ~draw.failed
    torch.testing.assert_close(draw.score[good], whole.score[good])
    assert not draw.score[draw.failed].isfinite().all((1, 2)).any()
    positions = condition.clone()
    positions[0] = torch.inf
    assert flow.at(positions, condition, key()).failed.tolist() == [True, True, False, False, True, False]


def test_scales_stay_bounded_whatever_the_weights_say() -> None:
    flow = shaken(flow_for(), 100.0).float()
    condition = molecule(50, seed=1).float()
    with torch.no_grad():
        by = flow.layers[0](normals(key(), condition), flow.context(condition), flow.embedding)
    assert by.log_scale.abs().max() <= 2.0
    assert by.log_scale.abs().max() > 1.9
    assert not shaken(flow_for(), 1.0).float().draw(condition, key()).failed.any()


def test_the_loss_is_the_mean_over_beads_of_minus_the_joint_log_density() -> None:
    flow, condition = flow_for(), molecule(20, seed=1)
    positions = condition + SIGMA_NM * normals(key(2), condition)
    auxiliary = normals(key(), positions)
    standard = (-0.5 * auxiliary.square() - 0.5 * math.log(2 * math.pi)).sum((1, 2))
    expected = -(log_density_by_hand(flow, positions, auxiliary, condition) + standard).mean() / 4
    torch.testing.assert_close(flow.loss(positions, condition, key()).mean(), expected)


def test_a_description_and_weights_make_the_same_flow() -> None:
    flow, condition = flow_for(), molecule(5, seed=1)
    other = CouplingFlow.from_description(json.loads(json.dumps(flow.describe()))).double()
    other.load_state_dict(flow.state_dict())
    torch.testing.assert_close(other.draw(condition, key()).score, flow.draw(condition, key()).score)


def test_a_description_of_another_number_of_beads_is_refused() -> None:
    description = flow_for().describe()
    with pytest.raises(UnknownBeads, match="for 6 beads: found triangles of 4 beads"):
        CouplingFlow.from_description({**description, "n_beads": 6})
    description["triangles"][0] = [1, 7]
    with pytest.raises(UnknownBeads, match="beads up to 7"):
        CouplingFlow.from_description(description)


def test_frames_of_another_number_of_beads_are_refused() -> None:
    flow, others = flow_for(), molecule(2, 5)
    for call in (
        lambda: flow.draw(others, key()),
        lambda: flow.at(others, others, key()),
        lambda: flow.loss(others, others, key()),
    ):
        with pytest.raises(UnknownBeads, match="4 beads: found frames of 5 beads"):
            call()
