"""Energies of coarse-grained frames with their atoms back: do the beads stand where atoms can stand comfortably?

Atoms are rebuilt around the beads (analysis/rebuild.py), the beads are held, and what is between them gives way until
the potential of the atoms,

    E(beads) = min over the other atoms of U(all atoms),

is least nearby. U is amber14 with OBC2 solvent by OpenMM, no bond constrained. Frames of the reference are reduced to
beads and treated alike, from conformers of other stretches of trajectory, so the two histograms of E differ by the
beads alone (Klein et al. 2025, arXiv 2506.19628). Beads in a stiff bond make themselves felt: a bond that is wider by
a standard deviation s than it should be costs ½ k s² on average.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mdtraj
import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from hpc_cg.analysis.comparison import Judged
from hpc_cg.analysis.estimate import Estimate, bootstrap_error, share_estimate
from hpc_cg.analysis.features import handedness
from hpc_cg.analysis.floor import Floor, effective_frames
from hpc_cg.analysis.geometry import transport, width
from hpc_cg.analysis.rebuild import Conformers
from hpc_cg.analysis.sample import Sample
from hpc_cg.archive.reference import force_field, require_openmm
from hpc_cg.errors import TooFewFrames, UnknownAtoms
from hpc_cg.randomness import stream
from hpc_cg.units import kT

TOLERANCE, LARGEST_REST = 1.0, 10.0
"""Root mean square force, kJ/mol/nm, at which minimising ends, and above which it has failed. For alanine dipeptide
energies are within 0.01 and some 0.5 kJ/mol of the minimum then."""

MOST_STEPS = 10_000
HALVES = 40
"""Pairs of halves that a floor is the mean of."""

ASKED = "energies of backmapped frames"


@dataclass(frozen=True)
class Minimum:
    """Where minimising one frame ended: positions (nm), potential energy (kJ/mol), whether it is a minimum."""

    positions: Float64[np.ndarray, "atom 3"]
    energy: float
    found: bool


class Minimiser:
    """The force field of one molecule with some atoms held; the same frame gives the same bits, whatever was before.

    topology   of all atoms, hydrogens too
    held       indices of the atoms that stay where they are
    Raises MissingExtra without OpenMM, UnknownAtoms where the force field lacks parameters.
    """

    def __init__(self, topology: mdtraj.Topology, held: Int[np.ndarray, "held"]):
        self._openmm = openmm = require_openmm(ASKED)
        self._free = np.setdiff1d(np.arange(topology.n_atoms), held)
        try:
            system = force_field().createSystem(
                topology.to_openmm(), nonbondedMethod=openmm.app.NoCutoff, constraints=None, rigidWater=False
            )
        except (ValueError, KeyError) as error:
            raise UnknownAtoms(
                f"{ASKED} by amber14 with OBC2 solvent",
                " ".join(str(error).split())[:300],
                "give a topology of whole amino acids with their hydrogens and without solvent (prepare.atoms chooses "
                "atoms), or set aggregate.backmap_frames = 0",
            ) from error
        for atom in held.tolist():
            system.setParticleMass(atom, 0.0)
        platform = openmm.Platform.getPlatformByName("CPU")
        self._context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform, {"Threads": "1"})

    def __call__(self, positions: Float64[np.ndarray, "atom 3"]) -> Minimum:
        """The minimum that is downhill from ``positions`` (nm)."""
        context, unit = self._context, self._openmm.unit
        try:
            context.setPositions(positions)
            self._openmm.LocalEnergyMinimizer.minimize(context, TOLERANCE, MOST_STEPS)
            state = context.getState(positions=True, forces=True, energy=True)
        except self._openmm.OpenMMException:  # positions or forces became no numbers
            return Minimum(positions, float("nan"), False)
        forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)[self._free]
        energy = float(state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))
        rest = float(np.sqrt(np.mean(forces**2))) if forces.size else 0.0
        placed = np.asarray(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
        return Minimum(placed, energy, bool(np.isfinite(energy) and rest <= LARGEST_REST))


@dataclass(frozen=True)
class Backmapped:
    """Frames of one ensemble with their atoms back.

    positions   nm
    energies    kJ/mol, of frames that did not end in a minimum as well
    failed      which frames did not end in a minimum
    mirrored    which others have an amino acid of the other hand than the conformers
    """

    positions: Float64[np.ndarray, "frame atom 3"]
    energies: Float64[np.ndarray, "frame"]
    failed: Bool[np.ndarray, "frame"]
    mirrored: Bool[np.ndarray, "frame"]
    weights: Float[np.ndarray, "frame"]
    blocks: Int[np.ndarray, "frame"]

    @property
    def kept(self) -> Bool[np.ndarray, "frame"]:
        """The frames whose energies count."""
        return ~self.failed & ~self.mirrored


def backmap(
    sample: Sample,
    conformers: Conformers,
    topology: mdtraj.Topology,
    minimiser: Minimiser,
    progress: Callable[[int], None] | None = None,
) -> Backmapped:
    """Rebuild and minimise every frame of a sample of beads.

    topology   of the conformers' atoms: tells amino acids, whose hand must be that of most conformers
    progress   called with the number of frames that are done
    """
    minima = []
    for number, beads in enumerate(sample.positions, 1):
        minima.append(minimiser(conformers.around(beads)))
        if progress is not None:
            progress(number)
    positions = np.stack([one.positions for one in minima])
    failed = np.array([not one.found for one in minima])
    mirrored = np.zeros(len(minima), dtype=bool)
    centres = chiral_centres(topology)
    if centres:
        expected = np.sign(handedness(conformers.positions, centres).mean(axis=0))
        mirrored[~failed] = np.any(handedness(positions[~failed], centres) * expected < 0, axis=1)
    energies = np.array([one.energy for one in minima], dtype=np.float64)
    return Backmapped(positions, energies, failed, mirrored, sample.weights, sample.blocks)


def chiral_centres(topology: mdtraj.Topology) -> tuple[tuple[int, int, int, int], ...]:
    """(CA, N, C, CB) of every residue that has all of them: (N−CA)×(C−CA)·(CB−CA) is positive for L."""
    found = []
    for residue in topology.residues:
        named = {atom.name: atom.index for atom in residue.atoms}
        if {"CA", "N", "C", "CB"} <= named.keys():
            found.append((named["CA"], named["N"], named["C"], named["CB"]))
    return tuple(found)


def judge(
    reference: Backmapped, model: Backmapped, temperature_K: float, seed: int, n_resamples: int = 200
) -> tuple[Judged, ...]:
    """Shift of the mean, Wasserstein distance with its floor, ratio of widths.

    Energies are of frames that are kept; errors are resampled in blocks of both. Raises TooFewFrames.
    """
    left, right = _Energies.of(reference, "the reference"), _Energies.of(model, "the model")
    distance = transport(left.values, right.values)

    def estimate(statistic: Callable[[np.ndarray, np.ndarray], float], unit: str, label: str) -> Estimate:
        def resampled(one: np.ndarray, other: np.ndarray) -> float:
            return statistic(left.weights * one[left.blocks], right.weights * other[right.blocks])

        error = bootstrap_error(resampled, (left.n_blocks, right.n_blocks), seed, label, n_resamples)
        return Estimate(statistic(left.weights, right.weights), error, float(right.n_blocks), unit, label)

    def shift(one: np.ndarray, other: np.ndarray) -> float:
        means = np.average(left.values, weights=one), np.average(right.values, weights=other)
        return float(means[1] - means[0]) / kT(temperature_K)

    def ratio(one: np.ndarray, other: np.ndarray) -> float:
        return width(right.values, other) / width(left.values, one)

    floor = halves_floor(left.values, left.weights, left.blocks, effective_frames(right.weights), seed)
    return (
        Judged(estimate(shift, "kT", "backmapped energy, shift of the mean"), None),
        Judged(estimate(distance, "kJ/mol", "backmapped energy, Wasserstein distance"), floor),
        Judged(estimate(ratio, "1", "backmapped energy, width, model over reference"), None),
    )


def lost_shares(model: Backmapped) -> tuple[Judged, ...]:
    """The shares of a model's frames whose energies do not count, by reason. Raises TooFewFrames."""
    return tuple(
        Judged(share_estimate(lost, model.blocks, f"backmapped frames, {why}", model.weights), None)
        for why, lost in (("wrong-handed", model.mirrored), ("not minimised", model.failed))
    )


def halves_floor(
    values: Float[np.ndarray, "frame"],
    weights: Float[np.ndarray, "frame"],
    blocks: Int[np.ndarray, "frame"],
    n_model: float,
    seed: int,
) -> Floor:
    """The Wasserstein distance of two halves of one sample, cut at random between blocks, at the sizes at hand.

    blocks    0, 1, 2, ..., each with frames
    n_model   frames of the other sample
    The distance of two samples of one density goes as √(1/n + 1/m), and is scaled from the halves to n of the sample
    and m = ``n_model``. Raises TooFewFrames.
    """
    n_blocks = int(blocks.max(initial=-1)) + 1
    if n_blocks < 2:
        raise TooFewFrames(
            "the floor of backmapped energies", f"{n_blocks} blocks", "give longer trajectories or shorter blocks"
        )
    random = stream(seed, "halves of the reference")
    found = []
    for _ in range(HALVES):
        first = (random.permutation(n_blocks) < n_blocks // 2)[blocks]
        halves = values[first], values[~first]
        own = weights[first], weights[~first]
        sizes = 1 / effective_frames(own[0]) + 1 / effective_frames(own[1])
        wanted = 1 / effective_frames(weights) + 1 / n_model
        found.append(transport(*halves)(*own) * np.sqrt(wanted / sizes))
    return Floor(float(np.mean(found)), float(np.std(found, ddof=1)), HALVES)


@dataclass(frozen=True)
class _Energies:
    """The energies that count, with blocks numbered anew."""

    values: Float64[np.ndarray, "frame"]
    weights: Float[np.ndarray, "frame"]
    blocks: Int[np.ndarray, "frame"]

    @property
    def n_blocks(self) -> int:
        return int(self.blocks.max()) + 1

    @staticmethod
    def of(found: Backmapped, name: str) -> "_Energies":
        kept: Any = found.kept
        if not kept.any():
            raise TooFewFrames(
                f"{ASKED} of {name}",
                f"none of {len(kept)}: {int(found.failed.sum())} were not minimised and {int(found.mirrored.sum())} "
                "are wrong-handed",
                "look at the bond lengths of the ensemble",
            )
        _, blocks = np.unique(found.blocks[kept], return_inverse=True)
        return _Energies(found.energies[kept], found.weights[kept], blocks)
