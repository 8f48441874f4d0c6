"""Writing so that a kill at any moment leaves the old file or the new one, never half of one.

Write beside, fsync, rename, fsync the folder. Digests, and the JSON that the project writes, live here too.
"""

import errno
import hashlib
import json
import os
import stat
import uuid
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hpc_cg.errors import DamagedProduct, DiskFull, FolderNotWritable, MissingInput, UnreadableFile, UnsafeFolder

PARTIAL = ".partial"


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into this project's sentences."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"writing {path}",
                "no space left on that disk",
                "free space or move the run folder; then run again, what is sealed stays",
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            raise FolderNotWritable(
                f"writing {path}",
                "something else of that name in the way",
                "move it away, or choose another folder in study.toml",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise FolderNotWritable(
                f"writing {path}",
                "no permission to write there",
                "choose another folder in study.toml, or change its rights",
            ) from error
        raise


def own_folder(path: Path) -> Path:
    """A folder that nobody else can write into: made with mode 0700, or checked where it is there.

    Raises UnsafeFolder where it belongs to somebody else or others may write there, FolderNotWritable.
    """
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
            path.chmod(0o700)  # without what a folder above may hand down
        found = path.lstat()
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or mode & 0o022:
        raise UnsafeFolder(
            f"a folder of yours alone at {path}",
            f"{'a folder' if stat.S_ISDIR(found.st_mode) else 'no folder'} of user {found.st_uid}, mode {mode:04o}",
            f"say chmod 700 {path}, or choose another folder in study.toml",
        )
    return path


def write_atomic(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Call ``write`` with a file beside ``path``, then put that in its place; raises DiskFull, FolderNotWritable."""
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
        try:
            with beside.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make the renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes, atomically."""

    def write(file: BinaryIO) -> None:
        file.write(content)

    write_atomic(path, write)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as readable JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; raises MissingInput or DamagedProduct."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise MissingInput(f"reading {path}", "no such file", "run the stage that writes it") from error
    except OSError as error:
        raise UnreadableFile(f"reading {path}", error.strerror or str(error), "check its folder and rights") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedProduct(
            f"reading {path}", f"no valid JSON ({error})", "remove that file and run its stage again"
        ) from error


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write named arrays as npz, atomically and with the same bytes for the same arrays."""
    write_atomic(path, lambda file: np.savez(file, allow_pickle=False, **arrays))


def read_arrays(path: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Read named arrays from an npz file: all, or those of these names that are there.

    Raises MissingInput or UnreadableFile.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content.files if names is None or name in names}
    except FileNotFoundError as error:
        raise MissingInput(f"reading {path}", "no such file", "run the stage that writes it") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UnreadableFile(
            f"reading {path}", f"no readable npz file ({error})", "check the file, or make it again"
        ) from error


def sweep_partial(folder: Path) -> int:
    """Remove what killed writers left beside their files below ``folder``; return how many files that were."""
    left = [path for path in folder.rglob(f"*{PARTIAL}") if path.is_file()]
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def digest(value: Any) -> str:
    """Short hash of a JSON value: the same for the same content, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def digest_bytes(*parts: bytes) -> str:
    """Short hash of bytes."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()[:16]


def digest_content(path: Path) -> str:
    """Short hash of all bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def digest_file(path: Path, block: int = 1 << 16, n_blocks: int = 16) -> str:
    """Short hash of a file's size and of blocks spread evenly over it, so that huge files cost little."""
    size = path.stat().st_size
    parts = [str(size).encode()]
    with path.open("rb") as file:
        for start in sorted({int(x) for x in np.linspace(0, max(size - block, 0), n_blocks)}):
            file.seek(start)
            parts.append(file.read(block))
    return digest_bytes(*parts)
