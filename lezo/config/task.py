"""Tasks by settings: the papers' by name, and those that a configuration describes itself. No torch."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from omegaconf import MISSING

from lezo.config.ranges import COUNT, COUNT_OR_0, SEED, ranged
from lezo.tasks import TASKS, Task, as_task
from lezo.tasks.chat import ChatTask
from lezo.tasks.installed import installed
from lezo.tasks.metrics import metric_of
from lezo.tasks.prompt import prompt_task
from lezo.tasks.task import TaskError


class DemoSets(Enum):
    """Whose demonstrations: the same in every prompt, or each test example's own, as ICL is published."""

    shared = "shared"
    each = "each"


@dataclass
class TaskConfig:
    """``num_train``, ``num_dev`` None: as published; of small data of one's own, see `lezo.data.sampling`."""

    name: str = MISSING
    num_train: int | None = ranged(None, COUNT_OR_0)
    num_dev: int | None = ranged(None, COUNT_OR_0)
    num_test: int | None = ranged(1000, COUNT)
    data_seed: int = ranged(0, SEED)
    demos: int = ranged(0, COUNT_OR_0)
    demo_sets: DemoSets = DemoSets.shared


@dataclass
class PromptConfig(TaskConfig):
    """task=prompt, or a name of the user's own: a template of the prompt, and a column of its label or answer.

    See docs/tasks.md. ``words``, ``choices_column`` and ``stop`` take one value, several, or a mapping of them.
    """

    template: str | None = None
    label_column: str | None = None
    words: Any = None  # a mapping of labels to words; as one, Hydra would take no new keys
    choices_column: Any = None
    answer_column: str | None = None
    stop: Any = None
    blank_prompt: str | None = None
    metric: str | None = None


@dataclass
class PythonConfig(TaskConfig):
    """task=python. ``python``: ``module:Name`` of an installed `Task`; on a command line it is task.class."""

    python: str | None = None


class Turns(Enum):
    """Which of the assistant's turns are learnt from."""

    all = "all"
    last = "last"


@dataclass
class ChatConfig(TaskConfig):
    """task=chat: conversations. ``system``: a system message for those that have none. ``chat_template``: None the tokenizer's own,
    "plain", or a file. ``generate``: to how many test conversations the trained model's reply is written. See `ChatTask`.
    """

    system: str | None = None
    turns: Turns = Turns.all
    chat_template: str | None = None
    generate: int = ranged(0, COUNT_OR_0)


TASK_SCHEMAS: dict[str, type[TaskConfig]] = {
    "prompt": PromptConfig,
    "python": PythonConfig,
    "chat": ChatConfig,
}
"""Settings of tasks that are described by them; all others are names of `TASKS`."""


def task_of(config: TaskConfig) -> Task:
    """The task that the settings name or describe. Raises TaskError where they describe none, KeyError for an unknown name."""
    if isinstance(config, PromptConfig):
        own = {one.name for one in fields(config)} - {one.name for one in fields(TaskConfig)}
        return prompt_task(config.name, **{key: getattr(config, key) for key in own})
    if isinstance(config, PythonConfig):
        return _python_task(config)
    if isinstance(config, ChatConfig):
        return ChatTask(config.name, system=config.system)
    return TASKS[config.name]


def _python_task(config: PythonConfig) -> Task:
    """An installed package's own, by the configuration's name."""
    if config.python is None:
        raise TaskError("task.class: expected module:Name, a lezo.tasks.Task of an installed package")
    found = installed("task.class", config.python)
    try:
        task = copy(as_task(found))
    except Exception as error:  # what others' classes do when they are called
        raise TaskError(f"task.class={config.python}: {error}") from error
    task.name = config.name
    metric_of(task.metric, generates=task.generates)
    return task


def kind_of(config: TaskConfig) -> Task | type[Task]:
    """The same, or what tasks are by default, for whoever asks before the settings are checked."""
    try:
        return task_of(config)
    except (KeyError, ValueError):
        return Task
