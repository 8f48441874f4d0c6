"""The command line: hpc-cg run, submit, status, logs, cancel, show, export, audit, templates, doctor."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from hpc_cg.errors import ConfigError, HpcCgError
from jobs.task import CAMPAIGN
from launch.named import campaign_of, stages_of, study_of, target_of
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

NOTHING_TO_SUBMIT = "all sealed: nothing to submit"
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
    at_once: Annotated[
        int, typer.Option("--at-once", min=0, help="Of a campaign: members that run together; 0 means one per core.")
    ] = 0,
) -> None:
    """Run a stage, or all, here and now, with progress; or a campaign: many studies that differ in a few settings.

    What is sealed is skipped; what was interrupted continues where it stopped. A product that no longer fits the
    study is moved to run/superseded and made again.

    [bold]Examples:[/] hpc-cg run all study.toml     hpc-cg run prepare study.toml --estimate --ranks 64
    hpc-cg run campaign campaign.toml --at-once 4
    """
    from hpc_cg.campaign.members import is_campaign

    try:
        if CAMPAIGN in words or any(is_campaign(Path(word)) for word in words):
            if estimate:
                raise ConfigError("hpc-cg run --estimate", ["a campaign cannot be estimated: name one of its members."])
            code = _run_campaign(words, ranks, at_once)
        else:
            code = _estimate(words, ranks, bandwidth_gb_s) if estimate else _run(words, ranks)
    except KeyboardInterrupt:
        errors.print(STOPPED, soft_wrap=True)
        code = 130
    raise typer.Exit(code)


def _estimate(words: list[str], ranks: int, bandwidth_gb_s: float | None) -> int:
    import os

    from launch.estimate import costs, table_of

    target, path = target_of(words)
    if target not in ("prepare", "all"):
        raise ConfigError("hpc-cg run --estimate", [f"{target} cannot be estimated: only prepare can."])
    n_ranks = ranks or len(os.sched_getaffinity(0))
    console.print(table_of(costs(study_of(path)), n_ranks, bandwidth_gb_s))
    return 0


def _run(words: list[str], ranks: int) -> int:
    import os

    from launch.local import find_mpiexec
    from launch.pipeline import run_stages

    target, path = target_of(words)
    found = study_of(path)
    n_ranks = ranks or len(os.sched_getaffinity(0))
    if not ranks and n_ranks > 1 and find_mpiexec() is None:
        console.print("no mpiexec here, so one process (pip install 'hpc-cg\\[mpi]' brings one)", soft_wrap=True)
        n_ranks = 1
    return run_stages(found, stages_of(found, target), n_ranks, console, errors)


def _run_campaign(words: list[str], ranks: int, at_once: int) -> int:
    import os

    from launch.campaign import run_campaign

    n_cores = ranks or len(os.sched_getaffinity(0))
    return run_campaign(campaign_of(words, "run"), at_once or n_cores, n_cores, console)


ClusterKind = Annotated[str, typer.Option("--cluster", help="slurm, or local: this machine, bounded by its cores.")]
SiteFile = Annotated[
    Path | None,
    typer.Option("--site", help="The site file; else $HPC_CG_SITE, or site.toml beside the study."),
]


@app.command()
def submit(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[STAGE|all|campaign] FILE",
            help="A stage (all where none is named) and the study; or the word campaign and its file.",
        ),
    ],
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Print scripts, resources, hours and bytes; ask nobody, write nothing.")
    ] = False,
    cluster: ClusterKind = "slurm",
    site: SiteFile = None,
    at_once: Annotated[
        int, typer.Option("--at-once", min=0, help="Of a campaign: members that are worked on together; 0 means all.")
    ] = 0,
) -> None:
    """Submit what is missing as a chain of jobs that goes on by itself, also after you log out.

    Submit again after any end: what is sealed stays, what is queued is waited for, of an array only the parts that are
    not done are submitted. Of a campaign every member has a chain of its own, what members share is made once, and a
    last job writes the page when all have ended, however they do.

    [bold]Examples:[/] hpc-cg submit all study.toml --dry-run     hpc-cg submit campaign campaign.toml
    """
    from launch.cluster import KINDS, cluster_of
    from launch.site import find_site, this_machine
    from launch.submit import dry_run
    from launch.submit import submit as send

    def say(line: str) -> None:
        console.print(plain(line), soft_wrap=True)

    if cluster not in KINDS:
        raise ConfigError("hpc-cg submit --cluster", [f"{cluster} is no kind of cluster. Known: {', '.join(KINDS)}."])
    if CAMPAIGN in words:
        raise typer.Exit(_submit_campaign(words, dry, cluster, site, at_once, say))
    target, path = target_of(words, "submit")
    found = study_of(path, "submit")
    if at_once:
        raise ConfigError("hpc-cg submit --at-once", ["only a campaign has members that could wait for one another."])
    wanted, here = stages_of(found, target), this_machine() if cluster == "local" else find_site(path, site)
    if dry:
        dry_run(found, wanted, here, cluster, say)
        return
    if not send(found, wanted, here, cluster_of(cluster, found.run_folder, accounting=here.site.accounting), say):
        console.print(NOTHING_TO_SUBMIT)


def _submit_campaign(
    words: list[str], dry: bool, cluster: str, site: Path | None, at_once: int, say: Callable[[str], None]
) -> int:
    from launch.campaign_queue import cluster_for
    from launch.campaign_submit import dry_run_campaign, submit_campaign
    from launch.site import find_site, this_machine

    found = campaign_of(words, "submit")
    here = this_machine() if cluster == "local" else find_site(found.path, site)
    if dry:
        dry_run_campaign(found, here, cluster, say, at_once)
        return 0
    plan = submit_campaign(found, here, cluster_for(found, cluster, here.site.accounting), say, at_once)
    if not plan.steps and not plan.held:
        console.print(NOTHING_TO_SUBMIT)
    return 1 if plan.held else 0


@app.command()
def cancel(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDY [STAGE]|campaign FILE",
            help="The study file, and a stage for its jobs only; or the word campaign and its file.",
        ),
    ],
) -> None:
    """End the jobs in the queue of a study, or of all members of a campaign; what is sealed or committed stays.

    [bold]Examples:[/] hpc-cg cancel study.toml     hpc-cg cancel study.toml simulate     hpc-cg cancel campaign
    campaign.toml
    """
    from launch.control import cancel_campaign, cancel_jobs

    if CAMPAIGN in words:
        ended = cancel_campaign(campaign_of(words, "cancel"))
        console.print(f"cancelled: {plain(ended)}" if ended else "no job of this campaign is in the queue")
        return
    target, path = target_of(words, "cancel")
    found = study_of(path, "cancel")
    stage = "" if target == "all" else stages_of(found, target)[0]
    cancelled = cancel_jobs(found, stage)
    console.print(f"cancelled: {plain(cancelled)}" if cancelled else "no job of this study is in the queue")


@app.command()
def logs(
    study: StudyFile,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="The stage whose newest log is shown.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on showing what is added, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Lines from the end.")] = 200,
    job: Annotated[str, typer.Option("--job", help="Of this job or element, e.g. 31_5, not of the newest.")] = "",
) -> None:
    """Show the end of a stage's newest log, of a job or of a run here.

    [bold]Examples:[/] hpc-cg logs study.toml train --follow     hpc-cg logs study.toml simulate --job 31_5
    """
    from launch.control import follow_log, newest_log

    found = study_of(study)
    stages_of(found, stage)
    path = newest_log(found, stage, job)
    console.print(f"[dim]{plain(str(path))}[/]", soft_wrap=True)
    for line in follow_log(path, lines, follow):
        typer.echo(line)


@app.command()
def status(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[campaign] FILE", help="The study file, e.g. study.toml; or the word campaign and its file."
        ),
    ],
    json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again and again, until Ctrl-C.")] = False,
    every_s: Annotated[float, typer.Option("--every-s", min=5.0, help="With --watch: seconds between looks.")] = 30.0,
    site: SiteFile = None,
) -> None:
    """Say which stages are sealed (with figures), partial (with counts), stale or absent, and what their jobs do.

    Jobs are looked for where some were submitted: one question to the scheduler. Of a campaign, how many members of
    each group are sealed, run, wait and failed, and why. Exits with 1 where a folder cannot be read, and names it.

    [bold]Examples:[/] hpc-cg status study.toml --watch     hpc-cg status campaign campaign.toml
    """
    import time

    look = _look_at_campaign if CAMPAIGN in words else _look_at_study
    while True:
        told, lines, data = look(words, site)
        if json:
            console.print_json(data=data)
        else:
            if watch and console.is_terminal:
                console.clear()
            for line in lines:
                console.print(line, soft_wrap=True)
        if not watch or told.at_rest:
            raise typer.Exit(1 if told.unreadable else 0)
        time.sleep(every_s)


def _look_at_study(words: list[str], site: Path | None) -> tuple[Any, list[str], Any]:
    """What there is to tell of a study; as lines, and for scripts."""
    from launch.site import find_site
    from launch.status import as_json, report, status_lines

    if len(words) > 1:
        raise ConfigError(f"hpc-cg status {' '.join(words)}", ["status is of one file. Try: hpc-cg status study.toml."])
    path = Path(words[0])
    told = report(study_of(path, "status"), find_site(path, site))
    return told, status_lines(told, console.width), as_json(told)


def _look_at_campaign(words: list[str], site: Path | None) -> tuple[Any, list[str], Any]:
    """What there is to tell of a campaign; as lines, and for scripts."""
    from launch.campaign_status import campaign_json, campaign_lines, campaign_report
    from launch.site import find_site

    found = campaign_of(words, "status")
    told = campaign_report(found, find_site(found.path, site))
    return told, campaign_lines(told, console.width), campaign_json(told)


@app.command()
def show(
    target: Annotated[
        Path, typer.Argument(metavar="STUDY|ARCHIVE", help="A study file, or trajectory files or folders.")
    ],
    stage: Annotated[str, typer.Argument(metavar="[STAGE]", help="Only this stage's product.")] = "",
    every: Annotated[bool, typer.Option("--all", help="Of an archive: every segment, however many there are.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Of an archive: a JSON object for each segment.")] = False,
) -> None:
    """Show what is in the products of a study and what they were made from, or what is in an archive of trajectories.

    Of a product: settings, figures, who made it, and the chain back to the trajectory files. A stage alone is that of
    study.toml here.

    [bold]Examples:[/] hpc-cg show study.toml train     hpc-cg show report     hpc-cg show trajectories/ --all
    """
    from hpc_cg.stages.study import UPSTREAM
    from launch.show import archive_json, archive_table, product_lines

    if stage.endswith(".toml") and target.suffix != ".toml":
        target, stage = Path(stage), str(target)
    if not stage and str(target) in UPSTREAM and not target.exists():
        target, stage = Path("study.toml"), str(target)
    if target.suffix != ".toml":
        if json:
            for line in archive_json(target):
                typer.echo(line)
        else:
            console.print(archive_table(target, every))
        return
    if every or json:
        raise ConfigError(f"hpc-cg show {target}", ["--all and --json are for archives of trajectories."])
    found = study_of(target)
    for name in stages_of(found, stage or "all"):
        for line in product_lines(found, name):
            console.print(plain(line), soft_wrap=True)


@app.command()
def export(
    study: StudyFile,
    to: Annotated[
        Path, typer.Option("--to", help="File to write: .pt2 for Python, .pt for C++ and openmm-torch.")
    ] = Path("forcefield.pt2"),
    double: Annotated[bool, typer.Option("--double", help="Compute in float64, not float32.")] = False,
) -> None:
    """Write the trained force field for other programs: a file that needs torch and nothing else.

    Beside it lie what the beads are (JSON) and the network's filters and weights (npz). See docs/elsewhere.md.

    [bold]Example:[/] hpc-cg export study.toml --to forcefield.pt2
    """
    from launch.export import export_forcefield

    for path in export_forcefield(study_of(study), to, double):
        console.print(f"written: {plain(str(path))}", soft_wrap=True)


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

    faults = audit_study(study_of(study), lambda line: console.print(plain(line), soft_wrap=True), repair)
    for fault in faults:
        errors.print(f"[red]fault:[/] {plain(fault)}", soft_wrap=True)
    raise typer.Exit(1 if faults else 0)


@app.command()
def doctor(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write what was found.")] = Path("site.toml"),
    partition: Annotated[str, typer.Option("--partition", help="Where to probe; the site's default if empty.")] = "",
    account: Annotated[str, typer.Option("--account", help="To charge the probes to.")] = "",
    work: Annotated[Path, typer.Option("--work", help="The folder that runs will lie in.")] = Path(),
    wait_s: Annotated[float, typer.Option("--wait-s", min=5.0, help="Patience for each probe to start.")] = 120.0,
) -> None:
    """Measure what this cluster can do, say what is unfit and how to mend it, and write a site.toml.

    Starts a few jobs of two processes and seconds. A file that is there is not overwritten.

    [bold]Example:[/] hpc-cg doctor --partition gpu --account project_1
    """
    from launch.doctor import examine, findings_table, write_site

    report = examine(work, partition, account, wait_s, lambda line: console.print(plain(line), soft_wrap=True))
    console.print(findings_table(report))
    console.print(plain(write_site(report, output)), soft_wrap=True)
    raise typer.Exit(0 if report.fit else 1)


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
