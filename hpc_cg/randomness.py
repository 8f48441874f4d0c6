"""Random numbers keyed by what they are for, never by who draws them or when.

A stream is a counter-based Philox generator whose key is a hash of (seed, purpose, indices), so any number of ranks
and any interruption draw the same numbers (Salmon et al. 2011, doi 10.1145/2063384.2063405).
"""

import hashlib

import numpy as np
from jaxtyping import Int, UInt64


def stream(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """The generator of one purpose and place, e.g. ``stream(seed, "noise", shard)``."""
    text = f"{seed}/{purpose}/" + "/".join(str(int(index)) for index in indices)
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))


def hashed(seed: int, purpose: str, index: Int[np.ndarray, "item"]) -> UInt64[np.ndarray, "item"]:
    """A random whole number of 64 bits for each item, whichever others are asked for with it.

    The numbers of SplitMix64, each from its place in the sequence (Steele, Lea, Flood 2014, doi
    10.1145/2660193.2660195).
    """
    mixed = index.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # wraps around, as all that follows
    mixed += stream(seed, purpose).integers(0, 2**64, dtype=np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
