"""What stage kernel finds out about a learnt kernel: on held-out draws before labels are made, and on all labels after.

kernel.json, of each molecule, ``judged``   identities of the score, denoising, what labels are worth; on held-out draws
judged/<molecule>/<shard>.npz               counts of a shard over φ and ψ; a function of the shard alone
surfaces.npz, drawn.json                    their sums, what the kernel does to the free energy, labels that failed
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_cg.errors import TooManyFailures
from hpc_cg.files import read_arrays, write_arrays, write_json

if TYPE_CHECKING:
    from hpc_cg.analysis.distortion import SurfaceSums
    from hpc_cg.beads import BeadSystem
    from hpc_cg.frames import BeadFrames
    from hpc_cg.kernels.control import Judged, Labels
    from hpc_cg.kernels.density import Draw
    from hpc_cg.kernels.reverse import ReverseKernel
    from hpc_cg.kernels.transition import TransitionKernel
    from hpc_cg.stages.kernel import KernelConfig
    from hpc_cg.store.layout import ShardFrames, StoreSpec

DRAWN, SURFACES = "drawn.json", "surfaces.npz"
DOUBT = 3.0
"""Standard deviations by which failures among a sample exceed the budget where no sample's luck explains them."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """Frames, the chain that was drawn from them, and its labels."""

    condition: "BeadFrames"
    links: "Sequence[Draw]"
    labels: "Labels"

    @property
    def weights(self) -> np.ndarray:
        """Of the frames, 0 where the label failed."""
        return np.where(self.labels.failed, 0.0, self.condition.weights).astype(np.float64)

    @property
    def n_failed(self) -> int:
        """Of the frames that count."""
        return int(np.count_nonzero(self.labels.failed & (self.condition.weights > 0)))


def choose(
    kernel: "ReverseKernel | TransitionKernel", train: Drawn, held_out: Drawn, config: "KernelConfig"
) -> "tuple[tuple[Judged, ...], dict[str, Any]]":
    """The choices of control variates, the last of which is used, and what the stage's record says of them.

    Raises TooManyFailures where a sample shows that more labels will fail than may.
    """
    from hpc_cg.kernels import control

    refuse_failing(kernel, (train, held_out), config.failure_budget)
    fitted, unseen = (side.labels.moments(side.condition.weights) for side in (train, held_out))
    choices = control.judge(fitted, unseen, config.ridge)
    best = choices[-1]
    return choices, {
        "mixing": None,
        "controls": best.controls.matrices.tolist(),
        "label_mean_square": {"train": best.train, "held_out": best.held_out},
        "choices": [{"used": one.used, "train": one.train, "held_out": one.held_out} for one in choices],
    }


def of_draws(
    kernel: "ReverseKernel",
    system: "BeadSystem",
    train: Drawn,
    held_out: Drawn,
    choices: "Sequence[Judged]",
    ridge: float,
) -> dict[str, Any]:
    """What held-out draws say of a kernel, as JSON holds it.

    choices   of control variates, as ``control.judge`` gave them
    """
    from hpc_cg.analysis.denoising import DenoisingSums
    from hpc_cg.analysis.identities import ScoreSums

    *before, last = held_out.links
    clean = held_out.condition.positions
    condition = before[-1].positions.cpu().numpy() if before else clean
    score, drawn = (values.double().cpu().numpy() for values in (last.score, last.positions))
    sums = ScoreSums.of(score, drawn, condition, kernel.density.centred, held_out.weights)
    virial = sums.virial
    return {
        "draws": len(clean),
        "failed": held_out.n_failed,
        "beyond": _beyond(kernel, held_out),
        "identities": {
            "dimension": sums.dimension,
            "misfit": sums.misfit,
            "virial": virial.value,
            "virial_error": virial.error,
        },
        "denoising": [
            asdict(row) for row in DenoisingSums.of(system, clean, condition, drawn, held_out.weights).table()
        ],
        "labels": worth(kernel, train, held_out, choices, ridge),
    }


def worth(
    kernel: "ReverseKernel", train: Drawn, held_out: Drawn, choices: "Sequence[Judged]", ridge: float
) -> dict[str, Any]:
    """How many labels of the noise kernel at the same σ a label is worth: ratios of mean squares, on held-out frames.

    noise          mean square of kT ∇ log N, which is (kT/σ)² per frame, bead and axis, times (n − 1)/n where labels of
                   the kernel have no mean over the beads: then those of noise are taken without it too
    noise+forces   of the same with the mapped forces mixed in by the W of least mean square, averaged over the noise
                   exactly; None where the kernel uses no forces
    choices        mean square of the label with each choice of control variates, and both ratios
    """
    from hpc_cg.analysis.identities import effective_labels

    n = train.condition.positions.shape[1]
    keep = np.eye(n) - (1 / n if kernel.density.centred else 0.0)
    noise = _noise_mean_square(kernel, keep)
    mixed = None
    if kernel.with_forces:
        moments = [_second_moment(side) for side in (train, held_out)]
        mixed = _noise_mean_square(kernel, keep, moments, ridge)
    return {
        "noise": noise,
        "noise+forces": mixed,
        "choices": [
            {
                "used": one.used,
                "held_out": one.held_out,
                "against_noise": effective_labels(one.held_out, noise),
                "against_noise+forces": None if mixed is None else effective_labels(one.held_out, mixed),
            }
            for one in choices
        ],
    }


def _second_moment(side: Drawn) -> np.ndarray:
    from hpc_cg.mapping.moments import ForceMoments

    return ForceMoments.of(side.condition.forces, side.weights).mean


def _noise_mean_square(
    kernel: "ReverseKernel", keep: np.ndarray, moments: Sequence[np.ndarray] = (), ridge: float = 0.0
) -> float:
    """Of labels of the noise kernel per frame, bead and axis, (kJ/mol/nm)².

    keep      projects onto what labels can be
    moments   second moments of the mapped forces, to fit W and to judge it; none for noise alone
    """
    from hpc_cg.kernels.mixing import optimal_mixing
    from hpc_cg.units import kT

    noise = (kT(kernel.temperature_K) / kernel.sigma_nm) ** 2
    if not moments:
        return float(noise * np.trace(keep) / len(keep))
    train, held_out = (keep @ moment @ keep for moment in moments)
    w = optimal_mixing(train, kernel.sigma_nm, kernel.temperature_K, ridge)
    rest = (np.eye(len(keep)) - w) @ keep
    return float(np.trace(w @ held_out @ w.T + noise * rest @ rest.T) / len(keep))


def refuse_failing(kernel: "ReverseKernel | TransitionKernel", sides: Sequence[Drawn], budget: float) -> None:
    """Raise TooManyFailures where a sample shows that more labels fail than may, before all are drawn."""
    n_frames = sum(int(np.count_nonzero(side.condition.weights > 0)) for side in sides)
    n_failed = sum(side.n_failed for side in sides)
    if n_failed > budget * n_frames + DOUBT * (budget * n_frames) ** 0.5:
        beyond = sum(_beyond(kernel, side) or 0 for side in sides)
        why = f"; {beyond} noised frames lie out of reach of those that the kernel was fitted on" if beyond else ""
        raise _too_many(budget, n_frames, f"{n_failed} in a sample{why}")


def _beyond(kernel: "ReverseKernel | TransitionKernel", side: Drawn) -> int | None:
    """Frames whose condition is out of the kernel's reach; None where that is not known."""
    if kernel.reach is None or len(side.links) < 2:
        return None
    inside = kernel.reach.holds(side.links[-2].positions).cpu().numpy()
    return int(np.count_nonzero(~inside & (side.condition.weights > 0)))


def refuse_failed(molecules: Mapping[str, Mapping[str, Any]], budget: float) -> None:
    """Raise TooManyFailures where more labels failed than may."""
    n_frames, n_failed = (sum(found[of] for found in molecules.values()) for of in ("frames", "failed"))
    if n_failed > budget * n_frames:
        name, worst = next((name, row) for name, found in molecules.items() for row in found["shards"])
        where = f"the first in shard {worst['shard']} of {name}: {worst['failed']} of {worst['frames']}"
        raise _too_many(budget, n_frames, f"{n_failed}, {where}")


def _too_many(budget: float, n_frames: int, found: str) -> TooManyFailures:
    return TooManyFailures(
        f"at most {budget:.2%} of {n_frames} frames without a label",
        found,
        "fit the kernel longer or to more frames, or raise kernel.failure_budget; see the stage kernel in the report",
    )


def keep_surface(
    folder: Path,
    source: "StoreSpec",
    spec: "StoreSpec",
    shard: int,
    content: "ShardFrames",
    sigma_nm: float,
    every: int,
) -> "SurfaceSums":
    """Count the frames of a labelled shard over the landscapes of its molecule, and keep that beside the store.

    every   the frames to train on are there so often
    """
    from hpc_cg.analysis.distortion import SurfaceSums
    from hpc_cg.randomness import stream
    from hpc_cg.store.dataset import held_out

    clean = content.arrays["positions"].astype(np.float32, copy=False)
    noise = stream(spec.seed, "noise to judge by", shard).standard_normal(clean.shape, dtype=np.float32)
    frames = {
        "clean": clean,
        "noised": clean + np.float32(sigma_nm) * noise,
        "drawn": clean + content.arrays["noise"].astype(np.float32, copy=False),
    }
    copies = np.where(held_out(content.segment, content.frame_index, *source.held_out), 1, every)
    found = SurfaceSums.of(spec.system, frames, content.weights, copies)
    write_arrays(_place(folder, spec, shard), counts=found.counts, sizes=found.sizes, spec=np.asarray(spec.digest))
    return found


def _place(folder: Path, spec: "StoreSpec", shard: int) -> Path:
    return folder / "judged" / spec.molecule / f"{shard:06d}.npz"


def put_together(
    folder: Path, prepared: Path, stores: "Sequence[tuple[StoreSpec, StoreSpec]]", sigma_nm: float, every: int
) -> None:
    """Add up over the shards, in their order: labels that failed, and of a learnt kernel (σ above 0) the landscapes.

    A shard is read again only where its counts are not there.
    """
    from hpc_cg.store import layout, writer

    records, arrays = {}, {}
    for source, spec in stores:
        before, after = (
            writer.committed(where, of) for where, of in ((prepared, source), (folder / layout.STORE, spec))
        )
        rows = [
            {"shard": shard, "frames": commit.n_good, "failed": commit.n_good - after[shard].n_good}
            for shard, commit in before.items()
        ]
        record: dict[str, Any] = {
            "frames": sum(row["frames"] for row in rows),
            "failed": sum(row["failed"] for row in rows),
            "shards": [row for row in rows if row["failed"]],
        }
        if sigma_nm and record["failed"] < record["frames"]:
            total = _total(folder, source, spec, sigma_nm, every)
            record["surfaces"] = [asdict(row) for row in total.judge(spec.system, spec.seed)]
            for name in ("clean", "noised", "drawn"):
                surface = total.surface(spec.system, name)
                if surface is not None:
                    arrays[f"{spec.molecule}_{name}"] = surface
        records[spec.molecule] = record
    if sigma_nm:
        write_arrays(folder / SURFACES, **arrays)
    write_json(folder / DRAWN, records)


def _total(folder: Path, source: "StoreSpec", spec: "StoreSpec", sigma_nm: float, every: int) -> "SurfaceSums":
    from hpc_cg.analysis.distortion import SurfaceSums
    from hpc_cg.store import layout
    from hpc_cg.store.dataset import read_shard

    total: SurfaceSums | None = None
    for shard in range(spec.n_shards):
        place = _place(folder, spec, shard)
        kept = read_arrays(place) if place.exists() else {}
        if kept and str(kept["spec"]) == spec.digest:
            found = SurfaceSums(kept["counts"], kept["sizes"])
        else:
            content = read_shard(folder / layout.STORE, spec, shard)
            found = keep_surface(folder, source, spec, shard, content, sigma_nm, every)
        total = found if total is None else total + found
    assert total is not None, "a store has a shard"
    return total
