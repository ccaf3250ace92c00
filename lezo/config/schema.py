"""What can be configured: the typed schema, each value's range beside it; `checks` has the other rules.

The YAML files in conf/ hold the values; a run receives one RunConfig.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from lezo.config.methods import METHODS, NO_METHOD, Composition, Method, OptimConfig
from lezo.config.ranges import (
    BETWEEN,
    COLUMNS,
    COUNT,
    COUNT_OR_0,
    DEVICE,
    DEVICES,
    LINE,
    NAMES,
    POSITIVE,
    QUANTIZATION,
    SEED,
    SPLITS,
    STEPS,
    TEXTS,
    THIRDS,
    ranged,
)
from lezo.config.task import TaskConfig

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


def auto_dtype(*, cuda: bool, first_order: bool) -> DType:
    """What model.dtype=auto means: float16 on CUDA, but float32 on a CPU and for first-order training."""
    return DType.float16 if cuda and not first_order else DType.float32


class Home(Enum):
    """Where decoder blocks live; from elsewhere they visit the device. On a CPU ``host`` is ``device``."""

    device = "device"
    host = "host"
    disk = "disk"


class Calibration(Enum):
    """What is taken off a candidate's log-probability: nothing, or that after a prompt without content.

    ``icl_sfc`` leaves the demonstrations in that prompt, ``sfc`` does not.
    """

    none = "none"
    sfc = "sfc"
    icl_sfc = "icl_sfc"


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
    textbook_foreach = "textbook_foreach"
    published = "published"
    mezo = "mezo"
    lezo = "lezo"


@dataclass
class LearningRates:
    """The learning rate each kind of optimizer takes by default on a model."""

    zo: float | None = None
    fo_sgd: float | None = None
    fo_adamw: float | None = None


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

    rank: int = ranged(8, COUNT)
    alpha: int = ranged(16, COUNT)
    targets: list[str] = ranged(["q_proj", "v_proj"], NAMES)


@dataclass
class PrefixConfig(PeftConfig):
    """peft=prefix. ``tokens``: trained keys and values before the text in each block."""

    tokens: int = ranged(5, COUNT)


@dataclass
class ModelConfig:
    """``devices``: None, "auto", or a list of devices over which the blocks are placed. ``home_dir``: folder of the file that holds
    the blocks of home=disk while a run lasts; None the run's own. ``quantization``: of plain weights as they are read, by
    bitsandbytes. ``max_length``: tokens of prompt and answer; None 2048, or what positions the model has. ``shape``: what transformers' configuration of the model says
    of sizes, its ``model_type`` that of an OPT where there is none, for random weights without a download.
    """

    name: str = MISSING
    path: str | None = None
    revision: str | None = None
    tokenizer: str | None = None
    dtype: DType = DType.auto
    device: str = ranged("auto", DEVICE)
    devices: Any = ranged(None, DEVICES)
    bos: int | None = ranged(None, COUNT_OR_0)
    max_length: int | None = ranged(None, COUNT)
    random_weights: bool = False
    compile: bool = False
    cuda_graphs: bool = True
    home: Home = Home.device
    home_dir: str | None = None
    quantization: str = ranged("none", QUANTIZATION)
    lr: LearningRates = field(default_factory=LearningRates)
    lora_lr: LearningRates = field(default_factory=LearningRates)
    prefix_lr: LearningRates = field(default_factory=LearningRates)
    head_lr: LearningRates = field(default_factory=LearningRates)
    shape: dict[str, Any] | None = None


@dataclass
class DataConfig:
    """``path``: file, pattern or folder of data=local, id of data=hub; ``columns``, ``splits``: mappings, as in `Own`."""

    name: str | None = None
    path: str | None = None
    revision: str | None = None
    config: str | None = None
    columns: Any = ranged(None, COLUMNS)
    splits: Any = ranged(None, SPLITS)
    test_share: float = ranged(0.2, BETWEEN)


@dataclass
class LogConfig:
    """Who is told of a run beside its folder, and by which name; nothing of it changes a result.

    ``name``: None a readable one (`lezo.config.identity.run_name`). ``artifact``: whether wandb gets the saved model too, ``texts``:
    the words of the test rows. ``project`` to ``mode``: wandb's.
    """

    name: str | None = ranged(None, LINE)
    notes: str | None = None
    wandb: bool = False
    tensorboard: bool = False
    artifact: bool = False
    texts: bool = False
    project: str | None = None  # None: WANDB_PROJECT, else lezo
    group: str | None = None
    tags: list[str] = ranged([], TEXTS)
    mode: WandbMode = WandbMode.auto


@dataclass
class TrainConfig:
    """``forwards``, ``evaluations``: another way to say ``steps`` and ``eval_every`` (`lezo.config.shorthands`)."""

    steps: int = ranged(20000, STEPS)
    forwards: int | None = ranged(None, COUNT)
    batch_size: int = ranged(16, COUNT)
    micro_batch_size: int | None = ranged(None, COUNT)
    eval_every: int = ranged(4000, COUNT)
    evaluations: int | None = ranged(None, COUNT)
    max_seconds: float | None = ranged(None, POSITIVE)
    max_bad_steps: int = ranged(10, COUNT)
    rank_timeout: float = ranged(600.0, POSITIVE)
    checkpoint_every: int | None = ranged(None, COUNT)
    keep_checkpoints: int = ranged(2, COUNT)


@dataclass
class EvalConfig:
    batch_size: int = ranged(32, COUNT)
    calibration: Calibration = Calibration.none
    max_new_tokens: int = ranged(50, COUNT)


@dataclass
class SweepConfig:
    """For lezo-run -m: jobs at a time, None as many as the visible GPUs allow, or one; GPUs (on a CPU: ranks) of each.

    ``retry_failed``: whether jobs that failed in an earlier go are tried again; None those that did not diverge.
    ``best``: whether the best runs by dev loss are named at the end. ``share_zero_shot``: whether runs of the same weights
    and test set compute that score once.
    """

    slots: int | None = ranged(None, COUNT)
    gpus_per_job: int = ranged(1, COUNT)
    retry_failed: bool | None = None
    best: bool = False
    share_zero_shot: bool = True


@dataclass
class InspectConfig:
    """For lezo-inspect: how many examples of each split, whether as JSON lines, and whether with what all are like.

    ``summary`` None: with it, but not as JSON.
    """

    n: int = ranged(3, COUNT)
    json: bool = False
    summary: bool | None = None


@dataclass
class BenchConfig:
    """For lezo-bench: timed steps a variant, None 20 on CUDA and 5 on a CPU.

    ``textbook_repeats`` None is 1 for slow steps, else at most 5. ``window``: consecutive steps of a run, None 40 on
    CUDA and 4 on a CPU. ``mezo_path``: folder of MeZO's published code, whose step is timed too. ``variant`` makes
    the command one of its own children, which measures that variant's memory.
    """

    repeats: int | None = ranged(None, COUNT)
    textbook_repeats: int | None = ranged(None, COUNT)
    window: int | None = ranged(None, COUNT_OR_0)
    profile: bool = False
    mezo_path: str | None = None
    variant: BenchVariant | None = None


@dataclass
class RunConfig:
    seed: int = ranged(0, SEED)
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
    def method(self) -> Method:
        """The method of ``optim``; `NO_METHOD` where its settings are another one's."""
        method = METHODS.get(self.optim.name)
        return method if method is not None and method.schema is type(self.optim) else NO_METHOD

    @property
    def composition(self) -> Composition | None:
        """The parts of a zeroth-order method; None of others."""
        compose = self.method.compose
        return None if compose is None else compose(self.optim, self.train.steps)

    @property
    def trains(self) -> bool:
        """Whether the run takes steps of an optimizer."""
        return self.method.trains

    @property
    def needs_examples(self) -> bool:
        """Whether the run needs training examples."""
        return self.trains or self.fits_head

    @property
    def fits_head(self) -> bool:
        """Whether the head's rows of the answers are fitted at once (linear probing)."""
        return self.method.fits_head

    @property
    def minimises_metric(self) -> bool:
        """Whether the metric itself is what the optimizer looks at."""
        return self.composition is not None and self.composition.estimator.name == "metric"

    @property
    def replays_blocks(self) -> bool:
        """Whether on CUDA the blocks' forwards of a step are recorded and replayed."""
        stay = self.model.home is Home.device  # a recording reads weights where they were
        return self.composition is not None and self.model.cuda_graphs and not self.model.compile and stay

    @property
    def first_order(self) -> bool:
        """Whether the optimizer needs gradients."""
        return self.method.first_order

    @property
    def sparsity(self) -> float:
        """The share of blocks that a step skips: the method's own, or its setting, else none."""
        fixed = self.method.sparsity
        return float(getattr(self.optim, "sparsity", 0.0)) if fixed is None else fixed


@dataclass
class ReplayConfig:
    """For lezo-replay. ``step`` None is the best one, ``out`` None the run folder's model/. ``best``: of a folder of runs.

    ``base``: folder or hub id of the base model where it is not where the run found it. ``devices``: as in `ModelConfig`.
    ``home``, ``home_dir``: None the run's own `ModelConfig`'s, where there is one device.
    """

    step: int | None = None
    out: str | None = None
    verify: bool = False
    best: bool = False
    base: str | None = None
    device: str = "auto"
    devices: Any = ranged(None, DEVICES)
    home: Home | None = None
    home_dir: str | None = None


class Split(Enum):
    """Which of a task's rows."""

    test = "test"
    dev = "dev"
    train = "train"


@dataclass
class EvaluateConfig:
    """For lezo-eval, beside `EvalConfig`. ``out``: a file for the table as JSON; ``predictions``: a folder for each model's."""

    split: Split = Split.test
    json: bool = False
    out: str | None = None
    predictions: str | None = None


@dataclass
class ReportConfig:
    """For lezo-report. ``target_loss``, ``target_score`` (0..1, or a perplexity above 1): the target; None what all runs reached."""

    out: str = "."
    watch: bool = False
    every: int = 5
    target_loss: float | None = None
    target_score: float | None = None


@dataclass
class QualifyConfig:
    """For lezo-qualify. ``out`` None is a new folder below runs/qualify, ``models`` None by the device.

    ``sections``: those to go through, None all. ``steps``: of the run that is killed.
    """

    out: str | None = None
    models: list[str] | None = ranged(None, NAMES)
    tasks: list[str] = ranged(["sst2", "rte"], NAMES)
    sections: list[str] | None = ranged(None, NAMES)
    minutes: float = ranged(10.0, POSITIVE)
    steps: int = ranged(200, THIRDS)


@dataclass
class BoardConfig:
    """For lezo-dashboard: the workspace's name and place on wandb; ``entity`` None is the account's own."""

    entity: str | None = None
    project: str | None = None
    name: str = "lezo"
    dry_run: bool = False


PEFT_SCHEMAS: dict[str, type[PeftConfig]] = {
    "none": PeftConfig,
    "lora": LoraConfig,
    "prefix": PrefixConfig,
    "head": PeftConfig,
}
