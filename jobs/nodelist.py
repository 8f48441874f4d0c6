"""Slurm's short way of writing host names, written out: ``a[1-3,7],b`` is a1 a2 a3 a7 b.

The grammar is that of ``scontrol show hostnames``, which a container need not have.
"""

import itertools
import re

from hpc_cg.errors import BrokenLaunch

_PART = re.compile(r"(?:[\w.-]|\[[\d,-]+\])+")
_PIECE = re.compile(r"\[[^\]]*\]|[^\[]+")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def expand_nodelist(nodelist: str) -> list[str]:
    """The host names of a node list in order; ``n[08-10]`` keeps its zeros, ``r[1-2]n[1-2]`` is four hosts.

    Raises BrokenLaunch for text that is no node list.
    """
    parts = _PART.findall(nodelist)
    if not parts or ",".join(parts) != nodelist:
        raise _not_a_nodelist(nodelist)
    return [host for part in parts for host in _expand_part(part, nodelist)]


def _expand_part(part: str, nodelist: str) -> list[str]:
    pieces = _PIECE.findall(part)
    choices = [_expand_ranges(piece[1:-1], nodelist) if piece[0] == "[" else [piece] for piece in pieces]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _expand_ranges(text: str, nodelist: str) -> list[str]:
    numbers: list[str] = []
    for item in text.split(","):
        match = _RANGE.fullmatch(item)
        if match is None:
            raise _not_a_nodelist(nodelist)
        first, last = match[1], match[2] or match[1]
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return numbers


def _not_a_nodelist(nodelist: str) -> BrokenLaunch:
    return BrokenLaunch(
        "reading Slurm's list of nodes",
        repr(nodelist),
        "unset that variable, or set MASTER_ADDR to the job's first host",
    )
