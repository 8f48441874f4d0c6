"""What a repair takes back of a damaged study, what it leaves, and that the next run makes a whole one of it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from toy import write_archive, write_study

from hpc_cg import errors
from hpc_cg.archive import readers
from hpc_cg.files import read_json
from hpc_cg.stages import claims, product
from hpc_cg.stages.product import State
from hpc_cg.stages.study import Study, read_study
from hpc_cg.store.dataset import load, open_spec
from hpc_cg.store.layout import STORE
from hpc_cg.store.writer import commit_path
from jobs.run import run_stage
from launch.inspect import audit_study

STORED = {"kind": "noise+forces", "sigma_nm": 0.003, "draws": "stored"}


def prepared(folder: Path, *more: str, **changes: dict) -> Study:
    study = read_study(write_study(folder, **changes))
    for stage in ("prepare", *more):
        assert run_stage(study, stage) == 0
    return study


def audited(study: Study, repair: bool = False) -> tuple[list[str], str]:
    said: list[str] = []
    faults = audit_study(study, said.append, repair)
    return faults, "\n".join(said)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def chunk(study: Study, stage: str, shard: int) -> Path:
    return study.folder(stage) / STORE / "toy" / "positions" / "c" / str(shard) / "0" / "0"


def test_two_stages_are_repaired_at_once(tmp_path: Path) -> None:
    """A stage is not stale because the one before it was repaired a moment ago."""
    study = prepared(tmp_path, "kernel", kernel=STORED)
    for stage, shard in (("prepare", 1), ("kernel", 2)):
        flip(chunk(study, stage, shard))
    faults, said = audited(study)
    assert len(faults) == 2 and said.count("withdraws 1 shard; hpc-cg run") == 2
    faults, said = audited(study, repair=True)
    assert len(faults) == 2 and said.count("1 shard withdrawn") == 2
    for stage in ("prepare", "kernel"):
        assert product.read_seal(study.folder(stage)) is None
        assert run_stage(study, stage) == 0
    assert audited(study)[0] == []
    assert not (study.run_folder / "superseded").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("maps/toy.npz", b""),
        ("maps/toy.json", b"{"),
        ("index/toy/columns.npz", b"xx"),
        ("quarantine.json", b"[1]"),
        ("sources.json", b"[1]"),
        ("SEALED", b"{"),
        (f"{STORE}/toy/zarr.json", b"[1]"),
        (f"{STORE}/toy/forces/zarr.json", b"{"),
    ],
)
def test_a_product_whose_records_are_damaged_is_moved_aside_and_made_again(
    tmp_path: Path, name: str, content: bytes
) -> None:
    study = prepared(tmp_path)
    (study.folder("prepare") / name).write_bytes(content)
    faults, said = audited(study)
    assert faults and name.removeprefix(f"{STORE}/") in " ".join(faults)
    assert "audit --repair moves run/prepare to superseded/" in said.replace(f"{tmp_path}/", "")
    repaired, said = audited(study, repair=True)
    assert repaired == faults
    (aside,) = (study.run_folder / "superseded").iterdir()
    assert (aside / name).read_bytes() == content and str(aside.name) in said
    assert not (aside / claims.RUNNING).exists() and not study.folder("prepare").exists()
    assert run_stage(study, "prepare") == 0
    assert audited(study)[0] == []


def test_a_damaged_record_of_one_stage_leaves_the_next_one_alone(tmp_path: Path) -> None:
    study = prepared(tmp_path, "kernel", kernel=STORED)
    before = product.read_seal(study.folder("kernel"))
    (study.folder("prepare") / "index/toy/columns.npz").write_bytes(b"xx")
    faults, _ = audited(study, repair=True)
    assert [fault.split(":")[0] for fault in faults] == ["prepare"]
    assert product.read_seal(study.folder("kernel")) == before
    run_stage(study, "prepare")
    assert study.state("kernel") == State.SEALED
    assert audited(study)[0] == []


@pytest.mark.parametrize(("name", "content"), [("000001.json", b""), ("000001.json", None), ("counts.npz", b"")])
def test_a_damaged_commit_record_costs_no_more_than_its_shard(tmp_path: Path, name: str, content: bytes | None) -> None:
    study = prepared(tmp_path)
    record = study.folder("prepare") / "commits" / "toy" / name
    record.unlink()
    if content is not None:
        record.write_bytes(content)
    assert len(audited(study)[0]) == 1
    audited(study, repair=True)
    kept = {shard: chunk(study, "prepare", shard).stat().st_mtime_ns for shard in range(10)}
    assert run_stage(study, "prepare") == 0
    assert audited(study)[0] == []
    new = {shard for shard, made in kept.items() if chunk(study, "prepare", shard).stat().st_mtime_ns != made}
    assert new == ({1} if name == "000001.json" else set())


def test_a_file_that_was_added_is_named_and_nothing_is_moved_for_it(tmp_path: Path) -> None:
    study = prepared(tmp_path)
    (study.folder("prepare") / "notes.txt").write_text("mine")
    faults, said = audited(study, repair=True)
    assert faults == ["prepare: notes.txt was not there when the product was sealed"]
    assert study.state("prepare") == State.SEALED and "moved" not in said


def test_while_commits_are_withdrawn_nobody_else_may_work_there_and_the_seal_goes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpc_cg.store import writer

    study = prepared(tmp_path)
    folder = study.folder("prepare")
    flip(chunk(study, "prepare", 3))
    withdraw, seen = writer.withdraw, []

    def watched(*args) -> None:
        owner = claims.owner(folder)
        seen.append((owner is not None and owner.is_me, (folder / product.SEALED).exists()))
        with pytest.raises(errors.FolderBusy):
            product.begin(folder, "other", {})
        withdraw(*args)

    monkeypatch.setattr(writer, "withdraw", watched)
    audited(study, repair=True)
    assert seen == [(True, True)]
    assert claims.owner(folder) is None and not (folder / product.SEALED).exists()


def test_a_folder_in_which_somebody_works_is_not_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = prepared(tmp_path)
    flip(chunk(study, "prepare", 3))
    product.begin(study.folder("prepare"), study.fingerprint("prepare"), study.intent("prepare"))
    faults, _ = audited(study, repair=True)
    assert any("not repaired" in fault and "another run there" in fault for fault in faults)
    assert study.state("prepare") == State.SEALED


def test_frames_that_could_not_be_read_are_noted_and_a_repair_lets_them_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = read_study(write_study(tmp_path, prepare={"failure_budget": 0.5}))
    read = readers.blocks

    def failing(segment, *args, **kwargs):
        if "run1" in segment.path:
            raise errors.UnreadableFile(f"reading {segment.path}", "an input/output error", "look at the disk")
        yield from read(segment, *args, **kwargs)

    monkeypatch.setattr(readers, "blocks", failing)
    assert run_stage(study, "prepare") == 0
    monkeypatch.undo()
    assert load(study.folder("prepare") / STORE, "toy").n_frames == 820
    faults, said = audited(study)
    assert faults == [] and "note: 410 frames of toy are left out because" in said and "run1" in said
    assert study.state("prepare") == State.SEALED
    faults, said = audited(study, repair=True)
    assert faults == [] and "shards withdrawn" in said
    assert run_stage(study, "prepare") == 0
    assert load(study.folder("prepare") / STORE, "toy").n_frames == 1230
    assert read_json(study.folder("prepare") / "quarantine.json") == []
    assert "note" not in audited(study)[1]


def test_an_archive_that_is_gone_is_a_note_and_nothing_is_withdrawn_that_could_not_be_made_again(
    tmp_path: Path,
) -> None:
    study = prepared(tmp_path)
    archive = tmp_path / "archive"
    shutil.move(archive, tmp_path / "away")
    faults, said = audited(study)
    assert faults == [] and "are gone" in said and "whole" in said
    flip(chunk(study, "prepare", 3))
    faults, said = audited(study, repair=True)
    assert len(faults) == 1 and "left as it is" in said
    assert study.state("prepare") == State.SEALED
    spec = open_spec(study.folder("prepare") / STORE, "toy")
    assert commit_path(study.folder("prepare") / STORE, spec, 3).exists()
    shutil.move(tmp_path / "away", archive)
    assert "1 shard withdrawn" in audited(study, repair=True)[1]
    assert run_stage(study, "prepare") == 0


def test_an_archive_that_has_moved_is_a_note_and_one_that_has_changed_a_fault(tmp_path: Path) -> None:
    study = prepared(tmp_path)
    shutil.move(tmp_path / "archive", tmp_path / "elsewhere")
    (tmp_path / "archive").symlink_to(tmp_path / "elsewhere")
    faults, said = audited(study)
    assert faults == [] and "lie elsewhere now" in said
    (tmp_path / "archive").unlink()
    write_archive(tmp_path / "archive", n_frames=400)
    random = np.random.default_rng(9)
    np.save(tmp_path / "archive" / "run1_coordinates.npy", random.normal(size=(410, 5, 3)))
    faults, _ = audited(study)
    assert any("run1_coordinates.npy is not the one" in fault for fault in faults)
