"""What will this run do, and what will it cost? Decided and estimated before any weight is loaded."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lezo.config import LezoConfig, MezoConfig, RunConfig
from lezo.encode import Encoded
from lezo.evaluate import EvalSet
from lezo.model import Layout, layout, skeleton
from lezo.optim import UniformBlocks
from lezo.prepare import Prepared, device_of, dtype_of, prepare


@dataclass(frozen=True)
class Memory:
    """Expected peak bytes on the device, by what takes them."""

    weights: int
    update: int  # perturbed copies, or gradients and optimizer state
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.update + self.activations


@dataclass(frozen=True)
class Plan:
    """Everything about a run but its weights. ``lengths``: median and longest sequence, in tokens."""

    parts: Prepared
    train: Sequence[Encoded]
    dev: EvalSet
    test: EvalSet
    layout: Layout
    blocks: UniformBlocks
    device: torch.device
    dtype: torch.dtype
    parameters: int
    lengths: tuple[int, int]
    truncated: int
    memory: Memory
    forwards: dict[str, int]


def make_plan(config: RunConfig) -> Plan:
    """Read data, tokenizer and model configuration; encode every split; estimate. Raises what reading raises."""
    device = device_of(config)
    dtype = dtype_of(config, device)
    parts = prepare(config, training=config.trains)
    train = parts.train() if config.trains else []
    dev, test = parts.dev(), parts.test()
    examples = [*train, *dev.scored, *dev.prompts, *test.scored, *test.prompts]
    lengths = [len(ids) for example in examples for ids in example.input_ids]
    bones = skeleton(parts.model_config)
    found = layout(bones)
    blocks = UniformBlocks(len(found.blocks), getattr(config.optim, "sparsity", 0.0))
    return Plan(
        parts=parts,
        train=train,
        dev=dev,
        test=test,
        layout=found,
        blocks=blocks,
        device=device,
        dtype=dtype,
        parameters=_size(bones),
        lengths=(round(statistics.median(lengths)), max(lengths)),
        truncated=sum(map(_truncated, (train, dev.scored or dev.prompts, test.scored or test.prompts))),
        memory=_memory(config, parts.model_config, bones, found, blocks, dtype, train, [dev, test]),
        forwards=_forwards(config, train, dev, test),
    )


def _memory(
    config: RunConfig,
    model_config: Any,
    bones: nn.Module,
    found: Layout,
    blocks: UniformBlocks,
    dtype: torch.dtype,
    train: Sequence[Encoded],
    evaluated: Sequence[EvalSet],
) -> Memory:
    """The larger of a training and an evaluation forward, with what the optimizer holds besides."""
    update, forwards = 0, []
    if config.trains:
        size = min(config.train.micro_batch_size or config.train.batch_size, len(train))
        rows = size * max(len(example.input_ids) for example in train)
        layers = len(found.blocks) if config.first_order else 1
        forwards.append(_forward_bytes(model_config, dtype, train, rows, layers))
        update = _update_bytes(config, bones, found, blocks, dtype)
    for split in evaluated:
        examples = [*split.scored, *split.prompts]
        forwards.append(_forward_bytes(model_config, dtype, examples, config.eval.batch_size, 1))
    return Memory(_size(bones) * dtype.itemsize, update, max(forwards))


def _update_bytes(
    config: RunConfig, bones: nn.Module, found: Layout, blocks: UniformBlocks, dtype: torch.dtype
) -> int:
    """Perturbed copies of the active tensors; or gradients, and AdamW's two moments or SGD's momentum."""
    if config.optim.name == "fo-adamw":
        return 3 * _size(bones) * dtype.itemsize
    if config.first_order:
        return (2 if getattr(config.optim, "momentum", 0.0) else 1) * _size(bones) * dtype.itemsize
    named = dict(bones.named_parameters())
    return sum(named[name].numel() for name in found.active(range(blocks.keep))) * dtype.itemsize


def _forward_bytes(
    model_config: Any, dtype: torch.dtype, examples: Sequence[Encoded], rows: int, layers: int
) -> int:
    """Activations of ``rows`` of the longest sequences.

    A block's widest moment counts residual, normed, q, k, v, attended and two feed-forward widths, for
    each layer kept for a backward pass; logits are held in the model's dtype and twice in fp32.
    """
    length = max((len(ids) for example in examples for ids in example.input_ids), default=1)
    answers = max((size for example in examples for size in example.answer_lens), default=0) + 1
    hidden = model_config.hidden_size
    wide = (
        getattr(model_config, "ffn_dim", None)
        or getattr(model_config, "intermediate_size", None)
        or 4 * hidden
    )
    block = rows * length * (6 * hidden + 2 * wide) * dtype.itemsize
    return int(block) * layers + rows * answers * int(model_config.vocab_size) * (dtype.itemsize + 8)


def _forwards(config: RunConfig, train: Sequence[Encoded], dev: EvalSet, test: EvalSet) -> dict[str, int]:
    """How many forwards training, dev and test evaluations make (a generation counts as one)."""
    size = config.eval.batch_size
    dev_once, test_once = _eval_forwards(dev, size), _eval_forwards(test, size)
    if not config.trains:
        return {"training": 0, "dev": dev_once, "test": test_once}
    settings = config.train
    drawn = min(settings.batch_size, len(train))
    passes = 2 if isinstance(config.optim, MezoConfig | LezoConfig) else 1
    training = settings.steps * passes * -(-drawn // (settings.micro_batch_size or drawn))
    evaluations = 1 + -(-settings.steps // settings.eval_every)
    return {"training": training, "dev": evaluations * dev_once, "test": 2 * test_once}


def _eval_forwards(split: EvalSet, size: int) -> int:
    rows = sum(len(example.input_ids) for example in split.scored)
    return -(-rows // size) + -(-len(split.prompts) // size)


def _truncated(examples: Sequence[Encoded]) -> int:
    return sum(example.truncated for example in examples)


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
