"""Parts of an archive as work: ranges to fit on, sampled frames, shards with what is left out and why."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_cg import errors
from hpc_cg.archive import catalogue
from hpc_cg.archive.catalogue import Catalogue, Source
from hpc_cg.archive.index import describe
from hpc_cg.archive.trail import Trail
from hpc_cg.archive.weights import equal
from hpc_cg.beads import bead_system
from hpc_cg.mapping import shards
from hpc_cg.mapping.fitting import reduction
from hpc_cg.mapping.maps import CGMap
from hpc_cg.mapping.whole import Whole
from hpc_cg.store.layout import StoreSpec

BEADS = 4
SYSTEM = bead_system(("a", "b", "c", "d"), (0, 1, 2, 3), (12.0,) * 4, ((0, 1), (1, 2), (2, 3)))
IDENTITY = CGMap(np.eye(BEADS), np.eye(BEADS), SYSTEM)


def write(folder: Path, lengths: tuple[int, ...], spoilt: dict[int, list[int]] | None = None) -> None:
    for number, length in enumerate(lengths):
        random = np.random.default_rng(number)
        positions = random.normal(size=(length, BEADS, 3)).astype(np.float32)
        positions[(spoilt or {}).get(number, [])] = np.nan
        np.save(folder / f"r{number}_coordinates.npy", positions)
        np.save(folder / f"r{number}_forces.npy", random.normal(size=positions.shape).astype(np.float32))


def archive(folder: Path) -> shards.Archive:
    sources = [Source(str(path), None) for path in sorted(folder.glob("*_coordinates.npy"))]
    index = folder / "index"
    catalogue.begin(index, sources)

    def look(source: Source) -> tuple:
        return describe(Path(source.path), molecule="m", length_unit="nm", force_unit="kJ/mol/nm", stride_ps=1.0)

    for part in range(catalogue.n_parts(sources)):
        catalogue.describe_part(index, sources, part, look)
    catalogue.merge(index, sources)
    whole = Whole.along(list(SYSTEM.bonds), np.zeros(BEADS, np.int64))
    return shards.Archive(Catalogue(index), None, equal, Trail(folder, 0), whole)


def spec(n_frames: int, shard_frames: int) -> StoreSpec:
    return StoreSpec(
        "m", SYSTEM, n_frames, shard_frames, shard_frames, ("positions", "forces"), (5, 4), "none", 300.0, 1, {}
    )


def mapping(found: shards.Archive) -> shards.Mapping:
    return shards.mapping_of(found, IDENTITY, True, lambda chosen: found.whole)


@given(n_frames=st.integers(1, 10_000_000), wanted=st.integers(0, 300_000))
def test_ranges_to_fit_on_are_disjoint_ordered_and_as_many_as_wanted(n_frames: int, wanted: int) -> None:
    ranges = shards.fit_ranges(n_frames, wanted)
    flat = [place for pair in ranges for place in pair]
    assert flat == sorted(flat) and flat[0] == 0 and flat[-1] <= n_frames
    assert all(start < stop for start, stop in ranges)
    used, asked = sum(stop - start for start, stop in ranges), min(wanted or n_frames, n_frames)
    assert asked - len(ranges) <= used <= asked + len(ranges)
    if wanted == 0:
        assert used == n_frames


@given(n_frames=st.integers(1, 100_000))
def test_frames_to_look_for_bonds_in_are_spread_over_all(n_frames: int) -> None:
    frames = np.concatenate(shards.rigid_parts(n_frames))
    assert len(frames) == min(n_frames, shards.RIGID_FRAMES)
    assert (frames[0], frames[-1]) == (0, n_frames - 1) and (np.diff(frames) > 0).all()


def test_frames_without_numbers_are_listed_in_runs_and_weigh_nothing(tmp_path: Path) -> None:
    write(tmp_path, (10, 12), {0: [2, 3, 4, 9], 1: [0]})
    found = archive(tmp_path)
    content, quarantine = shards.mapped(found, spec(22, 22), mapping(found), 0)
    assert [(Path(row["path"]).name[:2], row["frame"], row["frames"]) for row in quarantine] == [
        ("r0", 2, 3),
        ("r0", 9, 1),
        ("r1", 0, 1),
    ]
    lost = [2, 3, 4, 9, 10]
    assert (np.flatnonzero(content.weights == 0) == lost).all()
    assert np.isnan(content.arrays["positions"][lost]).all() and np.isnan(content.arrays["forces"][lost]).all()
    assert np.isfinite(np.delete(content.arrays["forces"], lost, axis=0)).all()
    np.testing.assert_array_equal(content.segment, [0] * 10 + [1] * 12)
    np.testing.assert_array_equal(content.frame_index, [*range(10), *range(12)])


def test_a_frame_with_all_beads_in_one_place_is_no_frame(tmp_path: Path) -> None:
    write(tmp_path, (6,))
    path = tmp_path / "r0_coordinates.npy"
    positions = np.load(path)
    positions[3] = 0.0
    np.save(path, positions)
    found = archive(tmp_path)
    content, quarantine = shards.mapped(found, spec(6, 6), mapping(found), 0)
    assert [(row["frame"], row["reason"]) for row in quarantine] == [(3, shards.COLLAPSED)]
    assert content.weights.tolist() == [1, 1, 1, 0, 1, 1]


def test_a_file_that_changes_after_the_index_ends_the_work(tmp_path: Path) -> None:
    write(tmp_path, (6,))
    found = archive(tmp_path)
    write(tmp_path, (8,))
    with pytest.raises(errors.ChangedFile, match="r0"):
        shards.mapped(found, spec(6, 6), mapping(found), 0)


def test_a_file_that_fails_while_it_is_read_costs_its_frames_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, (6, 7))
    found = archive(tmp_path)
    read = shards.readers.blocks

    def failing(segment, *args, **kwargs):
        if "r0" in segment.path:
            raise errors.UnreadableFile("reading r0", "an input/output error", "look at the disk")
        yield from read(segment, *args, **kwargs)

    monkeypatch.setattr(shards.readers, "blocks", failing)
    content, (row,) = shards.mapped(found, spec(13, 13), mapping(found), 0)
    assert (row["frame"], row["frames"], row["again"]) == (0, 6, True)
    assert content.weights.tolist() == [0] * 6 + [1] * 7


@pytest.mark.parametrize("shard_frames", [1, 4, 7, 50])
def test_moments_and_shards_do_not_depend_on_how_frames_are_divided(tmp_path: Path, shard_frames: int) -> None:
    write(tmp_path, (9, 1, 13), {2: [5]})
    found = archive(tmp_path)
    whole, _ = shards.mapped(found, spec(23, 23), mapping(found), 0)
    cut = spec(23, shard_frames)
    parts = [shards.mapped(found, cut, mapping(found), shard)[0] for shard in range(cut.n_shards)]
    for name in ("positions", "forces"):
        joined = np.concatenate([part.arrays[name] for part in parts])
        np.testing.assert_array_equal(joined, whole.arrays[name])
    reduced = reduction(np.eye(BEADS), SYSTEM, tuple((i,) for i in range(BEADS)), "optimal")
    together = shards.measure(found, (5, 4), reduced, (0, 23))[0]
    apart = [shards.measure(found, (5, 4), reduced, cut.frames_of(shard))[0] for shard in range(cut.n_shards)]
    added = sum(apart[1:], apart[0])
    assert added.train.count + added.held_out.count == 22
    np.testing.assert_allclose(added.train.gram, together.train.gram, rtol=1e-12)
    np.testing.assert_allclose(added.held_out.gram, together.held_out.gram, rtol=1e-12, atol=1e-9)
