"""What can be configured: the typed schema, and every rule about values. No torch.

The YAML files in conf/ hold the values; a run receives one RunConfig.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from lezo.tasks import TASKS, Task

_LONGEST = 1200  # characters of a problem that are shown


class ConfigError(ValueError):
    """A configuration that cannot run; the message lists every problem found, a line each."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = [_one_line(problem) for problem in problems]
        super().__init__("\n".join(self.problems))


def _one_line(text: str) -> str:
    """The text without anything that moves a terminal's cursor; of a very long one both ends."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    half = _LONGEST // 2
    return shown if len(shown) <= _LONGEST else f"{shown[:half]} ... {shown[-half:]}"


class DType(Enum):
    auto = "auto"
    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"


class Schedule(Enum):
    constant = "constant"
    linear = "linear"


class Rounding(Enum):
    nearest = "nearest"
    stochastic = "stochastic"


class DemoSets(Enum):
    """Whose demonstrations: the same in every prompt, or each test example's own, as ICL is published."""

    shared = "shared"
    each = "each"


class Calibration(Enum):
    """What is taken off a candidate's log-probability: nothing, or that after a prompt without content.

    ``icl_sfc`` leaves the demonstrations in that prompt, ``sfc`` does not.
    """

    none = "none"
    sfc = "sfc"
    icl_sfc = "icl_sfc"


class Objective(Enum):
    """What a zeroth-order optimizer minimises: the task's loss, or one minus its metric."""

    loss = "loss"
    metric = "metric"


class Resume(Enum):
    off = "off"
    auto = "auto"


class WandbMode(Enum):
    auto = "auto"
    online = "online"
    offline = "offline"


class BenchVariant(Enum):
    """What lezo-bench times."""

    floor = "floor"
    textbook_mezo = "textbook_mezo"
    textbook_lezo = "textbook_lezo"
    mezo = "mezo"
    lezo = "lezo"


@dataclass
class TaskConfig:
    """``num_train``, ``num_dev`` None: as published, and of small data of one's own what the rows allow (`lezo.data.sampling`)."""

    name: str = MISSING
    num_train: int | None = None
    num_dev: int | None = None
    num_test: int | None = 1000
    data_seed: int = 0
    demos: int = 0
    demo_sets: DemoSets = DemoSets.shared


@dataclass
class LearningRates:
    """The learning rate each kind of optimizer takes by default on a model."""

    zo: float | None = None
    fo_sgd: float | None = None
    fo_adamw: float | None = None


@dataclass
class OptShape:
    """The published shape of an OPT, for random weights without a download."""

    hidden_size: int = MISSING
    ffn_dim: int = MISSING
    num_hidden_layers: int = MISSING
    num_attention_heads: int = MISSING
    word_embed_proj_dim: int = MISSING
    do_layer_norm_before: bool = MISSING


@dataclass
class PeftConfig:
    """What is trained: peft=none all weights, peft=head an untied copy of the head alone.

    ``lr`` and ``eps`` are what the optimizers take by default.
    """

    name: str = MISSING
    eps: float = 1e-3
    lr: LearningRates = field(default_factory=LearningRates)


@dataclass
class LoraConfig(PeftConfig):
    """peft=lora. ``targets``: linear layers by the last parts of their names."""

    rank: int = 8
    alpha: int = 16
    targets: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])


@dataclass
class PrefixConfig(PeftConfig):
    """peft=prefix. ``tokens``: trained keys and values before the text in each block."""

    tokens: int = 5


@dataclass
class ModelConfig:
    name: str = MISSING
    path: str | None = None
    revision: str | None = None
    tokenizer: str | None = None
    dtype: DType = DType.auto
    device: str = "auto"
    bos: int | None = None
    random_weights: bool = False
    compile: bool = False
    lr: LearningRates = field(default_factory=LearningRates)
    lora_lr: LearningRates = field(default_factory=LearningRates)
    prefix_lr: LearningRates = field(default_factory=LearningRates)
    head_lr: LearningRates = field(default_factory=LearningRates)
    shape: OptShape | None = None


@dataclass
class OptimConfig:
    """optim=none, icl and lp: nothing to set."""

    name: str = MISSING


@dataclass
class FirstOrderConfig(OptimConfig):
    """optim=fo-sgd and fo-adamw. ``dropout`` None keeps the model's own."""

    lr: float | None = None
    weight_decay: float = 0.0
    momentum: float = 0.0
    schedule: Schedule = Schedule.constant
    clip_norm: float | None = None
    dropout: float | None = None


@dataclass
class MezoConfig(OptimConfig):
    """optim=mezo. ``rounding``: how an update of 16-bit weights is rounded (fp32 weights know no difference)."""

    lr: float | None = None
    eps: float = 1e-3
    weight_decay: float = 0.0
    rounding: Rounding = Rounding.nearest
    objective: Objective = Objective.loss


@dataclass
class LezoConfig(MezoConfig):
    """optim=lezo."""

    sparsity: float = 0.75


@dataclass
class DataConfig:
    name: str | None = None
    path: str | None = None
    revision: str | None = None


@dataclass
class LogConfig:
    name: str = MISSING
    project: str | None = None  # None: WANDB_PROJECT, else lezo
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    mode: WandbMode = WandbMode.auto


@dataclass
class TrainConfig:
    steps: int = 20000
    batch_size: int = 16
    micro_batch_size: int | None = None
    eval_every: int = 4000
    max_seconds: float | None = None
    max_bad_steps: int = 10
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2


@dataclass
class EvalConfig:
    batch_size: int = 32
    calibration: Calibration = Calibration.none


@dataclass
class SweepConfig:
    """For lezo-run -m: jobs at a time; None is one for each visible GPU, or one."""

    slots: int | None = None


@dataclass
class InspectConfig:
    """For lezo-inspect: how many examples of each split, and whether as JSON lines."""

    n: int = 3
    json: bool = False


@dataclass
class BenchConfig:
    """For lezo-bench: timed steps a variant; ``textbook_repeats`` None is 1 for slow steps, else ``repeats``.

    ``variant`` makes the command one of its own children, which measures that variant's memory.
    """

    repeats: int = 5
    textbook_repeats: int | None = None
    profile: bool = False
    variant: BenchVariant | None = None


@dataclass
class RunConfig:
    seed: int = 0
    dry_run: bool = False
    resume: Resume = Resume.off
    save_model: bool = False
    task: TaskConfig = field(default_factory=TaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    peft: PeftConfig = field(default_factory=PeftConfig)
    log: LogConfig = field(default_factory=LogConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    inspect: InspectConfig = field(default_factory=InspectConfig)
    bench: BenchConfig = field(default_factory=BenchConfig)

    @property
    def trains(self) -> bool:
        """Whether the run takes steps of an optimizer."""
        return type(self.optim) is not OptimConfig

    @property
    def learns(self) -> bool:
        """Whether the run needs training examples."""
        return self.trains or self.fits_head

    @property
    def fits_head(self) -> bool:
        """Whether the head's rows of the answers are fitted at once (linear probing)."""
        return self.optim.name == "lp"

    @property
    def judged(self) -> bool:
        """Whether the metric itself is what the optimizer looks at."""
        return getattr(self.optim, "objective", None) is Objective.metric

    @property
    def first_order(self) -> bool:
        """Whether the optimizer needs gradients."""
        return isinstance(self.optim, FirstOrderConfig)


@dataclass
class ReplayConfig:
    """For lezo-replay. ``step`` None is the best one, ``out`` None the run folder's model/.

    ``base``: folder or hub id of the base model where it is not where the run found it.
    """

    step: int | None = None
    out: str | None = None
    verify: bool = False
    base: str | None = None
    device: str = "auto"


@dataclass
class ReportConfig:
    """For lezo-report. ``target_loss``, ``target_score`` (0..1): what "to target" means, where it is not what all reached."""

    out: str = "."
    watch: bool = False
    every: int = 5
    target_loss: float | None = None
    target_score: float | None = None


@dataclass
class BoardConfig:
    """For lezo-dashboard: the workspace's name and place on wandb; ``entity`` None is the account's own."""

    entity: str | None = None
    project: str | None = None
    name: str = "lezo"
    dry_run: bool = False


OPTIM_SCHEMAS: dict[str, type[OptimConfig]] = {
    "none": OptimConfig,
    "icl": OptimConfig,
    "lp": OptimConfig,
    "fo-sgd": FirstOrderConfig,
    "fo-adamw": FirstOrderConfig,
    "mezo": MezoConfig,
    "lezo": LezoConfig,
}

PEFT_SCHEMAS: dict[str, type[PeftConfig]] = {
    "none": PeftConfig,
    "lora": LoraConfig,
    "prefix": PrefixConfig,
    "head": PeftConfig,
}

_Check = Callable[[Any], bool]
_POSITIVE: tuple[_Check, str] = (lambda v: v > 0 and math.isfinite(v), "a number above 0")
_NOT_NEGATIVE: tuple[_Check, str] = (lambda v: v >= 0 and math.isfinite(v), "a number of at least 0")
_FRACTION: tuple[_Check, str] = (lambda v: 0 <= v < 1, "a number from 0 to below 1")
_MOST = 10**9  # of anything that is counted: more is a slip, and a journal's step has 32 bits
_COUNT: tuple[_Check, str] = (lambda v: 1 <= v <= _MOST, f"a whole number from 1 to {_MOST}")
_COUNT_OR_0: tuple[_Check, str] = (lambda v: 0 <= v <= _MOST, f"a whole number from 0 to {_MOST}")
_SEED: tuple[_Check, str] = (lambda v: 0 <= v < 2**32, "a whole number from 0 to 4294967295")
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
_NAME = re.compile(r"[^\W_][\w.-]{0,99}")

_RANGES: dict[str, tuple[_Check, str]] = {
    "seed": _SEED,
    "task.data_seed": _SEED,
    "task.num_train": _COUNT_OR_0,
    "task.num_dev": _COUNT_OR_0,
    "task.num_test": _COUNT,
    "task.demos": _COUNT_OR_0,
    "model.device": (lambda v: bool(_DEVICE.fullmatch(v)), "auto, cpu, cuda or cuda:N"),
    "model.bos": _COUNT_OR_0,
    "optim.lr": _POSITIVE,
    "optim.eps": _POSITIVE,
    "optim.weight_decay": _NOT_NEGATIVE,
    "optim.momentum": _FRACTION,
    "optim.clip_norm": _POSITIVE,
    "optim.dropout": _FRACTION,
    "optim.sparsity": (
        lambda v: 0 <= v <= 1,
        "a number from 0 to 1, the fraction of decoder blocks skipped each step",
    ),
    "peft.rank": _COUNT,
    "peft.alpha": _COUNT,
    "peft.tokens": _COUNT,
    "peft.targets": (lambda names: names and all(isinstance(name, str) for name in names), "a list of names"),
    "train.steps": (_COUNT[0], f"{_COUNT[1]} (optim=none scores without training)"),
    "train.batch_size": _COUNT,
    "train.micro_batch_size": _COUNT,
    "train.eval_every": _COUNT,
    "train.max_seconds": _POSITIVE,
    "train.max_bad_steps": _COUNT,
    "train.checkpoint_every": _COUNT,
    "train.keep_checkpoints": _COUNT,
    "sweep.slots": _COUNT,
    "log.tags": (lambda tags: all(isinstance(tag, str) for tag in tags), "a list of texts"),
    "eval.batch_size": _COUNT,
    "inspect.n": _COUNT,
    "bench.repeats": _COUNT,
    "bench.textbook_repeats": _COUNT,
}


def check(config: RunConfig, *, weights: bool = True) -> None:
    """Raise ConfigError with every value out of range and every pair of values that do not go together.

    ``weights`` False is for lezo-inspect, which neither loads nor trains a model.
    """
    problems = [*_out_of_range(config), *_name_problems(config)]
    problems += [*_data_problems(config), *_model_problems(config), *_baseline_problems(config)]
    if weights:
        problems += _training_problems(config)
    if problems:
        raise ConfigError(problems)


def _out_of_range(config: RunConfig) -> Iterator[str]:
    for key, (holds, expected) in _RANGES.items():
        value: Any = config
        for name in key.split("."):
            value = getattr(value, name, None)
        if value is not None and not holds(value):
            yield f"{key}={value}: expected {expected}"


def _name_problems(config: RunConfig) -> Iterator[str]:
    """Names that a configuration of the user's own can say; the run folder is made of three of them."""
    known = {"task": sorted(TASKS), "data": ["hub", "local", "sample"], "log": ["files", "wandb"]}
    for group, names in known.items():
        name = getattr(config, group).name
        if name not in names and not (group == "data" and name is None):  # which has words of its own
            yield f"{group}: name {name!r} is unknown; expected one of {', '.join(names)}"
    optim = config.optim
    if OPTIM_SCHEMAS.get(optim.name) is not type(optim):
        yield (
            f"optim: name {optim.name!r} is not that of its settings; expected one of {', '.join(OPTIM_SCHEMAS)}, "
            "with defaults: [/schema/optim/<name>@_here_, _self_]"
        )
    peft = config.peft
    if PEFT_SCHEMAS.get(peft.name) is not type(peft):
        yield (
            f"peft: name {peft.name!r} is not that of its settings; expected one of {', '.join(PEFT_SCHEMAS)}, with "
            "defaults: [/schema/peft/<name>@_here_, _self_]"
        )
    if not _NAME.fullmatch(config.model.name):
        yield (
            f"model: name {config.model.name!r} would be part of the run folder's path; expected at most 100 letters, "
            "digits, dots, dashes and underscores, a letter or digit first"
        )


def _data_problems(config: RunConfig) -> Iterator[str]:
    data = config.data
    if data.name is None:
        yield f"data: model={config.model.name} has no data of its own; add data=local data.path=DIR, data=hub or data=sample"
    if data.name == "local" and data.path is None:
        yield "data=local: expected a folder; add data.path=DIR, which holds <task>/train.jsonl and val.jsonl"
    if data.path is not None and data.name != "local":
        yield f"data.path={data.path}: only data=local reads a folder; add data=local"
    if data.path is not None and not is_folder(data.path):
        yield f"data.path={data.path}: no such folder"
    if data.revision is not None and data.name != "hub":
        yield f"data.revision={data.revision}: only data=hub has revisions"
    rows = _train_rows(config)
    if config.task.demos > max(rows, 0) and config.task.demo_sets is DemoSets.shared:
        yield f"task.demos={config.task.demos}: demonstrations come from the {rows} train rows (task.num_train)"


def _train_rows(config: RunConfig) -> int:
    """The most that are drawn."""
    usual = TASKS.get(config.task.name, Task).num_train
    return usual if config.task.num_train is None else config.task.num_train


def _baseline_problems(config: RunConfig) -> Iterator[str]:
    task, optim = config.task, config.optim
    own = task.demo_sets is DemoSets.each
    if own and config.learns:
        yield f"task.demo_sets=each: each test example has demonstrations of its own; only optim=none and icl take them, not {optim.name}"
    if own and task.demos == 0:
        yield "task.demo_sets=each: expected task.demos of at least 1"
    if optim.name == "icl" and not own:
        yield "optim=icl: expected task.demo_sets=each (optim=none task.demos=K shows every example the same K)"
    generates = task.name in TASKS and TASKS[task.name].generates
    if config.eval.calibration is not Calibration.none and generates:
        yield f"eval.calibration={config.eval.calibration.name}: {task.name} generates its answers; only candidates are calibrated"
    if config.eval.calibration is Calibration.icl_sfc and task.demos == 0:
        yield "eval.calibration=icl_sfc: expected task.demos of at least 1 (sfc needs none)"
    if config.fits_head and config.task.num_train == 0:
        yield "task.num_train=0: optim=lp fits the head to at least 1 row of each answer"


def _model_problems(config: RunConfig) -> Iterator[str]:
    model = config.model
    if model.name == "tiny" and model.path is not None:
        yield f"model.path={model.path}: model=tiny is part of lezo; add model=hf to use a folder or a hub id"
    if model.name != "tiny" and model.path is None:
        yield f"model={model.name}: expected a folder or a hub id; add model.path=DIR or model.path=OWNER/NAME"
    for key, path in (("model.path", model.path), ("model.tokenizer", model.tokenizer)):
        if path is None or is_folder(path):
            continue
        if path.lower().endswith(".gguf"):
            if not is_file(path):
                yield f"{key}={path}: no such file"
        elif is_file(path):
            yield f"{key}={path}: a file; expected the folder it is in, or a .gguf file"
        elif not _is_hub_id(path):
            yield f"{key}={path}: no such folder"


def is_folder(path: str) -> bool:
    """Whether there is such a folder, which may be given from somebody's home (~)."""
    return path != "" and _found(path, Path.is_dir)


def is_file(path: str) -> bool:
    """Whether there is such a file, which may be given from somebody's home (~)."""
    return _found(path, Path.is_file)


def _found(path: str, kind: Callable[[Path], bool]) -> bool:
    try:
        return kind(Path(path).expanduser())
    except (OSError, RuntimeError):  # a name too long, a folder closed to us, a home of nobody
        return False


def _is_hub_id(path: str) -> bool:
    return bool(re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path))


def _training_problems(config: RunConfig) -> Iterator[str]:
    if not config.trains:
        if config.peft.name != "none":
            yield f"peft={config.peft.name}: optim={config.optim.name} takes no step; leave out one of them"
        return
    if getattr(config.optim, "lr", None) is None:
        with_peft = "" if config.peft.name == "none" else f" with peft={config.peft.name}"
        yield (
            f"optim.lr: model={config.model.name} has no default learning rate for {config.optim.name}{with_peft}; "
            "add optim.lr=..."
        )
    yield from _peft_problems(config)
    for key, size in (("num_train", config.task.num_train), ("num_dev", config.task.num_dev)):
        if size == 0:
            yield f"task.{key}=0: training needs at least 1 (optim=none scores without training)"
    if 0 < config.task.demos == _train_rows(config):
        yield f"task.demos={config.task.demos}: leaves none of the {config.task.demos} train rows to train on"
    if config.first_order and config.model.dtype is DType.float16:
        yield (
            f"model.dtype=float16: {config.optim.name} needs weights that small gradients can change; "
            "expected auto, float32 or bfloat16"
        )
    if config.first_order and config.model.compile:
        yield f"model.compile=true: {config.optim.name} runs the blocks as they are; only mezo and lezo compile them"
    if config.optim.name == "fo-adamw" and getattr(config.optim, "momentum", None):
        yield "optim.momentum: AdamW has its own (0.9); only fo-sgd takes it"


def _peft_problems(config: RunConfig) -> Iterator[str]:
    name = config.peft.name
    if name == "head" and config.optim.name == "lezo":
        yield "peft=head: leaves no decoder block anything to skip; expected optim=mezo, fo-sgd or fo-adamw"
    if config.judged and config.model.compile:
        yield "model.compile=true: optim.objective=metric evaluates the blocks as they are; leave out one of them"
    if name == "prefix" and config.model.compile:
        yield "model.compile=true: blocks read their prefix as they run; only peft=none and lora compile them"
