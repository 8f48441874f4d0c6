"""A toy archive with exact forces, and studies on it: five beads that fluctuate as a Gaussian network."""

from pathlib import Path
from typing import Any

import numpy as np

from hpc_cg.units import kT

TEMPERATURE_K = 300.0
BEADS = ("C", "N", "CA", "C", "N")
PLACES = np.array([(0, 0, 0), (0.13, 0.02, 0), (0.2, 0.14, 0.02), (0.34, 0.13, 0.06), (0.42, 0.24, 0.05)])


def stiffness() -> np.ndarray:
    """Springs between all beads, kJ/mol/nm²: positive apart from a shift of the whole."""
    spring = np.random.default_rng(3).uniform(2e4, 6e4, (5, 5))
    spring = np.triu(spring, 1) + np.triu(spring, 1).T
    return np.diag(spring.sum(1)) - spring


def frames(n_frames: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions (nm) and forces −K δ plus noise (kJ/mol/nm) of independent frames."""
    random = np.random.default_rng(seed)
    values, vectors = np.linalg.eigh(stiffness())
    spread = np.sqrt(kT(TEMPERATURE_K) / values[1:])
    shift = np.einsum("bm,m,fma->fba", vectors[:, 1:], spread, random.normal(size=(n_frames, 4, 3)))
    forces = -stiffness() @ shift + random.normal(0, 100, (n_frames, 5, 3))
    return PLACES + shift, forces


def write_archive(folder: Path, n_segments: int = 3, n_frames: int = 400) -> Path:
    """An archive of npy pairs, already mapped."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(n_segments):
        positions, forces = frames(n_frames + 10 * number, seed=number)
        np.save(folder / f"run{number}_coordinates.npy", positions)
        np.save(folder / f"run{number}_forces.npy", forces)
    return folder


TABLES: dict[str, dict[str, Any]] = {
    "study": {"name": "toy", "temperature_K": TEMPERATURE_K},
    "prepare": {
        "archive": ["archive"],
        "molecule": "toy",
        "map": "identity",
        "beads": list(BEADS),
        "stride_ps": 1.0,
        "length_unit": "nm",
        "force_unit": "kJ/mol/nm",
        "held_out_block_ps": 20.0,
        "held_out_period": 4,
        "shard_frames": 128,
    },
    "kernel": {"kind": "noise+forces", "sigma_nm": 0.003},
    "train": {
        "steps": 12,
        "batch_size": 32,
        "warmup_steps": 2,
        "validate_every": 4,
        "checkpoint_every": 5,
        "n_filters": 16,
        "terminal_widths": [16],
    },
    "simulate": {
        "n_replicas": 6,
        "group_size": 3,
        "time_ps": 1.6,
        "block_ps": 0.8,
        "save_ps": 0.04,
        "timestep_ps": 0.002,
    },
    "aggregate": {"bins": 12, "resamples": 10, "discard_fraction": 0.25},
    "report": {},
}


def write_study(folder: Path, archive: bool = True, **changes: dict[str, Any]) -> Path:
    """A study on the toy archive; ``changes`` holds settings per table."""
    if archive:
        write_archive(folder / "archive")
    tables = {name: {**table, **changes.get(name, {})} for name, table in TABLES.items()}
    path = folder / "study.toml"
    path.write_text("\n".join(_table(name, table) for name, table in tables.items()), encoding="utf-8")
    return path


LABELS = """
[[axes]]
name = "labels"
values = [
  { label = "forces", kernel.kind = "none" },
  { label = "noise", kernel.kind = "noise", kernel.sigma_nm = 0.003 },
]
"""
SEEDS = """
[[axes]]
name = "repeat"
values = [{ label = "1", train.seed = 1 }, { label = "2", train.seed = 2, train.steps = 3 }]
"""
HEAD = '[campaign]\nname = "toy"\nrepeats = "repeat"\n'


def write_campaign(folder: Path, axes: str = LABELS + SEEDS, head: str = HEAD) -> Path:
    """A campaign of four members on the toy archive, which is not written."""
    tables = {name: dict(table) for name, table in TABLES.items() if name != "kernel"}
    del tables["study"]["name"]
    path = folder / "campaign.toml"
    path.write_text(head + axes + "\n".join(_table(name, table) for name, table in tables.items()), encoding="utf-8")
    return path


def _table(name: str, table: dict[str, Any]) -> str:
    def value(x: Any) -> str:
        if isinstance(x, bool):
            return str(x).lower()
        if isinstance(x, dict):
            return "{ " + ", ".join(f"{key} = {value(y)}" for key, y in x.items()) + " }"
        if isinstance(x, list):
            return "[" + ", ".join(value(y) for y in x) + "]"
        return f'"{x}"' if isinstance(x, str) else repr(x)

    return f"[{name}]\n" + "".join(f"{key} = {value(x)}\n" for key, x in table.items())
