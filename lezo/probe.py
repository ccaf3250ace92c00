"""The two losses of a zeroth-order step, with theta read-only (design section 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lezo import noise
from lezo.evaluate import EvalSet
from lezo.objective import contributions
from lezo.pack import Batch
from lezo.streams import Streams


class Probe(Protocol):
    """Measures a batch's loss at theta + eps z and theta - eps z."""

    def __call__(self, batch: Any, active: Sequence[str], *, seed: int, eps: float) -> Tensor:
        """(2,) in fp32 or wider: plus, minus. z(seed) is on the ``active`` tensors; theta is not written."""


class StreamProbe:
    """The fast probe of a causal language model: both signs in one forward over packed batches."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams

    @torch.no_grad()
    def __call__(self, batch: Sequence[Batch], active: Sequence[str], *, seed: int, eps: float) -> Tensor:
        """As ``Probe``; a batch is its micro-batches, each of which draws its copies again."""
        with self.streams.perturbed(active, seed, eps):
            return torch.stack(list(contributions(self.streams, batch))).sum(0)


class JudgedProbe:
    """The metric itself as objective, which has no gradient (MeZO's F1 on SQuAD): 1 - score, one sign after the other.

    ``judge`` scores an EvalSet, 0..1, as every evaluation does, by choice or by generation. Memory: one copy of
    the active tensors, in whose place they stand meanwhile; theta's own storage is only read.
    """

    def __init__(self, module: nn.Module, judge: Callable[[EvalSet], float]) -> None:
        self.theta, self.judge = dict(module.named_parameters()), judge

    @torch.no_grad()
    def __call__(self, batch: Sequence[EvalSet], active: Sequence[str], *, seed: int, eps: float) -> Tensor:
        """As ``Probe``; a batch is its micro-batches."""
        losses = [self._at(batch, active, seed, eps, sign) for sign in (0, 1)]
        return torch.tensor(losses, device=next(iter(self.theta.values())).device)

    def _at(self, batch: Sequence[EvalSet], active: Sequence[str], seed: int, eps: float, sign: int) -> float:
        before = {name: self.theta[name].data for name in active}
        try:
            for name in active:
                self.theta[name].data = noise.perturb(before[name], seed, name, eps)[sign]
            right = sum(self.judge(part) * len(part) for part in batch)
        finally:
            for name, data in before.items():
                self.theta[name].data = data
        return 1 - right / sum(map(len, batch))


class PlainProbe:
    """The textbook's probe of any module and loss, one sign after the other: the reference of the fast one.

    ``objective`` maps (forward, batch) to the loss, (); ``forward`` stands in for the module. Memory: one copy
    of the active tensors.
    """

    def __init__(self, module: nn.Module, objective: Callable[[Callable[..., Any], Any], Tensor]) -> None:
        self.module, self.objective = module, objective

    @torch.no_grad()
    def __call__(self, batch: Any, active: Sequence[str], *, seed: int, eps: float) -> Tensor:
        """As ``Probe``."""
        pairs = {
            name: noise.perturb(self.module.get_parameter(name).detach(), seed, name, eps) for name in active
        }
        losses = [self._at({name: pair[sign] for name, pair in pairs.items()}, batch) for sign in (0, 1)]
        return torch.stack(losses)

    def _at(self, moved: dict[str, Tensor], batch: Any) -> Tensor:
        def forward(*args: Any, **kwargs: Any) -> Any:
            return functional_call(self.module, moved, args, kwargs)

        return self.objective(forward, batch)
