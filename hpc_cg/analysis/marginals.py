"""The densities of single bonds and angles, model beside reference, ready to be drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hpc_cg.analysis.features import angles, bond_lengths
from hpc_cg.analysis.geometry import Density, common_edges, density
from hpc_cg.analysis.sample import Sample
from hpc_cg.beads import BeadSystem


@dataclass(frozen=True)
class Marginal:
    """One coordinate: its name, and its densities on common edges (nm or rad); ``noised`` where asked for."""

    label: str
    reference: Density
    model: Density
    noised: Density | None = None


def bond_marginals(
    reference: Sample, model: Sample, system: BeadSystem, noised: Sample | None = None
) -> tuple[Marginal, ...]:
    """Densities of each bond length, 1/nm; ``noised`` is the reference with the kernel's noise."""
    return _marginals(reference, model, noised, system, system.bonds, bond_lengths)


def angle_marginals(
    reference: Sample, model: Sample, system: BeadSystem, noised: Sample | None = None
) -> tuple[Marginal, ...]:
    """Densities of each angle, 1/rad; ``noised`` is the reference with the kernel's noise."""
    return _marginals(reference, model, noised, system, system.angles, angles)


def term_label(system: BeadSystem, beads: Sequence[int]) -> str:
    """The beads of a term: "N–CA–CB" within a residue, "ACE1:C–ALA2:N" beyond it, "TYR1–TYR2" of one bead each."""
    names = [system.names[bead] for bead in beads]
    residues = {name.rpartition(":")[0] for name in names}
    if len({name.rpartition(":")[2] for name in system.names}) == 1 and "" not in residues:
        return "–".join(name.rpartition(":")[0] for name in names)
    return "–".join(name.rpartition(":")[2] if len(residues) == 1 else name for name in names)


def _marginals(
    reference: Sample,
    model: Sample,
    noised: Sample | None,
    system: BeadSystem,
    terms: Sequence[tuple[int, ...]],
    coordinate: Callable[..., np.ndarray],
) -> tuple[Marginal, ...]:
    samples = [s for s in (reference, model, noised) if s is not None]
    if not terms:
        return ()
    values = [coordinate(s.positions, terms) for s in samples]
    found = []
    for i, beads in enumerate(terms):
        edges = common_edges(*(v[:, i] for v in values))
        densities = [density(v[:, i], edges, s.weights) for v, s in zip(values, samples, strict=True)]
        found.append(Marginal(term_label(system, beads), *densities))
    return tuple(found)
