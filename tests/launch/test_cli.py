"""What a person types: help worth reading, a sentence for a mistake, nothing done twice, Ctrl-C that loses nothing."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy import write_archive, write_study

from hpc_cg.stages.progress import Heartbeat, read_progress
from hpc_cg.stages.study import read_study
from launch.view import sentence

HPC_CG = [sys.executable, "-c", "from launch.cli import main; main()"]
ENVIRONMENT = os.environ | {"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"}


def hpc_cg(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    line = [*HPC_CG, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, env=ENVIRONMENT, cwd=cwd, check=False)


def words(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    study = write_study(tmp_path_factory.mktemp("cli"))
    first = hpc_cg("run", "all", study, "--ranks", 1)
    assert first.returncode == 0, first.stderr
    return study, first.stdout


def test_a_run_ends_with_the_figures_and_the_path_of_the_report(done: tuple[Path, str]) -> None:
    study, text = done
    for word in ("frames", "force error", "noise floor", "PMF error", "bond error", "simulation rate", "replicas lost"):
        assert word in text
    assert str(study.parent / "run" / "report" / "report.html") in text


def test_a_second_run_says_what_is_sealed_and_does_nothing_twice(done: tuple[Path, str]) -> None:
    study, _ = done
    before = {path: path.stat().st_mtime_ns for path in (study.parent / "run").rglob("SEALED")}
    again = hpc_cg("run", study)
    assert again.returncode == 0
    assert again.stdout.count("already sealed") == 6
    assert before == {path: path.stat().st_mtime_ns for path in (study.parent / "run").rglob("SEALED")}


def test_status_names_each_stage_in_eighty_columns(done: tuple[Path, str]) -> None:
    text = hpc_cg("status", done[0]).stdout
    assert max(len(line) for line in text.splitlines()) <= 80
    assert text.count("sealed") == 6
    assert '"train": "sealed"' in hpc_cg("status", done[0], "--json").stdout


def test_show_tells_settings_inputs_and_figures(done: tuple[Path, str]) -> None:
    text = hpc_cg("show", done[0], "train").stdout
    assert "settings:" in text and "learning_rate: 0.001" in text and "kernel: " in text
    assert "kernel:" not in hpc_cg("show", done[0], "prepare").stdout


def test_show_lists_the_segments_of_an_archive(tmp_path: Path) -> None:
    import h5py
    import numpy as np

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["positions"] = np.zeros((7, 5, 3), dtype=np.float32)
        file.attrs.update({"temperature_K": 350.0, "stride_ps": 0.5})
    text = hpc_cg("show", tmp_path).stdout
    assert "a.h5" in text and "350" in text and "1 segments, 7 frames" in text


def test_audit_finds_a_whole_study_whole_and_names_a_fault(done: tuple[Path, str], tmp_path: Path) -> None:
    whole = hpc_cg("audit", done[0])
    assert whole.returncode == 0 and whole.stdout.count("whole") == 6
    shutil.copytree(done[0].parent, tmp_path / "copy")
    shard = tmp_path / "copy/run/prepare/store.zarr/toy/forces/c/0/0/0"
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    shard.write_bytes(bytes(content))
    broken = hpc_cg("audit", tmp_path / "copy" / "study.toml")
    assert broken.returncode == 1
    assert "shard 0" in broken.stderr


def test_audit_notices_an_archive_that_has_changed(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    assert hpc_cg("run", "prepare", study, "--ranks", 1).returncode == 0
    write_archive(tmp_path / "archive", n_segments=3, n_frames=401)
    found = hpc_cg("audit", study)
    assert found.returncode == 1
    assert "not the one that the store was made from" in words(found.stderr)


@pytest.mark.parametrize(
    ("arguments", "sentence", "code"),
    [
        (("run", "all", "no.toml"), "no file", 1),
        (("run", "trian", "study.toml"), "trian is no stage of this study", 2),
        (("status", "."), "is a folder", 1),
        (("run", "kernel", "study.toml"), "hpc-cg run prepare", 1),
        (("show", "nothing/"), "nothing", 1),
    ],
)
def test_mistakes_are_one_sentence_and_an_exit_code(
    tmp_path: Path, arguments: tuple[str, ...], sentence: str, code: int
) -> None:
    write_study(tmp_path)
    found = hpc_cg(*arguments, cwd=tmp_path)
    assert found.returncode == code
    assert sentence in words(found.stderr)
    assert "Traceback" not in found.stderr + found.stdout


def test_a_failing_stage_gives_its_sentence_and_its_log(tmp_path: Path) -> None:
    study = write_study(tmp_path, train={"batch_size": 100000})
    found = hpc_cg("run", study, "--ranks", 1)
    assert found.returncode == 1
    assert "error in train" in found.stderr and "Lower train.batch_size" in words(found.stderr)
    assert "train.log" in found.stderr and "Traceback" not in found.stderr
    assert "sealed" in hpc_cg("status", study).stdout


@pytest.mark.mpi
def test_an_error_under_mpi_is_told_once(tmp_path: Path, mpiexec: str) -> None:
    study = write_study(tmp_path, prepare={"beads": ["C", "N", "CA"]})
    found = hpc_cg("run", "prepare", study, "--ranks", 3)
    assert found.returncode != 0
    assert words(found.stderr).count("asked") + words(found.stderr).count("3 atoms") == 1


@pytest.mark.parametrize("stage", ["prepare", "kernel", "train", "simulate", "aggregate", "report"])
def test_ctrl_c_in_any_stage_is_one_line_and_the_run_continues(
    done: tuple[Path, str], tmp_path: Path, stage: str
) -> None:
    shutil.copytree(done[0].parent, tmp_path / "study")
    study, run = tmp_path / "study" / "study.toml", tmp_path / "study" / "run"
    shutil.rmtree(run / stage)
    process = subprocess.Popen(
        [*HPC_CG, "run", stage, str(study), "--ranks", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    deadline = time.time() + 60
    while not (run / stage / "INTENT").exists() and time.time() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert process.returncode in (130, 0)
    assert "Traceback" not in text
    again = hpc_cg("run", stage, study, "--ranks", 1)
    assert again.returncode == 0, again.stderr
    assert f'"{stage}": "sealed"' in hpc_cg("status", study, "--json").stdout


def test_every_command_explains_itself() -> None:
    for command in ("run", "status", "show", "audit", "templates"):
        text = hpc_cg(command, "--help").stdout
        assert "Example" in text, command


def test_commands_that_need_no_torch_do_not_load_it(done: tuple[Path, str]) -> None:
    code = (
        "import sys; from launch import cli; sys.argv = ['hpc-cg', 'status', sys.argv[1]]\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "loaded = {'torch', 'zarr', 'mdtraj', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)"
    )
    found = subprocess.run([sys.executable, "-c", code, str(done[0])], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_progress_tells_rate_and_time_left_of_what_was_done_in_this_run(tmp_path: Path) -> None:
    beats = [Heartbeat(tmp_path, member) for member in (0, 1)]
    for beat, before in zip(beats, (100, 0), strict=True):
        beat("mapping", before, 1000, "frames")
        beat._last = 0.0
    now = time.time()
    beats[0]("mapping", 300, 1000, "frames", "note")
    beats[1]("mapping", 200, 1000, "frames")
    reading = read_progress(tmp_path)
    assert reading is not None
    assert (reading.done, reading.total, reading.before) == (500, 1000, 100)
    text = sentence(reading, reading.started + 10)
    assert text == "mapping: 500 of 1,000 frames, 40/s, 0:00:12 left  (note)"
    assert now - reading.started < 5


def test_the_stages_of_a_study_without_its_own_archive_leave_reference_out(tmp_path: Path) -> None:
    assert read_study(write_study(tmp_path)).stages[0] == "prepare"
