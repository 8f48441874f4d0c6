"""C code, compiled at first use and kept for each user, source, compiler and processor.

The file's name is a digest of what decides its content. It is written beside and renamed, so any number of processes
may compile at once: whoever is last replaces a library by its equal. What is kept and cannot be loaded is made again.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hpc_cg.errors import DiskFull, FolderNotWritable, NoCompiler, UnsafeFolder
from hpc_cg.files import own_folder

NAMES = ("cc", "gcc", "clang")
FLAGS = (
    *("-std=gnu11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math"),
    *("-fopenmp", "-fPIC", "-shared"),
)
LIMIT_S = 300.0
INSTALL = (
    "install a C compiler with OpenMP (Debian: apt-get install gcc libc6-dev; a cluster: module load gcc), or name one "
    "in CC"
)


@dataclass(frozen=True)
class Source:
    """A C file of this package.

    what      it makes, in words
    without   the setting that does without it
    flags     more of them
    wishes    flags that not every compiler knows, left out where they are refused
    """

    path: Path
    what: str
    without: str
    flags: tuple[str, ...] = ()
    wishes: tuple[str, ...] = ()


@cache
def library(source: Source) -> ctypes.CDLL:
    """The compiled library; raises NoCompiler with what each compiler said."""
    return ctypes.CDLL(str(built(source, os.environ)))


def built(source: Source, environ: Mapping[str, str]) -> Path:
    """The path of the library, compiled if it was not there yet."""
    candidates, instead = compilers(environ), f"{source.without} needs none"
    if not candidates:
        raise NoCompiler(source.what, f"no C compiler (CC, {', '.join(NAMES)})", f"{INSTALL}; {instead}")
    try:
        where = own_folder(folder(environ))
    except (DiskFull, FolderNotWritable, UnsafeFolder) as error:
        change = f"name another in XDG_CACHE_HOME; {instead}"
        raise NoCompiler(f"a folder for {source.what}", str(error), change) from error
    complaints = []
    for compiler in candidates:
        for wishes in dict.fromkeys((source.wishes, ())):
            try:
                return _built_by(compiler, source, (*FLAGS, *source.flags, *wishes), where)
            except (OSError, subprocess.SubprocessError) as error:
                said = getattr(error, "stderr", None) or str(error)
        complaints.append(f"{' '.join(compiler)}: {_first_lines(said)}")
    raise NoCompiler(source.what, "; ".join(complaints), f"{INSTALL}; {instead}")


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


def _built_by(compiler: list[str], source: Source, flags: tuple[str, ...], where: Path) -> Path:
    version = _run([*compiler, "--version"])
    text = source.path.read_text(encoding="utf-8")
    parts = (text, " ".join(compiler), version, " ".join(flags), processor())
    digest = hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:20]
    path = where / f"{source.path.stem}-{digest}.so"
    if not _loads(path):
        beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            _run([*compiler, *flags, str(source.path), "-o", str(beside), "-lm"])
            ctypes.CDLL(str(beside))  # what cannot be loaded must not be kept
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    return path


def _loads(path: Path) -> bool:
    try:
        ctypes.CDLL(str(path))
    except OSError:
        return False
    return True


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
