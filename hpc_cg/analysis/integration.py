"""Do the forces know the free energy? Thermodynamic integration along ψ, beside the histogram of ψ.

Turning everything beyond the bond Cα→C about it changes ψ and nothing else that the bonded geometry fixes, so
the mean force along ψ is the mean torque about that bond (Kirkwood 1935, doi 10.1063/1.1749657; for a
dihedral no Jacobian enters, den Otter and Briels 1998, doi 10.1063/1.477019):
  τ = Σ_b (u × (r_b - r_C)) · F_b,   A(ψ₂) - A(ψ₁) = -∫ <τ>_ψ dψ,   u the unit vector Cα→C.
Mapped forces that are right give the same difference as the frames they came with. A network's forces on the
same frames give the difference that it will show in a simulation, without the simulation.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from hpc_cg.analysis.estimate import bootstrap_error
from hpc_cg.analysis.features import dihedral, one_backbone
from hpc_cg.beads import BeadSystem
from hpc_cg.errors import TooFewFrames
from hpc_cg.units import kT

RANGE_DEG = (-20.0, 150.0)
"""From the α basin of alanine over the barrier into the β basin."""


@dataclass(frozen=True)
class PsiIntegration:
    """Free energy along ψ from forces and from the histogram of the same frames; all free energies in kT.

    centres                  rad, bin centres in ψ
    mean_force               kJ/mol/rad, mean torque in each bin; mean_force_error its standard error
    free_energy              integrated, zero in the first bin; free_energy_error its standard error
    histogram                -ln of the bin's weight, zero in the first bin
    difference_kT            last bin minus first bin from the forces, histogram_kT the same from the
                             histogram
    torque_noise             kJ/mol/rad, standard deviation of the torque within a bin
    """

    difference_kT: float
    error_kT: float
    histogram_kT: float
    histogram_error_kT: float
    centres: Float[np.ndarray, "bin"]
    mean_force: Float[np.ndarray, "bin"]
    mean_force_error: Float[np.ndarray, "bin"]
    free_energy: Float[np.ndarray, "bin"]
    free_energy_error: Float[np.ndarray, "bin"]
    histogram: Float[np.ndarray, "bin"]
    torque_noise: float


def psi_torque(
    positions: Float[np.ndarray, "frame bead 3"],
    forces: Float[np.ndarray, "frame bead 3"],
    system: BeadSystem,
) -> Float[np.ndarray, "frame"]:
    """The force along ψ in each frame, kJ/mol/rad; raises UnknownBeads."""
    psi = one_backbone(system).psi
    alpha, carbon = psi[1], psi[2]
    moved = _beyond(system, alpha, carbon)
    r = positions.astype(np.float64)
    axis = r[:, carbon] - r[:, alpha]
    axis = axis / np.linalg.norm(axis, axis=-1, keepdims=True)
    turn = np.cross(axis[:, None], r[:, moved] - r[:, [carbon]])
    return np.sum(turn * forces[:, moved], axis=(1, 2))


def psi_integration(
    positions: Float[np.ndarray, "frame bead 3"],
    forces: Float[np.ndarray, "frame bead 3"],
    system: BeadSystem,
    temperature_K: float,
    weights: Float[np.ndarray, "frame"] | None = None,
    blocks: Int[np.ndarray, "frame"] | None = None,
    bin_deg: float = 5.0,
    range_deg: tuple[float, float] = RANGE_DEG,
) -> PsiIntegration:
    """Free-energy difference along ψ from the forces and from the histogram of the same frames.

    positions, forces   nm, kJ/mol/nm: mapped forces, or those of a force field on the same frames
    blocks              block of each frame, resampled for the histogram's error; without it frames count as
                        independent there, as they do for the torque, whose noise is gone by the next frame
    Raises UnknownBeads; TooFewFrames when a bin holds fewer than two frames.
    """
    psi = dihedral(positions, one_backbone(system).psi)
    torque = psi_torque(positions, forces, system)
    w = np.ones(len(psi)) if weights is None else weights
    n_bins = round((range_deg[1] - range_deg[0]) / bin_deg)
    edges = np.radians(np.linspace(*range_deg, n_bins + 1))
    bins = np.digitize(psi, edges) - 1
    inside = (bins >= 0) & (bins < n_bins)
    bins, torque, w = bins[inside], torque[inside], w[inside]
    _check_filled(np.bincount(bins[w > 0], minlength=n_bins), edges)

    mass = np.bincount(bins, weights=w, minlength=n_bins)
    mean = np.bincount(bins, weights=w * torque, minlength=n_bins) / mass
    residual = torque - mean[bins]
    variance = np.bincount(bins, weights=w**2 * residual**2, minlength=n_bins) / mass**2
    surface, surface_error = _integrate(mean, variance, edges[1] - edges[0], kT(temperature_K))
    histogram = -np.log(mass / mass[0])
    return PsiIntegration(
        difference_kT=float(surface[-1]),
        error_kT=float(surface_error[-1]),
        histogram_kT=float(histogram[-1]),
        histogram_error_kT=_histogram_error(bins, w, n_bins, None if blocks is None else blocks[inside]),
        centres=(edges[1:] + edges[:-1]) / 2,
        mean_force=mean,
        mean_force_error=np.sqrt(variance),
        free_energy=surface,
        free_energy_error=surface_error,
        histogram=histogram,
        torque_noise=float(np.sqrt(np.average(residual**2, weights=w))),
    )


def _beyond(system: BeadSystem, alpha: int, carbon: int) -> list[int]:
    """Beads that a turn about alpha → carbon moves: reached from carbon without crossing that bond."""
    reached, frontier = {alpha, carbon}, [carbon]
    while frontier:
        bead = frontier.pop()
        ends = {b if a == bead else a for a, b in system.bonds if bead in (a, b)} - reached
        reached |= ends
        frontier += ends
    return sorted(reached - {alpha, carbon})


def _integrate(
    mean_force: np.ndarray, variance: np.ndarray, spacing: float, thermal: float
) -> tuple[np.ndarray, np.ndarray]:
    """Trapezoid rule from bin centre to bin centre, and its error from independent bins; both in kT."""
    n_bins = len(mean_force)
    rule = np.tril(np.ones((n_bins, n_bins)))
    rule[:, 0] = 0.5
    rule[np.diag_indices(n_bins)] = 0.5
    rule[0] = 0.0
    rule *= spacing / thermal
    return -rule @ mean_force, np.sqrt(rule**2 @ variance)


def _histogram_error(bins: np.ndarray, weights: np.ndarray, n_bins: int, blocks: np.ndarray | None) -> float:
    first, last = bins == 0, bins == n_bins - 1
    if blocks is None:
        parts = [np.sum(weights[side] ** 2) / np.sum(weights[side]) ** 2 for side in (first, last)]
        return float(np.sqrt(sum(parts)))
    _, blocks = np.unique(blocks, return_inverse=True)
    n_blocks = int(blocks.max()) + 1
    per_block = [np.bincount(blocks[side], weights=weights[side], minlength=n_blocks) for side in (first, last)]
    total = [counts.sum() for counts in per_block]
    # first order in the counts: no resampled block set can make an end bin empty
    return bootstrap_error(
        lambda draw: float(per_block[1] @ draw / total[1] - per_block[0] @ draw / total[0]),
        [n_blocks],
        seed=0,
        purpose="histogram of psi",
    )


def _check_filled(counts: np.ndarray, edges: np.ndarray) -> None:
    if counts.min() < 2:
        low, high = np.degrees(edges[[counts.argmin(), counts.argmin() + 1]])
        raise TooFewFrames(
            "the mean force along ψ",
            f"{counts.min()} frames with ψ in {low:.0f}..{high:.0f}°",
            "use more frames or wider bins",
        )
