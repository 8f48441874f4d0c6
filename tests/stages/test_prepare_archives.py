"""Prepare on archives as they come: several molecules, weights, bad files, touched files, changed files, holes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mdtraj
import numpy as np
import pytest
from toy import BEADS, PLACES, frames, write_archive, write_study

from hpc_cg import errors
from hpc_cg.files import read_arrays, read_json
from hpc_cg.stages.molecules import Place
from hpc_cg.stages.product import State
from hpc_cg.stages.study import read_study
from hpc_cg.store import writer
from hpc_cg.store.audit import audit
from hpc_cg.store.dataset import load, open_spec, split
from hpc_cg.store.layout import STORE
from jobs.run import run_stage

SEVERAL = {
    "archive": [],
    "molecules": [
        {"name": "first", "archive": ["archive/run0_*", "archive/run1_*"]},
        {"name": "second", "archive": ["archive/run2_coordinates.npy"]},
    ],
}


def several(folder: Path, **changes: dict) -> Path:
    """A study of two molecules: the segments of the toy archive divided between them."""
    path = write_study(folder, prepare=SEVERAL, **changes)
    path.write_text(path.read_text().replace('molecule = "toy"\n', ""))
    return path


def test_several_molecules_are_groups_of_one_store_with_maps_of_their_own(tmp_path: Path) -> None:
    study = read_study(several(tmp_path, kernel={"kind": "noise+forces", "draws": "stored"}))
    for stage in ("prepare", "kernel"):
        assert run_stage(study, stage) == 0
        for name, n_frames in (("first", 810), ("second", 420)):
            assert load(study.folder(stage) / STORE, name).n_frames == n_frames
    first, second = (read_arrays(Place(study.folder("prepare"), name).map_arrays) for name in ("first", "second"))
    assert not np.array_equal(first["second_moment"], second["second_moment"])
    mixing = read_json(study.folder("kernel") / "kernel.json")["molecules"]
    assert mixing["first"]["mixing"] != mixing["second"]["mixing"]


def test_training_on_several_molecules_asks_which(tmp_path: Path) -> None:
    path = several(tmp_path)
    for stage in ("prepare", "kernel"):
        run_stage(read_study(path), stage)
    with pytest.raises(errors.ConfigError, match=r"train\.molecule is missing: this study has first, second"):
        run_stage(read_study(path), "train")
    path.write_text(path.read_text().replace("[train]\n", '[train]\nmolecule = "second"\n'))
    assert run_stage(read_study(path), "train") == 0


def test_two_molecules_of_one_name_are_refused(tmp_path: Path) -> None:
    path = several(tmp_path)
    path.write_text(path.read_text().replace('"second"', '"first"'))
    with pytest.raises(errors.ConfigError, match="same name"):
        read_study(path)


def test_weights_reach_the_store_and_the_moments(tmp_path: Path) -> None:
    """Weights of whole numbers do what repeating the frames would do; frames of weight zero are used nowhere."""
    path = write_study(tmp_path, prepare={"weights": "weights.npz", "fit_frames": 0})
    random = np.random.default_rng(5)
    weights = {f"run{i}_coordinates.npy": random.integers(0, 3, 400 + 10 * i).astype(float) for i in range(3)}
    np.savez(tmp_path / "weights.npz", **weights)
    study = read_study(path)
    run_stage(study, "prepare")
    stored = load(study.folder("prepare") / STORE, "toy")
    together = np.concatenate(list(weights.values()))
    np.testing.assert_array_equal(stored.weights, together[together > 0])
    train, _ = split(stored, open_spec(study.folder("prepare") / STORE, "toy").held_out)
    repeated = np.repeat(stored.forces[train].astype(float), stored.weights[train].astype(int), axis=0)
    expected = np.einsum("fba,fca->bc", repeated, repeated) / (3 * len(repeated))
    found = read_arrays(Place(study.folder("prepare"), "toy").map_arrays)["second_moment"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_weights_that_serve_two_files_or_none_are_refused_before_anything_is_mapped(tmp_path: Path) -> None:
    path = write_study(tmp_path, prepare={"weights": "weights.npz"})
    good = {f"run{i}_coordinates.npy": np.ones(400 + 10 * i) for i in range(3)}
    for change, message in (
        ({"run7_coordinates.npy": np.ones(3)}, "run7"),
        ({"run0_coordinates.npy": -np.ones(400)}, "-1"),
    ):
        np.savez(tmp_path / "weights.npz", **good | change)
        with pytest.raises(errors.BadWeights, match=message):
            run_stage(read_study(path), "prepare")


def test_a_torn_index_is_made_again(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path))
    run_stage(study, "prepare")
    folder = study.folder("prepare")
    (folder / "SEALED").unlink()
    (folder / "index" / "toy" / "columns.npz").write_bytes(b"torn")
    assert run_stage(study, "prepare") == 0


def test_other_weights_make_the_store_stale(tmp_path: Path) -> None:
    path = write_study(tmp_path, prepare={"weights": "weights.npy"})
    np.save(tmp_path / "weights.npy", np.ones(1230))
    study = read_study(path)
    run_stage(study, "prepare")
    assert study.state("prepare") == State.SEALED
    np.save(tmp_path / "weights.npy", np.full(1230, 2.0))
    assert study.state("prepare") == State.STALE


def test_unreadable_files_are_left_out_within_the_budget_and_listed(tmp_path: Path) -> None:
    path = write_study(tmp_path, prepare={"file_budget": 0.4})
    (tmp_path / "archive" / "run1_coordinates.npy").write_bytes(b"")
    study = read_study(path)
    run_stage(study, "prepare")
    assert load(study.folder("prepare") / STORE, "toy").n_frames == 400 + 420
    (fault,) = read_json(study.folder("prepare") / "unreadable.json")
    assert fault["molecule"] == "toy" and "run1_coordinates" in fault["reason"]


def test_touched_and_moved_files_are_the_same_archive(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path))
    run_stage(study, "prepare")
    for path in (tmp_path / "archive").iterdir():
        os.utime(path, (1, 1))
    assert study.state("prepare") == State.SEALED
    shutil.copytree(tmp_path / "archive", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "archive")
    (tmp_path / "archive").symlink_to(tmp_path / "elsewhere")
    assert study.state("prepare") == State.SEALED


def test_a_half_made_store_goes_on_after_its_files_were_touched_and_not_after_they_changed(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path))
    run_stage(study, "prepare")
    folder = study.folder("prepare")
    (folder / "SEALED").unlink()
    for path in (tmp_path / "archive").iterdir():
        os.utime(path, (1, 1))
    kept = (folder / "maps" / "toy.npz").stat().st_mtime_ns
    run_stage(study, "prepare")
    assert (folder / "maps" / "toy.npz").stat().st_mtime_ns == kept
    assert not (tmp_path / "run" / "superseded").exists()
    (folder / "SEALED").unlink()
    write_archive(tmp_path / "archive", n_frames=300)
    run_stage(study, "prepare")
    assert len(list((tmp_path / "run" / "superseded").iterdir())) == 1
    assert load(folder / STORE, "toy").n_frames == 300 + 310 + 320


def test_a_file_that_could_not_be_read_while_mapping_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpc_cg.archive import readers

    study = read_study(write_study(tmp_path))
    read = readers.blocks

    def failing(segment, *args, **kwargs):
        if "run1" in segment.path:
            raise errors.UnreadableFile(f"reading {segment.path}", "an input/output error", "look at the disk")
        yield from read(segment, *args, **kwargs)

    monkeypatch.setattr(readers, "blocks", failing)
    with pytest.raises(errors.TooManyFailures, match=r"410, the first in .*run1.*input/output error"):
        run_stage(study, "prepare")
    monkeypatch.undo()
    assert run_stage(study, "prepare") == 0
    assert load(study.folder("prepare") / STORE, "toy").n_frames == 1230


def test_repair_withdraws_what_is_not_whole_and_the_next_run_makes_exactly_that(tmp_path: Path) -> None:
    from launch.inspect import audit_study

    study = read_study(write_study(tmp_path))
    run_stage(study, "prepare")
    store = study.folder("prepare") / STORE
    identity = study.inputs("kernel")
    spec = open_spec(store, "toy")
    (store / "toy" / "forces" / "c" / "3" / "0" / "0").unlink()
    torn = store / "toy" / "positions" / "c" / "5" / "0" / "0"
    torn.write_bytes(torn.read_bytes()[:100])
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    assert audit(store, spec).holes == (3, 5)
    said: list[str] = []
    assert len(audit_study(study, said.append)) == 2
    assert study.state("prepare") == State.SEALED
    audit_study(study, said.append, repair=True)
    assert study.state("prepare") == State.PARTIAL
    assert "2 shards withdrawn" in " ".join(said)
    run_stage(study, "prepare")
    after = {path for path in store.rglob("*") if path.is_file() and path.stat().st_mtime_ns != before.get(path)}
    assert {path.relative_to(store / "toy").parts[2] for path in after} == {"3", "5"}
    assert audit_study(study, said.append) == []
    assert study.inputs("kernel") == identity


def test_the_audit_knows_where_every_frame_has_to_come_from(tmp_path: Path) -> None:
    from launch.inspect import _origin

    study = read_study(write_study(tmp_path))
    run_stage(study, "prepare")
    store = study.folder("prepare") / STORE
    spec = open_spec(store, "toy")
    assert audit(store, spec, _origin(study, spec)).whole
    content = writer.read_commit(store, spec, 2)
    assert content is not None
    from hpc_cg.store.dataset import read_shard

    shard = read_shard(store, spec, 2)
    writer.write_shard(store, spec, 2, type(shard)(shard.arrays, shard.frame_index[::-1], shard.segment, shard.weights))
    (fault,) = audit(store, spec, _origin(study, spec)).faults
    assert "shard 2" in fault and "other than those of the plan" in fault


def test_forces_in_files_of_their_own_and_boxes_that_cut_the_molecule(tmp_path: Path) -> None:
    """Positions every step and wrapped into a box, forces every second step: the store holds every second, whole."""
    archive = tmp_path / "archive"
    archive.mkdir()
    positions, forces = frames(400, seed=1)
    box = np.eye(3, dtype=np.float32) * 1.2
    wrapped = np.mod(positions + 1.0, 1.2).astype(np.float32)
    assert np.linalg.norm(np.diff(wrapped, axis=1), axis=2).max() > 0.9
    steps, times = np.arange(400, dtype=np.int32) * 10, np.arange(400, dtype=np.float32) * 0.5
    boxes = np.broadcast_to(box, (400, 3, 3)).copy()
    with mdtraj.formats.XTCTrajectoryFile(str(archive / "a.xtc"), "w") as file:
        file.write(wrapped, time=times, step=steps, box=boxes)
    with mdtraj.formats.TRRTrajectoryFile(str(archive / "a_forces.trr"), "w") as file:
        half = slice(None, None, 2)
        file._write(
            *(np.ascontiguousarray(values[half]) for values in (wrapped, times, steps, boxes)),
            np.zeros(200, np.float32), np.zeros((200, 5, 3), np.float32), forces[half].astype(np.float32),
        )  # fmt: skip
    table = {"stride_ps": 0.0, "length_unit": "", "force_unit": "", "force_files": "{stem}_forces.trr"}
    study = read_study(write_study(tmp_path, archive=False, prepare=table))
    run_stage(study, "prepare")
    stored = load(study.folder("prepare") / STORE, "toy")
    assert stored.n_frames == 200
    centred = positions - positions.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(stored.positions, centred[::2], atol=2e-3)
    np.testing.assert_allclose(stored.forces, forces[::2], rtol=1e-4, atol=1e-2)


def test_a_molecule_that_blew_up_is_left_out_of_the_fit_and_of_the_store(tmp_path: Path) -> None:
    """One force of 1e8 kJ/mol/nm in 1230 frames would decide the optimal map alone."""
    calm = read_study(write_study(tmp_path / "calm"))
    wild = read_study(write_study(tmp_path / "wild", prepare={"failure_budget": 0.01}))
    path = tmp_path / "wild" / "archive" / "run1_forces.npy"
    forces = np.load(path)
    forces[17, 2, 1] = 1e8
    np.save(path, forces)
    maps = []
    for study in (calm, wild):
        run_stage(study, "prepare")
        maps.append(read_arrays(Place(study.folder("prepare"), "toy").map_arrays)["second_moment"])
    np.testing.assert_allclose(maps[0], maps[1], rtol=0.02)
    (row,) = read_json(wild.folder("prepare") / "quarantine.json")
    assert (row["frame"], row["reason"]) == (17, "forces beyond prepare.force_limit")
    assert load(wild.folder("prepare") / STORE, "toy").n_frames == 1229


def test_a_study_that_moved_with_its_archive_goes_on_and_is_repaired(tmp_path: Path) -> None:
    from launch.inspect import audit_study

    run_stage(read_study(write_study(tmp_path / "here")), "prepare")
    (tmp_path / "here").rename(tmp_path / "there")
    study = read_study(tmp_path / "there" / "study.toml")
    assert study.state("prepare") == State.SEALED
    (study.folder("prepare") / STORE / "toy" / "forces" / "c" / "3" / "0" / "0").unlink()
    audit_study(study, str, repair=True)
    assert run_stage(study, "prepare") == 0
    assert audit_study(study, str) == []
    assert not (tmp_path / "there" / "run" / "superseded").exists()


def test_a_file_that_could_not_be_read_while_indexing_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpc_cg.archive import index

    study = read_study(write_study(tmp_path))
    describe = index.describe

    def failing(path, **options):
        if "run1" in path.name:
            raise errors.UnreadableFile(f"reading {path}", "no permission to read it", "change its rights")
        return describe(path, **options)

    monkeypatch.setattr(index, "describe", failing)
    with pytest.raises(errors.TooManyFailures, match="no permission to read it"):
        run_stage(study, "prepare")
    monkeypatch.undo()
    assert run_stage(study, "prepare") == 0


def test_a_retry_makes_the_maps_that_a_run_without_trouble_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpc_cg.archive import readers

    smooth, rough = (read_study(write_study(tmp_path / name)) for name in ("smooth", "rough"))
    run_stage(smooth, "prepare")
    read = readers.blocks

    def failing(segment, *args, **kwargs):
        if "run2" in segment.path:
            raise errors.UnreadableFile(f"reading {segment.path}", "an input/output error", "look at the disk")
        yield from read(segment, *args, **kwargs)

    monkeypatch.setattr(readers, "blocks", failing)
    with pytest.raises(errors.TooManyFailures):
        run_stage(rough, "prepare")
    monkeypatch.undo()
    run_stage(rough, "prepare")
    found = [read_json(Place(study.folder("prepare"), "toy").map_record) for study in (smooth, rough)]
    assert found[0] == found[1]


def test_of_several_molecules_one_may_lose_its_archive_and_the_others_are_still_watched(tmp_path: Path) -> None:
    study = read_study(several(tmp_path))
    run_stage(study, "prepare")
    for path in (tmp_path / "archive").glob("run2_*"):
        path.unlink()
    assert study.state("prepare") == State.SEALED
    np.save(tmp_path / "archive" / "run0_coordinates.npy", frames(400, seed=9)[0])
    assert study.state("prepare") == State.STALE


def test_nothing_is_moved_aside_for_want_of_the_archive(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    run_stage(read_study(path), "prepare")
    shutil.rmtree(tmp_path / "archive")
    path.write_text(path.read_text().replace("held_out_period = 4", "held_out_period = 5"))
    with pytest.raises(errors.MissingInput, match="archive"):
        run_stage(read_study(path), "prepare")
    assert not (tmp_path / "run" / "superseded").exists()


def test_files_that_lead_nowhere_are_unreadable_files(tmp_path: Path) -> None:
    path = write_study(tmp_path, prepare={"file_budget": 0.3})
    (tmp_path / "archive" / "broken_coordinates.npy").symlink_to(tmp_path / "nowhere")
    study = read_study(path)
    run_stage(study, "prepare")
    (fault,) = read_json(study.folder("prepare") / "unreadable.json")
    assert "broken_coordinates" in fault["path"]
    assert study.state("prepare") == State.SEALED


def test_a_molecule_of_which_no_file_can_be_read_is_named(tmp_path: Path) -> None:
    path = several(tmp_path)
    path.write_text(path.read_text().replace("[prepare]\n", "[prepare]\nfile_budget = 0.5\n"))
    (tmp_path / "archive" / "run2_coordinates.npy").write_bytes(b"")
    with pytest.raises(errors.MissingInput, match="second"):
        run_stage(read_study(path), "prepare")


def test_a_store_without_one_usable_frame_is_not_sealed(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path, prepare={"forces": False, "failure_budget": 1.0}))
    for path in (tmp_path / "archive").glob("*_coordinates.npy"):
        np.save(path, np.full_like(np.load(path), np.nan))
    with pytest.raises(errors.TooFewFrames, match="none of 1230"):
        run_stage(study, "prepare")


def test_a_trajectory_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """Held-out blocks are staggered over the trajectories: a copy would be trained on where the first is held out."""
    study = read_study(write_study(tmp_path))
    for kind in ("coordinates", "forces"):
        shutil.copy(tmp_path / "archive" / f"run0_{kind}.npy", tmp_path / "archive" / f"copy_{kind}.npy")
    with pytest.raises(errors.MixedArchive, match=r"the same content in .*copy.* and .*run0"):
        run_stage(study, "prepare")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"map": "selections"}, "needs selections"),
        ({"force_files": "forces.npy"}, "the same forces"),
        ({"force_files": "{stem}_{run}.npy"}, "the same forces"),
        ({"map": "matrix"}, "needs map_file"),
        ({"ridge": -1.0}, "at or above zero"),
        ({"map": "calpa"}, "calpa"),
        ({"molecules": [{"name": "a b"}]}, "a b"),
    ],
)
def test_settings_that_cannot_be_are_refused_when_the_study_is_read(tmp_path: Path, table: dict, message: str) -> None:
    with pytest.raises(errors.ConfigError, match=message):
        read_study(write_study(tmp_path, prepare=table))


def test_an_archive_without_units_asks_for_them(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path, prepare={"length_unit": ""}))
    with pytest.raises(errors.UnknownUnit, match=r"prepare\.length_unit"):
        run_stage(study, "prepare")


def test_a_list_of_files_is_an_archive(tmp_path: Path) -> None:
    path = write_study(tmp_path, prepare={"archive": ["archive/all.manifest"]})
    (tmp_path / "archive" / "all.manifest").write_text("# two of three\nrun0_coordinates.npy\nrun2_coordinates.npy\n")
    study = read_study(path)
    run_stage(study, "prepare")
    assert load(study.folder("prepare") / STORE, "toy").n_frames == 400 + 420


def test_the_estimate_touches_nothing_and_counts_what_prepare_makes(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    before = set(tmp_path.rglob("*"))
    done = subprocess.run(
        [Path(sys.executable).parent / "hpc-cg", "run", "prepare", path, "--estimate", "--ranks", "4"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert set(tmp_path.rglob("*")) == before
    from launch.estimate import costs

    (cost,) = costs(read_study(path))
    study = read_study(path)
    run_stage(study, "prepare")
    spec = open_spec(study.folder("prepare") / STORE, "toy")
    assert (cost.n_frames, cost.n_shards, cost.n_beads) == (spec.n_frames, spec.n_shards, len(BEADS))
    chunks = sum(1 for p in (study.folder("prepare") / STORE / "toy").rglob("c/*") if p.is_dir() or p.is_file())
    assert chunks > 0 and cost.core_seconds > 0 and cost.wall_seconds(4, None) < cost.core_seconds + cost.serial
    assert cost.limit(1, 1.0) == "disk"
    assert len(PLACES) == cost.n_atoms
