"""Steps along gradients, to compare with: SGD and AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lezo.data.batches import MicroBatches
from lezo.noise import seeds
from lezo.ranks.ranks import ALONE, Ranks
from lezo.zo.probe import seeded
from lezo.zo.rule import decays
from lezo.zo.step import StepReport, Stopwatch
from lezo.zo.step_size import Constant, StepSize

Contributions = Callable[[Any], Iterator[Tensor]]
"""A rank's micro-batches -> their parts of the mean loss, each of one fp32 value."""


class FirstOrder:
    """SGD or AdamW through autograd, with a schedule, clipping and dropout as options.

    Where ``dropout`` is on, step t's masks are drawn under a seed of (seed, t); the model is in eval mode
    between steps. ``autocast`` wraps the forwards. Of several ``ranks`` each takes some of the micro-batches; ``objective``
    is then a `DataParallel`, whose gradients are averaged over the ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Contributions,
        *,
        algorithm: Literal["sgd", "adamw"],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        step_size: StepSize | None = None,
        clip_norm: float | None = None,
        dropout: bool = False,
        seed: int = 0,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        ranks: Ranks = ALONE,
    ) -> None:
        self.model, self.objective, self.autocast, self.ranks = model, objective, autocast, ranks
        self.lr, self.step_size = lr, step_size or Constant()
        self.clip_norm, self.dropout, self.seed = clip_norm, dropout, seed
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = _first_order(algorithm, self.parameters, lr, weight_decay, momentum)
        self.watch = Stopwatch(self.parameters[0].device)

    def step(self, step: int, batch: Any) -> StepReport:
        """One backward pass a micro-batch, then one update where loss and gradient are finite."""
        measured = self._backward(step, batch)
        clipped = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm or math.inf)
        loss, norm = torch.stack([measured, clipped.to(measured.dtype)]).tolist()
        applied = math.isfinite(loss) and math.isfinite(norm)
        lr = self.lr * self.step_size.share(step)
        if applied:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            with self.watch("update"):
                self.optimizer.step()
        return StepReport(loss, applied, {"lr": lr, "gradient_norm": norm}, phases=self.watch.lap())

    def state(self) -> dict[str, Tensor]:
        """Momentum or moments, by parameter number and name. Dropout needs nothing: its masks follow from (seed, step)."""
        return {
            f"{number}.{name}": value
            for number, values in self.optimizer.state_dict()["state"].items()
            for name, value in values.items()
            if isinstance(value, Tensor)  # SGD without momentum says None
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take momentum or moments of ``state``, moved to the parameters' device."""
        known: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            number, name = key.split(".")
            known.setdefault(int(number), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": known})

    def _backward(self, step: int, batch: Any) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        own = [self.ranks.rank] if self.ranks.rank else []  # another rank's masks are others
        with seeded(seeds.derive(self.seed, "dropout", step, *own), self.parameters[0].device):
            self.model.train(self.dropout)
            with self.autocast():
                for part in self.objective(batch):
                    (part.sum() * self.ranks.size).backward()  # type: ignore[no-untyped-call]
                    losses.append(part.detach().sum())
            self.model.eval()
        parts = torch.stack(losses)
        if isinstance(batch, MicroBatches):  # a rank without one has a 0 all the same
            parts = self.ranks.gather(parts[: len(batch)], batch.of)
        return parts.sum()


def _first_order(
    algorithm: str, parameters: Sequence[nn.Parameter], lr: float, weight_decay: float, momentum: float
) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in parameters if decays(p)], "weight_decay": weight_decay},
        {"params": [p for p in parameters if not decays(p)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if algorithm == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-8)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum)
