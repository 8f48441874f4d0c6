from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov

from hpc_cg.forcefield.prediction import Prediction
from hpc_cg.simulate.langevin import (
    Dynamics,
    EnsembleState,
    baoab,
    init,
    kinetic_temperatures,
    longest_overdamped_step,
    move_of,
    overdamped,
    overdamped_step,
    step,
)
from hpc_cg.units import kT

MASS, STIFFNESS, TEMPERATURE = 12.0, 3000.0, 300.0
OMEGA = float(np.sqrt(STIFFNESS / MASS))


def well(positions: torch.Tensor) -> Prediction:
    """A harmonic well in every direction."""
    return Prediction(0.5 * STIFFNESS * positions.square().sum((1, 2)), -STIFFNESS * positions)


def moves(timestep_ps: float, friction_per_ps: float = 1.0) -> Dynamics:
    return Dynamics((MASS,), timestep_ps, friction_per_ps, TEMPERATURE, 5)


def state_at(x: float, v: float) -> EnsembleState:
    positions = torch.full((1, 1, 3), x, dtype=torch.float64)
    energies, forces = well(positions)
    return EnsembleState(positions, torch.full_like(positions, v), forces, energies, 0)


def stationary(timestep_ps: float, friction_per_ps: float) -> np.ndarray:
    """Covariance of (x, v) that a step leaves unchanged, exactly: the step is linear here."""
    numbers = baoab(moves(timestep_ps, friction_per_ps), torch.zeros(0, dtype=torch.float64))

    def after(x: float, v: float, normal: float) -> list[float]:
        done = step(state_at(x, v), well, numbers, torch.full((1, 1, 3), normal, dtype=torch.float64))
        return [float(done.positions[0, 0, 0]), float(done.velocities[0, 0, 0])]

    linear = np.array([after(1, 0, 0), after(0, 1, 0)]).T
    noise = np.array([after(0, 0, 1)]).T
    return solve_discrete_lyapunov(linear, noise @ noise.T)


@pytest.mark.parametrize("product", [0.1, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("friction_per_ps", [0.1, 1.0, 20.0])
def test_positions_in_a_well_are_exact_and_full_step_velocities_read_cold(product, friction_per_ps):
    covariance = stationary(product / OMEGA, friction_per_ps)
    assert covariance[0, 0] == pytest.approx(kT(TEMPERATURE) / STIFFNESS, rel=1e-9)
    assert MASS * covariance[1, 1] == pytest.approx(kT(TEMPERATURE) * (1 - product**2 / 4), rel=1e-9)


def test_a_sampled_well_has_the_right_width():
    replicas = tuple(range(4000))
    start = torch.tensor(np.random.default_rng(0).normal(0, np.sqrt(kT(300.0) / STIFFNESS), (4000, 1, 3)))
    state = init(start, well, moves(1.0 / OMEGA), replicas)
    assert float(kinetic_temperatures(state.velocities, (MASS,)).mean()) == pytest.approx(300.0, rel=0.04)
    numbers = baoab(moves(1.0 / OMEGA), start)
    generator = torch.Generator().manual_seed(3)
    for _ in range(100):
        state = step(state, well, numbers, torch.randn(4000, 1, 3, generator=generator, dtype=torch.float64))
    assert float(state.positions.square().mean()) * STIFFNESS == pytest.approx(kT(300.0), rel=0.05)
    assert float(kinetic_temperatures(state.velocities, (MASS,)).mean()) == pytest.approx(225.0, rel=0.05)


def test_without_friction_or_noise_energy_is_kept_to_second_order():
    drifts = []
    for timestep_ps in (0.01, 0.005):
        numbers = baoab(moves(timestep_ps, 0.0), torch.zeros(0, dtype=torch.float64))
        state = state_at(0.03, 0.0)
        energies = []
        for _ in range(round(2.0 / timestep_ps)):
            state = step(state, well, numbers, torch.zeros(1, 1, 3, dtype=torch.float64))
            energies.append(float(state.energies[0] + 0.5 * MASS * state.velocities.square().sum()))
        drifts.append(np.ptp(energies))
    assert drifts[0] / drifts[1] == pytest.approx(4.0, rel=0.15)


def test_a_step_leaves_its_argument_alone():
    state = state_at(0.1, 0.2)
    numbers = baoab(moves(0.01), state.positions)
    after = step(state, well, numbers, torch.ones_like(state.positions))
    assert after.step == 1 and state.step == 0
    assert torch.equal(state.positions, torch.full((1, 1, 3), 0.1, dtype=torch.float64))


def test_start_velocities_belong_to_the_replica_not_to_its_place():
    positions, two = torch.zeros(3, 2, 3), Dynamics((12.0, 14.0), 0.002, 1.0, 300.0, 8)
    some = init(positions, well, two, (4, 5, 6)).velocities
    others = init(positions, well, two, (6, 9, 4)).velocities
    assert torch.equal(some[2], others[0]) and torch.equal(some[0], others[2])
    assert not torch.equal(some[1], others[1])


@pytest.mark.parametrize("reduced_step", [0.02, 0.3, 1.0, 1.7])
def test_overdamped_positions_in_a_well_have_kt_over_k_and_the_known_error_of_the_step(reduced_step):
    friction_per_ps = 7.0
    timestep_ps = reduced_step * MASS * friction_per_ps / STIFFNESS
    numbers = overdamped(moves(timestep_ps, friction_per_ps), torch.zeros(0, dtype=torch.float64))

    def after(x: float, normal: float) -> float:
        normals = torch.full((1, 1, 3), normal, dtype=torch.float64)
        return float(overdamped_step(state_at(x, 0.0), well, numbers, normals).positions[0, 0, 0])

    stays, noise = after(1, 0), after(0, 1)
    assert noise**2 / (1 - stays**2) == pytest.approx(
        kT(TEMPERATURE) / STIFFNESS / (1 - timestep_ps * STIFFNESS / (2 * MASS * friction_per_ps)), rel=1e-9
    )


@pytest.mark.parametrize(("part", "grows"), [(0.999, False), (1.001, True)])
def test_a_bond_diverges_from_the_longest_overdamped_step_on(part, grows):
    masses, stiffness, centre = (12.0, 30.0, 14.0), np.array([2e5, 3e5]), 0.15
    pair = Dynamics(masses, 1.0, 5.0, TEMPERATURE, 5, "overdamped")
    longest_ps = longest_overdamped_step(pair, ((0, 1), (1, 2)), stiffness)
    assert longest_ps == pytest.approx(2 * 5.0 * (30 * 14 / 44) / 3e5)
    numbers = overdamped(replace(pair, timestep_ps=part * longest_ps, masses=masses[1:]), torch.zeros(0).double())

    def bond(positions: torch.Tensor) -> Prediction:
        arrow = positions[:, 1] - positions[:, 0]
        length = arrow.norm(dim=-1, keepdim=True)
        force = stiffness[1] * (length - centre) * arrow / length
        return Prediction(0.5 * stiffness[1] * (length[:, 0] - centre).square(), torch.stack((force, -force), 1))

    positions = torch.tensor([[[0.0, 0, 0], [centre + 1e-5, 0, 0]]], dtype=torch.float64)
    energies, forces = bond(positions)
    state = EnsembleState(positions, torch.zeros_like(positions), forces, energies, 0)
    for _ in range(200):
        state = overdamped_step(state, bond, numbers, torch.zeros_like(positions))
    assert (float(state.energies) > float(energies)) == grows


def test_without_bonds_no_overdamped_step_is_too_long():
    assert longest_overdamped_step(moves(0.01), (), np.zeros(0)) == float("inf")


def test_every_bead_has_its_own_mobility_and_there_are_no_velocities_without_inertia():
    two = Dynamics((12.0, 24.0), 0.01, 5.0, 300.0, 8, "overdamped")
    numbers = overdamped(two, torch.zeros(0, dtype=torch.float64))
    assert numbers.mobility.flatten().tolist() == pytest.approx([0.01 / 60, 0.01 / 120])
    assert numbers.spread.flatten().square().tolist() == pytest.approx([2 * kT(300.0) / 6000, 2 * kT(300.0) / 12000])
    assert not init(torch.zeros(3, 2, 3), well, two, (4, 5, 6)).velocities.any()


HEIGHT, WIDTH, TILT = 4.0, 0.1, 1.5


def double_well(positions: torch.Tensor) -> Prediction:
    """Two unlike wells in every direction, 0.1 nm to either side of a barrier of 1.6 kT."""
    x = positions / WIDTH
    energy = (HEIGHT * (x.square() - 1).square() + TILT * x).sum((1, 2))
    return Prediction(energy, -(4 * HEIGHT * (x.square() - 1) * x + TILT) / WIDTH)


@pytest.mark.parametrize(
    ("integrator", "timestep_ps", "friction_per_ps"), [("baoab", 0.02, 5.0), ("overdamped", 0.001, 10.0)]
)
def test_a_double_well_is_populated_as_its_boltzmann_factor_says(integrator, timestep_ps, friction_per_ps):
    positions = torch.full((500, 1, 3), WIDTH, dtype=torch.float64)  # all in the higher well
    dynamics = Dynamics((MASS,), timestep_ps, friction_per_ps, TEMPERATURE, 5, integrator)
    state, advance = init(positions, double_well, dynamics, tuple(range(500))), move_of(dynamics, positions)
    generator = torch.Generator().manual_seed(3)
    found = []
    for number in range(5000):
        normals = torch.randn(positions.shape, generator=generator, dtype=torch.float64)
        state = advance(state, double_well, normals)
        if number >= 2500 and number % 50 == 0:
            found.append(state.positions.numpy().ravel())
    edges = np.array([-1.0, -0.5, 0.0, 0.5, 1.0]) * WIDTH
    grid = np.linspace(-3 * WIDTH, 3 * WIDTH, 6001) + 1e-9
    x = grid / WIDTH
    weights = np.exp(-(HEIGHT * (x**2 - 1) ** 2 + TILT * x) / kT(TEMPERATURE))
    exact = np.histogram(grid, edges, weights=weights)[0] / weights.sum()
    sampled = np.histogram(np.concatenate(found), edges)[0] / np.size(found)
    left = weights[grid < 0].sum() / weights.sum()
    assert left > 0.7 and (np.concatenate(found) < 0).mean() == pytest.approx(left, abs=0.02)
    assert sampled == pytest.approx(exact, abs=0.01)
