"""Replica exchange: replicas of one ladder trade temperatures, so that barriers are crossed hot and counted cold.

At every attempt neighbours on the ladder are paired, even rungs with the one above at one attempt, odd rungs at the
next. With energies U of the replicas and β = 1/kT of their rungs, a pair trades places with probability

    min(1, exp((U_a - U_b) (β_a - β_b))),        v <- v sqrt(T_new / T_old) for both

(Sugita and Okamoto 1999, doi 10.1016/S0009-2614(99)01123-9). The kinetic energy does not enter because of that factor:
what comes from a hot rung is slowed, what goes to one is sped up. Replicas stay in their rows and temperatures move, so
positions, forces and energies belong together at any time. What is traded is decided by a pure function, from random
numbers keyed by (seed, "exchange", ladder, attempt).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from hpc_cg.randomness import stream
from hpc_cg.units import kT


def geometric_ladder(lowest_K: float, highest_K: float, n_rungs: int) -> tuple[float, ...]:
    """Temperatures with one ratio between neighbours, both ends included.

    Where the heat capacity is a constant all neighbours trade places equally often (Kofke 2002, doi 10.1063/1.1507776).
    """
    rungs = np.geomspace(lowest_K, highest_K, n_rungs)
    return (float(lowest_K), *(float(rung) for rung in rungs[1:-1]), float(highest_K))


@dataclass(frozen=True)
class Swaps:
    """What one ladder decides at one attempt.

    lower      lower rung of each pair that was tried; the upper one is the next
    accepted   whether the two replicas of the pair trade places
    """

    attempt: int
    lower: tuple[int, ...]
    accepted: tuple[bool, ...]


@dataclass(frozen=True)
class Exchange:
    """The ladders of an ensemble, n_rungs replicas after one another each.

    temperatures_K   of the rungs, rising
    every            steps between attempts
    seed             of the random numbers that decide
    """

    temperatures_K: tuple[float, ...]
    every: int
    seed: int

    def first_rungs(self, replica_ids: Sequence[int]) -> Int[np.ndarray, "replica"]:
        """Where replicas begin: one after another up their ladder."""
        return np.asarray(replica_ids, dtype=np.int64) % len(self.temperatures_K)

    def heat(self, rungs: Int[np.ndarray, "replica"], temperature_K: float) -> Float[np.ndarray, "replica"]:
        """sqrt(T / temperature_K) of each replica: what thermal speeds and noise of that temperature are scaled by."""
        return np.sqrt(np.asarray(self.temperatures_K, dtype=np.float64)[rungs] / temperature_K)

    def attempt(
        self,
        step: int,
        replica_ids: Sequence[int],
        rungs: Int[np.ndarray, "replica"],
        energies: Float[np.ndarray, "replica"],
        inside: Bool[np.ndarray, "replica"],
    ) -> tuple[Swaps, ...]:
        """What the ladders of a group decide at a step; nothing between attempts."""
        n = len(self.temperatures_K)
        if n == 1 or step % self.every:
            return ()
        firsts = range(0, len(replica_ids), n)
        assert all(replica_ids[first] % n == 0 for first in firsts) and len(replica_ids) % n == 0, "whole ladders"
        return tuple(
            decide(
                rungs[first : first + n],
                energies[first : first + n],
                inside[first : first + n],
                self.temperatures_K,
                self.seed,
                replica_ids[first] // n,
                step // self.every,
            )
            for first in firsts
        )


def decide(
    rungs: Int[np.ndarray, "replica"],
    energies: Float[np.ndarray, "replica"],
    inside: Bool[np.ndarray, "replica"],
    temperatures_K: Sequence[float],
    seed: int,
    ladder: int,
    attempt: int,
) -> Swaps:
    """The pairs of a ladder that are tried at an attempt, and which of them trade places.

    rungs      where each replica of the ladder is: every rung has one replica
    energies   kJ/mol, of the replicas
    inside     replicas that are not quarantined: no other is traded, its rung stays empty
    """
    assert sorted(rungs) == list(range(len(temperatures_K))), f"rungs {rungs} of {len(temperatures_K)} temperatures"
    beta = 1.0 / np.array([kT(temperature) for temperature in temperatures_K])
    at = np.argsort(rungs)
    uniform = stream(seed, "exchange", ladder, attempt).random(len(at))
    lower = [a for a in _paired(len(at), attempt) if inside[at[a]] and inside[at[a + 1]]]
    gain = [float((energies[at[a]] - energies[at[a + 1]]) * (beta[a] - beta[a + 1])) for a in lower]
    accepted = [bool(np.log1p(-uniform[a]) < g) for a, g in zip(lower, gain, strict=True)]
    return Swaps(attempt, tuple(lower), tuple(accepted))


def _paired(n_rungs: int, attempt: int) -> range:
    """Lower rungs of the pairs of an attempt; the one pair of two rungs is tried every time."""
    return range(attempt % 2 if n_rungs > 2 else 0, n_rungs - 1, 2)


def all_traded(rungs: Int[np.ndarray, "replica"], swaps: Sequence[Swaps]) -> Int[np.ndarray, "replica"]:
    """Where the replicas of several ladders are once the swaps of each are done; where they were without any."""
    ladders = np.split(rungs, len(swaps)) if swaps else []
    return np.concatenate([traded(ladder, one) for ladder, one in zip(ladders, swaps, strict=True)] or [rungs])


def traded(rungs: Int[np.ndarray, "replica"], swaps: Swaps) -> Int[np.ndarray, "replica"]:
    """Where each replica of a ladder is once the swaps are done."""
    at = replicas_on_rungs(rungs)
    for a, accepted in zip(swaps.lower, swaps.accepted, strict=True):
        if accepted:
            at[[a, a + 1]] = at[[a + 1, a]]
    return replicas_on_rungs(at)


def rungs_over(start: Int[np.ndarray, "replica"], record: Sequence[Swaps]) -> Int[np.ndarray, "time replica"]:
    """Where each replica is before the first attempt of a record and after each of them."""
    found = [np.asarray(start)]
    for swaps in record:
        found.append(traded(found[-1], swaps))
    return np.stack(found)


def replicas_on_rungs(rungs: Int[np.ndarray, "*time replica"]) -> Int[np.ndarray, "*time rung"]:
    """Which replica is on each rung, from the rung of each replica; and back, because it is its own inverse."""
    return np.argsort(rungs, axis=-1)


def on_rung(
    values: Shaped[np.ndarray, "replica frame *rest"], rungs: Int[np.ndarray, "replica frame"], rung: int, n_rungs: int
) -> Shaped[np.ndarray, "ladder frame *rest"]:
    """Of every ladder the values of whichever replica is on a rung: ladders are n_rungs replicas after one another."""
    n_frames = rungs.shape[1]
    at = (rungs.reshape(-1, n_rungs, n_frames) == rung).argmax(axis=1)
    ladders = values.reshape(-1, n_rungs, *values.shape[1:])
    return ladders[np.arange(len(ladders))[:, None], at, np.arange(n_frames)]


def velocity_factors(
    temperatures_K: Sequence[float], before: Int[np.ndarray, "replica"], after: Int[np.ndarray, "replica"]
) -> Float[np.ndarray, "replica"]:
    """sqrt(T_new / T_old) of each replica: above one for what becomes hotter."""
    temperatures = np.asarray(temperatures_K, dtype=np.float64)
    return np.sqrt(temperatures[after] / temperatures[before])


def round_trips(rungs: Int[np.ndarray, "time replica"]) -> Int[np.ndarray, "replica"]:
    """How often each replica of a ladder went from the lowest rung to the highest and back again."""
    top = rungs.shape[1] - 1
    counts = np.zeros(rungs.shape[1], dtype=np.int64)
    for replica, visited in enumerate(rungs.T if top else ()):
        ends = visited[(visited == 0) | (visited == top)]
        turns = ends[np.flatnonzero(np.diff(ends, prepend=-1))]  # each stay at an end once: they alternate
        from_below = len(turns) - int(len(turns) > 0 and turns[0] == top)
        counts[replica] = max(0, (from_below - 1) // 2)
    return counts


@dataclass(frozen=True)
class SwapCounts:
    """Attempts and acceptances of each pair of neighbours; ``a + b`` is the counts of both together."""

    tried: Int[np.ndarray, "pair"]
    accepted: Int[np.ndarray, "pair"]

    @staticmethod
    def of(record: Sequence[Swaps], n_rungs: int) -> "SwapCounts":
        """The counts of a record of one ladder, or of several ladders of as many rungs."""
        counts = np.zeros((2, n_rungs - 1), dtype=np.int64)
        for swaps in record:
            counts[0, list(swaps.lower)] += 1
            counts[1, list(swaps.lower)] += np.asarray(swaps.accepted, dtype=np.int64)
        return SwapCounts(*counts)

    def __add__(self, other: "SwapCounts") -> "SwapCounts":
        return SwapCounts(self.tried + other.tried, self.accepted + other.accepted)

    @property
    def acceptance(self) -> Float[np.ndarray, "pair"]:
        """Accepted over tried; NaN for a pair that was never tried."""
        with np.errstate(invalid="ignore"):
            return self.accepted / self.tried
