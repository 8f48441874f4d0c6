import numpy as np
import pytest
import torch
from test_learning import SETTINGS, feed, forcefield, labels

from hpc_cg.forcefield.prediction import Prediction
from hpc_cg.forcefield.schnet import SchNet, SchNetConfig
from hpc_cg.learning.distributed import World
from hpc_cg.learning.feed import Labelled
from hpc_cg.learning.loss import sum_of_squares
from hpc_cg.learning.mixture import Member, Mixture, pad, squares_of, vocabulary


def member(rank: int = 0, size: int = 1) -> Member:
    source = labels()
    return Member(feed(source, SETTINGS, World(rank, size)), forcefield(source).prior, (0, 1, 2, 0, 1))


def flat(positions: torch.Tensor) -> Prediction:
    """Priors that say nothing."""
    return Prediction(positions.new_zeros(len(positions)), torch.zeros_like(positions))


def three_beads(n_frames: int) -> Labelled:
    generator = torch.Generator().manual_seed(8)
    positions, forces = (torch.randn(n_frames, 3, 3, generator=generator) for _ in range(2))
    return Labelled(np.arange(n_frames), 0.2 * positions, forces, torch.ones(n_frames))


def test_molecules_share_the_numbers_of_their_types():
    rows, types = vocabulary([("N", "CA", "C"), ("C", "CB")])
    assert rows == {"C": 0, "CA": 1, "CB": 2, "N": 3}
    assert types == [(3, 1, 0), (0, 2)]


def test_the_loss_of_a_padded_batch_is_the_sum_of_those_of_its_molecules():
    one = member()
    small = Member(one.feed, flat, (2, 3, 3))
    five, three = one.feed.train(0), three_beads(7)
    batch = pad([(five, one), (three, small)])
    assert batch.positions.shape == (39, 5, 3) and (batch.types[32:, 3:] == -1).all()
    made = SchNet(tuple(range(4)), SchNetConfig(n_filters=16, terminal_widths=(16,)), seed=1)
    together = squares_of(batch.delta - made.padded(batch.positions, batch.types).forces, batch)
    apart = 0.0
    for frames, owner in ((five, one), (three, small)):
        alone = SchNet(owner.types, made.config)
        state = dict(made.state_dict())
        state["embedding.weight"] = state["embedding.weight"][: max(owner.types) + 1]
        alone.load_state_dict(state)
        delta = frames.forces - owner.prior(frames.positions).forces
        apart += float(sum_of_squares(delta - alone(frames.positions).forces, frames.weights).detach())
    assert float(together.detach()) == pytest.approx(apart, rel=1e-5)


def test_processes_together_have_the_batch_that_one_has():
    whole = Mixture((member(), member())).train(4)
    parts = [Mixture((member(rank, 3), member(rank, 3))).train(4) for rank in range(3)]
    found = torch.cat([part.positions for part in parts])
    assert sorted(found.flatten().tolist()) == sorted(whole.positions.flatten().tolist())
