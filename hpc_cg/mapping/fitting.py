"""From summed moments to the map of a molecule: fit the force maps, judge all on held-out frames, keep one.

The optimal map has one unknown per rigid group of atoms. Where that is not asked for and the groups are many, only the
uniform and the slice map are judged, from the moments of the forces they map: those are small.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float64

from hpc_cg.beads import BeadSystem
from hpc_cg.errors import TooFewFrames
from hpc_cg.mapping import optimal
from hpc_cg.mapping.maps import CGMap
from hpc_cg.mapping.moments import FitMoments, ForceMoments, GroupSum
from hpc_cg.mapping.ridge import RidgeChoice, choose_ridge

MapName = Literal["optimal", "uniform", "slice"]
FOLDS = 5
GROUPS_IN_PASSING = 400
"""Groups up to which the optimal map is judged beside the others though it is not asked for."""


@dataclass(frozen=True, eq=False)
class Reduction:
    """How forces are reduced before they are summed.

    groups    to rigid groups; None where only beads are looked at
    uniform   to beads by the uniform map
    slices    to beads by the slice map
    """

    groups: GroupSum | None
    uniform: CGMap
    slices: CGMap

    @property
    def empty(self) -> FitMoments:
        """Moments of no frames."""
        n_beads = self.slices.n_beads
        return FitMoments.empty(self.groups.n_groups if self.groups else n_beads, n_beads)

    def moments(
        self,
        forces: Float[np.ndarray, "frame atom 3"],
        weights: Float[np.ndarray, "frame"],
        train: np.ndarray,
        held_out: np.ndarray,
    ) -> FitMoments:
        """Weighted moments of the frames that are trained on and held out (masks over the frames)."""
        whole = forces if self.groups else self.uniform.apply_forces(forces)
        sliced = self.slices.apply_forces(forces)
        return FitMoments(
            *(ForceMoments.of(whole[side], weights[side], self.groups) for side in (train, held_out)),
            *(ForceMoments.of(sliced[side], weights[side]) for side in (train, held_out)),
        )


def reduction(
    coordinate: Float[np.ndarray, "bead atom"],
    system: BeadSystem,
    groups: Sequence[tuple[int, ...]],
    wanted: MapName,
) -> Reduction:
    """What has to be summed to fit the map that is wanted and to judge the others; raises InvalidMap."""
    sums = GroupSum(tuple(groups), coordinate.shape[1])
    return Reduction(
        groups=sums if wanted == "optimal" or sums.n_groups <= GROUPS_IN_PASSING else None,
        uniform=CGMap(coordinate, optimal.uniform_force_map(coordinate, groups), system),
        slices=CGMap(coordinate, optimal.slice_force_map(coordinate), system),
    )


@dataclass(frozen=True, eq=False)
class Fitted:
    """The map that is used, and how all maps did.

    second_moment, held_out   ⟨F Fᵀ⟩ of the mapped forces per frame and axis, (kJ/mol/nm)²; zeros without forces
    mean_square               of each map that was judged, on the frames fitted on and on those held out
    choice                    how the ridge was chosen, where it was
    """

    name: str
    cg_map: CGMap
    second_moment: Float64[np.ndarray, "bead bead"]
    held_out: Float64[np.ndarray, "bead bead"]
    mean_square: dict[str, dict[str, float]] = field(default_factory=dict)
    ridge: float = 0.0
    choice: RidgeChoice | None = None
    slice_breaks: tuple[tuple[int, ...], ...] = ()

    def arrays(self) -> dict[str, np.ndarray]:
        """The map and the moments of its forces by name, for an npz file."""
        return self.cg_map.arrays() | {"second_moment": self.second_moment, "second_moment_held_out": self.held_out}

    def record(self) -> dict[str, Any]:
        """What a person wants to know of the fit, for a JSON file."""
        tried = [] if self.choice is None else zip(self.choice.candidates, self.choice.scores, strict=True)
        return {
            "force_map": self.name,
            "mean_square": self.mean_square,
            "ridge": self.ridge,
            "ridge_tried": [[float(ridge), float(score)] for ridge, score in tried if np.isfinite(score)],
            "orthogonality": self.cg_map.orthogonality,
            "slice_breaks_rigid_groups": [f"atoms {', '.join(map(str, group))}" for group in self.slice_breaks],
            "digest": self.cg_map.digest,
        }


def positions_only(coordinate: Float[np.ndarray, "bead atom"], system: BeadSystem) -> Fitted:
    """The map of an archive without forces."""
    nothing = np.zeros((system.n_beads, system.n_beads))
    return Fitted("none", CGMap(coordinate, optimal.slice_force_map(coordinate), system), nothing, nothing)


def fit(
    coordinate: Float[np.ndarray, "bead atom"],
    system: BeadSystem,
    groups: Sequence[tuple[int, ...]],
    parts: Iterable[FitMoments],
    wanted: MapName,
    ridge: float | Literal["auto"],
) -> Fitted:
    """Fit and judge the maps from the moments of parts of the frames (of ``reduction``), added in their order.

    ridge   λ per frame and axis, (kJ/mol/nm)², or "auto": the best in cross-validation over every FOLDS-th part
    Raises TooFewFrames, FitFailed, InvalidMap.
    """
    folds, held, sliced = _added(parts)
    trained = sum(folds[1:], folds[0])
    if not (trained.count and held.count):
        raise TooFewFrames(
            "frames to fit maps on, and frames held out to judge them",
            f"{trained.count:g} and {held.count:g}, counted by weight",
            "give longer trajectories, or shorten prepare.held_out_block_ps",
        )
    uniform = optimal.uniform_force_map(coordinate, groups)
    slices = optimal.slice_force_map(coordinate)
    seconds = {"slice": tuple(side.mean for side in sliced)}
    maps = {"slice": slices, "uniform": uniform}
    choice = None
    if reduction(coordinate, system, groups, wanted).groups is None:
        seconds["uniform"] = (trained.mean, held.mean)
    else:
        if ridge == "auto":
            choice = choose_ridge(coordinate, groups, folds)
        used = choice.ridge if choice is not None else float(ridge)
        maps["optimal"] = optimal.optimal_force_map(coordinate, groups, trained, used)
        for name in ("uniform", "optimal"):
            seconds[name] = tuple(optimal.bead_second_moment(maps[name], groups, side) for side in (trained, held))
    if wanted != "slice":
        optimal.check_map(coordinate, maps[wanted], groups)
    return Fitted(
        name=wanted,
        cg_map=CGMap(coordinate, maps[wanted], system),
        second_moment=seconds[wanted][0],
        held_out=seconds[wanted][1],
        mean_square={
            name: {"train": float(np.diag(on).mean()), "held_out": float(np.diag(out).mean())}
            for name, (on, out) in seconds.items()
        },
        ridge=used if "optimal" in maps else 0.0,
        choice=choice,
        slice_breaks=tuple(
            group for group in groups if len(group) > 1 and np.ptp(slices[:, list(group)], axis=1).any()
        ),
    )


def _added(parts: Iterable[FitMoments]) -> tuple[list[ForceMoments], ForceMoments, tuple[ForceMoments, ForceMoments]]:
    """The frames trained on in FOLDS folds, those held out, both for the slice map; one part in memory at a time."""
    folds: list[ForceMoments] = []
    rest: FitMoments | None = None
    for number, part in enumerate(parts):
        if number < FOLDS:
            folds.append(part.train)
        else:
            folds[number % FOLDS] = folds[number % FOLDS] + part.train
        rest = part if rest is None else rest + part
    assert rest is not None, "an archive has at least one part"
    return folds, rest.held_out, (rest.slice_train, rest.slice_held_out)
