"""Reads a run's files to go on from them or to check them: what a run did not write so is refused, with a way out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lezo.records.files import FolderError, read_file
from lezo.records.folder import RESULT
from lezo.records.rows import Row, row_of
from lezo.records.schema import Result, result_of


@dataclass(frozen=True)
class Line:
    """A line of metrics.jsonl, and the row that it holds."""

    line: bytes
    row: Row

    @property
    def step(self) -> int:
        """The row's."""
        return self.row.step

    @property
    def kind(self) -> str:
        """The row's: train, dev or test."""
        return self.row.kind


def read_rows(file: Path) -> list[Line]:
    """The rows of metrics.jsonl; a last line cut short is left out. Raises FolderError for other damage."""
    *lines, _ = (read_file(file) or b"").split(b"\n")
    rows: list[Line] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = row_of(line)
            _refuse_order(row, rows)
        except ValueError as error:
            raise wrong_line(file, number, f"not a row of this run ({error})") from None
        rows.append(Line(line + b"\n", row))
    return rows


def read_result(folder: Path) -> Result | None:
    """A run's result; None where the run has not ended. Raises FolderError where it cannot be read."""
    content = read_file(folder / RESULT)
    if content is None:
        return None
    result, problems = result_of(content)
    if problems:
        raise wrong_result(folder, problems[0])
    return result


def wrong_line(file: Path, number: int, reason: str) -> FolderError:
    """What to raise for a line of metrics.jsonl."""
    ways = "remove it and the lines behind it, and their steps are made again"
    return FolderError(f"{file}, line {number}: {reason}; {ways}")


def wrong_result(folder: Path, reason: str) -> FolderError:
    """What to raise for a result."""
    ways = "remove it, and with resume=auto the run's end is made again"
    return FolderError(f"{folder / RESULT}: not a result ({reason}); {ways}")


def _refuse_order(row: Row, before: Sequence[Line]) -> None:
    """Raise ValueError where ``row`` does not follow those ``before``."""
    last = before[-1] if before else None
    step = last.step if last else 0
    if row.step != step + (row.kind == "train"):
        raise ValueError(f"step {row.step} after step {step}")
    if last and (row.kind == "test" or row.kind == last.kind == "dev"):
        raise ValueError(f"a second {row.kind} row of step {step}")
