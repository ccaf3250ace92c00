"""From the command line's overrides to a checked RunConfig, or to an error that says the way out.

Hydra composes; this module adds what its messages lack: suggestions, choices, and a refusal of keys that
``+`` would add silently. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc
from yaml import MarkedYAMLError, YAMLError

from lezo.config import schema as schemas
from lezo.config.identity import job_name
from lezo.config.schema import (
    OPTIM_SCHEMAS,
    PEFT_SCHEMAS,
    BoardConfig,
    ConfigError,
    ReplayConfig,
    ReportConfig,
    RunConfig,
    check,
    is_folder,
)

CONF = Path(__file__).resolve().parents[1] / "conf"
GROUPS = ("task", "optim", "model", "peft", "data", "log")
_ADDED_GROUPS = ("experiment",)  # `+experiment=NAME` is how a recipe is asked for
_Options = TypeVar("_Options", ReplayConfig, ReportConfig, BoardConfig)
_COMPOSE_ERRORS = (  # what Hydra and OmegaConf raise; the last are how they stumble over odd values
    *(HydraException, OmegaConfBaseException, YAMLError, ValueError, AssertionError, OSError),
    *(RecursionError, AttributeError, TypeError),
)


@dataclass(frozen=True)
class Composed:
    """A checked configuration as objects and as YAML, with the folders a run or a sweep writes to.

    As a job of a sweep it would write to ``job_name`` in ``sweep_dir``.
    """

    config: RunConfig
    yaml: str
    run_dir: Path
    sweep_dir: Path
    job_name: str


def compose(overrides: Sequence[str], *, config_dir: str | None = None, weights: bool = True) -> Composed:
    """Compose, convert and check. Raises ConfigError with the problems found.

    Override errors are reported one at a time, values out of range and bad combinations all at once.
    """
    refuse_missing(config_dir)
    parsed = parse(overrides)
    for override in parsed:
        _refuse_sweep(override)
        _refuse_additions(override, config_dir)
        _refuse_names(override)
    with hydra_on(config_dir) as extra:
        try:
            composed = hydra_compose("run", [*overrides, *extra], return_hydra_config=True)
            hydra = composed.hydra
            dirs = Path(hydra.run.dir), Path(hydra.sweep.dir)
            result = converted(composed, *dirs, job_name=str(hydra.sweep.subdir))
        except _COMPOSE_ERRORS as error:
            raise ConfigError([_diagnosis(parsed, extra, config_dir, error)]) from None
    check(result.config, weights=weights)
    _refuse_folders(result)
    return result


def with_sizes(composed: Composed, sizes: Mapping[str, int]) -> Composed:
    """The same with some of task.* given, by their dotted keys."""
    if not sizes:
        return composed
    tree, config = OmegaConf.create(composed.yaml), deepcopy(composed.config)
    for key, size in sizes.items():
        OmegaConf.update(tree, key, size)
        setattr(config.task, key.removeprefix("task."), size)
    return replace(composed, config=config, yaml=OmegaConf.to_yaml(tree))


def swept_values(overrides: Sequence[str], config_dir: str | None) -> dict[str, str]:
    """What the configuration itself sweeps over (hydra.sweeper.params). Raises ConfigError."""
    refuse_missing(config_dir)
    parsed = parse(overrides)
    for override in parsed:
        _refuse_additions(override, config_dir)
    with hydra_on(config_dir) as extra:
        try:
            composed = hydra_compose("run", [*overrides, *extra], return_hydra_config=True)
        except _COMPOSE_ERRORS as error:
            raise ConfigError([_diagnosis(parsed, extra, config_dir, error)]) from None
        return {str(key): str(value) for key, value in (composed.hydra.sweeper.params or {}).items()}


def refuse_missing(config_dir: str | None) -> None:
    """Raise ConfigError where the folder of the user's own configuration is not there."""
    if config_dir is not None and not is_folder(config_dir):
        raise ConfigError([f"--config-dir {config_dir}: no such folder"])


def parse(overrides: Sequence[str]) -> list[Override]:
    """Parse each override by Hydra's grammar. Raises ConfigError with the first that is not one."""
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            text.encode()
            parsed.append(parser.parse_override(text))
        except (HydraException, RecursionError):
            expected = "expected key=value or group=option (quote values that hold spaces or ,:[]{}())"
            raise ConfigError(
                [f"{text}: {_asked(_choices(text))}{expected}; lezo-run --help lists them"]
            ) from None
        except UnicodeEncodeError:  # bytes of the command line that Python could not read
            encoding = sys.getfilesystemencoding()
            way_out = (
                ""
                if encoding == "utf-8"
                else f", and Python reads {encoding}; say LC_ALL=C.UTF-8 before the command"
            )
            raise ConfigError([f"{text}: expected UTF-8 text{way_out}"]) from None
    return parsed


def _choices(word: str) -> list[str]:
    """What a bare word, or one with a colon, may have been meant for: an option of one of the groups."""
    group, _, option = word.partition(":")
    if option and group in GROUPS:
        return [f"{group}={option.strip()}"]
    return [f"{group}={word.lower()}" for group in GROUPS if word.lower() in _options(group, None)]


def _asked(meant: Sequence[str]) -> str:
    return f"did you mean {' or '.join(meant)}? " if meant else ""


def meant(given: str, value: str | None = None) -> list[str]:
    """What lezo-run has for a name that is no key of it, as on a flag: --steps 10 is train.steps=10."""
    with hydra_on(None):
        return _likely(given.replace("-", "_"), hydra_compose("run"), value)


def replay_options(overrides: Sequence[str]) -> ReplayConfig:
    """The options replay.* of lezo-replay. Raises ConfigError with the first that is not one."""
    return _command_options("replay", ReplayConfig, overrides)


def report_options(overrides: Sequence[str]) -> ReportConfig:
    """The options report.* of lezo-report. Raises ConfigError with the first that is not one."""
    return _command_options("report", ReportConfig, overrides)


def board_options(overrides: Sequence[str]) -> BoardConfig:
    """The options board.* of lezo-dashboard. Raises ConfigError with the first that is not one."""
    return _command_options("board", BoardConfig, overrides)


def _command_options(name: str, schema: type[_Options], overrides: Sequence[str]) -> _Options:
    options = OmegaConf.structured(schema)
    for override in parse(overrides):
        key, text = override.key_or_group.removeprefix(f"{name}."), override.input_line
        if key not in options or override.is_sweep_override():
            known = ", ".join(f"{name}.{key}" for key in options)
            raise ConfigError([f"{text}: unknown option; expected one value for one of {known}"])
        try:
            options[key] = override.value()
        except OmegaConfBaseException:
            raise ConfigError([f"{text}: expected {_expected(options, key)}"]) from None
    result = OmegaConf.to_object(options)
    assert isinstance(result, schema)
    return result


_NO_TEXTS = ("null", "true", "false", "nan", "inf")  # but words of Hydra's


def quoted(value: str) -> str:
    r"""A text in Hydra's override grammar, whatever characters it has.

    In quotes a backslash means itself, except before a quote or ``${``: "a\b" is 'a\b', "it's" is 'it\'s'.
    """
    if re.fullmatch(r"(\.{0,2}/)?[a-zA-Z_][\w./-]*", value, re.ASCII) and value.lower() not in _NO_TEXTS:
        return value
    escaped = re.sub(
        r"(\\*)('|\$\{|\Z)", lambda found: found[1] * 2 + ("\\" + found[2] if found[2] else ""), value
    )
    return f"'{escaped}'"


def command(overrides: Sequence[str], config_dir: str | None = None, program: str = "lezo-run") -> str:
    """The command line that repeats a run from its beginning, in a folder of its own."""
    kept = [text for text in overrides if not text.startswith(("hydra.run.dir=", "resume="))]
    folder = ["--config-dir", config_dir] if config_dir else []
    return shlex.join([program, *folder, *kept])


def _method(*, _root_: DictConfig) -> str:
    """The optimizer, and the adapter where there is one, for a folder's name."""
    adapter = "" if _root_.peft.name == "none" else f"-{_root_.peft.name}"
    return f"{_root_.optim.name}{adapter}"


def register_schema() -> None:
    """Make known to Hydra what conf/run.yaml, conf/optim/ and conf/peft/ name: the typed schemas, and a job's name."""
    OmegaConf.register_new_resolver("lezo_job", lambda *, _root_: job_name(_own_yaml(_root_)), replace=True)
    OmegaConf.register_new_resolver("lezo_method", _method, replace=True)
    store = ConfigStore.instance()
    store.store(name="lezo_schema", node=RunConfig)
    for name, schema in OPTIM_SCHEMAS.items():
        store.store(group="schema/optim", name=name, node=schema)
    for name, kind in PEFT_SCHEMAS.items():
        store.store(group="schema/peft", name=name, node=kind)


@contextmanager
def hydra_on(config_dir: str | None) -> Iterator[list[str]]:
    """Hydra initialised on our conf/; yields the overrides that ``--config-dir`` amounts to."""
    register_schema()
    with _closed_environment(), initialize_config_dir(str(CONF), job_name="lezo-run", version_base="1.3"):
        yield [] if config_dir is None else [f"hydra.searchpath=[{_address(config_dir)}]"]


def _address(folder: str) -> str:
    return quoted(f"file://{Path(folder).expanduser().resolve()}")


@contextmanager
def _closed_environment() -> Iterator[None]:
    """Meanwhile no interpolation reads the environment: what it holds may be secret, and a run writes its settings."""
    OmegaConf.register_new_resolver("oc.env", _refused_variable, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _refused_variable(name: str, *_: Any) -> str:
    where = f"${{oc.env:{name}}}"
    reason = "the run's files would hold an environment variable's value, which may be secret"
    raise ConfigError([f'{where}: {reason}; let the shell write what is none: key="${name}"'])


def converted(composed: DictConfig, run_dir: Path, sweep_dir: Path, job_name: str) -> Composed:
    """The dataclasses of a composed configuration without Hydra's own part, every interpolation resolved.

    Raises ConfigError where a value still looks like one: whoever reads the YAML would resolve it again.
    """
    config, yaml = OmegaConf.to_object(_own(composed)), _own_yaml(composed)
    assert isinstance(config, RunConfig)
    if (at := yaml.find("${")) >= 0:
        line = yaml[yaml.rfind("\n", 0, at) + 1 :].split("\n")[0].strip()
        raise ConfigError([f"{line}: expected a value without '${{', which would be read as a reference"])
    return Composed(config, yaml, run_dir, sweep_dir, job_name)


def _own(composed: DictConfig) -> DictConfig:
    own = composed.copy()
    with open_dict(own):
        own.pop("hydra", None)
    return own


def _own_yaml(composed: DictConfig) -> str:
    return OmegaConf.to_yaml(_own(composed), resolve=True)


def _refuse_additions(override: Override, config_dir: str | None) -> None:
    text, key = override.input_line, override.key_or_group
    if not (override.is_add() or override.is_force_add() or override.is_delete()):
        return
    if key.split("/")[0].split(".")[0] == "hydra":
        return
    if key in _ADDED_GROUPS:  # where there is no such option, Hydra would add a key of that name
        if (problem := _unknown(override, str(override.value()), _options(key, config_dir))) is not None:
            raise ConfigError([problem])
        return
    if override.is_delete():
        raise ConfigError([f"{text}: no key can be deleted; give it another value instead"])
    raise ConfigError([f"{text}: a key that lezo does not know would have no effect; leave out the '+'"])


def _refuse_names(override: Override) -> None:
    """A group's choice is one of the files there, and its name is that file's."""
    group, _, key = override.key_or_group.partition(".")
    value = override.value()
    if group not in GROUPS:
        return
    if key == "name" or isinstance(value, dict) and "name" in value:
        text, options = override.input_line, _options(group, None)
        known = ", ".join(f"{group}={option}" for option in options)
        close = difflib.get_close_matches(str(value).lower(), options, n=1)
        likely = _asked([f"{group}={option}" for option in close])
        labels = "; log.group=NAME and log.tags=[NAME] label a run" if group == "log" else ""
        raise ConfigError(
            [f"{text}: a name is chosen with its settings; {likely}expected one of {known}{labels}"]
        )
    if not key and ".." in str(value).split("/"):
        raise ConfigError([f"{override.input_line}: expected an option of {group}, not a path to elsewhere"])


def _refuse_folders(composed: Composed) -> None:
    for key, path in (("hydra.run.dir", composed.run_dir), ("hydra.sweep.dir", composed.sweep_dir)):
        if path == Path() or not str(path).isprintable():
            raise ConfigError([f"{key}={path}: expected a folder of its own for the run's files"])
    model = composed.config.model
    for key, given in (("model.path", model.path), ("model.tokenizer", model.tokenizer)):
        if given is not None and Path(given).expanduser().resolve() == (composed.run_dir / "model").resolve():
            reason = "is where this run's own model would be; move it, or choose another hydra.run.dir"
            raise ConfigError([f"{key}={given}: {reason}"])


def _refuse_sweep(override: Override) -> None:
    if override.is_sweep_override():
        raise ConfigError([f"{override.input_line}: several values; add -m to run one job for each"])


def _diagnosis(
    overrides: Sequence[Override], extra: Sequence[str], config_dir: str | None, error: Exception
) -> str:
    """The first override that is at fault, in words; else what Hydra says."""
    if (own := _own_problem(error)) is not None:
        return own
    groups = [override for override in overrides if override.key_or_group in GROUPS]
    for override in groups:
        options = _options(override.key_or_group, config_dir)
        if (problem := _unknown(override, str(override.value()), options)) is not None:
            return problem
    if (problem := _file_problem(str(error), overrides, config_dir)) is not None:
        return problem
    lines = [*(group.input_line or "" for group in groups), *extra]
    try:
        base = hydra_compose("run", lines)
    except _COMPOSE_ERRORS:
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


def _options(group: str, config_dir: str | None) -> list[str]:
    folders = [CONF, *([Path(config_dir).expanduser()] if config_dir else [])]
    return sorted({file.stem for folder in folders for file in (folder / group).glob("*.yaml")})


def _unknown(override: Override, given: str, known: Sequence[str]) -> str | None:
    if given in known:
        return None
    suggestion = _asked(difflib.get_close_matches(given.lower(), known, n=1))
    listed = f"expected one of {', '.join(known)}" if known else "there is none (--config-dir DIR adds yours)"
    return f"{override.input_line}: unknown; {suggestion}{listed}"


_IN_FILE = re.compile(  # the file, what is wrong, with which key of which schema
    r"In '([^']+)': \w+ raised while composing config:\n(.*)\n\s*full_key: (\S*)(?:.*\n)*.*object_type=(\w+)"
)
_FIRST_LINE = "# @package _global_"


def _file_problem(said: str, overrides: Sequence[Override], config_dir: str | None) -> str | None:
    """What is wrong in a file of the user's own, with its name; None where Hydra does not speak of one."""
    if (missing := re.match(r"In '[^']+': Could not find '(.+?)/([^/']+)'", said)) is not None:
        recipe = next((o.input_line for o in overrides if o.key_or_group in _ADDED_GROUPS), None)
        group, option = missing.groups()
        known = _options(group, config_dir)
        close = _asked(difflib.get_close_matches(option.lower(), known, n=1))
        where = "" if recipe is None else f"{recipe}: "
        return f"{where}{group}={option}: unknown; {close}expected one of {', '.join(known) or 'none'}"
    if (found := _IN_FILE.search(said)) is not None:
        name, reason, key, schema = found.groups()
        file = _own_file(name, config_dir)
        if reason.startswith("Key "):
            return f"{file}: {_wrong_key(file, name.split('/')[0], key, schema)}"
        try:
            return f"{file}: {key}: expected {_expected(hydra_compose('run'), key)} ({reason})"
        except _COMPOSE_ERRORS:  # no key of a run's alone: a whole group, an entry of a list, Hydra's own
            return f"{file}: {f'{key}: ' if key else ''}{reason}"
    named = re.match(r"In '([^']+)': (.*)", said)
    return None if named is None else f"{_own_file(named[1], config_dir)}: {named[2].rstrip('.')}"


def _wrong_key(file: Path, group: str, key: str, schema: str) -> str:
    """A key that ``schema`` does not have: misspelt, or in a file without the line that makes its keys the run's."""
    base, last = hydra_compose("run"), key.split(".")[-1]
    inside = key == group if group in _ADDED_GROUPS else key == f"{group}.{last}" and last in base
    if inside and _FIRST_LINE not in file.read_text(encoding="utf-8", errors="replace"):
        return f"expected '{_FIRST_LINE}' as the first line, without which its keys are those of {group}"
    if (kind := getattr(schemas, schema, None)) is None:  # one of Hydra's
        return f"{key}: unknown key"
    path, names = key.removesuffix(last), [field.name for field in fields(kind) if field.name != "name"]
    close = [path + name for name in difflib.get_close_matches(last, names, n=1)]
    if schema == "RunConfig" and group != key:
        close = _likely(key, base)
    plain = group in ("optim", "peft") and schema in ("OptimConfig", "PeftConfig")
    if plain:
        return f"{key}: unknown key; expected defaults: [/schema/{group}/NAME@_here_, _self_], which gives it those of NAME"
    return f"{key}: unknown key; {_asked(close)}expected one of {', '.join(path + name for name in names)}"


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
    except _COMPOSE_ERRORS:
        return f"{override.input_line}: expected {_expected(base, key)}"
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
    close = _likely(given, base, value)
    suggestion = f"; did you mean {' or '.join(close)}?" if close else ";"
    if not isinstance(node, DictConfig):
        return f"{override.input_line}: unknown key; {'.'.join(path)} is a value and has no keys"
    keys = ", ".join(".".join([*path, str(key)]) for key in list(node.keys()) if key != "name")
    owner = f" of {path[0]}={base[path[0]].name}" if path and path[0] in ("optim", "peft") else ""
    return f"{override.input_line}: unknown key{suggestion} the keys{owner} are {keys or 'none'}"


def _likely(given: str, base: DictConfig, value: str | None = None) -> list[str]:
    """The keys and groups that a name may stand for: those that end in it, else the one most like it; with ``value``."""
    if given in _ADDED_GROUPS:
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


def _expected(base: DictConfig, key: str) -> str:
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
