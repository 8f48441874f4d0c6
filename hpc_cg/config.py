"""Strict settings: one TOML file, a table per stage, every mistake reported at once.

Each table is a frozen pydantic dataclass that lives with the stage that reads it. Unknown tables and keys, wrong types
and impossible values are collected over the whole file; a misspelt word is answered with the nearest known one.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from hpc_cg.errors import ConfigError, MissingInput

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
"""The pydantic configuration of every table."""


LEAST_SIGMA_NM = 1e-4
"""A narrower noise than this is a variance by mistake: stiff bonds vary by 0.003 nm, XTC files round to 0.001 nm."""


def refuse_variance(sigma_nm: float) -> None:
    """Raise ValueError for a standard deviation of noise, nm, so small that it must be a variance; 0 is none."""
    if 0 < sigma_nm < LEAST_SIGMA_NM:
        raise ValueError(
            f"sigma_nm = {sigma_nm:g} is less than {LEAST_SIGMA_NM:g} nm, far narrower than any bond. It is a standard "
            f"deviation: where {sigma_nm:g} nm² is the variance, write its root, {sigma_nm**0.5:.4g}."
        )


def read_toml(path: Path, what: str = "study") -> dict[str, Any]:
    """The content of a TOML file, the study's or another; raises MissingInput, ConfigError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingInput(f"the {what} file", f"no file {path}", f"name a {what}.toml that exists") from error
    except IsADirectoryError as error:
        raise MissingInput(f"the {what} file", f"{path} is a folder", f"name the {what}.toml inside it") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"no valid TOML: {error}"]) from error


def parse_tables(path: Path, tables: Mapping[str, type], required: tuple[str, ...]) -> dict[str, Any]:
    """Read ``path`` and build one object per table; tables that are absent take their defaults.

    tables     the dataclass of each table the file may hold
    required   tables that the file must hold
    Raises ConfigError with every problem of the file.
    """
    content = read_toml(path)
    problems = [
        f"{name} is not a table of a study." + did_you_mean(name, tables) for name in content if name not in tables
    ]
    problems += [f"the table [{name}] is missing." for name in required if name not in content]
    parsed: dict[str, Any] = {}
    for name, cls in tables.items():
        if name in required and name not in content:
            continue
        parsed[name], found = parse_table(name, cls, content.get(name, {}))
        problems += found
    if problems:
        raise ConfigError(path.name, problems)
    return parsed


def parse_table(name: str, cls: type, content: Any) -> tuple[Any, list[str]]:
    """The object that a table describes, or None; and a sentence for each of its mistakes."""
    try:
        # as JSON, so that a TOML array may stand for a tuple while numbers and words stay strict
        return TypeAdapter(cls).validate_json(json.dumps(content, default=str)), []
    except ValidationError as error:
        return None, [_sentence(name, cls, detail) for detail in error.errors()]


def _sentence(table: str, cls: type, detail: Any) -> str:
    """One of pydantic's complaints in this project's words."""
    where = ".".join(str(part) for part in (table, *detail["loc"]))
    if detail["type"] == "unexpected_keyword_argument":
        known = [field.name for field in fields(cls)]
        return f"{where} is not a setting." + did_you_mean(str(detail["loc"][-1]), known)
    if detail["type"] in ("missing", "missing_argument"):
        return f"{where} is missing."
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] in ("dataclass_type", "model_type", "dict_type") and not detail["loc"]:
        return f"{table} = {detail['input']!r}: {table} is a table: write [{table}] and its settings below."
    if not detail["loc"]:
        return f"[{table}]: {message}"
    return f"{where} = {detail['input']!r}: {message[:1].lower()}{message[1:]}."


def did_you_mean(word: str, known: Any) -> str:
    """An answer to a word that is none of the known ones: the nearest of them, or all."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else f" Known: {', '.join(known)}."
