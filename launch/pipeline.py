"""Stages in order: skip what is sealed, run what is not, stop at the first that fails, show the figures at the end."""

import time

from rich.console import Console

from hpc_cg.files import read_json
from hpc_cg.stages.product import State, read_seal
from hpc_cg.stages.study import Study
from launch.local import PARTIAL, refuse_if_busy, run_stage
from launch.plain import plain
from launch.status import STALE
from launch.view import watching
from launch.words import figures


def run_stages(study: Study, stages: tuple[str, ...], n_ranks: int, console: Console, errors: Console) -> int:
    """Run the given stages here, and return the exit code.

    Raises FolderBusy where somebody else works on one of them, KeyboardInterrupt where a stage was asked to stop.
    """
    console.print(f"[bold]{plain(study.study.name)}[/]  {plain(str(study.run_folder))}", soft_wrap=True)
    for stage in stages:
        state = study.state(stage)
        if state == State.SEALED:
            console.print(f"  {stage:<10} already sealed: {_figures(study, stage)}", soft_wrap=True)
            continue
        refuse_if_busy(study, stage)
        if state == State.STALE:
            console.print(f"  {stage:<10} [magenta]stale[/]: {STALE}, the old is kept in superseded/", soft_wrap=True)
        with watching(console, stage) as view:
            ended = run_stage(study, stage, n_ranks, view)
        if ended.code == PARTIAL:
            console.print(f"  [yellow]{plain(ended.message.splitlines()[-1])}[/]", soft_wrap=True)
            return PARTIAL
        if ended.code:
            errors.print(f"[red]error in {stage}:[/] {plain(ended.message)}", soft_wrap=True)
            errors.print(f"  log: {plain(str(ended.log or 'could not be written'))}", soft_wrap=True)
            return ended.code if ended.code > 0 else 1
        console.print(
            f"  {stage:<10} [green]sealed[/] in {_time(ended.seconds)}: {_figures(study, stage)}", soft_wrap=True
        )
    if "report" in stages:
        show_result(study, console)
    return 0


def show_result(study: Study, console: Console) -> None:
    """The table a person reads at the end, and the path of the report."""
    summary = study.folder("report") / "summary.json"
    if not summary.exists():
        return
    content = read_json(summary)
    console.print()
    width = max(len(row[0]) for row in content)
    for label, value in content:
        console.print(f"  {label:<{width}}  {plain(value)}", soft_wrap=True)
    console.print(f"\n  {'report':<{width}}  {plain(str(study.folder('report') / 'report.html'))}", soft_wrap=True)


def _figures(study: Study, stage: str) -> str:
    seal = read_seal(study.folder(stage))
    return plain(figures(study, stage, seal)) if seal else ""


def _time(seconds: float) -> str:
    return time.strftime("%M min %S s", time.gmtime(seconds)) if seconds >= 60 else f"{seconds:.1f} s"
