"""The continuous flow as a kernel, against an exact Gaussian one, finite differences, and the published weights."""

import json
from dataclasses import replace
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch
from fields import GaussianField, RoughField
from torch import Tensor

from hpc_cg.errors import FitFailed, MissingInput, UnknownBeads, UnreadableFile
from hpc_cg.kernels.cnf import CNFConfig, ConditionalFlow, refined, refinement
from hpc_cg.kernels.density import ConditionalDensity, Draw, centred
from hpc_cg.kernels.egnn import EGNN, EGNNConfig
from hpc_cg.kernels.flow import AdaptiveSteps, FixedSteps
from hpc_cg.kernels.published import read_published
from hpc_cg.randomness import stream

SIGMA = 0.1
N_BEADS = 4
TIGHT, COARSE = FixedSteps("rk4", 12, 10.0), FixedSteps("rk4", 3, 10.0)


def chain_covariance() -> np.ndarray:
    """Of a chain of springs, without its centre."""
    springs = np.diff(np.eye(N_BEADS), axis=0)
    return 0.02 * np.linalg.pinv(springs.T @ springs)


def gaussian(divergence: str = "exact") -> ConditionalFlow:
    """The exact flow of frames of that covariance and noise SIGMA, carried from noise SIGMA."""
    random = np.random.default_rng(0)
    mean = random.normal(size=(N_BEADS, 3))
    field = GaussianField(chain_covariance(), mean - mean.mean(0), 2 * SIGMA**2)
    return ConditionalFlow(field, CNFConfig(SIGMA, 0.0, divergence, 1, TIGHT))  # type: ignore[arg-type]


def gaussian_frames(n: int) -> tuple[Tensor, Tensor]:
    """Clean frames with their mean, and noised ones."""
    flow, random = gaussian(), np.random.default_rng(1)
    values, vectors = np.linalg.eigh(chain_covariance())
    clean = flow.velocity.mean + torch.from_numpy(
        vectors * np.sqrt(values.clip(0)) @ random.normal(size=(n, N_BEADS, 3))
    )
    return clean, clean + torch.from_numpy(random.normal(0, SIGMA, (n, N_BEADS, 3)))


def curved(divergence: str, **changes: object) -> ConditionalFlow:
    """A small fresh network whose flow is far from linear."""
    network = EGNN((0, 1, 1, 2), EGNNConfig(n_layers=2, n_hidden=8), seed=1).double()
    for layer in network.layers:
        torch.nn.init.normal_(layer.shift_out.weight, 0, 0.02, generator=torch.Generator().manual_seed(3))
    config = CNFConfig(0.05, 0.01, divergence, 1, TIGHT)  # type: ignore[arg-type]
    return ConditionalFlow(network, replace(config, **changes))


def conditions(n: int) -> Tensor:
    places = np.array([[0.38 * bead, 0.2 * (bead % 2), 0.1 * (bead // 2)] for bead in range(N_BEADS)])
    return torch.from_numpy(places + np.random.default_rng(4).normal(0, 0.03, (n, N_BEADS, 3)))


def central_differences(flow: ConditionalFlow, y: Tensor, c: Tensor, of_condition: bool) -> Tensor:
    """The gradient of log κ(y | c) by y or c, for one frame, with the same random numbers everywhere."""
    shifts = 1e-4 * torch.eye(3 * N_BEADS, dtype=y.dtype).reshape(-1, N_BEADS, 3)
    shifts = torch.cat((shifts, -shifts))
    given = (y.expand_as(shifts), c + shifts) if of_condition else (y + shifts, c.expand_as(shifts))
    values = flow.at(*given, stream(0, "probes")).log_density
    up, down = values.reshape(2, N_BEADS, 3)
    return (up - down) / 2e-4


def test_draws_of_the_exact_field_have_the_density_and_scores_of_its_gaussian() -> None:
    flow, (_, noised) = gaussian(), gaussian_frames(6)
    drawn = flow.draw(noised, stream(0, "draw"))
    g = flow.velocity.flow_map
    mean = flow.velocity.mean
    away = centred(drawn.positions) - mean - g @ (centred(noised) - mean)
    precision = torch.linalg.pinv(g @ g) / SIGMA**2
    torch.testing.assert_close(drawn.score, -precision @ away, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(drawn.condition_score, -g @ drawn.score, rtol=1e-4, atol=1e-4)
    log_scale = 3 * torch.linalg.eigvalsh(g)[1:].log().sum() + 3 * (N_BEADS - 1) / 2 * np.log(2 * np.pi * SIGMA**2)
    exact = -0.5 * (away * (precision @ away)).sum((1, 2)) - log_scale
    torch.testing.assert_close(drawn.log_density, exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(drawn.positions.mean(1), noised.mean(1))
    assert not drawn.failed.any()


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_labels_of_the_exact_field_regress_to_the_mean_force_of_the_clean_frames(divergence: str) -> None:
    flow, (_, noised) = gaussian(divergence), gaussian_frames(20_000)
    flow = ConditionalFlow(flow.velocity, replace(flow.config, integrator=FixedSteps("rk4", 6, 10.0)))
    drawn = flow.draw(noised, stream(0, "draw"))
    y, label = ((a.mT.reshape(-1, N_BEADS)) for a in (centred(drawn.positions) - flow.velocity.mean, drawn.score))
    exact = -np.linalg.pinv(chain_covariance())
    np.testing.assert_allclose((y.T @ y / len(y)).numpy(), chain_covariance(), atol=5e-4)
    slope = (torch.linalg.pinv(y, rtol=1e-6) @ label).T
    np.testing.assert_allclose(slope.numpy(), exact, atol=0.03 * np.abs(exact).max())


def test_exact_scores_are_the_gradients_of_the_log_density() -> None:
    flow, c = curved("exact"), conditions(1)
    y = flow.draw(c, stream(1, "draw")).positions
    there = flow.at(y, c, stream(0, "probes"))
    for score, of_condition in ((there.score, False), (there.condition_score, True)):
        slopes = central_differences(flow, y, c, of_condition)
        assert (slopes - score[0]).abs().max() < 1e-5 * score.abs().max()


def test_an_estimated_score_is_the_gradient_of_the_estimated_log_density() -> None:
    flow, c = curved("hutchinson"), conditions(1)
    y = flow.draw(c, stream(1, "draw")).positions
    along = conditions(2)[1:]
    up, down = (flow.at(y + shift * along, c, stream(0, "probes")).log_density for shift in (1e-5, -1e-5))
    score = flow.at(y, c, stream(0, "probes")).score
    slope = float((score * along).sum())
    assert float(up - down) / 2e-5 == pytest.approx(slope, abs=1e-5 * float(score.norm() * along.norm()))
    assert abs(slope - float((curved("exact").at(y, c, stream(0, "probes")).score * along).sum())) > 1e-3 * abs(slope)


def test_estimated_scores_and_densities_are_exact_in_the_mean() -> None:
    c = conditions(1)
    y = curved("exact").draw(c, stream(1, "draw")).positions
    exact = curved("exact", integrator=COARSE).at(y, c, stream(0, "probes"))
    many = curved("hutchinson", integrator=COARSE).at(
        y.expand(1000, -1, -1), c.expand(1000, -1, -1), stream(0, "probes")
    )
    for estimated, value in ((many.score, exact.score[0]), (many.log_density, exact.log_density[0])):
        error = estimated.std(0) / len(estimated) ** 0.5
        assert ((estimated.mean(0) - value).abs() < 4.5 * error + 1e-9).all()
        assert (error > 0).all()
    torch.testing.assert_close(many.condition_score, exact.condition_score.expand(1000, -1, -1))


def test_the_dropped_term_is_what_separates_the_published_score_from_the_gradient() -> None:
    c = conditions(1)
    y = curved("exact").draw(c, stream(1, "draw")).positions
    dropped, exact = (curved(kind).at(y, c, stream(0, "probes")) for kind in ("drop", "exact"))
    slopes = central_differences(curved("exact"), y, c, False)
    assert (dropped.score[0] - slopes).norm() > 0.01 * slopes.norm()
    assert (exact.score[0] - slopes).norm() < 1e-5 * slopes.norm()
    torch.testing.assert_close(dropped.condition_score, exact.condition_score)


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_scores_of_own_draws_have_zero_mean_and_obey_the_virial(divergence: str) -> None:
    n = 2000 if divergence == "hutchinson" else 500
    flow = curved(divergence, integrator=COARSE)
    c = conditions(1).expand(n, -1, -1)
    drawn = flow.draw(c, stream(2, "draw"))
    error = drawn.score.std(0) / n**0.5
    assert (drawn.score.mean(0).abs() < 4.5 * error).all()
    virial = ((drawn.positions - c) * drawn.score).sum((1, 2))
    assert float(virial.mean()) == pytest.approx(-3 * (N_BEADS - 1), abs=4.5 * float(virial.std()) / n**0.5)


def test_a_draw_and_the_density_at_it_agree() -> None:
    flow, c = curved("exact"), conditions(5)
    drawn = flow.draw(c, stream(1, "draw"))
    there = flow.at(drawn.positions, c, stream(1, "draw"))
    for name in ("score", "condition_score", "log_density"):
        torch.testing.assert_close(getattr(there, name), getattr(drawn, name), rtol=1e-4, atol=1e-4)
    assert not there.failed.any()


def test_fixed_steps_agree_with_adaptive_ones() -> None:
    c = conditions(4)
    fixed = curved("exact").draw(c, stream(1, "draw"))
    adaptive = curved("exact", integrator=AdaptiveSteps(1e-6, 0.1)).draw(c, stream(1, "draw"))
    for name in ("positions", "score", "log_density"):
        torch.testing.assert_close(getattr(fixed, name), getattr(adaptive, name), rtol=1e-4, atol=1e-4)


def test_a_turned_condition_has_turned_draws() -> None:
    """A turn by which noise goes through its own axes: x to y, y to z, z to x."""
    flow, c = curved("exact", integrator=COARSE), conditions(3)
    noise = flow._noise(c, stream(0, "noise"))
    one = flow._carried(centred(c), noise, stream(0, "probes"))
    other = flow._carried(centred(c).roll(1, -1), noise.roll(1, -1), stream(0, "probes"))
    torch.testing.assert_close(one.positions.roll(1, -1), other.positions)
    torch.testing.assert_close(one.score.roll(1, -1), other.score)
    torch.testing.assert_close(one.log_density, other.log_density)


def test_draws_follow_the_key_and_not_the_precision() -> None:
    flow, c = curved("hutchinson", integrator=COARSE), conditions(3)
    first, again, other = (flow.draw(c, stream(seed, "draw")) for seed in (1, 1, 2))
    torch.testing.assert_close(first.score, again.score, rtol=0, atol=0)
    assert (first.positions - other.positions).abs().max() > 0.01
    single = curved("hutchinson", integrator=COARSE).float().draw(c.float(), stream(1, "draw"))
    torch.testing.assert_close(single.positions.double(), first.positions, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(single.score.double(), first.score, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("integrator", [FixedSteps("rk4", 3, 1e-3), AdaptiveSteps(1e-6, 1.0, max_steps=60)])
def test_frames_that_do_not_converge_have_failed(integrator: FixedSteps | AdaptiveSteps) -> None:
    flow = ConditionalFlow(RoughField(), CNFConfig(1e-9, 0.0, "hutchinson", 1, integrator))
    c = torch.zeros(3, N_BEADS, 3, dtype=torch.float64)
    c[:, 0, 0] = torch.tensor([1.0, -1.0, np.nan])
    for drawn in (flow.draw(c, stream(0, "draw")), flow.at(c, c, stream(0, "draw"))):
        assert drawn.failed.tolist() == [True, False, True]


def fitted(n_steps: int) -> ConditionalFlow:
    """A small network fitted to frames of a Gaussian chain about the origin, with noise."""
    network = EGNN(range(3), EGNNConfig(n_layers=2, n_hidden=24), seed=0)
    flow = ConditionalFlow(network, CNFConfig(0.05, 0.005, "exact", 1, FixedSteps("rk4", 3, 0.05)))
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=n_steps)
    for place in range(n_steps):
        key = stream(0, "fit", place)
        clean, noised = three_beads(192, key)
        optimizer.zero_grad()
        flow.loss(clean, noised, key).mean().backward()
        optimizer.step()
        schedule.step()
    return flow


COVARIANCE = 0.004 * np.linalg.pinv(np.array([[1.0, -1.0, 0.0], [-1.0, 2.5, -1.5], [0.0, -1.5, 1.5]]))


def three_beads(n: int, key: np.random.Generator) -> tuple[Tensor, Tensor]:
    values, vectors = np.linalg.eigh(COVARIANCE)
    clean = vectors * np.sqrt(values.clip(0)) @ key.normal(size=(n, 3, 3))
    return torch.from_numpy(clean).float(), torch.from_numpy(clean + key.normal(0, 0.05, clean.shape)).float()


def test_a_fitted_network_recovers_the_gaussian_kernel() -> None:
    flow = fitted(300)
    clean, noised = three_beads(1000, stream(1, "test"))
    field = GaussianField(COVARIANCE, np.zeros((3, 3)), 2 * 0.05**2)
    drawn = flow.draw(noised, stream(2, "draw"))
    start = centred(noised.double()) + 0.05**2 * drawn.condition_score
    way = field.flow_map @ start - start
    error = centred(drawn.positions).double() - field.flow_map @ start
    assert error.square().mean() < 0.15**2 * way.square().mean()
    exact = -torch.linalg.pinv(field.flow_map) @ drawn.condition_score.double()
    assert (drawn.score - exact).square().mean() < 0.15**2 * exact.square().mean()
    loss = float(flow.loss(clean, noised, stream(3, "loss")).mean().detach())
    assert loss < 1.15 * irreducible_loss(field) < 1.6


def irreducible_loss(field: GaussianField) -> float:
    """The variance of x₁ − x₀ that frames on the way leave open, over σ_p², averaged over time."""
    times = (np.polynomial.legendre.leggauss(20)[0] + 1) / 2
    weights = np.polynomial.legendre.leggauss(20)[1] / 2
    values = field.values[field.moving].numpy()[:, None]
    noise, path = field.noise, 0.005**2
    open_ = noise - ((1 - times) * noise) ** 2 / (values + (1 - times) ** 2 * noise + path)
    return float((weights * open_.mean(0)).sum()) / 0.05**2


def test_a_description_and_weights_give_the_same_flow() -> None:
    flow, c = curved("hutchinson"), conditions(3)
    for integrator in (FixedSteps("heun", 3, 1.0), AdaptiveSteps(1e-2, 0.1)):
        flow = ConditionalFlow(flow.velocity, replace(flow.config, integrator=integrator))
        again: ConditionalDensity = ConditionalFlow.from_description(json.loads(json.dumps(flow.describe()))).double()
        again.load_state_dict(flow.state_dict())
        first, second = (one.draw(c, stream(1, "draw")) for one in (flow, again))
        torch.testing.assert_close(first.score, second.score, rtol=0, atol=0)


def test_the_number_of_nodes_follows_the_tolerance() -> None:
    flow, c = curved("hutchinson", integrator=FixedSteps("rk4", 1, 10.0)), conditions(4)
    found = [refined(flow, c, stream(0, "nodes"), tolerance) for tolerance in (0.05, 1e-3)]
    nodes = [one.config.integrator.n_nodes for one in found]  # type: ignore[union-attr]
    assert nodes[0] < nodes[1]
    change = refinement(found[1], c, stream(0, "nodes"))
    assert max(change.positions, change.score) < 1e-3
    with pytest.raises(FitFailed, match="with 2 nodes"):
        refined(flow, c, stream(0, "nodes"), 1e-9, most=2)


def chignolin(data_folder: Path) -> tuple[ConditionalFlow, Tensor]:
    """The published flow and the structure it is for, 64 times with noise of 0.05 Å."""
    flow = read_published(data_folder / "chignolin/cln_cnf_sigma0.05A.pt", 10)
    native = torch.from_numpy(mdtraj.load(str(data_folder / "ca_structures/CLN025-0-c-alpha.pdb")).xyz)
    noise = stream(0, "noise").normal(0, 0.005, (64, 10, 3))
    return flow, native + torch.from_numpy(noise).float()


@pytest.mark.data
def test_published_weights_undo_their_noise(data_folder: Path) -> None:
    flow, noised = chignolin(data_folder)
    drawn: Draw = flow.draw(noised, stream(0, "draw"))

    def bonds(x: Tensor) -> Tensor:
        return (x[:, 1:] - x[:, :-1]).norm(dim=-1)

    start = noised + flow.config.sigma_prior_nm**2 * drawn.condition_score
    widths = [float((bonds(x) - 0.385).square().mean().sqrt()) for x in (start, drawn.positions)]
    assert widths[0] > 0.0095  # the noise of condition and start, on both ends of a bond: 0.01 nm
    assert widths[1] < 0.0063  # what bonds of chignolin have of themselves: 0.006 nm
    assert float(bonds(drawn.positions).mean()) == pytest.approx(0.3854, abs=5e-4)
    assert not drawn.failed.any()


@pytest.mark.data
def test_the_published_score_lacks_some_per_cent_and_three_nodes_do_not(data_folder: Path) -> None:
    flow, noised = chignolin(data_folder)

    def score(divergence: str, n_nodes: int) -> Tensor:
        config = replace(flow.config, divergence=divergence, integrator=FixedSteps("rk4", n_nodes, 0.001))  # type: ignore[arg-type]
        return ConditionalFlow(flow.velocity, config).draw(noised[:4], stream(0, "draw")).score

    exact = score("exact", 8)
    for divergence, least, most in (("drop", 0.02, 0.06), ("exact", 0.0, 0.005)):
        error = float((score(divergence, 3) - exact).norm() / exact.norm())
        assert least < error < most


@pytest.mark.data
def test_published_weights_of_another_molecule_or_no_weights_are_refused(data_folder: Path, tmp_path: Path) -> None:
    path = data_folder / "chignolin/cln_cnf_sigma0.05A.pt"
    with pytest.raises(UnknownBeads, match="for 20 beads: found weights for 10 beads"):
        read_published(path, 20)
    with pytest.raises(UnreadableFile, match="no archive of torch"):
        read_published(data_folder / "chignolin/CLN025.pdb", 10)
    with pytest.raises(MissingInput, match="no such file"):
        read_published(tmp_path / "absent.pt", 10)
    torch.save({"model_state_dict": Path("/")}, tmp_path / "strange.pt")
    with pytest.raises(UnreadableFile, match="more than tensors"):
        read_published(tmp_path / "strange.pt", 10)
    torch.save({"model_state_dict": {"weight": torch.zeros(3)}}, tmp_path / "other.pt")
    with pytest.raises(UnreadableFile, match="no graph network"):
        read_published(tmp_path / "other.pt", 10)
    weights = torch.load(path, weights_only=True, map_location="cpu")["model_state_dict"]
    name = next(name for name in weights if name.endswith("egnn.gcl_2.edge_mlp.2.weight"))
    torch.save({"model_state_dict": {**weights, name: weights[name][:32]}}, tmp_path / "narrow.pt")
    with pytest.raises(UnreadableFile, match=r"layers\.2\.edge_out\.weight"):
        read_published(tmp_path / "narrow.pt", 10)
