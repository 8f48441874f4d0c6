"""What a person types: help worth reading, a sentence for a mistake, nothing done twice, Ctrl-C that loses nothing."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from toy import write_archive, write_study

from hpc_cg.stages import product
from hpc_cg.stages.progress import Heartbeat, read_progress
from hpc_cg.stages.study import read_study
from launch.cli import STOPPED
from launch.family import Member, family, kill
from launch.tail import Tail
from launch.view import sentence
from launch.words import figures

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
    for figure in ("1,230 frames", "10 shards", "σ 0.003 nm", "kJ/mol/nm", "noise floor", "6 replicas", "0 lost", "kT"):
        assert figure in text
    assert str(Path("run", "report", "report.html")) in text and str(done[0].parent) not in text
    assert json.loads(hpc_cg("status", done[0], "--json").stdout)["stages"]["train"]["state"] == "sealed"


def copied(done: tuple[Path, str], folder: Path) -> Path:
    """The finished study, in a folder where it may be spoilt."""
    shutil.copytree(done[0].parent, folder / "copy", ignore=shutil.ignore_patterns(".progress"))
    return folder / "copy" / "study.toml"


def claim(path: Path, stage: str) -> Path:
    """Let this very process work on a stage; returns its folder."""
    study = read_study(path)
    product.begin(study.folder(stage), study.fingerprint(stage), study.inputs(stage))
    return study.folder(stage)


def test_status_tells_how_much_is_done_and_who_works_there(done: tuple[Path, str], tmp_path: Path) -> None:
    study = copied(done, tmp_path)
    (study.parent / "run/simulate/SEALED").unlink()
    assert "4 of 4 blocks; stopped" in words(hpc_cg("status", study).stdout)
    claim(study, "simulate")
    assert f"4 of 4 blocks; running: process {os.getpid()} on" in words(hpc_cg("status", study).stdout)


def test_status_names_a_folder_that_cannot_be_read_and_shows_the_others(done: tuple[Path, str], tmp_path: Path) -> None:
    study = copied(done, tmp_path)
    seal = study.parent / "run/simulate/SEALED"
    seal.unlink()
    seal.mkdir()
    found = hpc_cg("status", study)
    assert found.returncode == 1 and "Traceback" not in found.stderr
    assert found.stdout.count("sealed") == 3 and found.stdout.count("unreadable") == 3
    assert "simulate/SEALED" in re.sub(r"\s", "", found.stdout) and "as simulate" in found.stdout
    again = hpc_cg("run", study)
    assert again.returncode == 1 and "simulate/SEALED" in again.stderr and "Traceback" not in again.stderr


def test_a_refused_second_run_touches_nothing_of_the_first(done: tuple[Path, str], tmp_path: Path) -> None:
    study = copied(done, tmp_path)
    study.write_text(study.read_text().replace("steps = 12", "steps = 13"))
    folder = claim(study, "train")
    Heartbeat(folder, 0)("training", 5, 13, "steps")
    before = sorted(path for path in (study.parent / "run").rglob("*"))
    second = hpc_cg("run", "train", study, "--ranks", 1)
    assert second.returncode == 1
    assert f"process {os.getpid()} on" in second.stderr and "wait for it or stop it" in second.stderr.lower()
    assert sorted(path for path in (study.parent / "run").rglob("*")) == before
    assert read_progress(folder) is not None


def test_the_line_of_a_stale_stage_is_not_broken(done: tuple[Path, str], tmp_path: Path) -> None:
    study = copied(done, tmp_path)
    study.write_text(study.read_text().replace("batch_size = 32", "batch_size = 100000"))
    assert "settings or inputs have changed: will be made again" in hpc_cg("status", study).stdout
    text = hpc_cg("run", "train", study, "--ranks", 1).stdout
    assert "stale: settings or inputs have changed: will be made again, the old is kept in superseded/\n" in text


@pytest.mark.parametrize("log", [Path("/dev/full"), Path("/dev/null/logs/train.log")])
def test_what_a_stage_says_arrives_where_no_log_can_be_written(log: Path) -> None:
    noise = b"".join(b"line %d\n" % number for number in range(1000))
    tail = Tail(io.BytesIO(b"hpc-cg: the disk is full\n" + noise + b"hpc-cg: the disk is full\n"), log)
    tail.close()
    assert tail.message == "the disk is full"
    assert tail.log is None


def test_without_a_sentence_the_last_lines_are_shown(tmp_path: Path) -> None:
    tail = Tail(io.BytesIO(b"".join(b"line %d\n" % number for number in range(1000))), tmp_path / "logs" / "a.log")
    tail.close()
    assert tail.message.splitlines() == [f"line {number}" for number in range(985, 1000)]
    assert tail.log is not None and len(tail.log.read_text().splitlines()) == 1000


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


def test_show_tells_of_each_molecule_of_a_sealed_prepare(done: tuple[Path, str]) -> None:
    text = hpc_cg("show", done[0], "prepare").stdout
    assert "toy: 3 segments, 1,230 frames, 5 beads" in text
    assert "force map: optimal, λ" in text and "quarantined: 0 frames" in text
    for name in ("slice", "uniform", "optimal"):
        assert re.search(rf"^ +{name} +[\d.,]+ +[\d.,]+", text, re.MULTILINE), name
    assert text.count("<- used") == 1


def archive_of(folder: Path, *names: str) -> Path:
    import h5py
    import numpy as np

    folder.mkdir(exist_ok=True)
    for name in names:
        with h5py.File(folder / name, "w") as file:
            file["positions"] = np.zeros((3, 5, 3), dtype=np.float32)
            file.attrs.update({"temperature_K": 350.0, "stride_ps": 0.5})
    return folder


def test_names_of_files_are_shown_as_they_are(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "q[red]", "[b].h5", "[x].h5")
    (archive / "[bold].h5").write_bytes(b"junk")
    archive_of(tmp_path / "q[red]", "b.h5")
    (archive / "b.h5").rename(archive / os.fsdecode(b"b\xff.h5"))
    found = hpc_cg("show", archive, "--all")
    assert found.returncode == 0, found.stderr
    text = re.sub(r"\s", "", found.stdout)
    for name in ("[b].h5", "[x].h5", "[bold].h5", "udcff", "3segments,9frames,1filesthatcannotberead"):
        assert name in text


def test_show_lists_every_segment_where_all_are_asked_for_and_as_json(tmp_path: Path) -> None:
    import json

    archive = archive_of(tmp_path / "many", *(f"run{number:03d}.h5" for number in range(45)))
    (archive / "bad.h5").write_bytes(b"junk")
    text = hpc_cg("show", archive).stdout
    assert "run039.h5" in text and "run040.h5" not in text and "--all shows every one" in words(text)
    text = hpc_cg("show", archive, "--all").stdout
    assert "run044.h5" in text and "--all" not in text and "45 segments, 135 frames" in text
    lines = [json.loads(line) for line in hpc_cg("show", archive, "--json").stdout.splitlines()]
    assert "bad.h5" in lines[0]["unreadable"]
    assert [Path(line["path"]).name for line in lines[1:]] == [f"run{number:03d}.h5" for number in range(45)]
    assert lines[1]["n_frames"] == 3 and lines[1]["stride_ps"] == 0.5


def test_options_for_archives_are_refused_for_studies(done: tuple[Path, str]) -> None:
    found = hpc_cg("show", done[0], "--all")
    assert found.returncode == 2 and "--all and --json are for archives" in words(found.stderr)


@pytest.mark.parametrize(("count", "words_for_it"), [(0, ""), (1, ", 1 warning"), (2, ", 2 warnings")])
def test_warnings_of_a_product_are_counted(tmp_path: Path, count: int, words_for_it: str) -> None:
    study = read_study(write_study(tmp_path))
    summary = {"frames": 10, "warnings": ["the forces are large"] * count, "unreadable_files": 0}
    seal = product.Seal("prepare", "", {}, "", {}, {}, summary, {})
    assert figures(study, "prepare", seal) == "10 frames" + words_for_it


def test_audit_finds_a_whole_study_whole_and_names_a_fault(done: tuple[Path, str], tmp_path: Path) -> None:
    def contents() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (done[0].parent).rglob("*")}

    before = contents()
    whole = hpc_cg("audit", done[0])
    assert whole.returncode == 0 and whole.stdout.count("whole") == 6, whole.stderr
    assert contents() == before, "an audit writes nothing"
    shutil.copytree(done[0].parent, tmp_path / "copy")
    shard = tmp_path / "copy/run/prepare/store.zarr/toy/forces/c/0/0/0"
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    shard.write_bytes(bytes(content))
    broken = hpc_cg("audit", tmp_path / "copy" / "study.toml")
    assert broken.returncode == 1
    assert "shard 0" in broken.stderr


def test_audit_names_every_file_that_is_missing_changed_or_new(done: tuple[Path, str], tmp_path: Path) -> None:
    study = copied(done, tmp_path)
    run = study.parent / "run"
    (run / "train/errors.json").write_text("{}")
    (run / "aggregate/figures.npz").unlink()
    (run / "report/notes.txt").write_text("mine")
    broken = hpc_cg("audit", study)
    assert broken.returncode == 1
    for fault in ("train: errors.json", "aggregate: figures.npz is missing", "report: notes.txt"):
        assert fault in words(broken.stderr)
    assert broken.stdout.count("whole") == 3


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
        (("run", "trian", "study.toml"), "trian is no stage of this study. Did you mean train?", 2),
        (("run", "prepare"), "the study file is missing. Try: hpc-cg run prepare study.toml", 2),
        (("run", "study.toml", "kernel"), "kernel reads the product of prepare", 1),
        (("status", "."), "is a folder", 1),
        (("run", "kernel", "study.toml"), "Run the stage prepare of this study first", 1),
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
    assert "Traceback" not in found.stderr
    log = Path(found.stderr.split("log: ")[1].strip())
    assert log.name.startswith("train-") and "Lower train.batch_size" in words(log.read_text())
    assert "sealed" in hpc_cg("status", study).stdout


@pytest.mark.mpi
def test_an_error_under_mpi_is_told_once(tmp_path: Path, mpiexec: str) -> None:
    study = write_study(tmp_path, prepare={"beads": ["C", "N", "CA"]})
    found = hpc_cg("run", "prepare", study, "--ranks", 3)
    assert found.returncode != 0
    assert words(found.stderr).count("asked") + words(found.stderr).count("3 atoms") == 1


def started(study: Path, stage: str, ranks: int) -> subprocess.Popen[str]:
    """A run in a process group of its own, as a shell starts it."""
    return subprocess.Popen(
        [*HPC_CG, "run", stage, str(study), "--ranks", str(ranks)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )


def moved_on(study: Path, stage: str, before: float = 0) -> bool:
    reading = read_progress(study.parent / "run" / stage)
    return reading is not None and reading.before >= before and reading.done > reading.before


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.time() + 120
    while not happened():
        assert process.poll() is None and time.time() < deadline, process.communicate()
        time.sleep(0.02)


def ctrl_c(process: subprocess.Popen[str]) -> tuple[frozenset[Member], str]:
    """Ctrl-C as a terminal sends it, to the whole group; returns who ran, and what stderr said."""
    members = family(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    try:
        _, text = process.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        kill(members)  # a failing test leaves nobody behind
        raise
    return members, text


def alive(members: frozenset[Member]) -> frozenset[Member]:
    return frozenset(member for member in members if member in family(member.pid))


@pytest.mark.parametrize("stage", ["prepare", "kernel", "aggregate", "report"])
def test_ctrl_c_in_a_short_stage_is_one_line_and_the_run_continues(
    done: tuple[Path, str], tmp_path: Path, stage: str
) -> None:
    study = copied(done, tmp_path)
    run = study.parent / "run"
    shutil.rmtree(run / stage)
    process = started(study, stage, 1)
    wait_for((run / stage / "INTENT").exists, process)
    _, text = ctrl_c(process)
    assert (process.returncode, text.strip()) in ((130, STOPPED), (0, ""))
    again = hpc_cg("run", stage, study, "--ranks", 1)
    assert again.returncode == 0, again.stderr
    assert json.loads(hpc_cg("status", study, "--json").stdout)["stages"][stage]["state"] == "sealed"


ONE_AND_TWO = [1, pytest.param(2, marks=pytest.mark.mpi)]


@pytest.mark.parametrize("ranks", ONE_AND_TWO)
def test_ctrl_c_in_training_saves_and_the_run_goes_on_from_there(
    done: tuple[Path, str], tmp_path: Path, ranks: int, request: pytest.FixtureRequest
) -> None:
    if ranks > 1:
        request.getfixturevalue("mpiexec")
    study = copied(done, tmp_path)
    study.write_text(study.read_text().replace("steps = 12", "steps = 1000000").replace("every = 5", "every = 500000"))
    folder, saved = study.parent / "run/train", 0
    for _ in range(2):
        process = started(study, "train", ranks)
        wait_for(partial(moved_on, study, "train", saved), process)
        members, text = ctrl_c(process)
        assert (process.returncode, text.strip()) == (130, STOPPED)
        assert not alive(members) and len(members) > ranks
        newest = max(int(seal.parent.name.removeprefix("step-")) for seal in folder.glob("step-*/SEALED"))
        assert newest > saved, "each run starts from the step that the one before has saved"
        saved = newest
        assert not (folder / product.STOP).exists()
    assert f"{saved:,} of 1,000,000 steps saved; stopped" in words(hpc_cg("status", study).stdout)


@pytest.mark.parametrize("ranks", ONE_AND_TWO)
def test_ctrl_c_in_a_simulation_leaves_no_process_behind(
    done: tuple[Path, str], tmp_path: Path, ranks: int, request: pytest.FixtureRequest
) -> None:
    if ranks > 1:
        request.getfixturevalue("mpiexec")
    study = copied(done, tmp_path)
    study.write_text(study.read_text().replace("time_ps = 1.6", "time_ps = 16000.0"))
    process = started(study, "simulate", ranks)
    wait_for(partial(moved_on, study, "simulate"), process)
    members, text = ctrl_c(process)
    assert (process.returncode, text.strip()) == (130, STOPPED)
    assert not alive(members) and len(members) > ranks


def test_sigterm_ends_a_run_like_ctrl_c(done: tuple[Path, str], tmp_path: Path) -> None:
    study = copied(done, tmp_path)
    study.write_text(study.read_text().replace("time_ps = 1.6", "time_ps = 16000.0"))
    process = started(study, "simulate", 1)
    wait_for((study.parent / "run/simulate/RUNNING").exists, process)
    members = family(process.pid)
    process.terminate()
    _, text = process.communicate(timeout=60)
    assert (process.returncode, text.strip()) == (130, STOPPED)
    assert not alive(members)


@pytest.mark.parametrize("ranks", ONE_AND_TWO)
def test_a_run_whose_time_is_over_says_where_it_stopped_and_the_next_one_goes_on(tmp_path: Path, ranks: int) -> None:
    study = write_study(tmp_path)
    line = [*HPC_CG, "run", "all", str(study), "--ranks", str(ranks)]
    over = ENVIRONMENT | {"HPC_CG_END_TIME": str(time.time())}
    stopped = subprocess.run(line, env=over, capture_output=True, text=True, timeout=60, check=False)
    assert stopped.returncode == 75, stopped.stderr
    assert "prepare stopped at a safe place; run it again to continue" in words(stopped.stdout)
    assert hpc_cg("run", "prepare", study, "--ranks", 1).returncode == 0


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


def test_export_writes_what_a_program_with_torch_alone_can_use(done: tuple[Path, str], tmp_path: Path) -> None:
    study, _ = done
    told = hpc_cg("export", study, "--to", tmp_path / "alanine.pt", "--double")
    assert told.returncode == 0, told.stderr
    names = ("alanine.pt", "alanine.json", "alanine-network.npz")
    assert told.stdout.splitlines() == [f"written: {tmp_path / name}" for name in names]
    beside = json.loads((tmp_path / "alanine.json").read_text())
    assert beside["study"] == "toy" and beside["temperature_K"] == 300.0 and beside["step"] == 12
    energy, _ = torch.jit.load(tmp_path / "alanine.pt")(torch.tensor(beside["example"]["positions_nm"]).double())
    assert energy.item() == pytest.approx(beside["example"]["energy_kJ_mol"], rel=1e-9)


def test_export_of_what_is_not_trained_is_refused_with_what_to_do(done: tuple[Path, str], tmp_path: Path) -> None:
    study, _ = done
    fresh = write_study(tmp_path)
    told = hpc_cg("export", fresh)
    assert told.returncode == 1 and "run the stage train of this study first" in words(told.stderr).lower()
    changed = study.with_name("changed.toml")
    changed.write_text(study.read_text().replace("steps = 12", "steps = 13"))
    told = hpc_cg("export", changed, "--to", tmp_path / "a.pt2")
    assert told.returncode == 1 and "made with other settings" in words(told.stderr)
    assert hpc_cg("export", study, "--to", tmp_path / "a.onnx").returncode == 1
    assert not list(tmp_path.glob("a.*"))
