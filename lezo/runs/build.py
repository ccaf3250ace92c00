"""From a configuration and a plan to the parts of a run: model, evaluator, optimizer, batches, journal header."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lezo.config.identity import run_hash
from lezo.config.methods import FirstOrderConfig, Schedule, ZerothOrderConfig
from lezo.config.schema import RunConfig
from lezo.data.batches import Batches, Objective
from lezo.model.adapter import Attached
from lezo.model.evaluate import Evaluator, error
from lezo.model.forward import Network
from lezo.model.generation import GenerationMode, widest_mode
from lezo.model.hashes import examples_hash, tokenizer_hash
from lezo.model.layout import Layout, layout
from lezo.model.load import load, rebase, save_model, set_dropout
from lezo.model.loss import contributions
from lezo.noise.seeds import VERSION
from lezo.records.environment import code_version, resident_memory
from lezo.records.folder import START
from lezo.records.format import size
from lezo.records.schema import Provenance, ReplaySpec
from lezo.runs.plan import Plan
from lezo.runs.prepare import adapter_of
from lezo.zo.blocks import BlockChooser
from lezo.zo.first_order import FirstOrder
from lezo.zo.parts import Site, direction_of, estimator_of, step_size_of
from lezo.zo.rows import network_for
from lezo.zo.step import Optimizer, Stopwatch
from lezo.zo.step_size import Constant, Linear
from lezo.zo.zeroth_order import ZerothOrder


@dataclass(frozen=True)
class LoadedModel:
    """A model as training finds it. ``plan``: the run's, with the memory of the rows that the model runs in.

    ``held``: bytes of host memory that the process held before.
    """

    plan: Plan
    network: Network
    adapter: Attached | None
    held: int

    @property
    def model(self) -> Any:
        """The whole of it, its adapter included."""
        return self.network.model

    def rebase(self, seed: int, weights: str) -> Callable[[], None]:
        """What gives the model its base weights back, those of the hash ``weights``."""
        if self.adapter is not None:
            return partial(self.adapter.rebase, weights)
        return partial(
            rebase, self.model, self.plan.parts.source, self.plan.parts.model_config, seed, weights
        )

    def save(self, folder: Path) -> None:
        """Write the model, or its adapter, for `from_pretrained`, tokenizer included."""
        source, write = self.plan.parts.source, self.model.save_pretrained
        if self.adapter is not None:
            write = partial(self.adapter.save, base=source.path, revision=source.revision)
        save_model(write, self.plan.parts.tokenizer, folder)


def load_model(config: RunConfig, plan: Plan, say: Callable[[str], None], run: Path | None) -> LoadedModel:
    """The model as training finds it, its adapter as it was at first in the folder ``run``, where there is one."""
    parts, optim, held = plan.parts, config.optim, resident_memory()
    say(f"loading {parts.source.path}")
    model = load(parts.source, parts.model_config, dtype=plan.dtype, device=plan.device, seed=config.seed)
    network = network_for(
        model,
        layout(model),
        longest=plan.lengths[1] + (plan.adapter.positions if plan.adapter else 0),
        probes=config.method.zeroth_order,
    )
    adapter = None
    if plan.adapter is not None:
        start = run / START if run is not None and (run / START).exists() else None
        adapter = Attached(model, plan.adapter, seed=config.seed, start=start)
    if isinstance(optim, FirstOrderConfig) and optim.dropout is not None:
        set_dropout(model, optim.dropout)
    if network.plain:
        plan = _in_plain_rows(config, plan, model)
        say(f"rows {network.rows}; so {_plain_rows(config, plan)}")
    return LoadedModel(plan, network, adapter, held)


def _in_plain_rows(config: RunConfig, plan: Plan, model: Any) -> Plan:
    """The plan with the memory of probes of one sign after the other: copies of all active tensors."""
    if not config.method.zeroth_order:
        return plan
    sizes = [model.get_parameter(n).nbytes for n in plan.layout.active(range(plan.blocks.keep))]
    return replace(
        plan, memory=replace(plan.memory, update=sum(sizes) + max(sizes))
    )  # of one tensor both copies


def _plain_rows(config: RunConfig, plan: Plan) -> str:
    """What is done instead of packed rows, and what it costs."""
    how, memory = "one sequence a row by the model's own forward", plan.memory
    if config.method.zeroth_order:
        how += ", one sign after the other on copies of all active tensors; about "
        how += f"{size(memory.total)} expected in all, of which {size(memory.update)} copies"
    return how + (", not compiled" if config.model.compile else "")


def provenance(yaml: str, plan: Plan, weights: str) -> Provenance:
    """What a run of the configuration ``yaml`` starts from; ``weights``: the hash of them as they are loaded."""
    examples = [plan.train, plan.dev.scored, plan.dev.prompts, plan.test.scored, plan.test.prompts]
    return Provenance(
        weights=weights,
        tokenizer=tokenizer_hash(plan.parts.tokenizer),
        data=examples_hash(examples),
        dtype=plan.dtype_name,
        noise=VERSION,
        config=run_hash(yaml),
        code=code_version(),
    )


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
        mode=widest_mode(model, pad=pad, padded=not network.plain) if task.generates else GenerationMode(),
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
    if not config.minimises_metric:
        return plan.parts.task.loss
    return "metric of texts" if plan.parts.task.generates else "metric of choices"


def replay_spec(config: RunConfig) -> ReplaySpec:
    """What a journal must say for its updates to be made again; of a first-order run only where its model is."""
    optim, adapter = config.optim, adapter_of(config)
    lr, weight_decay = getattr(optim, "lr", None) or 0.0, getattr(optim, "weight_decay", 0.0)
    return ReplaySpec(
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
