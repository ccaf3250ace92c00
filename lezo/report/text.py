"""Tables as Markdown and as CSV, whatever text is in them. No torch."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence

from lezo.report.cells import NOTHING, Cell, Table


def markdown(heading: str, tables: Sequence[Table]) -> str:
    """The tables as GitHub's Markdown."""
    return "\n".join([f"# {_unmarked(heading)}", *map(_markdown_table, tables)])


def comma_separated(tables: Sequence[Table]) -> str:
    """The tables as one CSV file: column "table" says whose a row is, and a mean has its std in the next column."""
    rows = [_csv_row(table, row) for table in tables for row in table.rows]
    columns = dict.fromkeys(column for table in tables for column in table.columns)
    used = {name for row in rows for name in row}
    names = [name for column in columns for name in (column, f"{column} std") if name in used]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["table", *names], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def printable(text: str) -> str:
    """Text from anywhere without what moves a cursor, turns the reading direction or is no character at all."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _markdown_table(table: Table) -> str:
    rule = ["-:" if numeric else ":-" for numeric in table.numeric]
    cells = [[_unmarked(cell.text) for cell in row] for row in table.rows]
    lines = [f"| {' | '.join(row)} |" for row in [table.columns, rule, *cells]]
    notes = [f"{_unmarked(note)}\n" for note in table.notes]
    return "\n".join(["", f"## {table.title}", "", *notes, *lines, ""])


def _unmarked(text: str) -> str:
    """Text from a file without anything that Markdown or a browser would take for markup, in one line."""
    shown = html.escape(printable(" ".join(text.split())), quote=False)
    return "".join(f"\\{c}" if c in "\\|`*_[]~" else c for c in shown)


def _csv_row(table: Table, row: Sequence[Cell]) -> dict[str, object]:
    values: dict[str, object] = {"table": table.name}
    for column, cell in zip(table.columns, row, strict=True):
        values[column] = _no_formula(cell) if cell.value is None else cell.value
        if cell.std is not None:
            values[f"{column} std"] = cell.std
    return values


def _no_formula(cell: Cell) -> str:
    """Nothing where there is nothing, and no text that a spreadsheet would take for a formula."""
    if cell.text == NOTHING.text:
        return ""
    text = printable(cell.text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
