"""What is a method? Its settings, and the parts that it is made of; which there are says `lezo.config.methods`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from typing import Any, Literal

from omegaconf import MISSING

from lezo.config.ranges import COUNT_OR_0, FRACTION, NOT_NEGATIVE, POSITIVE, PROBES, SPARSITY, ranged


@dataclass(frozen=True)
class Part:
    """One of a method's parts by its registered name, and its settings: what JSON has."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.settings.items())])


@dataclass(frozen=True)
class Composition:
    """A zeroth-order method: which blocks a step moves, along what, by what, how far, by what rule. By default MeZO."""

    blocks: Part = Part("all")
    direction: Part = Part("gaussian")
    estimator: Part = Part("two-sided")
    step_size: Part = Part("constant")
    rule: Part = Part("sgd")

    @property
    def is_lezo(self) -> bool:
        """Whether it is LeZO, or MeZO, which skips nothing; also with the metric as objective. One probe, all of lr."""
        usual = Composition(self.blocks, estimator=self.estimator)
        return (
            self == usual
            and self.blocks.name in ("all", "uniform")
            and self.estimator in (Part("two-sided"), Part("metric"))
        )

    def plain(self) -> dict[str, Any]:
        """As a journal's header has it, and gives it back. SGD goes without saying, as it did before there were rules."""
        parts = {
            kind: part for kind, part in asdict(self).items() if (kind, part) != ("rule", asdict(Part("sgd")))
        }
        return json.loads(json.dumps(parts))  # type: ignore[no-any-return]

    @classmethod
    def of(cls, plain: Any) -> Composition:
        """From what `plain` made. Raises ValueError for anything else."""
        try:
            parts = {key: Part(str(part["name"]), {**part["settings"]}) for key, part in plain.items()}
            if parts.keys() | {"rule"} != {one.name for one in fields(cls)}:
                raise ValueError("other parts than those of a method")
            return cls(**parts)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"not a composition of a method ({error})") from None


class Schedule(Enum):
    """The learning rate over the steps after the warm-up: as it is, or down to nothing after the last."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class Rounding(Enum):
    nearest = "nearest"
    stochastic = "stochastic"


class Objective(Enum):
    """What a zeroth-order optimizer minimises: the task's loss, or one minus its metric."""

    loss = "loss"
    metric = "metric"


@dataclass
class OptimConfig:
    """optim=none, icl and lp: nothing to set."""

    name: str = MISSING


@dataclass
class FirstOrderConfig(OptimConfig):
    """optim=fo-sgd and fo-adamw. ``dropout`` None keeps the model's own; ``lr_scale``: see `lezo.config.shorthands`."""

    lr: float | None = ranged(None, POSITIVE)
    lr_scale: float | None = ranged(None, POSITIVE)
    weight_decay: float = ranged(0.0, NOT_NEGATIVE)
    momentum: float = ranged(0.0, FRACTION)
    schedule: Schedule = Schedule.constant
    warmup: int = ranged(0, COUNT_OR_0)
    clip_norm: float | None = ranged(None, POSITIVE)
    dropout: float | None = ranged(None, FRACTION)


@dataclass
class ZerothOrderConfig(OptimConfig):
    """optim=mezo, and what every zeroth-order method has.

    ``lr_scale``: see `lezo.config.shorthands`. ``rounding``: how an update of 16-bit weights is rounded (fp32 weights know no
    difference). ``warmup``: steps in which the learning rate grows to its full size. ``clip``: slopes along z are at most so large,
    up or down. ``probes``: directions a step, of whose slopes it takes the mean.
    """

    lr: float | None = ranged(None, POSITIVE)
    eps: float = ranged(1e-3, POSITIVE)
    lr_scale: float | None = ranged(None, POSITIVE)
    weight_decay: float = ranged(0.0, NOT_NEGATIVE)
    rounding: Rounding = Rounding.nearest
    objective: Objective = Objective.loss
    schedule: Schedule = Schedule.constant
    warmup: int = ranged(0, COUNT_OR_0)
    clip: float | None = ranged(None, POSITIVE)
    probes: int = ranged(1, PROBES)


@dataclass
class LezoConfig(ZerothOrderConfig):
    """optim=lezo."""

    sparsity: float = ranged(0.75, SPARSITY)


@dataclass
class SparseConfig(ZerothOrderConfig):
    """A zeroth-order method that can skip blocks as LeZO does, and by default skips none."""

    sparsity: float = ranged(0.0, SPARSITY)


def no_problems(optim: Any) -> Iterator[str]:
    """Of a method that takes all values of its schema."""
    yield from ()


@dataclass(frozen=True)
class Method:
    """What all else asks about ``optim=name``.

    A method with neither ``compose`` nor ``algorithm`` takes no step; it scores.

    - ``schema``: the dataclass of its settings, an `OptimConfig`, for a zeroth-order method a `ZerothOrderConfig`.
    - ``compose``: (settings, steps of the run) -> the parts of a zeroth-order method.
    - ``algorithm``: torch's optimizer of a first-order method.
    - ``own_demos``: each test example has demonstrations of its own. ``fits_head``: the head is fitted first.
    - ``rate``: which of a model's default learning rates it takes.
    - ``sparsity``: the fraction of blocks it skips, if that is no setting.
    - ``forwards``: settings -> how often a step runs its batch, if not twice for each probe (first order: once).
    - ``family``: one name for methods that differ in sparsity only.
    - ``published``: its name in the papers' tables.
    - ``problems``: settings -> what is wrong with them beyond each one's range.
    """

    name: str
    schema: type[OptimConfig]
    compose: Callable[[Any, int], Composition] | None = None
    algorithm: Literal["sgd", "adamw"] | None = None
    own_demos: bool = False
    fits_head: bool = False
    rate: Literal["zo", "fo_sgd", "fo_adamw"] = "zo"
    sparsity: float | None = None
    forwards: Callable[[Any], int] | None = None
    family: str | None = None
    published: str | None = None
    problems: Callable[[Any], Iterator[str]] = no_problems

    @property
    def zeroth_order(self) -> bool:
        """Whether its steps are made of forwards alone, so that a journal makes them again."""
        return self.compose is not None

    @property
    def first_order(self) -> bool:
        """Whether it needs gradients."""
        return self.algorithm is not None

    @property
    def trains(self) -> bool:
        """Whether it takes steps."""
        return self.zeroth_order or self.first_order

    def passes(self, optim: Any) -> int:
        """How often a step runs its batch."""
        if self.forwards is not None:
            return self.forwards(optim)
        return 2 * optim.probes if isinstance(optim, ZerothOrderConfig) else 1

    def forwards_a_step(self, optim: Any) -> int:
        """What a step costs in forwards over its batch; a first-order one 3, since its backward pass takes about two."""
        return 3 if self.first_order else self.passes(optim)


def method_name(optim: str, peft: str) -> str:
    """What reports and wandb call a run's method: the optimizer, and the adapter it trains: "mezo + lora"."""
    return optim if peft == "none" else f"{optim} + {peft}"


def objective(optim: ZerothOrderConfig) -> Part:
    """The estimator of optim.objective, at theta +- eps z of optim.probes directions."""
    several = {"probes": optim.probes} if optim.probes != 1 else {}
    return Part("metric" if optim.objective is Objective.metric else "two-sided", several)


def step_size(optim: FirstOrderConfig | ZerothOrderConfig, steps: int, name: str = "scheduled") -> Part:
    """The step size of optim.schedule, optim.warmup and optim.clip; "constant" where there are none of them.

    ``name``: the part that takes them. ``steps``: of the run, of which only a schedule that ends knows.
    """
    settings: dict[str, Any] = {}
    if optim.schedule is not Schedule.constant:
        settings |= {"schedule": optim.schedule.value, "steps": steps}
    if optim.warmup:
        settings["warmup"] = optim.warmup
    if isinstance(optim, ZerothOrderConfig) and optim.clip is not None:
        settings["clip"] = optim.clip
    return Part(name, settings) if settings or name != "scheduled" else Part("constant")


def drawn_blocks(optim: LezoConfig | SparseConfig) -> Part:
    """LeZO's choice of blocks at optim.sparsity; at 0 all."""
    return Part("uniform", {"sparsity": optim.sparsity}) if optim.sparsity else Part("all")


NO_METHOD = Method("", OptimConfig)  # of a configuration that names none; `checks` says so
