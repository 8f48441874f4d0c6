"""A stage, or a part of one, by the processes that were started together: take a share, work, seal."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hpc_cg.errors import BrokenLaunch, ConfigError, HpcCgError, NotSealed
from hpc_cg.files import digest
from hpc_cg.provenance import code_version
from hpc_cg.share import Alone, Stopped
from hpc_cg.stages import claims, product
from hpc_cg.stages.progress import Heartbeat, clear_progress
from hpc_cg.stages.study import ARRAYS, Study
from jobs.alive import is_gone
from jobs.allocation import MpiTeam, team_for, who_am_i
from jobs.asked import STOPPABLE, WORLDS, signals_of
from jobs.deadline import Deadline, end_of_allocation
from jobs.outcome import BEGUN, STOPPED, mark
from jobs.task import GATHER, Task, compress

if TYPE_CHECKING:
    from hpc_cg.learning.distributed import World

PARTIAL = 75
"""Exit code of a stage that stopped before its end and can be continued (EX_TEMPFAIL)."""

LONGEST_NAME = 60
logger = logging.getLogger("hpc-cg")


def run_stage(study: Study, stage: str) -> int:
    """Work on this process's share of a stage, and seal the product where this is the first process.

    Returns 0, or PARTIAL where it stopped at a safe place: then the folder is free for the next run.
    """
    _need_stage(study, stage)
    if stage in WORLDS:
        return _together(study, stage)
    team, first, sealed = _team(study, stage)
    if sealed:
        return 0
    if first:
        _begin(study, stage)
    team.barrier()
    if stage == "simulate":
        _use_own_gpu()
    with _stoppable(study, stage, team) as ended:
        module = import_module(f"hpc_cg.stages.{stage}")
        module.work(study, team, Heartbeat(study.folder(stage), team.share.index))
        team.barrier()
        if first:
            _seal(study, stage)
    return ended.code


def run_part(study: Study, task: Task) -> int:
    """Do some items of a stage while others do the rest, or put together what they did.

    Returns 0, or PARTIAL where it stopped at a safe place. Raises ConfigError for a stage that has no parts.
    """
    stage = task.stage
    _need_stage(study, stage)
    if stage not in ARRAYS:
        raise ConfigError(f"jobs {stage} --part {task.part}", [f"{stage} has no parts; {', '.join(ARRAYS)} have."])
    module = import_module(f"hpc_cg.stages.{stage}")
    team, first, sealed = _team(study, stage)
    if sealed:
        return 0
    if task.part == GATHER:
        _gather(study, stage, module)
        return 0
    name = _name(task.part)
    items: tuple[int, ...] = ()
    if first:
        _need_upstream(study, stage)
        intent = study.fingerprint(stage), study.intent(stage)
        product.join(study.folder(stage), *intent, name, partial(module.lay_out, study), is_gone)
        items = tuple(sorted(set(task.items(module.n_items(study))) & set(module.pending(study))))
    items = team.tell(items)
    _use_own_gpu()
    with _stoppable(study, stage, team, name) as ended:
        member = (items[0] if items else 0) + team.share.index
        module.work_on(study, items, team, Heartbeat(study.folder(stage), member))
        team.barrier()
        if first and items:
            product.sign(study.folder(stage), name)
    return ended.code


def _name(part: str) -> str:
    """A part as the name of a file, however many items it lists."""
    plain = part.replace("/", "of").replace(",", ".")
    return plain if len(plain) <= LONGEST_NAME else f"{plain[:20]}-{digest(part)}"


def _gather(study: Study, stage: str, module: Any) -> None:
    """Seal what others did; raises NotSealed where some of it is missing."""
    _begin(study, stage, partial(module.lay_out, study))
    try:
        missing = module.pending(study)
        if missing:
            raise NotSealed(
                f"gathering {stage}",
                f"{len(missing)} items not done ({compress(missing[:20])})",
                "submit the stage again: only these are done then",
            )
        module.gather(study)
        _seal(study, stage)
    finally:
        claims.release(study.folder(stage))


def _need_stage(study: Study, stage: str) -> None:
    if stage not in study.stages:
        raise ConfigError(study.path.name, [f"stage {stage} is not part of this study ({', '.join(study.stages)})."])


def _team(study: Study, stage: str) -> tuple[Alone | MpiTeam, bool, bool]:
    """The team of this process, with its way to be stopped; whether this is its first; whether the stage is sealed."""
    team = team_for(os.environ)
    first = team.share.index == 0
    # one process looks: the state of prepare is that of every file of the archive
    sealed, ends_at = team.tell(_state(study, stage) if first else (False, None))
    if first:
        _leave_word(study, BEGUN)
    if stage in STOPPABLE and not sealed:
        team = replace(team, stop=Deadline(study.folder(stage), ends_at, signals_of(stage, os.environ)).stop)
    return team, first, sealed


class Ended:
    """How a piece of work ended: its exit code so far."""

    code = 0


@contextmanager
def _stoppable(study: Study, stage: str, team: Alone | MpiTeam, part: str = "") -> Iterator[Ended]:
    """Turn Stopped into PARTIAL, give the folder free, and leave together.

    A rank that leaves with 75 may let the launcher end the others, so they meet before.
    """
    first, ended = team.share.index == 0, Ended()
    try:
        yield ended
    except Stopped:
        ended.code = PARTIAL
        if first:
            _say_stopped(study, stage)
    finally:
        if first:
            claims.release(study.folder(stage), part)
    team.barrier()


def _state(study: Study, stage: str) -> tuple[bool, float | None]:
    """Whether a stage is sealed; and when the allocation ends, which is not asked where there is nothing to do."""
    sealed = study.state(stage) == product.State.SEALED
    return sealed, None if sealed or stage not in STOPPABLE else end_of_allocation(os.environ)


def _say_stopped(study: Study, stage: str) -> None:
    counts = study.done(stage)
    done = f" with {counts[0]:,} of {counts[1]:,} {counts[2]}" if counts else ""
    logger.warning("%s stopped at a safe place%s; run it again to continue", stage, done)
    _leave_word(study, STOPPED)


def _leave_word(study: Study, word: str) -> None:
    try:
        mark(study.run_folder, word)
    except (HpcCgError, OSError) as error:  # the exit code says it too, where the launcher keeps it
        logger.warning("that it has %s could not be written down: %s", word, error)


def _together(study: Study, stage: str) -> int:
    """A stage whose processes exchange gradients."""
    from hpc_cg.learning.distributed import join

    me = who_am_i(os.environ)
    first, folder = me.rank == 0, study.folder(stage)
    _use_own_gpu()
    world = join(me.rank, me.world_size, me.master_addr, me.master_port)
    sealed, ends_at = _tell(world, _state(study, stage) if first else (False, None))
    if sealed:
        world.close()
        return 0
    deadline = Deadline(folder, ends_at, signals_of(stage, os.environ))
    if first:
        _leave_word(study, BEGUN)
        _begin(study, stage)
    try:
        world.barrier()
        finished = import_module(f"hpc_cg.stages.{stage}").work(study, world, Heartbeat(folder, me.rank), deadline.stop)
        world.barrier()
        if finished and first:
            _seal(study, stage)
        if not finished and first:
            _say_stopped(study, stage)
        world.barrier()
    finally:
        if first:
            claims.release(folder)
    world.close()
    return 0 if finished else PARTIAL


def _tell(world: "World", value: tuple[bool, float | None]) -> tuple[bool, float | None]:
    """What the first process knows, on every process: the others add zeros to it."""
    import torch

    sealed, ends_at = value
    place = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    message = world.sum_(torch.tensor([float(sealed), ends_at or 0.0], dtype=torch.float64, device=place)).tolist()
    return bool(message[0]), message[1] or None


def _use_own_gpu() -> None:
    """Where a node has GPUs, give each of its processes one of its own. Raises BrokenLaunch where there are too few."""
    import torch

    if not torch.cuda.is_available():
        return
    place, n_gpus = who_am_i(os.environ).local_rank, torch.cuda.device_count()
    if place >= n_gpus:
        raise BrokenLaunch(
            "one GPU for each process of a node",
            f"process {place + 1} of a node with {n_gpus}",
            "start fewer processes",
        )
    torch.cuda.set_device(place)


def _need_upstream(study: Study, stage: str) -> None:
    for name in study.upstream(stage):
        product.need_seal(study.folder(name), stage)
        if study.state(name) != product.State.SEALED:
            raise NotSealed(
                f"{stage} reads the product of {name}",
                f"{study.folder(name)} made with other settings or inputs than the study has now",
                f"run the stage {name} of this study first",
            )


def _begin(study: Study, stage: str, lay_out: Callable[[], None] = product.nothing) -> None:
    _need_upstream(study, stage)
    product.begin(study.folder(stage), study.fingerprint(stage), study.intent(stage), lay_out, is_gone)
    clear_progress(study.folder(stage))


def _seal(study: Study, stage: str) -> None:
    finish: Callable = import_module(f"hpc_cg.stages.{stage}").finish
    content, summary = finish(study)
    product.seal(
        study.folder(stage),
        stage,
        study.fingerprint(stage),
        study.inputs(stage),
        content,
        asdict(study.tables[stage]),
        summary,
        {"study": str(study.path), "study_digest": study.digest, "code": code_version()},
    )
