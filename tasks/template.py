"""A prompt as a Jinja template of a row's columns, in Jinja's sandbox: a template can print, and do nothing else."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, UndefinedError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lezo.tasks.row import MissingColumn, Row, RowError, is_whole
from lezo.tasks.task import TaskError

_ESCAPED = re.compile(r"(?<!\\)\\([nt])")


def unescaped(text: str) -> str:
    r"""The text with ``\n`` and ``\t``, which a command line passes on as they are, as newline and tab."""
    return _ESCAPED.sub(lambda found: {"n": "\n", "t": "\t"}[found[1]], text)


class Template:
    """The template that the setting ``key`` gives. Its names are a row's columns, and ``row`` is all of them."""

    def __init__(self, key: str, text: str) -> None:
        """Raises TaskError with line and column where the text is no template."""
        self._key, source = key, unescaped(text)
        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            where = f"line {error.lineno}, column {_column(source, error)}"
            spaced = re.search(r"{{\s*(\w+(?: \w+)+)\s*}}", source)
            way = f'; a column whose name has spaces is {{{{ row["{spaced[1]}"] }}}}' if spaced else ""
            raise TaskError(f"{key}: not a Jinja template ({where}: {error.message}){way}") from None
        parsed = _environment().parse(source)
        if any(parsed.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends))):
            raise TaskError(
                f"{key}: a template reads no other file; expected it without include, import and extends"
            )
        found = meta.find_undeclared_variables(parsed)
        self.reads_row, self._names = bool(found), found - {"row"}

    def text(self, row: Row) -> str:
        """The row's text. Raises RowError where a column is missing, an expression fails, or nothing is left to read."""
        try:
            text = self._template.render({"row": row.columns, **row.columns})
        except UndefinedError as error:
            if missing := sorted(self._names - set(row.columns)):
                raise MissingColumn(missing[0], [*row.columns]) from None
            raise self._problem(str(error)) from None
        except SecurityError as error:
            raise self._problem(
                f"{str(error).rstrip('.')}; a template can print a row's columns and nothing else"
            ) from None
        except Exception as error:  # whatever an expression can raise
            raise self._problem(f"{type(error).__name__}: {error}") from None
        if not is_whole(text):
            raise self._problem("expected text of whole characters")
        if not text.strip():
            raise self._problem("makes nothing but white space of this row")
        if self._names and all(is_empty(row.columns.get(name)) for name in self._names):
            raise self._problem(
                f"nothing of this row is in it: {', '.join(sorted(self._names))} empty; expected some text, or leave the row out"
            )
        return text

    def _problem(self, problem: str) -> RowError:
        return RowError(f"{self._key}: {problem}")


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, keep_trailing_newline=True, finalize=_printed
    )


def is_empty(value: Any) -> bool:
    """Whether a cell has nothing to read."""
    return value is None or isinstance(value, str) and not value.strip()


def _printed(value: Any) -> Any:
    """An empty cell prints as nothing."""
    return "" if value is None else value


def _column(source: str, error: TemplateSyntaxError) -> int:
    """Where on its line the error shows first, or what it names stands: Jinja says no more than the line."""
    lines = source.split("\n")
    line, start = lines[error.lineno - 1], sum(len(line) + 1 for line in lines[: error.lineno - 1])
    message = error.message or ""
    if message.lower().startswith("unexpected end"):
        return len(line)
    named = re.findall(r"'(\w+)'", message)
    place = line.find(named[-1]) + 1 if named else 0
    ends = range(1, len(line) + 1)
    return next((end for end in ends if _message(source[: start + end]) == message), place or len(line))


def _message(source: str) -> str | None:
    try:
        _environment().parse(source)
    except TemplateSyntaxError as error:
        return error.message
    return None
