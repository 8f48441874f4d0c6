"""What is told of an ensemble, from block files alone: who made them, who was lost, how temperatures were traded."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import write_study

from hpc_cg.simulate.recorder import BlockRecord, Quarantine, write_block
from hpc_cg.stages.gathering import engines_of, quarantine_rows, swaps_of
from hpc_cg.stages.study import Study, read_study

N_BEADS, SAVED = 5, 20
"""Of the toy; frames in a block of it."""


def block(replicas: tuple[int, ...], **said: Any) -> BlockRecord:
    """A block of the toy in which nothing moves, but for what is said."""
    n, pairs = len(replicas), np.zeros(0, np.int64)
    still = np.zeros((n, N_BEADS, 3), np.float32)
    content: dict[str, Any] = {
        "replica_ids": replicas,
        "positions": np.zeros((SAVED, n, N_BEADS, 3), np.float32),
        "energies": np.zeros((SAVED, n), np.float32),
        "rungs": np.zeros((SAVED, n), np.int64),
        "swaps_tried": pairs,
        "swaps_accepted": pairs,
        "state_rungs": np.zeros(n, np.int64),
        "state_positions": still,
        "state_velocities": still,
        "state_forces": still,
        "state_energies": np.zeros(n),
        "step": 400,
        "quarantined": (),
        "kinetic_temperature_K": np.full(SAVED, 300.0),
        "seconds": 1.0,
        "device": "cpu",
        "engine": "torch",
    }
    return BlockRecord(**(content | said))


@pytest.fixture
def left_behind(tmp_path: Path) -> Callable[..., Study]:
    """A study whose simulation left these blocks : settings of simulate, and the blocks of each group."""

    def lay(groups: list[list[BlockRecord]], **simulate: Any) -> Study:
        study = read_study(write_study(tmp_path, archive=False, simulate=simulate))
        for group, blocks in enumerate(groups):
            for number, one in enumerate(blocks):
                write_block(study.folder("simulate") / "blocks", group, number, one)
        return study

    return lay


def test_every_block_counts_for_who_made_it(left_behind: Callable[..., Study]) -> None:
    first, second = (0, 1, 2), (3, 4, 5)
    compiled, cuda = {"engine": "compiled"}, {"device": "cuda"}
    study = left_behind([[block(first), block(first, **compiled)], [block(second, **cuda), block(second, **cuda)]])
    assert engines_of(study) == {
        "engine": "compiled, torch",
        "device": "cpu, cuda",
        "engines": [
            {"engine": "compiled", "device": "cpu", "blocks": 1},
            {"engine": "torch", "device": "cpu", "blocks": 1},
            {"engine": "torch", "device": "cuda", "blocks": 2},
        ],
        "mixed_engine_groups": 1,
    }


def test_a_lost_replica_is_told_with_where_it_was_last_good(left_behind: Callable[..., Study]) -> None:
    held = np.zeros((3, N_BEADS, 3), np.float32)
    held[1] = np.arange(15).reshape(5, 3) / 3
    out = (Quarantine(4, 260, "diverged"),)
    lost = block((3, 4, 5), quarantined=out, state_positions=held)
    study = left_behind([[block((0, 1, 2))] * 2, [lost, lost]])
    (row,) = quarantine_rows(study)
    assert {name: row[name] for name in ("replica", "step", "reason")} == vars(out[0])
    assert np.abs(row["last_good_positions_nm"] - held[1]).max() <= 5e-6


def test_swaps_are_counted_over_all_groups_and_round_trips_over_all_blocks(left_behind: Callable[..., Study]) -> None:
    """Of two ladders the lower replica is hot from the middle of one block to that of the next."""
    low, high = (np.tile(rungs, (SAVED // 2, 1)) for rungs in ([0, 1], [1, 0]))
    halves = [np.concatenate(rungs) for rungs in ((low, high), (high, low), (low, low), (low, low))]
    trades = {"swaps_tried": np.array([5]), "swaps_accepted": np.array([1])}
    there, back, *still = [partial(block, rungs=rungs, **trades) for rungs in halves]
    moves = {(0, 1): (there, back), (2, 3): (there, back), (4, 5): still}
    groups = [[first(ids), second(ids)] for ids, (first, second) in moves.items()]
    study = left_behind(groups, n_replicas=6, group_size=2, temperatures_K=[300.0, 330.0], exchange_ps=0.08)
    assert swaps_of(study) == {
        "temperatures_K": [300.0, 330.0],
        "tried": [30],
        "accepted": [6],
        "round_trips": [1, 0, 1, 0, 0, 0],
        "ns": pytest.approx(0.0016),
    }
