"""Frames per second of stage prepare beside a bare decode of the same files by mdtraj, which does nothing with them.

The archive is a made-up chain of alanine residues in XTC, TRR and DCD files that fit the page cache: what is timed is
the work of the stage, not a disk. XTC and DCD hold positions alone, of which the Cα atoms are read; TRR holds
positions and forces of all atoms, and is read twice: once to fit the force maps, once to map. Goals: at least 0.8 of
the bare decode on one core, 1.8 times that on two ranks, less than 600 MB for each rank whatever the size of the
archive (``--memory`` prepares TRR archives of 0.2, 2 and 8 GB, which takes minutes and 8 GB of disk).
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mdtraj
import numpy as np

from hpc_cg.stages import prepare
from hpc_cg.stages.progress import Heartbeat
from hpc_cg.stages.study import read_study
from jobs.allocation import team_for

REPEATS, BLOCK = 2, 1000
ATOMS_OF_ALANINE = (("N", "N"), ("H", "H"), ("CA", "C"), ("HA", "H"), ("CB", "C"), ("HB1", "H"), ("HB2", "H"),
                    ("HB3", "H"), ("C", "C"), ("O", "O"))  # fmt: skip
TO_HEAVY = (0, 1, 0, 1, 0, 1, 2, 3, 0, 0)
"""How many places before each atom the heavy atom is that it moves with."""

N_FILES = 4
MEMORY_GB = (0.2, 2.0, 8.0)
MEMORY_LIMIT_MB = 600

STUDY = """
[study]
name = "benchmark"
temperature_K = 300.0
[prepare]
archive = ["*.{suffix}"]
topology = "topology.pdb"
molecule = "chain"
map = "calpha"
forces = {forces}
force_map = "{force_map}"
held_out_block_ps = 10.0
stride_ps = 0.1
"""


def topology_of(n_residues: int) -> mdtraj.Topology:
    """A chain of alanine residues."""
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    for number in range(n_residues):
        residue = topology.add_residue("ALA", chain, number + 1)
        for name, element in ATOMS_OF_ALANINE:
            topology.add_atom(name, mdtraj.element.get_by_symbol(element), residue)
    topology.create_standard_bonds()
    return topology


def compact_chain(n_residues: int) -> np.ndarray:
    """Places of the atoms (atom 3), nm: the backbone goes to and fro through a cube, with bonds of usual lengths."""
    side, number = np.ceil(n_residues ** (1 / 3)), np.arange(n_residues + 1)
    layer, row, column = number // side**2, number // side % side, number % side
    row = np.where(layer % 2, side - 1 - row, row)
    column = np.where((number // side) % 2, side - 1 - column, column)
    lattice = 0.42 * np.stack([layer, row, column], axis=1) + 5.0
    along = np.diff(lattice, axis=0) / 0.42
    across, beyond = np.roll(along, 1, axis=1), np.roll(along, 2, axis=1)
    start = lattice[:-1]
    alpha, carbon = start + 0.14 * along, start + 0.28 * along
    beta = alpha + 0.15 * across
    atoms = (
        start, start + 0.1 * beyond, alpha, alpha - 0.1 * across, beta, beta + 0.1 * across, beta + 0.1 * along,
        beta - 0.1 * along, carbon, carbon + 0.12 * beyond,
    )  # fmt: skip
    return np.stack(atoms, axis=1).reshape(-1, 3).astype(np.float32)


def write_archive(folder: Path, suffix: str, n_residues: int, n_frames: int, force_map: str = "optimal") -> Path:
    """Topology, ``n_frames`` frames in N_FILES files, and the study; returns the study's path."""
    topology = topology_of(n_residues)
    random = np.random.default_rng(1)
    places = compact_chain(n_residues)
    mdtraj.Trajectory(places, topology).save_pdb(str(folder / "topology.pdb"))
    for number in range(N_FILES):
        _write(folder / f"trajectory-{number}.{suffix}", places, n_frames // N_FILES, random)
    text = STUDY.format(suffix=suffix, forces=str(suffix == "trr").lower(), force_map=force_map)
    (folder / "study.toml").write_text(text, encoding="utf-8")
    return folder / "study.toml"


def _write(path: Path, places: np.ndarray, n_frames: int, random: np.random.Generator) -> None:
    """Frames around ``places`` with forces of the usual size, in blocks."""
    box = np.eye(3, dtype=np.float32) * 20
    kinds = {
        "xtc": mdtraj.formats.XTCTrajectoryFile,
        "trr": mdtraj.formats.TRRTrajectoryFile,
        "dcd": mdtraj.formats.DCDTrajectoryFile,
    }
    suffix = path.suffix[1:]
    # one block of noise for all blocks, so that large archives are written quickly
    noise = random.normal(0, 0.01, (BLOCK, *places.shape)).astype(np.float32)
    # hydrogens are bound rigidly, as in most simulations
    number = np.arange(len(places))
    noise = np.ascontiguousarray(noise[:, number - np.array(TO_HEAVY)[number % len(TO_HEAVY)]])
    forces = random.normal(0, 800, noise.shape).astype(np.float32)
    with kinds[suffix](str(path), "w") as file:
        for start in range(0, n_frames, BLOCK):
            n = min(BLOCK, n_frames - start)
            step = np.arange(start, start + n, dtype=np.int32)
            xyz = places + noise[:n]
            time_ps, boxes = step.astype(np.float32) * 0.1, np.tile(box, (n, 1, 1))
            if suffix == "xtc":
                file.write(xyz, time=time_ps, step=step, box=boxes)
            elif suffix == "trr":
                file._write(xyz, time_ps, step, boxes, np.zeros(n, np.float32), np.zeros_like(xyz), forces[:n])
            else:
                lengths, angles = np.full((n, 3), 200.0, np.float32), np.full((n, 3), 90.0, np.float32)
                file.write(xyz * 10, cell_lengths=lengths, cell_angles=angles)


def bare_decode(folder: Path, suffix: str) -> None:
    """Every frame through mdtraj, a block at a time: the Cα positions, or of TRR all positions and forces."""
    topology = mdtraj.load_topology(str(folder / "topology.pdb"))
    chosen = topology.select("name CA")
    for path in sorted(folder.glob(f"*.{suffix}")):
        if suffix == "trr":
            with mdtraj.formats.TRRTrajectoryFile(str(path)) as file:
                while len(file._read(BLOCK, None, get_velocities=False, get_forces=True)[0]):
                    pass
            continue
        for _ in mdtraj.iterload(str(path), chunk=BLOCK, top=topology, atom_indices=chosen):
            pass


def prepare_once(path: Path) -> None:
    """What each rank does on a core of its own: the stage's work, timed; rank 0 prints seconds and MB."""
    study, team = read_study(path), team_for(os.environ)
    _bind(team.share.index)
    study.folder("prepare").mkdir(parents=True, exist_ok=True)
    team.barrier()
    began = time.perf_counter()
    prepare.work(study, team, Heartbeat(study.folder("prepare"), team.share.index))
    team.barrier()
    spent = time.perf_counter() - began
    (path.parent / f"peak-{team.share.index}").write_text(json.dumps(_peak_mb()), encoding="utf-8")
    team.barrier()
    if team.share.index == 0:
        peaks = [json.loads(record.read_text()) for record in path.parent.glob("peak-*")]
        print(json.dumps([spent, max(peaks)]))


def _bind(rank: int) -> None:
    """Give this process one core of its own, as a scheduler does: zarr's threads would use those of others."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})


def _peak_mb() -> float:
    """Most resident memory of this process so far, MB, as a scheduler counts it."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return float(fields["VmHWM"].split()[0]) / 1000


def prepare_seconds(path: Path, mpiexec: str | None, ranks: int, repeats: int = REPEATS) -> tuple[float, float]:
    """Median time of the stage on that many ranks, each time from nothing, and the most memory of a rank, MB."""
    times, peaks = [], []
    for _ in range(repeats):
        shutil.rmtree(path.parent / "run", ignore_errors=True)
        line = [sys.executable, __file__, "--rank-of", str(path)]
        started = [mpiexec, "-n", str(ranks), *line] if mpiexec else line
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        said = subprocess.run(started, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
        spent, peak = json.loads(said.strip().splitlines()[-1])
        times.append(spent)
        peaks.append(peak)
    return statistics.median(times), max(peaks)


def rows(mpiexec: str | None, only: str) -> Iterator[list[str]]:
    """A row for each format and size."""
    for suffix, n_residues, n_frames, force_map in (
        ("xtc", 500, 48_000, "slice"),
        ("dcd", 500, 100_000, "slice"),
        ("trr", 17, 400_000, "optimal"),
        ("trr", 100, 80_000, "optimal"),
        ("trr", 500, 16_000, "uniform"),
    ):
        if only and suffix not in only.split(","):
            continue
        with tempfile.TemporaryDirectory(prefix="hpc-cg-bench-") as name:
            folder = Path(name)
            path = write_archive(folder, suffix, n_residues, n_frames, force_map)
            bare = n_frames / _one_thread(lambda folder=folder, suffix=suffix: bare_decode(folder, suffix))
            one, peak = prepare_seconds(path, None, 1)
            two = prepare_seconds(path, mpiexec, 2)[0] if mpiexec else float("nan")
        words = "positions" if suffix != "trr" else f"forces, {force_map}"
        yield [
            f"{suffix}, {10 * n_residues:,} atoms, {words}",
            f"{bare:,.0f}",
            f"{n_frames / one:,.0f}",
            f"{n_frames / one / bare:.2f}",
            f"{one / two:.2f}",
            f"{peak:.0f}",
        ]


def _one_thread(work: Callable[[], None]) -> float:
    from measure import seconds  # here, for it brings torch, which no rank of prepare needs

    return seconds(work, repeats=REPEATS, at_most_s=10)


def memory(mpiexec: str | None) -> Iterator[list[str]]:
    """Peak memory for archives of growing size."""
    for gigabytes in MEMORY_GB:
        with tempfile.TemporaryDirectory(prefix="hpc-cg-bench-") as name:
            n_frames = int(gigabytes * 1e9 / (24 * 1000))
            path = write_archive(Path(name), "trr", 100, n_frames)
            spent, peak = prepare_seconds(path, mpiexec, 2, repeats=1)
        yield [f"{gigabytes:g} GB, {n_frames:,} frames", f"{n_frames / spent:,.0f}", f"{peak:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank-of", type=Path, metavar="STUDY", help="work as one rank of this study (used by itself)")
    parser.add_argument("--only", default="", help="formats to look at, e.g. trr,dcd")
    parser.add_argument("--memory", action="store_true", help="memory for archives of 0.2 to 8 GB")
    asked = parser.parse_args()
    if asked.rank_of is not None:
        prepare_once(asked.rank_of)
        return
    from measure import print_table

    mpiexec = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
    if asked.memory:
        header = ["TRR archive, 1,000 atoms, 2 ranks", "frames per second", "peak MB of a rank"]
        print_table(f"prepare, limit {MEMORY_LIMIT_MB} MB", header, list(memory(mpiexec)))
        return
    header = ["archive", "bare decode (frames/s)", "prepare, 1 rank", "of bare decode", "2 ranks", "peak MB"]
    print_table("prepare beside a bare decode by mdtraj", header, list(rows(mpiexec, asked.only)))


if __name__ == "__main__":
    main()
