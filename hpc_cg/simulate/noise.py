"""Normal numbers as a pure function of (seed, replica, step, bead), on any device: Philox 4x32-10 and Box-Muller.

    (w0, w1, w2, w3) = philox(bead, replica, step, step / 2^32; key)
    (x, y, z) = (r(w0) cos a(w1), r(w0) sin a(w1), r(w2) cos a(w3)),    r = sqrt(-2 ln u),    a = 2 pi w / 2^32

with u = (w + 1/2) / 2^32 (Salmon et al. 2011, doi 10.1145/2063384.2063405; Box and Muller 1958, doi
10.1214/aoms/1177706645). The compiled engine has the same function, so noise depends neither on who simulates a replica
nor on where, apart from rounding.
"""

import hashlib
import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
STEPS_OF_KEY = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF


class Key(NamedTuple):
    """The two words of a Philox key."""

    low: int
    high: int


def key_of(seed: int, purpose: str = "langevin") -> Key:
    """The key of a seed for one purpose, by a hash, so that neighbouring seeds have nothing in common."""
    word = int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/philox4x32".encode()).digest()[:8], "little")
    return Key(word & WORD, word >> 32)


Words = tuple[Tensor, Tensor, Tensor, Tensor]
"""Four words of 32 bits each, in int64 tensors that broadcast."""


def philox(counter: Words, key: Key) -> Words:
    """Four random words for each counter. Products of two words wrap around in int64, which keeps all their bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        p, q = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = ((q >> 32) & WORD) ^ c1 ^ k0, q & WORD, ((p >> 32) & WORD) ^ c3 ^ k1, p & WORD
        k0, k1 = (k0 + STEPS_OF_KEY[0]) & WORD, (k1 + STEPS_OF_KEY[1]) & WORD
    return c0, c1, c2, c3


def normals(
    key: Key, steps: Int[Tensor, "step"], replicas: Int[Tensor, "replica"], n_beads: int, dtype: torch.dtype
) -> Float[Tensor, "step replica bead 3"]:
    """Standard normal numbers of some steps, replicas and all beads."""
    bead = torch.arange(n_beads, device=steps.device)
    step, replica = steps[:, None, None], (replicas & WORD)[:, None]
    w0, w1, w2, w3 = philox((bead, replica, step & WORD, step >> 32), key)
    first, second = _radius(w0, dtype), _angle(w1, dtype)
    parts = (first * torch.cos(second), first * torch.sin(second), _radius(w2, dtype) * torch.cos(_angle(w3, dtype)))
    return torch.stack(torch.broadcast_tensors(*parts), -1)


def _radius(word: Tensor, dtype: torch.dtype) -> Tensor:
    u = word.to(dtype) * 2.0**-32 + 2.0**-33
    return (-2.0 * torch.log(u)).clamp_min(0.0).sqrt()


def _angle(word: Tensor, dtype: torch.dtype) -> Tensor:
    """Between -pi and pi: the word as a signed one, which keeps the precision of small angles."""
    signed = word - ((word >> 31) << 32)
    return signed.to(dtype) * (2.0 * math.pi * 2.0**-32)
