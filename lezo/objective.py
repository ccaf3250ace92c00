"""What is minimised? Logits at the answers' positions -> fp32 losses (protocol section 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lezo.encode import Batch

Forward = Callable[..., Any]


def contributions(forward: Forward, batches: Sequence[Batch]) -> Iterator[Tensor]:
    """Each micro-batch's share of the whole batch's mean loss, () fp32; their sum is the loss.

    The mean is over examples for candidates and over answer tokens for the LM loss, so it does not
    depend on how the batch is split.
    """
    total = sum(batch.weight for batch in batches)
    for batch in batches:
        yield loss(forward, batch) * (batch.weight / total)


def loss(forward: Forward, batch: Batch) -> Tensor:
    """The batch's mean loss, () fp32 (fp64 for a model in fp64)."""
    sums = answer_log_probs(forward, batch)
    if batch.kind == "lm":
        return -sums.sum() / batch.weight
    means = sums / batch.answer_mask.sum(1)
    scores = means.new_full((len(batch.gold), int(batch.candidate.max()) + 1), -torch.inf)
    scores = scores.index_put((batch.example, batch.candidate), means)
    return functional.cross_entropy(scores, batch.gold)


def answer_log_probs(forward: Forward, batch: Batch) -> Tensor:
    """Each row's log-probability of its answer, summed over the answer's tokens: (rows,) fp32."""
    logits = forward(**batch.inputs).logits[:, :-1]  # (rows, answers, vocabulary)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    targets = batch.input_ids[:, -logits.shape[1] :]
    token = logits.gather(2, targets[:, :, None]).squeeze(2) - logits.logsumexp(2)
    return torch.where(batch.answer_mask, token, 0).sum(1)
