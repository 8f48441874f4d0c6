"""One self-contained page: everything a study found, in a file that opens anywhere and prints.

Figures are embedded, nothing is fetched, and every text is escaped by the template, so a molecule may be
called ``<b>`` without harm.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from hpc_cg.files import write_text
from hpc_cg.report.tables import Row, Table

PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Figure:
    """A picture with its caption; ``image`` holds the bytes of a PNG or of an SVG."""

    name: str
    caption: str
    image: bytes

    @property
    def address(self) -> Markup:
        """The picture as a data address, safe inside an attribute: base64 holds no quote."""
        kind = "png" if self.image.startswith(PNG) else "svg+xml"
        return Markup(f"data:image/{kind};base64,{base64.b64encode(self.image).decode()}")


@dataclass(frozen=True)
class Section:
    """A chapter of the page: a heading, a sentence or two, tables and figures in that order."""

    heading: str
    text: str = ""
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True)
class Quarantined:
    """Something that was left out: what, how much of it, and why."""

    what: str
    where: str
    reason: str


@dataclass(frozen=True)
class ReportContent:
    """All that the page shows.

    title, subtitle   of the study
    summary           pairs of a word and its value, the first thing a reader sees
    estimates         rows of the table of estimates (tables.judged_rows); estimates_note below it
    figures           of the first chapter, beside the estimates
    sections          further chapters: training, simulation, forces
    quarantine        what was left out; the page says so when nothing was
    provenance        nested tables (words, numbers, lists, mappings) per product, folded on the screen, open
                      on paper
    notes             sentences a reader should know before believing the numbers
    """

    title: str
    subtitle: str = ""
    summary: tuple[tuple[str, str], ...] = ()
    estimates: tuple[Row, ...] = ()
    estimates_note: str = ""
    figures: tuple[Figure, ...] = ()
    sections: tuple[Section, ...] = ()
    quarantine: tuple[Quarantined, ...] = ()
    provenance: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


def render(content: ReportContent) -> str:
    """The page as HTML text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.tests["table"] = lambda value: isinstance(value, Mapping)
    environment.tests["listing"] = lambda value: isinstance(value, (list, tuple))
    source = resources.files("hpc_cg.report").joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(report=content)


def write_page(path: Path, content: ReportContent) -> None:
    """Write the page atomically; raises DiskFull, FolderNotWritable."""
    write_text(path, render(content))
