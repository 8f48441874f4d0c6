"""The learning curves as scalars for TensorBoard, where its package is installed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpc_cg.errors import MissingExtra


def open_board(folder: Path, first_step: int) -> Any:
    """A writer of event files below ``folder``; of a resumed training, steps from ``first_step`` on count anew.

    Raises MissingExtra.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtra(
            "train.tensorboard",
            f"no package tensorboard ({error})",
            'pip install "hpc-cg[tensorboard]", or set train.tensorboard = false; curves.jsonl is written in any case',
        ) from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)


def write_row(board: Any, row: Mapping[str, Any]) -> None:
    """Add a row of the learning curves."""
    for name, value in row.items():
        if name != "step":
            board.add_scalar(name, value, int(row["step"]))
    board.flush()
