"""A study submitted whole to a real Slurm: the products of one command, only what is missing again, users' habits."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from drills import (
    ask,
    clean,
    hpc_cg,
    in_queue,
    jobs_of,
    logs,
    product,
    study_in,
    wait_for,
    wait_for_end,
    with_products,
    write_site,
)
from virtual_slurm import running_slurm

from hpc_cg.stages import claims
from hpc_cg.stages import product as product_folder
from hpc_cg.stages.product import State, read_seal
from hpc_cg.stages.study import Study, read_study

pytestmark = [pytest.mark.slurm, pytest.mark.mpi, pytest.mark.timeout(420)]

GOLDEN = Path(__file__).parents[1] / "launch" / "golden"
SHORT = {
    "prepare": {"shard_frames": 64},
    "train": {"steps": 12, "checkpoint_every": 5},
    "simulate": {"time_ps": 1.6, "block_ps": 0.8},
}
Environ = dict[str, str]


@pytest.fixture(scope="module")
def environ(slurm: Environ) -> Environ:
    return clean(slurm)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chain")


@pytest.fixture(scope="module")
def one_command(place: Path, environ: Environ, mpiexec: Path) -> Study:
    """The study as ``hpc-cg run all`` makes it, on as many ranks as two nodes with two tasks have."""
    study = study_in(place / "one command", **SHORT)
    hpc_cg(environ, "run", "all", study, "--ranks", "4")
    return read_study(study)


def same(study: Study, other: Study) -> None:
    """Every product is that of the other study: bytes of the store, numbers of the model, frames, figures."""
    for stage in ("prepare", "train", "simulate"):
        assert product(study, stage) == product(other, stage), stage
    seals = [read_seal(one.folder("aggregate")) for one in (study, other)]
    assert seals[0] is not None and seals[1] is not None
    assert seals[0].summary == seals[1].summary
    tables = [json.loads((one.folder("report") / "summary.json").read_text()) for one in (study, other)]
    figures = [[row for row in table if "/s" not in row[1] and "second" not in row[0]] for table in tables]
    assert figures[0] == figures[1]


def test_a_study_submitted_whole_ends_with_the_products_of_one_command(
    environ: Environ, place: Path, one_command: Study
) -> None:
    path = study_in(place / "sub mitted", **SHORT)
    write_site(path.parent, tasks=2)
    study = read_study(path)
    said = hpc_cg(environ, "submit", "all", path).stdout
    assert [line.split()[0] for line in said.splitlines()] == [*study.stages[:4], "simulate", *study.stages[4:]]
    again = hpc_cg(environ, "submit", "all", path, check=False)
    assert again.returncode == 1
    for job in jobs_of(study):
        if not job["parts"]:
            assert f"{job['stage']} {job['id']}" in again.stderr
    status = hpc_cg(environ, "status", path).stdout
    assert "waits for the job before it" in status
    assert max(len(line) for line in status.splitlines()) <= 80
    wait_for_end(environ, study)
    assert [str(state) for state in study.states().values()] == ["sealed"] * 6, logs(study)
    same(study, one_command)
    assert "all sealed: nothing to submit" in hpc_cg(environ, "submit", "all", path).stdout
    assert (study.run_folder.stat().st_mode & 0o777) == 0o700
    shown = hpc_cg(environ, "show", path, "report").stdout
    chain = re.findall(r"^    (\w+) [0-9a-f]{16}: .*, job (\d+), attempt 1 on ", shown, re.MULTILINE)
    assert [stage for stage, _ in chain] == list(reversed(study.stages))
    assert {number for _, number in chain} <= {job["id"] for job in jobs_of(study)}
    assert re.search(r"archive/run0_coordinates.npy [0-9a-f]{16}, 400 frames", shown)


def test_of_twenty_elements_three_that_failed_are_submitted_again(
    environ: Environ, place: Path, one_command: Study
) -> None:
    """Three parts are held by somebody else, who is alive: this process."""
    many = {**SHORT, "simulate": {"n_replicas": 20, "group_size": 1, "time_ps": 0.4, "block_ps": 0.4}}
    study = with_products(study_in(place / "twenty", **many), one_command.path, "simulate")
    folder, poisoned = study.folder("simulate"), ("2", "7", "11")
    for part in poisoned:
        product_folder.join(folder, study.fingerprint("simulate"), study.intent("simulate"), part)
    hpc_cg(environ, "submit", "all", study.path)
    wait_for_end(environ, study, 300)
    first = jobs_of(study)[0]
    told = hpc_cg(environ, "status", study.path).stdout
    assert "another run there: process " in " ".join(told.split()), told
    ends = json.loads(hpc_cg(environ, "status", study.path, "--json").stdout)["stages"]["simulate"]["ends"]
    assert sorted(end["job"] for end in ends) == sorted(f"{first['id']}_{group}" for group in poisoned)
    assert "aggregate  absent" in told
    for part in poisoned:
        claims.release(folder, part)
    hpc_cg(environ, "submit", "all", study.path)
    jobs = jobs_of(study)[4:]
    assert [(job["stage"], job["parts"]) for job in jobs] == [
        ("simulate", ["2", "7", "11"]),
        ("simulate", []),
        ("aggregate", []),
        ("report", []),
    ]
    wait_for_end(environ, study, 300)
    assert set(study.states().values()) == {State.SEALED}, logs(study)


def test_a_study_edited_between_submit_and_start_is_noticed_and_the_setting_named(
    environ: Environ, place: Path, one_command: Study
) -> None:
    study = with_products(study_in(place / "edited", **SHORT), one_command.path, "train")
    hold = ask(environ, "sbatch", "--parsable", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 60")
    hpc_cg(environ, "submit", "all", study.path)
    study.path.write_text(study.path.read_text().replace("steps = 12", "steps = 13"))
    ask(environ, "scancel", hold.strip())
    wait_for_end(environ, study)
    told = " ".join(hpc_cg(environ, "status", study.path).stdout.split())
    assert "train.steps was 12, is 13" in told
    assert study.state("train") == State.ABSENT


def test_jobs_are_cancelled_and_the_next_submit_goes_on(environ: Environ, place: Path, one_command: Study) -> None:
    study = with_products(study_in(place / "cancelled", **SHORT), one_command.path, "train")
    hpc_cg(environ, "submit", "all", study.path)
    said = hpc_cg(environ, "cancel", study.path).stdout
    assert f"train {jobs_of(study)[0]['id']}" in said
    wait_for(lambda: not in_queue(environ, study), 60)
    assert "no job of this study is in the queue" in hpc_cg(environ, "cancel", study.path).stdout
    hpc_cg(environ, "submit", "train", study.path)
    wait_for_end(environ, study)
    assert study.state("train") == State.SEALED, logs(study)
    assert "=== hpc-cg train: job " in hpc_cg(environ, "logs", study.path, "train").stdout


@pytest.mark.parametrize("script", sorted(path.name for path in GOLDEN.glob("*.sbatch")))
def test_slurm_accepts_the_golden_scripts(environ: Environ, script: str, tmp_path: Path) -> None:
    """As they are but for the names of another site's partitions, accounts and GPUs."""
    text = (GOLDEN / script).read_text()
    text = re.sub(r"#SBATCH --partition=\w+", "#SBATCH --partition=debug", text).replace("gpu:h100", "gpu")
    text = re.sub(r"#SBATCH --(account|qos|exclude)=.*\n", "", text).replace("480G", "100G").replace("240G", "100G")
    (tmp_path / script).write_text(text)
    line = ["sbatch", "--test-only", str(tmp_path / script)]
    done = subprocess.run(line, env=environ, capture_output=True, text=True, timeout=60)
    assert "to start at" in done.stderr, done.stderr


@pytest.fixture(scope="module")
def without_accounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environ]:
    with running_slurm(tmp_path_factory.mktemp("plain"), accounting=False) as environ:
        yield clean(environ)


def test_without_accounts_a_chain_completes_and_status_says_what_it_cannot_know(
    without_accounts: Environ, place: Path, one_command: Study
) -> None:
    environ = without_accounts
    study = with_products(study_in(place / "no accounts", accounting=False, **SHORT), one_command.path, "simulate")
    hpc_cg(environ, "submit", "all", study.path)
    wait_for_end(environ, study)
    assert set(study.states().values()) == {State.SEALED}, logs(study)
    same(study, one_command)
    lost = with_products(study_in(place / "lost", accounting=False, **SHORT), one_command.path, "train")
    hpc_cg(environ, "submit", "train", lost.path)
    # a job that the scheduler has forgotten, and whose script could leave no word
    number = jobs_of(lost)[0]["id"]
    ask(environ, "scancel", number)
    wait_for(lambda: not in_queue(environ, lost), 60)
    ledger = lost.run_folder / "jobs" / "submission-0001.json"
    ledger.write_text(ledger.read_text().replace(f'"{number}"', '"999999"'))
    told = hpc_cg(environ, "status", lost.path).stdout
    assert "how 1 jobs ended is not known: no accounts are kept here (999999)" in " ".join(told.split())
