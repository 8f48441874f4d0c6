"""Signals that arrive before a stage has begun: heard from the first line on, and looked at when it begins.

Imports of a stage take seconds. Without this a signal in that time would end the process as a crash does.
"""

import signal
from collections.abc import Mapping
from types import FrameType

STOPPABLE = ("reference", "prepare", "flow", "kernel", "train", "simulate")
"""Stages of many items; the others are over in minutes and are not asked to stop."""

WORLDS = ("flow", "train")
"""Stages whose processes work on one thing together, by torch.distributed."""

heard: list[int] = []
"""The signals that asked to stop so far."""


def listen(stage: str, environ: Mapping[str, str]) -> None:
    """Take down the signals that ask this stage to stop, until somebody else takes them over.

    Whoever had handlers before, as the worker of a transport, has them no more: there is one owner of signals.
    """
    for number in (signal.SIGCONT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    if stage in STOPPABLE:
        for number in signals_of(stage, environ):
            signal.signal(number, _hear)


def signals_of(stage: str, environ: Mapping[str, str]) -> tuple[signal.Signals, ...]:
    """Which signals ask a stage to stop at a safe place; what others do to a process stays as it is.

    SIGUSR2 always. SIGTERM inside a Slurm job, where it announces the time limit, a preemption or scancel. Training,
    which loses all steps since its last checkpoint, also saves at SIGTERM elsewhere and at Ctrl-C.
    """
    if stage in WORLDS:
        return signal.SIGUSR2, signal.SIGTERM, signal.SIGINT
    return (signal.SIGUSR2, signal.SIGTERM) if environ.get("SLURM_JOB_ID") else (signal.SIGUSR2,)


def _hear(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    heard.append(number)
