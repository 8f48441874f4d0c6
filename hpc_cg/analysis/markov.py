"""Markov models of states: counts of transitions at a lag, the reversible model of greatest likelihood, its timescales.

With c_ij counts of i → j, c_i = Σ_j c_ij and s_ij = c_ij + c_ji, the model is (Bowman et al. 2009, doi
10.1063/1.3216567; Prinz et al. 2011, doi 10.1063/1.3565032)

    T_ij = s_ij / (c_i + c_j x_i/x_j),    π_i = x_i / Σ x,    x_i = Σ_j s_ij / (c_i/x_i + c_j/x_j)

In y_i = ln(c_i / x_i) the last says that y is where Σ_ij c_ij (y_i − ln(e^y_i + e^y_j)) is greatest: concave, as for
contests that i won c_ij times over j (Bradley and Terry 1952, doi 10.2307/2334029). Newton's method finds it in a few
steps, and it exists just where every state can be reached from every other. So models are made of the largest such
set, and what is outside is said.

Transitions are counted at every frame (sliding). Counts of neighbours depend on one another, so errors come from
drawing whole blocks; a model says nothing of times shorter than its lag.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float64, Int, Int64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hpc_cg.analysis.lagged import Timeline
from hpc_cg.analysis.tica import timescales_of
from hpc_cg.errors import FitFailed, TooFewFrames

MOST_STEPS = 200
BALANCE = 1e-9
"""Largest mismatch of Σ_j s_ij u_i/(u_i + u_j) and c_i, in parts of c_i."""


@dataclass(frozen=True, eq=False)
class TransitionCounts:
    """How often i → j was seen in each block; ``a + b`` are those of both sets of frames, exactly.

    keys     block · n_states² + i · n_states + j of what was seen, growing
    counts   how often
    """

    n_states: int
    n_blocks: int
    lag: int
    keys: Int64[np.ndarray, "seen"]
    counts: Int64[np.ndarray, "seen"]

    @staticmethod
    def of(
        states: Int[np.ndarray, "frame"],
        timeline: Timeline,
        lag: int,
        n_states: int,
        blocks: Int[np.ndarray, "frame"] | None = None,
        n_blocks: int | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> "TransitionCounts":
        """Of the pairs whose earlier frame is among frames ``start`` to ``stop``.

        blocks     of the frames; a pair is in that of its earlier frame; each segment is one by default
        n_blocks   of all frames there are, not of these alone
        """
        block = np.unique(timeline.segment, return_inverse=True)[1] if blocks is None else blocks
        whole = int(block.max(initial=-1)) + 1 if n_blocks is None else n_blocks
        early = timeline.earlier(lag, start, stop)
        key = (block[early].astype(np.int64) * n_states + states[early]) * n_states + states[early + lag]
        keys, counts = np.unique(key, return_counts=True)
        return TransitionCounts(n_states, whole, lag, keys, counts.astype(np.int64))

    def __add__(self, other: "TransitionCounts") -> "TransitionCounts":
        one, another = ((c.n_states, c.n_blocks, c.lag) for c in (self, other))
        assert one == another, f"counts of (states, blocks, lag) {one} and {another}"
        keys, place = np.unique(np.concatenate([self.keys, other.keys]), return_inverse=True)
        counts = np.bincount(place, np.concatenate([self.counts, other.counts]), minlength=len(keys))
        return TransitionCounts(self.n_states, self.n_blocks, self.lag, keys, np.rint(counts).astype(np.int64))

    def matrix(self, multiplicity: Float[np.ndarray, "block"] | None = None) -> Float64[np.ndarray, "state state"]:
        """Counts i → j, each block as often as given, once by default."""
        square = self.n_states**2
        times = 1.0 if multiplicity is None else multiplicity[self.keys // square]
        flat = np.bincount(self.keys % square, times * self.counts, minlength=square)
        return flat.reshape(self.n_states, self.n_states)


@dataclass(frozen=True, eq=False)
class MarkovModel:
    """A reversible Markov model of the states that can be reached from one another.

    active        its states, as numbered in the counts
    transitions   T_ij between active states, rows sum to 1
    stationary    π of active states
    lag           frames
    """

    active: Int64[np.ndarray, "state"]
    transitions: Float64[np.ndarray, "state state"]
    stationary: Float64[np.ndarray, "state"]
    lag: int

    @cached_property
    def processes(self) -> tuple[Float64[np.ndarray, "process"], Float64[np.ndarray, "state process"]]:
        """Eigenvalues below 1, largest first, and right eigenvectors with ⟨ψ²⟩ = 1 under π."""
        root = np.sqrt(self.stationary)
        values, vectors = np.linalg.eigh(_even(root[:, None] * self.transitions / root))
        return np.clip(values[-2::-1], -1, 1), vectors[:, -2::-1] / root[:, None]

    @property
    def timescales(self) -> Float64[np.ndarray, "process"]:
        """Implied timescales −lag / ln λ, frames, longest first; NaN where λ is not above 0."""
        return timescales_of(self.processes[0], self.lag)


def connected(counts: Float[np.ndarray, "state state"]) -> Int64[np.ndarray, "active"]:
    """The largest set (by counts) of states that reach one another; raises TooFewFrames without counts."""
    if not counts.any():
        raise TooFewFrames("a Markov model", "no transition", "shorten the lag or give longer segments")
    number, member = connected_components(coo_array(counts), directed=True, connection="strong")
    inside = np.zeros(number)
    i, j = np.nonzero(counts)
    same = member[i] == member[j]
    np.add.at(inside, member[i[same]], counts[i[same], j[same]])
    return np.flatnonzero(member == np.argmax(inside)).astype(np.int64)


def reversible(counts: Float[np.ndarray, "state state"], lag: int) -> MarkovModel:
    """The reversible model of greatest likelihood, of the largest connected set; raises TooFewFrames, FitFailed."""
    active = connected(counts)
    c = counts[np.ix_(active, active)].astype(np.float64)
    s, rows = c + c.T, c.sum(axis=1)
    u = _balance(c)
    flow = s / (u[:, None] + u)
    x = rows / u
    return MarkovModel(active, flow / x[:, None], x / x.sum(), lag)


def _balance(c: np.ndarray) -> np.ndarray:
    """u with Σ_j s_ij u_i/(u_i + u_j) = c_i, by damped Newton steps in y = ln u; the product of all u is 1."""
    off = c - np.diag(np.diag(c))
    s, wins = off + off.T, off.sum(axis=1)
    n = len(c)
    y = np.zeros(n)

    def likelihood(y: np.ndarray) -> float:
        return float(wins @ y - np.sum(off * np.logaddexp(y[:, None], y)))

    def share(y: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(y - y[:, None]))

    value = likelihood(y)
    for _ in range(MOST_STEPS):
        p = share(y)
        gradient = wins - np.sum(s * p, axis=1)
        if np.all(np.abs(gradient) <= BALANCE * np.maximum(wins, c.sum(axis=1))):
            return np.exp(y - y.mean())
        curve = s * p * p.T
        hessian = np.diag(curve.sum(axis=1)) - curve
        step = np.linalg.solve(hessian + np.mean(np.diag(hessian)) / n, gradient)
        size, gain = 1.0, float(gradient @ step)
        while likelihood(y + size * step) < value + 1e-4 * size * gain - 1e-12 * abs(value) and size > 1e-10:
            size /= 2
        y = y + size * (step - step.mean())
        value = likelihood(y)
    raise FitFailed(
        f"a reversible Markov model of {n} states",
        f"no balance after {MOST_STEPS} steps",
        "give more frames or fewer states",
    )


def _even(matrix: np.ndarray) -> np.ndarray:
    return (matrix + matrix.T) / 2
