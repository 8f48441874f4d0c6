"""Every setting of the trainer: it does what it says, and a resumed training is the uninterrupted one with it."""

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from test_learning import SETTINGS, feed, labels, run, trainer

from hpc_cg.errors import MissingExtra, NoCompiler, OtherNumbers, TrainingDiverged
from hpc_cg.learning import checkpoint, forces
from hpc_cg.learning.decoys import decoys_of, has_decoy
from hpc_cg.learning.distributed import World
from hpc_cg.learning.loop import Trainer
from hpc_cg.learning.settings import Settings
from hpc_cg.stages.train import TrainConfig

HERE = Path(__file__).parent
PATH = os.pathsep.join(map(str, (HERE, HERE.parent, HERE.parents[1])))
"""Where a process of its own finds this file, and what it imports."""

EVERYTHING = replace(
    SETTINGS,
    steps=14,
    warmup_steps=2,
    learning_rate=0.1,  # too fast on purpose: errors go up and down
    validate_every=2,
    filter_grid=256,
    schedule="plateau",
    plateau_factor=0.5,
    plateau_patience=1,
    early_stop=20,
    ema=0.9,
    accumulate=3,
    decoy_every=5,
    decoy_nm=0.02,
)


def weights(one: Trainer) -> torch.Tensor:
    return torch.cat([value.flatten() for value in one.forcefield.state_dict().values()])


def gradient(folder: Path, settings: Settings, step: int = 0) -> torch.Tensor:
    one = trainer(folder, settings)
    one.step = step
    one.gradient_of([one.members[0].feed.train(step)], [32.0])
    return torch.cat([parameter.grad.flatten() for parameter in one.parameters])


@pytest.mark.parametrize("stop_at", [5, 8])
def test_a_resumed_training_equals_an_uninterrupted_one_with_every_setting(tmp_path: Path, stop_at: int) -> None:
    whole = trainer(tmp_path / "whole", EVERYTHING)
    outcome = run(whole)
    assert outcome.finished and whole.progress.reductions > 0
    first = trainer(tmp_path / "parts", EVERYTHING)
    assert run(first, stop_at).step == stop_at
    second = trainer(tmp_path / "parts", EVERYTHING)
    assert replace(run(second), frames_per_s=0.0) == replace(outcome, frames_per_s=0.0)
    assert torch.equal(weights(whole), weights(second))
    one, two = (checkpoint.newest(tmp_path / name) for name in ("whole", "parts"))
    for name in one.model:
        assert torch.equal(one.average[name], two.average[name]) and torch.equal(one.best[name], two.best[name])
    assert one.cursor["progress"] == two.cursor["progress"]
    assert (tmp_path / "whole/curves.jsonl").read_bytes() == (tmp_path / "parts/curves.jsonl").read_bytes()


RESUME = """
import sys
from pathlib import Path
from test_learning import alone, feed, forcefield, labels, run
from test_settings import EVERYTHING
from hpc_cg.learning.distributed import join
from hpc_cg.learning.loop import Trainer
world = join(int(sys.argv[2]), 2, "127.0.0.1", int(sys.argv[3]))
source = labels()
member = alone(forcefield(source), feed(source, EVERYTHING, world), EVERYTHING)
one = Trainer([member], EVERYTHING, world, Path(sys.argv[1]))
assert run(one).finished
world.close()
"""


FAILS_ON_ONE = """
import sys, torch
from dataclasses import replace
from pathlib import Path
from test_learning import SETTINGS, alone, feed, forcefield, labels, run
from hpc_cg.errors import BrokenLaunch, MissingExtra, NoCompiler, OtherNumbers
from hpc_cg.forcefield import fused
from hpc_cg.learning.distributed import join
from hpc_cg.learning.loop import Trainer
rank = int(sys.argv[2])
world, source, said = join(rank, 2, "127.0.0.1", int(sys.argv[3]), timeout_s=60.0), labels(), []
if rank == 0:
    sys.modules["torch.utils.tensorboard"] = None
def fails(*_, **__):
    raise NoCompiler("pairs", "none", "install one")
torch.compile = lambda way, **_: fails if rank == 1 else way
fused.require = fails if rank == 1 else lambda: None
for change in ({"tensorboard": True}, {"compile": True}, {"pairs": "compiled", "filter_grid": 64}):
    settings = replace(SETTINGS, **change)
    try:
        member = alone(forcefield(source), feed(source, settings, world), settings)
        run(Trainer([member], settings, world, Path(sys.argv[1])))
    except (BrokenLaunch, MissingExtra, NoCompiler, OtherNumbers) as error:
        said.append(type(error))
wanted = [[MissingExtra, BrokenLaunch, BrokenLaunch], [BrokenLaunch, OtherNumbers, NoCompiler]]
assert said == wanted[rank], said
world.barrier()  # the first to leave would end the other, which still looks after its connection
world.close()
"""


def in_two_processes(code: str, folder: Path) -> list[int]:
    """The exit codes of two processes that meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    lines = [[sys.executable, "-c", code, str(folder), rank, port] for rank in "01"]
    started = [subprocess.Popen(line, env=os.environ | {"PYTHONPATH": PATH}) for line in lines]
    return [process.wait(300) for process in started]


def test_what_fails_on_one_process_fails_on_all_and_none_waits_for_ever(tmp_path: Path) -> None:
    assert in_two_processes(FAILS_ON_ONE, tmp_path) == [0, 0]


def test_a_training_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", EVERYTHING)
    run(whole)
    run(trainer(tmp_path / "parts", EVERYTHING), stop_at=5)
    assert in_two_processes(RESUME, tmp_path / "parts") == [0, 0]
    one, two = (checkpoint.newest(tmp_path / name) for name in ("whole", "parts"))
    assert one.step == two.step == EVERYTHING.steps
    same = ("best_step", "waited", "idle", "reductions")
    assert [one.cursor["progress"][x] for x in same] == [two.cursor["progress"][x] for x in same]
    for first, second in ((one.model, two.model), (one.average, two.average), (one.best, two.best)):
        a, b = (torch.cat([value.flatten() for value in weights.values()]) for weights in (first, second))
        assert (a - b).norm() < 1e-2 * a.norm()


def test_the_average_is_what_is_judged_and_simulated_and_the_weights_go_on(tmp_path: Path) -> None:
    one = trainer(tmp_path, replace(SETTINGS, ema=0.99, learning_rate=0.02))
    outcome = run(one)
    loaded, _ = checkpoint.load_forcefield(tmp_path)
    kept = checkpoint.newest(tmp_path)
    for (name, value), average in zip(loaded.named_parameters(), one.average.values, strict=True):
        assert torch.equal(value, average) and not torch.equal(value, kept.model[name])
    again = trainer(tmp_path / "judge")
    again.forcefield.load_state_dict(kept.average)
    assert again.validate()[0].residual == pytest.approx(outcome.validation.residual, rel=1e-6)
    again.forcefield.load_state_dict(kept.model)
    assert again.validate()[0].residual != pytest.approx(outcome.validation.residual, rel=1e-6)


def test_a_training_that_gets_no_better_ends_early_and_keeps_the_best_weights(tmp_path: Path) -> None:
    settings = replace(
        SETTINGS, steps=500, learning_rate=0.3, final_learning_rate=0.3, validate_every=1, early_stop=4, warmup_steps=0
    )
    one = trainer(tmp_path, settings)
    outcome = run(one)
    assert outcome.finished and outcome.step == outcome.chosen_step + 4 < 500
    rows = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    best = min(rows, key=lambda row: row["residual"])
    assert (best["step"], best["residual"]) == (outcome.chosen_step, outcome.validation.residual)
    loaded, step = checkpoint.load_forcefield(tmp_path)
    assert step == outcome.chosen_step
    judge = trainer(tmp_path / "judge")
    judge.forcefield.load_state_dict(loaded.state_dict())
    assert judge.validate()[0].residual == pytest.approx(best["residual"], rel=1e-6)
    again = run(trainer(tmp_path, settings))
    assert again.finished and (again.step, again.chosen_step) == (outcome.step, outcome.chosen_step)


@pytest.mark.parametrize("parts", [2, 5, 32])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(tmp_path: Path, parts: int) -> None:
    whole = gradient(tmp_path, SETTINGS)
    found = gradient(tmp_path, replace(SETTINGS, accumulate=parts))
    assert (found - whole).norm() < 1e-5 * whole.norm()


def test_a_frame_that_is_no_number_is_named_with_batches_in_parts_too(tmp_path: Path) -> None:
    source = labels()
    one = trainer(tmp_path, replace(EVERYTHING, accumulate=7), source)
    source.frames.forces[17] = np.nan
    with pytest.raises(TrainingDiverged, match="segment 0 frame 17"):
        for _ in range(15):
            one.advance(False)


def test_the_grid_trains_to_the_weights_of_the_filters_themselves(tmp_path: Path) -> None:
    exact, grid = trainer(tmp_path / "exact"), trainer(tmp_path / "grid", replace(SETTINGS, filter_grid=2048))
    assert run(exact).grid_error == 0.0
    assert 0.0 < run(grid).grid_error < 1e-4
    start = weights(trainer(tmp_path / "start"))
    assert (weights(grid) - weights(exact)).norm() < 0.01 * (weights(exact) - start).norm()


@pytest.mark.parametrize("change", [{"ema": 0.99}, {"ema": 0.9, "early_stop": 4}, {"early_stop": 4}, {}])
def test_what_the_grid_does_is_told_of_the_weights_that_are_simulated(tmp_path: Path, change: dict) -> None:
    settings = replace(SETTINGS, steps=12, learning_rate=0.1, validate_every=1, filter_grid=64, **change)
    one = trainer(tmp_path, settings)
    before, outcome = weights(one), run(one)
    judge = trainer(tmp_path / "judge", settings)
    judge.forcefield.load_state_dict(checkpoint.load_forcefield(tmp_path)[0].state_dict())
    assert outcome.grid_error == judge._grid_error()
    kept = checkpoint.newest(tmp_path)
    judge.forcefield.load_state_dict(kept.model)  # what is trained is there again afterwards, and is something else
    assert torch.equal(weights(judge), weights(one)) and not torch.equal(before, weights(one))
    assert bool(change) == (outcome.grid_error != judge._grid_error())


def test_any_number_of_processes_has_the_same_decoys(tmp_path: Path) -> None:
    source = labels()
    whole = decoys_of(feed(source, SETTINGS).train(3), 4, 0.05, seed=5, step=3)
    parts = [decoys_of(feed(source, SETTINGS, World(rank, 3)).train(3), 4, 0.05, seed=5, step=3) for rank in range(3)]
    assert sorted(whole.index) == sorted(np.concatenate([part.index for part in parts]))
    assert has_decoy(whole.index, 4, seed=5).all() and not whole.forces.any()
    for part in parts:
        for row, index in enumerate(part.index):
            assert torch.equal(part.positions[row], whole.positions[list(whole.index).index(index)])
    later = decoys_of(feed(source, SETTINGS).train(3), 4, 0.05, seed=5, step=4)
    assert not torch.equal(later.positions, whole.positions)


def test_decoys_are_displaced_copies_of_their_frames() -> None:
    batch = feed(labels(), replace(SETTINGS, batch_size=480)).train(0)
    found = decoys_of(batch, 2, 0.03, seed=1, step=0)
    own = batch.positions[np.flatnonzero(has_decoy(batch.index, 2, seed=1))]
    assert float((found.positions - own).std()) == pytest.approx(0.03, rel=0.05)
    assert decoys_of(batch, 10**12, 0.03, 1, 0) is None


@pytest.mark.parametrize("every", [1, 2, 10])
def test_any_part_of_the_frames_has_its_share_of_decoys(every: int) -> None:
    """Every k-th frame of them too, as train.fraction takes them."""
    parts = [np.arange(200_000)[subset::10] for subset in range(10)] + [np.arange(20_000)]
    shares = [has_decoy(part, every, seed=3).mean() for part in parts]
    error = (1 / every * (1 - 1 / every) / 20_000) ** 0.5
    assert shares == pytest.approx(np.full(11, 1 / every), abs=4.5 * error)
    one, other = (has_decoy(np.arange(20_000), every, seed) for seed in (3, 4))
    assert every == 1 or (one & other).mean() == pytest.approx(1 / every**2, abs=0.01)


def test_decoys_keep_the_network_flat_outside_the_data(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=60, learning_rate=1e-2, warmup_steps=0)
    with_decoys, without = (
        trainer(tmp_path / str(every), replace(settings, decoy_every=every, decoy_nm=0.05)) for every in (1, 0)
    )
    run(with_decoys), run(without)
    batch = feed(labels(), replace(SETTINGS, batch_size=480)).train(99)
    far = decoys_of(batch, 1, 0.05, seed=77, step=0).positions
    sizes = [float(one.exact[0](far).square().mean().detach()) for one in (with_decoys, without)]
    assert sizes[0] < 0.5 * sizes[1]


def test_half_precision_is_compared_with_single_on_held_out_frames(tmp_path: Path, monkeypatch) -> None:
    settings = replace(SETTINGS, precision="bfloat16", filter_grid=512)
    outcome = run(trainer(tmp_path / "half", settings))
    assert 0.0 < outcome.precision_error_at_start < forces.BFLOAT16_TOLERANCE
    single = run(trainer(tmp_path / "single"))
    assert (single.precision_error, single.precision_error_at_start) == (0.0, 0.0)
    monkeypatch.setattr(forces, "BFLOAT16_TOLERANCE", 1e-6)
    with pytest.raises(OtherNumbers, match='Set train.precision = "float32"'):
        run(trainer(tmp_path / "refused", settings))


def test_an_interruption_changes_neither_whether_half_precision_is_used_nor_what_is_told_of_it(
    tmp_path: Path, monkeypatch
) -> None:
    settings = replace(SETTINGS, precision="bfloat16", filter_grid=512, learning_rate=0.05, early_stop=20, ema=0.5)
    whole, parts = trainer(tmp_path / "whole", settings), tmp_path / "parts"
    outcome = run(whole)
    assert outcome.precision_error not in (0.0, outcome.precision_error_at_start)
    run(trainer(parts, settings), stop_at=6)
    monkeypatch.setattr(forces, "BFLOAT16_TOLERANCE", 1e-6)  # whatever the weights are by now
    assert replace(run(trainer(parts, settings)), frames_per_s=0.0) == replace(outcome, frames_per_s=0.0)
    judge = trainer(tmp_path / "judge", settings)
    judge.forcefield.load_state_dict(checkpoint.load_forcefield(parts)[0].state_dict())
    assert judge._precision_error() == outcome.precision_error


def test_curves_for_tensorboard_are_refused_without_its_package(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtra, match=r"hpc-cg\[tensorboard\]"):
        run(trainer(tmp_path, replace(SETTINGS, tensorboard=True)))


def test_curves_are_written_for_tensorboard_too(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = replace(SETTINGS, tensorboard=True)
    run(trainer(tmp_path, settings), stop_at=7)
    run(trainer(tmp_path, settings))
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    rows = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    found = {event.step: event.value for event in read.Scalars("residual")}
    assert found == pytest.approx({row["step"]: row["residual"] for row in rows}, rel=1e-6)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"compile": True, "pairs": "compiled"}, "take one"),
        ({"filter_grid": 0, "pairs": "compiled"}, "take one"),
        ({"compile": True, "precision": "bfloat16"}, "take one"),
        ({"accumulate": 300}, "more than batch_size = 256"),
        ({"learning_rate": 1e-6}, "final_learning_rate = 1e-05 is more than learning_rate = 1e-06"),
        ({"ema": 1.0}, "less than 1"),
        ({"schedule": "steps"}, "'cosine' or 'plateau'"),
    ],
)
def test_settings_that_exclude_one_another_are_refused(wrong: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TrainConfig(**wrong)


def test_every_word_of_the_table_is_heard_by_the_trainer_or_read_by_a_stage() -> None:
    """A word that nobody hears would do nothing."""
    known, heard = set(TrainConfig.__dataclass_fields__), set(Settings.__dataclass_fields__)
    assert heard <= known
    stages = "".join(path.read_text() for path in (HERE.parents[1] / "hpc_cg/stages").glob("*.py"))
    assert [name for name in known - heard if not re.search(rf"\b(self|config|train)\.{name}\b", stages)] == []


def test_forces_that_torch_compile_changes_are_refused(tmp_path: Path, monkeypatch) -> None:
    one = trainer(tmp_path, replace(SETTINGS, compile=True, filter_grid=64))
    monkeypatch.setattr(
        torch, "compile", lambda way, **_: lambda numbers, x: [1.01 * found for found in way(numbers, x)]
    )
    with pytest.raises(OtherNumbers, match="the same forces with train.compile"):
        run(one)

    def fails(numbers, positions):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", lambda way, **_: fails)
    with pytest.raises(OtherNumbers, match="torch.compile failing.*no compiler here"):
        run(one)


COMPILE = """
import sys, torch
from dataclasses import replace
from pathlib import Path
from test_learning import SETTINGS, run, trainer
compile, made = torch.compile, []
def noted(frames, inputs):
    made.append(inputs[0].shape)
    return aot_autograd(fw_compiler=lambda graph, _: graph)(frames, inputs)  # no minutes for C++
from torch._dynamo.backends.common import aot_autograd
torch.compile = lambda way, **options: compile(way, backend=noted, **options)
torch._dynamo.config.fail_on_recompile_limit_hit = True
settings = replace(SETTINGS, steps=14, filter_grid=64, pairs="torch", accumulate=3, decoy_every=2)
plain, quick = (trainer(Path(sys.argv[1]) / str(on), replace(settings, compile=on)) for on in (False, True))
run(plain), run(quick)
sizes = quick.network_forces.n_frames
assert sizes == {((0, 10),), ((0, 11),)} and len(made) == 2, (sizes, made)
one, two = ([value.clone() for value in x.forcefield.state_dict().values()] for x in (plain, quick))
start = list(trainer(Path(sys.argv[1]) / "start").forcefield.state_dict().values())
apart, moved = (sum(float((x - y).square().sum()) for x, y in zip(one, z)) ** 0.5 for z in (two, start))
assert quick.network_forces is not quick.ways and apart < 0.01 * moved, (apart, moved)
"""


def test_a_step_that_torch_compile_makes_is_the_plain_one_and_is_made_for_two_sizes_only(tmp_path: Path) -> None:
    """Batches of 32 in three parts, and decoys whose number changes.

    In a process of its own, without the checks of shapes that tests add, which torch.compile cannot read.
    """
    environment = os.environ | {"PYTHONPATH": PATH, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    line = [sys.executable, "-c", COMPILE, str(tmp_path)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_compiled_pairs_are_used_where_they_can_be_and_said(tmp_path: Path) -> None:
    from hpc_cg.forcefield import fused

    settings = replace(SETTINGS, filter_grid=64)
    found = {name: trainer(tmp_path, replace(settings, pairs=name)).exact[0].pairs for name in ("auto", "torch")}
    assert found == {"auto": "compiled" if fused.available() else "torch", "torch": "torch"}


def test_compiled_pairs_are_refused_on_an_accelerator_and_not_left_out() -> None:
    """They are code for processors; the name of the device is enough to know."""
    settings, gpu = replace(SETTINGS, filter_grid=64), torch.device("cuda")
    with pytest.raises(NoCompiler, match='training on cuda.*Set train.pairs = "auto"'):
        forces.choose_grid(replace(settings, pairs="compiled"), gpu)
    assert not forces.choose_grid(settings, gpu).compiled
