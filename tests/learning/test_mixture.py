"""One network trained on several molecules: the loss is the mean of theirs, and a resumed training the whole one."""

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
from test_learning import SETTINGS

from hpc_cg.beads import bead_system
from hpc_cg.errors import BadFrames, DamagedProduct, MissingInput, OtherNumbers, TrainingDiverged
from hpc_cg.forcefield.coordinates import CoordinateMoments
from hpc_cg.forcefield.fitting import fit_priors
from hpc_cg.forcefield.forcefield import ForceField, describe_several
from hpc_cg.forcefield.schnet import SchNetConfig
from hpc_cg.kernels.noise import NoiseKernel
from hpc_cg.learning import checkpoint
from hpc_cg.learning.distributed import World
from hpc_cg.learning.labels import Labels
from hpc_cg.learning.loop import Trainer
from hpc_cg.learning.loss import ForceErrors
from hpc_cg.learning.mixture import Member, seed_of, vocabulary
from hpc_cg.learning.resident import Resident
from hpc_cg.learning.settings import Settings
from hpc_cg.store.dataset import StoreFrames

HERE = Path(__file__).parent
PATH = os.pathsep.join(map(str, (HERE, HERE.parent, HERE.parents[1])))
TEMPERATURE_K, CPU, ALONE = 300.0, torch.device("cpu"), World(0, 1)
CHAINS = {"short": ("A", "B", "A"), "long": ("B", "A", "C", "A", "B", "C")}
SHAPE = SchNetConfig(cutoff_nm=0.8, n_rbf=8, n_filters=16, terminal_widths=(16,))
N = 300
EVERYTHING = replace(
    SETTINGS,
    steps=14,
    warmup_steps=2,
    learning_rate=0.1,
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


def labels(name: str, seed: int) -> Labels:
    """Frames of a zigzag chain that fluctuates, with forces back to it and noise."""
    order, random = np.arange(len(CHAINS[name])), np.random.default_rng(len(name))
    places = np.stack((0.3 * order, 0.2 * (order % 2), 0.05 * order % 0.12), 1)
    shift = random.normal(0, 0.02, (N, len(order), 3))
    forces = -4e3 * shift + random.normal(0, 30, shift.shape)
    zeros = np.zeros(N, dtype=np.int64)
    store = StoreFrames(places + shift, None, forces, np.ones(N), zeros, np.arange(N))
    return Labels(store, NoiseKernel(0.003, TEMPERATURE_K, 0.3 * np.eye(len(order))), seed)


def members(
    settings: Settings = SETTINGS, world: World = ALONE, names: tuple[str, ...] = tuple(CHAINS)
) -> list[Member]:
    rows, types = vocabulary(list(CHAINS.values()))
    index, found = np.arange(N), []
    for name, own in zip(CHAINS, types, strict=True):
        source = labels(name, seed_of(settings.seed, name))
        system = bead_system(CHAINS[name], own, [12.0] * len(own), [(i, i + 1) for i in range(len(own) - 1)])
        priors = fit_priors(CoordinateMoments.of(source.frames.positions, system), TEMPERATURE_K)
        made = found[0].forcefield.beside(system, priors) if found else None
        made = made or ForceField(system, priors, SHAPE, seed=1, n_types=len(rows))
        feed = Resident(source, index[:240], index[240:], source.seed, settings.batch_size // 2, world, CPU)
        found.append(Member(name, made, feed, source.seed))
    return [member for member in found if member.name in names]


def trainer(folder: Path, settings: Settings = SETTINGS, world: World = ALONE) -> Trainer:
    return Trainer(members(settings, world), settings, world, folder)


def finish(one: Trainer, stop_at: int = 10**9):
    description = describe_several({member.name: member.forcefield for member in one.members}, ["A", "B", "C"])
    return one.run(lambda step, note: None, lambda: one.step + 1 >= stop_at, description)


def gradient(one: Trainer) -> torch.Tensor:
    batches = [member.feed.train(0) for member in one.members]
    one.gradient_of(batches, [float(len(one.members) * batch.weights.sum()) for batch in batches])
    return torch.cat([parameter.grad.flatten() for parameter in one.parameters])


def weights(one: Trainer) -> torch.Tensor:
    return torch.cat([value.flatten() for value in one.forcefield.state_dict().values()])


def test_molecules_share_the_numbers_of_their_types() -> None:
    rows, types = vocabulary([("N", "CA", "C"), ("C", "CB")])
    assert rows == {"C": 0, "CA": 1, "CB": 2, "N": 3}
    assert types == [(3, 1, 0), (0, 2)]


def test_what_is_drawn_for_one_molecule_has_nothing_to_do_with_another() -> None:
    assert seed_of(1, "a") == seed_of(1, "a")
    assert len({seed_of(seed, name) for seed in (1, 2) for name in ("a", "b")}) == 4


@pytest.mark.parametrize("change", [{}, {"filter_grid": 256}, {"accumulate": 3}, {"decoy_every": 2}])
def test_the_gradient_is_the_mean_of_those_of_the_molecules(tmp_path: Path, change: dict) -> None:
    settings = replace(SETTINGS, **change)
    together = gradient(Trainer(members(settings), settings, ALONE, tmp_path))
    apart = [gradient(Trainer(members(settings, names=(name,)), settings, ALONE, tmp_path)) for name in CHAINS]
    assert (together - (apart[0] + apart[1]) / 2).norm() < 1e-5 * together.norm()
    assert (apart[0] - apart[1]).norm() > 0.1 * together.norm()


def test_errors_are_the_mean_over_molecules_and_those_of_each(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    outcome = finish(one)
    rows = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    short, long = outcome.of_molecules
    assert outcome.validation == ForceErrors.pooled([short, long])
    assert outcome.validation.residual == (short.residual + long.residual) / 2
    assert [rows[-1][f"residual {name}"] for name in CHAINS] == [short.residual, long.residual]
    assert rows[-1]["residual"] == outcome.validation.residual
    alone = Trainer(one.members[:1], SETTINGS, ALONE, tmp_path).validate()
    assert alone == (short,)


def test_both_molecules_get_better_by_one_network(tmp_path: Path) -> None:
    one = trainer(tmp_path, replace(SETTINGS, steps=60, learning_rate=5e-3, filter_grid=256))
    before, after = one.validate(), finish(one).of_molecules
    assert all(late.residual < early.residual for late, early in zip(after, before, strict=True))


@pytest.mark.parametrize("stop_at", [5, 8])
def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path, stop_at: int) -> None:
    whole = trainer(tmp_path / "whole", EVERYTHING)
    outcome = finish(whole)
    assert finish(trainer(tmp_path / "parts", EVERYTHING), stop_at).step == stop_at
    second = trainer(tmp_path / "parts", EVERYTHING)
    assert replace(finish(second), frames_per_s=0.0) == replace(outcome, frames_per_s=0.0)
    assert torch.equal(weights(whole), weights(second))
    assert (tmp_path / "whole/curves.jsonl").read_bytes() == (tmp_path / "parts/curves.jsonl").read_bytes()


RESUME = """
import sys
from pathlib import Path
from test_mixture import EVERYTHING, finish, trainer
from hpc_cg.learning.distributed import join
world = join(int(sys.argv[2]), 2, "127.0.0.1", int(sys.argv[3]))
assert finish(trainer(Path(sys.argv[1]), EVERYTHING, world)).finished
world.close()
"""


def test_a_training_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    """These compare their gradient with that of one process at the start."""
    finish(trainer(tmp_path / "whole", EVERYTHING))
    finish(trainer(tmp_path / "parts", EVERYTHING), stop_at=5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    lines = [[sys.executable, "-c", RESUME, str(tmp_path / "parts"), rank, port] for rank in "01"]
    started = [subprocess.Popen(line, env=os.environ | {"PYTHONPATH": PATH}) for line in lines]
    assert [process.wait(300) for process in started] == [0, 0]
    one, two = (checkpoint.newest(tmp_path / name) for name in ("whole", "parts"))
    assert one.step == two.step == EVERYTHING.steps
    for first, second in ((one.model, two.model), (one.average, two.average), (one.best, two.best)):
        a, b = (torch.cat([value.flatten() for value in found.values()]) for found in (first, second))
        assert (a - b).norm() < 1e-2 * a.norm()


def test_the_force_field_of_each_molecule_is_loaded_from_one_checkpoint(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    finish(one)
    for member in one.members:
        loaded, step = checkpoint.load_forcefield(tmp_path, member.name)
        positions = member.feed.same(4).positions
        assert step == 10 and loaded.system == member.forcefield.system
        assert torch.equal(loaded(positions).forces, member.forcefield(positions).forces)
    for wrong in ("villin", None):
        with pytest.raises(MissingInput, match=r"trained on long, short .*Name one of these as simulate\.molecule"):
            checkpoint.load_forcefield(tmp_path, wrong)
    description = checkpoint.sealed(tmp_path)[-1] / "description.json"
    content = json.loads(description.read_text())
    description.write_text(json.dumps(content | {"vocabulary": ["A", "B"]}))
    with pytest.raises(DamagedProduct):
        checkpoint.load_forcefield(tmp_path, "long")


def test_a_bad_frame_is_named_with_its_molecule(tmp_path: Path) -> None:
    one = trainer(tmp_path / "trained")
    one.resume()
    one.members[1].feed.labels.frames.forces[17] = np.nan
    with pytest.raises(TrainingDiverged, match="caused by long: segment 0 frame 17"):
        for _ in range(15):
            one.advance(False)
    held = trainer(tmp_path / "held-out")
    held.members[0].feed.labels.frames.forces[250] = np.nan
    held.members[1].feed.labels.frames.forces[260] = np.nan
    with pytest.raises(BadFrames, match=re.escape("short: segment 0 frame 250, long: segment 0 frame 260")):
        finish(held)


def test_half_precision_is_judged_by_the_worst_molecule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, precision="bfloat16", filter_grid=256)
    one = trainer(tmp_path, settings)
    errors = [Trainer([member], settings, ALONE, tmp_path)._precision_error() for member in one.members]
    assert one._precision_error() == max(errors) and min(errors) > 0
    monkeypatch.setattr("hpc_cg.learning.forces.BFLOAT16_TOLERANCE", (errors[0] + errors[1]) / 2)
    with pytest.raises(OtherNumbers, match="bfloat16"):
        finish(one)


COMPILE = """
import sys, torch
from dataclasses import replace
from pathlib import Path
from test_mixture import SETTINGS, finish, trainer, weights
from torch._dynamo.backends.common import aot_autograd
compile = torch.compile
quickly = aot_autograd(fw_compiler=lambda graph, _: graph)  # no minutes for C++
torch.compile = lambda way, **options: compile(way, backend=quickly, **options)
torch._dynamo.config.fail_on_recompile_limit_hit = True
settings = replace(SETTINGS, steps=6, filter_grid=64, pairs="torch", accumulate=3, decoy_every=2)
plain, quick = (trainer(Path(sys.argv[1]) / str(on), replace(settings, compile=on)) for on in (False, True))
finish(plain), finish(quick)
assert quick.network_forces.n_frames == {((0, 5), (1, 5)), ((0, 6), (1, 6))}, quick.network_forces.n_frames
assert (weights(plain) - weights(quick)).norm() < 1e-6 * weights(plain).norm()
"""


def test_a_step_that_torch_compile_makes_is_the_plain_one(tmp_path: Path) -> None:
    """In a process of its own, without the checks of shapes that tests add, which torch.compile cannot read."""
    line = [sys.executable, "-c", COMPILE, str(tmp_path)]
    done = subprocess.run(
        line, env=os.environ | {"PYTHONPATH": PATH}, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
