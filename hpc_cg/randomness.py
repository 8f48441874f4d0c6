"""Random numbers keyed by what they are for, never by who draws them or when.

A stream is a counter-based Philox generator whose key is a hash of (seed, purpose, indices), so any number of ranks
and any interruption draw the same numbers (Salmon et al. 2011, doi 10.1145/2063384.2063405).
"""

import hashlib
from collections.abc import Callable
from typing import Any

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


class PerItem(np.random.Generator):
    """A generator for many items at once, each with numbers of its own: whichever items are asked for together.

    The first axis of what is drawn runs over the items. It draws by ``standard_normal``, ``random``, ``uniform`` and
    ``integers``, and has nothing else.
    """

    _known = frozenset({"standard_normal", "random", "uniform", "integers"})

    def __init__(self, seed: int, purpose: str, place: int, items: Int[np.ndarray, "item"]):
        super().__init__(np.random.Philox(key=0))
        self._own = [stream(seed, purpose, place, item) for item in items.tolist()]

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name not in PerItem._known:
            raise AttributeError(f"{name}: a generator per item draws by {', '.join(sorted(PerItem._known))} only")
        return super().__getattribute__(name)

    def standard_normal(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:
        return self._each(size, lambda one, shape: one.standard_normal(shape, dtype=dtype))

    def random(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:
        return self._each(size, lambda one, shape: one.random(shape, dtype=dtype))

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        return self._each(size, lambda one, shape: one.uniform(low, high, shape))

    def integers(
        self, low: Any, high: Any = None, size: Any = None, dtype: Any = np.int64, endpoint: Any = False
    ) -> Any:
        return self._each(size, lambda one, shape: one.integers(low, high, shape, dtype=dtype, endpoint=endpoint))

    def _each(self, size: Any, draw: Callable[[np.random.Generator, tuple[int, ...]], Any]) -> np.ndarray:
        shape = (size,) if isinstance(size, int) else tuple(size or ())
        if not shape or shape[0] != len(self._own):
            raise ValueError(f"numbers for {len(self._own)} items, asked for in the shape {shape}")
        return np.stack([draw(one, shape[1:]) for one in self._own]) if self._own else np.empty(shape)
