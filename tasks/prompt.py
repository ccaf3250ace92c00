"""A task that is described by settings: a template of the prompt, and a word for each label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lezo.tasks.row import Row, RowError
from lezo.tasks.task import Example, Task, TaskError


class PromptTask(Task):
    """Rows of one's own: ``template`` renders a row's columns to its prompt, ``words`` are the labels' continuations."""

    num_train = None

    def __init__(self, name: str, *, template: str | None, label_column: str | None, words: Any) -> None:
        """Raises TaskError where the settings describe no task."""
        if template is None or label_column is None or not isinstance(words, Mapping) or len(words) < 2:
            raise TaskError(
                "task.template, task.label_column, task.words: expected all three, with two words or more"
            )
        self.name, self._label, self._labels = name, label_column, tuple(words)
        self._words = tuple(f" {word.strip()}" for word in words.values())
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
        self._template = environment.from_string(template)

    def examples(self, row: Row) -> Iterator[Example]:
        try:
            prompt = self._template.render(row.columns)
        except TemplateError as error:
            raise RowError(f"task.template: {error}") from None
        yield Example(prompt, self._words, (row.label(self._label, self._labels),))
