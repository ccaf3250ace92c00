"""What lezo-bench times: ours, the textbook's, and the floor under both, on one typical batch of the task."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from lezo.bench.textbook import MULTIPLE, Textbook
from lezo.config.methods import LezoConfig, ZerothOrderConfig
from lezo.config.schema import BenchVariant, RunConfig
from lezo.data.batches import Batches, batch_indices
from lezo.data.encode import Encoded
from lezo.model.forward import Network
from lezo.runs.build import make_batches, make_optimizer
from lezo.runs.plan import Plan
from lezo.zo.blocks import UniformBlocks
from lezo.zo.step import Stopwatch


@dataclass(frozen=True)
class Variant:
    """One way to take a step: ``step(i)`` takes step i of the run's seed, and ``watch`` times its phases."""

    name: BenchVariant
    step: Callable[[int], object]
    watch: Stopwatch


@dataclass(frozen=True)
class Work:
    """The batch that every variant sees in every step.

    ``place``: its number in the run's first epoch. Tokens a forward: ``padded`` as the textbook has them,
    ``real`` without its padding, ``ours`` as our engine's forward has them.
    """

    place: int
    examples: Sequence[Encoded]
    padded: int
    real: int
    ours: int

    @property
    def lengths(self) -> list[int]:
        """The tokens of each sequence, every candidate counted."""
        return _lengths(self.examples)


@dataclass(frozen=True)
class Setup:
    """What all variants have in common; those of one model move the same weights."""

    config: RunConfig
    plan: Plan
    work: Work
    network: Network

    @cached_property
    def batches(self) -> Batches:
        """Makes the work anew, as the engine's forward takes it."""
        return make_batches(self.config, self.plan, plain=self.network.plain)


def typical_work(config: RunConfig, plan: Plan, *, plain: bool = False) -> Work:
    """The first epoch's batch closest to its medians of real and padded tokens. ``plain``: not packed.

    With one batch for all, a variant that is timed less often than another has still done the same work.
    """
    count, size = len(plan.train), config.train.batch_size
    drawn = [
        [plan.train[i] for i in batch_indices(config.seed, place, examples=count, batch_size=size)]
        for place in range(max(count // size, 1))
    ]
    loads = [_load(examples) for examples in drawn]
    middle = [statistics.median(sizes) for sizes in zip(*loads, strict=True)]
    far = [sum(abs(a / b - 1) for a, b in zip(load, middle, strict=True)) for load in loads]
    place = far.index(min(far))
    ours = sum(part.tokens for part in make_batches(config, plan, plain=plain).make(place))
    return Work(place, drawn[place], *loads[place], ours)


def lezo_blocks(config: RunConfig, plan: Plan) -> UniformBlocks:
    """What lezo and textbook_lezo choose from: by optim.sparsity, or lezo's default where there is none."""
    return UniformBlocks(len(plan.layout.blocks), getattr(config.optim, "sparsity", LezoConfig.sparsity))


def make_variant(setup: Setup, name: BenchVariant) -> Variant:
    """The variant, ready to take steps of a training run's size."""
    watch, total = Stopwatch(setup.plan.device), len(setup.plan.layout.blocks)
    skips = name in (BenchVariant.lezo, BenchVariant.textbook_lezo)
    blocks = lezo_blocks(setup.config, setup.plan) if skips else UniformBlocks(total, 0.0)
    if name is BenchVariant.floor:
        return Variant(name, _floor(setup, watch), watch)
    published = name in (BenchVariant.textbook_mezo, BenchVariant.textbook_lezo)
    return Variant(name, (_textbook if published else _engine)(setup, blocks, watch), watch)


def _floor(setup: Setup, watch: Stopwatch) -> Callable[[int], object]:
    """Two forwards over our engine's batch, not even with a head, and nothing else."""
    batches = setup.batches

    def step(_: int) -> None:
        with watch("data"):
            parts = batches.make(setup.work.place)
        with watch("forward"), torch.inference_mode():
            for part in [*parts, *parts]:
                setup.network.hidden(part)

    return step


def _textbook(setup: Setup, blocks: UniformBlocks, watch: Stopwatch) -> Callable[[int], object]:
    optim, parts = setup.config.optim, setup.plan.parts
    assert isinstance(optim, ZerothOrderConfig) and optim.lr is not None  # the command and check saw to it
    settings = {"lr": optim.lr, "eps": optim.eps, "weight_decay": optim.weight_decay}
    lm, seed = parts.task.loss == "lm", setup.config.seed
    model, layout = setup.network.model, setup.plan.layout
    textbook = Textbook(model, layout, blocks, watch, lm=lm, pad=parts.pad, seed=seed, **settings)
    return lambda step: textbook.step(step, setup.work.examples)


def _engine(setup: Setup, blocks: UniformBlocks, watch: Stopwatch) -> Callable[[int], object]:
    """The optimizer that lezo-run trains with, on batches that are not prepared ahead, so that they count."""
    batches = setup.batches
    optimizer = make_optimizer(setup.config, setup.network, setup.plan.layout, blocks)

    def step(i: int) -> object:
        with watch("data"):
            parts = batches.make(setup.work.place)
        start = time.perf_counter()
        report = optimizer.step(i, parts)  # waits for the device at its end
        forward = time.perf_counter() - start - sum(report.phases.values())
        watch.add({"forward": forward, **report.phases})
        return report

    return step


def _lengths(examples: Sequence[Encoded]) -> list[int]:
    return [len(ids) for example in examples for ids in example.input_ids]


def _load(examples: Sequence[Encoded]) -> tuple[int, int]:
    """Padded and real tokens of all candidates."""
    lengths = _lengths(examples)
    return -(-max(lengths) // MULTIPLE) * MULTIPLE * len(lengths), sum(lengths)
