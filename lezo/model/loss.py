"""What is minimised? Scores of the answers' tokens -> fp32 losses, one a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lezo.data.batches import MicroBatches
from lezo.data.pack import Batch
from lezo.model.forward import Network, wide_dtype
from lezo.ranks.ranks import ALONE, Ranks


def contributions(network: Network, batches: Sequence[Batch]) -> Iterator[Tensor]:
    """Each micro-batch's share of the whole batch's mean loss, (streams,) fp32; the sum, over all ranks, is the loss.

    The mean is over examples for candidates and over answer tokens for the LM loss, so it does not
    depend on how the batch is split.
    """
    total = batches.weight if isinstance(batches, MicroBatches) else sum(batch.weight for batch in batches)
    for batch in batches:
        yield loss(network, batch) * (batch.weight / total)


def gathered(
    network: Network, parts: Sequence[Tensor], batches: Sequence[Batch], ranks: Ranks = ALONE
) -> Tensor:
    """The shares of all micro-batches, in their order, (micro-batches, streams) fp32; ``parts`` are those of this rank's.

    Every rank adds them up alike, and has the loss of one device that takes all of the micro-batches.
    """
    own = torch.stack(list(parts)) if parts else _none_of(network)
    return ranks.gather(own, batches.of if isinstance(batches, MicroBatches) else len(batches))


def _none_of(network: Network) -> Tensor:
    """No micro-batch's losses: (0, streams)."""
    weight = network.head.weight
    return torch.empty((0, network.streams), dtype=wide_dtype(weight), device=weight.device)


def total(network: Network, batches: Sequence[Batch], ranks: Ranks = ALONE) -> Tensor:
    """The whole batch's mean loss, () fp32, of a network of one stream."""
    return gathered(network, list(contributions(network, batches)), batches, ranks).sum()


def loss(network: Network, batch: Batch) -> Tensor:
    """The batch's mean loss, (streams,) fp32 (fp64 for a model in fp64)."""
    if batch.kind == "lm":
        return -answer_scores(network, batch).sum(1) / batch.weight
    return _choices(network, batch).mean(1)


def losses(network: Network, batch: Batch) -> Tensor:
    """Each example's share of `loss`, which is their sum: (streams, examples), dtype as there."""
    if batch.kind == "candidates":
        return _choices(network, batch) / batch.weight
    sums = answer_scores(network, batch)  # one sequence an example
    return -sums / batch.weight


def _choices(network: Network, batch: Batch) -> Tensor:
    """The cross-entropy of each example's candidates, by their mean log-probabilities: (streams, examples)."""
    sums = answer_scores(network, batch, normalised=not batch.columns_only)
    means = sums / batch.answer_lens
    scores = means.new_full((len(means), len(batch.gold), batch.most), -torch.inf)
    scores = scores.index_put((_streams(means), batch.example, batch.candidate), means)
    chosen = scores.gather(2, batch.gold[None, :, None].expand(len(means), -1, 1)).squeeze(2)
    return scores.logsumexp(2) - chosen


def answer_scores(network: Network, batch: Batch, *, normalised: bool = True) -> Tensor:
    """Each sequence's log-probability of its answer, summed over the answer's tokens: (streams, sequences) fp32.

    Not ``normalised``, the logits themselves are summed: for one-token candidates after the same prompt
    the two differ by the same constant, which a loss over candidates does not see.
    """
    scores = network.token_scores(batch, normalised=normalised)
    table = scores.new_zeros(len(scores), len(batch.answer_lens), batch.longest)
    where = _streams(scores), batch.token_sequence, batch.token_place
    return table.index_put(where, scores).sum(2)  # not index_add, whose order of summation varies on CUDA


def _streams(scores: Tensor) -> Tensor:
    return torch.arange(len(scores), device=scores.device)[:, None]
