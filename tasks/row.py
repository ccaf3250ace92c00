"""Checked access to one row of data: what is missing or wrong is said in the data's own terms."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any


class RowError(ValueError):
    """A row that does not have the expected form; the message names column, value and expectation."""


class MissingColumn(RowError):
    """A column that is not there. ``nearest``: one of those there that may be meant, or None."""

    def __init__(self, column: str, present: Sequence[str]) -> None:
        known = {name.casefold(): name for name in map(str, present)}
        close = difflib.get_close_matches(column.casefold(), known, n=1)
        self.column, self.nearest = column, known[close[0]] if close else None
        shown = _clipped(", ".join(map(str, present)) or "no columns")
        likely = "" if self.nearest is None else f"; the nearest is {self.nearest!r}"
        super().__init__(f"column {column!r} is missing; the row has {shown}{likely}")


class Row:
    """One JSON object or hub row. Every reader raises RowError on a missing column or a wrong type."""

    def __init__(self, columns: Any) -> None:
        if not isinstance(columns, Mapping):
            raise RowError(f"expected a JSON object, found {_shown(columns)}")
        self._columns: Mapping[str, Any] = columns

    @property
    def columns(self) -> Mapping[str, Any]:
        """All of it, by the columns' names."""
        return self._columns

    def __contains__(self, column: str) -> bool:
        return column in self._columns

    def value(self, column: str) -> Any:
        """The column as it is."""
        return self._value(column)

    def wrong(self, column: str, expected: str) -> RowError:
        """The error to raise of a column that is not as ``expected``."""
        return _wrong(column, self._value(column), expected)

    def text(self, column: str) -> str:
        """The column as text."""
        value: str = self._typed(column, str, "text")
        if not is_whole(value):
            raise _wrong(column, value, "text of whole characters")
        return value

    def integer(self, column: str) -> int:
        """The column as a whole number."""
        value = self._value(column)
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong(column, value, "a whole number")
        return value

    def label(self, column: str, names: Sequence[str]) -> int:
        """The column's class index, stored as index, as one of ``names``, or, False and True, as boolean."""
        value = self._value(column)
        if isinstance(value, str) and value in names:
            return list(names).index(value)
        if isinstance(value, bool) and tuple(names) == ("False", "True"):
            return int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
            return value
        indices = ", ".join(f"{i} ({name})" for i, name in enumerate(names))
        raise _wrong(column, value, f"one of {indices}")

    def texts(self, column: str) -> list[str]:
        """The column as a list of at least one text."""
        values = self._typed(column, Sequence, "a list of texts")
        if isinstance(values, str) or not all(isinstance(v, str) for v in values):
            raise _wrong(column, values, "a list of texts")
        if not values:
            raise _wrong(column, values, "at least one text")
        if not all(map(is_whole, values)):
            raise _wrong(column, values, "texts of whole characters")
        return list(values)

    def nested(self, column: str) -> Row:
        """The column as a row of its own."""
        return Row(self._typed(column, Mapping, "an object"))

    def rows(self, column: str) -> list[Row]:
        """The column as a list of rows."""
        values = self._typed(column, Sequence, "a list of objects")
        if not all(isinstance(value, Mapping) for value in values):
            raise _wrong(column, values, "a list of objects")
        return [Row(value) for value in values]

    def _typed(self, column: str, kind: type, expected: str) -> Any:
        value = self._value(column)
        if not isinstance(value, kind):
            raise _wrong(column, value, expected)
        return value

    def _value(self, column: str) -> Any:
        if column not in self._columns:
            raise MissingColumn(column, [*self._columns])
        return self._columns[column]


def _wrong(column: str, value: Any, expected: str) -> RowError:
    return RowError(f"column {column!r} is {_shown(value)}, expected {expected}")


def is_whole(text: str) -> bool:
    r"""Whether no half of a surrogate pair, as "\ud800", stands alone: no tokenizer and no file takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: Any) -> str:
    return _clipped(repr(value), 80)


def _clipped(text: str, most: int = 200) -> str:
    """The text on one line, cut where it is longer than ``most``."""
    line = text if text.isprintable() else ascii(text)[1:-1]
    return line if len(line) <= most else line[: most - 3] + "..."
