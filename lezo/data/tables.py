"""Tables in files: JSON, CSV, Parquet and Arrow, row by row, each with the words that say where it stands.

Nothing is cached, nothing is guessed about a cell's type, and no code that lies beside a file runs.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lezo.tasks.row import Row, RowError

Placed = tuple[str, Any]
"""Where a row stands, and its columns."""


class DataError(ValueError):
    """Rows that cannot be read; the message names file and line, what was expected and the way out."""


class Cells(Row):
    """A row of a CSV file, whose cells are all text: what one is to be is known where a task asks for it."""

    def text(self, column: str) -> str:
        """The cell, which is not empty."""
        text = super().text(column)
        if not text.strip():
            raise RowError(f"column {column!r} is empty, expected text")
        return text

    def integer(self, column: str) -> int:
        """The cell as a whole number, in digits."""
        return Row({column: _number(self.text(column))}).integer(column)

    def label(self, column: str, names: Sequence[str]) -> int:
        """The class index of a cell that holds one of ``names``, or an index in digits, as 0 but not 00 or 0.0."""
        cell = super().text(column).strip()
        known = [str(name) for name in names]
        for word in (cell, cell.capitalize()) if known == ["False", "True"] else (cell,):
            if word in known:
                return known.index(word)
        return Row({column: _number(cell)}).label(column, names)

    def texts(self, column: str) -> list[str]:
        """The texts of a cell that holds a JSON list of them."""
        cell = self.text(column)
        try:
            return Row({column: json.loads(cell)}).texts(column)
        except (ValueError, RecursionError):
            raise RowError(
                f'column {column!r} is no list of texts; a cell has one as ["one", "two"]'
            ) from None


def _number(cell: str) -> int | str:
    """The number that a text shows exactly as it would be written, else the text."""
    digits = cell.strip()
    plain = digits.isascii() and digits.removeprefix("-").isdigit() and len(digits) < 20
    return int(digits) if plain and str(int(digits)) == digits else cell


@dataclass(frozen=True)
class Form:
    """A kind of file. ``read`` gives the rows of one, and raises DataError where a row is none."""

    name: str
    expected: str
    read: Callable[[Path], Iterator[Placed]]
    row: type[Row] = Row


def form_of(file: Path) -> Form | None:
    """The form that a file's name says; None where it is no table."""
    name = file.name.lower()
    return next((form for suffix, form in FORMS.items() if name.endswith(suffix)), None)


def stem_of(file: Path) -> str:
    """The file's name without what says its form."""
    suffix = next(suffix for suffix in FORMS if file.name.lower().endswith(suffix))
    return file.name[: -len(suffix)]


def read(file: Path, form: Form, expected: str | None = None) -> Iterator[Placed]:
    """The rows of a file. Raises DataError where it cannot be read; ``expected`` says what else should be there."""
    try:
        yield from form.read(file)
    except (OSError, EOFError, zlib.error) as error:  # a compressed file may end too soon, or be none
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{file}: {reason}; {expected or form.expected}") from None


def lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, which may be compressed (.gz), by their numbers."""
    with file.open("rb") as stored:
        content = gzip.GzipFile(fileobj=stored) if file.name.lower().endswith(".gz") else stored
        yield from enumerate(content, start=1)


def _texts(file: Path) -> Iterator[str]:
    """Its lines as text, without a byte order mark."""
    for number, line in lines(file):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(f"{file}, line {number}", error) from None


def _not_utf8(where: str, error: UnicodeDecodeError) -> DataError:
    return DataError(f"{where}: not UTF-8 text at byte {error.start + 1} of the line; save the file as UTF-8")


def json_lines(file: Path) -> Iterator[Placed]:
    """One JSON object a line."""
    for number, line in lines(file):
        if line.strip():
            yield (where := f"{file}, line {number}"), _json_line(line, where)


def _json_line(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode().rstrip(), object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise _not_utf8(where, error) from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON ({_said(error)} at column {error.colno})") from None
    except RecursionError:
        raise DataError(f"{where}: JSON nested too deeply") from None
    except ValueError as error:  # a column twice, or a number with more digits than Python converts
        raise DataError(f"{where}: {error}") from None


def _said(error: json.JSONDecodeError) -> str:
    """Its message, some of which end as ours go on."""
    return error.msg.removesuffix(" at")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose columns have one value each: of two, nobody knows which is meant."""
    columns = dict(pairs)
    if len(columns) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RowError(f"column {twice!r} is there more than once")
    return columns


def _json_array(file: Path) -> Iterator[Placed]:
    """An array of objects, or an object of which one value is such an array; lines of objects too, as others write them."""
    text = "".join(_texts(file))
    try:
        content = json.loads(text, object_pairs_hook=_once) if text.strip() else []
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from json_lines(file)
            return
        place = f"{_said(error)} at line {error.lineno}, column {error.colno}"
        raise DataError(f"{file}: not valid JSON ({place}); {_ARRAY}") from None
    except RecursionError:
        raise DataError(f"{file}: JSON nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{file}: {error}") from None
    yield from _numbered(file, _only_list(file, content))


def _only_list(file: Path, content: Any) -> list[Any]:
    if isinstance(content, list):
        return content
    inner = {k: v for k, v in content.items() if isinstance(v, list)} if isinstance(content, dict) else {}
    if len(inner) == 1:
        return next(iter(inner.values()))
    found = (
        f"an object with {len(inner)} lists" if isinstance(content, dict) else f"a {type(content).__name__}"
    )
    raise DataError(f"{file}: found {found}; {_ARRAY}")


def _numbered(file: Path | str, rows: Iterable[Any], start: int = 0) -> Iterator[Placed]:
    for number, row in enumerate(rows, start):
        yield f"{file}, row {number} (the first is 0)", row


def _comma_separated(file: Path) -> Iterator[Placed]:
    return _separated(file, None)


def _tab_separated(file: Path) -> Iterator[Placed]:
    return _separated(file, "\t")


def _separated(file: Path, delimiter: str | None) -> Iterator[Placed]:
    """A header, and a record for each row; where none is given, semicolons or tabs count in a header without commas."""
    csv.field_size_limit(2**31 - 1)  # a cell may hold a whole document
    content = iter(_texts(file))
    first = next(content, "")
    comma = delimiter or next((mark for mark in (",", ";", "\t") if mark in first), ",")
    reader = csv.reader(_chained(first, content), delimiter=comma, strict=True)
    start, header, number = 1, list[str](), 0
    try:
        for cells in reader:
            where, start = f"{file}, line {start}", reader.line_num + 1
            number += 1
            if not any(cells):
                continue
            if not header:
                header = _header(where, cells)
                continue
            where += "" if where.endswith(f" {number}") else f" (row {number} of a spreadsheet)"
            yield where, _record(where, header, cells, comma)
    except csv.Error as error:
        reason = "a quotation mark that is never closed" if "unexpected end" in str(error) else str(error)
        raise DataError(
            f'{file}, line {start}: {reason}; a cell with quotes in it is written "so ""quoted"""'
        ) from None


def _chained(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _header(where: str, cells: list[str]) -> list[str]:
    header = [cell.strip() for cell in cells]
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f"{where}: column {twice!r} is there more than once in the header; expected each once"
        )
    return header


def _record(where: str, header: list[str], cells: list[str], comma: str) -> dict[str, str]:
    if len(cells) != len(header):
        quoted = f'a cell with {comma!r} in it is written "in quotes"'
        raise DataError(
            f"{where}: {len(cells)} cells, expected {len(header)}, one for each column of the header; {quoted}"
        )
    return dict(zip(header, cells, strict=True))


def _parquet(file: Path) -> Iterator[Placed]:
    from pyarrow.parquet import ParquetFile

    with file.open("rb") as content:
        yield from _arrow_rows(file, lambda: ParquetFile(content).iter_batches())


def _arrow(file: Path) -> Iterator[Placed]:
    """A file of record batches, as Feather is one, or a stream of them, as `datasets` writes it."""
    from pyarrow import ipc

    with file.open("rb") as content:
        is_file = content.read(6) == b"ARROW1"
        content.seek(0)
        yield from _arrow_rows(
            file, lambda: _batches(ipc.open_file(content)) if is_file else ipc.open_stream(content)
        )


def _batches(opened: Any) -> Iterator[Any]:
    return (opened.get_batch(i) for i in range(opened.num_record_batches))


def dataset_rows(shown: str, rows: Any) -> Iterator[Placed]:
    """The rows of a split of the `datasets` library as they are stored: an image or a sound is not decoded."""
    return _arrow_rows(shown, lambda: rows.with_format("arrow").iter(batch_size=1000))


def _arrow_rows(file: Path | str, batches: Callable[[], Iterable[Any]]) -> Iterator[Placed]:
    from pyarrow import ArrowException

    row = 0
    try:
        for batch in batches():
            yield from _numbered(file, batch.to_pylist(), row)
            row += len(batch)
    except (
        ArrowException,
        OSError,
        ValueError,
        OverflowError,
    ) as error:  # of bytes that are no text, or no date
        reason = str(error).partition("\n")[0].rstrip(".")
        raise DataError(f"{file}: cannot be read ({reason}); expected a whole file of its form") from None


_ARRAY = "expected an array of objects, or an object with one such array in it"
_LINES = Form("JSON lines", "expected one JSON object a line", json_lines)
_JSON = Form("JSON", _ARRAY, _json_array)
_HEADER = "expected a header with the columns' names and a line for each row"
_CSV = Form("CSV", _HEADER, _comma_separated, Cells)
_TSV = Form("TSV", _HEADER, _tab_separated, Cells)
_PARQUET = Form("Parquet", "expected a Parquet file with rows", _parquet)
_ARROW = Form("Arrow", "expected an Arrow or Feather file with rows", _arrow)
_TEXT = {".jsonl": _LINES, ".ndjson": _LINES, ".json": _JSON, ".csv": _CSV, ".tsv": _TSV}
FORMS: Mapping[str, Form] = {
    **_TEXT,
    **{f"{suffix}.gz": form for suffix, form in _TEXT.items()},
    ".parquet": _PARQUET,
    ".arrow": _ARROW,
    ".feather": _ARROW,
}
"""By what a file's name ends in."""
KNOWN = ", ".join([*_TEXT, ".parquet", ".arrow"]) + " or .feather, text also with .gz"
LINES = _LINES
