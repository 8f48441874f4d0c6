"""The papers a user reads are true: commands parse and run, links lead somewhere, tables and settings are as told."""

import re
import subprocess
import sys
import tomllib
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from toy import write_study

from hpc_cg.campaign.members import is_campaign, read_campaign
from hpc_cg.stages.study import BESIDE, TABLES, read_study
from launch import cli

ROOT = Path(__file__).parents[1]
PAPERS = sorted(
    [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks/README.md", *(ROOT / "docs").glob("*.md")]
)
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")
REQUIRED = {"study": 'name = "a"\ntemperature_K = 300.0\n', "prepare": ""}
USAGE_ERROR = typer.BadParameter.__base__


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(language: str, mark: str = "") -> list[tuple[str, str]]:
    """Paper and text of each fenced block of a language whose first line bears the mark."""
    found = []
    for paper in PAPERS:
        for kind, rest, text in BLOCK.findall(paper.read_text(encoding="utf-8")):
            if kind == language and mark in rest:
                found.append((name(paper), text))
    return found


def command_lines(program: str) -> list[str]:
    """Every line of a block, and every span of code, that begins with the program; without comments."""
    lines = [line for _, text in blocks("bash") for line in text.splitlines()]
    for paper in PAPERS:
        prose = BLOCK.sub("", paper.read_text(encoding="utf-8"))
        lines += re.findall(r"`([^`\n]+)`", prose)
    plain = {line.split("#")[0].strip() for line in lines}
    return sorted(line for line in plain if line.startswith(f"{program} "))


@pytest.mark.parametrize("line", command_lines("hpc-cg"))
def test_every_command_line_is_one_that_the_program_knows(line: str) -> None:
    words = line.split()[1:]
    if len(words) == 1 and "-" not in words[0]:
        assert words[0] in typer.main.get_command(cli.app).commands  # the name of a command, not a line to type
        return
    group = typer.main.get_command(cli.app)
    with group.make_context("hpc-cg", words[:]) as context:
        found, command, rest = group.resolve_command(context, words)
        assert command is not None, found
        with command.make_context(str(found), rest, parent=context):
            pass


def test_a_command_that_does_not_exist_would_be_noticed() -> None:
    assert USAGE_ERROR is not None
    with pytest.raises(USAGE_ERROR):
        test_every_command_line_is_one_that_the_program_knows("hpc-cg status study.toml --colour")


@pytest.mark.parametrize("line", command_lines("make"))
def test_every_make_line_names_a_target(line: str) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    words = line.split(" && ")[0].split()[1:]
    assert [word for word in words if "=" not in word and word not in targets] == []


def test_the_lines_marked_runnable_run(tmp_path: Path) -> None:
    write_study(tmp_path)
    lines = [line for _, text in blocks("bash", "runnable") for line in text.splitlines() if line]
    assert lines, "no block is marked runnable"
    program = [sys.executable, "-c", "from launch.cli import main; main()"]
    for line in sorted(lines, key=lambda line: " run " not in line):
        words = line.split()
        assert words[0] == "hpc-cg"
        options = ["--ranks", "1"] if words[1] == "run" else []
        done = subprocess.run(
            [*program, *words[1:], *options], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report" / "report.html").exists()


@pytest.mark.parametrize("paper", PAPERS, ids=name)
def test_every_file_that_is_linked_exists(paper: Path) -> None:
    for target in ("".join(found) for found in LINK.findall(paper.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = paper.parent / path if path else paper
        assert linked.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", head).lower().replace(" ", "-") for head in heads}, target


@pytest.mark.parametrize(("paper", "text"), blocks("toml"))
def test_every_table_that_is_shown_is_accepted(paper: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    missing = "".join(f"[{table}]\n{rest}" for table, rest in REQUIRED.items() if f"[{table}]" not in text)
    path.write_text(missing + text, encoding="utf-8")
    read_study(path)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").rglob("*.toml")), ids=name)
def test_every_example_is_accepted(path: Path) -> None:
    assert read_campaign(path).members if is_campaign(path) else read_study(path)


def documented() -> dict[str, dict[str, str]]:
    """Setting and default of each table, as docs/studies.md tells them."""
    text = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    sections = re.split(r"^## \[(\w+)\]$", text, flags=re.MULTILINE)[1:]
    row = re.compile(r"^\| `(\w+)` \| (.+?) \|", re.MULTILINE)
    return {table: dict(row.findall(body)) for table, body in zip(sections[::2], sections[1::2], strict=True)}


def default_of(field: Any) -> Any:
    """The default of a setting as TOML would give it; REQUIRED where there is none."""
    value = field.default.default if isinstance(field.default, FieldInfo) else field.default
    if value in (MISSING, PydanticUndefined):
        return REQUIRED
    return list(value) if isinstance(value, tuple) else value


def told_default(text: str) -> Any:
    """The default that a table of docs/studies.md tells."""
    words = {"required": REQUIRED, "none": None}
    return words[text] if text in words else tomllib.loads(f"x = {text.strip('`')}")["x"]


@pytest.mark.parametrize("table", TABLES)
def test_every_setting_is_documented_with_its_default_and_no_other(table: str) -> None:
    told = {setting: told_default(default) for setting, default in documented()[table].items()}
    assert told == {field.name: default_of(field) for field in fields(TABLES[table])}


def test_no_table_is_documented_that_does_not_exist() -> None:
    assert documented().keys() == TABLES.keys()


def test_the_house_in_the_readme_is_the_house() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rooms = set(re.findall(r"^  (\w+)/ ", text, re.MULTILINE))
    assert rooms == {path.parent.name for path in (ROOT / "hpc_cg").glob("*/__init__.py")}
    for top in re.findall(r"^(\w+)/ ", text, re.MULTILINE):
        assert (ROOT / top).is_dir(), top


def test_settings_that_make_nothing_stale_are_told_and_no_others() -> None:
    text = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    rows = re.search(r"^\| setting \| why \|\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert rows is not None
    told = {word for row in rows[1].splitlines()[1:] for word in re.findall(r"`([^`]+)`", row.split("|")[1])}
    assert told == {f"{stage}.{setting}" for stage, settings in BESIDE.items() for setting in settings}
