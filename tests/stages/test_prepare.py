"""Prepare: the same bytes for any number of ranks and after any kill; bad input is explained."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
from toy import write_archive, write_study

from hpc_cg import errors
from hpc_cg.files import read_arrays, read_json
from hpc_cg.stages.claims import owner, started_at
from hpc_cg.stages.molecules import Place
from hpc_cg.stages.product import State
from hpc_cg.stages.study import read_study
from hpc_cg.store.dataset import load, open_spec
from hpc_cg.store.layout import STORE
from jobs.run import run_stage


def jobs(study: Path, stage: str = "prepare", ranks: int = 1, mpiexec: str = "") -> list[str]:
    alone = [sys.executable, "-m", "jobs", stage, str(study)]
    return [mpiexec, "-n", str(ranks), *alone] if ranks > 1 else alone


def product_bytes(study: Path) -> dict[str, bytes]:
    """Everything of the product that must not depend on who made it."""
    folder = study.parent / "run" / "prepare"
    skipped = {"SEALED", "INTENT", "RUNNING", "sources.json"}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in skipped and not {".progress", "index"} & set(path.parts)
    }


def test_the_store_holds_the_archive_and_is_sealed(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path))
    assert study.state("prepare") == State.ABSENT
    run_stage(study, "prepare")
    assert study.state("prepare") == State.SEALED
    frames = load(study.folder("prepare") / STORE, "toy")
    assert frames.n_frames == 400 + 410 + 420
    expected = np.load(tmp_path / "archive" / "run1_coordinates.npy") * 1.0
    expected -= expected.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(frames.positions[400:810], expected, atol=1e-6)
    np.testing.assert_allclose(
        frames.forces[400:810], np.load(tmp_path / "archive" / "run1_forces.npy"), rtol=1e-5, atol=1e-2
    )


def test_the_streamed_second_moment_is_that_of_the_frames_trained_on(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path))
    run_stage(study, "prepare")
    frames = load(study.folder("prepare") / STORE, "toy")
    from hpc_cg.store.dataset import split

    train, _ = split(frames, open_spec(study.folder("prepare") / STORE, "toy").held_out)
    forces = frames.forces[train].astype(np.float64)
    expected = np.einsum("fba,fca->bc", forces, forces) / (3 * len(train))
    found = read_arrays(Place(study.folder("prepare"), "toy").map_arrays)["second_moment"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.mpi
def test_the_same_bytes_for_one_two_three_and_five_ranks(tmp_path: Path, mpiexec: str) -> None:
    products = []
    for ranks in (1, 2, 3, 5):
        folder = tmp_path / f"ranks {ranks}"  # a path with a space
        folder.mkdir()
        study = write_study(folder)
        subprocess.run(jobs(study, ranks=ranks, mpiexec=mpiexec), check=True, timeout=120)
        products.append(product_bytes(study))
    assert products[0]
    for other in products[1:]:
        assert products[0] == other


@pytest.mark.mpi
def test_the_same_bytes_after_kills_at_random_points_with_other_numbers_of_ranks(tmp_path: Path, mpiexec: str) -> None:
    (tmp_path / "whole").mkdir()
    whole = write_study(tmp_path / "whole")
    subprocess.run(jobs(whole), check=True, timeout=60)
    (tmp_path / "killed").mkdir()
    killed = write_study(tmp_path / "killed")
    dice = random.Random(1)
    for ranks in (1, 2, 3, 1, 2):
        process = subprocess.Popen(
            jobs(killed, ranks=ranks, mpiexec=mpiexec),
            start_new_session=True,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        time.sleep(dice.uniform(0.7, 2.2))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        subprocess.run(["pkill", "-9", "-f", str(killed)], check=False)
    subprocess.run(jobs(killed, ranks=2, mpiexec=mpiexec), check=True, timeout=60)
    assert product_bytes(whole) == product_bytes(killed)


def test_a_bad_frame_is_quarantined_with_its_reason_and_the_rest_is_kept(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path, prepare={"failure_budget": 0.01}))
    path = tmp_path / "archive" / "run1_coordinates.npy"
    positions = np.load(path)
    positions[7, 2, 0] = np.nan
    np.save(path, positions)
    run_stage(study, "prepare")
    rows = read_json(study.folder("prepare") / "quarantine.json")
    assert [(row["frame"], Path(row["path"]).name) for row in rows] == [(7, "run1_coordinates.npy")]
    assert load(study.folder("prepare") / STORE, "toy").n_frames == 1229


def test_too_many_bad_frames_end_the_stage_and_with_a_larger_budget_it_is_sealed_as_it_stands(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path))
    path = tmp_path / "archive" / "run0_forces.npy"
    forces = np.load(path)
    forces[:50] = np.inf
    np.save(path, forces)
    with pytest.raises(errors.TooManyFailures, match=r"0\.10% of 1230 frames.*50, the first in .*run0"):
        run_stage(study, "prepare")
    assert study.state("prepare") == State.PARTIAL
    made = {path: path.stat().st_mtime_ns for path in study.folder("prepare").glob("commits/*/*.json")}
    study = read_study(write_study(tmp_path, archive=False, prepare={"failure_budget": 0.05}))
    assert run_stage(study, "prepare") == 0
    assert made and {path: path.stat().st_mtime_ns for path in made} == made


def test_a_truncated_file_is_named_and_left_out_with_a_larger_budget(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path))
    path = tmp_path / "archive" / "run2_coordinates.npy"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(errors.TooManyFailures, match="run2_coordinates"):
        run_stage(study, "prepare")
    study = read_study(write_study(tmp_path, archive=False, prepare={"file_budget": 0.4}))
    assert run_stage(study, "prepare") == 0 and not (study.run_folder / "superseded").exists()


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path, prepare={"archive": ["nowhere/*.h5"]}))
    with pytest.raises(errors.MissingInput, match="nowhere"):
        run_stage(study, "prepare")


def test_an_archive_without_forces_is_refused(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path))
    for path in (tmp_path / "archive").glob("*_forces.npy"):
        path.unlink()
    with pytest.raises(errors.MissingForces, match="positions only"):
        run_stage(study, "prepare")


def test_another_number_of_beads_is_refused(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path, prepare={"beads": ["C", "N", "CA"]}))
    with pytest.raises(errors.AtomCountMismatch, match="3 atoms.*5 atoms"):
        run_stage(study, "prepare")


def test_segments_too_short_to_hold_any_block_out_are_refused(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path, prepare={"held_out_block_ps": 5000.0, "held_out_period": 9}))
    with pytest.raises(errors.TooFewFrames, match="held_out_block_ps"):
        run_stage(study, "prepare")


def test_a_changed_archive_makes_the_store_stale_and_the_old_one_is_kept(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path))
    run_stage(study, "prepare")
    write_archive(tmp_path / "archive", n_segments=4)
    assert study.state("prepare") == State.STALE
    run_stage(study, "prepare")
    assert study.state("prepare") == State.SEALED
    assert load(study.folder("prepare") / STORE, "toy").n_frames == 400 + 410 + 420 + 430
    assert len(list((tmp_path / "run" / "superseded").iterdir())) == 1


def test_a_store_outlives_its_archive(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path))
    run_stage(study, "prepare")
    shutil.rmtree(tmp_path / "archive")
    assert study.state("prepare") == State.SEALED


def test_a_sealed_stage_is_not_done_again(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path))
    run_stage(study, "prepare")
    before = product_bytes(study.path)
    shutil.rmtree(study.folder("prepare") / "moments")
    assert run_stage(study, "prepare") == 0
    assert product_bytes(study.path).keys() == {name for name in before if not name.startswith("moments")}


def test_a_continued_store_keeps_the_maps_that_were_fitted_first(tmp_path: Path) -> None:
    """Another processor rounds the fit differently; shards of two fits must not meet in one store."""
    study = read_study(write_study(tmp_path))
    run_stage(study, "prepare")
    folder = study.folder("prepare")
    (folder / "SEALED").unlink()
    record = next((folder / "moments" / "toy").glob("*.npz"))
    arrays = read_arrays(record)
    np.savez(record, **(arrays | {"train_gram": arrays["train_gram"] * (1 + 1e-12)}))
    run_stage(study, "prepare")
    assert study.state("prepare") == State.SEALED


def test_a_store_begun_for_another_spec_is_made_anew(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path))
    run_stage(study, "prepare")
    folder = study.folder("prepare")
    for name in ("SEALED", "maps/toy.json"):
        (folder / name).unlink()
    attributes = folder / STORE / "toy" / "zarr.json"
    attributes.write_text(attributes.read_text().replace('"kernel": "none"', '"kernel": "another"'))
    run_stage(study, "prepare")
    assert open_spec(folder / STORE, "toy").kernel == "none"
    assert study.state("prepare") == State.SEALED


def test_positions_alone_are_enough_for_noise_and_for_nothing_else(tmp_path: Path) -> None:
    path = write_study(tmp_path, prepare={"forces": False}, kernel={"kind": "noise"})
    for forces in (tmp_path / "archive").glob("*_forces.npy"):
        forces.unlink()
    for stage in ("prepare", "kernel", "train"):
        assert run_stage(read_study(path), stage) == 0
    write_study(tmp_path, archive=False, prepare={"forces": False}, kernel={"kind": "noise+forces"})
    with pytest.raises(errors.MissingForces, match="forces = false"):
        run_stage(read_study(path), "kernel")


def claim(folder: str, answers: str, start: Barrier, end: Barrier) -> None:
    """One of several processes that claim a folder at the same moment, and live until all have tried."""
    from hpc_cg.stages import claims

    start.wait(120)
    try:
        claims.claim_folder(Path(folder))
        Path(answers, str(os.getpid())).touch()
    except errors.FolderBusy:
        pass
    end.wait(120)


@pytest.mark.parametrize("left_behind", [False, True])
def test_of_many_runs_that_start_at_once_one_gets_the_folder(tmp_path: Path, left_behind: bool) -> None:
    context = multiprocessing.get_context("spawn")
    for number in range(3):
        folder, answers = (tmp_path / f"{name}{number}" for name in ("folder", "answers"))
        folder.mkdir()
        answers.mkdir()
        if left_behind:
            dead = {"host": socket.gethostname(), "pid": 999999, "started": "1", "job": "", "attempt": ""}
            (folder / "RUNNING").write_text(json.dumps(dead))
        barriers = context.Barrier(4), context.Barrier(4)
        members = [context.Process(target=claim, args=(str(folder), str(answers), *barriers)) for _ in range(4)]
        for member in members:
            member.start()
        for member in members:
            member.join()
        assert len(list(answers.iterdir())) == 1


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path))
    folder = study.folder("prepare")
    folder.mkdir(parents=True)
    sleeper = subprocess.Popen(["sleep", "60"])
    other = {
        "host": socket.gethostname(),
        "pid": sleeper.pid,
        "started": started_at(sleeper.pid),
        "job": "7",
        "attempt": "",
    }
    (folder / "RUNNING").write_text(json.dumps(other))
    try:
        assert str(owner(folder)) == f"process {sleeper.pid} on {socket.gethostname()}, job 7"
        with pytest.raises(errors.FolderBusy, match=f"process {sleeper.pid}"):
            run_stage(study, "prepare")
    finally:
        sleeper.kill()
        sleeper.wait()
    assert owner(folder) is None
    run_stage(study, "prepare")  # the other one is dead: its claim no longer counts
    assert study.state("prepare") == State.SEALED


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting a small disk needs root")
def test_a_full_disk_is_one_sentence_and_the_run_continues_when_there_is_space(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.decode().strip()}")
    try:
        study = write_study(tmp_path, study={"folder": str(disk / "run")})
        done = subprocess.run(jobs(study), capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert "no space left" in done.stderr and "Traceback" not in done.stderr
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        subprocess.run(jobs(study), check=True, timeout=60)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.data
def test_alanine_maps_meet_the_known_mean_squares_and_their_labels_integrate_to_the_histogram(
    data_folder: Path, tmp_path: Path
) -> None:
    """The force along ψ, integrated, finds a wrong force map; the slice map is one, and is seen to be noisier."""
    from hpc_cg.analysis.integration import psi_integration

    path = tmp_path / "study.toml"
    path.write_text(
        f'[study]\nname = "a"\ntemperature_K = 300.0\n[prepare]\nmolecule = "ala"\n'
        f'archive = ["{data_folder}/ala2_all_atom"]\ntopology = "{data_folder}/ala2_all_atom/topology.pdb"\n'
    )
    study = read_study(path)
    run_stage(study, "prepare")
    fitted = read_json(Place(study.folder("prepare"), "ala").map_record)
    held = {name: values["held_out"] for name, values in fitted["mean_square"].items()}
    assert held["optimal"] / held["uniform"] < 0.75
    assert held["optimal"] / held["slice"] < 0.70
    assert held["optimal"] / fitted["mean_square"]["optimal"]["train"] < 1.05
    assert fitted["orthogonality"] < 1e-10
    assert sum(len(group) for group in fitted["rigid_groups"]) - len(fitted["rigid_groups"]) == 12
    frames = load(study.folder("prepare") / STORE, "ala")
    system = open_spec(study.folder("prepare") / STORE, "ala").system
    found = psi_integration(frames.positions, frames.forces, system, 300.0)
    assert found.error_kT < 0.6
    assert abs(found.difference_kT - found.histogram_kT) < 2.5 * found.error_kT


@pytest.mark.data
def test_mapped_archives_in_other_units_are_read(data_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(
        '[study]\nname = "a"\ntemperature_K = 300.0\n[prepare]\nmolecule = "ala"\nmap = "identity"\n'
        'beads = ["C", "N", "CA", "C", "N"]\nlength_unit = "angstrom"\nforce_unit = "kcal/mol/angstrom"\n'
        f'stride_ps = 10.0\nheld_out_block_ps = 500.0\narchive = ["{data_folder}/ala2_5bead/*_coordinates.npy"]\n'
    )
    study = read_study(path)
    run_stage(study, "prepare")
    frames = load(study.folder("prepare") / STORE, "ala")
    assert np.sqrt(np.mean(np.square(frames.forces))) / 41.84 == pytest.approx(27.0007, rel=1e-4)
    bonds = np.linalg.norm(np.diff(frames.positions, axis=1), axis=2)
    np.testing.assert_allclose(bonds.mean(axis=0), [0.13293, 0.14653, 0.15436, 0.13354], atol=2e-5)
