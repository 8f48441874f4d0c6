"""The estimate counts what is there: bytes of all files, of those that can be read."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from toy import write_archive, write_study

from hpc_cg.stages.study import read_study
from launch.estimate import Cost, costs, table_of


def test_weights_of_all_frames_are_left_out_of_a_trial_on_some(tmp_path: Path) -> None:
    path = write_study(tmp_path, prepare={"weights": "weights.npy"}, archive=False)
    write_archive(tmp_path / "archive", n_segments=9, n_frames=100)
    np.save(tmp_path / "weights.npy", np.ones(sum(100 + 10 * i for i in range(9))))
    (cost,) = costs(read_study(path))
    assert (cost.n_files, cost.n_sampled, cost.n_unreadable) == (9, 3, 0)


def test_the_bytes_of_an_archive_are_those_of_positions_and_forces(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    (cost,) = costs(read_study(path))
    assert cost.archive_bytes == sum(file.stat().st_size for file in (tmp_path / "archive").iterdir())
    assert cost.n_frames == 1230


def test_a_sampled_file_that_cannot_be_read_counts_for_nothing(tmp_path: Path) -> None:
    path = write_study(tmp_path, prepare={"file_budget": 0.5}, archive=False)
    archive = write_archive(tmp_path / "archive", n_segments=3, n_frames=400)
    (archive / "run1_coordinates.npy").write_bytes(b"x" * 10_000_000)
    (cost,) = costs(read_study(path))
    assert (cost.n_sampled, cost.n_unreadable, cost.n_frames) == (3, 1, 820)
    assert cost.read_bytes < 3 * 1_000_000


@pytest.mark.parametrize("unreadable", [0, 2])
def test_the_table_names_files_that_could_not_be_read(unreadable: int) -> None:
    numbers = {field.name: 1 for field in fields(Cost)}
    seconds = dict.fromkeys(("indexing", "looking for bonds", "measuring forces", "mapping"), 1.0)
    cost = Cost(**numbers | {"molecule": "m", "seconds": seconds, "n_sampled": 4, "n_unreadable": unreadable})
    console = Console(width=80)
    with console.capture() as shown:
        console.print(table_of((cost,), 4, None))
    assert ("4, 2 cannot be read" in shown.get()) == bool(unreadable)
