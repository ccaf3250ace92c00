"""What a task is: rows in, words out. No tensors, no tokenizer, no lezo."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lezo.tasks.row import Row


class TaskError(ValueError):
    """Settings that describe no task; the message names them and what was expected."""


Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """Who says what in a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Example:
    """One question in words.

    ``prompt + answers[k]`` is the whole text of candidate k, separator included; the tokenizer side
    strips spaces. ``gold`` are the indices of the right answers, the first being the one to train on.
    A generated answer has a single gold continuation in ``answers`` and every accepted text in
    ``references``. ``blank`` is the prompt without its content, for surface-form calibration; None where the
    task has none.

    ``turns``: of a conversation, which the model's chat template puts into words; its last is the assistant's, and the
    one of ``answers``.
    """

    prompt: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    references: tuple[str, ...] = ()
    blank: str | None = None
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class Hub:
    """Where the task's rows live on the Hugging Face hub, and the sizes the published sampling needs.

    Sampling permutes row indices, so a mirror with other lengths gives other examples. ``revision``
    pins the data set's commit.
    """

    id: str
    config: str | None
    revision: str
    train_rows: int
    val_rows: int


def super_glue(config: str, train_rows: int, val_rows: int) -> Hub:
    """A task of the SuperGLUE collection."""
    return Hub("aps/super_glue", config, "3de24cf8022e94f4ee4b9d55a6f539891524d646", train_rows, val_rows)


class Task(ABC):
    """Renders one release or hub row to examples, and says how they are trained and judged.

    ``loss``: "candidates" is cross-entropy over the candidates' mean log-probabilities, "lm" is cross-entropy
    over the gold answer's tokens. ``metric``: see `lezo.tasks.metrics`. ``generates``: the answer is decoded, not
    chosen, up to the first of ``stop``, texts of which a trained answer ends with the first; with none it ends with the
    tokenizer's end token. ``num_train``,
    ``num_dev``: the rows that the published scripts draw from the train set, None all that are left. ``hub`` None: the task is on no
    hub, and its rows are always one's own (data=local).
    """

    name: str
    hub: Hub | None = None
    loss: Literal["candidates", "lm"] = "candidates"
    metric: str = "accuracy"
    generates: bool = False
    stop: tuple[str, ...] = ("\n",)
    num_train: int | None = 1000
    num_dev: int = 500

    @abstractmethod
    def examples(self, row: Row) -> Iterator[Example]:
        """Yield the row's examples (several for a nested release row); raise RowError if it is malformed."""


def choice(prompt: str, words: tuple[str, ...], gold: int, *, blank: str = "") -> Iterator[Example]:
    """The one example of a row whose candidates are fixed words."""
    yield Example(prompt, words, (gold,), blank=blank)
