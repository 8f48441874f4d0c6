"""Run every member of a campaign here, several at once; a member that fails is told of, and the others go on.

Products that members share are made first, one after another with all cores; then each member is a command of its own,
``hpc-cg run all MEMBER.toml``, whose words go to a file beside it. At the end, and after failures too, the page.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from hpc_cg.campaign.findings import Failure, write_campaign_page
from hpc_cg.campaign.members import Campaign, lay_out, shared_stages
from hpc_cg.stages.product import State
from hpc_cg.stages.study import Study
from launch.interrupts import Interrupts
from launch.local import find_mpiexec, threads
from launch.plain import plain

POLL_S = 0.2
COMMAND = (sys.executable, "-c", "from launch.cli import main; main()", "run")


@dataclass
class Running:
    """A member's command while it runs."""

    study: Study
    process: subprocess.Popen[bytes]
    log: Path


def run_campaign(campaign: Campaign, at_once: int, n_cores: int, console: Console) -> int:
    """Run what is missing of a campaign and write its page; the exit code is 1 where members failed.

    at_once   members that run at the same time; each gets an equal share of the cores
    Raises KeyboardInterrupt once all members have been asked to stop and have saved.
    """
    studies = lay_out(campaign)
    console.print(f"[bold]{plain(campaign.config.name)}[/]  {len(studies)} members", soft_wrap=True)
    failed: dict[Path, Failure] = {}
    for stage, study in shared_stages(studies):
        if study.state(stage) != State.SEALED:
            console.print(f"  shared: {stage} …", soft_wrap=True)
            _run([study], stage, 1, n_cores, console, failed)
    todo = [one for one in studies if any(state != State.SEALED for state in one.states().values())]
    if len(todo) < len(studies):
        console.print(f"  {len(studies) - len(todo)} members are done", soft_wrap=True)
    _run(todo, "all", at_once, n_cores, console, failed)
    page = write_campaign_page(campaign, studies, tuple(failed.values()))
    console.print(f"\n  {'page':<12}  {plain(str(page))}", soft_wrap=True)
    return 1 if failed else 0


def _run(
    studies: Sequence[Study], stage: str, at_once: int, n_cores: int, console: Console, failed: dict[Path, Failure]
) -> None:
    """The stage of some members, so many at once; ``failed`` holds those that ended in a failure last."""
    waiting, running, n_done = list(studies), list[Running](), 0
    began = time.monotonic()
    with Interrupts() as interrupts:
        while (waiting or running) and not interrupts.asked:
            while waiting and len(running) < at_once:
                running.append(_start(waiting.pop(0), stage, max(1, n_cores // at_once)))
            time.sleep(POLL_S)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                n_done += 1
                failed.pop(one.study.path, None)
                if one.process.returncode:
                    failed[one.study.path] = Failure(one.study.path.stem, stage, _last_words(one.log), str(one.log))
                if stage == "all":
                    word = "[red]failed[/]" if one.process.returncode else "done"
                    left = (time.monotonic() - began) / n_done * (len(studies) - n_done) / 60
                    where = f"{n_done} of {len(studies)}, {left:.0f} min left"
                    console.print(f"  {plain(one.study.path.stem)}: {word} ({where})", soft_wrap=True)
        _stop(running, interrupts)
        if interrupts.asked:
            raise KeyboardInterrupt


def _stop(running: Sequence[Running], interrupts: Interrupts) -> None:
    """Ask members to stop and wait until they have saved; each further request to stop is passed on to them."""
    passed_on = 0
    while any(one.process.poll() is None for one in running):
        if passed_on < interrupts.asked:
            passed_on = interrupts.asked
            for one in running:
                one.process.terminate()  # an interrupt is ignored by what a shell started in the background
        time.sleep(POLL_S)


def _start(study: Study, stage: str, n_cores: int) -> Running:
    """A member on some cores: by ranks where there is MPI, else by the threads of one process."""
    log, ranks = study.path.with_suffix(".log"), n_cores if find_mpiexec() else 1
    with log.open("ab") as file:
        # a session of its own: an interrupt reaches it from here alone
        process = subprocess.Popen(
            [*COMMAND, stage, str(study.path), "--ranks", str(ranks)],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
            env=os.environ | threads(n_cores // ranks) | {"COLUMNS": "120"},
        )  # fmt: skip
    return Running(study, process, log)


def _last_words(log: Path) -> str:
    """What was wrong, in the words at the end of a log."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [number for number, line in enumerate(lines) if line.startswith("error")]
    said = lines[errors[-1] :] if errors else lines[-1:]
    return " ".join(line for line in said if not line.startswith("log: "))
