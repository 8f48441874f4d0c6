"""Convolutions by compiled code: ``fused.c`` for tensors, with gradients to first order.

Interpolating a filter, the product with the features of the sender and the sum at the receiver are one loop over
pairs, so no array over pairs and features is written. Threads divide the frames; each has a table of its own for the
gradient, and these are summed in order, so the same number of threads gives the same bits.
"""

import ctypes
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hpc_cg.compiler import Source, library
from hpc_cg.errors import NoCompiler
from hpc_cg.forcefield.grid import Places

REALS = {torch.float32: ("float", ctypes.c_float), torch.float64: ("double", ctypes.c_double)}
FRAMES_A_THREAD = 4
"""Fewer frames than this are not worth a thread."""


def available() -> bool:
    """Whether pairs can be done by compiled code here; says why where not."""
    try:
        require()
    except NoCompiler as error:
        warnings.warn(f"pairs of beads by tensor operations, which are slower. {error}", stacklevel=2)
        return False
    return True


def require() -> None:
    """Raises NoCompiler where pairs cannot be done by compiled code."""
    _library(torch.float32)


@cache
def _library(dtype: torch.dtype) -> ctypes.CDLL:
    path, flag = Path(__file__).with_name("fused.c"), f"-DREAL={REALS[dtype][0]}"
    wishes = ("-mprefer-vector-width=512",)
    return library(Source(path, "compiled sums over pairs of beads", 'train.pairs = "torch"', (flag,), wishes))


@cache
def _work_type(dtype: torch.dtype) -> type[ctypes.Structure]:
    sizes = [(name, ctypes.c_ssize_t) for name in ("beads", "frames", "features", "wide", "begin", "end")]
    pointers = [(name, ctypes.c_void_p) for name in ("row", "part", "table")]
    return type("Work", (ctypes.Structure,), {"_fields_": [*sizes, ("inverse_step", REALS[dtype][1]), *pointers]})


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="pairs")


@dataclass(frozen=True)
class FusedConvolution:
    """One block's convolution at the places of a batch.

    knots   values, and slopes times the step, at the knots (knot, 2 feature)
    """

    knots: Tensor
    places: Places
    step: float

    def receive(self, sent: Tensor) -> Tensor:
        """What every bead receives (bead frame feature), from what each sends (bead, frame or 1, feature)."""
        return _Receive.apply(self.knots, sent.to(self.knots.dtype), self.places, self.step)

    def push(self, sent: Tensor, pull: Tensor, further: bool) -> tuple[Tensor, Tensor | None]:
        """See ``DenseConvolution.push``."""
        sent, pull = sent.to(self.knots.dtype), pull.to(self.knots.dtype)
        slope, out = _Push.apply(self.knots, sent, pull, self.places, self.step, further)
        return slope, out if further else None


@dataclass(frozen=True)
class _Job:
    """The arguments that all functions share."""

    knots: Tensor
    places: Places
    step: float
    n_beads: int
    wide: bool

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Frames of each thread."""
        n_frames = self.places.row.shape[1]
        count = max(1, min(torch.get_num_threads(), n_frames // FRAMES_A_THREAD))
        edges = [n_frames * i // count for i in range(count + 1)]
        return list(pairwise(edges))

    def run(self, name: str, arguments: Callable[[int], Sequence[Tensor | None]]) -> None:
        """Call a function of the library for all frames; ``arguments`` of a thread's number."""
        dtype, ranges = self.knots.dtype, self.ranges
        function, kind = getattr(_library(dtype), name), _work_type(dtype)
        row, part = self.places
        features = self.knots.shape[1] // 2

        def call(number: int) -> None:
            tensors = [row, part, self.knots]
            begin, end = ranges[number]
            shape = (self.n_beads, row.shape[1], features, int(self.wide), begin, end)
            work = kind(*shape, 1.0 / self.step, *(x.data_ptr() for x in tensors))
            function(ctypes.byref(work), *(_pointer(x) for x in arguments(number)))

        if len(ranges) == 1:
            call(0)
        else:
            list(_threads(len(ranges)).map(call, range(len(ranges))))


def _pointer(x: Tensor | None) -> ctypes.c_void_p:
    assert x is None or x.is_contiguous()
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def _contiguous(places: Places, dtype: torch.dtype) -> Places:
    assert places.row.dtype == torch.int32 and places.part.dtype == dtype
    return Places(places.row.contiguous(), places.part.detach().contiguous())


class _Receive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, knots: Tensor, sent: Tensor, places: Places, step: float) -> Tensor:
        knots, sent, places = knots.contiguous(), sent.contiguous(), _contiguous(places, knots.dtype)
        n_frames = places.row.shape[1]
        job = _Job(knots, places, step, len(sent), sent.shape[1] == n_frames)
        out = sent.new_zeros(len(sent), n_frames, sent.shape[2])
        job.run("receive", lambda _: (sent, out))
        ctx.save_for_backward(knots, sent, *places)
        ctx.step = step
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        knots, sent, row, part = ctx.saved_tensors
        job = _Job(knots, Places(row, part), ctx.step, len(sent), sent.shape[1] == row.shape[1])
        tables, sents, grad = _zeros(job, knots), _zeros(job, sent), grad.contiguous()
        job.run("receive_back", lambda number: (sent, grad, sents[number], tables[number]))
        return _total(tables), _total(sents), None, None


class _Push(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, knots: Tensor, sent: Tensor, pull: Tensor, places: Places, step: float, further: bool
    ) -> tuple[Tensor, Tensor]:
        knots, sent, pull, places = (
            knots.contiguous(),
            sent.contiguous(),
            pull.contiguous(),
            _contiguous(places, knots.dtype),
        )
        job = _Job(knots, places, step, len(sent), sent.shape[1] == places.row.shape[1])
        slope = torch.zeros_like(places.part)
        out = torch.zeros_like(pull) if further else None
        job.run("push", lambda _: (sent, pull, slope, out))
        ctx.save_for_backward(knots, sent, pull, *places)
        ctx.step, ctx.further = step, further
        return slope, pull.new_zeros(0) if out is None else out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_slope: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
        knots, sent, pull, row, part = ctx.saved_tensors
        job = _Job(knots, Places(row, part), ctx.step, len(sent), sent.shape[1] == row.shape[1])
        tables, sents, pulls = _zeros(job, knots), _zeros(job, sent), torch.zeros_like(pull)
        grad_slope, given = grad_slope.contiguous(), grad.contiguous() if ctx.further else None
        job.run(
            "push_back",
            lambda number: (sent, pull, grad_slope, given, sents[number], pulls, tables[number]),
        )
        return _total(tables), _total(sents), pulls, None, None, None


def _zeros(job: _Job, like: Tensor) -> list[Tensor]:
    """Where each thread adds its gradient: one for all where threads write to different frames."""
    if like.dim() == 3 and job.wide:
        return [torch.zeros_like(like)] * len(job.ranges)
    return list(torch.zeros(len(job.ranges), *like.shape, dtype=like.dtype))


def _total(parts: list[Tensor]) -> Tensor:
    """The sum of what threads added."""
    if len(parts) == 1 or parts[0] is parts[1]:
        return parts[0]
    return torch.stack(parts).sum(0)
