"""Random numbers keyed by what they are for, never by who draws them or when.

A stream is a counter-based Philox generator whose key is a hash of (seed, purpose, indices), so any number of ranks
and any interruption draw the same numbers (Salmon et al. 2011, doi 10.1145/2063384.2063405).
"""

import hashlib

import numpy as np


def stream(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """The generator of one purpose and place, e.g. ``stream(seed, "noise", shard)``."""
    text = f"{seed}/{purpose}/" + "/".join(str(int(index)) for index in indices)
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))
