"""Numbers with errors, written as a scientist writes them, for the page and for the terminal.

An error keeps two digits where they are 10 to 35 and one otherwise, and the value ends at the same place (the
rule of the Particle Data Group, Review of Particle Physics). Below 0.001 and from 100,000 on both
share a power of ten: (3.8 ± 0.6) × 10⁻⁵.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import floor, isfinite, log10

from hpc_cg.analysis.comparison import Judged

NOTHING = "–"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Row:
    """One line of the table of estimates, as text; ``unit`` is empty for a pure number."""

    label: str
    value: str
    floor: str
    excess: str
    unit: str


@dataclass(frozen=True)
class Table:
    """A table of text with its header; every row has as many cells as the header."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.header) for row in self.rows), f"ragged table under {self.header}"


def with_error(value: float, error: float | None = None) -> str:
    """``value ± error`` to the digits that the error leaves; four significant digits without an error."""
    if not isfinite(value) or (error is not None and not isfinite(error)):
        return f"{_plain(value)} ± {_plain(error)}" if error is not None else _plain(value)
    if not error:
        text = significant(value)
        return text if error is None else f"{text} ± 0"
    error = abs(error)
    largest = max(abs(value), error)
    power = floor(log10(largest)) if not 1e-3 <= largest < 1e5 else 0
    value, error = value / 10.0**power, error / 10.0**power
    places = max(_error_places(error), 0)
    body = f"{_minus(f'{value:.{places}f}')} ± {error:.{places}f}"
    return body if power == 0 else f"({body}) × 10{str(power).translate(_SUPERSCRIPT)}"


def significant(value: float, digits: int = 4) -> str:
    """``value`` to a number of significant digits, with a power of ten where it is very small or large."""
    if not isfinite(value):
        return _plain(value)
    if value == 0:
        return "0"
    power = floor(log10(abs(value)))
    if not -3 <= power < 6:
        return f"{_minus(f'{value / 10.0**power:.{digits - 1}f}')} × 10{str(power).translate(_SUPERSCRIPT)}"
    return _minus(f"{value:.{max(digits - 1 - power, 0)}f}")


def count(number: int) -> str:
    """A whole number with commas between thousands."""
    return _minus(f"{number:,}")


def judged_row(judged: Judged) -> Row:
    """The line of one judged quantity; the excess carries the errors of value and floor together."""
    estimate, floor_ = judged.estimate, judged.floor
    value = with_error(estimate.value, estimate.error)
    unit = "" if estimate.unit == "1" else estimate.unit
    if floor_ is None or judged.excess is None:
        return Row(estimate.label, value, NOTHING, NOTHING, unit)
    excess = with_error(judged.excess, (estimate.error**2 + floor_.spread**2) ** 0.5)
    return Row(estimate.label, value, with_error(floor_.mean, floor_.spread), excess, unit)


def judged_rows(judged: Iterable[Judged]) -> tuple[Row, ...]:
    """``judged_row`` of each."""
    return tuple(judged_row(one) for one in judged)


def plain_text(table: Table, right: Sequence[int] = ()) -> str:
    """A table for the terminal: columns padded with spaces, those numbered in ``right`` aligned right."""
    lines = [table.header, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.header))]

    def padded(line: tuple[str, ...]) -> str:
        cells = (c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        return "  ".join(cells).rstrip()

    rule = "  ".join("─" * w for w in widths)
    return "\n".join([padded(table.header), rule, *(padded(row) for row in table.rows)])


def estimates_table(rows: Iterable[Row]) -> Table:
    """The table of estimates for the terminal."""
    return Table(
        ("quantity", "value", "floor", "excess", "unit"),
        tuple((row.label, row.value, row.floor, row.excess, row.unit) for row in rows),
    )


def _error_places(error: float) -> int:
    """Decimal places that show two digits of an error that starts with 10 to 35, one of any other."""
    power = floor(log10(error))
    leading = error / 10.0**power
    return -power + (1 if leading < 3.55 else 0)


def _minus(text: str) -> str:
    """The text of a number with a true minus, and none before zero."""
    negative = text.startswith("-") and text.strip("-0.,")
    return ("\u2212" if negative else "") + text.lstrip("-")


def _plain(value: float) -> str:
    if isfinite(value):
        return significant(value)
    return "not a number" if value != value else ("∞" if value > 0 else "\u2212∞")
