"""A file that kills its reader is read with care the next time; everything else leaves no trace."""

import json
import os
from pathlib import Path

import pytest

from hpc_cg.archive.formats import format_named
from hpc_cg.archive.index import Segment
from hpc_cg.archive.trail import FOLDER, Trail, suspects


def segment(path: str, kind: str = "xtc") -> Segment:
    return Segment("m", path, kind, 5, 30, 1.0, None, False, "d", "nm", None, None)


def test_what_is_read_to_its_end_leaves_no_trace(tmp_path: Path) -> None:
    with Trail(tmp_path, 3).on(segment("/a.xtc")) as source:
        assert source.format == "xtc"
        assert json.loads(next((tmp_path / FOLDER).iterdir()).read_text()) == "/a.xtc"
    with pytest.raises(ValueError, match="bad"), Trail(tmp_path, 3).on(segment("/b.xtc")):
        raise ValueError("bad")
    with Trail(tmp_path, 3).on(segment("/a.trr", "trr")):
        assert not list((tmp_path / FOLDER).iterdir())
    assert suspects(tmp_path) == []


def test_files_that_were_open_when_a_reader_died_are_read_with_care(tmp_path: Path) -> None:
    for member, path in enumerate(("/a.xtc", "/b.xtc")):
        child = os.fork()
        if child == 0:
            with Trail(tmp_path, member).on(segment(path)):
                os.kill(os.getpid(), 9)
        os.waitpid(child, 0)
    assert suspects(tmp_path) == ["/a.xtc", "/b.xtc"]
    assert suspects(tmp_path) == ["/a.xtc", "/b.xtc"]  # kept for all later runs
    with Trail(tmp_path, 0, frozenset(suspects(tmp_path))).on(segment("/a.xtc")) as source:
        assert source.format == "xtc-checked"
        assert format_named(source.format).name == "xtc-checked"
