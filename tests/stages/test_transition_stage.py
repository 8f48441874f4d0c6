"""Transitions in a study: which frames are paired, by whom does not matter, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_corridor import start
from test_flow_stage import FLOW, run_up_to
from toy import PLACES, frames, write_study

from hpc_cg import errors
from hpc_cg.files import read_json
from hpc_cg.kernels.transition import superposed
from hpc_cg.learning.distributed import World
from hpc_cg.stages import transitions
from hpc_cg.stages.product import State
from hpc_cg.stages.progress import Heartbeat
from hpc_cg.stages.study import Study, read_study
from hpc_cg.store import writer
from hpc_cg.store.dataset import load, split
from jobs.run import run_stage
from launch.inspect import audit_study

LAG, DECAY = 3, 0.9


def write_chains(folder: Path, n_segments: int = 3, n_frames: int = 400, lost: int = 150) -> None:
    """Segments in which every frame remembers the one before; in the first, a frame has forces beyond any limit."""
    folder.mkdir(parents=True)
    for number in range(n_segments):
        kicks, forces = frames(n_frames + 10 * number, seed=number)
        shift = kicks - PLACES
        for i in range(1, len(shift)):
            shift[i] = DECAY * shift[i - 1] + np.sqrt(1 - DECAY**2) * shift[i]
        if number == 0:
            forces[lost] = 1e9
        np.save(folder / f"run{number}_coordinates.npy", PLACES + shift)
        np.save(folder / f"run{number}_forces.npy", forces)


def chain_study(folder: Path, kernel: str = "flow", archive: bool = True, **flow: Any) -> Study:
    """A study of transitions on such chains, whose frames are 1 ps apart."""
    if archive:
        write_chains(folder / "archive")
    path = write_study(folder, archive=False, kernel={"kind": kernel, "sigma_nm": 0.0}, prepare={"failure_budget": 0.1})
    settings = FLOW | {"kind": "coupling", "lag_ps": float(LAG)} | flow
    lines = [
        f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}" for key, value in settings.items()
    ]
    path.write_text(path.read_text() + "\n[flow]\n" + "\n".join(lines) + "\n")
    return read_study(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run_up_to(chain_study(tmp_path_factory.mktemp("whole"), "flow+forces"), "report")


def places(study: Study, stage: str) -> set[tuple[int, int]]:
    found = load(study.folder(stage) / "store.zarr", "toy")
    return set(zip(found.segment.tolist(), found.frame_index.tolist(), strict=True))


def test_a_study_of_transitions_comes_to_its_report_which_says_what_it_is(whole: Study) -> None:
    assert set(whole.states().values()) == {State.SEALED}
    page = (whole.folder("report") / "report.html").read_text()
    assert "of transitions over 3 ps" in page and "mapped forces of the later frame" in page
    assert (
        "virial" in page
        and "stiffness of 1:C–2:N" in page
        and "frames that the kernel drew" not in page
        and "scores of transitions" in page
    )


def test_frames_are_paired_within_segments_and_across_no_frame_that_is_lost_or_held_out(whole: Study) -> None:
    frames = load(whole.folder("prepare") / "store.zarr", "toy")
    there = places(whole, "prepare")
    out = {(s, f) for s, f in there if (f // 20 + s) % 4 == 3}
    assert (0, 150) not in there and len(there) == frames.n_frames
    wanted = {
        (s, f)
        for s, f in there
        if all((s, f - back) in there for back in range(LAG + 1)) and ((s, f) in out or (s, f - LAG) not in out)
    }
    assert places(whole, "flow") == wanted == places(whole, "kernel")
    train, _ = split(load(whole.folder("flow") / "store.zarr", "toy"), (20, 4))
    errors_ = read_json(whole.folder("flow") / "errors.json")
    assert errors_["train_frames"] == len(train) and errors_["lag_ps"] == LAG


def test_a_pair_holds_the_later_frame_the_way_to_the_earlier_one_and_the_score_that_tells_it(whole: Study) -> None:
    frames, pairs = (load(whole.folder(stage) / "store.zarr", "toy") for stage in ("prepare", "flow"))
    row = {(s, f): i for i, (s, f) in enumerate(zip(frames.segment.tolist(), frames.frame_index.tolist(), strict=True))}
    later = [row[s, f] for s, f in zip(pairs.segment.tolist(), pairs.frame_index.tolist(), strict=True)]
    earlier = [row[s, f - LAG] for s, f in zip(pairs.segment.tolist(), pairs.frame_index.tolist(), strict=True)]
    np.testing.assert_array_equal(pairs.positions, frames.positions[later])
    np.testing.assert_allclose(pairs.positions + pairs.noise, frames.positions[earlier], atol=1e-7)
    labels = load(whole.folder("kernel") / "store.zarr", "toy")
    np.testing.assert_array_equal(labels.positions, pairs.positions)
    assert labels.noise is None and np.isfinite(labels.forces).all()


def test_a_shard_of_pairs_that_is_lost_is_found_and_made_again(whole: Study) -> None:
    source = transitions.pair_source(whole)
    file = writer.shard_files(source.store, source.spec, 2)["noise"]
    kept = file.read_bytes()
    assert audit_study(whole, lambda text: None, repair=False) == []
    file.unlink()
    assert any("shard 2" in fault for fault in audit_study(whole, lambda text: None, repair=False))
    audit_study(whole, lambda text: None, repair=True)
    assert whole.state("flow") == State.PARTIAL and run_stage(whole, "flow") == 0
    assert file.read_bytes() == kept and whole.state("kernel") == State.SEALED


def test_mapped_forces_make_labels_quieter(whole: Study) -> None:
    record = read_json(whole.folder("kernel") / "kernel.json")["molecules"]["toy"]
    alone, both = (one["held_out"] for one in record["choices"])
    assert both < alone
    found = load(whole.folder("kernel") / "store.zarr", "toy")
    measured = np.square(found.forces[split(found, (20, 4))[1]]).mean()
    assert measured == pytest.approx(record["label_mean_square"]["held_out"], rel=0.1)
    assert record["identities"]["dimension"] == 15


def test_superposed_pairs_have_no_turn_and_a_continuous_flow_fits_them(tmp_path: Path) -> None:
    study = run_up_to(chain_study(tmp_path, kind="cnf", superpose=True, n_layers=1), "kernel")
    pairs = load(study.folder("flow") / "store.zarr", "toy")
    earlier = pairs.positions + pairs.noise
    np.testing.assert_allclose(superposed(earlier, pairs.positions), earlier, atol=1e-6)
    told = read_json(study.folder("flow") / "density.json")["density"]
    spread = np.sqrt(np.square(pairs.noise).mean() * 5 / 4 + FLOW["sigma_nm"] ** 2)
    assert told["sigma_prior_nm"] == pytest.approx(spread, rel=0.1)
    assert told["sigma_path_nm"] == pytest.approx(0.2 * FLOW["sigma_nm"])
    assert len(read_json(study.folder("kernel") / "kernel.json")["molecules"]["toy"]["choices"]) == 1


def test_few_pairs_give_as_many_labels_as_all_each_with_noise_of_its_own(tmp_path: Path) -> None:
    study = run_up_to(chain_study(tmp_path, "flow+forces", fraction=0.1, subset=3), "kernel")
    pairs, found = (load(study.folder(stage) / "store.zarr", "toy") for stage in ("flow", "kernel"))
    train, held_out = split(pairs, (20, 4))
    part = pairs.positions[train[3::10]]
    assert read_json(study.folder("flow") / "errors.json")["train_frames"] == len(part)
    np.testing.assert_array_equal(found.positions[train][::10], part[: len(train[::10])])
    np.testing.assert_array_equal(found.positions[held_out], pairs.positions[held_out])
    assert len(np.unique(found.forces[train], axis=0)) == len(train)


@pytest.mark.mpi
def test_three_processes_pair_frames_as_one_does_and_a_killed_one_is_gone_on_from(
    whole: Study, tmp_path: Path, mpiexec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = run_up_to(chain_study(tmp_path, "flow+forces"), "prepare")

    kept = transitions._write_shard

    def killed_at_the_second(*args: Any) -> None:
        if args[3] == 1:
            raise KeyboardInterrupt
        kept(*args)

    with monkeypatch.context() as patch:
        patch.setattr(transitions, "_write_shard", killed_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            run_stage(study, "flow")
    source = transitions.pair_source(study)
    assert 0 not in writer.holes(source.store, source.spec) and 1 in writer.holes(source.store, source.spec)
    assert start(study.path, "flow", 3, mpiexec).wait(120) == 0
    one, three = (load(each.folder("flow") / "store.zarr", "toy") for each in (whole, study))
    np.testing.assert_array_equal(one.noise, three.noise)
    np.testing.assert_array_equal(one.weights, three.weights)
    held_out = [read_json(each.folder("flow") / "errors.json")["held_out"] for each in (whole, study)]
    assert held_out[0] == pytest.approx(held_out[1], rel=1e-4)


def test_pairing_that_is_asked_to_stop_leaves_whole_shards_and_goes_on_later(tmp_path: Path) -> None:
    study = run_up_to(chain_study(tmp_path), "prepare")
    source, heartbeat = transitions.pair_source(study), Heartbeat(study.folder("flow"), 0)
    asked = iter((False, False, True))
    together = (study, World(0, 1), torch.device("cpu"), heartbeat)
    assert not transitions.write_pairs(*together, lambda: next(asked))
    assert len(writer.holes(source.store, source.spec)) == source.spec.n_shards - 2
    assert transitions.write_pairs(*together, lambda: False) and not writer.holes(source.store, source.spec)


@pytest.mark.parametrize(
    ("lag_ps", "error", "words"),
    [
        (2.5, errors.UnfitLag, r"flow\.lag_ps = 2\.5: found frames every 1 ps. Choose a multiple"),
        (500.0, errors.UnfitLag, r"flow\.lag_ps = 500, 500 frames: found segments of at most 420 frames"),
        (405.0, errors.TooFewFrames, r"flow\.lag_ps = 405, 405 frames: found 20 pairs to fit on, .* and 0 to judge by"),
    ],
)
def test_a_lag_that_the_archive_cannot_give_is_refused(tmp_path: Path, lag_ps: float, error: type, words: str) -> None:
    study = run_up_to(chain_study(tmp_path, lag_ps=lag_ps), "prepare")
    with pytest.raises(error, match=words):
        run_stage(study, "flow")


def test_segments_with_uneven_times_have_no_pairs(tmp_path: Path) -> None:
    study = run_up_to(chain_study(tmp_path), "prepare")
    index = study.folder("prepare") / "index" / "toy" / "segments.jsonl"
    text = index.read_text()
    assert text.count('"even": true') == 3
    index.write_text(text.replace('"even": true', '"even":false', 1))
    lag = transitions.lag_of(study)
    assert (lag.frames, lag.uneven) == (LAG, {0})
    assert transitions.pairs_in_shard(study, lag, 0, 500)["rows"].min() == 400 + LAG
    index.write_text(text.replace('"even": true', '"even":false'))
    with pytest.raises(errors.TooFewFrames, match=r"flow\.lag_ps = 3, 3 frames: found a gap, or uneven times"):
        run_stage(study, "flow")


def test_superposing_without_a_lag_and_a_negative_lag_are_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="superpose is for pairs"):
        chain_study(tmp_path, lag_ps=0.0, superpose=True)
    with pytest.raises(errors.ConfigError, match="lag_ps"):
        chain_study(tmp_path, archive=False, lag_ps=-1.0)
