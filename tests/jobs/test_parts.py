"""Parts of a stage that never meet make together what one process makes; each is one's own while it works."""

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from toy import write_study

from hpc_cg.errors import ChangedStudy, ConfigError, FolderBusy, NotSealed
from hpc_cg.stages import claims, kernel, product, simulate
from hpc_cg.stages.product import State
from hpc_cg.stages.study import Study, read_study
from jobs.__main__ import perform
from jobs.run import run_part, run_stage
from jobs.task import GATHER, Task


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study whose stages one process made."""
    study = read_study(write_study(tmp_path_factory.mktemp("whole"), kernel={"draws": "stored"}))
    for stage in ("prepare", "kernel", "train", "simulate"):
        assert run_stage(study, stage) == 0
    return study


@pytest.fixture
def study(whole: Study, tmp_path: Path) -> Study:
    """The same up to the training, in another folder."""
    shutil.copytree(whole.root, tmp_path / "study", dirs_exist_ok=True)
    found = read_study(tmp_path / "study" / "study.toml")
    shutil.rmtree(found.folder("simulate"))
    return found


def part(study: Study, stage: str, name: str) -> int:
    return run_part(study, Task(str(study.path), stage, name))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in (folder / "store.zarr").rglob("*") if p.is_file()}


def test_groups_simulated_apart_are_the_ensemble_simulated_together(whole: Study, study: Study) -> None:
    assert part(study, "simulate", "1") == 0
    assert simulate.pending(study) == (0,)
    with pytest.raises(NotSealed, match=r"found 1 items not done \(0\)"):
        part(study, "simulate", GATHER)
    assert part(study, "simulate", "0") == 0
    assert part(study, "simulate", GATHER) == 0
    seal, other = (product.read_seal(one.folder("simulate")) for one in (study, whole))
    assert seal is not None and other is not None
    assert seal.content == other.content
    assert [one["part"] for one in seal.made["parts"]] == ["0", "1"]
    assert not list(study.folder("simulate").glob("RUNNING*"))


def test_shards_labelled_apart_are_the_store_labelled_together(whole: Study, study: Study) -> None:
    shutil.rmtree(study.folder("kernel"))
    for number in (2, 0, 1):
        assert part(study, "kernel", f"{number}/3") == 0
    assert kernel.pending(study) == ()
    assert part(study, "kernel", GATHER) == 0
    assert files(study.folder("kernel")) == files(whole.folder("kernel"))
    assert study.state("kernel") == State.SEALED


def test_many_that_begin_at_once_make_the_folder_ready_once(study: Study) -> None:
    shutil.rmtree(study.folder("kernel"))
    made = []
    faults = []

    def begin(number: int) -> None:
        try:
            product.join(
                study.folder("kernel"),
                study.fingerprint("kernel"),
                study.intent("kernel"),
                str(number),
                lambda: made.append(number),
            )
        except Exception as error:  # noqa: BLE001  # shown below
            faults.append(error)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults and len(made) == 1
    assert len(claims.owners(study.folder("kernel"))) == 6


def test_a_part_waits_for_whoever_has_made_the_folder_ready_and_is_just_letting_go_of_it(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = study.folder("simulate"), (study.fingerprint("simulate"), study.intent("simulate"))
    ready, go_on = threading.Event(), threading.Event()

    def release_late(folder: Path, part: str = "") -> None:
        ready.set()
        assert go_on.wait(60)
        claims.release(folder, part)

    monkeypatch.setattr(product, "release", release_late)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(product.join, folder, *asked, "0")
        assert ready.wait(60)
        second = pool.submit(product.join, folder, *asked, "1")
        with pytest.raises(TimeoutError):
            second.result(timeout=0.5)
        go_on.set()
        first.result(timeout=60)
        second.result(timeout=60)
    assert sorted(path.name for path in folder.glob("RUNNING*")) == ["RUNNING-0", "RUNNING-1"]


def test_who_holds_the_folder_excludes_parts_and_the_other_way_round(study: Study) -> None:
    folder, asked = study.folder("simulate"), (study.fingerprint("simulate"), study.intent("simulate"))
    product.join(folder, *asked, "0")
    with pytest.raises(FolderBusy):
        product.begin(folder, *asked)
    with pytest.raises(FolderBusy):
        product.join(folder, *asked, "0")
    product.join(folder, *asked, "1")
    claims.release(folder, "0")
    claims.release(folder, "1")
    product.begin(folder, *asked)
    with pytest.raises(FolderBusy):
        product.join(folder, *asked, "0")
    assert [path.name for path in folder.glob("RUNNING*")] == ["RUNNING"]


def test_a_claim_of_another_host_is_taken_over_where_the_scheduler_says_that_it_is_gone(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = study.folder("simulate"), (study.fingerprint("simulate"), study.intent("simulate"))
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(claims.socket, "gethostname", lambda: "node7")
        product.begin(folder, *asked)
    with pytest.raises(FolderBusy, match="on node7"):
        product.begin(folder, *asked, gone=lambda owner: False)
    product.begin(folder, *asked, gone=lambda owner: owner.host == "node7")
    assert claims.owner(folder) is not None


def test_a_stage_without_parts_says_so(study: Study) -> None:
    with pytest.raises(ConfigError, match="train has no parts"):
        part(study, "train", "0")


@pytest.fixture
def submitted(study: Study) -> Iterator[Path]:
    copy = study.root / "copy.toml"
    copy.write_bytes(study.path.read_bytes())
    yield copy


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("steps = 12", "steps = 13", "train.steps was 12, is 13"),
        ('name = "toy"', 'name = "toy2"', "study.name was 'toy', is 'toy2'"),
        ("shard_frames = 128", "shard_frames = 64", "prepare.shard_frames was 128, is 64"),
    ],
)
def test_a_study_edited_since_it_was_submitted_is_refused_and_the_setting_named(
    study: Study, submitted: Path, old: str, new: str, told: str
) -> None:
    study.path.write_text(study.path.read_text().replace(old, new))
    with pytest.raises(ChangedStudy, match=told):
        perform(Task(str(study.path), "train", "whole", str(submitted)))
    assert not study.folder("simulate").exists()


def test_a_setting_of_a_later_stage_may_change(study: Study, submitted: Path) -> None:
    study.path.write_text(study.path.read_text().replace("bins = 12", "bins = 14"))
    assert perform(Task(str(study.path), "train", "whole", str(submitted))) == 0


def test_a_copy_that_is_gone_is_an_error(study: Study, submitted: Path) -> None:
    submitted.unlink()
    with pytest.raises(ChangedStudy, match="no file"):
        perform(Task(str(study.path), "train", "whole", str(submitted)))
