"""Frames per second of stage prepare, beside a bare read of the same files and beside the map alone.

The archive is alanine dipeptide (22 atoms, positions and forces) with made-up motion, in HDF5 files that fit the page
cache: what is timed is the work of the stage, not a disk. The stage reads every frame twice (once to fit the maps, once
to map), so half the speed of the bare read is the most that one process could reach.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import mdtraj
import numpy as np
from measure import print_table, seconds

from hpc_cg.archive import readers, reference
from hpc_cg.archive.index import Segment
from hpc_cg.mapping.maps import CGMap
from hpc_cg.stages import prepare
from hpc_cg.stages.progress import Heartbeat
from hpc_cg.stages.study import read_study
from jobs.allocation import mpi_team

N_FILES, FRAMES_PER_FILE, REPEATS = 4, 25_000, 3
BLOCK = 10_000
"""Frames that the bare read asks for at once."""

STUDY = """
[study]
name = "benchmark"
temperature_K = 300.0
[prepare]
archive = ["*.h5"]
topology = "topology.pdb"
molecule = "alanine-dipeptide"
"""


def write_archive(folder: Path) -> Path:
    """The topology, the files and the study; returns the study's path."""
    reference.write_topology(folder / "topology.pdb")
    relaxed = mdtraj.load(str(folder / "topology.pdb")).xyz[0]
    random = np.random.default_rng(1)
    for number in range(N_FILES):
        shape = (FRAMES_PER_FILE, *relaxed.shape)
        with h5py.File(folder / f"trajectory-{number}.h5", "w") as file:
            file["positions"] = relaxed + random.normal(0, 0.005, shape).astype(np.float32)
            file["forces"] = random.normal(0, 800, shape).astype(np.float32)
            file.attrs.update({"stride_ps": 0.2, "temperature_K": 300.0, "units": "nm, ps, kJ/mol/nm"})
    (folder / "study.toml").write_text(STUDY, encoding="utf-8")
    return folder / "study.toml"


def bare_read(segments: tuple[Segment, ...]) -> None:
    """Positions and forces of every file through h5py, a block of frames at a time."""
    for segment in segments:
        with h5py.File(segment.path, "r") as file:
            for start in range(0, segment.n_frames, BLOCK):
                for name in ("positions", "forces"):
                    file[name][start : start + BLOCK]


def prepare_once(path: Path) -> None:
    """What each rank does: the stage's work, timed between barriers; rank 0 prints the seconds."""
    study, team = read_study(path), mpi_team()
    study.folder("prepare").mkdir(parents=True, exist_ok=True)
    team.barrier()
    began = time.perf_counter()
    prepare.work(study, team, Heartbeat(study.folder("prepare"), team.share.index))
    team.barrier()
    if team.share.index == 0:
        print(time.perf_counter() - began)


def prepare_seconds(path: Path, mpiexec: str, ranks: int) -> float:
    """Median time of the stage on that many ranks, each time from nothing."""
    times = []
    for _ in range(REPEATS):
        shutil.rmtree(path.parent / "run", ignore_errors=True)
        line = [mpiexec, "-n", str(ranks), sys.executable, __file__, "--rank-of", str(path)]
        times.append(float(subprocess.run(line, capture_output=True, text=True, check=True).stdout))
    return statistics.median(times)


def rows_of(path: Path) -> list[list[str]]:
    study = read_study(path)
    segments = prepare.scan(study)
    n_frames = sum(segment.n_frames for segment in segments)
    bare = seconds(lambda: bare_read(segments))
    spec, coordinate = prepare.plan(study, segments)
    cg_map = CGMap(coordinate, coordinate, spec.system)
    frames = readers.read(segments[0], 0, BLOCK)
    assert frames.forces is not None, "the archive has forces"
    forces = frames.forces
    mapping = seconds(lambda: (cg_map.apply_positions(frames.positions), cg_map.apply_forces(forces)))
    found = [("bare read (h5py)", n_frames / bare), ("mapping alone", frames.n_frames / mapping)]
    mpiexec = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
    if mpiexec is not None:
        found += [
            (f"prepare, {n} rank{'s' if n > 1 else ''}", n_frames / prepare_seconds(path, mpiexec, n)) for n in (1, 2)
        ]
    return [[name, f"{rate:,.0f}", f"{rate / found[0][1]:.2f}"] for name, rate in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank-of", type=Path, metavar="STUDY", help="work as one rank of this study (used by itself)")
    asked: Path | None = parser.parse_args().rank_of
    if asked is not None:
        prepare_once(asked)
        return
    with tempfile.TemporaryDirectory(prefix="hpc-cg-bench-") as folder:
        rows = rows_of(write_archive(Path(folder)))
    title = f"prepare, {N_FILES * FRAMES_PER_FILE:,} frames of 22 atoms"
    print_table(title, ["stage", "frames per second", "of bare read"], rows)


if __name__ == "__main__":
    main()
