"""How far the local structure of a model lies from the reference: bond by bond, angle by angle.

The Wasserstein distance of two samples of one number is the area between their distribution functions,
W = ∫ |F - G| dx, in the unit of the number (Villani 2009, doi 10.1007/978-3-540-71050-9).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from hpc_cg.errors import TooFewFrames

Transport = Callable[[np.ndarray, np.ndarray], float]
"""From the weights of the reference frames and of the model frames to their Wasserstein distance."""


@dataclass(frozen=True)
class Density:
    """A normalised histogram of one coordinate: edges in its unit u, density in 1/u."""

    edges: Float[np.ndarray, "edge"]
    density: Float[np.ndarray, "bin"]


def transport(reference: Float[np.ndarray, "frame"], model: Float[np.ndarray, "model_frame"]) -> Transport:
    """The Wasserstein distance of two samples as a function of their weights; the samples are sorted once."""
    if not len(reference) or not len(model):
        raise TooFewFrames("a Wasserstein distance", "an empty sample", "check what was selected or simulated")
    pooled = np.concatenate([reference, model]).astype(np.float64)
    order = np.argsort(pooled, kind="stable")
    gaps = np.diff(pooled[order])

    def distance(reference_weights: np.ndarray, model_weights: np.ndarray) -> float:
        flow = np.concatenate([reference_weights / reference_weights.sum(), -model_weights / model_weights.sum()])
        return float(np.abs(np.cumsum(flow[order])[:-1]) @ gaps)

    return distance


def wasserstein(
    reference: Float[np.ndarray, "frame"],
    model: Float[np.ndarray, "model_frame"],
    reference_weights: Float[np.ndarray, "frame"] | None = None,
    model_weights: Float[np.ndarray, "model_frame"] | None = None,
) -> float:
    """Wasserstein distance of two weighted samples, in their unit; raises TooFewFrames."""
    left = np.ones(len(reference)) if reference_weights is None else reference_weights
    right = np.ones(len(model)) if model_weights is None else model_weights
    return transport(reference, model)(left, right)


def width(sample: Float[np.ndarray, "frame"], weights: Float[np.ndarray, "frame"] | None = None) -> float:
    """Weighted standard deviation, in the sample's unit."""
    mean = np.average(sample, weights=weights)
    return float(np.sqrt(np.average((sample - mean) ** 2, weights=weights)))


def density(
    sample: Float[np.ndarray, "frame"],
    edges: Float[np.ndarray, "edge"],
    weights: Float[np.ndarray, "frame"] | None = None,
) -> Density:
    """Weighted density of a sample on given edges; what lies outside them counts in the norm only."""
    counts = np.histogram(sample, bins=edges, weights=weights)[0]
    total = float(len(sample)) if weights is None else float(weights.sum())
    return Density(edges, counts / total / np.diff(edges))


def common_edges(*samples: np.ndarray, n_bins: int = 60, tail: float = 1e-4) -> Float[np.ndarray, "edge"]:
    """Edges that hold all but ``tail`` of each sample on either side."""
    low = min(float(np.quantile(sample, tail)) for sample in samples)
    high = max(float(np.quantile(sample, 1 - tail)) for sample in samples)
    spare = 0.05 * (high - low) or 1e-6
    return np.linspace(low - spare, high + spare, n_bins + 1)
