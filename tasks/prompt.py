"""Tasks that settings describe: a template of the prompt, and where its answer is. Labels, choices or a generated text."""

from __future__ import annotations

import re
import string
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lezo.tasks.metrics import PERPLEXITY, metric_of
from lezo.tasks.row import Row, RowError
from lezo.tasks.task import Example, Task, TaskError
from lezo.tasks.template import Template, unescaped

_TRUTH = {"true": "1", "yes": "1", "false": "0", "no": "0", "1": "1", "0": "0"}


def prompt_task(
    name: str,
    *,
    template: str | None,
    label_column: str | None = None,
    words: Any = None,
    choices_column: Any = None,
    answer_column: str | None = None,
    stop: Any = None,
    blank_prompt: str | None = None,
    metric: str | None = None,
) -> Task:
    """The task of these settings, which are those of `PromptConfig`. Raises TaskError where they describe none."""
    if template is None:
        raise TaskError(
            "task.template: expected the prompt, a Jinja template of a row's columns, "
            "such as \"task.template='Review: {{ text }}'\""
        )
    given = {"label_column": label_column, "words": words, "choices_column": choices_column}
    given |= {"answer_column": answer_column, "stop": stop, "blank_prompt": blank_prompt}
    prompt = Template("task.template", template)
    if not prompt.reads_row:
        raise TaskError(
            f"task.template={template}: has no column of the rows in it; expected some, as {{{{ text }}}}"
        )
    if answer_column is not None:
        _refuse_others(given, "answer_column", "a generated answer", "answer_column", "stop")
        return Generation(name, prompt, answer_column, _stops(stop), metric)
    if label_column is None:
        raise TaskError(
            "task.label_column, task.answer_column: expected the column of the label (with task.words, or with "
            "task.choices_column for multiple choice), or that of the text to generate"
        )
    blank = None if blank_prompt is None else Template("task.blank_prompt", blank_prompt)
    if choices_column is not None:
        _refuse_others(
            given, "choices_column", "multiple choice", "choices_column", "label_column", "blank_prompt"
        )
        return MultipleChoice(name, prompt, _columns(choices_column), label_column, blank, metric)
    _refuse_others(given, "label_column", "labels and words", "label_column", "words", "blank_prompt")
    return Classification(name, prompt, label_column, _words(words), blank, metric)


class PromptTask(Task):
    """Rows of one's own, all of which are used; ``prompt`` renders their prompts."""

    num_train = None
    usual_metric = "accuracy"

    def __init__(self, name: str, prompt: Template, metric: str | None) -> None:
        self.name, self._prompt, self.metric = name, prompt, metric or self.usual_metric
        if not (self.generates and self.metric == PERPLEXITY):
            metric_of(self.metric, generates=self.generates)

    def examples(self, row: Row) -> Iterator[Example]:
        yield self._example(row, self._prompt.text(row))

    @abstractmethod
    def _example(self, row: Row, prompt: str) -> Example:
        """The row's example, whose prompt is rendered."""


class Classification(PromptTask):
    """``words``: of each label its continuation, which the model is scored by."""

    def __init__(
        self,
        name: str,
        prompt: Template,
        label_column: str,
        words: Mapping[Any, str],
        blank: Template | None = None,
        metric: str | None = None,
    ) -> None:
        """Raises TaskError for words or a metric that do not fit."""
        super().__init__(name, prompt, metric)
        self._column, self._labels, self._blank = label_column, Labels(tuple(words)), blank
        self._words = tuple(words.values())

    def _example(self, row: Row, prompt: str) -> Example:
        answers = tuple(separated(prompt, word) for word in self._words)
        gold = self._labels.index(row, self._column)
        return Example(prompt, answers, (gold,), blank=_blank(self._blank, row, prompt))


class MultipleChoice(PromptTask):
    """``choices``: the column that lists a row's answers, or the columns that have one each."""

    loss = "lm"

    def __init__(
        self,
        name: str,
        prompt: Template,
        choices: str | Sequence[str],
        label_column: str,
        blank: Template | None = None,
        metric: str | None = None,
    ) -> None:
        """Raises TaskError for a metric that does not fit."""
        if metric == "macro_f1":
            raise TaskError("task.metric=macro_f1: is over labels, and a choice has none; expected accuracy")
        super().__init__(name, prompt, metric)
        self._choices, self._column, self._blank = choices, label_column, blank

    def _example(self, row: Row, prompt: str) -> Example:
        choices = self._texts(row)
        if len(choices) < 2 or len({*choices}) < len(choices):
            raise RowError(f"choices {choices}: expected two or more, each another text")
        gold = self._gold(row, choices)
        answers = tuple(separated(prompt, choice) for choice in choices)
        return Example(prompt, answers, (gold,), blank=_blank(self._blank, row, prompt))

    def _texts(self, row: Row) -> list[str]:
        if isinstance(self._choices, str):
            return [_plain(row, self._choices, text) for text in _listed(row, self._choices)]
        return [_plain(row, column, row.value(column)) for column in self._choices]

    def _gold(self, row: Row, choices: Sequence[str]) -> int:
        """By its number from 0 on, its text, its letter or its column's name."""
        value, letters = row.value(self._column), string.ascii_uppercase[: len(choices)]
        numbers, columns = tuple(map(str, range(len(choices)))), self._choices
        names = [
            choices,
            (*letters,),
            (*letters.lower(),),
            () if isinstance(columns, str) else columns,
            numbers,
        ]
        if isinstance(value, int) and not isinstance(value, bool):
            names, value = [numbers], str(value)
        for known in names:
            if isinstance(value, str) and value.strip() in known:
                return list(known).index(value.strip())
        expected = f"the right choice's number (0 to {numbers[-1]}), letter (A to {letters[-1]}) or text"
        raise row.wrong(self._column, expected)


class Generation(PromptTask):
    """``answer_column``: a text, or a list of accepted ones, of which the first is trained on.

    Judged by perplexity, nothing is generated.
    """

    loss = "lm"
    usual_metric = "f1"
    generates = True

    def __init__(
        self,
        name: str,
        prompt: Template,
        answer_column: str,
        stop: tuple[str, ...],
        metric: str | None = None,
    ) -> None:
        """Raises TaskError for a metric that does not fit."""
        super().__init__(name, prompt, metric)
        self._column, self.stop, self.generates = answer_column, stop, metric != PERPLEXITY

    def _example(self, row: Row, prompt: str) -> Example:
        accepted = [_plain(row, self._column, one) for one in _accepted(row, self._column)]
        for stop in self.stop:
            if stop in accepted[0]:
                ways = "task.stop='###' ends answers otherwise, task.stop=[] by the tokenizer's end token"
                raise RowError(
                    f"column {self._column!r} holds {stop!r}, where a generated answer ends; {ways}"
                )
        answer = separated(prompt, accepted[0]) + "".join(self.stop[:1])
        return Example(prompt, (answer,), (0,), tuple(accepted))


class Labels:
    """Labels as settings and as rows write them: 1, "1", 1.0 and true may all mean the same one."""

    def __init__(self, labels: Sequence[Any]) -> None:
        """Raises TaskError where two are the same."""
        self._shown = ", ".join(map(_form, labels))
        self._exact = _numbered(map(_form, labels))
        if len(self._exact) < len(labels):
            raise TaskError(f"task.words: expected a label once, found {self._shown}")
        self._folded = _numbered(_form(label).casefold() for label in labels)
        self._truth = _numbered(_TRUTH.get(_form(label).casefold()) for label in labels)

    def index(self, row: Row, column: str) -> int:
        """Which of them the row has. Raises RowError for another one."""
        form = _form(row.value(column))
        for known, given in (
            (self._exact, form),
            (self._folded, form.casefold()),
            (self._truth, _TRUTH.get(form.casefold())),
        ):
            if given in known and len(known) == len(self._exact):
                return known[given]
        raise row.wrong(column, f"one of the labels of task.words: {self._shown}")


def separated(prompt: str, answer: str) -> str:
    """The answer with what stands before it: one space, unless the prompt ends or the answer begins with white space."""
    return answer if prompt[-1:].isspace() or answer[:1].isspace() else f" {answer}"


def _numbered(forms: Any) -> dict[Any, int]:
    return {form: number for number, form in enumerate(forms)}


def _form(label: Any) -> str:
    """A label as text: 1.0, as a table with gaps has it, is 1."""
    if isinstance(label, bool):
        return str(label).lower()
    text = "null" if label is None else str(label).strip()
    return re.sub(r"^(-?\d+)\.0$", r"\1", text)


def _blank(template: Template | None, row: Row, prompt: str) -> str:
    """The prompt without content, with the white space at its end that answers follow."""
    text = "" if template is None else template.text(row).rstrip()
    return text + prompt[len(prompt.rstrip()) :] if text else ""


def _plain(row: Row, column: str, value: Any) -> str:
    """A text, or a number as text, without white space around it."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = _form(value)
    if not isinstance(value, str) or not value.strip():
        raise row.wrong(column, "text")
    return Row({column: value}).text(column).strip()


def _listed(row: Row, column: str) -> Sequence[Any]:
    """A list in the column; of a CSV file's cell, one that is written as JSON."""
    values = row.value(column)
    if isinstance(values, Sequence) and not isinstance(values, str):
        return values
    try:
        return row.texts(column)
    except RowError as error:
        raise RowError(f"{error} (task.choices_column=[a,b,c] names columns of one text each)") from None


def _accepted(row: Row, column: str) -> Sequence[Any]:
    """A list of at least one, or what the column has alone."""
    try:
        values = _listed(row, column)
    except RowError:
        return [row.value(column)]
    if not values:
        raise row.wrong(column, "at least one text")
    return values


def _words(words: Any) -> dict[Any, str]:
    """Of each label its word; of a list each label is its own."""
    if isinstance(words, Sequence) and not isinstance(words, str):
        words = {word: word for word in words}
    if not isinstance(words, Mapping) or len(words) < 2:
        given = "" if words is None else f"={words}"
        raise TaskError(
            f"task.words{given}: expected a word for each of two labels or more, as 'task.words={{pos: great, neg: terrible}}', "
            "or labels that are words themselves, as task.words=[positive,negative]"
        )
    found = {label: _word(label, word) for label, word in words.items()}
    if len({*found.values()}) < len(found):
        raise TaskError(f"task.words={words}: expected another word for each label")
    return found


def _word(label: Any, word: Any) -> str:
    if isinstance(word, bool):
        raise TaskError(
            f"task.words: the word of {_form(label)} is {str(word).lower()}: YAML reads yes, no, on, off, true and false so; put it in quotes"
        )
    text = unescaped(str(word)).rstrip() if isinstance(word, str | int | float) else ""
    if not text:
        raise TaskError(f"task.words: the word of {_form(label)} is {word!r}; expected text")
    return text


def _columns(columns: Any) -> str | tuple[str, ...]:
    if isinstance(columns, str):
        return columns
    if isinstance(columns, Sequence) and len(columns) > 1 and all(isinstance(name, str) for name in columns):
        return tuple(columns)
    raise TaskError(
        f"task.choices_column={columns}: expected the column that lists the choices, or a list of columns of one each, as [a,b,c]"
    )


def _stops(stop: Any) -> tuple[str, ...]:
    if stop is None:
        return ("\n",)
    stops = [stop] if isinstance(stop, str) else stop
    if isinstance(stops, Sequence) and all(isinstance(one, str) and one for one in stops):
        return tuple(map(unescaped, stops))
    raise TaskError(f"task.stop={stop}: expected a text that ends a generated answer, or a list of them")


def _refuse_others(given: Mapping[str, Any], by: str, what: str, *own: str) -> None:
    for key, value in given.items():
        if value is not None and key not in own:
            raise TaskError(f"task.{key}={value}: has no part in {what} (task.{by}); leave out one of them")
