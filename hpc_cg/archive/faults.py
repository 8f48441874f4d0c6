"""What is wrong with a source file, in this project's words and with the file's name."""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import TypeCheckError

from hpc_cg.errors import HpcCgError, MissingInput, UnreadableFile


@contextmanager
def explain_read_errors(path: Path) -> Iterator[None]:
    """Turn what the system and the libraries of formats say of a bad file into UnreadableFile or MissingInput.

    To be held around the reading of files that others wrote: whatever such a file holds, it is the file that is at
    fault, so the errors that a parser trips over (a key, a type, a value out of range) are answered alike. Arguments of
    the wrong type, which only tests check, are our own fault.
    """
    try:
        yield
    except (HpcCgError, TypeCheckError):
        raise
    except FileNotFoundError as error:
        raise MissingInput(f"reading {path}", "no such file", "restore it, or take it out of the study") from error
    except PermissionError as error:
        raise UnreadableFile(f"reading {path}", "no permission to read it", "change its rights") from error
    except (
        OSError,
        EOFError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        SyntaxError,
        TypeError,
        ValueError,
        struct.error,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise unreadable(path, str(error) or type(error).__name__) from error


def unreadable(path: Path, found: str) -> UnreadableFile:
    """The error for a file of which ``found`` is wrong; to be raised by the caller."""
    return UnreadableFile(f"reading {path}", found, "copy the file again from its source, or take it out of the study")


def check_array(path: Path, name: str, array: Any, n_atoms: int | None = None) -> tuple[int, int]:
    """Frames and atoms of an array; raises UnreadableFile unless it is (frame, n_atoms, 3) of floats."""
    shape: tuple[int, ...] = getattr(array, "shape", ())
    dtype = getattr(array, "dtype", None)
    whole = len(shape) == 3 and shape[2] == 3 and min(shape) > 0
    if not whole or n_atoms not in (None, shape[1]) or not np.issubdtype(dtype, np.floating):
        wanted = f"(frame, {'atom' if n_atoms is None else n_atoms}, 3) of floats"
        raise unreadable(path, f"{name} of shape {shape} and type {dtype}, not {wanted}")
    return int(shape[0]), int(shape[1])
