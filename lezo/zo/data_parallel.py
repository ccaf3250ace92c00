"""Gradients of micro-batches that several ranks share, by torch's own DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lezo.data.batches import MicroBatches
from lezo.data.pack import Batch
from lezo.model.forward import Network
from lezo.model.loss import loss


class DataParallel:
    """A rank's parts of the mean loss; the backward of the last averages the gradients of all over the ranks.

    A rank without a micro-batch takes part with a loss of 0.
    """

    def __init__(self, network: Network) -> None:
        self._parallel = DistributedDataParallel(_Loss(network), gradient_as_bucket_view=True)

    def __call__(self, batches: MicroBatches) -> Iterator[Tensor]:
        """Each micro-batch's share of the whole batch's mean loss, () fp32; backward is called before the next is asked for."""
        own: Sequence[Batch | None] = batches or [None]
        for number, batch in enumerate(own, 1):
            with nullcontext() if number == len(own) else self._parallel.no_sync():
                share = 0.0 if batch is None else batch.weight / batches.weight
                yield self._parallel(batch, share)


class _Loss(nn.Module):
    """A micro-batch's loss as the forward of a module, which is where DistributedDataParallel begins to listen."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.model, self._network = network.model, network

    def forward(self, batch: Batch | None, share: float) -> Tensor:
        if batch is None:
            return torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum() * 0.0
        return loss(self._network, batch).sum() * share
