"""The house keeps its shape: imports go left, dependencies stay where they belong, checkpoints are loaded safely."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = (
    {"units", "errors", "files", "share", "randomness", "config", "provenance", "compiler"},
    {"frames", "beads"},
    {"archive", "mapping", "kernels", "store"},
    {"forcefield", "learning", "diffusion"},
    {"simulate"},
    {"analysis"},
    {"report"},
    {"stages"},
    {"campaign"},
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
FILES = sorted(path for top in ("hpc_cg", "jobs", "launch") for path in (ROOT / top).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(module: str) -> str:
    """The part of the library that a dotted name belongs to; empty for the library itself. Every part has a rank."""
    parts = module.split(".")
    if len(parts) == 1 or parts[1] in ("__init__", "__version__"):
        return ""
    assert parts[1] in RANK, f"hpc_cg.{parts[1]} has no place in the order of imports"
    return parts[1]


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [p for p in FILES if names(p).startswith("hpc_cg/")], ids=names)
def test_the_library_imports_only_to_the_left(path: Path) -> None:
    own = room("hpc_cg." + path.relative_to(ROOT / "hpc_cg").parts[0].removesuffix(".py"))
    for module in imports(path):
        top = module.split(".")[0]
        assert top not in ("jobs", "launch", "mpi4py", "submitit"), f"{names(path)} imports {module}"
        if top == "hpc_cg" and own and room(module):
            assert RANK[room(module)] <= RANK[own], f"{names(path)} ({own}) imports {module}"


@pytest.mark.parametrize("path", [p for p in FILES if names(p).startswith("jobs/")], ids=names)
def test_jobs_do_not_know_what_launches_them(path: Path) -> None:
    assert not any(module.split(".")[0] in ("launch", "submitit", "typer", "rich") for module in imports(path))


def test_stages_do_not_import_one_another() -> None:
    shared = {
        "claims",
        "product",
        "progress",
        "study",
        "molecules",
        "indexing",
        "planning",
        "passes",
        "gathering",
        "judgement",
        "backmapping",
        "slow",
        "transitions",
        "learnt",
    }
    for path in (ROOT / "hpc_cg/stages").glob("*.py"):
        if path.stem in {*shared, "__init__"}:
            continue
        others = {m.split(".")[2] for m in imports(path) if m.startswith("hpc_cg.stages.")} - shared
        assert not others, f"{names(path)} imports the stages {others}"


def test_only_the_pictures_of_the_report_draw() -> None:
    drawing = {names(p) for p in FILES if any(m.split(".")[0] == "matplotlib" for m in imports(p))}
    assert drawing == {f"hpc_cg/report/{name}.py" for name in ("drawing", "figures", "campaign_figures")}


@pytest.mark.parametrize("folder", ["archive", "mapping", "store", "analysis", "report"])
def test_these_rooms_need_no_torch(folder: str) -> None:
    for path in (ROOT / "hpc_cg" / folder).glob("*.py"):
        assert not any(m.split(".")[0] == "torch" for m in imports(path)), names(path)


def test_tensors_are_loaded_without_pickles() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert arguments.get("weights_only") == "True", names(path)


def test_no_pickle_is_read_but_by_the_worker_that_submitit_starts() -> None:
    using = {name: {names(p) for p in FILES if name in {m.split(".")[0] for m in imports(p)}} for name in UNSAFE}
    assert using == {"submitit": {"launch/transport.py"}, "pickle": set(), "cloudpickle": set(), "shelve": set()}
    assert ".result" not in (ROOT / "launch/transport.py").read_text(encoding="utf-8")


UNSAFE = ("submitit", "pickle", "cloudpickle", "shelve")
