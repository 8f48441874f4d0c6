"""The generator is the published one, and its numbers are normal, independent, and keyed by what they are for."""

import numpy as np
import pytest
import torch
from engines import dynamics, make_engine
from scipy import stats

from hpc_cg.compiler import library
from hpc_cg.simulate.compiled import SOURCE
from hpc_cg.simulate.noise import Key, key_of, normals, philox

KNOWN = (  # the known-answer vectors of Random123: counter, key, words
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_words_are_the_published_answers(counter, key, words):
    first, second, third, fourth = (torch.tensor(word) for word in counter)
    found = philox((first, second, third, fourth), Key(*key))
    assert tuple(int(word) for word in found) == words


@pytest.mark.compiler
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_words_of_the_compiled_engine_are_the_published_answers(counter, key, words, alanine, forcefield):
    make_engine("compiled", forcefield, dynamics(alanine))
    given, secret, found = np.array(counter, np.uint32), np.array(key, np.uint32), np.zeros(4, np.uint32)
    pointers = (given.ctypes, secret.ctypes, found.ctypes)
    library(SOURCE).engine_philox(1, *(pointer.data_as(np.ctypeslib.ctypes.c_void_p) for pointer in pointers))
    assert tuple(found.tolist()) == words


def test_numbers_are_standard_normal_and_uncorrelated():
    drawn = normals(key_of(1), torch.arange(200), torch.arange(100), 5, torch.float64).numpy()
    assert stats.kstest(drawn.ravel(), "norm").pvalue > 1e-3
    axes = np.corrcoef(drawn.reshape(-1, 3).T) - np.eye(3)
    pairs = ((drawn[1:], drawn[:-1]), (drawn[:, 1:], drawn[:, :-1]), (drawn[:, :, 1:], drawn[:, :, :-1]))
    assert np.abs(axes).max() < 0.015
    assert max(abs(np.mean(one * other)) for one, other in pairs) < 0.01
    assert np.abs(drawn).max() > 4.5


def test_numbers_belong_to_seed_replica_step_and_bead():
    key, steps, replicas = key_of(4), torch.tensor([7, 2**32 + 7]), torch.tensor([3, 900])
    both = normals(key, steps, replicas, 6, torch.float32)
    alone = normals(key, steps[1:], replicas[1:], 2, torch.float32)
    assert torch.equal(both[1, 1, :2], alone[0, 0])
    assert len(both.flatten().unique()) == both.numel()
    assert not torch.equal(both, normals(key_of(5), steps, replicas, 6, torch.float32))
