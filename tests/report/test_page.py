"""Claims about the page: it holds everything, fetches nothing, and escapes what it is given."""

import base64
import re
from html.parser import HTMLParser

import pytest

from hpc_cg.errors import FolderNotWritable
from hpc_cg.report.page import Figure, Quarantined, ReportContent, Section, render, write_page
from hpc_cg.report.tables import Row, Table

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
CONTENT = ReportContent(
    title="Alanine <b>dipeptide</b>",
    subtitle="300 K & six beads",
    summary=(("Reference frames", "40,000"),),
    estimates=(Row("JS divergence", "0.047 ± 0.003", "0.0110 ± 0.0004", "0.036 ± 0.003", "nat"),),
    estimates_note="64 bins per axis.",
    figures=(Figure("Free energy", "Reference and model.", b"\x89PNG\r\n\x1a\nrest"),),
    sections=(
        Section("Training", "Loss & floor.", (Table(("set", "frames"), (("training", "36,000"),)),)),
        Section("Simulation", figures=(Figure('A "quoted" name', "Replicas.", SVG),)),
    ),
    quarantine=(Quarantined("replica 7", "150 ps", "diverged <script>alert(1)</script>"),),
    provenance={"store": {"kernel": {"sigma_nm": 0.005}, "segments": ["1.h5", "2.h5"], "extra": None}},
    notes=("One seed.",),
)


class Tags(HTMLParser):
    """The elements of a page, each closed as it was opened."""

    VOID = frozenset({"meta", "img", "link", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    return tags


def test_page_holds_everything_it_was_given():
    page = render(CONTENT)
    numbers = ["40,000", "0.047 ± 0.003", "0.0110 ± 0.0004", "0.036 ± 0.003", "36,000", "0.005", "150 ps"]
    words = ["64 bins per axis.", "Training", "replica 7", "sigma_nm", "1.h5, 2.h5", "One seed.", "Replicas."]
    for text in numbers + words:
        assert text in page, text


def test_page_is_well_formed_full_or_empty():
    assert len(parsed(render(CONTENT)).seen) > 60
    empty = render(ReportContent("Nothing yet"))
    parsed(empty)
    assert "Nothing: every frame" in empty


def test_page_fetches_nothing():
    page = render(CONTENT)
    for tag, attributes in parsed(page).seen:
        assert tag not in {"script", "link", "iframe"}
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)


def test_text_is_escaped():
    page = render(CONTENT)
    assert "<b>dipeptide" not in page
    assert "Alanine &lt;b&gt;dipeptide&lt;/b&gt;" in page
    assert "<script>" not in page
    assert 'alt="A &#34;quoted&#34; name"' in page


def test_figures_are_embedded_with_their_kind():
    sources = [attributes["src"] for tag, attributes in parsed(render(CONTENT)).seen if tag == "img"]
    assert sources[0].startswith("data:image/png;base64,")
    assert base64.b64decode(sources[1].removeprefix("data:image/svg+xml;base64,")) == SVG


def test_page_has_a_style_for_paper_that_opens_what_is_folded():
    page = render(CONTENT)
    paper = page[page.index("@media print") :]
    assert "break-inside: avoid" in paper
    assert "details-content" in paper


def test_written_page_is_the_rendered_one(tmp_path):
    write_page(tmp_path / "report" / "report.html", CONTENT)
    assert (tmp_path / "report" / "report.html").read_text(encoding="utf-8") == render(CONTENT)
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["report.html"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(FolderNotWritable, match=r"report\.html"):
        write_page(tmp_path / "report.html", CONTENT)
