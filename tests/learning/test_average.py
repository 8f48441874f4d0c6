import pytest
import torch

from hpc_cg.learning.average import Average


def test_the_average_is_the_weighted_sum_of_all_weights_there_were():
    parameter = torch.zeros(2, dtype=torch.float64)
    average = Average([parameter], 0.5)
    expected = 0.0
    for step in range(30):
        parameter.fill_(float(step * step))
        average.update(step)
        kept = min(0.5, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * step * step
    assert average.values[0].tolist() == pytest.approx([expected] * 2)


def test_the_average_forgets_where_training_began():
    parameter = torch.full((1,), 1e6, dtype=torch.float64)
    average = Average([parameter], 0.9999)
    parameter.fill_(1.0)
    for step in range(100):
        average.update(step)
    assert float(average.values[0]) == pytest.approx(1.0, abs=1e-3)


def test_weights_come_back_after_the_average_was_in_their_place():
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    average = Average([parameter], 0.9)
    with torch.no_grad():
        parameter.fill_(5.0)
    with pytest.raises(KeyError), average.in_place():
        assert parameter.tolist() == [1.0, 2.0]
        raise KeyError
    assert parameter.tolist() == [5.0, 5.0] and average.values[0].tolist() == [1.0, 2.0]


def test_without_a_decay_there_is_no_average():
    parameter = torch.ones(1)
    average = Average([parameter], 0.0)
    average.update(0)
    with average.in_place():
        assert parameter.tolist() == [1.0]
    assert average.values == []
