"""Tables as Markdown and as CSV, whatever text is in them. No torch."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence

from lezo.report.cells import NOTHING, Cell, Table


def markdown(heading: str, tables: Sequence[Table]) -> str:
    """The tables as GitHub's Markdown."""
    return "\n".join([f"# {_unmarked(heading)}", *map(_markdown_table, tables)])


def comma_separated(table: Table) -> str:
    """A table as CSV: columns named as `plain` does, a mean's std in the column behind it, each part of a setting in its own."""
    columns = _plain_names(table.columns)
    rows = [_csv_row(columns, row) for row in table.rows]
    used = dict.fromkeys(name for row in rows for name in row)
    names = [name for column in columns for name in (column, f"{column}_std") if name in used]
    return csv_text([*names, *(name for name in used if name not in names)], rows)


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Rows by their columns' names as a CSV file; what is missing is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_value(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def csv_value(value: object) -> object:
    """As pandas and R read it; no text that a spreadsheet would take for a formula."""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def plain(name: str) -> str:
    """A column's name that needs no quotes in pandas, R or SQL: "test %" is test_percent, "optim.lr" optim_lr."""
    words = re.sub(r"[^a-z0-9]+", "_", name.replace("%", "percent").lower()).strip("_")
    return words if words[:1].isalpha() else f"_{words}"


def printable(text: str) -> str:
    """Text from anywhere without what moves a cursor, turns the reading direction or is no character at all."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _markdown_table(table: Table) -> str:
    rule = ["-:" if numeric else ":-" for numeric in table.numeric]
    cells = [[_markdown_cell(cell) for cell in row] for row in table.rows]
    lines = [f"| {' | '.join(row)} |" for row in [[*map(_unmarked, table.columns)], rule, *cells]]
    notes = [f"{_unmarked(note)}\n" for note in (*table.notes, *([table.above] if table.above else []))]
    return "\n".join(["", f"## {_unmarked(table.title)}", "", *notes, *lines, ""])


def _markdown_cell(cell: Cell) -> str:
    return f"**{_unmarked(cell.text)}**" if cell.best else _unmarked(cell.text)


def _unmarked(text: str) -> str:
    """Text from a file without anything that Markdown or a browser would take for markup, in one line."""
    shown = html.escape(printable(" ".join(text.split())), quote=False)
    return "".join(f"\\{c}" if c in "\\|`*_[]~" else c for c in shown)


def _plain_names(columns: Sequence[str]) -> list[str]:
    """Each column's, with its place behind those that would be another's too."""
    names = [*map(plain, columns)]
    return [
        name if names.count(name) == 1 else f"{name}_{place}" for place, name in enumerate(names, start=1)
    ]


def _csv_row(columns: Sequence[str], row: Sequence[Cell]) -> dict[str, object]:
    values: dict[str, object] = {}
    for column, cell in zip(columns, row, strict=True):
        values[column] = _csv_cell(cell)
        if cell.std is not None:
            values[f"{column}_std"] = cell.std
    parts = {plain(key): value for cell in row for key, value in {**cell.parts, **cell.hidden}.items()}
    return {**parts, **values}


def _csv_cell(cell: Cell) -> object:
    """Nothing where there is nothing."""
    if cell.value is not None:
        return cell.value
    return None if cell.text == NOTHING.text else cell.text
