"""Claims about numbers as they are shown."""

import math

import pytest

from hpc_cg.analysis.comparison import Judged
from hpc_cg.analysis.estimate import Estimate
from hpc_cg.analysis.floor import Floor
from hpc_cg.report import tables


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.0110234, 0.0026, "0.0110 ± 0.0026"),
        (0.0110234, 0.0046, "0.011 ± 0.005"),
        (0.0110234, 0.00145, "0.0110 ± 0.0014"),
        (-1.2345, 0.46, "−1.2 ± 0.5"),
        (-0.001, 0.05, "0.00 ± 0.05"),
        (9.97, 0.96, "10.0 ± 1.0"),
        (1234.0, 96.0, "1234 ± 96"),
        (3.8e-5, 6e-6, "(3.8 ± 0.6) × 10⁻⁵"),
        (42_100_000.0, 300_000.0, "(4.210 ± 0.030) × 10⁷"),
        (0.0, 0.08, "0.00 ± 0.08"),
        (2.5, 0.0, "2.500 ± 0"),
        (math.nan, 0.1, "not a number ± 0.1000"),
    ],
)
def test_a_value_is_written_to_the_digits_its_error_leaves(value, error, text):
    assert tables.with_error(value, error) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (3.14159, "3.142"),
        (-0.000123456, "−1.235 × 10⁻⁴"),
        (12345.6, "12346"),
        (2e7, "2.000 × 10⁷"),
    ],
)
def test_a_value_without_error_has_four_digits(value, text):
    assert tables.with_error(value) == tables.significant(value) == text


def test_counts_have_commas():
    assert tables.count(40000) == "40,000"
    assert tables.count(-1200) == "−1,200"


def test_a_judged_row_shows_value_floor_and_excess():
    estimate = Estimate(0.047, 0.003, 96.0, "nat", "JS divergence φ, ψ")
    row = tables.judged_row(Judged(estimate, Floor(0.0110, 0.0004, 40)))
    assert row == tables.Row("JS divergence φ, ψ", "0.0470 ± 0.0030", "0.0110 ± 0.0004", "0.0360 ± 0.0030", "nat")


def test_a_row_without_floor_says_so_and_a_pure_number_has_no_unit():
    row = tables.judged_row(Judged(Estimate(0.0, 0.08, 10.0, "1", "mirrored share"), None))
    assert (row.floor, row.excess, row.unit) == ("–", "–", "")


def test_columns_of_the_terminal_table_line_up():
    table = tables.Table(("what", "value"), (("a", "1.0"), ("longer", "10.0")))
    assert tables.plain_text(table, right=[1]) == "what    value\n──────  ─────\na         1.0\nlonger   10.0"


def test_ragged_tables_are_refused():
    with pytest.raises(AssertionError, match="ragged"):
        tables.Table(("a", "b"), (("1",),))
