"""The trainer: samples are a function of the step, a resumed run is the uninterrupted one, gradients add up."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import BEADS, TEMPERATURE_K, frames, stiffness

from hpc_cg.beads import bead_system
from hpc_cg.errors import BadFrames, DamagedProduct, NotSealed, TrainingDiverged
from hpc_cg.forcefield.coordinates import CoordinateMoments
from hpc_cg.forcefield.fitting import fit_priors
from hpc_cg.forcefield.forcefield import ForceField
from hpc_cg.forcefield.schnet import SchNetConfig
from hpc_cg.kernels.noise import NoiseKernel
from hpc_cg.learning import checkpoint
from hpc_cg.learning.distributed import World, check_gradients
from hpc_cg.learning.feed import Feed
from hpc_cg.learning.labels import Labels
from hpc_cg.learning.loop import Outcome, Trainer
from hpc_cg.learning.loss import ForceErrors, error_sums, errors_of, sum_of_squares
from hpc_cg.learning.mixture import Member
from hpc_cg.learning.resident import Resident
from hpc_cg.learning.settings import Settings
from hpc_cg.store.dataset import StoreFrames
from hpc_cg.units import kT

N = 600
ALONE = World(0, 1)
SETTINGS = Settings(
    steps=10,
    batch_size=32,
    learning_rate=1e-3,
    final_learning_rate=1e-5,
    warmup_steps=3,
    weight_decay=0.0,
    clip=10.0,
    validate_every=3,
    checkpoint_every=4,
    seed=5,
)


def labels() -> Labels:
    positions, forces = frames(N, seed=0)
    zeros = np.zeros(N, dtype=np.int64)
    store = StoreFrames(positions, None, forces, np.ones(N), zeros, np.arange(N))
    return Labels(store, NoiseKernel(0.003, TEMPERATURE_K, 0.3 * np.eye(5)), seed=5)


def forcefield(source: Labels) -> ForceField:
    bonds = [(i, i + 1) for i in range(4)]
    system = bead_system(BEADS, range(5), [12.0, 14.0, 12.0, 12.0, 14.0], bonds)
    moments = CoordinateMoments.of(source.frames.positions, system)
    return ForceField(
        system, fit_priors(moments, TEMPERATURE_K), SchNetConfig(n_filters=16, terminal_widths=(16,)), seed=1
    )


def trainer(folder: Path, settings: Settings = SETTINGS, source: Labels | None = None) -> Trainer:
    source = source or labels()
    return Trainer([alone(forcefield(source), feed(source, settings), settings)], settings, World(0, 1), folder)


def alone(made: ForceField, fed: Feed, settings: Settings = SETTINGS) -> Member:
    """The only molecule of a training."""
    return Member("toy", made, fed, settings.seed)


def feed(source: Labels, settings: Settings, world: World = ALONE, on_device: bool = False) -> Resident:
    index, cpu = np.arange(N), torch.device("cpu")
    return Resident(source, index[:480], index[480:], settings.seed, settings.batch_size, world, cpu, on_device)


def run(one: Trainer, stop_at: int = 10**9) -> Outcome:
    return one.run(lambda step, note: None, lambda: one.step + 1 >= stop_at, one.forcefield.describe())


def test_a_stopped_and_resumed_training_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    assert run(whole).finished
    first = trainer(tmp_path / "parts")
    stopped = run(first, stop_at=6)
    assert (stopped.finished, stopped.step) == (False, 6)
    second = trainer(tmp_path / "parts")
    assert run(second).finished
    for name, value in whole.forcefield.state_dict().items():
        assert torch.equal(value, second.forcefield.state_dict()[name]), name
    assert (tmp_path / "whole/curves.jsonl").read_bytes() == (tmp_path / "parts/curves.jsonl").read_bytes()


def test_labels_are_redrawn_at_each_step_and_the_same_for_the_same_step() -> None:
    source, index = labels(), np.arange(8)
    first, again, later = (source.batch(index, "training noise", step) for step in (3, 3, 4))
    np.testing.assert_array_equal(first.positions, again.positions)
    assert not np.array_equal(first.positions, later.positions)


def test_the_loss_goes_down_and_the_curves_are_kept(tmp_path: Path) -> None:
    from dataclasses import replace

    one = trainer(tmp_path, replace(SETTINGS, steps=60, learning_rate=5e-3))
    (before,) = one.validate()
    after = run(one).validation
    assert after.residual < before.residual
    rows = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows][-1] == 60
    assert {"train", "residual", "floor", "learning_rate"} <= rows[0].keys()


def test_a_frame_that_is_no_number_is_named_when_the_loss_is_none(tmp_path: Path) -> None:
    source = labels()
    one = trainer(tmp_path, source=source)
    one.resume()
    source.frames.forces[17] = np.nan  # as if damaged after it was checked
    with pytest.raises(TrainingDiverged, match="segment 0 frame 17"):
        for _ in range(15):
            one.advance(False)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e30])
def test_a_held_out_label_that_is_no_number_is_named_and_not_the_parameters(tmp_path: Path, wrong: float) -> None:
    source = labels()
    one = trainer(tmp_path, source=source)
    source.frames.forces[[497, 531]] = wrong
    with pytest.raises(BadFrames, match="held-out frames: found .* segment 0 frame 497, segment 0 frame 531"):
        run(one)
    assert one.step == 0


def test_gradients_of_shares_add_up_to_the_gradient_of_the_batch(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    batch = one.members[0].feed.same(20)
    one.gradient_of([batch], [20.0])
    whole = [p.grad.clone() for p in one.parameters]
    parts = [torch.zeros_like(p) for p in one.parameters]
    for rank in range(3):
        one.gradient_of([batch.part(slice(rank, 20, 3))], [20.0])
        for total, parameter in zip(parts, one.parameters, strict=True):
            total += parameter.grad
    a, b = (torch.cat([x.flatten() for x in gradient]) for gradient in (whole, parts))
    assert (a - b).norm() < 1e-5 * a.norm()
    check_gradients(lambda part: one.gradient_of([batch.part(part)], [20.0]), one.parameters, 20, World(0, 1))


def test_the_rate_warms_up_and_falls_to_its_end() -> None:
    rates = [SETTINGS.pace.rate(step) for step in range(11)]
    assert rates[0] == pytest.approx(1e-3 / 3)
    assert max(rates) == rates[3] == pytest.approx(1e-3)
    assert rates[10] == pytest.approx(1e-5)


def test_the_noise_floor_is_the_label_noise_for_a_model_that_is_the_conditional_mean() -> None:
    """Labels of the toy: a known mean force plus noise of 100 kJ/mol/nm."""
    positions, noisy = frames(20_000, seed=9)
    from toy import PLACES

    mean = torch.from_numpy(-stiffness() @ (positions - PLACES))
    label, zeros = torch.from_numpy(noisy), torch.zeros(20_000, 5, 3, dtype=torch.float64)
    errors = errors_of(error_sums(label, zeros, mean, torch.ones(20_000, dtype=torch.float64)))
    assert errors.residual == pytest.approx(1e4, rel=0.02)
    assert errors.floor == pytest.approx(1e4, rel=0.15)
    assert errors.explained == pytest.approx(1 - 1e4 / errors.label, rel=0.02)


def test_weights_count_as_repeated_frames() -> None:
    difference = torch.randn(4, 2, 3)
    weighted = sum_of_squares(difference, torch.tensor([2.0, 0.0, 1.0, 1.0]))
    torch.testing.assert_close(weighted, sum_of_squares(difference[[0, 0, 2, 3]], torch.ones(4)))


def test_explained_fractions() -> None:
    errors = ForceErrors(label=100.0, delta=50.0, model=70.0, residual=30.0)
    assert (errors.floor, errors.explained, errors.explained_delta) == (30.0, 0.7, 0.4)


def test_an_unsealed_checkpoint_is_not_loaded_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    run(one)
    folders = checkpoint.sealed(tmp_path)
    assert [folder.name for folder in folders] == ["step-000000008", "step-000000010"]
    (folders[-1] / "SEALED").unlink()
    assert checkpoint.newest(tmp_path).step == 8
    (folders[0] / "model.pt").write_bytes(b"other")
    with pytest.raises(DamagedProduct, match="other bytes"):
        checkpoint.newest(tmp_path)


def test_the_loaded_force_field_is_the_trained_one(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    run(one)
    loaded, step = checkpoint.load_forcefield(tmp_path)
    x = torch.from_numpy(frames(4, seed=2)[0]).float()
    assert step == 10
    torch.testing.assert_close(loaded(x).forces, one.forcefield(x).forces)
    with pytest.raises(NotSealed, match="Run the stage train"):
        checkpoint.load_forcefield(tmp_path / "nowhere")


def test_loading_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    import io
    import pickle

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    one = trainer(tmp_path / "run")
    run(one)
    folder = checkpoint.sealed(tmp_path / "run")[-1]
    buffer = io.BytesIO()
    torch.save(Evil(), buffer)
    (folder / "model.pt").write_bytes(buffer.getvalue())
    seals = json.loads((folder / "SEALED").read_text())
    from hpc_cg.files import digest_bytes

    (folder / "SEALED").write_text(json.dumps(seals | {"model.pt": digest_bytes(buffer.getvalue())}))
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.load(folder)
    assert not (tmp_path / "ran").exists()


def test_redrawn_labels_have_the_mean_square_that_the_closed_form_says() -> None:
    source = labels()
    batch = source.batch(np.arange(N).repeat(20), "test", 0)
    moment = np.einsum("fba,fca->bc", source.frames.forces, source.frames.forces) / (3 * N)
    c, w = (kT(TEMPERATURE_K) / 0.003) ** 2, 0.3
    expected = np.mean(w**2 * np.diag(moment) + (1 - w) ** 2 * c)
    assert np.mean(np.square(batch.forces)) == pytest.approx(expected, rel=0.02)
