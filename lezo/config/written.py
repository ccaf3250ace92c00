"""A configuration that was written before, by a run or beside a saved model, read back; a command's words change some of it. No torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lezo.config.checks import check
from lezo.config.compose import as_field, parse, unchecked
from lezo.config.identity import within
from lezo.config.methods import METHODS
from lezo.config.schema import PEFT_SCHEMAS, ConfigError, DataConfig, RunConfig
from lezo.config.task import TASK_SCHEMAS, PromptConfig, PythonConfig, TaskConfig

WORDS = (
    *("task", "data", "eval", "model.path", "model.revision", "model.tokenizer", "model.bos", "model.dtype"),
    *(
        "model.device",
        "model.devices",
        "model.home",
        "model.home_dir",
        "model.max_length",
        "model.quantization",
    ),
)
"""What of a configuration the words of lezo-eval may change: which rows, how they are scored, and where the model is."""
_ROWS = (
    "task",
    "data",
    "eval.calibration",
    "eval.max_new_tokens",
    "model.bos",
    "model.max_length",
    "model.tokenizer",
)


def read_back(values: Mapping[str, Any], words: Sequence[str] = ()) -> RunConfig:
    """The configuration of these nested ``values`` with ``words`` (overrides of lezo-run's kind) in their place.

    Settings that were added since have the values that change nothing. Raises ConfigError for what is no configuration,
    and for words that no evaluation has a place for.
    """
    refuse_other_words(words)
    config = _typed(values)
    words = without_own_task(values, words)
    keys = [override.key_or_group for override in parse(words)]
    if keys:
        _change(config, words, keys)
    _refuse_code(config, keys)
    check(config, weights=False)
    return config


def refuse_other_words(words: Sequence[str]) -> None:
    """Raise ConfigError for a word about training, or about which model: those are words of their own."""
    for override in parse(words):
        key, text = override.key_or_group, override.input_line
        if key == "model":
            raise ConfigError(
                [f"{text}: a model is a word of its own here, such as lezo-eval {override.value()}"]
            )
        if override.is_add() or override.is_force_add() or override.is_delete() or not within(key, WORDS):
            known = "task, data, eval, split and what model.* says of where the model is"
            raise ConfigError([f"{text}: has no effect on an evaluation; expected words of {known} (--help)"])


def changes_rows(words: Sequence[str]) -> bool:
    """Whether the words ask for other rows, prompts or scores than those that a configuration has."""
    return any(within(override.key_or_group, _ROWS) for override in parse(words))


def without_own_task(values: Mapping[str, Any], words: Sequence[str]) -> list[str]:
    """The words without a task=NAME that ``values`` have already: it is no other task, and keeps their settings.

    What describes a task (task=prompt) describes another one.
    """
    own = str(values["task"].get("name"))
    named = own if _task_schema(values["task"]) is TaskConfig else None
    parsed = parse(words)
    pairs = zip(words, parsed, strict=True)
    return [word for word, found in pairs if found.key_or_group != "task" or found.value() != named]


def task_kind(task: TaskConfig) -> str:
    """What ``task=`` takes for a task of these settings: its name, or how it is described."""
    kinds = {schema: name for name, schema in TASK_SCHEMAS.items()}
    return kinds.get(type(task), task.name)


def _typed(values: Mapping[str, Any]) -> RunConfig:
    try:
        tree = OmegaConf.structured(RunConfig)
        optim, peft = (str(values.get(group, {}).get("name", "none")) for group in ("optim", "peft"))
        method = METHODS.get(optim)
        if method is None:
            raise ConfigError([f"optim: name {optim!r} is unknown; install the package that it is of"])
        tree.optim = OmegaConf.structured(method.schema(name=optim))
        tree.peft = OmegaConf.structured(PEFT_SCHEMAS[peft](name=peft))
        tree.task = OmegaConf.structured(_task_schema(values["task"]))
        config = OmegaConf.to_object(OmegaConf.merge(tree, values))
    except (OmegaConfBaseException, LookupError, AttributeError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        first = str(error).partition("\n")[0] or type(error).__name__
        raise ConfigError([f"not a configuration that this lezo reads ({first})"]) from None
    assert isinstance(config, RunConfig)
    return config


def _task_schema(values: Mapping[str, Any]) -> type[TaskConfig]:
    """By the settings that only one kind of task has."""
    shared = {one.name for one in fields(TaskConfig)}
    for schema in TASK_SCHEMAS.values():
        if values.keys() & ({one.name for one in fields(schema)} - shared):
            return schema
    return TaskConfig


def _change(config: RunConfig, words: Sequence[str], keys: Collection[str]) -> None:
    """Give the configuration what the words say; another task brings its own sizes and prompt."""
    kind = [] if "task" in keys else [f"task={task_kind(config.task)}"]
    new = unchecked([*kind, *words]).config
    if "task" in keys and "data" not in keys:
        config.data = _data_of_other_task(config.data)
    for key in sorted(keys, key=lambda key: "." in key):  # groups first
        group, _, name = key.partition(".")
        if not name:
            setattr(config, group, getattr(new, group))
        else:
            name = name.partition(".")[0]
            setattr(getattr(config, group), name, getattr(getattr(new, group), name))


def _data_of_other_task(data: DataConfig) -> DataConfig:
    """Where another task's rows are: at the same place, with that task's own columns and files."""
    return DataConfig(data.name, None if data.name == "hub" else data.path)


def _refuse_code(config: RunConfig, keys: Collection[str]) -> None:
    """Raise ConfigError where a file, and nobody at the keyboard, names code of a package that would run."""
    task = config.task
    named = {}
    if isinstance(task, PythonConfig) and not {"task", "task.python"} & {*keys}:
        named["task.class"] = task.python
    if isinstance(task, PromptConfig) and ":" in (task.metric or "") and "task.metric" not in keys:
        named["task.metric"] = task.metric
    for key, value in named.items():
        why = "is code of a package, which no file may start by itself"
        raise ConfigError([f"{key}={value}: {why}; add the word {key}={value} where you trust it"])


def own_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Of a command's words those that are settings (key=value), and the others."""
    settings = [word for word in words if re.match(r"[+~]*[\w./]+=", as_field(word))]
    return settings, [word for word in words if word not in settings]
