"""Seconds and memory that planning takes on a made-up archive of 10⁶ segments and 10⁵ shards: no file of it exists.

What is timed is what happens between the headers and the first frame: merging the parts of the index, opening it, the
parts of segments that every shard consists of, the sample of frames for rigid bonds, and finding out from 10⁵ commit
records that a run was stopped half way. The limits are 60 s and 2 GB in all.
"""

import argparse
import json
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from hpc_cg.archive import catalogue
from hpc_cg.archive.catalogue import Catalogue, Source
from hpc_cg.archive.index import Described, Segment
from hpc_cg.beads import bead_system
from hpc_cg.mapping.shards import fit_ranges, rigid_parts
from hpc_cg.store import writer
from hpc_cg.store.layout import STORE, StoreSpec

N_SEGMENTS, N_SHARDS, FRAMES = 1_000_000, 100_000, 1000
LIMIT_S, LIMIT_GB = 60.0, 2.0


def describe(source: Source) -> tuple[Described, ...]:
    """A segment as a reader would describe it, without a file."""
    segment = Segment(
        molecule="molecule",
        path=source.path,
        format="trr",
        n_frames=FRAMES + hash(source.path) % 7,
        n_atoms=5000,
        stride_ps=1.0,
        temperature_K=300.0,
        has_forces=True,
        digest="0123456789abcdef",
        length_unit="nm",
        force_unit="kJ/mol/nm",
        forces_path=None,
        size=FRAMES * 5000 * 24,
        mtime_ns=1_700_000_000_000_000_000,
    )
    return (Described(segment, None),)


def half_done(folder: Path, spec: StoreSpec) -> None:
    """Commit records of every other shard, as a stopped run leaves them, without the shards."""
    place = writer.commit_path(folder / STORE, spec, 0)
    place.parent.mkdir(parents=True)
    record = writer.Commit(
        shard=0, start=0, stop=0, n_good=0, crc={}, spec=spec.digest, sizes={}, usable=((1, 1),), weight=(1.0, 0.0)
    )
    for shard in range(0, spec.n_shards, 2):
        start, stop = spec.frames_of(shard)
        fields = vars(replace(record, shard=shard, start=start, stop=stop, n_good=stop - start))
        writer.commit_path(folder / STORE, spec, shard).write_text(json.dumps(fields), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=N_SEGMENTS)
    parser.add_argument("--shards", type=int, default=N_SHARDS)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hpc-cg-bench-") as name:
        folder = Path(name)
        sources = [
            Source(f"/archive/domain-{i // 1000:04d}/run-{i % 1000:03d}.trr", None) for i in range(asked.segments)
        ]
        catalogue.begin(folder / "index", sources)
        for part in range(catalogue.n_parts(sources)):
            catalogue.describe_part(folder / "index", sources, part, describe)
        seconds: dict[str, float] = {}
        began = time.perf_counter()

        def lap(what: str) -> None:
            nonlocal began
            seconds[what] = time.perf_counter() - began
            began = time.perf_counter()

        catalogue.merge(folder / "index", sources)
        lap("merge the parts of the index")
        found = Catalogue(folder / "index")
        lap("open the index")
        shard_frames = -(-found.n_frames // asked.shards)
        system = bead_system(("a", "b"), (0, 0), (12.0, 12.0), ((0, 1),))
        spec = StoreSpec(
            "molecule", system, found.n_frames, shard_frames, shard_frames, ("positions", "forces"), (50, 10), "none",
            300.0, 0, {},
        )  # fmt: skip
        n_pieces = sum(1 for shard in range(spec.n_shards) for _ in found.pieces(*spec.frames_of(shard)))
        lap(f"the {n_pieces:,} pieces of all shards")
        places = [place for part in rigid_parts(found.n_frames) for place in found.places(part)]
        ranges = fit_ranges(found.n_frames, 200_000)
        lap(f"{len(places):,} files to sample, {len(ranges)} ranges to fit on")
        half_done(folder, spec)
        began = time.perf_counter()
        missing = set(range(spec.n_shards)) - set(writer.committed(folder / STORE, spec))
        lap(f"{len(missing):,} shards still to do")
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    total = sum(seconds.values())
    print(f"\nplanning {asked.segments:,} segments, {asked.shards:,} shards, {found.n_frames:,} frames")
    for what, spent in seconds.items():
        print(f"  {what:<48} {spent:7.2f} s")
    print(f"  {'all':<48} {total:7.2f} s, {total / LIMIT_S:.2f} of the limit")
    print(f"  {'peak memory, list of files included':<48} {gigabytes:7.2f} GB, {gigabytes / LIMIT_GB:.2f} of the limit")


if __name__ == "__main__":
    main()
