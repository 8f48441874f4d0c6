"""The command line: hpc-cg run, status, show, audit, templates."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from hpc_cg.errors import ConfigError, HpcCgError
from launch.plain import plain

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="From an archive of all-atom trajectories to a coarse-grained force field that has been simulated and judged.",
)
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

STOPPED = "stopped; what is sealed or committed stays: run again to continue"

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="The study file, e.g. study.toml.")]


@app.command()
def run(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[STAGE|all] STUDY", help="A stage (all of them where none is named), and the study file."
        ),
    ],
    ranks: Annotated[int, typer.Option(min=0, help="Processes to use; 0 means one for each core.")] = 0,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Only for prepare: try a few files, print what all will cost.")
    ] = False,
    bandwidth_gb_s: Annotated[
        float | None,
        typer.Option("--bandwidth-gb-s", min=0.001, help="With --estimate: what the file system gives all ranks."),
    ] = None,
) -> None:
    """Run a stage, or all, here and now, with progress.

    What is sealed is skipped; what was interrupted continues where it stopped. A product that no longer fits the
    study is moved to run/superseded and made again.

    [bold]Examples:[/] hpc-cg run all study.toml     hpc-cg run prepare study.toml --estimate --ranks 64
    """
    try:
        code = _estimate(words, ranks, bandwidth_gb_s) if estimate else _run(words, ranks)
    except KeyboardInterrupt:
        errors.print(STOPPED, soft_wrap=True)
        code = 130
    raise typer.Exit(code)


def _estimate(words: list[str], ranks: int, bandwidth_gb_s: float | None) -> int:
    import os

    from launch.estimate import costs, table_of

    target, path = _target(words)
    if target not in ("prepare", "all"):
        raise ConfigError("hpc-cg run --estimate", [f"{target} cannot be estimated: only prepare can."])
    n_ranks = ranks or len(os.sched_getaffinity(0))
    console.print(table_of(costs(_study(path)), n_ranks, bandwidth_gb_s))
    return 0


def _run(words: list[str], ranks: int) -> int:
    import os

    from launch.local import find_mpiexec
    from launch.pipeline import run_stages

    target, path = _target(words)
    found = _study(path)
    n_ranks = ranks or len(os.sched_getaffinity(0))
    if not ranks and n_ranks > 1 and find_mpiexec() is None:
        console.print("no mpiexec here, so one process (pip install 'hpc-cg\\[mpi]' brings one)", soft_wrap=True)
        n_ranks = 1
    return run_stages(found, _stages(found, target), n_ranks, console, errors)


def _target(words: list[str]) -> tuple[str, Path]:
    """The stage and the study among the words of ``run``, in either order; raises ConfigError."""
    from hpc_cg.stages.study import UPSTREAM

    typed = f"hpc-cg run {' '.join(words)}"
    if len(words) > 2:
        raise ConfigError(typed, ["more than a stage and a study file. Try: hpc-cg run STAGE study.toml."])
    if len(words) == 1 and words[0] in (*UPSTREAM, "all") and not Path(words[0]).is_file():
        raise ConfigError(typed, [f"the study file is missing. Try: {typed} study.toml."])
    if len(words) == 1:
        return "all", Path(words[0])
    stage, study = reversed(words) if words[0].endswith(".toml") and not words[1].endswith(".toml") else words
    return stage, Path(study)


@app.command()
def status(
    study: StudyFile, json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False
) -> None:
    """Say which stages are sealed (with figures), partial (with counts, and who works there), stale or absent.

    Exits with 1 where a folder cannot be read, and names it.

    [bold]Example:[/] hpc-cg status study.toml
    """
    from launch.status import status_table, survey

    lines = survey(_study(study))
    if json:
        console.print_json(data={line.stage: line.word for line in lines})
    else:
        console.print(status_table(lines))
    raise typer.Exit(1 if any(line.state is None for line in lines) else 0)


@app.command()
def show(
    target: Annotated[
        Path, typer.Argument(metavar="STUDY|ARCHIVE", help="A study file, or trajectory files or folders.")
    ],
    stage: Annotated[str, typer.Argument(metavar="[STAGE]", help="Only this stage's product.")] = "",
    every: Annotated[bool, typer.Option("--all", help="Of an archive: every segment, however many there are.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Of an archive: a JSON object for each segment.")] = False,
) -> None:
    """Show what is in the products of a study, or in an archive of trajectories.

    [bold]Examples:[/] hpc-cg show study.toml train     hpc-cg show trajectories/ --all
    """
    from launch.show import archive_json, archive_table, product_lines

    if stage.endswith(".toml") and target.suffix != ".toml":
        target, stage = Path(stage), str(target)
    if target.suffix != ".toml":
        if json:
            for line in archive_json(target):
                typer.echo(line)
        else:
            console.print(archive_table(target, every))
        return
    if every or json:
        raise ConfigError(f"hpc-cg show {target}", ["--all and --json are for archives of trajectories."])
    found = _study(target)
    for name in _stages(found, stage or "all"):
        for line in product_lines(found, name):
            console.print(plain(line), soft_wrap=True)


@app.command()
def audit(
    study: StudyFile,
    repair: Annotated[
        bool, typer.Option("--repair", help="Take back what is not whole, so that it is made again; delete nothing.")
    ] = False,
) -> None:
    """Prove that the products of a study are whole: every frame once, checksums, finite numbers, the archive unchanged.

    Exits with 1 and lists every fault where they are not. With --repair, shards that are not whole, or lack frames of
    a file that could not be read, are withdrawn, and the next run of their stage makes them again; a product whose
    other records are damaged is moved to superseded/.

    [bold]Examples:[/] hpc-cg audit study.toml     hpc-cg audit --repair study.toml
    """
    from launch.inspect import audit_study

    faults = audit_study(_study(study), lambda line: console.print(plain(line), soft_wrap=True), repair)
    for fault in faults:
        errors.print(f"[red]fault:[/] {plain(fault)}", soft_wrap=True)
    raise typer.Exit(1 if faults else 0)


@app.command()
def templates(
    folder: Annotated[Path, typer.Argument(help="Folder to write into.")] = Path("slurm_templates"),
) -> None:
    """Write one sbatch script per stage, for sites that submit by hand.

    [bold]Example:[/] hpc-cg templates my_templates && sbatch my_templates/prepare.sbatch study.toml
    """
    from launch.templates import write_templates

    write_templates(folder)
    console.print(f"written to {plain(str(folder))}")


def _study(path: Path) -> Any:
    from hpc_cg.stages.study import read_study

    return read_study(path)


def _stages(study: Any, target: str) -> tuple[str, ...]:
    from difflib import get_close_matches

    if target == "all":
        return study.stages
    if target not in study.stages:
        known = (*study.stages, "all")
        meant = "".join(f" Did you mean {name}?" for name in get_close_matches(target, known, n=1))
        raise ConfigError(study.path.name, [f"{target} is no stage of this study.{meant} Known: {', '.join(known)}."])
    return (target,)


def main() -> None:
    """Entry point: errors of this project become one sentence on stderr and an exit code."""
    try:
        app()
    except HpcCgError as error:
        errors.print(f"[red]error:[/] {plain(str(error))}", soft_wrap=True)
        sys.exit(error.exit_code)
    except OSError as error:
        from launch.status import explain

        errors.print(f"[red]error:[/] {plain(explain(error))}", soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        errors.print(STOPPED, soft_wrap=True)
        sys.exit(130)
