"""What a run will do and what it will cost, decided and estimated before any weight is loaded."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lezo.config.schema import Home, RunConfig
from lezo.data.dataset import EvalSet
from lezo.data.encode import MAX_NEW_TOKENS, Encoded
from lezo.data.pack import unit_length
from lezo.model.adapter import Adapter, attach
from lezo.model.berths import block_bytes
from lezo.model.evaluate import score_chunks
from lezo.model.forward import VOCABULARY_CHUNK
from lezo.model.layout import Layout, layout
from lezo.model.linear_probe import refuse_long_answers
from lezo.model.load import ModelError, skeleton
from lezo.model.place import Place
from lezo.model.placement import Placement, placed
from lezo.model.quantised import stored_bytes
from lezo.runs.prepare import Prepared, adapter_of, devices_of, dtype_of, prepare
from lezo.zo.blocks import BlockChooser, GroupChooser, active
from lezo.zo.parts import blocks_of, rule_of


@dataclass(frozen=True)
class Memory:
    """Expected peak bytes on a device, or on all of them, by what takes them; ``free``: what a device has for them.

    ``update``: perturbed copies and places of recorded forwards, or gradients and optimizer state. ``state``: what the rule of
    a zeroth-order method remembers, and what it takes beside that.
    """

    weights: int
    update: int
    activations: int
    free: float = math.inf
    state: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.update + self.activations + self.state


@dataclass(frozen=True)
class Visits:
    """Blocks that live elsewhere. ``stored``: bytes there; ``there``, ``back``: bytes a step to the device and back home.

    Of packed rows; plain ones take each sign in a forward of its own. ``rate``: bytes a second, as ``source`` says.
    """

    stored: int
    there: int
    back: int
    rate: float
    source: str

    @property
    def seconds(self) -> float:
        """What a step takes at least: while blocks compute others come, in an update they come and go in turns."""
        return (self.there + self.back) / self.rate


@dataclass(frozen=True)
class Plan:
    """Everything about a run but its weights.

    ``lengths``: median and longest sequence, in tokens. ``truncated``: examples cut from the left, ``shortened``: conversations
    that lost their oldest turns. ``trained``: parameters, an adapter's own included.
    ``prompts_at_once``: how many a generation goes on with, eval.batch_size or as many fewer as the device has room for.
    ``memories``: of each of the placement's devices.
    """

    parts: Prepared
    adapter: Adapter | None
    train: Sequence[Encoded]
    dev: EvalSet
    test: EvalSet
    layout: Layout
    blocks: BlockChooser
    placement: Placement
    dtype: torch.dtype
    parameters: int
    trained: int
    lengths: tuple[int, int]
    truncated: int
    shortened: int
    prompts_at_once: int
    memories: tuple[Memory, ...]
    forwards: dict[str, int]
    visits: Visits | None = None

    @property
    def device(self) -> torch.device:
        """The device of the batches, and of all that is outside the blocks."""
        return self.placement.home

    @property
    def memory(self) -> Memory:
        """Of all devices together."""
        each = [(m.weights, m.update, m.activations, m.state) for m in self.memories]
        weights, update, activations, state = map(sum, zip(*each, strict=True))
        return Memory(weights, update, activations, state=state)

    @property
    def dtype_name(self) -> str:
        """The weights' dtype without torch's prefix."""
        return str(self.dtype).removeprefix("torch.")


def make_plan(config: RunConfig) -> Plan:
    """Read data, tokenizer and model configuration; encode; estimate. Raises what reading raises."""
    devices = devices_of(config)
    dtype = dtype_of(config, devices[0])
    parts = prepare(config, training=config.needs_examples)
    train = parts.train(for_metric=config.minimises_metric) if config.needs_examples else []
    if config.fits_head:
        refuse_long_answers(train)
    dev, test = parts.dev(), parts.test()
    examples = [*train, *dev.scored, *dev.prompts, *test.scored, *test.prompts, *test.samples]
    lengths = [len(ids) for example in examples for ids in example.input_ids]
    meta_model, adapter = skeleton(parts.model_config, dtype), adapter_of(config)
    placement = placed(meta_model, devices)
    parameters = sum(p.numel() for p in meta_model.parameters())
    at_home = _at_home(config, meta_model, placement.home)
    stored = stored_bytes(meta_model, parts.bits)
    _freeze(stored)
    if adapter is not None:
        attach(meta_model, adapter)
    tensors = layout(meta_model)
    blocks = blocks_of(config.composition, tensors)
    if config.trains and not blocks.keep and not active(tensors, blocks, blocks(0, 0)):
        moving = (
            f"optim.sparsity={config.sparsity:g}: skips all"
            if config.sparsity
            else "optim: moves none of the"
        )
        ways = "a lower sparsity" if config.sparsity else "some block, or what is outside, to move"
        raise ModelError(
            f"{moving} {len(tensors.blocks)} blocks, and peft={config.peft.name} trains nothing outside them; expected {ways}"
        )
    shares = shares_of(tensors, placement)
    shape, rows = parts.model_config.get_text_config(), config.eval.batch_size
    new = config.eval.max_new_tokens
    sizes = [ForwardSize(shape, dtype, len(own.blocks), place == 0, new) for place, own in enumerate(shares)]
    held = _weights(meta_model, placement, stored)
    held[0] += 2 * max(at_home, default=0) - sum(at_home)  # two of them are on the device at a time
    steps = [Memory(n, 0, 0, _free(d)) for n, d in zip(held, devices, strict=True)]
    if config.trains:
        count = min(config.train.micro_batch_size or config.train.batch_size, len(train))
        longest, skips = sorted(train, key=unit_length)[-count:], blocks.keep < len(tensors.blocks)
        recorded = devices[0].type == "cuda" and config.replays_blocks
        lanes = min(len(devices), -(-min(config.train.batch_size, len(train)) // count))
        for place, (size, own) in enumerate(zip(sizes, shares, strict=True)):
            update = _update_bytes(config, meta_model, own, tensors, blocks, count)
            update += recorded * size.recorded(longest, _streams(config))
            state = _state_bytes(config, meta_model, own, bool(at_home) and devices[0].type == "cuda")
            forward = size.training(
                longest, gradients=config.first_order, skips=skips, streams=_streams(config)
            )
            steps[place] = replace(
                steps[place], update=lanes * update, activations=lanes * forward, state=state
            )
    rooms = [step.free - step.weights - step.update - step.state for step in steps]
    fitting = [_fitting(size, [dev, test], rows, room) for size, room in zip(sizes, rooms, strict=True)]
    prompts_at_once = min(fitting)
    evaluations = [max(_evaluations(size, [dev, test], rows, prompts_at_once)) for size in sizes]
    counted = [*train, *(dev.scored or dev.prompts), *(test.scored or test.prompts)]
    return Plan(
        parts=parts,
        adapter=adapter,
        train=train,
        dev=dev,
        test=test,
        layout=tensors,
        blocks=blocks,
        placement=placement,
        dtype=dtype,
        parameters=parameters,
        trained=sum(p.numel() for p in meta_model.parameters() if p.requires_grad),
        lengths=(round(statistics.median(lengths)), max(lengths)),
        truncated=sum(example.truncated for example in counted),
        shortened=sum(example.dropped > 0 for example in counted),
        prompts_at_once=prompts_at_once,
        memories=tuple(
            replace(step, activations=max(step.activations, evaluation))
            for step, evaluation in zip(steps, evaluations, strict=True)
        ),
        forwards=_forwards(config, train, dev, test, prompts_at_once),
        visits=_visits(config, at_home, blocks, len(train), placement.home, dtype) if at_home else None,
    )


def shares_of(tensors: Layout, placement: Placement) -> list[Layout]:
    """What each device holds of the trainable tensors."""
    places = [placement.place(module) for module in tensors.modules]
    chosen = [[i for i, at in enumerate(places) if at == place] for place in range(len(placement.devices))]
    return [
        Layout(
            () if place else tensors.non_block,
            tuple(tensors.blocks[i] for i in own),
            tuple(tensors.modules[i] for i in own),
            () if place else tensors.embeddings,
        )
        for place, own in enumerate(chosen)
    ]


def _freeze(stored: Mapping[nn.Parameter, int]) -> None:
    """As they are when they are loaded."""
    for parameter in stored:
        parameter.requires_grad_(False)


def _weights(meta_model: nn.Module, placement: Placement, stored: Mapping[nn.Parameter, int]) -> list[int]:
    """Bytes of weights on each device; ``stored``: of those that are quantised, which one at a time is dequantised."""
    held = [0] * len(placement.devices)
    for name, parameter in meta_model.named_parameters():
        held[placement.place(name)] += stored.get(parameter, parameter.nbytes)
    held[0] += max((parameter.nbytes for parameter in stored), default=0)
    return held


def _at_home(config: RunConfig, meta_model: Any, device: torch.device) -> list[int]:
    """Bytes of each block that lives elsewhere than on the device."""
    return block_bytes(meta_model) if Place(config.model.home.value).is_elsewhere(device) else []


def _visits(
    config: RunConfig,
    at_home: Sequence[int],
    blocks: BlockChooser,
    rows: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Visits:
    """A forward over each micro-batch is a visit of all blocks; an update one of those that move, unless adapters do."""
    drawn = min(config.train.batch_size, rows)
    forwards = -(-drawn // (config.train.micro_batch_size or drawn or 1)) if config.trains else 1
    moving = blocks.keep * sum(at_home) // len(at_home) if config.trains and config.peft.name == "none" else 0
    if (
        config.composition is not None and device.type == "cuda"
    ):  # what a rule remembers of a block comes along
        weight = torch.empty(1, dtype=dtype, device="meta")
        moving += moving * rule_of(config.composition).state_bytes([weight]) // weight.itemsize
    if config.model.home is Home.disk:
        return Visits(sum(at_home), forwards * sum(at_home) + moving, moving, DISK_RATE, "assumed")
    rate = copy_rate(device)
    return Visits(sum(at_home), forwards * sum(at_home) + moving, moving, rate, "as one copy just ran")


DISK_RATE = 2e9
"""Bytes a second that a disk is assumed to read and write."""


def copy_rate(device: torch.device) -> float:
    """Bytes a second from pinned host memory to a CUDA device, by one timed copy."""
    there = torch.empty(2**26, dtype=torch.uint8, device=device)
    here = torch.empty(2**26, dtype=torch.uint8).pin_memory()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    there.copy_(here, non_blocking=True)
    begin.record()
    there.copy_(here, non_blocking=True)
    end.record()
    end.synchronize()
    seconds: float = begin.elapsed_time(end) / 1000
    return there.nbytes / max(seconds, 1e-6)


@dataclass(frozen=True)
class ForwardSize:
    """Expected bytes of a forward on a device that has ``layers`` blocks; ``config``: the language model's own.

    ``is_home``: whether all outside the blocks is there too. ``new``: ids that a generated answer has at most.
    """

    config: Any
    dtype: torch.dtype
    layers: int
    is_home: bool = True
    new: int = MAX_NEW_TOKENS

    def block(self, tokens: int, longest: int) -> int:
        """A block's widest moment, without gradients: four widths (what entered model and block, normed), the feed-forward's.

        An activation stands beside what it is of; where that is gated, the gated product too. And the mask of
        ``tokens`` places over ``longest``, of truths and of numbers. What entered the model, and truths, are at home alone.
        """
        plain, gated = self._widest("ffn_dim"), self._widest("intermediate_size")
        wide = 2 * plain if plain else 3 * gated if gated else 8 * self.config.hidden_size
        widths = 4 if self.is_home else 2
        each = (widths * self.config.hidden_size + wide + longest) * self.dtype.itemsize
        each += self.is_home * longest
        return int(tokens * each)

    def kept(self, tokens: int) -> int:
        """What a block keeps for a backward pass: residual, normed, q, k, v, attended and two feed-forward widths."""
        hidden = self.config.hidden_size
        wide = self._widest("ffn_dim", "intermediate_size") or 4 * hidden
        return int(tokens * (6 * hidden + 2 * wide) * self.dtype.itemsize)

    def head(self, streams: int, reads: int, chunk: int = VOCABULARY_CHUNK) -> int:
        """What `Network.normalisers` holds of each stream, in fp32: states, a chunk of the head, logits, exponentials."""
        if not self.is_home:
            return 0
        rows, width = min(chunk, int(self.config.vocab_size)), int(self.config.hidden_size)
        return streams * (rows * (width + 2 * reads) + reads * width) * 4

    def recorded(self, longest: Sequence[Encoded], streams: int = 2) -> int:
        """The places that recorded forwards have for states and mask of all streams, as long as the run lasts."""
        tokens, row = sum(map(unit_length, longest)), max(map(unit_length, longest))
        return int(streams * tokens * (self.config.hidden_size + row) * self.dtype.itemsize)

    def training(
        self, longest: Sequence[Encoded], *, gradients: bool, skips: bool = True, streams: int = 2
    ) -> int:
        """All streams, in blocks and then at the head; or every block kept for a backward pass.

        A block that is skipped, where one is (``skips``), runs them at once; one that moves runs two one after the other, but
        more at once.
        The loss over candidates of one token reads no more of the head than their rows (see `Batch.columns_only`).
        """
        tokens = sum(map(unit_length, longest))
        reads = sum(sum(example.answer_lens) for example in longest)
        if gradients:
            return self.layers * self.kept(tokens) + self.head(1, reads, chunk=self.config.vocab_size)
        one = self.block(tokens, max(map(unit_length, longest)))
        both = (
            streams * one
            if skips or streams > 2
            else one + 4 * tokens * self.config.hidden_size * self.dtype.itemsize
        )
        columns = all(len(e.input_ids) > 1 and set(e.answer_lens) == {1} for e in longest)
        return int(both if columns else max(both, self.head(streams, reads)))

    def evaluation(self, split: EvalSet, batch_size: int) -> int:
        """The first candidates of a split."""
        chunk = next(score_chunks(split.scored, batch_size), [])
        lengths = [unit_length(split.scored[i], chosen) for i, chosen in chunk]
        reads = sum(split.scored[i].answer_lens[k] for i, chosen in chunk for k in chosen)
        return max(self.block(sum(lengths), max(lengths, default=0)), self.head(1, reads))

    def generation(self, split: EvalSet, batch_size: int) -> int:
        """The longest prompts, padded to one length, and their keys and values; or those of the last token, and its logits.

        Keys or values of a block stand beside those they are appended to.
        """
        lengths = [len(prompt.input_ids[0]) for prompt in split.prompts or split.samples]
        if not lengths:
            return 0
        rows, longest = min(batch_size, len(lengths)), max(lengths)
        first = self.block(rows * longest, longest) + self._cached(rows * longest)
        last = self._cached(rows * (longest + self.new))
        logits = self.is_home * rows * int(self.config.vocab_size) * (self.dtype.itemsize + 4)
        return max(first, last + last // (2 * self.layers) + logits)

    def _cached(self, tokens: int) -> int:
        """Keys and values of every block."""
        heads = self._widest("num_attention_heads") or 1
        width = self._widest("head_dim") or self.config.hidden_size // heads
        shared = self._widest("num_key_value_heads") or heads
        return int(tokens * 2 * shared * width * self.layers * self.dtype.itemsize)

    def _widest(self, *keys: str) -> int | None:
        """The first of these sizes that the configuration has; where each block has its own, the largest."""
        for key in keys:
            size = getattr(self.config, key, None)
            sizes = [
                n for n in (size if isinstance(size, list | tuple) else [size]) if isinstance(n, int) and n
            ]
            if sizes:
                return max(sizes)
        return None


def _evaluations(
    size: ForwardSize, splits: Sequence[EvalSet], batch_size: int, prompts_at_once: int
) -> list[int]:
    scored = [size.evaluation(split, batch_size) for split in splits]
    return scored + [size.generation(split, prompts_at_once) for split in splits]


def _fitting(size: ForwardSize, evaluated: Sequence[EvalSet], wanted: int, room: float) -> int:
    """How many prompts to continue at a time: ``wanted``, or half as often as it takes to fit the ``room``, in bytes."""
    rows = wanted
    while rows > 1 and max(size.generation(split, rows) for split in evaluated) > room:
        rows = -(-rows // 2)
    return rows


def _free(device: torch.device) -> float:
    """Bytes that the device has free, but for some that are lost between tensors; of host memory nothing is said."""
    return 0.95 * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf


def _state_bytes(config: RunConfig, meta_model: Any, tensors: Layout, visiting: bool) -> int:
    """What a rule remembers of a device's ``tensors``, and takes beside; ``visiting``: blocks, whose memory is theirs, visit."""
    if config.composition is None:
        return 0
    away = visiting and config.peft.name == "none"
    named = [
        meta_model.get_parameter(name) for name in tensors.active(range(0 if away else len(tensors.blocks)))
    ]
    rule = rule_of(config.composition)
    return rule.state_bytes(named) + rule.scratch_bytes(named)


def copied_bytes(model: Any, whole: Layout, tensors: Layout, blocks: BlockChooser, keep: int) -> int:
    """Bytes of a copy of all that a step moves at most, ``keep`` blocks, of the ``tensors`` of one device."""
    own = {name: int(model.get_parameter(name).nbytes) for name in tensors.active(range(len(tensors.blocks)))}
    if isinstance(blocks, GroupChooser):
        sizes = {g: sum(own.get(name, 0) for name in whole.of(g)) for g in whole.groups}
        return blocks.most(sizes)
    each = sorted((sum(own[name] for name in block) for block in tensors.blocks), reverse=True)
    return sum(each[:keep]) + sum(own[name] for name in tensors.non_block)


def _streams(config: RunConfig) -> int:
    """Of a step's forward: both signs, of each probe where all of them travel together."""
    if not _by_example(config):
        return 2
    assert config.composition is not None
    return 2 * int(config.composition.estimator.settings.get("probes", 1))


def _by_example(config: RunConfig) -> bool:
    return config.composition is not None and config.composition.estimator.name == "example-wise"


def _signs_bytes(directions: int, matrices: Sequence[Tensor]) -> int:
    """Directions of rank one: their signs, drawn in 32 bits before they are kept; and an update of the largest matrix, in fp32."""
    each = sum(sum(theta.shape) * (theta.itemsize + 12) for theta in matrices)
    return directions * each + 2 * 4 * max((theta.numel() for theta in matrices), default=0)


def _update_bytes(
    config: RunConfig, meta_model: Any, tensors: Layout, whole: Layout, blocks: BlockChooser, count: int
) -> int:
    """Two copies of the largest block or tensor outside, or one of all; or gradients and the optimizer's moments.

    Of embeddings and head only the rows in use are copied. ``tensors``: of a device, of the ``whole``. ``count``: the examples of a
    forward.
    """
    named: dict[str, Tensor] = dict(meta_model.named_parameters())
    if config.first_order:
        adamw, momentum = config.method.algorithm == "adamw", getattr(config.optim, "momentum", 0.0)
        states = 3 if adamw else 2 if momentum else 1
        return states * sum(p.nbytes for p in named.values() if p.requires_grad)
    if _by_example(config):
        chosen = [named[name] for block in tensors.blocks[-blocks.keep :] for name in block]
        return _signs_bytes(_streams(config) // 2 * count, [theta for theta in chosen if theta.ndim == 2])
    sizes = [sum(named[name].nbytes for name in block) for block in tensors.blocks if blocks.keep]
    if config.minimises_metric:
        keep = min(blocks.keep, 1) if config.model.home is not Home.device else blocks.keep
        return copied_bytes(meta_model, whole, tensors, blocks, keep)
    by_rows = [m.weight for m in (meta_model.get_input_embeddings(), meta_model.get_output_embeddings()) if m]
    outside = [named[name] for name in tensors.non_block if _may_move(whole, blocks, name)]
    entire = [theta.nbytes for theta in outside if all(theta is not weight for weight in by_rows)]
    return 2 * max([*sizes, *entire], default=0) + _spare(config, named, tensors, blocks)


def _spare(config: RunConfig, named: Mapping[str, Tensor], tensors: Layout, blocks: BlockChooser) -> int:
    """Of one-sided probes, the place of one more copy of the largest tensor: that of the sides that are not asked for."""
    if config.composition is None or config.composition.estimator.name != "one-sided":
        return 0
    names = tensors.active(range(min(blocks.keep, len(tensors.blocks))))
    return max((named[name].nbytes for name in names), default=0)


def _may_move(tensors: Layout, blocks: BlockChooser, name: str) -> bool:
    """Whether some step moves this tensor outside the blocks."""
    group = -1 if name in tensors.embeddings else len(tensors.blocks)
    return not isinstance(blocks, GroupChooser) or blocks.most({group: 1}) > 0


def _forwards(
    config: RunConfig, train: Sequence[Encoded], dev: EvalSet, test: EvalSet, prompts_at_once: int
) -> dict[str, int]:
    """How many forwards training, dev and test evaluations make (a generation counts as one)."""
    sizes = config.eval.batch_size, prompts_at_once
    dev_once, test_once = _eval_forwards(dev, *sizes), _eval_forwards(test, *sizes)
    if not config.trains:
        return {"training": 0, "dev": dev_once, "test": test_once}
    settings = config.train
    drawn = min(settings.batch_size, len(train))
    passes = config.method.passes(config.optim)
    training = settings.steps * passes * -(-drawn // (settings.micro_batch_size or drawn))
    evaluations = 1 + -(-settings.steps // settings.eval_every)
    return {"training": training, "dev": evaluations * dev_once, "test": 2 * test_once}


def _eval_forwards(split: EvalSet, size: int, prompts_at_once: int) -> int:
    return sum(1 for _ in score_chunks(split.scored, size)) + -(-len(split.prompts) // prompts_at_once)
