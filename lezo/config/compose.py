"""From the command line's overrides to a checked RunConfig, or to an error that says the way out.

Hydra composes; this module refuses what Hydra would take silently; `diagnosis` says what Hydra refuses. No
torch.
"""

from __future__ import annotations

import difflib
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
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

from lezo.config.checks import check, load_problem, out_of_range, path_is
from lezo.config.diagnosis import (
    ADDED_GROUPS,
    COMPOSE_ERRORS,
    CONF,
    GROUPS,
    REGISTERED,
    diagnosed,
    did_you_mean,
    expected_value,
    likely_keys,
    options_of,
    unknown_choice,
)
from lezo.config.identity import job_name, run_name
from lezo.config.methods import METHODS, Method, ZerothOrderConfig
from lezo.config.schema import (
    PEFT_SCHEMAS,
    BoardConfig,
    ConfigError,
    DType,
    EvaluateConfig,
    QualifyConfig,
    ReplayConfig,
    ReportConfig,
    RunConfig,
)
from lezo.config.shorthands import refuse_both, resolve
from lezo.config.task import TASK_SCHEMAS
from lezo.tasks import TASKS

_Options = TypeVar("_Options", ReplayConfig, EvaluateConfig, ReportConfig, BoardConfig, QualifyConfig)
HYDRA_LITERALS = ("null", "true", "false", "nan", "inf")
_PROMPTS = (
    "task.template",
    "task.blank_prompt",
)  # texts that need no quotes of Hydra's, full of braces as they are
_JOB = "${lezo_job:}"  # hydra.sweep.subdir, where nobody gives another


@dataclass(frozen=True)
class Composed:
    """A checked configuration as objects and as YAML, with the folders a run or a sweep writes to.

    As a job of a sweep it would write to ``job_name`` in ``sweep_dir``. ``given``: the keys that the command gave itself.
    """

    config: RunConfig
    yaml: str
    run_dir: Path
    sweep_dir: Path
    job_name: str
    given: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What people call the run: its own name, or a readable one."""
        return self.config.log.name or run_name(self.yaml, self.given, trains=self.config.trains)


def compose(overrides: Sequence[str], *, config_dir: str | None = None, weights: bool = True) -> Composed:
    """Compose, convert and check. Raises ConfigError with the problems found.

    Override errors are reported one at a time, values out of range and bad combinations all at once.
    """
    composed = unchecked(overrides, config_dir=config_dir)
    check(composed.config, weights=weights)
    _refuse_folders(composed)
    return composed


def unchecked(overrides: Sequence[str], *, config_dir: str | None = None) -> Composed:
    """The same but for values out of range and bad combinations, which are left to `check`."""
    parsed = parse(overrides)
    described = any(f"task={name}" in overrides for name in TASK_SCHEMAS)
    for override in parsed:
        if override.is_sweep_override():
            raise ConfigError([f"{override.input_line}: several values; add -m to run one job for each"])
        _refuse_names(override, named=described)
    with _composition(parsed, config_dir) as tree:
        refuse_both(tree, {override.key_or_group for override in parsed})
        hydra = tree.hydra
        dirs = Path(hydra.run.dir), Path(hydra.sweep.dir)
        given = tuple(override.key_or_group for override in parsed)
        return converted(tree, *dirs, _job_folder(hydra.sweep), given)


def swept_values(overrides: Sequence[str], config_dir: str | None) -> dict[str, str]:
    """What the configuration itself sweeps over (hydra.sweeper.params). Raises ConfigError."""
    with _composition(parse(overrides), config_dir) as tree:
        return {str(key): str(value) for key, value in (tree.hydra.sweeper.params or {}).items()}


@contextmanager
def _composition(overrides: Sequence[Override], config_dir: str | None) -> Iterator[DictConfig]:
    """What Hydra composes; its errors, also those of values resolved meanwhile, become a ConfigError."""
    refuse_missing(config_dir)
    for override in overrides:
        _refuse_additions(override, config_dir)
    with hydra_on(config_dir) as extra:
        words = [*(override.input_line or "" for override in overrides), *extra]
        try:
            yield hydra_compose("run", words, return_hydra_config=True)
        except COMPOSE_ERRORS as error:
            raise ConfigError([diagnosed(overrides, config_dir, error)]) from None


def with_sizes(composed: Composed, sizes: Mapping[str, int]) -> Composed:
    """The same with some of task.* given, by their dotted keys."""
    return _with(composed, sizes)


def with_names(composed: Composed, names: Mapping[str, str]) -> Composed:
    """The same with log.name and log.notes of ``names`` where nothing else gives them."""
    free = {f"log.{key}": name for key, name in names.items() if getattr(composed.config.log, key) is None}
    return _with(composed, {key: name for key, name in free.items() if key not in composed.given})


def with_dtype(composed: Composed, run: tuple[DType, DType] | None) -> Composed:
    """The same going on with a ``run`` of a given dtype and that of its weights, where it or the run leaves the dtype open.

    The configuration goes on saying what the run's said, as its hash is part of the run.
    """
    asked = composed.config.model.dtype
    if run is None or DType.auto not in (asked, run[0]):
        return composed
    said = _with(composed, {"model.dtype": run[0].name})
    said.config.model.dtype = run[1] if asked is DType.auto else asked
    return said


def _with(composed: Composed, values: Mapping[str, Any]) -> Composed:
    """The same with these values of a group's own settings, by their dotted keys."""
    if not values:
        return composed
    tree, config = OmegaConf.create(composed.yaml), deepcopy(composed.config)
    for key, value in values.items():
        group, name = key.split(".")
        OmegaConf.update(tree, key, value)
        setattr(getattr(config, group), name, value)
    return replace(composed, config=config, yaml=OmegaConf.to_yaml(tree))


def refuse_missing(config_dir: str | None) -> None:
    """Raise ConfigError where the folder of the user's own configuration is not there."""
    if config_dir is not None and not path_is(Path.is_dir, config_dir):
        raise ConfigError([f"--config-dir {config_dir}: no such folder"])


def parse(overrides: Sequence[str]) -> list[Override]:
    """Each override by Hydra's grammar. Raises ConfigError with the first that is not one."""
    parser = OverridesParser.create()
    return [_parsed(parser, as_field(text)) for text in overrides]


def as_field(text: str) -> str:
    """``task.class``, which no dataclass can have as a field, by the name of that field; notes as one text, commas and all."""
    key, _, value = text.partition("=")
    if key == "log.notes" and value and value[0] not in "'\"" and value != "null":
        return f"{key}={quoted(value)}"
    return re.sub(r"^task\.class=", "task.python=", text)


def _parsed(parser: OverridesParser, text: str) -> Override:
    try:
        text.encode()
        return parser.parse_override(text)
    except UnicodeEncodeError:  # bytes of the command line that Python could not read
        encoding = sys.getfilesystemencoding()
        way_out = f", and Python reads {encoding}; say LC_ALL=C.UTF-8 before the command"
        raise ConfigError([f"{text}: expected UTF-8 text{'' if encoding == 'utf-8' else way_out}"]) from None
    except (HydraException, RecursionError):
        key, _, value = text.partition("=")
        if key in _PROMPTS and value[:1] not in ("", "'", '"'):
            return parser.parse_override(f"{key}={quoted(value)}")
        expected = "expected key=value or group=option (quote values that hold spaces or ,:[]{}())"
        likely = did_you_mean(_likely_options(text))
        raise ConfigError([f"{text}: {likely}{expected}; lezo-run --help lists them"]) from None


def _likely_options(word: str) -> list[str]:
    """What a bare word, or one with a colon, may be meant for: an option of one of the groups."""
    group, _, option = word.partition(":")
    if option and group in GROUPS:
        return [f"{group}={option.strip()}"]
    return [f"{group}={word.lower()}" for group in GROUPS if word.lower() in options_of(group, None)]


def suggestions(given: str, value: str | None = None) -> list[str]:
    """What a flag may be meant for: train.steps=10 for --steps 10."""
    with hydra_on(None):
        return likely_keys(given.replace("-", "_"), hydra_compose("run"), value)


def command_options(schema: type[_Options], overrides: Sequence[str], name: str | None = None) -> _Options:
    """A command's options, as replay.* of `ReplayConfig`, or by another ``name``. Raises ConfigError with the first that is none."""
    name = name or schema.__name__.removesuffix("Config").lower()
    options = OmegaConf.structured(schema)
    for override in parse(overrides):
        key, text = override.key_or_group.removeprefix(f"{name}."), override.input_line
        if key not in options or override.is_sweep_override():
            known = ", ".join(f"{name}.{key}" for key in options)
            raise ConfigError([f"{text}: unknown option; expected one value for one of {known}"])
        try:
            options[key] = override.value()
        except OmegaConfBaseException:
            raise ConfigError([f"{text}: expected {expected_value(options, key)}"]) from None
    result = OmegaConf.to_object(options)
    assert isinstance(result, schema)
    problems = list(out_of_range(result, f"{name}."))
    if problems:
        raise ConfigError(problems)
    return result


def quoted(value: str) -> str:
    r"""A text in Hydra's override grammar, whatever characters it has.

    In quotes a backslash means itself, except before a quote or ``${``: "a\b" is 'a\b', "it's" is 'it\'s'.
    """
    if re.fullmatch(r"(\.{0,2}/)?[a-zA-Z_][\w./-]*", value, re.ASCII) and value.lower() not in HYDRA_LITERALS:
        return value
    escaped = re.sub(r"(\\*)('|\$\{|\Z)", lambda m: m[1] * 2 + ("\\" + m[2] if m[2] else ""), value)
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


def _rates(rates: Mapping[str, float], *, _root_: DictConfig) -> float | None:
    """Of a recipe that knows a rate for each of its methods, the chosen one's; None of others."""
    return rates.get(_root_.optim.name)


def _times(value: float | None, factor: float) -> float | None:
    """A default as a multiple of another, without the last digits of binary products."""
    return None if value is None else float(f"{value * factor:.12g}")


def _installed() -> str:
    """For the help: what other packages have registered, a line; nothing where there are none."""
    options = [f"{group}={name}" for group, names in REGISTERED.items() for name in names.installed()]
    return f"\n  of installed packages: {' '.join(options)}" if options else ""


def register_schema() -> None:
    """Make known to Hydra what the files of conf/ name: typed schemas, and how jobs and folders are named."""
    for name, resolver in (
        ("job", _job),
        ("method", _method),
        ("installed", _installed),
        ("times", _times),
        ("rates", _rates),
    ):
        OmegaConf.register_new_resolver(f"lezo_{name}", resolver, replace=True)
    methods = tuple(method for name in METHODS if (method := METHODS.get(name)) is not None)
    store_options(methods, tuple(METHODS.installed()), tuple(TASKS.installed()))


@cache
def store_options(methods: tuple[Method, ...], installed: tuple[str, ...], tasks: tuple[str, ...]) -> None:
    """Once for the same registered methods and tasks: Hydra keeps what is stored."""
    store = ConfigStore.instance()
    store.store(name="lezo_schema", node=RunConfig)
    for name, kind in PEFT_SCHEMAS.items():
        store.store(group="schema/peft", name=name, node=kind)
    for name, schema in TASK_SCHEMAS.items():
        store.store(group="schema/task", name=name, node=schema)
    for method in methods:
        store.store(group="schema/optim", name=method.name, node=method.schema)
        if method.name in installed:  # files of conf/ and of --config-dir come before these
            store.store(group="optim", name=method.name, node=_defaults(method))
    for name in tasks:
        store.store(group="task", name=name, node={"name": name})


def _defaults(method: Method) -> DictConfig:
    """As conf/optim/<name>.yaml: the schema's defaults, but learning rate and eps are those of the model."""
    node = OmegaConf.structured(method.schema(name=method.name))
    if method.trains and node.lr is None:
        node.lr = f"${{peft.lr.{method.rate}}}"
    if method.zeroth_order and node.eps == ZerothOrderConfig.eps:
        node.eps = "${peft.eps}"
    assert isinstance(node, DictConfig)
    return node


@contextmanager
def hydra_on(config_dir: str | None) -> Iterator[list[str]]:
    """Hydra initialised on our conf/; yields the overrides that ``--config-dir`` amounts to."""
    register_schema()
    # No interpolation reads the environment: what it holds may be secret, and a run writes its settings.
    OmegaConf.register_new_resolver("oc.env", _refused_variable, replace=True)
    try:
        with initialize_config_dir(str(CONF), job_name="lezo-run", version_base="1.3"):
            folder = None if config_dir is None else Path(config_dir).expanduser().resolve()
            yield [] if folder is None else [f"hydra.searchpath=[{quoted(f'file://{folder}')}]"]
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _refused_variable(name: str, *_: Any) -> str:
    where = f"${{oc.env:{name}}}"
    reason = "the run's files would hold an environment variable's value, which may be secret"
    raise ConfigError([f'{where}: {reason}; let the shell write what is none: key="${name}"'])


def converted(
    composed: DictConfig, run_dir: Path, sweep_dir: Path, name: str | None, given: Sequence[str]
) -> Composed:
    """The dataclasses of a composed configuration without Hydra's own part, every shorthand and interpolation resolved.

    ``name``: of the job's folder, None where it is by what the job is; ``given``: the keys that the command gave itself.
    Raises ConfigError where a value still looks like an interpolation: whoever reads the YAML would resolve it again.
    """
    with open_dict(composed):
        composed.pop("hydra", None)
    resolve(composed)
    config, yaml = OmegaConf.to_object(composed), OmegaConf.to_yaml(composed, resolve=True)
    assert isinstance(config, RunConfig)
    if (at := yaml.find("${")) >= 0:
        line = yaml[yaml.rfind("\n", 0, at) + 1 :].split("\n")[0].strip()
        raise ConfigError([f"{line}: expected a value without '${{', which would be read as a reference"])
    _refuse_option_as_name(config)
    job = job_name(yaml) if name is None else name
    return Composed(config, yaml, run_dir, sweep_dir, job, tuple(given))


def _refuse_option_as_name(config: RunConfig) -> None:
    """log.name was once what log= chose: a file of the user's own may say so still."""
    if (name := config.log.name) in (options := options_of("log", None)):
        ways = ", ".join(f"log={option}" for option in options)
        said = "log.wandb=true and log.tensorboard=true in a file of your own"
        raise ConfigError([f"log.name={name}: names the run; {ways} choose who is told of it, {said}"])


def _job_folder(sweep: DictConfig) -> str | None:
    """hydra.sweep.subdir; None where it asks for `_job`, which the finished configuration says for less."""
    own = OmegaConf.to_container(sweep, resolve=False)
    return None if isinstance(own, dict) and own["subdir"] == _JOB else str(sweep.subdir)


def _job(*, _root_: DictConfig) -> str:
    """What hydra.sweep.subdir asks for while the configuration is still being read: hence a copy."""
    own = OmegaConf.masked_copy(deepcopy(_root_), [str(key) for key in _root_ if key != "hydra"])
    resolve(own)
    return job_name(OmegaConf.to_yaml(own, resolve=True))


def _refuse_additions(override: Override, config_dir: str | None) -> None:
    """Hydra adds any key behind a ``+``, to no effect; lezo adds only recipes, and what is Hydra's own."""
    text, key = override.input_line, override.key_or_group
    added = override.is_add() or override.is_force_add()
    if re.split("[/.]", key)[0] == "hydra":
        return
    if override.is_delete():
        raise ConfigError([f"{text}: no key can be deleted; give it another value instead"])
    if key in ADDED_GROUPS and not added:
        raise ConfigError([f"{text}: did you mean +{text}? a recipe is added to what the groups choose"])
    if key in ADDED_GROUPS and (problem := unknown_choice(override, config_dir)) is not None:
        raise ConfigError([problem])
    if key not in ADDED_GROUPS and added:
        raise ConfigError([f"{text}: a key that lezo does not know would have no effect; leave out the '+'"])


def _refuse_names(override: Override, *, named: bool) -> None:
    """A group's choice is one of the files there, and its name is that file's; ``named``: but for the task, which settings describe."""
    text, value = override.input_line, override.value()
    group, _, key = override.key_or_group.partition(".")
    if group not in GROUPS or key and group == "log":
        return
    if not key and group in REGISTERED and (problem := load_problem(REGISTERED[group], str(value))):
        raise ConfigError([f"{text}: {problem}"])
    if not key and ".." in str(value).split("/"):
        raise ConfigError([f"{text}: expected an option of {group}, not a path to elsewhere"])
    if named and override.key_or_group == "task.name":
        return
    if key == "name" or isinstance(value, dict) and "name" in value:
        options = options_of(group, None)
        close = difflib.get_close_matches(str(value).lower(), options, n=1)
        likely = did_you_mean([f"{group}={option}" for option in close])
        known = ", ".join(f"{group}={option}" for option in options)
        reason = "a name is chosen with its settings"
        raise ConfigError([f"{text}: {reason}; {likely}expected one of {known}"])


def _refuse_folders(composed: Composed) -> None:
    for key, path in (("hydra.run.dir", composed.run_dir), ("hydra.sweep.dir", composed.sweep_dir)):
        if path == Path() or not str(path).isprintable():
            raise ConfigError([f"{key}={path}: expected a folder of its own for the run's files"])
    model = composed.config.model
    for key, given in (("model.path", model.path), ("model.tokenizer", model.tokenizer)):
        if given is not None and Path(given).expanduser().resolve() == (composed.run_dir / "model").resolve():
            reason = "is where this run's own model would be; move it, or choose another hydra.run.dir"
            raise ConfigError([f"{key}={given}: {reason}"])
