"""Run one stage of a study as this process's share: ``python -m jobs STAGE study.toml``.

The same line under mpiexec, srun, torchrun, or alone. Exit codes: 0 sealed, 75 stopped at a safe place (run again),
1 and 2 an error that was explained on stderr.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import FrameType

from hpc_cg.errors import BrokenLaunch, ConfigError, HpcCgError, NotSealed
from hpc_cg.stages import product
from hpc_cg.stages.progress import Heartbeat
from hpc_cg.stages.study import Study, read_study
from jobs.allocation import abort_together, team_for, who_am_i

PARTIAL = 75
"""Exit code of a stage that stopped before its end and can be continued (EX_TEMPFAIL)."""

logger = logging.getLogger("hpc-cg")


class StopRequest:
    """Asked between steps whether to save and stop: by a signal, or by the file STOP in the stage's folder.

    A second Ctrl-C stops at once.
    """

    def __init__(self, folder: Path) -> None:
        self.asked, self.file = False, folder / product.STOP
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __call__(self) -> bool:
        return self.asked or self.file.exists()


def run_stage(study: Study, stage: str) -> int:
    """Work on this process's share of a stage, and seal the product where this is the first process."""
    if stage not in study.stages:
        raise ConfigError(study.path.name, [f"stage {stage} is not part of this study ({', '.join(study.stages)})."])
    if study.state(stage) == product.State.SEALED:
        return 0
    if stage == "train":
        return _train(study)
    team = team_for(os.environ)
    first = team.share.index == 0
    if first:
        _begin(study, stage)
    team.barrier()
    if stage == "simulate":
        _use_own_gpu()
    try:
        module = import_module(f"hpc_cg.stages.{stage}")
        module.work(study, team, Heartbeat(study.folder(stage), team.share.index))
        team.barrier()
        if first:
            _seal(study, stage)
    finally:
        if first:
            product.release(study.folder(stage))
    return 0


def _train(study: Study) -> int:
    from hpc_cg.learning.distributed import join
    from hpc_cg.stages import train

    me = who_am_i(os.environ)
    stopped = StopRequest(study.folder("train"))
    _use_own_gpu()
    world = join(me.rank, me.world_size, me.master_addr, me.master_port)
    if me.rank == 0:
        _begin(study, "train")
    try:
        world.barrier()
        finished = train.work(study, world, Heartbeat(study.folder("train"), me.rank), stopped)
        world.barrier()
        if finished and me.rank == 0:
            _seal(study, "train")
        world.barrier()
    finally:
        if me.rank == 0:
            product.release(study.folder("train"))
    world.close()
    return 0 if finished else PARTIAL


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
    product.begin(study.folder(stage), study.fingerprint(stage), study.inputs(stage))


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
    except KeyboardInterrupt:
        logger.error("interrupted; what was sealed or committed stays, run again to continue")
        return 130


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        sys.exit(main(sys.argv[1:]))
