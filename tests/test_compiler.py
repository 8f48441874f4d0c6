"""A library of C code is made once, by whoever comes first, and its absence has a reason."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hpc_cg.compiler import built, compilers
from hpc_cg.errors import NoCompiler
from hpc_cg.simulate.compiled import SOURCE


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """That of this process, with an empty cache; skips where it has no compiler."""
    found = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    if not compilers(found):
        pytest.skip("no C compiler here")
    return found


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


@pytest.mark.compiler
def test_library_is_made_once(environ):
    first = built(SOURCE, environ)
    made = first.stat()
    assert built(SOURCE, environ) == first and first.stat() == made
    assert first.parent.stat().st_mode & 0o077 == 0


@pytest.mark.compiler
def test_processes_that_compile_at_once_leave_one_library(environ):
    text = "import os; from hpc_cg.compiler import built; from hpc_cg.simulate.compiled import SOURCE"
    line = [sys.executable, "-c", f"{text}; print(built(SOURCE, os.environ))"]
    running = [subprocess.Popen(line, env=environ, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    paths = {process.communicate(timeout=200)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert {str(path) for path in (Path(environ["XDG_CACHE_HOME"]) / "hpc-cg").iterdir()} == paths and len(paths) == 1


@pytest.mark.compiler
def test_another_compiler_makes_another_library(environ, tmp_path):
    own = compilers(environ)[0][0]
    other = script(tmp_path / "other", f'[ "$1" = --version ] && echo other || exec {own} "$@"')
    assert built(SOURCE, environ) != built(SOURCE, {**environ, "CC": other})


def test_no_compiler_is_told_with_what_to_install(tmp_path):
    with pytest.raises(NoCompiler, match="found no C compiler.*Install a C compiler.*apt-get install gcc"):
        built(SOURCE, {"PATH": str(tmp_path), "HOME": str(tmp_path)})


def test_what_a_compiler_complains_of_is_told(tmp_path):
    poor = script(tmp_path / "cc", '[ "$1" = --version ] || { echo "no -fopenmp here" >&2; exit 1; }')
    with pytest.raises(NoCompiler, match="cc: no -fopenmp here"):
        built(SOURCE, {"CC": poor, "HOME": str(tmp_path)})


def test_library_that_cannot_be_loaded_is_not_kept(tmp_path):
    script(tmp_path / "cc", 'while [ "$1" != -o ]; do shift; [ $# -gt 0 ] || exit 0; done; echo nonsense > "$2"')
    with pytest.raises(NoCompiler, match="cc: "):
        built(SOURCE, {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CC": str(tmp_path / "cc"), "HOME": str(tmp_path)})
    assert list((tmp_path / ".cache" / "hpc-cg").iterdir()) == []


def test_cache_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    poor = script(tmp_path / "cc", "exit 0")
    with pytest.raises(NoCompiler, match="something else of that name in the way.*XDG_CACHE_HOME"):
        built(SOURCE, {"CC": poor, "XDG_CACHE_HOME": str(tmp_path / "file")})


@pytest.mark.compiler
def test_library_that_was_cut_short_is_made_again(environ):
    path = built(SOURCE, environ)
    whole = path.read_bytes()
    path.write_bytes(b"")
    assert built(SOURCE, environ) == path and path.read_bytes() == whole


@pytest.mark.compiler
def test_flags_that_a_compiler_does_not_know_are_left_out(environ):
    assert built(replace(SOURCE, wishes=("-mno-such-flag",)), environ) == built(SOURCE, environ)
