"""What preparing an archive will cost, before it is done: a few files are taken through every pass, and scaled up.

The passes run for real, on one core, on some of the files, in a folder that is removed again. Frames of the other files
are counted by their bytes. Nothing of the study is touched.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from hpc_cg.archive.catalogue import Source
from hpc_cg.archive.listing import files_of
from hpc_cg.archive.trail import Trail
from hpc_cg.errors import FolderNotWritable
from hpc_cg.files import read_json
from hpc_cg.share import Alone
from hpc_cg.stages import indexing, molecules, passes, planning
from hpc_cg.stages.molecules import Molecule
from hpc_cg.stages.progress import Heartbeat
from hpc_cg.stages.study import Study
from hpc_cg.store.layout import choose_shards
from launch.words import size

SAMPLED_FILES = 4
SAMPLED_FRAMES = 4096
COLD_BYTES = 256 << 20


@dataclass(frozen=True)
class Cost:
    """What preparing one molecule takes, on one core unless said otherwise.

    n_sampled     files that were tried
    n_unreadable  of these
    n_frames      counted in the sampled files that can be read, scaled by bytes for the others
    seconds       of each pass over the whole archive
    serial        seconds that one rank works alone while the others wait
    decode        seconds of ``seconds`` that reading and decoding takes, from memory
    read_bytes    that all passes together read
    disk_rate     bytes per second of one reader, file not in memory
    """

    molecule: str
    n_files: int
    n_sampled: int
    n_unreadable: int
    n_frames: int
    n_atoms: int
    n_beads: int
    archive_bytes: int
    seconds: dict[str, float]
    serial: float
    decode: float
    read_bytes: float
    disk_rate: float
    n_shards: int
    store_files: int
    store_bytes: float

    @property
    def core_seconds(self) -> float:
        return sum(self.seconds.values())

    def wall_seconds(self, n_ranks: int, bandwidth: float | None) -> float:
        """Time on so many ranks; ``bandwidth`` of the file system for all together, bytes per second."""
        work = self.core_seconds / n_ranks
        return self.serial + (work if bandwidth is None else max(work, self.read_bytes / bandwidth))

    def limit(self, n_ranks: int, bandwidth: float | None) -> str:
        """What the time goes into: "disk", "decode", "compute" (moments, map, compression, writing) or "one rank"."""
        parts = {
            "decode": self.decode / n_ranks,
            "compute": (self.core_seconds - self.decode) / n_ranks,
            "one rank": self.serial,
        }
        largest = max(parts, key=lambda name: parts[name])
        if bandwidth is not None and self.read_bytes / bandwidth > self.core_seconds / n_ranks + self.serial:
            return "disk"
        return largest


def costs(study: Study) -> tuple[Cost, ...]:
    """Calibrate on some files of each molecule of a study; raises what prepare would raise on them."""
    return tuple(_cost(study, molecule) for molecule in molecules.molecules_of(study.tables["prepare"]))


def _cost(study: Study, molecule: Molecule) -> Cost:
    sources = molecules.find_sources(study, molecule)
    step = -(-len(sources) // SAMPLED_FILES)
    chosen = [source.path for source in sources[::step]]
    sizes = {source.path: _bytes_of(source) for source in sources}
    archive_bytes = sum(sizes.values())
    clock: dict[str, float] = {}
    with _beside(study) as folder:
        small = _small_study(study, molecule, chosen, folder)
        small.folder("prepare").mkdir(parents=True)
        team, progress = Alone(), Heartbeat(small.folder("prepare"), 0)
        with _timed(clock, "indexing"):
            indexing.index(small, team, progress)
        (own,) = molecules.molecules_of(small.tables["prepare"])
        planned = planning.plan(small, own, Trail(folder, 0))
        unreadable = {fault["path"] for fault in read_json(small.folder("prepare") / molecules.FAULTS)}
        readable = [path for path in chosen if path not in unreadable]
        good_bytes = archive_bytes - sum(sizes[path] for path in unreadable)
        n_frames = round(planned.catalogue.n_frames * good_bytes / sum(sizes[path] for path in readable))
        used = min(SAMPLED_FRAMES, planned.catalogue.n_frames)
        with_forces = small.tables["prepare"].forces
        with _timed(clock, "looking for bonds"):
            if with_forces:
                passes.look_for_bonds(small, team, progress, [planned])
        with _timed(clock, "measuring forces"):
            if with_forces:
                passes.measure_forces(small, team, progress, [planned])
        with _timed(clock, "fit"):
            passes.fit(small, planned)
        trial = passes.trial(small, planned, used)
    scale = n_frames / used
    fitted = study.tables["prepare"].fit_frames or n_frames
    measured = min(small.tables["prepare"].fit_frames, planned.catalogue.n_frames)
    again = min(fitted, n_frames) / measured if with_forces else 0.0
    seconds = {
        "indexing": clock["indexing"] * len(sources) / len(chosen),
        "looking for bonds": clock["looking for bonds"],
        "measuring forces": clock["measuring forces"] * again,
        "mapping": (trial.read + trial.map + trial.write) * scale,
    }
    readings = 1 + (min(fitted, n_frames) / n_frames if with_forces else 0.0)
    shard_frames = study.tables["prepare"].shard_frames or choose_shards(n_frames, planned.system.n_beads)[0]
    n_shards, n_arrays = -(-n_frames // shard_frames), 5 if with_forces else 4
    return Cost(
        molecule=molecule.name,
        n_files=len(sources),
        n_sampled=len(chosen),
        n_unreadable=len(unreadable),
        n_frames=n_frames,
        n_atoms=int(planned.catalogue.n_atoms_of[0]),
        n_beads=planned.system.n_beads,
        archive_bytes=archive_bytes,
        seconds=seconds,
        serial=clock["fit"],
        decode=trial.read * scale * readings,
        read_bytes=good_bytes * readings,
        disk_rate=_cold_rate(Path(readable[0])),
        n_shards=n_shards,
        store_files=n_shards * (n_arrays + 2),
        store_bytes=trial.stored_bytes * scale,
    )


def _small_study(study: Study, molecule: Molecule, chosen: list[str], folder: Path) -> Study:
    """The study of one molecule with some of its files, on few frames, in another folder."""
    config = study.tables["prepare"]
    said = {name: getattr(molecule, name) for name in Molecule.__dataclass_fields__ if name not in ("name", "archive")}
    table = replace(
        config,
        molecule=molecule.name,
        molecules=(),
        archive=tuple(chosen),
        fit_frames=SAMPLED_FRAMES,
        file_budget=1.0,
        held_out_block_ps=1e-6,  # frame by frame, so that even a few have some to be judged on
        held_out_period=2,
        **said | {"weights": ""},  # of all frames, not of these; each counts the same in a trial
    )
    tables = study.tables | {"prepare": table, "study": replace(study.study, folder=str(folder))}
    if not molecule.topology and molecule.map != "identity":
        tables["prepare"] = replace(table, topology=str(molecules.topology_path(study, molecule)))
    return Study(study.path, tables)


def _bytes_of(source: Source) -> int:
    """Bytes of a trajectory and of its forces; a file that is not there has none."""
    files = {*files_of(Path(source.path)), *([] if source.forces_path is None else [Path(source.forces_path)])}
    return sum(path.stat().st_size for path in files if path.exists())


@contextmanager
def _beside(study: Study) -> Iterator[Path]:
    """A folder on the disk of the run folder, removed at the end."""
    parent = study.run_folder
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK):
        raise FolderNotWritable(f"a trial in {parent}", "no permission to write there", "choose another study.folder")
    folder = Path(tempfile.mkdtemp(prefix=".estimate-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _timed(clock: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    clock[name] = time.perf_counter() - began


def _cold_rate(path: Path) -> float:
    """Bytes per second at which a file comes from its disk, after the system was asked to forget it."""
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began, seen = time.perf_counter(), 0
        while seen < COLD_BYTES and (block := file.read(4 << 20)):
            seen += len(block)
    return seen / max(time.perf_counter() - began, 1e-9)


def table_of(found: tuple[Cost, ...], n_ranks: int, bandwidth_gb_s: float | None) -> Table:
    """The costs for a person, a column for each molecule."""
    bandwidth = None if bandwidth_gb_s is None else bandwidth_gb_s * 1e9
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for cost in found:
        table.add_column(cost.molecule, justify="right")
    rows = {
        "files": [f"{cost.n_files:,}" for cost in found],
        "files tried": [
            f"{cost.n_sampled}" + (f", {cost.n_unreadable} cannot be read" if cost.n_unreadable else "")
            for cost in found
        ],
        "archive": [size(cost.archive_bytes) for cost in found],
        "frames": [f"{cost.n_frames:,} of {cost.n_atoms:,} atoms" for cost in found],
        "store": [f"{size(cost.store_bytes)}, {cost.n_beads} beads" for cost in found],
        "shards, files": [f"{cost.n_shards:,}, {cost.store_files:,}" for cost in found],
        **{
            f"{name} (core-time)": [_time(cost.seconds[name]) for cost in found]
            for name in ("indexing", "looking for bonds", "measuring forces", "mapping")
        },
        "all passes (core-hours)": [f"{cost.core_seconds / 3600:.3g}" for cost in found],
        "of this decoding": [f"{cost.decode / cost.core_seconds:.0%}" for cost in found],
        "one reader, cold disk": [f"{size(cost.disk_rate)}/s" for cost in found],
        f"{n_ranks} ranks read": [f"{size(cost.read_bytes * n_ranks / cost.core_seconds)}/s" for cost in found],
        f"time on {n_ranks} ranks": [_time(cost.wall_seconds(n_ranks, bandwidth)) for cost in found],
        "limited by": [cost.limit(n_ranks, bandwidth) for cost in found],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
