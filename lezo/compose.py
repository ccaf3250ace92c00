"""From the command line's overrides to a checked RunConfig, or to an error that says the way out.

Hydra composes; this module adds what its messages lack: suggestions, choices, and a refusal of keys that
``+`` would add silently. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
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

from lezo.config import (
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
from lezo.identity import job_name

_HERE = Path(__file__).resolve().parent
CONF = next(p for p in (_HERE / "conf", _HERE.parent / "conf") if (p / "run.yaml").is_file())
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
    parsed = parse(overrides)
    for override in parsed:
        _refuse_additions(override, config_dir)
    with hydra_on(config_dir) as extra:
        try:
            composed = hydra_compose("run", [*overrides, *extra], return_hydra_config=True)
        except _COMPOSE_ERRORS as error:
            raise ConfigError([_diagnosis(parsed, extra, config_dir, error)]) from None
        return {str(key): str(value) for key, value in (composed.hydra.sweeper.params or {}).items()}


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
            raise ConfigError([f"{text}: {expected}; lezo-run --help lists them"]) from None
        except UnicodeEncodeError:  # bytes of the command line that Python could not read
            raise ConfigError([f"{text}: expected UTF-8 text"]) from None
    return parsed


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
    if config_dir is not None and not is_folder(config_dir):
        raise ConfigError([f"--config-dir {config_dir}: no such folder"])
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
        raise ConfigError(
            [f"{override.input_line}: a choice has its settings with it; say {group}=... instead"]
        )
    if not key and ".." in str(value).split("/"):
        raise ConfigError([f"{override.input_line}: expected an option of {group}, not a path to elsewhere"])


def _refuse_folders(composed: Composed) -> None:
    for key, path in (("hydra.run.dir", composed.run_dir), ("hydra.sweep.dir", composed.sweep_dir)):
        if path == Path() or not str(path).isprintable():
            raise ConfigError([f"{key}={path}: expected a folder of its own for the run's files"])


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
    close = difflib.get_close_matches(given, known, n=1)
    suggestion = f"did you mean {close[0]}? " if close else ""
    listed = f"expected one of {', '.join(known)}" if known else "there is none (--config-dir DIR adds yours)"
    return f"{override.input_line}: unknown; {suggestion}{listed}"


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
    given, known = override.key_or_group, sorted(_leaves(base))
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.75)
    suggestion = f"; did you mean {close[0]}?" if close else ";"
    if not isinstance(node, DictConfig):
        return f"{override.input_line}: unknown key; {'.'.join(path)} is a value and has no keys"
    keys = ", ".join(".".join([*path, str(key)]) for key in list(node.keys()) if key != "name")
    owner = f" of {path[0]}={base[path[0]].name}" if path and path[0] in ("optim", "peft") else ""
    return f"{override.input_line}: unknown key{suggestion} the keys{owner} are {keys or 'none'}"


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
