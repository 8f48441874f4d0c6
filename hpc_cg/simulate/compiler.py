"""The engine's library: compiled from its C source at first use, kept for each user, source, compiler and processor.

The file's name is a digest of what decides its content. It is written beside and renamed, so any number of processes
may compile at once: whoever is last replaces a library by its equal.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from hpc_cg.errors import FolderNotWritable, NoCompiler, UnsafeFolder
from hpc_cg.files import own_folder

SOURCE = Path(__file__).with_name("engine.c")
NAMES = ("cc", "gcc", "clang")
FLAGS = (
    *("-std=gnu11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math"),
    *("-fopenmp", "-fPIC", "-shared"),
)
LIMIT_S = 300.0
INSTALL = (
    "install a C compiler with OpenMP (Debian: apt-get install gcc libc6-dev; a cluster: module load gcc), or name one "
    'in CC; simulate.engine = "torch" needs none'
)


@cache
def library() -> ctypes.CDLL:
    """The compiled engine; raises NoCompiler with what each compiler said."""
    return ctypes.CDLL(str(built(os.environ)))


def built(environ: Mapping[str, str]) -> Path:
    """The path of the library, compiled if it was not there yet."""
    candidates = compilers(environ)
    if not candidates:
        raise NoCompiler("the compiled simulation engine", f"no C compiler (CC, {', '.join(NAMES)})", INSTALL)
    try:
        where = own_folder(folder(environ))
    except (FolderNotWritable, UnsafeFolder) as error:
        change = 'name another in XDG_CACHE_HOME; simulate.engine = "torch" needs none'
        raise NoCompiler("a folder for the compiled simulation engine", str(error), change) from error
    complaints = []
    for compiler in candidates:
        try:
            return _built_by(compiler, where)
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            complaints.append(f"{' '.join(compiler)}: {_first_lines(said)}")
    raise NoCompiler("the compiled simulation engine", "; ".join(complaints), INSTALL)


def compilers(environ: Mapping[str, str]) -> list[list[str]]:
    """Command lines to try, without arguments: that of CC alone where it is set, else those found on the path."""
    if environ.get("CC"):
        return [environ["CC"].split()]
    found = (shutil.which(name, path=environ.get("PATH")) for name in NAMES)
    return [[path] for path in dict.fromkeys(path for path in found if path)]


def folder(environ: Mapping[str, str]) -> Path:
    """Where libraries are kept: below XDG_CACHE_HOME, or ~/.cache."""
    base = environ.get("XDG_CACHE_HOME") or str(Path(environ.get("HOME") or Path.home()) / ".cache")
    return Path(base) / "hpc-cg"


def _built_by(compiler: list[str], where: Path) -> Path:
    version = _run([*compiler, "--version"])
    parts = (SOURCE.read_text(encoding="utf-8"), " ".join(compiler), version, " ".join(FLAGS), processor())
    path = where / f"engine-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:20]}.so"
    if not path.exists():
        beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            _run([*compiler, *FLAGS, str(SOURCE), "-o", str(beside), "-lm"])
            ctypes.CDLL(str(beside)).engine_new  # noqa: B018 - what cannot be loaded must not be kept
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    return path


def processor() -> str:
    """What tells apart processors for which the compiler makes different code."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    names = ("model name", "flags", "Features", "CPU part", "model")
    first = {line.partition(":")[0].strip(): line for line in reversed(lines)}
    return "\n".join(first[name] for name in names if name in first)


def _run(line: list[str]) -> str:
    done = subprocess.run(line, check=True, capture_output=True, text=True, timeout=LIMIT_S)
    return done.stdout


def _first_lines(text: str, n: int = 3) -> str:
    return " / ".join(line.strip() for line in text.splitlines()[:n] if line.strip()) or "no word of why"
