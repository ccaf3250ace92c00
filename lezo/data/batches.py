"""Which examples does a step see? Each epoch is a permutation, a function of (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

import torch

from lezo.data.dataset import EvalSet
from lezo.data.encode import Encoded
from lezo.data.pack import candidate_batch, gold_batch
from lezo.noise.seeds import permutation


def batch_indices(seed: int, step: int, *, examples: int, batch_size: int) -> list[int]:
    """The examples of step ``step``; an epoch's last batch may be short."""
    steps_per_epoch = -(-examples // batch_size)
    epoch, place = divmod(step, steps_per_epoch)
    return permutation(seed, epoch, examples)[place * batch_size : (place + 1) * batch_size]


BatchKind = Literal["candidates", "lm", "metric of choices", "metric of texts"]
"""What batches are for: one of the two losses, or an evaluation of a choice or of a generated text."""

Share = tuple[int, int]
"""Of a rank: its number, and how many ranks there are. It takes every so-manieth micro-batch, from its number on."""


class MicroBatches(list[Any]):
    """A rank's micro-batches of a step: ``of`` so many, whose mean loss is over ``weight`` examples or answer tokens.

    ``examples``: how many the step has; ``most``: those of each micro-batch but the last. ``firsts``: of this rank's
    micro-batches the number of the first example.
    """

    def __init__(
        self, mine: Sequence[Any], of: int, weight: int, *, examples: int, most: int, firsts: Sequence[int]
    ) -> None:
        super().__init__(mine)
        self.of, self.weight, self.examples, self.most, self.firsts = of, weight, examples, most, firsts


class Batches:
    """A step's micro-batches, by (seed, step) alone: packed, or an EvalSet each for a metric.

    ``plain``: a sequence a row. ``share``: of several ranks those that this one takes; of a metric, whose evaluations are
    shared themselves, each takes all. A thread prepares the batch of the next step while this one is worked on.
    """

    def __init__(
        self,
        examples: Sequence[Encoded],
        *,
        loss: BatchKind,
        seed: int,
        batch_size: int,
        micro_batch_size: int | None,
        pad: int,
        device: torch.device,
        plain: bool = False,
        share: Share = (0, 1),
    ) -> None:
        self.examples, self.seed, self.batch_size = examples, seed, batch_size
        self._weighs = _answer_tokens if loss == "lm" else len
        self._share = slice(share[0], None, share[1]) if loss in ("lm", "candidates") else slice(None)
        self.micro_batch_size = micro_batch_size or batch_size
        collates: dict[BatchKind, Callable[[Sequence[Encoded]], Any]] = {
            "lm": partial(gold_batch, pad=pad, device=device, plain=plain),
            "candidates": partial(candidate_batch, pad=pad, device=device, plain=plain),
            "metric of choices": lambda chosen: EvalSet(scored=chosen),
            "metric of texts": lambda chosen: EvalSet(prompts=chosen),
        }
        self._collate = collates[loss]
        self._ahead: tuple[int, Future[MicroBatches]] | None = None
        cuda = device.type == "cuda"  # whose current device is a thread's own
        choose = partial(torch.cuda.set_device, device) if cuda else None
        self._thread = ThreadPoolExecutor(1, "batches", initializer=choose)

    def __call__(self, step: int) -> MicroBatches:
        """The batch of ``step``; the one after it is begun."""
        ahead = self._ahead
        batch = ahead[1].result() if ahead and ahead[0] == step else self.make(step)
        self._ahead = step + 1, self._thread.submit(self.make, step + 1)
        return batch

    def examples_of(self, step: int) -> list[Encoded]:
        """The examples of ``step``."""
        chosen = batch_indices(self.seed, step, examples=len(self.examples), batch_size=self.batch_size)
        return [self.examples[i] for i in chosen]

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)

    def make(self, step: int) -> MicroBatches:
        """The batch of ``step``, prepared now."""
        examples, size = self.examples_of(step), self.micro_batch_size
        firsts = range(0, len(examples), size)
        mine = [self._collate(examples[at : at + size]) for at in firsts[self._share]]
        return MicroBatches(
            mine,
            len(firsts),
            self._weighs(examples),
            examples=len(examples),
            most=min(size, len(examples)),
            firsts=firsts[self._share],
        )


def _answer_tokens(examples: Sequence[Encoded]) -> int:
    """Of the answers that are trained on."""
    return sum(example.answer_lens[example.gold[0]] for example in examples)
