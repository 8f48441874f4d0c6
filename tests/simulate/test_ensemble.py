from dataclasses import replace

import numpy as np
import pytest
import torch
from engines import dynamics, make_engine

from hpc_cg.simulate.ensemble import Limits, state_of
from hpc_cg.simulate.exchange import Exchange
from hpc_cg.simulate.langevin import init
from hpc_cg.simulate.recorder import Quarantine, read_block, write_block
from hpc_cg.units import kT

REPLICAS = tuple(range(8))
MIRROR = np.array([1.0, 1.0, -1.0])


def same(one, two) -> bool:
    return all(torch.equal(getattr(one, name), getattr(two, name)) for name in ("positions", "velocities", "forces"))


def test_resumed_ensemble_equals_uninterrupted_one(ensemble, tmp_path):
    whole = ensemble.run(ensemble.start(REPLICAS), 400, REPLICAS)
    first = ensemble.run(ensemble.start(REPLICAS), 100, REPLICAS)
    write_block(tmp_path, 0, 0, first.record)
    kept = read_block(tmp_path, 0, 0)
    rest = ensemble.run(state_of(kept), 300, REPLICAS, kept.quarantined)
    assert same(whole.state, rest.state) and whole.state.step == rest.state.step == 400
    assert np.array_equal(whole.record.positions, np.concatenate((first.record.positions, rest.record.positions)))
    assert np.array_equal(whole.record.energies, np.concatenate((first.record.energies, rest.record.energies)))


def test_replica_does_not_depend_on_its_companions(ensemble):
    here = ensemble.run(ensemble.start((0, 1, 2, 3)), 200, (0, 1, 2, 3)).record
    there = ensemble.run(ensemble.start((0, 11, 2, 9)), 200, (0, 11, 2, 9)).record
    assert np.array_equal(here.positions[:, [0, 2]], there.positions[:, [0, 2]])
    assert not np.array_equal(here.positions[:, 1], there.positions[:, 1])


def test_temperature_and_bonds_of_a_healthy_run(ensemble):
    moves = dynamics(ensemble.system, friction_per_ps=20.0)
    damped = replace(ensemble, engine=make_engine(ensemble.engine.name, ensemble.forcefield, moves))
    record = damped.run(ensemble.start(tuple(range(64))), 500, tuple(range(64))).record
    assert record.quarantined == ()
    assert record.kinetic_temperature_K[-5:].mean() == pytest.approx(295, abs=15)
    bond = np.linalg.norm(record.positions[:, :, 1] - record.positions[:, :, 0], axis=-1)
    assert bond.mean() == pytest.approx(ensemble.prior.bond_0[0], rel=0.05)
    assert record.seconds > 0 and record.positions.dtype == np.float32


@pytest.mark.parametrize("harm", ["nan", "stretched", "torn"])
def test_bad_start_is_quarantined_and_the_others_go_on_unchanged(ensemble, harm):
    frames = ensemble.frames.copy()
    if harm == "nan":
        frames[3, 2, 1] = np.nan
    else:
        frames[3, 5] += 0.4 if harm == "stretched" else 1e6
    healthy = ensemble.run(ensemble.start(REPLICAS), 200, REPLICAS)
    ill = ensemble.run(ensemble.start(REPLICAS, frames), 200, REPLICAS)
    others = [0, 1, 2, 4, 5, 6, 7]
    assert ill.quarantined == (Quarantine(3, 0, "diverged"),)
    assert np.isnan(ill.record.positions[:, 3]).all() and np.isnan(ill.record.energies[:, 3]).all()
    assert np.array_equal(ill.record.positions[:, others], healthy.record.positions[:, others])
    assert np.isfinite(ill.record.kinetic_temperature_K).all()
    assert torch.equal(ill.state.positions[3], torch.tensor(frames[3], dtype=torch.float32)) or harm == "nan"


def test_mirrored_start_is_found(ensemble):
    frames = ensemble.frames.copy()
    frames[[1, 6]] *= MIRROR
    result = ensemble.run(ensemble.start(REPLICAS, frames), 100, REPLICAS)
    assert result.quarantined == (Quarantine(1, 0, "mirrored"), Quarantine(6, 0, "mirrored"))


def test_replica_lost_on_the_way_keeps_its_good_frames_and_stays_out(ensemble):
    first = ensemble.run(ensemble.start(REPLICAS), 100, REPLICAS)
    kicked = first.state.velocities.clone()
    kicked[2, 0] += 1000.0
    second = ensemble.run(replace(first.state, velocities=kicked), 100, REPLICAS)
    assert second.quarantined == (Quarantine(2, 150, "diverged"),)
    assert np.isfinite(first.record.positions).all() and np.isnan(second.record.positions[:, 2]).all()
    assert torch.equal(second.state.positions[2], first.state.positions[2])
    third = ensemble.run(second.state, 100, REPLICAS, second.quarantined)
    assert third.quarantined == second.quarantined
    assert np.isnan(third.record.positions[:, 2]).all() and np.isfinite(third.record.positions[:, 3]).all()


def test_limits_see_bonds_energies_and_hands(ensemble):
    limits = Limits.of(ensemble.system, ensemble.prior, 300.0)
    positions, energies = ensemble.frames[:4].copy(), np.zeros(4)
    positions[1] *= MIRROR
    positions[2, 0] = positions[2, 1] + 0.01
    energies[3] = -1e6
    diverged, mirrored = limits.judge(positions, energies)
    assert diverged.tolist() == [False, False, True, True]
    assert mirrored.tolist() == [False, True, False, False]


LADDER = Exchange((300.0, 330.0, 363.0, 400.0), 50, 5)


def test_resumed_ladders_equal_uninterrupted_ones(ensemble, tmp_path):
    whole = ensemble.run(ensemble.start(REPLICAS), 400, REPLICAS, exchange=LADDER)
    first = ensemble.run(ensemble.start(REPLICAS), 100, REPLICAS, exchange=LADDER)
    write_block(tmp_path, 0, 0, first.record)
    kept = read_block(tmp_path, 0, 0)
    rest = ensemble.run(state_of(kept), 300, REPLICAS, kept.quarantined, LADDER, kept.state_rungs)
    assert same(whole.state, rest.state) and np.array_equal(whole.rungs, rest.rungs)
    assert np.array_equal(whole.record.rungs, np.concatenate((first.record.rungs, rest.record.rungs)))
    both = first.record.swaps_accepted + rest.record.swaps_accepted
    assert np.array_equal(whole.record.swaps_accepted, both) and both.sum() > 5
    assert (first.record.swaps_tried + rest.record.swaps_tried).tolist() == [8, 8, 8]  # 2 ladders, every second of 8
    for rungs in whole.record.rungs:
        assert sorted(rungs[:4]) == sorted(rungs[4:]) == [0, 1, 2, 3]


def test_ladders_do_not_depend_on_the_ladders_beside_them(ensemble):
    beside = ensemble.run(ensemble.start(REPLICAS), 200, REPLICAS, exchange=LADDER).record
    alone = ensemble.run(ensemble.start(REPLICAS[4:]), 200, REPLICAS[4:], exchange=LADDER).record
    assert np.array_equal(beside.rungs[:, 4:], alone.rungs)
    assert np.allclose(beside.positions[:, 4:], alone.positions, atol=1e-3)


def test_bonds_are_wider_on_the_hotter_rung_by_the_ratio_of_temperatures(ensemble):
    replicas = tuple(range(80))
    moves = dynamics(ensemble.system, friction_per_ps=20.0)
    damped = replace(ensemble, engine=make_engine(ensemble.engine.name, ensemble.forcefield, moves))
    wide = Exchange((300.0, 420.0), 50, 5)
    record = damped.run(ensemble.start(replicas), 500, replicas, exchange=wide).record
    bonds = np.linalg.norm(np.diff(record.positions[4:, :, :3], axis=2), axis=-1)
    cold, hot = (bonds[record.rungs[4:] == rung].var(axis=0).mean() for rung in (0, 1))
    assert hot / cold == pytest.approx(1.4, abs=0.2)
    assert record.kinetic_temperature_K[-5:].mean() == pytest.approx(295, abs=15)
    assert 0.3 < record.swaps_accepted[0] / record.swaps_tried[0] < 0.9


def test_a_lost_replica_keeps_its_rung_and_the_others_trade_on(ensemble):
    frames = ensemble.frames.copy()
    frames[1, 5] += 0.4
    record = ensemble.run(ensemble.start(REPLICAS, frames), 400, REPLICAS, exchange=LADDER).record
    assert [lost.replica for lost in record.quarantined] == [1]
    assert (record.rungs[:, 1] == 1).all() and (record.rungs[:, 0] == 0).all()
    assert record.swaps_tried.tolist() == [4, 4, 8] and record.swaps_accepted[2] > 0


def test_without_inertia_bonds_have_their_thermal_width_and_no_kinetic_temperature(ensemble):
    replicas = tuple(range(100))
    moves = dynamics(ensemble.system, 2e-5, 10.0, "overdamped")
    moving = make_engine(ensemble.engine.name, ensemble.forcefield, moves)
    start = init(torch.tensor(ensemble.frames[:100], dtype=torch.float32), moving.evaluate, moves, replicas)
    assert not start.velocities.any()
    record = replace(ensemble, engine=moving, save_every=100).run(start, 1000, replicas).record
    assert not record.state_velocities.any()
    assert record.quarantined == () and np.isnan(record.kinetic_temperature_K).all()
    bonds = np.linalg.norm(record.positions[5:, :, 1] - record.positions[5:, :, 0], axis=-1)
    assert bonds.var() == pytest.approx(kT(300.0) / ensemble.prior.bond_k[0], rel=0.25)


def test_a_soft_bond_may_be_shorter_than_half_its_length_and_a_stiff_one_not(ensemble):
    def limits_of(width: float, length: float = 0.4) -> tuple[float, float]:
        k = np.full(5, kT(300.0) / width**2)
        found = Limits.of(ensemble.system, replace(ensemble.prior, bond_k=k, bond_0=np.full(5, length)), 300.0)
        return float(found.shortest[0]), float(found.longest[0])

    assert limits_of(0.01) == pytest.approx((0.32, 0.48))
    assert limits_of(0.03) == pytest.approx((0.2, 0.64))
    assert limits_of(0.05) == pytest.approx((0.1, 0.8))
    assert limits_of(0.1, 0.0)[1] == pytest.approx(0.6)  # a spring that is fitted to a centre of 0
