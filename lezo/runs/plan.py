"""What a run will do and what it will cost, decided and estimated before any weight is loaded."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lezo.config.schema import RunConfig
from lezo.data.dataset import EvalSet
from lezo.data.encode import MAX_NEW_TOKENS, Encoded
from lezo.data.pack import unit_length
from lezo.model.adapter import Adapter, attach
from lezo.model.evaluate import score_chunks
from lezo.model.forward import VOCABULARY_CHUNK
from lezo.model.layout import Layout, layout
from lezo.model.linear_probe import refuse_long_answers
from lezo.model.load import ModelError, skeleton
from lezo.runs.prepare import Prepared, adapter_of, device_of, dtype_of, prepare
from lezo.zo.blocks import BlockChooser
from lezo.zo.parts import blocks_of


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
    """Everything about a run but its weights.

    ``lengths``: median and longest sequence, in tokens. ``trained``: parameters, an adapter's own included.
    """

    parts: Prepared
    adapter: Adapter | None
    train: Sequence[Encoded]
    dev: EvalSet
    test: EvalSet
    layout: Layout
    blocks: BlockChooser
    device: torch.device
    dtype: torch.dtype
    parameters: int
    trained: int
    lengths: tuple[int, int]
    truncated: int
    memory: Memory
    forwards: dict[str, int]

    @property
    def dtype_name(self) -> str:
        """The weights' dtype without torch's prefix."""
        return str(self.dtype).removeprefix("torch.")


def make_plan(config: RunConfig) -> Plan:
    """Read data, tokenizer and model configuration; encode; estimate. Raises what reading raises."""
    device = device_of(config)
    dtype = dtype_of(config, device)
    parts = prepare(config, training=config.needs_examples)
    train = parts.train(for_metric=config.minimises_metric) if config.needs_examples else []
    if config.fits_head:
        refuse_long_answers(train)
    dev, test = parts.dev(), parts.test()
    examples = [*train, *dev.scored, *dev.prompts, *test.scored, *test.prompts]
    lengths = [len(ids) for example in examples for ids in example.input_ids]
    meta_model, adapter = skeleton(parts.model_config, dtype), adapter_of(config)
    parameters = sum(p.numel() for p in meta_model.parameters())
    if adapter is not None:
        attach(meta_model, adapter)
    tensors = layout(meta_model)
    blocks = blocks_of(config.composition, len(tensors.blocks))
    if config.trains and not tensors.non_block and not blocks.keep:
        raise ModelError(
            f"optim.sparsity={config.sparsity:g}: skips all {len(tensors.blocks)} blocks, and peft="
            f"{config.peft.name} trains nothing outside them; expected a lower sparsity"
        )
    weights = sum(p.nbytes for p in meta_model.parameters())
    update = _update_bytes(config, meta_model, tensors, blocks) if config.trains else 0
    size = ForwardSize(parts.model_config.get_text_config(), dtype, len(tensors.blocks))
    return Plan(
        parts=parts,
        adapter=adapter,
        train=train,
        dev=dev,
        test=test,
        layout=tensors,
        blocks=blocks,
        device=device,
        dtype=dtype,
        parameters=parameters,
        trained=sum(p.numel() for p in meta_model.parameters() if p.requires_grad),
        lengths=(round(statistics.median(lengths)), max(lengths)),
        truncated=sum(
            e.truncated for e in (*train, *(dev.scored or dev.prompts), *(test.scored or test.prompts))
        ),
        memory=Memory(weights, update, _largest_forward(config, size, train, [dev, test])),
        forwards=_forwards(config, train, dev, test),
    )


@dataclass(frozen=True)
class ForwardSize:
    """Expected bytes of a forward of a model of ``layers`` blocks; ``config``: the language model's own."""

    config: Any
    dtype: torch.dtype
    layers: int

    def block(self, tokens: int) -> int:
        """A block's widest moment: residual, normed, q, k, v, attended and two feed-forward widths."""
        hidden = self.config.hidden_size
        wide = self._widest("ffn_dim", "intermediate_size") or 4 * hidden
        return int(tokens * (6 * hidden + 2 * wide) * self.dtype.itemsize)

    def head(self, streams: int, reads: int, chunk: int = VOCABULARY_CHUNK) -> int:
        """What `Network.normalisers` holds of each stream: a chunk of the head in fp32, logits, exponentials."""
        rows = min(chunk, int(self.config.vocab_size))
        return streams * rows * (int(self.config.hidden_size) + 2 * reads) * 4

    def training(self, longest: Sequence[Encoded], *, gradients: bool) -> int:
        """Both streams at once, or every block kept for a backward pass."""
        tokens = sum(map(unit_length, longest))
        reads = sum(sum(example.answer_lens) for example in longest)
        if gradients:
            return self.layers * self.block(tokens) + self.head(1, reads, chunk=self.config.vocab_size)
        return 2 * self.block(tokens) + self.head(2, reads)

    def evaluation(self, split: EvalSet, batch_size: int) -> int:
        """The first candidates of a split."""
        chunk = next(score_chunks(split.scored, batch_size), [])
        tokens = sum(unit_length(split.scored[i], chosen) for i, chosen in chunk)
        reads = sum(split.scored[i].answer_lens[k] for i, chosen in chunk for k in chosen)
        return self.block(tokens) + self.head(1, reads)

    def generation(self, split: EvalSet, batch_size: int) -> int:
        """The longest prompts, padded to one length; keys and values of prompts and answers; logits."""
        lengths = [len(prompt.input_ids[0]) for prompt in split.prompts]
        if not lengths:
            return 0
        rows, longest = min(batch_size, len(lengths)), max(lengths)
        heads = self._widest("num_attention_heads") or 1
        width = self._widest("head_dim") or self.config.hidden_size // heads
        shared = self._widest("num_key_value_heads") or heads
        tokens = rows * (longest + MAX_NEW_TOKENS)
        cached = tokens * 2 * shared * width * self.layers * self.dtype.itemsize
        logits = rows * int(self.config.vocab_size) * (self.dtype.itemsize + 4)
        return self.block(rows * longest) + cached + logits

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


def _largest_forward(
    config: RunConfig, size: ForwardSize, train: Sequence[Encoded], evaluated: Sequence[EvalSet]
) -> int:
    rows = config.eval.batch_size
    forwards = [
        f for split in evaluated for f in (size.evaluation(split, rows), size.generation(split, rows))
    ]
    if config.trains:
        count = min(config.train.micro_batch_size or config.train.batch_size, len(train))
        longest = sorted(train, key=unit_length, reverse=True)[:count]
        forwards.append(size.training(longest, gradients=config.first_order))
    return max(forwards)


def _update_bytes(config: RunConfig, meta_model: nn.Module, tensors: Layout, blocks: BlockChooser) -> int:
    """Two copies of the largest block, or one of all that moves; or gradients and the optimizer's moments."""
    named = dict(meta_model.named_parameters())
    if config.first_order:
        adamw, momentum = config.method.algorithm == "adamw", getattr(config.optim, "momentum", 0.0)
        states = 3 if adamw else 2 if momentum else 1
        return states * sum(p.nbytes for p in named.values() if p.requires_grad)
    sizes = [sum(named[name].nbytes for name in block) for block in tensors.blocks if blocks.keep]
    if config.minimises_metric:
        return blocks.keep * max(sizes, default=0) + sum(named[name].nbytes for name in tensors.non_block)
    return 2 * max(sizes, default=0)


def _forwards(config: RunConfig, train: Sequence[Encoded], dev: EvalSet, test: EvalSet) -> dict[str, int]:
    """How many forwards training, dev and test evaluations make (a generation counts as one)."""
    size = config.eval.batch_size
    dev_once, test_once = _eval_forwards(dev, size), _eval_forwards(test, size)
    if not config.trains:
        return {"training": 0, "dev": dev_once, "test": test_once}
    settings = config.train
    drawn = min(settings.batch_size, len(train))
    passes = config.method.passes(config.optim)
    training = settings.steps * passes * -(-drawn // (settings.micro_batch_size or drawn))
    evaluations = 1 + -(-settings.steps // settings.eval_every)
    return {"training": training, "dev": evaluations * dev_once, "test": 2 * test_once}


def _eval_forwards(split: EvalSet, size: int) -> int:
    return sum(1 for _ in score_chunks(split.scored, size)) + -(-len(split.prompts) // size)
