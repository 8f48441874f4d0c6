"""Second moments of forces, summed over rigid groups of atoms: all that the fit of a force map needs of an archive.

A valid force map gives every atom of a rigid group the same weight, B = W Kᵀ (K expands groups to atoms), so it sees
forces only through the sums g = Kᵀ f, and its mean square only through

    G = Σ over frames of weight · Σ over 3 axes of g gᵀ            ⟨F Fᵀ⟩ per frame and axis = W G Wᵀ / 3 Σ weight

G adds up over blocks, shards and ranks, and forces are never held together. The slice map breaks rigid groups; its
moments are those of the forces it maps, one row per bead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float64, Int64

from hpc_cg.errors import BadFrames, OutOfMemory, TooFewFrames

Groups = Sequence[tuple[int, ...]]

MAX_GROUPS = 6_000
"""Most groups whose second moments are kept: 8 N² bytes are 288 MB then, and the fit holds a few such matrices."""

BLOCK_BYTES = 32 << 20
"""Forces in float64 that are held at once."""


@dataclass(frozen=True, eq=False)
class GroupSum:
    """Kᵀ, which adds up what the atoms of a group carry; the groups must cover every atom once.

    Sums run in the order of a group's atoms, so a frame gives the same bits in whatever block it comes.
    """

    groups: tuple[tuple[int, ...], ...]
    n_atoms: int

    def __post_init__(self) -> None:
        atoms = np.fromiter((atom for group in self.groups for atom in group), dtype=np.int64)
        assert np.array_equal(np.sort(atoms), np.arange(self.n_atoms)), "groups that do not cover every atom once"

    @property
    def n_groups(self) -> int:
        return len(self.groups)

    @cached_property
    def sizes(self) -> Int64[np.ndarray, "group"]:
        """Atoms in each group."""
        return np.array([len(group) for group in self.groups], dtype=np.int64)

    @cached_property
    def label(self) -> Int64[np.ndarray, "atom"]:
        """The group of each atom."""
        label = np.empty(self.n_atoms, dtype=np.int64)
        label[np.concatenate([np.asarray(group) for group in self.groups])] = np.repeat(
            np.arange(self.n_groups), self.sizes
        )
        return label

    def __call__(self, forces: Float[np.ndarray, "frame atom 3"]) -> Float64[np.ndarray, "frame group 3"]:
        """Force on each group, in float64."""
        return self._summed(forces)

    def columns(self, matrix: Float[np.ndarray, "row atom"]) -> Float64[np.ndarray, "row group"]:
        """``matrix`` K: the columns of a group's atoms added up."""
        return self._summed(matrix)

    def expand(self, weights: Float64[np.ndarray, "row group"]) -> Float64[np.ndarray, "row atom"]:
        """``weights`` Kᵀ: every atom gets the weight of its group."""
        return weights[:, self.label]

    @cached_property
    def _layers(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """For the second, third ... atom of the groups: which groups have one, and which atom it is."""
        return tuple(
            (larger, np.array([self.groups[group][depth] for group in larger], dtype=np.int64))
            for depth in range(1, int(self.sizes.max(initial=1)))
            for larger in (np.flatnonzero(self.sizes > depth),)
        )

    def _summed(self, values: np.ndarray) -> np.ndarray:
        first = np.array([group[0] for group in self.groups], dtype=np.int64)
        total = values[:, first].astype(np.float64)
        for larger, atoms in self._layers:
            total[:, larger] += values[:, atoms]
        return total


@dataclass(frozen=True, eq=False)
class ForceMoments:
    """Second moments of the forces on groups (or on atoms, or beads); ``a + b`` are those of both sets of frames.

    count   sum of the frames' weights; the number of frames where those are 1
    gram    Σ over frames and axes of weight · g gᵀ, (kJ/mol/nm)²
    """

    count: float
    gram: Float64[np.ndarray, "group group"]

    @staticmethod
    def empty(n_groups: int) -> "ForceMoments":
        """Moments of no frames; raises OutOfMemory above MAX_GROUPS."""
        _refuse_too_many(n_groups)
        return ForceMoments(0.0, np.zeros((n_groups, n_groups)))

    @staticmethod
    def of(
        forces: Float[np.ndarray, "frame atom 3"],
        weights: Float[np.ndarray, "frame"] | None = None,
        groups: GroupSum | None = None,
    ) -> "ForceMoments":
        """Moments of forces in kJ/mol/nm, summed in float64, a bounded number of frames at a time.

        weights   statistical weight of each frame, at least 0 and 1 by default; frames of weight 0 are not looked at
        groups    what to add up first; without it every atom counts alone
        Raises BadFrames for forces or weights that are no numbers, OutOfMemory above MAX_GROUPS.
        """
        n_frames, n_atoms = forces.shape[:2]
        total = ForceMoments.empty(groups.n_groups if groups else n_atoms)
        weights = np.ones(n_frames) if weights is None else _checked(weights)
        step = max(1, BLOCK_BYTES // (24 * max(n_atoms, 1)))
        for start in range(0, n_frames, step):
            block = slice(start, start + step)
            total.gram[...] += _gram(forces[block], weights[block], groups)
        return ForceMoments(float(weights.sum()), total.gram)

    def __add__(self, other: "ForceMoments") -> "ForceMoments":
        return ForceMoments(self.count + other.count, self.gram + other.gram)

    @property
    def n_groups(self) -> int:
        return len(self.gram)

    @property
    def mean(self) -> Float64[np.ndarray, "group group"]:
        """⟨g gᵀ⟩ per frame and axis; raises TooFewFrames for none."""
        return self.gram / self._rows

    @property
    def mean_square(self) -> Float64[np.ndarray, "group"]:
        """⟨g²⟩ of each group per frame and axis, (kJ/mol/nm)²; raises TooFewFrames for none."""
        return np.diag(self.gram) / self._rows

    @property
    def _rows(self) -> float:
        if not self.count > 0:
            raise TooFewFrames("a force map", "no frames with forces", "give an archive that holds forces")
        return 3 * self.count


@dataclass(frozen=True, eq=False)
class FitMoments:
    """Moments of the frames that maps are fitted on and of those held out; ``a + b`` are those of both archives.

    train, held_out               of the forces summed over rigid groups
    slice_train, slice_held_out   of the forces as the slice map gives them, one row per bead
    """

    train: ForceMoments
    held_out: ForceMoments
    slice_train: ForceMoments
    slice_held_out: ForceMoments

    @staticmethod
    def empty(n_groups: int, n_beads: int) -> "FitMoments":
        """Moments of no frames."""
        groups, beads = ForceMoments.empty(n_groups), ForceMoments.empty(n_beads)
        return FitMoments(groups, groups, beads, beads)

    def __add__(self, other: "FitMoments") -> "FitMoments":
        return FitMoments(*(getattr(self, name) + getattr(other, name) for name in _PARTS))

    def arrays(self) -> dict[str, np.ndarray]:
        """All moments by name, for an npz file."""
        parts = {name: getattr(self, name) for name in _PARTS}
        counts = {f"{name}_count": np.asarray(part.count) for name, part in parts.items()}
        return counts | {f"{name}_gram": part.gram for name, part in parts.items()}

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray]) -> "FitMoments":
        """The moments whose ``arrays`` were written; others beside them are let be."""
        return FitMoments(*(ForceMoments(float(arrays[f"{name}_count"]), arrays[f"{name}_gram"]) for name in _PARTS))


_PARTS = tuple(FitMoments.__dataclass_fields__)


def _gram(forces: np.ndarray, weights: np.ndarray, groups: GroupSum | None) -> np.ndarray:
    if not weights.all():
        forces, weights = forces[weights > 0], weights[weights > 0]
    summed = groups(forces) if groups else forces.astype(np.float64)
    rows = np.ascontiguousarray((summed * np.sqrt(weights)[:, None, None]).transpose(0, 2, 1))
    rows = rows.reshape(-1, rows.shape[-1])
    gram: np.ndarray = rows.T @ rows  # one buffer twice: BLAS fills one triangle and mirrors it
    if not np.isfinite(np.diag(gram)).all():
        raise BadFrames("second moments of forces", "forces that are no numbers", "leave those frames out")
    return gram


def _checked(weights: np.ndarray) -> np.ndarray:
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise BadFrames("weighted moments of forces", "weights below 0 or no numbers", "give weights of at least 0")
    return weights.astype(np.float64)


def _refuse_too_many(n_groups: int) -> None:
    if n_groups > MAX_GROUPS:
        raise OutOfMemory(
            f"second moments of at most {MAX_GROUPS} groups of atoms",
            f"{n_groups}, which take {8e-9 * n_groups**2:.1f} GB for every copy",
            'set prepare.force_map = "uniform", or name fewer atoms in prepare.atoms (without the solvent)',
        )
