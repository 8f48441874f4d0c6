"""One thin entry for every stage: stopped when its time is over, continued by the next run, done once."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from toy import write_study

from hpc_cg.stages import claims, product
from hpc_cg.stages.study import Study, read_study
from jobs.deadline import Deadline
from jobs.run import PARTIAL, run_stage

STAGES = ("prepare", "kernel", "train", "simulate")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """What a stage does with signals is undone after it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("stages"), kernel={"draws": "stored"})


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_whose_time_is_over_seals_nothing_and_the_next_run_ends_it(
    path: Path, stage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study = read_study(path)  # each stage on the products of those before it
    monkeypatch.setenv("HPC_CG_END_TIME", str(time.time() + 20))
    assert run_stage(study, stage) == PARTIAL
    assert f"{stage} stopped at a safe place" in caplog.text
    assert study.state(stage) == product.State.PARTIAL
    assert not (study.folder(stage) / claims.RUNNING).exists()
    monkeypatch.delenv("HPC_CG_END_TIME")
    assert run_stage(study, stage) == 0
    assert study.state(stage) == product.State.SEALED
    before = (study.folder(stage) / product.SEALED).stat().st_mtime_ns
    assert run_stage(study, stage) == 0
    assert (study.folder(stage) / product.SEALED).stat().st_mtime_ns == before


def asked_after(n_items: int, how: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``how`` happen when a stage has asked ``n_items`` times whether to stop."""
    asked, stop = 0, Deadline.stop

    def counted(self: Deadline, longest_item_s: float = 0.0) -> bool:
        nonlocal asked
        asked += 1
        if asked == n_items:
            how()
            self._looked = 0.0  # as if a second had passed
        return stop(self, longest_item_s)

    monkeypatch.setattr(Deadline, "stop", counted)


def shards(study: Study) -> int:
    return len(list((study.folder("prepare") / "commits" / "toy").glob("*.json")))


@pytest.mark.parametrize("asked_by", ["SIGUSR2", "SIGTERM", "STOP"])
def test_a_stage_that_is_asked_to_stop_keeps_what_it_has_done(
    tmp_path: Path, asked_by: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study = read_study(write_study(tmp_path, prepare={"shard_frames": 16}))

    def ask() -> None:
        if asked_by == "STOP":
            (study.folder("prepare") / product.STOP).touch()
        else:
            os.kill(os.getpid(), getattr(signal, asked_by))

    monkeypatch.setenv("SLURM_JOB_ID", "41")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 3600))
    with monkeypatch.context() as patched:
        asked_after(70, ask, patched)
        assert run_stage(study, "prepare") == PARTIAL
    done = shards(study)
    assert 0 < done < 77
    assert f"prepare stopped at a safe place with {study.done('prepare')[0]} of " in caplog.text
    assert run_stage(study, "prepare") == 0
    assert shards(study) == 77
    assert not (study.folder("prepare") / product.STOP).exists()
