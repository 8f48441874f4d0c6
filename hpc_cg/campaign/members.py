"""A campaign: studies that differ in a few settings, so that an answer comes with its spread.

    [campaign]                       name, folder, which axis only repeats
    [[axes]]                         a name, and values: each a label and the settings it stands for
    [study] [prepare] [kernel] ...   what all members share, as in a study file

There is a member for every combination of values. Its study file and products lie in the campaign's folder, and a
product that several members ask for with the same settings is made once: their folders are links to one.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass as plain_dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from hpc_cg.config import STRICT, did_you_mean, parse_table, read_toml
from hpc_cg.errors import ConfigError
from hpc_cg.files import digest_content, write_text
from hpc_cg.stages.product import make_run_folder
from hpc_cg.stages.study import TABLES, Study

MEMBERS, SHARED = "members", "shared"


@dataclass(frozen=True, config=STRICT)
class CampaignConfig:
    """The table [campaign].

    name      of the campaign; also that of each member's study
    folder    for all it makes, from the campaign file's own folder
    repeats   the axis whose values only repeat (seeds, subsets): means and spreads are taken over it
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    folder: str = "campaign"
    repeats: str = ""


@plain_dataclass(frozen=True)
class Choice:
    """One value of an axis: what it is called, and tables of settings that it stands for."""

    label: str
    settings: Mapping[str, Mapping[str, Any]]


@plain_dataclass(frozen=True)
class Axis:
    """Something that is varied, and its values."""

    name: str
    choices: tuple[Choice, ...]


@plain_dataclass(frozen=True)
class Member:
    """One study of a campaign: the label of its value on each axis, and its tables."""

    labels: tuple[str, ...]
    tables: Mapping[str, Mapping[str, Any]]

    @property
    def name(self) -> str:
        """A name for files."""
        return "_".join(re.sub(r"[^A-Za-z0-9.+-]+", "-", label).strip("-") for label in self.labels)


@plain_dataclass(frozen=True)
class Campaign:
    """A campaign file that has been read and found right."""

    path: Path
    config: CampaignConfig
    axes: tuple[Axis, ...]
    members: tuple[Member, ...]

    @property
    def folder(self) -> Path:
        return (self.path.parent / self.config.folder).resolve()

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def run_folder(self) -> Path:
        """Where what is submitted for the campaign itself is kept: its page."""
        return self.folder

    @property
    def digest(self) -> str:
        """Digest of the campaign file as it is now."""
        return digest_content(self.path)

    def file_of(self, member: Member) -> Path:
        """The member's study file."""
        return self.folder / MEMBERS / f"{member.name}.toml"

    def group(self, member: Member) -> tuple[str, ...]:
        """The member's labels without that of the axis that only repeats: members of one group are repeats."""
        pairs = zip(self.axes, member.labels, strict=True)
        return tuple(label for axis, label in pairs if axis.name != self.config.repeats)

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """All groups, in the order of the file."""
        return tuple(dict.fromkeys(self.group(member) for member in self.members))


def is_campaign(path: Path) -> bool:
    """Whether a file is a campaign's, not a study's."""
    return path.is_file() and "campaign" in read_toml(path, "campaign")


def read_campaign(path: Path) -> Campaign:
    """Read and check a campaign file and every member of it; raises ConfigError with all mistakes, MissingInput."""
    path = path.resolve()
    content = read_toml(path, "campaign")
    known = ("campaign", "axes", *TABLES)
    problems = [f"{name} is no part of a campaign.{did_you_mean(name, known)}" for name in content if name not in known]
    config, found = parse_table("campaign", CampaignConfig, content.get("campaign", {}))
    problems += found
    axes, found = _axes(content.get("axes", []))
    problems += found
    if problems:
        raise ConfigError(path.name, problems)
    assert config is not None, "a table without problems was read"
    base = {name: table for name, table in content.items() if name in TABLES}
    for name in ("folder", "name", "root"):
        if name in base.get("study", {}):
            problems.append(f"study.{name} is set by the campaign: remove it.")
    if config.repeats and config.repeats not in [axis.name for axis in axes]:
        names = [axis.name for axis in axes]
        problems.append(f"campaign.repeats = {config.repeats!r} is no axis.{did_you_mean(config.repeats, names)}")
    members = tuple(_member(path, config, base, choices) for choices in product(*(axis.choices for axis in axes)))
    problems += _problems(members)
    if problems:
        raise ConfigError(path.name, problems)
    return Campaign(path, config, axes, members)


def _axes(content: Any) -> tuple[tuple[Axis, ...], list[str]]:
    """The axes, and a sentence for each mistake in them."""
    if not isinstance(content, list) or not content:
        return (), ["a campaign needs at least one [[axes]] with a name and values."]
    axes, problems = [], []
    for number, one in enumerate(content, 1):
        name, values = one.get("name"), one.get("values")
        if not isinstance(name, str) or not isinstance(values, list) or not values or set(one) - {"name", "values"}:
            problems.append(f"axis {number} needs a name and a list of values, and nothing else.")
            continue
        choices = []
        for value in values:
            tables = {key: x for key, x in value.items() if key != "label"} if isinstance(value, dict) else {}
            if not isinstance(value, dict) or not isinstance(value.get("label"), str):
                problems.append(f'axis {name}: {value!r} needs a label, as {{ label = "small", train.steps = 10 }}.')
            elif bad := [key for key, x in tables.items() if key not in TABLES or not isinstance(x, dict)]:
                problems.append(f"axis {name}, {value['label']}: {bad[0]} is no table.{did_you_mean(bad[0], TABLES)}")
            else:
                choices.append(Choice(value["label"], tables))
        axes.append(Axis(name, tuple(choices)))
    return tuple(axes), problems


def _member(path: Path, config: CampaignConfig, base: Mapping[str, Any], choices: Sequence[Choice]) -> Member:
    tables = deepcopy(dict(base))
    for choice in choices:
        for table, settings in choice.settings.items():
            tables[table] = {**tables.get(table, {}), **settings}
    member = Member(tuple(choice.label for choice in choices), tables)
    folder = (path.parent / config.folder).resolve() / MEMBERS / member.name
    own = {"name": config.name, "root": str(path.parent), "folder": str(folder)}
    tables["study"] = {**tables.get("study", {}), **own}
    return member


def _problems(members: Sequence[Member]) -> list[str]:
    """What is wrong with the members, each sentence once, with the member where not all have it."""
    counts = Counter(member.name for member in members)
    problems = [
        f"{times} members are called {name}: give their values other labels."
        for name, times in counts.items()
        if times > 1
    ]
    said: dict[str, list[str]] = {}
    for member in members:
        for table in ("study", "prepare"):
            if table not in member.tables:
                said.setdefault(f"the table [{table}] is missing.", []).append(member.name)
        for table, settings in member.tables.items():
            for sentence in parse_table(table, TABLES[table], settings)[1]:
                said.setdefault(sentence, []).append(member.name)
    for sentence, names in said.items():
        problems.append(sentence if len(names) == len(members) else f"{names[0]}: {sentence}")
    return problems


def studies_of(campaign: Campaign) -> tuple[Study, ...]:
    """The studies of all members in their order, products that several share in one place; writes nothing."""
    alone = [Study(campaign.file_of(member), _parsed(member)) for member in campaign.members]
    asked = Counter((stage, one.fingerprint(stage)) for one in alone for stage in one.stages)
    found = []
    for one in alone:
        places = {}
        for stage in one.stages:
            fingerprint, own = one.fingerprint(stage), one.run_folder / stage
            shared = (campaign.folder / SHARED / f"{stage}-{fingerprint}").resolve()
            wanted = asked[stage, fingerprint] > 1 or shared.is_dir()
            # a folder of its own that is there is left as it is
            places[stage] = shared if wanted and (own.is_symlink() or not own.exists()) else own
        found.append(Study(one.path, one.tables, places))
    return tuple(found)


def _parsed(member: Member) -> dict[str, Any]:
    """The tables of a member as its study has them; they were found right when the campaign was read."""
    names = [name for name in TABLES if name != "reference" or name in member.tables]
    return {name: parse_table(name, TABLES[name], member.tables.get(name, {}))[0] for name in names}


def lay_out(campaign: Campaign) -> tuple[Study, ...]:
    """Write the study file of every member and link the products that several share; in the order of the members.

    Raises DiskFull, FolderNotWritable. Doing it again changes nothing; a product that is there is never removed.
    """
    studies = studies_of(campaign)
    make_run_folder(campaign.folder)
    for member, study in zip(campaign.members, studies, strict=True):
        write_text(study.path, as_toml(member.tables))
        for stage in study.stages:
            _link(study.run_folder / stage, study.places[stage])
    return studies


def _link(link: Path, target: Path) -> None:
    """Let a member's product folder be a link to the shared one, or none where that is its own."""
    if link.is_symlink() and link.resolve() != target:
        link.unlink()
    if target == link or link.is_symlink():
        return
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    link.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    link.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)


def shared_stages(studies: Sequence[Study]) -> list[tuple[str, Study]]:
    """Each product that several members share, with one of them, in an order in which they can be made."""
    folders: dict[Path, tuple[str, Study]] = {}
    for one in studies:
        for stage in one.stages:
            if one.folder(stage).parent != one.run_folder:
                folders.setdefault(one.folder(stage), (stage, one))
    order = list(TABLES)
    return sorted(folders.values(), key=lambda pair: order.index(pair[0]))


def as_toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Tables of settings as the text of a TOML file."""
    return "\n".join(
        f"[{name}]\n" + "".join(f"{key} = {_value(value)}\n" for key, value in table.items())
        for name, table in tables.items()
    )


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_text(key)} = {_value(x)}" for key, x in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return _text(value) if isinstance(value, str) else repr(value)


def _text(value: str) -> str:
    """A JSON string is a TOML string, but for DEL, which TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
