"""Tables as Markdown and CSV: nothing in them is markup, a formula or no text."""

import csv
import io

import pytest

from lezo.report.cells import Cell, Table
from lezo.report.text import comma_separated, markdown


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1+1", "@sum", "\t=1"])
def test_no_text_is_a_spreadsheets_formula(text: str) -> None:
    table = Table("t", "T", ("what",), [[Cell(text)]])
    (row,) = csv.DictReader(io.StringIO(comma_separated(table)))
    assert row["what"].startswith("'")


def test_text_that_no_file_could_hold_is_replaced() -> None:
    table = Table("t", "T", ("what",), [[Cell("a\ud800b\x1b[2J\u202e")]])
    for text in (markdown("x", [table]), comma_separated(table)):
        assert b"a\xef\xbf\xbdb" in text.encode() and "\x1b" not in text and "\u202e" not in text
