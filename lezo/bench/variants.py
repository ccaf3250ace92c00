"""What lezo-bench times: ours, the textbook's, and the floor under both, on one typical batch of the task."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from lezo.bench.published import published_step
from lezo.bench.textbook import MULTIPLE, ForeachTextbook, Textbook
from lezo.config.methods import LezoConfig, ZerothOrderConfig
from lezo.config.schema import BenchVariant, RunConfig
from lezo.data.batches import Batches, batch_indices
from lezo.data.encode import Encoded
from lezo.data.pack import unit_length
from lezo.model.evaluate import Evaluator, score_chunks
from lezo.model.forward import Network
from lezo.runs.build import make_batches, make_evaluator, make_optimizer
from lezo.runs.plan import Plan
from lezo.zo.blocks import UniformBlocks
from lezo.zo.step import Stopwatch
from lezo.zo.zeroth_order import ZerothOrder

TEXTBOOK = {
    BenchVariant.textbook_mezo: Textbook,
    BenchVariant.textbook_lezo: Textbook,
    BenchVariant.textbook_foreach: ForeachTextbook,
}
SLOWER = (*TEXTBOOK, BenchVariant.published)  # than ours, as we expect: timed less often
_SKIPPING = (BenchVariant.lezo, BenchVariant.textbook_lezo)
ENGINE = (BenchVariant.mezo, BenchVariant.lezo)
RECORDED = 16  # steps by which nearly every block was moved once, and left alone


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

    @cached_property
    def evaluator(self) -> Evaluator:
        """As lezo-run evaluates."""
        return make_evaluator(self.plan, self.network, self.config.eval.batch_size)


def variants_of(config: RunConfig) -> list[BenchVariant]:
    """Those that can be timed: the published forms measure the loss, and MeZO's own code must be at hand."""
    left_out = set(SLOWER if config.minimises_metric else [])
    if config.bench.mezo_path is None:
        left_out.add(BenchVariant.published)
    return [name for name in BenchVariant if name not in left_out]


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
    return Work(place, drawn[place], *loads[place], _ours(config, plan, place, drawn[place], plain))


def _ours(config: RunConfig, plan: Plan, place: int, examples: Sequence[Encoded], plain: bool) -> int:
    if config.minimises_metric:  # an evaluation packs as it goes
        return sum(map(unit_length, examples))
    return sum(part.tokens for part in make_batches(config, plan, plain=plain).make(place))


def lezo_blocks(config: RunConfig, plan: Plan) -> UniformBlocks:
    """What lezo and textbook_lezo choose from: by optim.sparsity, or lezo's default where there is none."""
    return UniformBlocks(len(plan.layout.blocks), getattr(config.optim, "sparsity", LezoConfig.sparsity))


def make_variant(setup: Setup, name: BenchVariant) -> Variant:
    """The variant, ready to take steps of a training run's size."""
    watch = Stopwatch(setup.plan.device)
    if name is BenchVariant.floor:
        return Variant(name, _floor(setup, watch), watch)
    if name in ENGINE:
        return Variant(name, _engine(setup, name, watch), watch)
    return Variant(name, _textbook(setup, name, watch), watch)


def window(setup: Setup, name: BenchVariant, steps: int) -> list[float]:
    """Seconds of each of ``steps`` consecutive steps of a run, two before them left out.

    Each has its own batch, made by the batches' thread while the step before is worked on, as in lezo-run.
    """
    optimizer, seconds = _optimizer(setup, name), []
    batches = make_batches(setup.config, setup.plan, plain=setup.network.plain)
    try:
        for step in range(2 + steps):
            start = time.perf_counter()
            optimizer.step(step, batches(step))
            seconds.append(time.perf_counter() - start)
    finally:
        batches.close()
    return seconds[2:]


def heaviest(setup: Setup) -> None:
    """What the plan expects most memory of: a lezo step on the longest examples, an evaluation of the longest rows."""
    config, plan = setup.config, setup.plan
    longest = sorted(plan.train, key=unit_length, reverse=True)[: config.train.batch_size]
    batches = make_batches(config, replace(plan, train=longest), plain=setup.network.plain)
    _optimizer(setup, BenchVariant.lezo).step(0, batches.make(0))
    for split in (plan.dev, plan.test):
        chunk = next(score_chunks(split.scored, config.eval.batch_size), [])
        rows = [split.scored[i] for i, _ in chunk]
        if rows and not split.blanks:
            setup.evaluator(replace(split, scored=rows, prompts=()))


def _blocks(setup: Setup, name: BenchVariant) -> UniformBlocks:
    if name in _SKIPPING:
        return lezo_blocks(setup.config, setup.plan)
    return UniformBlocks(len(setup.plan.layout.blocks), 0.0)


def _floor(setup: Setup, watch: Stopwatch) -> Callable[[int], object]:
    """Two forwards over a batch that is ready, not even with a head, and nothing else; of a metric two evaluations."""
    parts = setup.batches.make(setup.work.place)
    forward: Callable[[Any], Any] = setup.network.hidden
    if setup.config.minimises_metric:
        forward = setup.evaluator

    def step(_: int) -> None:
        with watch("forward"), torch.inference_mode():
            for part in [*parts, *parts]:
                forward(part)

    return step


def _textbook(setup: Setup, name: BenchVariant, watch: Stopwatch) -> Callable[[int], object]:
    optim, parts = setup.config.optim, setup.plan.parts
    assert isinstance(optim, ZerothOrderConfig) and optim.lr is not None  # the command and check saw to it
    settings: dict[str, Any] = {"lr": optim.lr, "eps": optim.eps, "weight_decay": optim.weight_decay}
    settings |= {"lm": parts.task.loss == "lm", "pad": parts.pad, "seed": setup.config.seed}
    model, examples, path = setup.network.model, setup.work.examples, setup.config.bench.mezo_path
    if name is BenchVariant.published and path is not None:
        published = published_step(path, model, watch, **settings)
        return lambda step: published(step, examples)
    textbook = TEXTBOOK[name](model, setup.plan.layout, _blocks(setup, name), watch, **settings)
    return lambda step: textbook.step(step, examples)


def _optimizer(setup: Setup, name: BenchVariant) -> ZerothOrder:
    """The optimizer that lezo-run trains with; its own phases are in its reports."""
    evaluator = setup.evaluator if setup.config.minimises_metric else None
    blocks = _blocks(setup, name)
    optimizer = make_optimizer(setup.config, setup.network, setup.plan.layout, blocks, evaluator)
    assert isinstance(optimizer, ZerothOrder)  # the command saw to it
    return optimizer


def _engine(setup: Setup, name: BenchVariant, watch: Stopwatch) -> Callable[[int], object]:
    """Steps on batches that are not prepared ahead, so that they count."""
    batches, optimizer = setup.batches, _optimizer(setup, name)
    if setup.plan.device.type == "cuda" and setup.config.replays_blocks:
        work = batches.make(setup.work.place)
        for i in range(RECORDED):
            optimizer.measure(-1 - i, work)
        optimizer.watch.lap()

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
