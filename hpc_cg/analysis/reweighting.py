"""Weights for archives of short trajectories from chosen starts: equilibrium between states, by a Markov model.

A frame in state i gets π_i / (visits of i), so that states weigh what they do in equilibrium, and frames of one state
count alike: within states the archive is taken as it is. Where trajectories relax within a state more slowly than they
last, finer states or longer trajectories are needed. The numbers are what prepare.weights reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int

from hpc_cg.analysis.floor import effective_frames
from hpc_cg.analysis.lagged import Timeline
from hpc_cg.analysis.markov import MarkovModel
from hpc_cg.errors import BadWeights, TooFewFrames


@dataclass(frozen=True, eq=False)
class FrameWeights:
    """Weights of frames, of mean 1.

    outside       share of the frames in states that the model leaves out: their weight is 0
    n_effective   equally weighted frames that these are worth
    """

    weights: Float64[np.ndarray, "frame"]
    outside: float
    n_effective: float


def frame_weights(model: MarkovModel, states: Int[np.ndarray, "frame"], n_states: int) -> FrameWeights:
    """π_state / visits for each frame; raises TooFewFrames where a state of the model has no frame.

    states   of all frames that will carry weights, numbered as in the model's counts
    """
    visits = np.bincount(states, minlength=n_states).astype(np.float64)
    empty = model.active[visits[model.active] == 0]
    if len(empty):
        raise TooFewFrames(
            "weights from a Markov model",
            f"{len(empty)} of its {len(model.active)} states without a frame",
            "weigh the frames that the model was made from, or ask for fewer states",
        )
    share = np.zeros(n_states)
    share[model.active] = model.stationary / visits[model.active]
    weights = share[states] * len(states)
    return FrameWeights(weights, float(np.mean(weights == 0)), effective_frames(weights))


def of_archive(
    weights: Float[np.ndarray, "frame"], timeline: Timeline, lengths: Sequence[int]
) -> Float64[np.ndarray, "archive_frame"]:
    """Weights of every frame of an archive, segments in the order of its index: 0 for frames that have none here.

    timeline   where in the archive each frame is
    lengths    frames of each segment
    Save it as weights.npy for prepare.weights. Raises BadWeights where a frame lies outside the archive.
    """
    first = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    known = (timeline.segment >= 0) & (timeline.segment < len(lengths)) & (timeline.frame_index >= 0)
    if known.all():
        known = timeline.frame_index < np.asarray(lengths)[timeline.segment]
    if not known.all():
        at = int(np.argmin(known))
        raise BadWeights(
            "weights for an archive",
            f"frame {timeline.frame_index[at]} of segment {timeline.segment[at]}, which it does not have",
            "give the archive that the frames came from",
        )
    flat = np.zeros(int(first[-1]))
    flat[first[timeline.segment] + timeline.frame_index] = weights
    return flat
