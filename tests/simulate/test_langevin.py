import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov

from hpc_cg.forcefield.prediction import Prediction
from hpc_cg.simulate.langevin import Dynamics, EnsembleState, baoab, init, kinetic_temperatures, step
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
