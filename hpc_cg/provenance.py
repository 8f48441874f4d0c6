"""Which code is running: the version, a digest of the sources, and the commit where they are a git checkout."""

from functools import cache
from importlib import metadata
from pathlib import Path

from hpc_cg.files import digest_bytes

PARTS = ("hpc_cg", "jobs", "launch")


@cache
def code_version() -> dict[str, str]:
    """``version`` of the package, ``sources`` digest of every Python file of it, ``commit`` if there is a checkout."""
    root = Path(__file__).parents[1]
    files = sorted(path for part in PARTS for path in (root / part).rglob("*.py"))
    sources = digest_bytes(*(str(path.relative_to(root)).encode() + path.read_bytes() for path in files))
    found = {"version": metadata.version("hpc-cg"), "sources": sources}
    commit = _commit(root / ".git")
    return found | ({"commit": commit} if commit else {})


def _commit(git: Path) -> str:
    """The commit that a checkout stands at, read from git's own files; empty where there is none."""
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        if (git / name).exists():
            return (git / name).read_text(encoding="utf-8").strip()
        packed = (git / "packed-refs").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split()[0] for line in packed if line.endswith(f" {name}")), "")
