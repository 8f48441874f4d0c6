"""Many processes, one gradient: a flat all-reduce after the backward pass.

Forces are computed inside the forward pass, each process adds the gradient of its own frames, and one vector is summed
over all of them. A stop flag travels in the same vector, so that all processes stop at the same step boundary. At the
start, one step is compared with the gradient that a single process computes.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from hpc_cg.errors import BrokenLaunch

TOLERANCE = 1e-3

Result = TypeVar("Result")


@dataclass(frozen=True)
class World:
    """The processes that train together."""

    rank: int
    size: int

    def sum_(self, values: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        if self.size > 1:
            dist.destroy_process_group()


def own_device() -> torch.device:
    """Where this process computes: on its GPU where it has one."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def join(rank: int, size: int, master_addr: str, master_port: int, timeout_s: float = 600.0) -> World:
    """Meet the other processes; NCCL where there are GPUs, gloo elsewhere. Raises BrokenLaunch."""
    if size > 1:
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = master_addr, str(master_port)
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        try:
            dist.init_process_group(backend, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s))
        except (dist.DistError, RuntimeError, ValueError) as error:
            raise BrokenLaunch(
                f"{size} processes to meet at {master_addr}:{master_port}",
                f"{type(error).__name__}: {str(error).splitlines()[0]}",
                "set MASTER_ADDR to the first node's name and MASTER_PORT to a free port",
            ) from error
    return World(rank, size)


def together(what: str, act: Callable[[], Result], world: World, device: torch.device) -> Result:
    """Do on every process what may fail on some; where it fails on any, it fails on all.

    Else those where it did not fail would wait for the others for ever, at the next sum. Every process calls this.
    Raises what ``act`` raises; on the other processes BrokenLaunch, which says ``what`` failed.
    """
    try:
        found = act()
    except Exception:
        world.sum_(torch.ones(1, device=device))
        raise
    failed = int(world.sum_(torch.zeros(1, device=device)))
    if failed:
        raise BrokenLaunch(
            f"{what} on all of {world.size} processes",
            f"{failed} where it fails",
            "look at what these say: most often versions, packages or compilers differ between nodes",
        )
    return found


def sum_gradients(parameters: Sequence[Tensor], world: World, flags: Tensor) -> Tensor:
    """Sum the gradients of all processes in one message; ``flags`` ride along and come back summed."""
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([flags, *(g.reshape(-1) for g in gradients)])
    world.sum_(flat)
    flags, rest = flat[: len(flags)], flat[len(flags) :]
    for parameter, part in zip(parameters, rest.split([g.numel() for g in gradients]), strict=True):
        parameter.grad = part.view_as(parameter).clone()
    return flags


def check_gradients(
    gradient_of: Callable[[slice], Tensor], parameters: Sequence[Tensor], n_frames: int, world: World
) -> None:
    """Compare the summed gradient of all shares with the gradient of the whole batch on one process.

    gradient_of   computes gradients of the given slice of a batch of ``n_frames`` into the parameters, returns the loss
    Raises BrokenLaunch where they differ by more than rounding.
    """
    gradient_of(slice(0, n_frames))
    alone = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None]).clone()
    gradient_of(slice(world.rank, n_frames, world.size))
    sum_gradients(parameters, world, torch.zeros(1, device=alone.device, dtype=alone.dtype))
    summed = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
    error = float((summed - alone).norm() / alone.norm().clamp_min(1e-30))
    if not error < TOLERANCE:
        raise BrokenLaunch(
            f"the same gradient from {world.size} processes as from one",
            f"a relative difference of {error:.1e}",
            "check that every process runs the same versions on the same data",
        )
