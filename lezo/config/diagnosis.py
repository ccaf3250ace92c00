"""What is wrong with a configuration that Hydra refuses: the key, what it expects, what was likely meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from enum import Enum
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from lezo.config.identity import within
from lezo.config.methods import METHODS, OptimConfig
from lezo.config.schema import ConfigError, PeftConfig
from lezo.config.task import TASK_SCHEMAS, TaskConfig
from lezo.tasks import TASKS
from lezo.tasks.registry import Registry

CONF = Path(__file__).resolve().parents[1] / "conf"
GROUPS = ("task", "optim", "model", "peft", "data", "log")
REGISTERED: dict[str, Registry[Any]] = {"task": TASKS, "optim": METHODS}  # by installed packages too
ADDED_GROUPS = ("experiment",)  # `+experiment=NAME` is how a recipe is asked for
COMPOSE_ERRORS = (  # what Hydra and OmegaConf raise; the last are how they stumble over odd values
    *(HydraException, OmegaConfBaseException, YAMLError, ValueError, AssertionError, OSError),
    *(RecursionError, AttributeError, TypeError),
)
_FIRST_LINE = "# @package _global_"
_IN_FILE = re.compile(r"In '([^']+)': (?:\w+ raised while composing config:\n)?(.*)")


def diagnosed(overrides: Sequence[Override], config_dir: str | None, error: Exception) -> str:
    """What is wrong, with the override or file that is at fault; else what Hydra says. Within `hydra_on`."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ConfigError):  # of one of our resolvers
            return cause.problems[0]
    if isinstance(error, MarkedYAMLError) and (mark := error.problem_mark) is not None:
        return f"{mark.name}, line {mark.line + 1}: not valid YAML ({error.problem})"
    for override in overrides:
        if (problem := unknown_choice(override, config_dir)) is not None:
            return problem
    fault = next((one for one in causes if isinstance(one, OmegaConfBaseException) and one.full_key), None)
    if isinstance(error, MissingConfigException):
        return _missing_option(error, overrides, config_dir)
    if (quote := _IN_FILE.match(str(error))) is not None:
        return _file_problem(_file(quote[1], config_dir), quote[2].rstrip("."), fault)
    return _override_problem(overrides, error, fault)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from: OmegaConf and Hydra wrap each other's."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def options_of(group: str, config_dir: str | None) -> list[str]:
    """A group's options: files of conf/ and of the user's own folder, and those of installed packages."""
    folders = [CONF, *([Path(config_dir).expanduser()] if config_dir else [])]
    files = {file.stem for folder in folders for file in (folder / group).glob("*.yaml")}
    return sorted(files.union(REGISTERED[group].installed() if group in REGISTERED else ()))


def unknown_choice(override: Override, config_dir: str | None) -> str | None:
    """What to say of a group's option that is not there; None of one that is, and of what chooses none."""
    group, option = override.key_or_group, str(override.value())
    if group not in (*GROUPS, *ADDED_GROUPS) or option in (known := options_of(group, config_dir)):
        return None
    return f"{override.input_line}: {_unknown(option, known)}"


def _unknown(option: str, known: Sequence[str]) -> str:
    close = did_you_mean(difflib.get_close_matches(option.lower(), known, n=1))
    return f"unknown; {close}expected one of {', '.join(known) or 'none'}"


def _missing_option(
    error: MissingConfigException, overrides: Sequence[Override], config_dir: str | None
) -> str:
    """Of an option that a file asks for, or a recipe."""
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    problem = _unknown(option, error.options or [])
    if group == "hydra/launcher":
        problem += "; pip install 'lezo[submitit]' adds submitit_slurm and submitit_local"
    for override in overrides:
        if override.key_or_group == group:
            return f"{override.input_line}: {problem}"
    quote = _IN_FILE.match(str(error))
    recipe = next((o.input_line for o in overrides if o.key_or_group in ADDED_GROUPS), "run")
    where = recipe if quote is None or quote[1] == "run" else _file(quote[1], config_dir)
    return f"{where}: {group}={option}: {problem}"


def _file(name: str, config_dir: str | None) -> Path:
    """The file that Hydra calls by its group and option, as optim/mine."""
    folders = [*([Path(config_dir).expanduser()] if config_dir else []), CONF]
    files = [folder / f"{name}.yaml" for folder in folders]
    return next((file for file in files if file.is_file()), files[0])


def _file_problem(file: Path, reason: str, fault: OmegaConfBaseException | None) -> str:
    if fault is None:
        return f"{file}: {reason}"
    if not isinstance(fault, ConfigKeyError | ConfigAttributeError):
        return f"{file}: {fault.full_key}: expected {_expected(fault)} ({reason})"
    return f"{file}: {_file_hint(file, fault) or f'{fault.full_key}: {_unknown_key(fault)}'}"


def _file_hint(file: Path, fault: OmegaConfBaseException) -> str | None:
    """The line that the file lacks, without which a key is not known that would be known with it."""
    group, key, last = file.parent.name, fault.full_key, fault.key
    astray = key == group if group in ADDED_GROUPS else key == f"{group}.{last}" and last in _root(fault)
    if astray and _FIRST_LINE not in file.read_text(encoding="utf-8", errors="replace"):
        return f"expected '{_FIRST_LINE}' as the first line, without which its keys are those of {group}"
    if group in ("optim", "peft") and fault.object_type in (OptimConfig, PeftConfig):
        given = f"defaults: [/schema/{group}/NAME@_here_, _self_]"
        return f"{key}: unknown key; expected {given}, which gives it those of NAME"
    if group == "task" and fault.object_type is TaskConfig:
        return f"{key}: unknown key; expected defaults: [prompt, _self_], which gives it those of task=prompt"
    return None


def _override_problem(
    overrides: Sequence[Override], error: Exception, fault: OmegaConfBaseException | None
) -> str:
    """Of the override that Hydra quotes, that sets the key which OmegaConf names, or that fails alone."""
    named = re.search(r"full_key: (\S+)", str(error))
    key = str(fault.full_key).partition("[")[0] if fault else named[1] if named else None
    quoted = (o for o in overrides if f"override {o.input_line}\n" in f"{error}\n")
    near = (o for o in reversed(overrides) if key and _on_one_path(key, o.key_or_group))
    override = next(chain(quoted, near, () if fault else filter(_fails_alone, overrides)), None)
    if override is not None and fault is None and key is not None:
        key = override.key_or_group
    if override is not None and key is None and (above := _value_above(override.key_or_group)):
        return f"{override.input_line}: unknown key; {above} is a value and has no keys"
    if override is None or key is None or within(key, ["hydra"]):
        where = key if override is None else override.input_line
        reason = (str(fault or error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        return f"{f'{where}: ' if where else ''}{reason}; lezo-run --help lists groups and keys"
    value = (override.input_line or "").partition("=")[2] if key == override.key_or_group else None
    where = f"{override.input_line}: " + ("" if within(override.key_or_group, [key]) else f"{key}: ")
    if isinstance(fault, ConfigKeyError | ConfigAttributeError):
        return where + _unknown_key(fault, value)
    if key != override.key_or_group and within(override.key_or_group, [key]):
        return f"{where}unknown key; {key} is a value and has no keys"
    chosen = [o.input_line or "" for o in overrides if o.key_or_group in GROUPS]  # whose keys there are
    expected = (
        _expected(fault) if fault else expected_value(hydra_compose("run", chosen), override.key_or_group)
    )
    return f"{where}expected {expected}"


def _on_one_path(key: str, other: str) -> bool:
    return within(key, [other]) or within(other, [key])


def _value_above(key: str) -> str | None:
    """The part of a dotted key that is a value, or a list, and so has no keys."""
    above = accumulate(key.split(".")[:-1], lambda path, name: f"{path}.{name}")
    base = hydra_compose("run")
    return next((path for path in above if not OmegaConf.is_dict(OmegaConf.select(base, path))), None)


def _fails_alone(override: Override) -> bool:
    try:
        OmegaConf.resolve(hydra_compose("run", [override.input_line or ""]))
        return False
    except COMPOSE_ERRORS:
        return True


def _root(fault: OmegaConfBaseException) -> DictConfig:
    root = fault.parent_node._get_root()
    assert isinstance(root, DictConfig)
    return root


def _expected(fault: OmegaConfBaseException) -> str:
    return expected_value(_root(fault), str(fault.full_key))


def _unknown_key(fault: OmegaConfBaseException, value: str | None = None) -> str:
    """The keys that there are instead, the likely ones first, with ``value``."""
    given, node = str(fault.full_key), fault.parent_node
    if not isinstance(node, DictConfig):
        return "unknown key; a list has none"
    parent = given.rpartition(".")[0]
    names = [str(key) for key in node if key not in ("name", "hydra")]
    keys = [f"{parent}.{name}" if parent else name for name in names]
    of = f" of {parent}={node['name']}" if parent in ("optim", "peft") else ""
    close = did_you_mean(likely_keys(given, _root(fault), value)) or _of_another_task(parent, str(fault.key))
    return f"unknown key; {close}the keys{of} are {', '.join(keys) or 'none'}"


def _of_another_task(group: str, key: str) -> str:
    """Which task has a setting that the chosen one has not, with a space behind it; nothing where none has."""
    schemas = TASK_SCHEMAS.items() if group == "task" else ()
    owners = [f"task={name}" for name, schema in schemas if key in {one.name for one in fields(schema)}]
    return f"it is one of {' and '.join(owners)}; " if owners else ""


def likely_keys(given: str, base: DictConfig, value: str | None = None) -> list[str]:
    """The keys and groups that a name may stand for: those that end in it, else the one most like it."""
    if given in ADDED_GROUPS:
        return [f"+{given}" if value is None else f"+{given}={value}"]
    leaves = [key for key in _leaves(base) if not within(key, ["hydra"])]
    shown = [key for key in leaves if key.rpartition(".")[2] == given and key.count(".") < 2]
    ends = {key.rpartition(".")[2]: key for key in reversed(leaves) if "." in key} if "." not in given else {}
    known = {**ends, **{key: key for key in leaves}, **{group: group for group in GROUPS}}
    close = shown or [
        known[name] for name in difflib.get_close_matches(given.lower(), sorted(known), n=1, cutoff=0.7)
    ]
    return [key if value is None else f"{key}={value}" for key in close]


def _leaves(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in list(node.keys()):
        name, child = str(key), node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            yield from _leaves(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


_IN_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def expected_value(base: DictConfig, key: str) -> str:
    """The type of a key in words."""
    *path, last = key.split(".")
    parent = OmegaConf.select(base, ".".join(path)) if path else base
    node: Any = parent._get_node(last)
    kind = node._metadata.ref_type
    if isinstance(kind, type) and issubclass(kind, Enum):
        words = f"one of {', '.join(kind.__members__)}"
    else:
        words = _IN_WORDS.get(kind, "a list of texts" if OmegaConf.is_list(node) else "a group of keys")
    return words + (" or null" if node._metadata.optional else "")


def did_you_mean(likely: Sequence[str]) -> str:
    """The question, with a space behind it; nothing where nothing is likely."""
    return f"did you mean {' or '.join(likely)}? " if likely else ""
