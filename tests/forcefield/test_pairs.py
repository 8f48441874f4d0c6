import torch

from hpc_cg.forcefield import pairs
from hpc_cg.forcefield.pairs import all_pairs, couple, gather


def numbers(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def test_gather_sums_over_all_other_beads():
    kernel, x = numbers(6, 2, 3, seed=0), numbers(4, 2, 3, seed=1)
    square = torch.zeros(4, 4, 2, 3, dtype=torch.float64)
    for place, (i, j) in enumerate(all_pairs(4)):
        square[i, j] = square[j, i] = kernel[place].detach()
    assert torch.allclose(gather(kernel, x), (square * x.detach()[None]).sum(1))


def test_couple_is_the_symmetric_product():
    a, b = numbers(4, 2, 3, seed=2), numbers(4, 2, 3, seed=3)
    found = couple(a, b)
    for place, (i, j) in enumerate(all_pairs(4)):
        assert torch.allclose(found[place], a[i] * b[j] + a[j] * b[i])


def test_long_and_short_rows_give_the_same(monkeypatch):
    kernel, x, y = numbers(10, 2, 3, seed=0), numbers(5, 2, 3, seed=1), numbers(5, 2, 3, seed=2)
    short = gather(kernel, x), couple(x, y)
    monkeypatch.setattr(pairs, "SHORT_ROW", 0)
    for one, two in zip(short, (gather(kernel, x), couple(x, y)), strict=True):
        assert torch.allclose(one, two)


def test_gradients_are_right_to_second_order():
    kernel, x = numbers(6, 2, 3, seed=0), numbers(4, 2, 3, seed=1)
    for function, arguments in ((gather, (kernel, x)), (couple, (x, numbers(4, 2, 3, seed=4)))):
        assert torch.autograd.gradcheck(function, arguments)
        assert torch.autograd.gradgradcheck(function, arguments)
