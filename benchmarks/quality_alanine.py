"""How good the models of alanine dipeptide are: three kernels, three seeds, one table.

    python benchmarks/quality_alanine.py ARCHIVE_FOLDER WORK_FOLDER [--kernels none noise+forces noise] [--seeds 1 2 3]
                                         [--train n_rbf=20 torsion_order=0]

ARCHIVE_FOLDER holds all-atom trajectories (*.h5) and topology.pdb. Each kernel and seed is a study of its own in
WORK_FOLDER, run through ``hpc-cg run all``, so an interrupted run continues. The table gives the mean over seeds, the
standard deviation over seeds, and the floor of the same two sample sizes; every simulated replica counts.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

SIGMA_NM = 0.005
STUDY = """\
[study]
name = "{name}"
temperature_K = 300.0
folder = "{name}"
[prepare]
archive = ["{archive}/*.h5"]
topology = "{archive}/topology.pdb"
molecule = "alanine-dipeptide"
[kernel]
{kernel}
[train]
{train}
seed = {seed}
[simulate]
n_replicas = 96
time_ps = 100.0
seed = {seed}
[aggregate]
[report]
"""
ROWS = (
    "JS divergence φ, ψ",
    "JS divergence φ, ψ, α weight matched",
    "free-energy error φ, ψ",
    "free-energy error φ, ψ, root",
    "basin offset (α against the rest)",
    "bond length, mean Wasserstein distance",
    "bond width, model over reference",
    "replica time lost, mirrored",
    "replica time lost, diverged",
    "share with φ > 0",
)


TRAIN = {"steps": "4000", "learning_rate": "2e-3", "n_rbf": "64"}


def run(folder: Path, archive: Path, kind: str, seed: int, train: dict[str, str]) -> Path | None:
    """Run one study; returns its product folder, or None where it failed."""
    name = f"{kind.replace('+', '-')}-{seed}"
    kernel = f'kind = "{kind}"' + ("" if kind == "none" else f"\nsigma_nm = {SIGMA_NM}")
    path = folder / f"{name}.toml"
    folder.mkdir(parents=True, exist_ok=True)
    settings = "\n".join(f"{key} = {value}" for key, value in train.items())
    text = STUDY.format(name=name, archive=archive.resolve(), kernel=kernel, seed=seed, train=settings)
    path.write_text(text, encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", "from launch.cli import main; main()", "run", "all", str(path)])
    return folder / name if done.returncode == 0 else None


def table(products: dict[int, Path], against: str) -> list[str]:
    """One line per estimate: mean and standard deviation over the seeds, every value, the floor."""
    found: dict[str, list[dict]] = {}
    for product in products.values():
        for row in json.loads((product / "aggregate" / "estimates.json").read_text())["estimates"]:
            if row["against"] == against and row["label"] in ROWS:
                found.setdefault(row["label"], []).append(row)
    lines = []
    for label in ROWS:
        rows = found.get(label, [])
        values = np.array([row["value"] for row in rows])
        if len(values):
            floor = "" if rows[0]["floor"] is None else f"{np.mean([row['floor']['mean'] for row in rows]):.3g}"
            each = " ".join(f"{value:.3g}" for value in values)
            spread = values.std(ddof=1) if len(values) > 1 else float("nan")
            lines.append(f"  {label:<42} {values.mean():>9.4g} ± {spread:<9.2g} {rows[0]['unit']:<5} [{each}] {floor}")
    return lines


def other_figures(products: dict[int, Path]) -> list[str]:
    """Force error, integration along ψ, rates and lost replicas of each seed."""
    lines = []
    for seed, product in products.items():
        train = json.loads((product / "train" / "SEALED").read_text())["summary"]
        simulate = json.loads((product / "simulate" / "SEALED").read_text())["summary"]
        forces = json.loads((product / "aggregate" / "estimates.json").read_text())["integration"]
        integrated = ", ".join(
            f"{name} {x['difference_kT']:+.2f} ± {x['error_kT']:.2f} (histogram {x['histogram_kT']:+.2f})"
            for name, x in forces.items()
        )
        lines.append(
            f"  seed {seed}: force error {train['residual'] ** 0.5:.1f} (floor {train['floor'] ** 0.5:.1f}) kJ/mol/nm, "
            f"explained of delta {train['explained_delta']:.3f}; {train['frames_per_s']:,.0f} frames/s; "
            f"{simulate['replica_steps_per_s_and_process']:,.0f} replica-steps/s/process; "
            f"lost {simulate['diverged']} + {simulate['mirrored']} mirrored; α→β {integrated} kT"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--kernels", nargs="+", default=["none", "noise+forces", "noise"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--train", nargs="*", default=[], help="settings of [train] as KEY=VALUE")
    arguments = parser.parse_args()
    train = TRAIN | dict(word.split("=", 1) for word in arguments.train)
    products: dict[str, dict[int, Path]] = {kind: {} for kind in arguments.kernels}
    for seed in arguments.seeds:
        for kind in arguments.kernels:
            product = run(arguments.work, arguments.archive, kind, seed, train)
            if product is not None:
                products[kind][seed] = product
    for kind, of_kind in products.items():
        for against in ("clean",) if kind == "none" else ("clean", "noised"):
            print(f"\n{kind} against the {against} reference (mean ± sd over {len(of_kind)} seeds, each, floor)")
            print("\n".join(table(of_kind, against)))
        print("\n".join(other_figures(of_kind)))


if __name__ == "__main__":
    main()
