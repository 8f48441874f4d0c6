"""What stage kernel says of a learnt kernel: theory's numbers for one that is exact, and how many labels failed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_corridor import start
from test_flow_stage import run_up_to, study_of
from toy import write_study

from hpc_cg import errors
from hpc_cg.beads import bead_system
from hpc_cg.files import read_arrays, read_json
from hpc_cg.frames import BeadFrames
from hpc_cg.kernels import control
from hpc_cg.kernels.gaussian import GaussianKernel
from hpc_cg.kernels.reverse import ReverseKernel
from hpc_cg.learning.checkpoint import load_density
from hpc_cg.stages import kernel as stage
from hpc_cg.stages.judgement import DRAWN, SURFACES, Drawn, of_draws, refuse_failing
from hpc_cg.stages.product import State
from hpc_cg.stages.study import Study, read_study
from hpc_cg.store import layout, writer
from hpc_cg.store.dataset import load, open_spec
from hpc_cg.units import BOLTZMANN
from jobs.run import run_stage

SIGMA, N, UNIT_KT = 0.3, 30_000, 1 / BOLTZMANN
CHAIN = bead_system(("A", "B"), (0, 0), (12.0,) * 2, [(0, 1)])


def exact_draws(with_forces: bool) -> tuple[ReverseKernel, list[Drawn]]:
    """Draws of the exact kernel for independent coordinates of variance 1, whose forces are −R + unit noise; kT = 1."""
    density = GaussianKernel.reverse(np.zeros((2, 3)), np.eye(6), SIGMA, centred=False)
    kernel = ReverseKernel(density, SIGMA, UNIT_KT, with_forces, None, torch.device("cpu"))
    random, sides = np.random.default_rng(1), []
    for _ in range(2):
        clean = random.normal(size=(N, 2, 3)).astype(np.float32)
        forces = (-clean + random.normal(size=clean.shape)).astype(np.float32)
        condition = BeadFrames(clean, forces, np.ones(N, np.float32))
        links = kernel.links(clean, random)
        sides.append(Drawn(condition, links, kernel.labels(condition, links)))
    return kernel, sides


def test_of_an_exact_kernel_every_number_is_the_one_that_theory_gives() -> None:
    kernel, (train, held_out) = exact_draws(with_forces=True)
    choices = control.judge(train.labels.moments(), held_out.labels.moments())
    found = of_draws(kernel, CHAIN, train, held_out, choices, 0.0)
    assert (found["draws"], found["failed"], found["beyond"]) == (N, 0, None)
    told = found["identities"]
    assert told["dimension"] == 6 and told["virial"] == pytest.approx(-6, abs=4 * told["virial_error"])
    assert told["misfit"] < 4 and told["virial_error"] < 0.1
    (bonds,) = found["denoising"]
    assert bonds["drawn_width"] == pytest.approx(bonds["clean_width"], rel=0.02) and bonds["kind"] == "bonds"
    c = 1 / SIGMA**2
    labels = found["labels"]
    assert labels["noise"] == pytest.approx(c)
    assert labels["noise+forces"] == pytest.approx(2 * c / (c + 2), rel=0.03)  # W = c/(M + c) with M = 2
    alone, *_, both = labels["choices"]
    assert alone["against_noise"] == pytest.approx(1 / (1 + SIGMA**2), rel=0.03)  # c over c + 1
    assert both["against_noise+forces"] == pytest.approx(1.695 / 1.73, rel=0.04)


def test_labels_without_the_mean_over_beads_are_measured_against_noise_without_it() -> None:
    covariance = np.kron(np.eye(2) - 0.5, np.eye(3))
    density = GaussianKernel.reverse(np.zeros((2, 3)), covariance, SIGMA, centred=True)
    kernel = ReverseKernel(density, SIGMA, UNIT_KT, False, None, torch.device("cpu"))
    random = np.random.default_rng(1)
    clean = random.normal(size=(N, 2, 3)).astype(np.float32)
    clean -= clean.mean(1, keepdims=True)
    condition = BeadFrames(clean, np.zeros_like(clean), np.ones(N, np.float32))
    links = kernel.links(clean, random)
    side = Drawn(condition, links, kernel.labels(condition, links))
    choices = control.judge(side.labels.moments(), side.labels.moments())
    found = of_draws(kernel, CHAIN, side, side, choices, 0.0)
    assert found["identities"]["dimension"] == 3
    assert found["labels"]["noise"] == pytest.approx(0.5 / SIGMA**2)
    assert found["labels"]["choices"][0]["against_noise"] == pytest.approx(1 / (1 + SIGMA**2), rel=0.04)


def test_a_sample_with_too_many_failures_is_refused_and_one_with_few_is_not() -> None:
    kernel, (side, _) = exact_draws(with_forces=False)
    side.labels.failed[:50] = True
    assert side.n_failed == 50 and side.weights.sum() == N - 50
    refuse_failing(kernel, [side], 0.002)
    with pytest.raises(errors.TooManyFailures, match=r"at most 0\.10% of 30000 frames.*found 50 in a sample"):
        refuse_failing(kernel, [side], 0.001)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study up to its labels."""
    return run_up_to(study_of(tmp_path_factory.mktemp("fitted"), kind="coupling"), "kernel")


def copy_of(study: Study, folder: Path, **changes: str) -> Study:
    """The same study elsewhere, without labels; ``changes`` replaces text of the study file."""
    shutil.copytree(study.path.parent, folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "run/kernel")
    path = folder / study.path.name
    text = path.read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return read_study(path)


def narrowed(study: Study, quantile: float) -> None:
    """Make the kernel of a study know short first bonds only, so that it fails on the others."""
    path = study.folder("flow") / "density.json"
    told = json.loads(path.read_text())
    frames = load(study.folder("prepare") / layout.STORE, "toy").positions
    bond = np.linalg.norm(frames[:, 1] - frames[:, 0], axis=-1)
    reach = told["fitted_on"]["reach"]
    reach["low_nm"][0], reach["high_nm"][0] = -10.0, float(np.quantile(bond, quantile)) / 1.5 - 10.0 / 3
    path.write_text(json.dumps(told))


def test_what_all_labels_show_is_the_sum_over_shards_and_can_be_made_again_from_them(
    fitted: Study, tmp_path: Path
) -> None:
    folder = fitted.folder("kernel")
    told, arrays = read_json(folder / DRAWN)["toy"], read_arrays(folder / SURFACES)
    frames = load(folder / layout.STORE, "toy")
    assert (told["frames"], told["failed"], told["shards"]) == (frames.n_frames, 0, [])
    assert [row["label"] for row in told["surfaces"]] == ["φ, ψ"]
    assert all(arrays[f"toy_{name}"].sum() == frames.n_frames for name in ("clean", "noised", "drawn"))
    copy = copy_of(fitted, tmp_path)
    shutil.copytree(folder, copy.folder("kernel"))
    shutil.rmtree(copy.folder("kernel") / "judged")
    stage.gather(copy)
    assert read_json(copy.folder("kernel") / DRAWN)["toy"] == told


@pytest.mark.mpi
def test_three_processes_judge_as_one(fitted: Study, tmp_path: Path, mpiexec: str) -> None:
    copy = copy_of(fitted, tmp_path)
    assert start(copy.path, "kernel", 3, mpiexec).wait(120) == 0
    one, three = (study.folder("kernel") for study in (fitted, copy))
    assert (one / DRAWN).read_bytes() == (three / DRAWN).read_bytes()
    assert (one / SURFACES).read_bytes() == (three / SURFACES).read_bytes()


def test_labels_that_fail_are_refused_above_the_budget_and_counted_below(fitted: Study, tmp_path: Path) -> None:
    study = copy_of(fitted, tmp_path)
    narrowed(study, 0.9)
    with pytest.raises(errors.TooManyFailures, match="in a sample; .* out of reach"):
        run_stage(study, "kernel")
    text = study.path.read_text()
    study.path.write_text(text.replace("[kernel]", "[kernel]\nfailure_budget = 0.5"))
    allowed = run_up_to(read_study(study.path), "report")
    assert allowed.fingerprint("kernel") == study.fingerprint("kernel")
    told = read_json(allowed.folder("kernel") / DRAWN)["toy"]
    assert 0.02 < told["failed"] / told["frames"] < 0.3
    store, prepared = (allowed.folder(name) / layout.STORE for name in ("kernel", "prepare"))
    kept = writer.committed(store, open_spec(store, "toy"))
    given = writer.committed(prepared, open_spec(prepared, "toy"))
    rows = {row["shard"]: row["failed"] for row in told["shards"]}
    assert rows == {i: given[i].n_good - kept[i].n_good for i in given if given[i].n_good != kept[i].n_good}
    assert np.isfinite(load(store, "toy").forces).all()
    page = (allowed.folder("report") / "report.html").read_text()
    assert f"{told['failed']} of {told['frames']:,} frames got no label" in page
    worst = told["shards"][0]
    assert f"{worst['failed']} labels" in page and f"in shard {worst['shard']}" in page


def test_all_labels_are_held_to_the_budget(fitted: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = copy_of(fitted, tmp_path)
    narrowed(study, 0.9)
    monkeypatch.setattr("hpc_cg.stages.judgement.refuse_failing", lambda *about: None)
    with pytest.raises(errors.TooManyFailures, match=r"the first in shard 0 of toy: \d+ of 128"):
        run_stage(study, "kernel")


def test_another_temperature_makes_a_fit_stale(fitted: Study, tmp_path: Path) -> None:
    text = fitted.path.read_text()
    other = fitted.path.with_name("warmer.toml")
    other.write_text(text.replace("temperature_K = 300.0", "temperature_K = 310.0"))
    assert read_study(other).states()["flow"] == State.STALE


def test_the_weights_of_another_kernel_are_refused_by_name(fitted: Study, tmp_path: Path) -> None:
    other = run_up_to(study_of(tmp_path / "other", kind="coupling", width=16), "flow")
    study = copy_of(fitted, tmp_path / "copy")
    (step,) = (path.parent for path in study.folder("flow").glob("step-*/SEALED"))
    shutil.rmtree(step)
    shutil.copytree(other.folder("flow") / step.name, step)
    with pytest.raises(errors.DamagedProduct, match=r"coupling kernel of toy with 5 beads.*\(.*\) in the weights and"):
        load_density(study.folder("flow"))


def test_the_kernel_of_another_molecule_is_refused_by_name(fitted: Study, tmp_path: Path) -> None:
    study = copy_of(fitted, tmp_path)
    path = study.folder("flow") / "density.json"
    told = json.loads(path.read_text())
    told["fitted_on"] |= {"molecule": "villin", "beads": ["CA"] * 35}
    path.write_text(json.dumps(told))
    with pytest.raises(errors.DamagedProduct, match="kernel of toy with 5 beads.*fitted to villin with 35 beads"):
        run_stage(study, "kernel")


@pytest.mark.parametrize("table", ["kernel", "flow"])
def test_a_variance_in_the_place_of_a_width_is_refused(tmp_path: Path, table: str) -> None:
    if table == "flow":
        path = write_study(tmp_path, archive=False, kernel={"kind": "flow", "sigma_nm": 0.0})
        path.write_text(path.read_text() + "\n[flow]\nsigma_nm = 2.5e-5\n")
    else:
        path = write_study(tmp_path, archive=False, kernel={"sigma_nm": 2.5e-5})
    with pytest.raises(errors.ConfigError, match=r"standard deviation.*root, 0\.005"):
        read_study(path)
