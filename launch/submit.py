"""``hpc-cg submit``: what is missing goes to the scheduler as one chain; ``--dry-run`` shows it and touches nothing.

The chain lives on the server: each job waits for those before it (``afterok``), and Slurm removes those that can start
no more. Submitting again is the way to go on after any end: what is sealed stays, what is queued is waited for, what
failed is submitted with what was learnt (more memory where that ran out, other nodes where one failed).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from hpc_cg.errors import AlreadySubmitted, HpcCgError
from hpc_cg.provenance import code_version
from hpc_cg.stages.product import STOP
from hpc_cg.stages.study import Study
from jobs.outcome import Outcomes
from jobs.task import GATHER, compress
from launch import ledger
from launch.cluster import Cluster, cluster_of, mark_of, named, script_of
from launch.history import lessons_of
from launch.plan import Chain, Job, Step, chain_of
from launch.site import Site
from launch.sizes import bytes_of
from launch.slurm import Queued

Say = Callable[[str], None]
SETTLE_S, SETTLE_POLL_S = 60.0, 2.0
"""How long jobs may take to leave the queue once they are ending, and between two looks."""

ENDING, NEVER = ("COMPLETING",), "DependencyNeverSatisfied"


def submit(study: Study, wanted: Sequence[str], site: Site, cluster: Cluster, say: Say) -> tuple[ledger.Submitted, ...]:
    """Submit what is missing of the wanted stages; the jobs that were submitted, none where all is sealed.

    Raises AlreadySubmitted, with the numbers, where all that is missing is in the queue; SchedulerFailed, with what was
    submitted before; QueueFull; UnsafeFolder; ConfigError of the site's limits; NotSealed.
    """
    run_folder = study.run_folder
    with ledger.submitting(run_folder):
        known = ledger.submissions(run_folder)
        _refuse_if_elsewhere(study, known, cluster)
        rows = settled(cluster)
        live = [job for job in rows if job.active]
        queued = queued_stages(live)
        lessons = lessons_of(study, wanted, site, known, Outcomes(run_folder), rows, cluster)
        for (stage, _), lesson in lessons.items():
            if lesson.why and stage not in queued:
                say(f"{stage}: {lesson.why}")
        chain = chain_of(study, wanted, site, queued, lessons, cluster.n_live)
        if not chain.jobs:
            if chain.queued:
                raise AlreadySubmitted(
                    f"submitting {' '.join(wanted)} of {study.path.name}",
                    f"jobs in the queue: {described(chain.queued)}",
                    "wait for them (hpc-cg status), or end them with hpc-cg cancel",
                )
            return ()
        remove_stops(study, chain.jobs)
        steps = tuple(Step(study, job) for job in chain.jobs)

        def told(sent: Sequence[str]) -> str:
            return ", ".join(f"{step.job.title} {number}" for step, number in zip(steps, sent, strict=False))

        send(steps, cluster, lambda place, number: say(f"{job_line(place, chain)}  job {number}"), told, say)
        return ledger.submissions(run_folder)[-1].jobs


def _refuse_if_elsewhere(study: Study, known: Sequence[ledger.Submission], cluster: Cluster) -> None:
    """Raise AlreadySubmitted where jobs of this study are in the queue of another kind of cluster."""
    for kind in {one.cluster for one in known} - {cluster.kind}:
        live = [job for job in cluster_of(kind, study.run_folder, accounting=False).queue() if job.active]
        if live:
            raise AlreadySubmitted(
                f"submitting to {cluster.kind}",
                f"jobs of this study in the queue of {kind}: {live_labels(live)}",
                "wait for them, or end them with hpc-cg cancel",
            )


def settled(cluster: Cluster) -> tuple[Queued, ...]:
    """The queue, as soon as nothing in it is about to leave it: nobody can wait for a job that is ending.

    Raises AlreadySubmitted where that takes too long.
    """
    deadline = time.monotonic() + SETTLE_S
    while True:
        rows = cluster.queue()
        ending = [job for job in rows if job.active and (job.state in ENDING or job.reason == NEVER)]
        if not ending:
            return rows
        if time.monotonic() > deadline:
            raise AlreadySubmitted(
                "submitting what is missing",
                f"jobs that are still ending: {live_labels(ending)}",
                "submit again in a minute",
            )
        time.sleep(SETTLE_POLL_S)


def remove_stops(study: Study, jobs: Sequence[Job]) -> None:
    """Take away what asks the stages of some jobs to stop."""
    for stage in {job.stage for job in jobs}:
        (study.folder(stage) / STOP).unlink(missing_ok=True)


def send(
    steps: Sequence[Step],
    cluster: Cluster,
    sent_one: Callable[[int, str], None],
    told: Callable[[Sequence[str]], str],
    say: Say,
) -> tuple[str, ...]:
    """Submit jobs one after another, each with the numbers of those before it; their numbers.

    sent_one   is called with the place and the number of each
    told       puts the numbers of those that were submitted before a refusal into words
    Raises SchedulerFailed, after it has said what was submitted before.
    """
    sent: list[str] = []
    submissions: dict[Path, ledger.Submission] = {}
    copies: dict[Path, str] = {}
    for place, step in enumerate(steps):
        owner, job = step.owner, step.job
        folder = owner.run_folder
        if folder not in submissions:
            copies[folder], _ = str(ledger.keep_study(owner)), ledger.logs(folder)
            submissions[folder] = ledger.begin(owner, cluster.kind, code_version())
        after = [*(sent[before] for before in job.after), *job.waits]
        however = [sent[before] if isinstance(before, int) else before for before in job.however]
        try:
            number = cluster.submit(owner, job, job.tasks(str(owner.path), copies[folder]), after, however)
        except (HpcCgError, KeyboardInterrupt):
            if sent:
                say(f"submitted before that: {told(sent)}; they stay in the queue, and submitting again goes on")
            cluster.started()
            _withdraw_strays(cluster, sent, step, say)
            raise
        sent.append(number)
        waits = (*after, *however)
        row = ledger.Submitted(number, job.stage, job.part, job.parts, asdict(named(owner, job)), waits)
        submissions[folder] = submissions[folder].with_job(row)
        ledger.save(folder, submissions[folder])
        sent_one(place, number)
    cluster.started()
    return tuple(sent)


def _withdraw_strays(cluster: Cluster, sent: Sequence[str], step: Step, say: Say) -> None:
    """Take back a job that the scheduler took although its number never came: its payload is not complete."""
    job = step.job
    try:
        comment = f"{mark_of(step.owner.run_folder)}:{job.stage}:{job.part}"
        rows = [row for row in cluster.queue() if row.active and row.comment == comment and row.job not in sent]
        strays = sorted({row.job for row in rows} - {*job.waits, *map(str, job.however)})
        if strays:
            cluster.cancel(strays)
            say(f"taken back, as it came without a number: {job.title} {', '.join(strays)}")
    except HpcCgError as error:
        say(f"whether {job.title} was taken is not known ({error}); hpc-cg cancel ends what was")


def queued_stages(live: Sequence[Queued]) -> dict[str, tuple[str, ...]]:
    """The numbers of the jobs in the queue that seal a stage, by the stage that their mark names.

    Raises AlreadySubmitted where elements of an array are left whose gathering job is gone: some have failed, and only
    when the others have ended is it known what is missing.
    """
    found, left = sealing(live), left_over(live)
    if left:
        raise AlreadySubmitted(
            "submitting what is missing",
            f"{len(left)} jobs of an array in the queue, others of which failed: {live_labels(left)}",
            "wait until they have ended, or end them with hpc-cg cancel",
        )
    return found


def sealing(live: Sequence[Queued]) -> dict[str, tuple[str, ...]]:
    """The numbers of the jobs in the queue that seal a stage, by the stage."""
    found: dict[str, tuple[str, ...]] = {}
    for job in live:
        if job.task is None:
            stage = stage_of(job)
            found[stage] = (*found.get(stage, ()), job.job)
    return found


def left_over(live: Sequence[Queued]) -> tuple[Queued, ...]:
    """Elements of arrays in the queue whose gathering job is gone."""
    found = sealing(live)
    return tuple(job for job in live if job.task is not None and stage_of(job) not in found)


def stage_of(job: Queued) -> str:
    """The stage that a job's mark names."""
    return job.comment.split(":")[2]


def described(queued: Mapping[str, tuple[str, ...]]) -> str:
    return ", ".join(f"{stage} {' '.join(ids)}" for stage, ids in queued.items())


def job_line(place: int, chain: Chain) -> str:
    """A job in one line: what, how many, how long, on what."""
    job = chain.jobs[place]
    before = [chain.jobs[one].title for one in job.after] + list(job.waits)
    waits = f", after {', '.join(dict.fromkeys(before))}" if before else ""
    return f"{job.title:<18} {asked_line(job)}{waits}"


def asked_line(job: Job) -> str:
    """What a job asks for in few words."""
    ask = job.resources
    count = f"{job.n_elements:,} × " if job.parts else ""
    tasks = f"{ask.nodes} node{'s' * (ask.nodes > 1)} × {ask.tasks_per_node} task{'s' * (ask.tasks_per_node > 1)}"
    gpus = f", {ask.gpus_per_node} GPU" if ask.gpus_per_node else ""
    return f"{count}{tasks}, {ask.mem_gb} GB{gpus}, {ask.time_minutes} min"


def dry_run(study: Study, wanted: Sequence[str], site: Site, kind: str, say: Say) -> Chain:
    """Tell what ``submit`` would send if nothing were in the queue; asks nobody, writes nothing."""
    chain = chain_of(study, wanted, site)
    unknown = "no site.toml: defaults, limits not checked (hpc-cg doctor writes one)"
    say(f"site: {site.path or (site.site.name if kind == 'local' else unknown)}")
    for stage in chain.sealed:
        say(f"{stage:<18} sealed: not submitted")
    for place in range(len(chain.jobs)):
        say(job_line(place, chain))
    for stage, words in bytes_of(study, [job.stage for job in chain.jobs]).items():
        say(f"{stage:<18} {words}")
    if kind != "slurm":
        return chain
    say(
        f"in all at most {chain.node_hours:,.1f} node-hours and {chain.gpu_hours:,.1f} GPU-hours: "
        "every job its whole time limit, once"
    )
    for place, job in enumerate(chain.jobs):
        say("")
        say(f"# --- {command_line(job, place, chain)}")
        say(script_of(study, job).rstrip("\n"))
    return chain


def command_line(job: Job, place: int, chain: Chain) -> str:
    """How the script of a job is submitted; jobs that have no number yet by their names."""
    names = [f"<{chain.jobs[one].title}>" for one in job.after]
    words = [f"--dependency=afterok:{':'.join(names)}", "--kill-on-invalid-dep=yes"] if names else []
    return " ".join(["sbatch", *words, f"{place + 1}-{named_file(job)}"])


def named_file(job: Job) -> str:
    return f"{job.stage}{'-gather' if job.part == GATHER else ''}.sbatch"


def live_labels(live: Sequence[Queued]) -> str:
    """Jobs in the queue in few words: numbers, with the elements of arrays."""
    arrays: dict[str, list[int]] = {}
    for job in live:
        arrays.setdefault(job.job, [])
        if job.task is not None:
            arrays[job.job].append(job.task)
    return ", ".join(f"{job}_[{compress(sorted(tasks))}]" if tasks else job for job, tasks in arrays.items())
