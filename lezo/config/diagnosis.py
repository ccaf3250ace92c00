"""What is wrong with overrides that Hydra refuses? In words: the key, what it expects, what was likely meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from lezo.config import schema as schemas
from lezo.config.methods import METHODS
from lezo.config.schema import ConfigError
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


def diagnosed(
    overrides: Sequence[Override], extra: Sequence[str], config_dir: str | None, error: Exception
) -> str:
    """The first override that is at fault, in words; else what Hydra says."""
    if (own := _own_problem(error)) is not None:
        return own
    groups = [override for override in overrides if override.key_or_group in GROUPS]
    for override in groups:
        options = options_of(override.key_or_group, config_dir)
        if (problem := unknown_option(override, str(override.value()), options)) is not None:
            return problem
    if (problem := _file_problem(str(error), overrides, config_dir)) is not None:
        return problem
    lines = [*(group.input_line or "" for group in groups), *extra]
    try:
        base = hydra_compose("run", lines)
    except COMPOSE_ERRORS:
        return _in_words(error)
    for override in overrides:
        if override not in groups and (problem := _value_problem(override, base, lines)) is not None:
            return problem
    return _in_words(error)


def _own_problem(error: Exception) -> str | None:
    """What is said in full already: a variable of the environment, or a file that is no YAML."""
    inner: BaseException | None = error
    while inner is not None:  # OmegaConf wraps what its resolvers raise
        if isinstance(inner, ConfigError):
            return inner.problems[0]
        inner = inner.__cause__ or inner.__context__
    if isinstance(error, MarkedYAMLError) and (mark := error.problem_mark) is not None:
        return f"{mark.name}, line {mark.line + 1}: not valid YAML ({error.problem})"
    return None


def options_of(group: str, config_dir: str | None) -> list[str]:
    """The options of a group: files of conf/ and of the user's own folder, and what installed packages register."""
    folders = [CONF, *([Path(config_dir).expanduser()] if config_dir else [])]
    files = {file.stem for folder in folders for file in (folder / group).glob("*.yaml")}
    return sorted(files.union(REGISTERED[group].installed() if group in REGISTERED else ()))


def unknown_option(override: Override, given: str, known: Sequence[str]) -> str | None:
    """What to say of an option that is none of the known ones; None of one that is."""
    if given in known:
        return None
    suggestion = did_you_mean(difflib.get_close_matches(given.lower(), known, n=1))
    listed = f"expected one of {', '.join(known)}" if known else "there is none (--config-dir DIR adds yours)"
    return f"{override.input_line}: unknown; {suggestion}{listed}"


_IN_FILE = re.compile(  # the file, what is wrong, with which key of which schema
    r"In '([^']+)': \w+ raised while composing config:\n(.*)\n\s*full_key: (\S*)(?:.*\n)*.*object_type=(\w+)"
)
_FIRST_LINE = "# @package _global_"


def _file_problem(said: str, overrides: Sequence[Override], config_dir: str | None) -> str | None:
    """What is wrong in a file of the user's own, with its name; None where Hydra does not speak of one."""
    if (missing := re.match(r"In '[^']+': Could not find '(.+?)/([^/']+)'", said)) is not None:
        recipe = next((o.input_line for o in overrides if o.key_or_group in ADDED_GROUPS), None)
        group, option = missing.groups()
        known = options_of(group, config_dir)
        close = did_you_mean(difflib.get_close_matches(option.lower(), known, n=1))
        where = "" if recipe is None else f"{recipe}: "
        return f"{where}{group}={option}: unknown; {close}expected one of {', '.join(known) or 'none'}"
    if (found := _IN_FILE.search(said)) is not None:
        name, reason, key, schema = found.groups()
        file = _own_file(name, config_dir)
        if reason.startswith("Key "):
            return f"{file}: {_wrong_key(file, name.split('/')[0], key, schema)}"
        try:
            return f"{file}: {key}: expected {expected_value(hydra_compose('run'), key)} ({reason})"
        except COMPOSE_ERRORS:  # no key of a run's alone: a whole group, an entry of a list, Hydra's own
            return f"{file}: {f'{key}: ' if key else ''}{reason}"
    named = re.match(r"In '([^']+)': (.*)", said)
    return None if named is None else f"{_own_file(named[1], config_dir)}: {named[2].rstrip('.')}"


def _wrong_key(file: Path, group: str, key: str, schema: str) -> str:
    """A key that ``schema`` does not have: misspelt, or in a file without the line that makes its keys the run's."""
    base, last = hydra_compose("run"), key.split(".")[-1]
    inside = key == group if group in ADDED_GROUPS else key == f"{group}.{last}" and last in base
    if inside and _FIRST_LINE not in file.read_text(encoding="utf-8", errors="replace"):
        return f"expected '{_FIRST_LINE}' as the first line, without which its keys are those of {group}"
    if (kind := _schema(schema)) is None:  # one of Hydra's
        return f"{key}: unknown key"
    path, names = key.removesuffix(last), [field.name for field in fields(kind) if field.name != "name"]
    close = [path + name for name in difflib.get_close_matches(last, names, n=1)]
    if schema == "RunConfig" and group != key:
        close = likely_keys(key, base)
    plain = group in ("optim", "peft") and schema in ("OptimConfig", "PeftConfig")
    if plain:
        return f"{key}: unknown key; expected defaults: [/schema/{group}/NAME@_here_, _self_], which gives it those of NAME"
    return (
        f"{key}: unknown key; {did_you_mean(close)}expected one of {', '.join(path + name for name in names)}"
    )


def _schema(name: str) -> Any:
    """The dataclass of a name, of the run's configuration or of a method's settings."""
    known = {method.schema.__name__: method.schema for one in METHODS if (method := METHODS.get(one))}
    return known.get(name) or getattr(schemas, name, None)


def _own_file(name: str, config_dir: str | None) -> Path:
    """The file that Hydra calls "optim/mine"."""
    folders = [*([Path(config_dir).expanduser()] if config_dir else []), CONF]
    files = [folder / f"{name}.yaml" for folder in folders]
    return next((file for file in files if file.is_file()), files[0])


def _value_problem(override: Override, base: DictConfig, lines: Sequence[str]) -> str | None:
    """What is wrong with one key=value, given the composed groups."""
    key = override.key_or_group
    if key.split(".")[0].split("/")[0] == "hydra":
        return None
    if (problem := _key_problem(override, base)) is not None:
        return problem
    try:
        OmegaConf.resolve(hydra_compose("run", [*lines, override.input_line or ""]))
    except COMPOSE_ERRORS:
        return f"{override.input_line}: expected {expected_value(base, key)}"
    return None


def _key_problem(override: Override, base: DictConfig) -> str | None:
    *path, last = override.key_or_group.split(".")
    node: Any = base
    for i, name in enumerate([*path, last]):
        if not isinstance(node, DictConfig) or name not in list(node.keys()):
            return _unknown_key(override, base, node, path[:i])
        node = node._get_node(name)
    return None


def _unknown_key(override: Override, base: DictConfig, node: Any, path: Sequence[str]) -> str:
    given, value = override.key_or_group, (override.input_line or "").partition("=")[2]
    close = likely_keys(given, base, value)
    suggestion = f"; did you mean {' or '.join(close)}?" if close else ";"
    if not isinstance(node, DictConfig):
        return f"{override.input_line}: unknown key; {'.'.join(path)} is a value and has no keys"
    keys = ", ".join(".".join([*path, str(key)]) for key in list(node.keys()) if key != "name")
    owner = f" of {path[0]}={base[path[0]].name}" if path and path[0] in ("optim", "peft") else ""
    return f"{override.input_line}: unknown key{suggestion} the keys{owner} are {keys or 'none'}"


def likely_keys(given: str, base: DictConfig, value: str | None = None) -> list[str]:
    """The keys and groups that a name may stand for: those that end in it, else the one most like it; with ``value``."""
    if given in ADDED_GROUPS:
        return [f"+{given}" if value is None else f"+{given}={value}"]
    leaves = [key for key in _leaves(base) if not key.startswith("hydra.")]
    shown = [key for key in leaves if key.rpartition(".")[2] == given and key.count(".") < 2]
    ends = {key.rpartition(".")[2]: key for key in reversed(leaves) if "." in key} if "." not in given else {}
    known = {**ends, **{key: key for key in leaves}, **{group: group for group in GROUPS}}
    close = shown or [
        known[name] for name in difflib.get_close_matches(given.lower(), sorted(known), n=1, cutoff=0.7)
    ]
    return [key if value is None else f"{key}={value}" for key in close]


def _leaves(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in list(node.keys()):
        name = str(key)
        child = node._get_node(name)
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


def _in_words(error: Exception) -> str:
    """What Hydra says first, with the reason where that is a line of its own."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{said.rstrip('.')}; lezo-run --help lists groups and keys"


def did_you_mean(meant: Sequence[str]) -> str:
    """The question, with a space behind it; nothing where nothing is likely."""
    return f"did you mean {' or '.join(meant)}? " if meant else ""
