"""From a configuration and a plan to the parts of a run: evaluator, optimizer, batches, recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import nn

from lezo.config.methods import FirstOrderConfig, Schedule, ZerothOrderConfig
from lezo.config.schema import RunConfig
from lezo.data.batches import Batches, Objective
from lezo.model.evaluate import Evaluator, error
from lezo.model.forward import Network
from lezo.model.generation import Way, right_way
from lezo.model.layout import Layout
from lezo.model.loss import contributions
from lezo.records.schema import Recipe
from lezo.runs.plan import Plan
from lezo.runs.prepare import adapter_of
from lezo.zo.blocks import BlockChooser
from lezo.zo.first_order import FirstOrder
from lezo.zo.parts import Site, direction_of, estimator_of, step_size_of
from lezo.zo.step import Optimizer, Stopwatch
from lezo.zo.step_size import Constant, Linear
from lezo.zo.zeroth_order import ZerothOrder


def make_evaluator(plan: Plan, network: Network, batch_size: int) -> Evaluator:
    """The evaluator of the plan's task. What runs in plain rows is not padded to generate either."""
    task, tokenizer, pad, model = plan.parts.task, plan.parts.tokenizer, plan.parts.pad, network.model
    return Evaluator(
        network=network,
        loss=task.loss,
        metric=task.metric,
        batch_size=batch_size,
        pad=pad,
        device=plan.device,
        decode=partial(_decoded, tokenizer, frozenset(tokenizer.get_vocab().values())),
        stop=end_tokens(model, tokenizer),
        way=right_way(model, pad=pad, padded=network.plain is None) if task.generates else Way(),
    )


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """The ids that end a text: all that the model's settings, its configuration or the tokenizer name.

    A newline that is a special token is one too, for it is not in the text.
    """
    settings = getattr(model, "generation_config", None)
    named = [getattr(one, "eos_token_id", None) for one in (settings, model.config, tokenizer)]
    ends = [i for ids in named for i in (ids if isinstance(ids, list | tuple) else [ids]) if i is not None]
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"][-1:]
    return frozenset([*ends, *(i for i in newline if i in tokenizer.all_special_ids)])


def _decoded(tokenizer: Any, known: frozenset[int], ids: Sequence[int]) -> str:
    """Their text without special tokens, and without ids of the model that are none of the tokenizer's."""
    return str(tokenizer.decode([i for i in ids if i in known], skip_special_tokens=True))


def make_optimizer(
    config: RunConfig,
    network: Network,
    layout: Layout,
    blocks: BlockChooser,
    evaluator: Evaluator | None = None,
) -> Optimizer:
    """The configured optimizer over the model's trainable tensors; ``evaluator`` judges where the metric is the objective."""
    model: nn.Module = network.model
    optim, device = config.optim, next(model.parameters()).device
    if (parts := config.composition) is not None:
        assert isinstance(optim, ZerothOrderConfig) and optim.lr is not None  # config.check saw to it
        watch, direction = Stopwatch(device), direction_of(parts)
        judge = None if evaluator is None else partial(error, evaluator)
        site = Site(network, layout, direction, watch, error=judge, compiled=config.model.compile)
        return ZerothOrder(
            model,
            layout,
            blocks,
            estimator_of(parts, site),
            direction=direction,
            step_size=step_size_of(parts),
            lr=optim.lr,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            rounding=optim.rounding.value,
            seed=config.seed,
            watch=watch,
        )
    assert isinstance(optim, FirstOrderConfig) and optim.lr is not None and config.method.algorithm
    return FirstOrder(
        model,
        partial(contributions, network),
        algorithm=config.method.algorithm,
        lr=optim.lr,
        weight_decay=optim.weight_decay,
        momentum=optim.momentum,
        step_size=Linear(config.train.steps) if optim.schedule is Schedule.linear else Constant(),
        clip_norm=optim.clip_norm,
        dropout=optim.dropout != 0,
        seed=config.seed,
        autocast=partial(torch.autocast, device.type, torch.bfloat16, enabled=device.type == "cuda"),
    )


def make_batches(config: RunConfig, plan: Plan, *, plain: bool = False) -> Batches:
    """The stream of the plan's batches: packed, or ``plain`` rows of a sequence each."""
    return Batches(
        plan.train,
        loss=_what_for(config, plan),
        seed=config.seed,
        batch_size=config.train.batch_size,
        micro_batch_size=config.train.micro_batch_size,
        pad=plan.parts.pad,
        device=plan.device,
        plain=plain,
    )


def _what_for(config: RunConfig, plan: Plan) -> Objective:
    if not config.judged:
        return plan.parts.task.loss
    return "judged texts" if plan.parts.task.generates else "judged choices"


def make_recipe(config: RunConfig) -> Recipe:
    """What a journal must say for its updates to be made again; of a first-order run only where its model is."""
    optim, adapter = config.optim, adapter_of(config)
    lr, weight_decay = getattr(optim, "lr", None) or 0.0, getattr(optim, "weight_decay", 0.0)
    return Recipe(
        model=config.model.name,
        path=config.model.path,
        revision=config.model.revision,
        shape=None if config.model.shape is None else asdict(config.model.shape),
        random_weights=config.model.random_weights,
        tokenizer=config.model.tokenizer,
        seed=config.seed,
        sparsity=config.sparsity,
        decay=lr * weight_decay,
        rounding=optim.rounding.value if isinstance(optim, ZerothOrderConfig) else "nearest",
        peft=None if adapter is None else adapter.settings(),
        composition=None if config.composition is None else config.composition.plain(),
    )
