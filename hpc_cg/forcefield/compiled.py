"""C that is compiled where it runs: one file, one library, at the first use in a process.

The compiler is the one that the environment variable CC names, else cc or gcc. Code is made for the processor that it
will run on, so nothing is kept between processes: nodes of a cluster differ. Compiling takes about a second.
"""

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from hpc_cg.errors import MissingExtra

FLAGS = ("-O3", "-march=native", "-fopenmp-simd", "-fno-math-errno", "-shared", "-fPIC")
WIDE = "-mprefer-vector-width=512"


@cache
def library(source: Path, *definitions: str) -> ctypes.CDLL:
    """The library of a C file, compiled with the definitions (``NAME=value``); raises MissingExtra."""
    compiler = _compiler()
    with tempfile.TemporaryDirectory(prefix="hpc-cg-") as folder:
        target = Path(folder) / "library.so"
        command = [compiler, *FLAGS, *(f"-D{x}" for x in definitions), str(source), "-o", str(target), "-lm"]
        for flags in ([WIDE], []):  # not every compiler knows the first
            done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return _load(target, compiler)
    raise _missing(f"{compiler} failed: {' '.join(done.stderr.split())[:300]}")


def _load(target: Path, compiler: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise _missing(f"what {compiler} made cannot be loaded ({error})") from error


def _compiler() -> str:
    named = os.environ.get("CC")
    found = next((path for name in ([named] if named else ["cc", "gcc"]) if (path := shutil.which(name))), None)
    if found is None:
        raise _missing(f"CC = {named}, which is no program" if named else "neither cc nor gcc on the path")
    return found


def _missing(found: str) -> MissingExtra:
    return MissingExtra(
        "a C compiler for the pairs of beads",
        found,
        'install gcc, name a C compiler in CC and a folder for programs in TMPDIR, or set train.pairs = "torch"',
    )
