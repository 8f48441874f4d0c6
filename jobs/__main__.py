"""Run one stage of a study as this process's share: ``python -m jobs STAGE study.toml``.

The same line under mpiexec, srun, torchrun, or alone. Exit codes: 0 sealed, 75 stopped at a safe place (run again),
1 and 2 an error that was explained on stderr.
"""

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_cg.errors import BrokenLaunch, ConfigError, HpcCgError, NotSealed
from hpc_cg.share import Stopped
from hpc_cg.stages import product
from hpc_cg.stages.progress import Heartbeat
from hpc_cg.stages.study import Study, read_study
from jobs.allocation import abort_together, team_for, who_am_i
from jobs.deadline import Deadline, end_of_allocation, signals_of

if TYPE_CHECKING:
    from hpc_cg.learning.distributed import World

PARTIAL = 75
"""Exit code of a stage that stopped before its end and can be continued (EX_TEMPFAIL)."""

STOPPABLE = ("reference", "prepare", "kernel", "train", "simulate")
"""Stages of many items; the others are over in minutes and are not asked to stop."""

logger = logging.getLogger("hpc-cg")


def run_stage(study: Study, stage: str) -> int:
    """Work on this process's share of a stage, and seal the product where this is the first process.

    Returns 0, or PARTIAL where it stopped at a safe place: then the folder is free for the next run.
    """
    if stage not in study.stages:
        raise ConfigError(study.path.name, [f"stage {stage} is not part of this study ({', '.join(study.stages)})."])
    if stage == "train":
        return _train(study)
    team = team_for(os.environ)
    first = team.share.index == 0
    # one process looks: the state of prepare is that of every file of the archive
    sealed, ends_at = team.tell(_state(study, stage) if first else (False, None))
    if sealed:
        return 0
    if stage in STOPPABLE:
        team = replace(team, stop=Deadline(study.folder(stage), ends_at, signals_of(stage, os.environ)).stop)
    if first:
        _begin(study, stage)
    team.barrier()
    if stage == "simulate":
        _use_own_gpu()
    code = 0
    try:
        module = import_module(f"hpc_cg.stages.{stage}")
        module.work(study, team, Heartbeat(study.folder(stage), team.share.index))
        team.barrier()
        if first:
            _seal(study, stage)
    except Stopped:
        code = PARTIAL
        if first:
            _say_stopped(study, stage)
    finally:
        if first:
            product.release(study.folder(stage))
    team.barrier()  # a rank that leaves with 75 may let the launcher end the others
    return code


def _state(study: Study, stage: str) -> tuple[bool, float | None]:
    """Whether a stage is sealed; and when the allocation ends, which is not asked where there is nothing to do."""
    sealed = study.state(stage) == product.State.SEALED
    return sealed, None if sealed or stage not in STOPPABLE else end_of_allocation(os.environ)


def _say_stopped(study: Study, stage: str) -> None:
    counts = study.done(stage)
    done = f" with {counts[0]:,} of {counts[1]:,} {counts[2]}" if counts else ""
    logger.warning("%s stopped at a safe place%s; run it again to continue", stage, done)


def _train(study: Study) -> int:
    from hpc_cg.learning.distributed import join
    from hpc_cg.stages import train

    me = who_am_i(os.environ)
    first, folder = me.rank == 0, study.folder("train")
    _use_own_gpu()
    world = join(me.rank, me.world_size, me.master_addr, me.master_port)
    sealed, ends_at = _tell(world, _state(study, "train") if first else (False, None))
    if sealed:
        world.close()
        return 0
    deadline = Deadline(folder, ends_at, signals_of("train", os.environ))
    if first:
        _begin(study, "train")
    try:
        world.barrier()
        finished = train.work(study, world, Heartbeat(folder, me.rank), deadline.stop)
        world.barrier()
        if finished and first:
            _seal(study, "train")
        if not finished and first:
            _say_stopped(study, "train")
        world.barrier()
    finally:
        if first:
            product.release(folder)
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


def _begin(study: Study, stage: str) -> None:
    for name in study.upstream(stage):
        product.need_seal(study.folder(name), stage)
        if study.state(name) != product.State.SEALED:
            raise NotSealed(
                f"{stage} reads the product of {name}",
                f"{study.folder(name)} made with other settings or inputs than the study has now",
                f"run the stage {name} of this study first",
            )
    product.begin(study.folder(stage), study.fingerprint(stage), study.intent(stage))


def _seal(study: Study, stage: str) -> None:
    from dataclasses import asdict

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
    )


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr)
    if len(arguments) != 2:
        logger.error("usage: python -m jobs STAGE study.toml")
        return 2
    stage, path = arguments
    try:
        with abort_together():
            return run_stage(read_study(Path(path)), stage)
    except HpcCgError as error:
        logger.error("%s", error)
        return error.exit_code
    except OSError as error:
        logger.error("%s: %s", error.filename or "a file", error.strerror or error)
        return 1
    except KeyboardInterrupt:
        logger.error("interrupted; what was sealed or committed stays, run again to continue")
        return 130


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        sys.exit(main(sys.argv[1:]))
