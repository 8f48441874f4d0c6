"""The transition kernel in use: where a trajectory went in a lag, labelled with the score of going there.

    c = x_t + σξ,    y = x_{t+τ},    label = kT ∇_y log κ(y|c),    κ the law of such pairs

(Klein et al., arXiv 2506.19628, eqs. 9, 17). Labels are at the frames that the trajectory gave; what is drawn is ξ.

Why the mean of the label is the mean force, whatever c is made of the past: ∇_y log p(y|c) is
∇_y log p(y) + ∇_y log p(c|y), and the mean over p(c|y) of the last is ∇_y ∫ p(c|y) dc = 0. All that c needs is a
density that is smooth in y. The noise gives it one: frames are kept with their mean at the origin, so without noise κ
would have none in the directions that shift a molecule. For the same reason x_t may be superposed on y first, which
takes out how the molecule has turned: together with the noise that is one more law of c given y, and κ one more law to
be learnt, often a much narrower one.

It is exact for the true law of the pairs, and no nearer to the mean force than the model of it. y was drawn from the
dynamics, not from the model, so control variates at the earlier frame (``control.py``) are biased even with the true
law: what pulled at x_t beyond the mean force there, by atoms that no bead sees, is remembered in y. The mapped force
at y itself has no such flaw: it and the label have the same mean, and Z = F_at(y) − label is a variate.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float

from hpc_cg.frames import BeadFrames, finite_frames
from hpc_cg.kernels.control import Controls, Labels
from hpc_cg.kernels.density import ConditionalDensity, Draw, normals
from hpc_cg.kernels.fitted import Reach
from hpc_cg.kernels.kernel import KernelSample
from hpc_cg.units import kT


def superposed(
    earlier: Float[np.ndarray, "frame bead 3"], later: Float[np.ndarray, "frame bead 3"]
) -> Float[np.ndarray, "frame bead 3"]:
    """Earlier frames moved and turned, never mirrored, to the least distance from later ones (Kabsch 1976, doi
    10.1107/S0567739476001873).
    """
    centre = later.mean(axis=1, keepdims=True, dtype=np.float64)
    before, after = (x - x.mean(axis=1, keepdims=True, dtype=np.float64) for x in (earlier, later))
    left, _, right = np.linalg.svd(before.transpose(0, 2, 1) @ after)
    left[:, :, 2] *= np.sign(np.linalg.det(left) * np.linalg.det(right))[:, None]
    return (before @ (left @ right) + centre).astype(later.dtype)


@dataclass(frozen=True, eq=False)
class TransitionKernel:
    """A density fitted to pairs of a later frame and an earlier one with noise.

    sigma_nm       σ, a standard deviation
    temperature_K  of the data
    with_forces    whether mapped forces of the later frame are mixed in
    controls       weight of the control variate; None for the label alone
    device         that scores are taken on
    reach          of the density: conditions beyond have failed; None where it is not known
    """

    density: ConditionalDensity
    sigma_nm: float
    temperature_K: float
    with_forces: bool
    controls: Controls | None
    device: torch.device
    reach: Reach | None = None

    def link(
        self,
        later: Float[np.ndarray, "frame bead 3"],
        earlier: Float[np.ndarray, "frame bead 3"],
        key: np.random.Generator,
    ) -> tuple[Draw, Float[np.ndarray, "frame bead 3"]]:
        """The density at later frames, and the condition it has there: the earlier ones with fresh noise, nm."""
        there, before = (
            torch.from_numpy(np.ascontiguousarray(positions, dtype=np.float32)).to(self.device)
            for positions in (later, earlier)
        )
        condition = before + self.sigma_nm * normals(key, before)
        found = self.density.at(there, condition, key)
        if self.reach is not None:
            found = replace(found, failed=found.failed | ~self.reach.holds(condition))
        return found, condition.cpu().numpy()

    def labels(self, later: BeadFrames, link: Draw) -> Labels:
        """The labels with their control variate, kJ/mol/nm; both without their mean over the beads, which is noise."""
        scores, failed = (values.cpu().numpy() for values in (link.score.double(), link.failed))
        forces = _balanced(kT(self.temperature_K) * scores)
        if not self.with_forces:
            return Labels(forces, (), failed, centred=True)
        failed = failed | ~finite_frames(later.forces)
        return Labels(forces, (_balanced(later.forces) - forces,), failed, centred=True)

    def sample(
        self, later: BeadFrames, earlier: Float[np.ndarray, "frame bead 3"], key: np.random.Generator
    ) -> KernelSample:
        """A label for each later frame; the same key gives the same noise."""
        link, _ = self.link(later.positions, earlier, key)
        found = self.labels(later, link)
        forces = found.forces if self.controls is None else self.controls.apply(found)
        failed = found.failed | ~np.isfinite(forces).all(axis=(1, 2))
        log_density = link.log_density.double().cpu().numpy()
        return KernelSample(later.positions, forces.astype(np.float32), log_density, failed)


def _balanced(forces: Float[np.ndarray, "frame bead 3"]) -> Float[np.ndarray, "frame bead 3"]:
    return forces - forces.mean(axis=1, keepdims=True, dtype=np.float64)
