"""From a configuration and a plan to the parts of a run: model, evaluator, optimizer, batches, header."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lezo.config.identity import run_hash
from lezo.config.methods import Composition, FirstOrderConfig, ZerothOrderConfig, step_size
from lezo.config.schema import Home, RunConfig
from lezo.data.batches import Batches, BatchKind, Share
from lezo.model.adapter import Adapter, Attached
from lezo.model.evaluate import Evaluator, one_minus_metric
from lezo.model.forward import Network
from lezo.model.generation import GenerationMode, widest_mode
from lezo.model.hashes import examples_hash, tokenizer_hash, weights_hash
from lezo.model.layout import Layout, layout
from lezo.model.load import Source, load_hashed, rebase, save_model, set_dropout
from lezo.model.loss import contributions
from lezo.model.place import Place
from lezo.model.placement import Placement
from lezo.model.quantised import quantised_layers
from lezo.noise.seeds import VERSION
from lezo.ranks.ranks import ALONE, Ranks
from lezo.records.environment import code_version, resident_memory
from lezo.records.format import size
from lezo.records.schema import Header, Provenance, ReplaySpec
from lezo.runs.model_settings import FILE as MODEL_SETTINGS
from lezo.runs.plan import Plan, copied_bytes, shares_of
from lezo.runs.prepare import adapter_of, quantization_of
from lezo.zo.blocks import BlockChooser
from lezo.zo.data_parallel import DataParallel
from lezo.zo.first_order import FirstOrder
from lezo.zo.graphs import CudaGraphs, Recordings
from lezo.zo.packing_check import network_for
from lezo.zo.parts import EstimatorContext, direction_of, estimator_of, rule_of, step_size_of
from lezo.zo.step import Optimizer, Stopwatch
from lezo.zo.zeroth_order import ZerothOrder


class BaseModel:
    """A model just loaded, with or without an adapter; it can go back to its first weights, and be saved."""

    def __init__(
        self,
        source: Source,
        config: Any,
        tokenizer: Any,
        *,
        dtype: torch.dtype,
        placement: Placement,
        seed: int,
        place: Place = Place(),  # noqa: B008 - frozen
    ) -> None:
        """``config``: the model's own; ``place``: where its blocks live. Raises ModelError."""
        self.source, self.config, self.tokenizer, self.seed = source, config, tokenizer, seed
        self.model, self._hashed = load_hashed(
            source, config, dtype=dtype, placement=placement, seed=seed, place=place
        )
        self.adapter: Attached | None = None

    def attach(self, adapter: Adapter, start: Path | None) -> None:
        """Give it an adapter, with the first values of the file ``start`` where there is one."""
        known = start if start is not None and start.exists() else None
        self.adapter = Attached(self.model, adapter, seed=self.seed, start=known)

    def first_hash(self) -> str:
        """The hash of its first weights, adapter included; asked for once, before anything moves them."""
        hashed, self._hashed = self._hashed, {}
        return weights_hash(self.model, hashed)

    def rebase(self, weights: str) -> None:
        """Bring the first weights back. Raises ModelError where their hash is not ``weights``."""
        if self.adapter is not None:
            self.adapter.rebase(weights)
        else:
            rebase(self.model, self.source, self.config, self.seed, weights)

    def save(self, folder: Path, card: str, settings: str | None = None) -> None:
        """Write the model, or its adapter, for `from_pretrained`, with its tokenizer and model card.

        ``settings``: what it tells lezo-eval (`lezo.runs.model_settings`), where that is known.
        """

        def write(partial: Path) -> None:
            if self.adapter is not None:
                self.adapter.save(partial, base=self.source.path, revision=self.source.revision)
            else:
                self.model.save_pretrained(partial)
            if settings is not None:
                (partial / MODEL_SETTINGS).write_text(settings, encoding="utf-8")

        save_model(write, self.tokenizer, folder, card)


@dataclass(frozen=True)
class LoadedModel:
    """A model as training takes it. ``plan``: the run's, with the memory of the rows that the model runs in.

    ``held``: bytes of host memory that the process held before.
    """

    plan: Plan
    network: Network
    base: BaseModel
    held: int

    @property
    def model(self) -> Any:
        """The whole of it, its adapter included."""
        return self.base.model


def load_model(
    config: RunConfig,
    plan: Plan,
    say: Callable[[str], None],
    start: Path | None = None,
    folder: Path | None = None,
) -> LoadedModel:
    """The model as training takes it. ``start``: the file of a prefix's first values, where a run had one.

    ``folder``: the run's, for the file of model.home=disk.
    """
    parts, optim, held = plan.parts, config.optim, resident_memory()
    say(f"loading {parts.source.path}")
    given = parts.source, parts.model_config, parts.tokenizer
    place = place_of_blocks(config.model.home, config.model.home_dir, folder)
    base = BaseModel(*given, dtype=plan.dtype, placement=plan.placement, seed=config.seed, place=place)
    network = network_for(
        base.model,
        layout(base.model),
        longest=plan.lengths[1] + (plan.adapter.positions if plan.adapter else 0),
        probes=config.method.zeroth_order,
    )
    if plan.adapter is not None:
        base.attach(plan.adapter, start)
    if isinstance(optim, FirstOrderConfig) and optim.dropout is not None:
        set_dropout(base.model, optim.dropout)
    if network.plain:
        plan, how = _in_plain_rows(config, plan, base.model)
        say(f"rows {network.rows}; so {how}")
    return LoadedModel(plan, network, base, held)


def place_of_blocks(home: Home, given: str | None, folder: Path | None) -> Place:
    """Where the blocks live; the file of ``disk`` in the folder ``given``, else in the run's."""
    return Place(home.value, folder if given is None else Path(given).expanduser())


def _in_plain_rows(config: RunConfig, plan: Plan, model: Any) -> tuple[Plan, str]:
    """The plan where rows are not packed, with the memory of probes of one sign; what is done instead."""
    how = "one sequence a row by the model's own forward"
    if config.method.zeroth_order:
        kept = plan.blocks.keep if plan.visits is None else min(plan.blocks.keep, 1)
        shares = shares_of(plan.layout, plan.placement)
        copies = [_copies(model, plan.layout, own, plan.blocks, kept) for own in shares]
        pairs = zip(plan.memories, copies, strict=True)
        plan = replace(plan, memories=tuple(replace(memory, update=update) for memory, update in pairs))
        whose = "all active tensors" if plan.visits is None else "a block's active tensors at a time"
        how += f", one sign after the other on copies of {whose}; about "
        how += f"{size(plan.memory.total)} expected in all, of which {size(sum(copies))} copies"
    return plan, how + (", not compiled" if config.model.compile else "")


def _copies(model: Any, whole: Layout, tensors: Layout, blocks: BlockChooser, keep: int) -> int:
    """Bytes of a copy of all that moves of ``tensors`` in a step, and of both copies of the largest."""
    names = tensors.active(range(min(keep, len(tensors.blocks))))
    largest: int = max((model.get_parameter(name).nbytes for name in names), default=0)
    return copied_bytes(model, whole, tensors, blocks, keep) + largest


def make_header(yaml: str, config: RunConfig, loaded: LoadedModel) -> Header:
    """What the journal of a run of a model just loaded begins with."""
    return Header(provenance(yaml, loaded.plan, loaded.base.first_hash()), replay_spec(config))


def provenance(yaml: str, plan: Plan, weights: str) -> Provenance:
    """What a run of the configuration ``yaml`` starts from; ``weights``: their hash as they are loaded."""
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


def make_evaluator(plan: Plan, network: Network, batch_size: int, ranks: Ranks = ALONE) -> Evaluator:
    """The evaluator of the plan's task. What runs in plain rows is not padded to generate either."""
    task, tokenizer, pad, model = plan.parts.task, plan.parts.tokenizer, plan.parts.pad, network.model
    generates = task.generates or bool(plan.test.samples)
    return Evaluator(
        network=network,
        loss=task.loss,
        metric=task.metric,
        batch_size=batch_size,
        pad=pad,
        device=plan.device,
        decode=partial(_decoded, tokenizer, frozenset(tokenizer.get_vocab().values())),
        stop=end_tokens(model, tokenizer) | turn_ends(plan),
        mode=widest_mode(model, pad=pad, padded=not network.plain) if generates else GenerationMode(),
        prompts_at_once=min(batch_size, plan.prompts_at_once),
        ranks=ranks,
        stop_texts=task.stop,
        max_new_tokens=plan.parts.max_new_tokens,
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


def turn_ends(plan: Plan) -> frozenset[int]:
    """The special ids that end the turns of a chat."""
    chat = plan.parts.encoder.chat
    lasts = {example.input_ids[0][-1] for example in plan.test.scored} if chat is not None else set[int]()
    return frozenset(lasts.intersection(chat.ends)) if chat is not None else frozenset()


def _decoded(tokenizer: Any, known: frozenset[int], ids: Sequence[int]) -> str:
    """Their text without special tokens, and without ids of the model that are none of the tokenizer's."""
    return str(tokenizer.decode([i for i in ids if i in known], skip_special_tokens=True))


def make_optimizer(
    config: RunConfig,
    network: Network,
    layout: Layout,
    blocks: BlockChooser,
    evaluator: Evaluator | None = None,
    ranks: Ranks = ALONE,
) -> Optimizer:
    """The configured optimizer over the trainable tensors; ``evaluator``: for a metric as objective.

    Of several ``ranks`` each takes a part of a step's micro-batches.
    """
    model: nn.Module = network.model
    optim, device = config.optim, next(model.parameters()).device
    if (parts := config.composition) is not None:
        assert isinstance(optim, ZerothOrderConfig) and optim.lr is not None  # checked by config.checks
        watch, direction = Stopwatch(device), direction_of(parts)
        error = None if evaluator is None else partial(one_minus_metric, evaluator)
        replays = device.type == "cuda" and config.replays_blocks and not any(quantised_layers(model))
        context = EstimatorContext(
            network,
            layout,
            direction,
            watch,
            error=error,
            compiled=config.model.compile,
            recordings=_recordings if replays else None,
            ranks=ranks,
        )
        return ZerothOrder(
            model,
            layout,
            blocks,
            estimator_of(parts, context),
            direction=direction,
            step_size=step_size_of(parts),
            rule=rule_of(parts),
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
        partial(contributions, network) if ranks.size == 1 else DataParallel(network),
        algorithm=config.method.algorithm,
        lr=optim.lr,
        weight_decay=optim.weight_decay,
        momentum=optim.momentum,
        step_size=step_size_of(Composition(step_size=step_size(optim, config.train.steps))),
        clip_norm=optim.clip_norm,
        dropout=optim.dropout != 0,
        seed=config.seed,
        autocast=partial(torch.autocast, device.type, torch.bfloat16, enabled=device.type == "cuda"),
        ranks=ranks,
    )


def _recordings(device: torch.device, lane: int) -> Recordings:
    return Recordings(CudaGraphs(device, lane))


def make_batches(config: RunConfig, plan: Plan, *, plain: bool = False, share: Share = (0, 1)) -> Batches:
    """The stream of the plan's batches: packed, or ``plain`` rows of a sequence each; a rank's ``share`` of them."""
    task = plan.parts.task
    metric: BatchKind = "metric of texts" if task.generates else "metric of choices"
    return Batches(
        plan.train,
        loss=metric if config.minimises_metric else task.loss,
        seed=config.seed,
        batch_size=config.train.batch_size,
        micro_batch_size=config.train.micro_batch_size,
        pad=plan.parts.pad,
        device=plan.device,
        plain=plain,
        share=share,
    )


def replay_spec(config: RunConfig) -> ReplaySpec:
    """What makes a journal's updates again; of a first-order run only where its model is."""
    optim, adapter = config.optim, adapter_of(config)
    lr, weight_decay = getattr(optim, "lr", None) or 0.0, getattr(optim, "weight_decay", 0.0)
    return ReplaySpec(
        model=config.model.name,
        path=config.model.path,
        revision=config.model.revision,
        shape=config.model.shape,
        random_weights=config.model.random_weights,
        tokenizer=config.model.tokenizer,
        seed=config.seed,
        sparsity=config.sparsity,
        decay=lr * weight_decay,
        rounding=optim.rounding.value if isinstance(optim, ZerothOrderConfig) else "nearest",
        peft=None if adapter is None else adapter.settings(),
        composition=None if config.composition is None else config.composition.plain(),
        quantization=quantization_of(config),
    )
