"""Replica exchange against exact answers: harmonic wells, an asymmetric double well, the record of the swaps."""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.special import betainc

from hpc_cg.forcefield.evaluator import Evaluate
from hpc_cg.forcefield.prediction import Prediction
from hpc_cg.simulate.exchange import (
    Exchange,
    SwapCounts,
    Swaps,
    decide,
    geometric_ladder,
    on_rung,
    replicas_on_rungs,
    round_trips,
    rungs_over,
    traded,
    velocity_factors,
)
from hpc_cg.simulate.langevin import Dynamics, baoab, init, step
from hpc_cg.units import BOLTZMANN, kT

T0 = 320.0
FOUR = geometric_ladder(300.0, 500.0, 4)
MASS, STIFFNESS = 12.0, 3000.0


def harmonic_energies(n: int, temperatures_K: tuple[float, ...], n_coordinates: int, seed: int) -> np.ndarray:
    """Independent potential energies of harmonic coordinates (sample rung): gamma, whatever their springs."""
    thermal = np.array([kT(temperature) for temperature in temperatures_K])
    return np.random.default_rng(seed).gamma(n_coordinates / 2, thermal, (n, len(thermal)))


def harmonic_acceptance(colder_K: float, hotter_K: float, n_coordinates: int) -> float:
    """Mean acceptance of two rungs: twice the probability that the colder one has the higher energy."""
    return 2.0 * betainc(n_coordinates / 2, n_coordinates / 2, 1.0 / (1.0 + hotter_K / colder_K))


def attempts(energies: np.ndarray, temperatures_K: tuple[float, ...], seed: int = 4) -> list[Swaps]:
    """A decision for each row of energies, every replica on the rung of its number."""
    rungs, inside = np.arange(len(temperatures_K)), np.ones(len(temperatures_K), dtype=bool)
    return [decide(rungs, row, inside, temperatures_K, seed, 0, number) for number, row in enumerate(energies)]


@pytest.mark.parametrize("n_coordinates", [3, 18])
def test_harmonic_wells_trade_places_as_often_as_they_must(n_coordinates):
    record = attempts(harmonic_energies(6000, FOUR, n_coordinates, seed=1), FOUR)
    counts = SwapCounts.of(record, len(FOUR))
    wanted = [harmonic_acceptance(a, b, n_coordinates) for a, b in pairwise(FOUR)]
    assert counts.tried.tolist() == [3000, 3000, 3000]
    assert counts.acceptance == pytest.approx(np.array(wanted), abs=0.036)  # four standard errors


def test_neighbours_of_a_geometric_ladder_trade_equally_often():
    exact = [harmonic_acceptance(a, b, 30) for a, b in pairwise(FOUR)]
    assert FOUR[0] == 300.0 and FOUR[-1] == 500.0
    assert exact == pytest.approx([exact[0]] * 3, rel=1e-12)


def test_a_swap_and_its_reverse_balance():
    temperatures, energies = (300.0, 400.0), np.array([4.0, 1.5])
    forth = SwapCounts.of(attempts(np.tile(energies, (1500, 1)), temperatures), 2).acceptance[0]
    back = SwapCounts.of(attempts(np.tile(energies[::-1], (1500, 1)), temperatures), 2).acceptance[0]
    ratio = np.exp((energies[0] - energies[1]) * (1 / kT(300.0) - 1 / kT(400.0)))
    assert forth == 1.0 and back == pytest.approx(1 / ratio, abs=0.05)


def test_attempts_leave_the_distribution_of_every_rung_as_it_is():
    n_coordinates = 6
    energies = harmonic_energies(6000, FOUR, n_coordinates, seed=2)
    after = np.empty_like(energies)
    for row, swaps in enumerate(attempts(energies, FOUR)):
        after[row] = energies[row, replicas_on_rungs(traded(np.arange(4), swaps))]
    reduced = after / np.array([kT(temperature) for temperature in FOUR])
    assert (after != energies).any(axis=1).mean() > 0.5
    assert reduced.mean(axis=0) == pytest.approx(np.full(4, n_coordinates / 2), rel=0.03)
    assert reduced.var(axis=0) == pytest.approx(np.full(4, n_coordinates / 2), rel=0.1)


@dataclass
class Ladders:
    """Many ladders at once: row r is replica r modulo the number of rungs of ladder r divided by it."""

    positions: torch.Tensor
    evaluate: Evaluate
    temperatures_K: tuple[float, ...]
    timestep_ps: float
    friction_per_ps: float
    rescale: float = 1.0
    attempt: int = 0

    def __post_init__(self):
        self.n = len(self.temperatures_K)
        n_replicas, n_beads, _ = self.positions.shape
        self.rungs = np.tile(np.arange(self.n), (n_replicas // self.n, 1))
        self.dynamics = Dynamics((MASS,) * n_beads, self.timestep_ps, self.friction_per_ps, T0, 5)
        state = init(self.positions, self.evaluate, self.dynamics, tuple(range(n_replicas)))
        heat = torch.tensor(Exchange(self.temperatures_K, 1, 3).heat(self.rungs.ravel(), T0))[:, None, None]
        self.state = replace(state, velocities=state.velocities * heat)
        self.generator = torch.Generator().manual_seed(7)

    def by_rung(self, values: torch.Tensor) -> np.ndarray:
        """Values of the replicas in the order of the rungs (ladder rung ...)."""
        found = values.numpy().reshape(*self.rungs.shape, *values.shape[1:])
        return np.stack([row[at] for row, at in zip(found, replicas_on_rungs(self.rungs), strict=True)])

    def kinetic(self) -> np.ndarray:
        """Kinetic temperature of each rung, K."""
        return MASS * (self.by_rung(self.state.velocities) ** 2).mean(axis=(0, 2, 3)) / BOLTZMANN

    def advance(self, n_steps: int) -> None:
        heat = torch.tensor(Exchange(self.temperatures_K, 1, 3).heat(self.rungs.ravel(), T0))[:, None, None]
        numbers = baoab(self.dynamics, self.state.positions)
        for _ in range(n_steps):
            normals = torch.randn(self.state.positions.shape, generator=self.generator, dtype=torch.float64)
            self.state = step(self.state, self.evaluate, numbers, heat * normals)

    def trade(self) -> None:
        self.attempt += 1
        energies = self.state.energies.numpy().reshape(self.rungs.shape)
        inside = np.ones(self.n, dtype=bool)
        before, factors = self.rungs, []
        swaps = [
            decide(rungs, row, inside, self.temperatures_K, 3, ladder, self.attempt)
            for ladder, (rungs, row) in enumerate(zip(before, energies, strict=True))
        ]
        self.rungs = np.stack([traded(rungs, one) for rungs, one in zip(before, swaps, strict=True)])
        factors = [velocity_factors(self.temperatures_K, *pair) for pair in zip(before, self.rungs, strict=True)]
        scale = torch.tensor(np.concatenate(factors) ** self.rescale)[:, None, None]
        self.state = replace(self.state, velocities=self.state.velocities * scale)


def harmonic(positions: torch.Tensor) -> Prediction:
    return Prediction(0.5 * STIFFNESS * positions.square().sum((1, 2)), -STIFFNESS * positions)


def kinetic_temperatures_around_swaps(rescale: float) -> tuple[np.ndarray, np.ndarray]:
    """Of each rung over its temperature, before the swaps and right after them, with hardly any thermostat."""
    n_ladders, n_beads = 300, 4
    spread = np.sqrt(BOLTZMANN * np.array(FOUR * n_ladders) / STIFFNESS)[:, None, None]
    start = torch.tensor(spread * np.random.default_rng(0).normal(size=(len(spread), n_beads, 3)))
    ladders = Ladders(start, harmonic, FOUR, 0.05 / np.sqrt(STIFFNESS / MASS), 0.05, rescale)
    before, after = [], []
    for _ in range(12):
        ladders.advance(15)
        before.append(ladders.kinetic() / FOUR)
        ladders.trade()
        after.append(ladders.kinetic() / FOUR)
    return np.mean(before, axis=0), np.mean(after, axis=0)


def test_every_rung_has_its_kinetic_temperature_before_and_after_swaps():
    before, after = kinetic_temperatures_around_swaps(rescale=1.0)
    assert before == pytest.approx(np.ones(4), abs=0.02)
    assert after == pytest.approx(np.ones(4), abs=0.02)


@pytest.mark.parametrize("rescale", [-1.0, 0.0])
def test_velocities_scaled_the_wrong_way_or_not_at_all_would_be_seen(rescale):
    _, after = kinetic_temperatures_around_swaps(rescale)
    assert np.abs(after - 1.0).max() > 0.05


def test_an_asymmetric_double_well_has_its_populations_at_every_rung():
    rungs = geometric_ladder(300.0, 900.0, 4)
    height, width, tilt, stiff = 14.0, 0.1, 2.5, 2000.0

    def potential(x):
        return height * ((x / width) ** 2 - 1) ** 2 + tilt * x / width

    def evaluate(positions: torch.Tensor) -> Prediction:
        x, rest = positions[..., 0], positions[..., 1:]
        slope = 4 * height * ((x / width) ** 2 - 1) * x / width**2 + tilt / width
        forces = torch.cat((-slope[..., None], -stiff * rest), dim=-1)
        return Prediction((potential(x) + 0.5 * stiff * rest.square().sum(-1)).sum(1), forces)

    n_ladders = 30
    start = torch.zeros(n_ladders * 4, 1, 3, dtype=torch.float64)
    start[..., 0] = width  # all in the well that has few
    ladders = Ladders(start, evaluate, rungs, 0.01, 2.0)
    left = []
    for number in range(360):
        ladders.advance(20)
        ladders.trade()
        if number >= 80:
            left.append(ladders.by_rung(ladders.state.positions)[:, :, 0, 0] < 0)
    grid = np.linspace(-3 * width, 3 * width, 4001)
    weights = np.exp(-potential(grid)[None] / np.array([kT(temperature) for temperature in rungs])[:, None])
    exact = weights[:, grid < 0].sum(axis=1) / weights.sum(axis=1)
    assert exact[0] - exact[-1] > 0.2
    of_ladder = np.mean(left, axis=0)
    error = of_ladder.std(axis=0) / np.sqrt(n_ladders - 1)
    assert error.max() < 0.02
    assert np.abs((of_ladder.mean(axis=0) - exact) / error).max() < 3.5


def test_numbers_belong_to_ladder_and_attempt_and_to_nothing_else():
    energies = harmonic_energies(40, FOUR, 12, seed=5)
    whole, again = attempts(energies, FOUR), attempts(energies, FOUR)
    assert whole == again
    rungs, inside = np.arange(4), np.ones(4, dtype=bool)
    elsewhere = [decide(rungs, row, inside, FOUR, 4, 1, number) for number, row in enumerate(energies)]
    assert elsewhere != whole


def test_a_quarantined_replica_is_not_traded_and_its_energy_is_not_looked_at():
    energies = np.array([1e9, np.nan, 0.0, -1e9])
    swaps = [
        decide(np.array([3, 0, 1, 2]), energies, np.array([True, False, True, True]), FOUR, 1, 0, attempt)
        for attempt in (0, 1)
    ]
    assert swaps[0].lower == (2,) and swaps[1].lower == (1,)  # replica 1 is on rung 0


def test_even_and_odd_pairs_take_turns_and_two_rungs_trade_every_time():
    four, two = attempts(np.zeros((2, 4)), FOUR), attempts(np.zeros((2, 2)), FOUR[:2])
    assert [swaps.lower for swaps in four] == [(0, 2), (1,)]
    assert [swaps.lower for swaps in two] == [(0,), (0,)]
    assert all(all(swaps.accepted) for swaps in four)  # equal energies: nothing forbids it


def test_the_record_of_the_swaps_gives_rungs_and_replicas_back():
    record = attempts(harmonic_energies(200, FOUR, 6, seed=6), FOUR)
    rungs = rungs_over(np.arange(4), record)
    on_rungs = replicas_on_rungs(rungs)
    assert rungs.shape == (201, 4) and not np.array_equal(rungs[-1], rungs[0])
    assert np.array_equal(replicas_on_rungs(on_rungs), rungs)
    for time in (0, 57, 200):
        assert all(rungs[time, replica] == rung for rung, replica in enumerate(on_rungs[time]))
    first, second = rungs_over(np.arange(4), record[:80]), None
    second = rungs_over(first[-1], record[80:])
    assert np.array_equal(np.concatenate((first, second[1:])), rungs)
    parts = SwapCounts.of(record[:80], 4) + SwapCounts.of(record[80:], 4)
    assert np.array_equal(parts.accepted, SwapCounts.of(record, 4).accepted)
    assert np.array_equal(np.abs(np.diff(rungs, axis=0)).sum(axis=1) // 2, [sum(s.accepted) for s in record])


def test_values_on_a_rung_are_those_of_the_replica_that_is_there():
    records = [attempts(harmonic_energies(50, FOUR, 6, seed=seed), FOUR) for seed in (1, 2, 3)]
    rungs = np.concatenate([rungs_over(np.arange(4), record) for record in records], axis=1).T
    values = np.arange(12)[:, None, None] + 0.5 * rungs[..., None] * np.ones(2)
    for rung in range(4):
        found = on_rung(values, rungs, rung, 4)
        assert found.shape == (3, 51, 2)
        replicas = found[..., 0] - 0.5 * rung
        assert np.array_equal(rungs[replicas.astype(int), np.arange(51)], np.full((3, 51), rung))
        assert np.array_equal(replicas // 4, np.repeat([[0], [1], [2]], 51, axis=1))


def test_round_trips_count_from_the_lowest_rung_to_the_highest_and_back():
    there_and_back = np.array([0, 1, 2, 1, 0, 0, 1, 0, 1, 2, 2, 1, 0, 1])
    half = np.array([2, 2, 1, 0, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1])
    rungs = np.stack((there_and_back, half, np.ones(14, dtype=np.int64)), axis=1)
    assert round_trips(rungs).tolist() == [2, 0, 0]


def test_velocities_slow_down_on_the_way_to_a_colder_rung():
    factors = velocity_factors((300.0, 400.0), np.array([0, 1]), np.array([1, 0]))
    assert factors == pytest.approx([np.sqrt(4 / 3), np.sqrt(3 / 4)])
