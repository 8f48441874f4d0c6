"""The priors that the statistics of a sample give.

Harmonic terms V(q) = k (q - q0)^2 / 2 have the width that the data show (Boltzmann inversion; Tschoep et al. 1998, doi
10.1002/(SICI)1521-4044(199802)49:2/3<61::AID-APOL61>3.0.CO;2-V; Reith, Pütz and Müller-Plathe 2003, doi
10.1002/jcc.10307): ``harmonic``; torsions are Fourier series: ``fourier``; pairs repel: ``distances``. ``coordinates``
says what q are. No torch here.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from hpc_cg.beads import BeadSystem
from hpc_cg.errors import FitFailed
from hpc_cg.forcefield import harmonic
from hpc_cg.forcefield.coordinates import CoordinateMoments, term_labels, torsions_of
from hpc_cg.forcefield.distances import PairDistances, pair_groups
from hpc_cg.forcefield.fourier import fit_series
from hpc_cg.forcefield.histograms import COSINE_EDGES, LENGTH_EDGES, TORSION_EDGES, Evidence, overlap_with_gaussian
from hpc_cg.units import kT

MIN_FRAMES = 10
"""Fewer frames than this give no usable variance."""

RIGID = 1e-6
"""A standard deviation below this part of the mean (of 0.1 at least) is rounding, not motion."""

LEAST_OVERLAP = 0.4
"""With less of its histogram under a Gaussian of its width, no harmonic term can stand for a coordinate."""

JUDGED_FRAMES = 500
"""Fewer effective frames than this do not tell the shape of a histogram."""

REPULSION_ENERGY = 4.184
"""kJ/mol, of repulsion at σ: 1 kcal/mol."""


@dataclass(frozen=True)
class PriorParameters:
    """Force constants and centres: bonds in kJ/mol/nm^2 and nm, angles (in the cosine) and impropers in kJ/mol.

    Coefficients of the torsions' Fourier series in kJ/mol, for each of ``torsions_of``; none where the order is 0.
    Pairs (i, j), i < j, that repel with REPULSION_ENERGY (σ / r)^6, and their σ in nm.
    """

    bond_k: Float[np.ndarray, "bond"]
    bond_0: Float[np.ndarray, "bond"]
    angle_k: Float[np.ndarray, "angle"]
    angle_0: Float[np.ndarray, "angle"]
    improper_k: Float[np.ndarray, "improper"]
    improper_0: Float[np.ndarray, "improper"]
    torsion_sin: Float[np.ndarray, "torsion order"]
    torsion_cos: Float[np.ndarray, "torsion order"]
    repulsion_pairs: Int[np.ndarray, "pair 2"] = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))
    repulsion_sigma: Float[np.ndarray, "pair"] = field(default_factory=lambda: np.zeros(0))

    def to_json(self) -> dict[str, list]:
        return {field.name: getattr(self, field.name).tolist() for field in fields(self)}

    @staticmethod
    def from_json(content: dict[str, list]) -> "PriorParameters":
        """The parameters whose ``to_json`` is given; those of versions without repulsion have none."""
        arrays: dict[str, np.ndarray] = {name: np.asarray(values, np.float64) for name, values in content.items()}
        for name in ("torsion_sin", "torsion_cos"):
            arrays[name] = arrays[name].reshape(len(arrays[name]), -1 if arrays[name].size else 0)
        if "repulsion_pairs" in arrays:
            arrays["repulsion_pairs"] = arrays["repulsion_pairs"].astype(np.int64).reshape(-1, 2)
        return PriorParameters(**arrays)


@dataclass(frozen=True)
class Repulsion:
    """Which pairs repel, and from where on.

    min_bonds    pairs at least so many bonds apart, or in different molecules
    percentile   of the distances seen between beads of two types, which is their σ; 0 for the smallest
    largest_nm   no σ is larger: that two beads were never seen close says nothing about how close they can come
    """

    min_bonds: int = 4
    percentile: float = 0.1
    largest_nm: float = 0.6


def fit_priors(
    moments: CoordinateMoments,
    temperature_K: float,
    torsion_order: int = 0,
    best_order: bool = False,
    per: Literal["term", "type"] = "term",
    repulsion: Repulsion | None = None,
) -> PriorParameters:
    """Priors that alone show the means, widths and histograms seen.

    torsion_order   of the Fourier series that is fitted to -kT ln(count + 1/2) of each dihedral; 0 for no torsions. The
                    half count stands for what a bin that was never visited may hold: without it nothing would keep a
                    model out of where no data are.
    best_order      whether each torsion has the best order up to that, by the Akaike criterion
    per             whether each term is fitted alone, or all terms of the same types of beads together (types read
                    backwards are the same; impropers have a hand and are read one way)
    repulsion       which pairs repel; None for none

    Raises FitFailed, naming the term and with the histogram to be drawn, when a coordinate does not move, is no number,
    has no single peak, when a fit does not converge, or when there are too few frames.
    """
    if moments.n_frames < MIN_FRAMES or not moments.weight > 0:
        raise FitFailed(
            "fitting the priors",
            f"{moments.n_frames} frames of total weight {moments.weight:g}, at least {MIN_FRAMES} are needed",
            "give more frames, or check their weights",
        )
    system, thermal = moments.system, kT(temperature_K)
    sample = _Pooled.of(moments, per)
    sample.check()
    n_bonds, n_angles = (int((sample.kind == name).sum()) for name in ("bond", "angle"))
    mean, variance = sample.mean, sample.variance
    bond, angle = slice(0, n_bonds), slice(n_bonds, n_bonds + n_angles)
    lengths = harmonic.fit_lengths(mean[bond], variance[bond], thermal)
    cosines = harmonic.fit_cosines(mean[angle], variance[angle], thermal)
    lost = np.flatnonzero(~np.concatenate((lengths.converged, cosines.converged)))
    if len(lost):
        raise sample.failed(int(lost[0]), "to which Newton's method found no harmonic term")
    k = np.concatenate((lengths.k, cosines.k, thermal / variance[n_bonds + n_angles :]))[sample.group]
    centre = np.concatenate((lengths.centre, cosines.centre, mean[n_bonds + n_angles :]))[sample.group]
    split = [len(system.bonds), len(system.bonds) + len(system.angles)]
    (bond_k, angle_k, improper_k), (bond_0, angle_0, improper_0) = np.split(k, split), np.split(centre, split)
    torsions = _fit_torsions(moments, thermal, torsion_order, best_order, per)
    pairs, sigma = _fit_repulsion(moments, repulsion)
    return PriorParameters(bond_k, bond_0, angle_k, angle_0, improper_k, improper_0, *torsions, pairs, sigma)


@dataclass(frozen=True)
class _Pooled:
    """The statistics of groups of terms: of each term, or of all terms of the same types.

    kind, label   of each group; group of each term
    """

    moments: CoordinateMoments
    kind: np.ndarray
    label: tuple[str, ...]
    group: np.ndarray
    mean: np.ndarray
    variance: np.ndarray

    @staticmethod
    def of(moments: CoordinateMoments, per: Literal["term", "type"]) -> "_Pooled":
        system = moments.system
        terms = [
            (kind, term)
            for kind, terms in (("bond", system.bonds), ("angle", system.angles), ("improper", system.impropers))
            for term in terms
        ]
        group = _groups([(kind, *_types(system, term, kind != "improper")) for kind, term in terms], per)
        first = [int(np.flatnonzero(group == number)[0]) for number in range(int(group.max(initial=-1)) + 1)]
        size = np.bincount(group, minlength=len(first)).astype(np.float64)
        mean = np.bincount(group, moments.mean, len(first)) / size
        apart = (moments.mean - mean[group]) ** 2
        variance = np.bincount(group, moments.variance + apart, len(first)) / size
        labels, kinds = term_labels(system), np.array([kind for kind, _ in terms], dtype=object)
        more = [f" and {int(n) - 1} of its types" if n > 1 else "" for n in size]
        label = tuple(labels[i] + rest for i, rest in zip(first, more, strict=True))
        return _Pooled(moments, kinds[first], label, group, mean, variance)

    def check(self) -> None:
        """Raise FitFailed for a group that does not move, is no number, or has no single peak."""
        moving = self.variance > (RIGID * np.maximum(np.abs(self.mean), 0.1)) ** 2
        bad = np.flatnonzero(~(moving & np.isfinite(self.variance)))
        if len(bad):
            raise self.failed(int(bad[0]), "")
        if self.moments.n_effective < JUDGED_FRAMES:
            return
        for number in range(len(self.label)):
            edges, counts = self.histogram(number)
            covered = overlap_with_gaussian(edges, counts, self.mean[number], float(np.sqrt(self.variance[number])))
            if covered < LEAST_OVERLAP and self.kind[number] != "angle":
                raise self.failed(number, f"only {covered:.0%} of its histogram under one peak of that width")

    def histogram(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Edges and counts of a group."""
        n_bonds, mine = len(self.moments.system.bonds), np.flatnonzero(self.group == number)
        if self.kind[number] == "bond":
            return LENGTH_EDGES, self.moments.lengths[mine].sum(axis=0)
        return COSINE_EDGES, self.moments.cosines[mine - n_bonds].sum(axis=0)

    def failed(self, number: int, why: str) -> FitFailed:
        """The error of a group, with its histogram."""
        mean, variance = self.mean[number], self.variance[number]
        edges, counts = self.histogram(number)
        quantity = {"bond": "bond length (nm)", "angle": "cosine of the angle (1)", "improper": "improper product (1)"}
        curve = None
        if np.isfinite(variance) and variance > 0:
            values = np.linspace(mean - 5 * np.sqrt(variance), mean + 5 * np.sqrt(variance), 400)
            curve = values, np.exp(-((values - mean) ** 2) / (2 * variance))
        return FitFailed(
            f"fitting the prior of {self.label[number]}",
            f"mean {mean:g} and variance {variance:g} over {self.moments.n_frames} frames" + (why and f", {why}"),
            "check that these beads move and that molecules are whole in the data, or choose a map without this term"
            + (", or fit priors per term" if "of its types" in self.label[number] else ""),
            Evidence(self.label[number], quantity[self.kind[number]], edges, counts, curve),
        )


def _types(system: BeadSystem, term: Sequence[int], both_ways: bool) -> tuple[int, ...]:
    """The types of a term's beads; of the two ways to read them the smaller."""
    types = tuple(system.types[bead] for bead in term)
    return min(types, types[::-1]) if both_ways else types


def _groups(keys: Sequence[Hashable], per: Literal["term", "type"]) -> np.ndarray:
    """A number for each term, in the order in which groups first appear."""
    if per == "term":
        return np.arange(len(keys))
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)


def _fit_torsions(
    moments: CoordinateMoments, thermal: float, order: int, best: bool, per: Literal["term", "type"]
) -> tuple[np.ndarray, np.ndarray]:
    """Sine and cosine coefficients of every torsion."""
    quads = torsions_of(moments.system)
    if not order or not quads:
        return np.zeros((0, 0)), np.zeros((0, 0))
    group = _groups([_types(moments.system, quad, True) for quad in quads], per)
    counts = np.zeros((int(group.max()) + 1, moments.torsions.shape[1]))
    np.add.at(counts, group, moments.torsions)
    for number in np.flatnonzero(~(counts.sum(axis=1) > 0)):
        label = "torsion " + "-".join(moments.system.names[i] for i in quads[int(np.flatnonzero(group == number)[0])])
        raise FitFailed(
            f"fitting the prior of {label}",
            f"no dihedral that is a number in {moments.n_frames} frames",
            "check the positions of these beads",
            Evidence(label, "dihedral (rad)", TORSION_EDGES, counts[number]),
        )
    # weights may be of any scale; the half count is half a frame
    series = fit_series(counts * (moments.n_effective / moments.weight), thermal, order, best)
    return series.sine[group], series.cosine[group]


def _fit_repulsion(moments: CoordinateMoments, choice: Repulsion | None) -> tuple[np.ndarray, np.ndarray]:
    """The pairs that repel, and their σ: one for each two types."""
    groups = pair_groups(moments.system)
    if choice is None:
        return groups.pairs[:0], np.zeros(0)
    far = groups.kinds[:, 2] >= choice.min_bonds
    sigma = np.zeros(len(far))
    for types in np.unique(groups.kinds[far, :2], axis=0):
        mine = far & (groups.kinds[:, :2] == types).all(axis=1)
        seen = PairDistances(moments.distances.shortest[mine], moments.distances.counts[mine])
        sigma[mine] = min(seen.percentile(choice.percentile), choice.largest_nm)
        if not sigma[mine].min() > 0:
            i, j = groups.pairs[np.flatnonzero(mine[groups.group])[0]]
            names = f"{moments.system.names[i]} and {moments.system.names[j]}"
            raise FitFailed(
                f"fitting the repulsion of {names}",
                "beads in one place",
                "check the positions of these beads, or set train.repulsion_percentile higher",
            )
    wanted = far[groups.group]
    return groups.pairs[wanted], sigma[groups.group][wanted]
