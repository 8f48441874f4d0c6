"""The engines agree with the force field and with one another, whoever shares a batch and however many cores work."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from engines import biased, dynamics, make_engine

from hpc_cg.beads import bead_system
from hpc_cg.compiler import INSTALL
from hpc_cg.errors import NoCompiler
from hpc_cg.forcefield.coordinates import CoordinateMoments
from hpc_cg.forcefield.fitting import fit_priors
from hpc_cg.forcefield.forcefield import ForceField
from hpc_cg.forcefield.schnet import SchNetConfig
from hpc_cg.simulate import engine as engines
from hpc_cg.simulate.batch import TorchEngine
from hpc_cg.simulate.compiled import CompiledEngine
from hpc_cg.simulate.langevin import EnsembleState, init, move_of
from hpc_cg.simulate.noise import key_of, normals
from hpc_cg.simulate.packing import spline_coefficients

IDS = tuple(range(7, 20))
SHAPES = (
    SchNetConfig(),
    SchNetConfig(n_filters=24, n_blocks=3, terminal_widths=(16, 8)),
    SchNetConfig(cutoff_nm=0.3, n_rbf=12, n_filters=160, n_blocks=1, terminal_widths=(40,)),
)


def same(one: EnsembleState, two: EnsembleState) -> bool:
    names = ("positions", "velocities", "forces", "energies")
    return all(torch.equal(getattr(one, name), getattr(two, name)) for name in names)


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    wanted = wanted.detach()
    return float((found.double() - wanted).norm() / wanted.norm())


def chain(n_beads: int, config: SchNetConfig) -> tuple[ForceField, np.ndarray]:
    """A zigzag of beads with priors fitted to its noise, and 500 frames (nm)."""
    steps, numbers = np.arange(n_beads), range(n_beads)
    places = np.stack((0.3 * steps, 0.2 * (steps % 2), 0.1 * (steps % 3)), 1)
    frames = places + np.random.default_rng(2).normal(0, 0.01, (500, n_beads, 3))
    bonds = tuple((i, i + 1) for i in range(n_beads - 1))
    system = bead_system([f"CA{i}" for i in numbers], [i % 4 for i in numbers], (12.0,) * n_beads, bonds)
    prior = fit_priors(CoordinateMoments.of(frames, system), 300.0, 3)
    return biased(ForceField(system, prior, config, seed=4)), frames


@pytest.mark.compiler
@pytest.mark.parametrize("config", SHAPES)
def test_compiled_forces_are_those_of_the_force_field_in_double_precision(alanine, forcefield, frames, config):
    model = biased(ForceField(alanine, forcefield.parameters_of_prior, config, seed=2))
    positions = torch.tensor(frames[:40])
    wanted = deepcopy(model).double()(positions)
    moving = make_engine("compiled", model, dynamics(alanine))
    found = moving.evaluate(positions.float())
    assert relative(found.forces, wanted.forces) < 1e-5
    assert float((found.energy.double() - wanted.energy.detach()).abs().max()) < 5e-3
    assert moving.table_error(positions) < 5e-5


@pytest.mark.compiler
@pytest.mark.parametrize("n_beads", [2, 3, 17, 40])
def test_chains_of_any_length_feel_the_same_forces_as_in_torch(n_beads):
    model, frames = chain(n_beads, SchNetConfig(cutoff_nm=1.0, n_filters=64, terminal_widths=(32,)))
    positions = torch.tensor(frames[:9])
    wanted = deepcopy(model).double()(positions)
    found = make_engine("compiled", model, dynamics(model.system)).evaluate(positions.float())
    assert relative(found.forces, wanted.forces) < 1e-5


@pytest.mark.compiler
@pytest.mark.parametrize(("integrator", "timestep_ps"), [("baoab", 0.002), ("overdamped", 2e-5)])
@pytest.mark.parametrize("heat", [None, np.linspace(0.8, 1.6, len(IDS))], ids=["alike", "unlike"])
def test_compiled_trajectory_is_the_one_of_torch_up_to_rounding(
    alanine, forcefield, frames, integrator, timestep_ps, heat
):
    states, moves = [], dynamics(alanine, timestep_ps, integrator=integrator)
    for name in ("torch", "compiled"):
        moving = make_engine(name, forcefield, moves)
        start = init(torch.tensor(frames[: len(IDS)]).float(), moving.evaluate, moves, IDS)
        states.append(moving.advance(start, 60, IDS, heat))
    one, two = states
    assert one.step == two.step == 60
    moved = (one.positions - torch.tensor(frames[: len(IDS)]).float()).norm()
    assert float((one.positions - two.positions).norm() / moved) < 1e-4
    assert torch.allclose(one.velocities, two.velocities, rtol=0, atol=2e-3)


@pytest.mark.compiler
def test_compiled_trajectory_is_the_same_bits_for_any_threads_and_companions(forcefield, frames):
    model, frames = chain(10, SchNetConfig(cutoff_nm=1.0))
    moves, ids = dynamics(model.system), tuple(range(23))
    make_engine("compiled", model, moves)
    found = []
    for n_threads, chosen in ((1, ids), (2, ids), (5, ids), (1, ids[4:9]), (2, (20,))):
        moving = CompiledEngine(model, moves, n_threads=n_threads)
        start = init(torch.tensor(frames[list(chosen)]).float(), moving.evaluate, moves, chosen)
        end = moving.advance(start, 40, chosen)
        found.append({i: (end.positions[row], end.velocities[row], end.forces[row]) for row, i in enumerate(chosen)})
    for other in found[1:]:
        assert all(torch.equal(a, b) for i in other for a, b in zip(other[i], found[0][i], strict=True))


def test_steps_in_two_calls_are_the_steps_of_one(ensemble):
    start = ensemble.start(IDS)
    whole = ensemble.engine.advance(start, 30, IDS)
    half = ensemble.engine.advance(start, 11, IDS)
    assert same(whole, ensemble.engine.advance(half, 19, IDS))
    assert start.step == 0 and torch.equal(start.positions, ensemble.start(IDS).positions)


@pytest.mark.parametrize(("integrator", "timestep_ps"), [("baoab", 0.002), ("overdamped", 2e-5)])
def test_torch_engine_makes_the_steps_that_the_integrator_writes(alanine, forcefield, frames, integrator, timestep_ps):
    moves, heat = dynamics(alanine, timestep_ps, integrator=integrator), np.linspace(0.9, 1.4, 8)
    moving = TorchEngine(forcefield, moves, dtype=torch.float64, batch=3)
    start = init(torch.tensor(frames[:8]), moving.evaluate, moves, range(8))
    state, move = start, move_of(moves, start.positions)
    for place in range(12):
        noise = normals(key_of(moves.seed), torch.tensor([place]), torch.arange(8), 6, torch.float64)[0]
        state = move(state, moving.force, torch.tensor(heat)[:, None, None] * noise)
    found = moving.advance(start, 12, range(8), heat)
    torch.testing.assert_close(found.positions, state.positions, rtol=0, atol=1e-12)
    assert found.step == 12


@pytest.mark.gpu
def test_graphs_on_a_gpu_make_the_steps_of_the_cpu_and_repeat_them_bit_for_bit(alanine, forcefield, frames):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    moves, positions = dynamics(alanine), torch.tensor(frames[:8]).float()
    ends, heat = [], np.linspace(0.9, 1.4, 8)
    for device, n_steps in (("cpu", (25,)), ("cuda", (25,)), ("cuda", (10, 15))):
        moving = TorchEngine(forcefield, moves, device, batch=3)
        state = init(positions.to(device), moving.evaluate, moves, range(8))
        for n in n_steps:
            state = moving.advance(state, n, range(8), heat)
        ends.append(state.positions.cpu())
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-4)
    assert torch.equal(ends[1], ends[2])


def test_bundles_make_up_the_steps(alanine, forcefield):
    moving = TorchEngine(forcefield, dynamics(alanine))
    for n_steps in (1, 49, 50):
        for n_replicas in (1, 30_000, 10_000_000):
            lengths = moving.bundles(n_replicas, n_steps)
            assert sum(lengths) == n_steps and min(lengths) >= 1 and len(set(lengths)) <= 2
            assert max(lengths) == 1 or max(lengths) * n_replicas * 18 <= 2**21


PAIRS, SIGMA = np.array([[0, 4], [1, 5], [0, 5]]), np.array([0.3, 0.35, 0.4])


def repelling(forcefield: ForceField) -> ForceField:
    """The same with three pairs of beads that repel one another."""
    prior = replace(forcefield.parameters_of_prior, repulsion_pairs=PAIRS, repulsion_sigma=SIGMA)
    made = ForceField(forcefield.system, prior, forcefield.config)
    made.network.load_state_dict(forcefield.network.state_dict())
    return made


@pytest.mark.compiler
def test_pairs_that_repel_add_their_energy_and_its_gradient(alanine, forcefield, frames):
    """V = 4.184 kJ/mol (sigma / r)^6, here written out once more."""
    plain, with_pairs = (
        make_engine("compiled", model, dynamics(alanine)) for model in (forcefield, repelling(forcefield))
    )
    positions = torch.tensor(frames[:10], requires_grad=True)
    i, j = PAIRS.T
    distance = (positions[:, i] - positions[:, j]).norm(dim=-1)
    energy = (4.184 * (torch.tensor(SIGMA) / distance) ** 6).sum(1)
    wanted = -torch.autograd.grad(energy.sum(), positions)[0]
    here = positions.detach().float()
    found, without = with_pairs.evaluate(here), plain.evaluate(here)
    torch.testing.assert_close((found.energy - without.energy).double(), energy.detach(), rtol=1e-4, atol=1e-3)
    assert relative(found.forces - without.forces, wanted) < 1e-3


@pytest.mark.parametrize("name", ["torch", pytest.param("compiled", marks=pytest.mark.compiler)])
@pytest.mark.parametrize("part_of_sigma", [0.26, 0.24, 0.1, 1e-3, 0.0])
def test_beads_too_close_repel_as_in_the_force_field_in_double_precision(
    alanine, forcefield, frames, name, part_of_sigma
):
    """From a quarter of sigma on V is its tangent, down to beads in one place."""
    model, positions = repelling(forcefield), torch.tensor(frames[:3]).float()
    for i, j, sigma in zip(*PAIRS.T, SIGMA, strict=True):
        close = positions.clone()
        close[:, j] = close[:, i] + part_of_sigma * torch.tensor([0.36, 0.48, 0.8]) * sigma
        wanted = deepcopy(model).double()(close.double())
        found = make_engine(name, model, dynamics(alanine)).evaluate(close)
        assert float(wanted.energy.detach().min()) > 3000 * 4.184
        torch.testing.assert_close(found.energy.double(), wanted.energy.detach(), rtol=1e-5, atol=0)
        assert relative(found.forces, wanted.forces) < 1e-5


def test_splines_pass_through_their_knots_with_the_slopes_of_the_ends():
    x = np.linspace(0.0, 2.0, 33)
    value, h = np.sin(3 * x)[:, None], x[1]
    c = spline_coefficients(value, 3 * h * np.cos(3 * x[[0, -1]])[:, None])
    np.testing.assert_allclose((c[:-2] + 4 * c[1:-1] + c[2:]) / 6, value, atol=1e-12)
    middle = (c[:-3] + 23 * c[1:-2] + 23 * c[2:-1] + c[3:]) / 48
    np.testing.assert_allclose(middle[:, 0], np.sin(3 * (x[1:] - h / 2)), atol=(3 * h) ** 4 / 300)


def test_auto_takes_torch_and_says_why_where_nothing_compiles(alanine, forcefield, monkeypatch):
    def fails(*_):
        raise NoCompiler("the compiled simulation engine", "no C compiler (CC, cc)", INSTALL)

    monkeypatch.setattr("hpc_cg.simulate.compiled.library", fails)
    with pytest.warns(UserWarning, match="several times slower.*no C compiler.*apt-get install gcc"):
        assert engines.engine("auto", forcefield, dynamics(alanine)).name == "torch"
    with pytest.raises(NoCompiler, match="install a C compiler|Install a C compiler"):
        engines.engine("compiled", forcefield, dynamics(alanine))
    assert engines.engine("torch", forcefield, dynamics(alanine)).name == "torch"


@pytest.mark.compiler
def test_engine_does_not_follow_later_training(alanine, forcefield, frames):
    model, positions = deepcopy(forcefield), torch.tensor(frames[:4]).float()
    moving = make_engine("compiled", model, dynamics(alanine))
    before = moving.evaluate(positions).forces
    with torch.no_grad():
        model.network.last.weight.mul_(2)
    assert torch.equal(moving.evaluate(positions).forces, before)
