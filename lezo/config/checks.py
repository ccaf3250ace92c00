"""Every rule about values: what is out of its range, and what does not go together. All problems at once."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from glob import has_magic
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lezo.config.methods import METHODS, NO_METHOD, Part, Schedule, ZerothOrderConfig
from lezo.config.schema import PEFT_SCHEMAS, Calibration, ConfigError, DataConfig, DType, Home, RunConfig
from lezo.config.task import TASK_SCHEMAS, ChatConfig, DemoSets, TaskConfig, kind_of, task_of
from lezo.tasks import TASKS, Task
from lezo.tasks.metrics import PERPLEXITY, metric_of
from lezo.tasks.registry import NAME, RegistryError
from lezo.tasks.task import TaskError

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def check(config: RunConfig, *, weights: bool = True) -> None:
    """Raise ConfigError with every value out of range and every pair of values that do not go together.

    ``weights`` False is for lezo-inspect, which neither loads nor trains a model.
    """
    _refuse_other_settings(config)
    problems = [*out_of_range(config), *_name_problems(config)]
    problems += [*_data_problems(config), *_model_problems(config), *_baseline_problems(config)]
    problems += [*_chat_problems(config), *_log_problems(config)]
    if weights:
        problems += _training_problems(config)
    if problems:
        raise ConfigError(problems)


def _refuse_other_settings(config: RunConfig) -> None:
    """Raise ConfigError for a group that refers to nothing or to another one, which the schema lets pass."""
    default = RunConfig()
    kinds = {one.name: type(getattr(default, one.name)) for one in fields(config)}
    groups = [name for name, kind in kinds.items() if is_dataclass(kind)]
    wrong = [name for name in groups if not isinstance(getattr(config, name), kinds[name])]
    if wrong:
        raise ConfigError([f"{name}: expected settings of its own, each by its key" for name in wrong])


def out_of_range(node: Any, path: str = "") -> Iterator[str]:
    """A line for each field of the dataclass ``node``, and of those in it, that is not in its range."""
    for one in fields(node):
        key, value, within = f"{path}{one.name}", getattr(node, one.name), one.metadata.get("range")
        if is_dataclass(value):
            yield from out_of_range(value, f"{key}.")
        elif within is not None and value is not None and not within.holds(value):
            yield f"{key}={value}: expected {within.expected}"


def _name_problems(config: RunConfig) -> Iterator[str]:
    """Names that a configuration of the user's own can say; the run folder is made of three of them."""
    known = {"data": ["hub", "local", "sample"]}
    for group, names in known.items():
        name = getattr(config, group).name
        if name not in names and not (group == "data" and name is None):  # which has words of its own
            yield f"{group}: name {name!r} is unknown; expected one of {', '.join(names)}"
    yield from _task_problems(config.task)
    if (problem := load_problem(METHODS, config.optim.name)) is not None:
        yield problem
    elif config.method is NO_METHOD:
        yield _not_of_its_settings("optim", config.optim.name, METHODS)
    if PEFT_SCHEMAS.get(config.peft.name) is not type(config.peft):
        yield _not_of_its_settings("peft", config.peft.name, PEFT_SCHEMAS)
    if not NAME.fullmatch(config.model.name):
        expected = "at most 100 letters, digits, dots, dashes and underscores, a letter or digit first"
        problem = f"model: name {config.model.name!r} would be part of the run folder's path"
        yield f"{problem}; expected {expected}"


def _log_problems(config: RunConfig) -> Iterator[str]:
    """What is told to nobody, or asks for a package that is not there."""
    log = config.log
    if log.artifact and not (log.wandb and config.save_model):
        yield "log.artifact=true: sends the model that a run saves to wandb; add log=wandb and save_model=true"
    if log.texts and not log.wandb:
        yield "log.texts=true: shows the words of test rows on wandb; add log=wandb, or read predictions.jsonl"
    if (
        log.tensorboard and getattr(find_spec("tensorboard"), "origin", None) is None
    ):  # a folder of that name is none
        yield "log.tensorboard=true: the package tensorboard is not installed; pip install 'lezo[tensorboard]'"


def _task_problems(task: TaskConfig) -> Iterator[str]:
    """A name that is none, or settings that describe no task."""
    if type(task) is TaskConfig:
        if task.name not in TASKS:
            known = ", ".join(sorted([*TASKS, *TASK_SCHEMAS]))
            yield f"task: name {task.name!r} is unknown; expected one of {known}"
        elif (problem := load_problem(TASKS, task.name)) is not None:
            yield problem
        elif (problem := _metric_problem(TASKS[task.name])) is not None:
            yield f"task={task.name}: {problem}"
        return
    if task.name in TASKS:
        yield f"task: name {task.name!r} is that of a task that lezo has; expected another one for settings of your own"
    elif not NAME.fullmatch(task.name):
        expected = "at most 100 letters, digits, dots, dashes and underscores, a letter or digit first"
        yield f"task: name {task.name!r} would be part of the run folder's path; expected {expected}"
    try:
        task_of(task)
    except TaskError as error:
        yield str(error)


def _metric_problem(task: Task) -> str | None:
    """Why a package's task cannot be judged; None where it can."""
    try:
        metric_of(task.metric, generates=task.generates)
        return None
    except TaskError as error:
        return str(error)


def _not_of_its_settings(group: str, name: str, known: Mapping[str, Any]) -> str:
    given = f"defaults: [/schema/{group}/<name>@_here_, _self_]"
    expected = f"expected one of {', '.join(known)}, with {given}"
    return f"{group}: name {name!r} is not that of its settings; {expected}"


def load_problem(registry: Mapping[str, Any], name: str) -> str | None:
    """Why what a package has registered by this name cannot be used; None where it can, or there is none."""
    try:
        _ = name in registry and registry[name]
        return None
    except RegistryError as error:
        return str(error)


def _data_problems(config: RunConfig) -> Iterator[str]:
    data = config.data
    if data.name is None:
        ways = "add data=local data.path=DIR, data=hub or data=sample"
        yield f"data: model={config.model.name} has no data of its own; {ways}"
    if data.name == "local" and data.path is None:
        yield "data=local: expected a file or folder; add data.path=FILE, or data.path=DIR (docs/data.md)"
    if data.path is not None and data.name == "hub":
        yield from _own_hub_problems(data.path, kind_of(config.task), config.task.name)
    elif data.path is not None and data.name != "local":
        yield f"data.path={data.path}: only data=local and data=hub read rows of one's own; add one of them"
    elif data.path is not None and not (path_is(Path.exists, data.path) or _is_pattern(data.path)):
        yield f"data.path={data.path}: no such file or folder"
    if data.revision is not None and data.name != "hub":
        yield f"data.revision={data.revision}: only data=hub has revisions"
    if data.config is not None and not (data.name == "hub" and data.path is not None):
        yield f"data.config={data.config}: names a part of a data set of data=hub data.path=OWNER/NAME"
    yield from _own_rows_problems(data)
    rows = _train_rows(config)
    if config.task.demos > max(rows, 0) and config.task.demo_sets is DemoSets.shared:
        yield f"task.demos={config.task.demos}: expected at most the {rows} train rows (task.num_train)"


def _own_hub_problems(path: str, task: Task | type[Task], name: str) -> Iterator[str]:
    """A task's own data set on the hub is pinned; of others `data.path` says which it is."""
    if task.hub is not None:
        way_out = "leave out data.path, or take data=local for another copy"
        yield f"data.path={path}: task={name} reads the published {task.hub.id} of data=hub; {way_out}"
    elif not HUB_ID.fullmatch(path):
        yield f"data.path={path}: expected the id of a data set on the hub, OWNER/NAME; data=local reads files"


def _own_rows_problems(data: DataConfig) -> Iterator[str]:
    """What is said of one's own rows where there are none."""
    usual = DataConfig()
    for name in ("columns", "splits", "test_share"):
        if data.path is None and (value := getattr(data, name)) != getattr(usual, name):
            yield f"data.{name}={value}: is about rows of one's own; add data=local data.path=FILE"


def _is_pattern(path: str) -> bool:
    return has_magic(path) and path.isprintable()


def _train_rows(config: RunConfig) -> int:
    """The most that are drawn."""
    usual = kind_of(config.task).num_train
    most = usual if config.task.num_train is None else config.task.num_train
    return sys.maxsize if most is None else most


def _baseline_problems(config: RunConfig) -> Iterator[str]:
    task, optim = config.task, config.optim
    own = task.demo_sets is DemoSets.each
    if own and config.needs_examples:
        takers = f"only methods that score without training take them, such as optim=none, not {optim.name}"
        yield f"task.demo_sets=each: each test example has demonstrations of its own; {takers}"
    if own and task.demos == 0:
        yield "task.demo_sets=each: expected task.demos of at least 1"
    if config.method.own_demos and not own:
        other = "optim=none task.demos=K shows every example the same K"
        yield f"optim={optim.name}: expected task.demo_sets=each ({other})"
    generates = kind_of(task).generates
    if config.eval.calibration is not Calibration.none and generates:
        reason = f"{task.name} generates its answers; only candidates are calibrated"
        yield f"eval.calibration={config.eval.calibration.name}: {reason}"
    if config.eval.calibration is Calibration.icl_sfc and task.demos == 0:
        yield "eval.calibration=icl_sfc: expected task.demos of at least 1 (sfc needs none)"
    if config.fits_head and config.task.num_train == 0:
        yield f"task.num_train=0: optim={optim.name} fits the head to at least 1 row of each answer"


def _chat_problems(config: RunConfig) -> Iterator[str]:
    """What conversations have no place for, and an objective that perplexity is none of."""
    task = config.task
    if kind_of(task).metric == PERPLEXITY and config.minimises_metric:
        reason = "1 - perplexity is no objective, and a lower loss is a lower perplexity"
        yield f"optim.objective=metric: {reason}; leave it out"
    if not isinstance(task, ChatConfig):
        return
    if task.demos:
        yield f"task.demos={task.demos}: a conversation has no demonstrations; put them into its turns, or task.system"
    if config.eval.calibration is not Calibration.none:
        yield f"eval.calibration={config.eval.calibration.name}: conversations have no candidates to calibrate; leave it out"
    if config.fits_head:
        yield f"optim={config.optim.name}: fits the head to one-word answers, and a conversation has none; expected another method"
    if task.system is not None and not task.system.strip():
        yield "task.system: is empty; expected a message, or leave it out"
    template = task.chat_template
    if template not in (None, "plain") and not path_is(Path.is_file, template):
        yield f"task.chat_template={template}: no such file; expected a file with a Jinja template, or plain"


def _model_problems(config: RunConfig) -> Iterator[str]:
    model = config.model
    if model.name == "tiny" and model.path is not None:
        yield f"model.path={model.path}: model=tiny is part of lezo; add model=hf to use a folder or a hub id"
    if model.name != "tiny" and model.path is None:
        yield f"model={model.name}: expected a folder or hub id; add model.path=DIR or model.path=OWNER/NAME"
    if model.devices is not None and model.device != "auto":
        yield f"model.device={model.device}: model.devices names the devices too; leave out one of them"
    if model.home_dir is not None and model.home is not Home.disk:
        yield f"model.home_dir={model.home_dir}: only model.home=disk has a file; add model.home=disk"
    if model.devices is not None and model.home is not Home.device:
        yield f"model.home={model.home.name}: blocks visit one device, and model.devices spreads them; leave out one of them"
    yield from _quantization_problems(config)
    for key, path in (("model.path", model.path), ("model.tokenizer", model.tokenizer)):
        if path is not None and (problem := _path_problem(path)) is not None:
            yield f"{key}={path}: {problem}"


def _quantization_problems(config: RunConfig) -> Iterator[str]:
    """What weights that are to be quantised, as they are read, do not go with."""
    if (wanted := config.model.quantization) not in ("8bit", "4bit"):
        return
    if config.model.random_weights:
        yield f"model.quantization={wanted}: random weights are made, not read; leave out model.random_weights"
    yield from (f"model.quantization={wanted}: {problem}" for problem in quantised_problems(config))


def quantised_problems(config: RunConfig) -> Iterator[str]:
    """What a base whose weights stay quantised does not go with: it is never written to, and stays where it is read."""
    model, peft = config.model, config.peft.name
    if config.needs_examples and peft not in ("lora", "prefix"):
        moved = "fits the head" if config.fits_head else "moves the weights themselves"
        yield f"peft={peft} {moved}, and quantised ones have no room for small steps; expected peft=lora or peft=prefix"
    for key, given in (("home", model.home is not Home.device), ("devices", model.devices is not None)):
        if given:
            yield f"quantised weights are on one device, as a whole; leave out model.{key}"
    if model.compile:
        yield "quantised layers are not compiled; leave out model.compile"


def _several_devices_problems(config: RunConfig) -> Iterator[str]:
    """What is done on one device alone."""
    if config.first_order:
        why = (
            f"{config.optim.name} goes back through gradients, and keeps them and its moments, on one device"
        )
        yield f"model.devices: {why}; leave it out, or take a zeroth-order method, such as optim=lezo"
    if config.model.compile:
        yield "model.devices: model.compile=true compiles blocks for one device; leave out one of them"


def _path_problem(path: str) -> str | None:
    """What is wrong with a model's path: a folder, a GGUF file or a hub id."""
    is_file = path_is(Path.is_file, path)
    if path.lower().endswith(".gguf"):
        return None if is_file or path_is(Path.is_dir, path) else "no such file"
    if is_file:
        return "a file; expected the folder it is in, or a .gguf file"
    return None if path_is(Path.is_dir, path) or HUB_ID.fullmatch(path) else "no such folder"


def path_is(kind: Callable[[Path], bool], path: str) -> bool:
    """Whether there is such a folder (``Path.is_dir``) or file (``Path.is_file``); ~ is somebody's home."""
    try:
        return path != "" and kind(Path(path).expanduser())
    except (OSError, RuntimeError):  # a name too long, a folder closed to us, a home of nobody
        return False


def _training_problems(config: RunConfig) -> Iterator[str]:
    if not config.trains:
        if config.peft.name != "none":
            yield f"peft={config.peft.name}: optim={config.optim.name} takes no step; leave out one of them"
        return
    if getattr(config.optim, "lr", None) is None:
        what = config.optim.name + ("" if config.peft.name == "none" else f" with peft={config.peft.name}")
        yield f"optim.lr: model={config.model.name}, or the recipe, has no default learning rate for {what}; add optim.lr=..."
    yield from _peft_problems(config)
    if config.model.devices is not None:
        yield from _several_devices_problems(config)
    for key, size in (("num_train", config.task.num_train), ("num_dev", config.task.num_dev)):
        if size == 0:
            yield f"task.{key}=0: training needs at least 1 (optim=none scores without training)"
    if 0 < config.task.demos == _train_rows(config):
        yield f"task.demos={config.task.demos}: leaves none of the {config.task.demos} train rows to train on"
    if config.first_order and config.model.dtype is DType.float16:
        reason = f"{config.optim.name} needs weights that small gradients can change"
        yield f"model.dtype=float16: {reason}; expected auto, float32 or bfloat16"
    yield from config.method.problems(config.optim)
    yield from _step_problems(config)


def _step_problems(config: RunConfig) -> Iterator[str]:
    """A schedule without steps of its own, and settings of every zeroth-order method that this one does not look at."""
    optim: Any = config.optim
    steps, compose = config.train.steps, config.method.compose
    if optim.schedule is not Schedule.constant and optim.warmup >= steps:
        yield f"optim.warmup={optim.warmup}: expected fewer than the {steps} steps of optim.schedule={optim.schedule.name}"
    elif compose is not None:
        usual = {one.name: one.default for one in fields(ZerothOrderConfig)}
        for name in ("schedule", "warmup", "clip", "probes"):
            without = replace(optim, **{name: usual[name]})
            if without != optim and compose(without, steps) == compose(optim, steps):
                yield f"optim.{name}={getattr(optim, name)}: {optim.name} makes nothing of it; leave it out"


def _peft_problems(config: RunConfig) -> Iterator[str]:
    """What the kind of training leaves no place for: nothing to skip, or nothing to compile."""
    name = config.peft.name
    if name == "head" and config.composition is not None and config.composition.blocks != Part("all"):
        yield "peft=head: leaves no decoder block anything to skip; expected a method that moves all blocks, such as optim=mezo"
    if (
        name == "prefix"
        and config.composition is not None
        and config.composition.direction.name == "rank-one"
    ):
        yield f"peft=prefix: has no matrix that {config.optim.name} could move; expected lora, none or another method such as optim=lezo"
    if config.first_order and config.model.home is not Home.device:
        reason = f"{config.optim.name} keeps gradients and moments of all blocks on the device"
        yield f"model.home={config.model.home.name}: {reason}; expected a zeroth-order one, or model.home=device"
    if not config.model.compile:
        return
    if config.model.home is not Home.device:
        yield f"model.compile=true: with model.home={config.model.home.name} blocks run as they are; leave out one of them"
    if config.first_order:
        yield f"model.compile=true: {config.optim.name} runs blocks as they are; expected a zeroth-order one"
    if config.minimises_metric:
        yield "model.compile=true: optim.objective=metric runs blocks as they are; leave out one of them"
    if name == "prefix":
        yield "model.compile=true: blocks read their prefix as they run; only peft=none and lora compile them"
