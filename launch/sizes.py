"""How many bytes the jobs of a chain will write, as far as it can be said without reading a coordinate."""

from collections.abc import Sequence
from pathlib import Path

from hpc_cg.archive.listing import files_of
from hpc_cg.errors import HpcCgError
from hpc_cg.stages.molecules import find_sources, molecules_of
from hpc_cg.stages.product import read_seal
from hpc_cg.stages.study import Study
from launch.words import size

FLOAT = 4


def bytes_of(study: Study, stages: Sequence[str]) -> dict[str, str]:
    """A line for each stage that will write much: how much, and from what it follows."""
    n_beads = _n_beads(study)
    found = {}
    if "prepare" in stages:
        found["prepare"] = _archive(study)
    if "kernel" in stages and study.tables["kernel"].is_stored:
        found["kernel"] = "will write a store of labels as large as that of prepare, and half as much again"
    if "simulate" in stages:
        config = study.tables["simulate"]
        frames = config.n_replicas * config.n_blocks * (config.block_steps // config.save_steps)
        copies = 2 + (config.export != "none") * 0.4  # blocks, the ensemble store, and rounded trajectories
        if n_beads is None:
            found["simulate"] = f"will write {frames:,} frames; bytes follow when prepare has counted the beads"
        else:
            written = frames * (3 * n_beads + 1) * FLOAT * copies
            found["simulate"] = f"will write {frames:,} frames of {n_beads} beads, some {size(written)}"
    return found


def _archive(study: Study) -> str:
    """The archive in files and bytes: the store is no larger than that, since beads are fewer than atoms."""
    if "reference" in study.tables:
        return "reads what reference makes"
    try:
        sources = [s for molecule in molecules_of(study.tables["prepare"]) for s in find_sources(study, molecule)]
        total = sum(file.stat().st_size for s in sources for file in files_of(Path(s.path)))
    except (HpcCgError, OSError) as error:
        return f"cannot see its archive: {error}"
    return f"reads {len(sources):,} files, {size(total)}; hpc-cg run prepare --estimate says what it writes"


def _n_beads(study: Study) -> int | None:
    seal = read_seal(study.folder("prepare"))
    return None if seal is None else seal.summary.get("beads")
