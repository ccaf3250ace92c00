"""What lezo-bench times: ours, the textbook's, and the floor under both, all on one typical batch of the task."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from lezo.bench.textbook import Textbook, padded_length
from lezo.config.methods import LezoConfig, ZerothOrderConfig
from lezo.config.schema import BenchVariant, RunConfig
from lezo.data.batches import batch_indices
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
        return [len(ids) for example in self.examples for ids in example.input_ids]


def typical_work(config: RunConfig, plan: Plan) -> Work:
    """The first epoch's batch closest to its medians of real and padded tokens.

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
    ours = sum(part.tokens for part in make_batches(config, plan).made(place))
    return Work(place, drawn[place], *loads[place], ours)


def lezo_blocks(config: RunConfig, plan: Plan) -> UniformBlocks:
    """What lezo and textbook_lezo choose from: optim.sparsity, or lezo's default where optim=mezo has none."""
    return UniformBlocks(len(plan.layout.blocks), getattr(config.optim, "sparsity", LezoConfig.sparsity))


def make_variant(config: RunConfig, plan: Plan, work: Work, network: Network, name: BenchVariant) -> Variant:
    """The variant, ready to step. Variants of one model move the same weights, by steps of a training run's size."""
    watch = Stopwatch(plan.device)
    skips = name in (BenchVariant.lezo, BenchVariant.textbook_lezo)
    blocks = lezo_blocks(config, plan) if skips else UniformBlocks(len(plan.layout.blocks), 0.0)
    if name is BenchVariant.floor:
        step = _floor(config, plan, work, network, watch)
    elif name in (BenchVariant.textbook_mezo, BenchVariant.textbook_lezo):
        step = _textbook(config, plan, work, network.model, blocks, watch)
    else:
        step = _engine(config, plan, work, network, blocks, watch)
    return Variant(name, step, watch)


def _floor(
    config: RunConfig, plan: Plan, work: Work, network: Network, watch: Stopwatch
) -> Callable[[int], object]:
    """Two forwards over our engine's batch, not even with a head, and nothing else."""
    made = make_batches(config, plan, plain=network.plain).made

    def step(_: int) -> None:
        with watch("data"):
            parts = made(work.place)
        with watch("forward"), torch.inference_mode():
            for part in [*parts, *parts]:
                network.hidden(part)

    return step


def _textbook(
    config: RunConfig, plan: Plan, work: Work, model: nn.Module, blocks: UniformBlocks, watch: Stopwatch
) -> Callable[[int], object]:
    lm, pad = plan.parts.task.loss == "lm", plan.parts.pad
    textbook = Textbook(model, plan.layout, blocks, watch, lm=lm, pad=pad, **_settings(config))
    return partial(_on, textbook, work.examples)


def _on(textbook: Textbook, examples: Sequence[Encoded], step: int) -> object:
    return textbook.step(step, examples)


def _engine(
    config: RunConfig, plan: Plan, work: Work, network: Network, blocks: UniformBlocks, watch: Stopwatch
) -> Callable[[int], object]:
    """The optimizer that lezo-run trains with, on batches that are not prepared ahead, so that they count."""
    made = make_batches(config, plan, plain=network.plain).made
    optimizer = make_optimizer(config, network, plan.layout, blocks)

    def step(i: int) -> object:
        with watch("data"):
            parts = made(work.place)
        start = time.perf_counter()
        report = optimizer.step(i, parts)  # waits for the device at its end
        forward = time.perf_counter() - start - sum(report.phases.values())
        watch.add({"forward": forward, **report.phases})
        return report

    return step


def _settings(config: RunConfig) -> dict[str, Any]:
    optim = config.optim
    assert isinstance(optim, ZerothOrderConfig) and optim.lr is not None  # the command and check saw to it
    return {"lr": optim.lr, "eps": optim.eps, "weight_decay": optim.weight_decay, "seed": config.seed}


def _load(examples: Sequence[Encoded]) -> tuple[int, int]:
    """Padded and real tokens of all candidates."""
    lengths = [len(ids) for example in examples for ids in example.input_ids]
    return padded_length(lengths) * len(lengths), sum(lengths)
