"""One step of an optimizer: the two-point zeroth-order one (MeZO, LeZO), and the first-order baselines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from lezo.model.load import Layout
from lezo.noise import directions, philox, seeds
from lezo.zo.probe import Probe, seeded
from lezo.zo.stopwatch import Stopwatch

Contributions = Callable[[Any], Iterator[Tensor]]
"""batch -> the parts of the mean loss, one a micro-batch, each of one fp32 value."""


@dataclass(frozen=True)
class StepReport:
    """What a step measured. ``applied`` is False where a loss was not finite and theta was left alone.

    ``coefficient``: what a zeroth-order update multiplied z with; it and the step's number are all it takes to
    make the update again (NaN for others). ``phases``: seconds of perturbing and updating; the rest of a step
    is its forwards.
    """

    loss: float
    applied: bool
    measures: Mapping[str, float] = field(default_factory=dict)
    coefficient: float = field(default=math.nan, compare=False)
    phases: Mapping[str, float] = field(default_factory=dict, compare=False)


class Optimizer(Protocol):
    """Anything that can take step ``step`` on a batch."""

    def step(self, step: int, batch: Any) -> StepReport:
        """Change the model's weights once."""

    def state(self) -> Mapping[str, Tensor]:
        """What the optimizer remembers from step to step besides the weights."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Remember this instead."""


@dataclass(frozen=True)
class UniformBlocks:
    """LeZO's choice: ``keep`` of ``total`` blocks, uniformly without replacement, drawn from the step's seed."""

    total: int
    sparsity: float

    @property
    def keep(self) -> int:
        """K = N - round(sparsity N)."""
        return self.total - round(self.sparsity * self.total)

    def __call__(self, seed: int) -> tuple[int, ...]:
        return seeds.subset(seed, self.total, self.keep)


class SeededUpdate:
    """theta <- theta - (c z + decay theta) on a step's active tensors: a function of (seed, step, c) alone.

    ``choose`` maps a step's seed to the blocks that take part; the always-on group always does. MeZO is
    the choice of all blocks. ``decay`` is lr * weight decay. The same bits on every device (design section 3).
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        choose: Callable[[int], Sequence[int]],
        *,
        seed: int,
        decay: float = 0.0,
        rounding: Literal["nearest", "stochastic"] = "nearest",
    ) -> None:
        self.model, self.layout, self.choose = model, layout, choose
        self.seed, self.decay, self.rounding = seed, decay, rounding
        self.theta = dict(
            model.named_parameters()
        )  # to find each by its name takes longer than a small one's update

    def drawn(self, step: int) -> tuple[int, tuple[str, ...]]:
        """The seed of step ``step``, counted from 0, and the names of its active tensors."""
        seed = seeds.step_seed(self.seed, step)
        return seed, self.layout.active(self.choose(seed))

    @torch.no_grad()
    def apply(self, step: int, coefficient: Tensor) -> None:
        """Make step ``step``'s update, in fp32, rounded once; nothing if c, a () tensor on the device, is not finite."""
        seed, active = self.drawn(step)
        for name in active:
            theta = self.theta[name]
            decay = self.decay if decays(theta) else 0.0
            c = coefficient.to(philox.compute_dtype(theta))  # losses may be wider than the weights
            directions.update_(theta, seed, name, c, decay, rounding=self.rounding)

    def replay(self, step: int, coefficient: float) -> None:
        """Make an update of a journal."""
        theta = next(iter(self.theta.values()))
        dtype = torch.float64 if theta.dtype == torch.float64 else torch.float32
        self.apply(step, torch.tensor(coefficient, dtype=dtype, device=theta.device))


class TwoPoint:
    """MeZO and LeZO (design section 1): probe at theta +- eps z, step along z by the projected gradient.

    ``choose`` as in SeededUpdate.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        choose: Callable[[int], Sequence[int]],
        probe: Probe,
        *,
        lr: float,
        eps: float,
        weight_decay: float = 0.0,
        rounding: Literal["nearest", "stochastic"] = "nearest",
        seed: int = 0,
        watch: Stopwatch | None = None,
    ) -> None:
        self.update = SeededUpdate(
            model, layout, choose, seed=seed, decay=lr * weight_decay, rounding=rounding
        )
        self.probe, self.lr, self.eps = probe, lr, eps
        self.watch = watch or Stopwatch(next(model.parameters()).device)

    def step(self, step: int, batch: Any) -> StepReport:
        """Probe and, where both losses are finite, update. The device is waited for once, at the end."""
        return self.move(step, self.measure(step, batch))

    def measure(self, step: int, batch: Any) -> Tensor:
        """The losses at theta + eps z and theta - eps z, (2,), of step ``step``; those of parts of a batch add up."""
        seed, active = self.update.drawn(step)
        return self.probe(batch, active, seed=seed, eps=self.eps)

    def move(self, step: int, losses: Tensor) -> StepReport:
        """Update by what `measure` found, where both are finite. g = (l+ - l-) / (2 eps), in the losses' precision."""
        g = (losses[0] - losses[1]) / (2 * self.eps)
        coefficient = self.lr * g
        with self.watch("update"):
            self.update.apply(step, coefficient)
        plus, minus, measured, moved = torch.cat([losses, torch.stack([g, coefficient])]).tolist()
        measures = {"g": measured, "lr": self.lr, "loss_plus": plus, "loss_minus": minus}
        applied = math.isfinite(moved)
        return StepReport((plus + minus) / 2, applied, measures, moved, self.watch.lap())

    def state(self) -> dict[str, Tensor]:
        """Nothing: a step follows from the weights and its number."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to remember."""


class FirstOrder:
    """SGD or AdamW through autograd, with linear decay, clipping and dropout as options (protocol section 8).

    Where ``dropout`` is on, step t's masks are drawn under a seed of (seed, t); the model is in eval mode
    between steps. ``autocast`` wraps the forwards.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Contributions,
        *,
        algorithm: Literal["sgd", "adamw"],
        lr: float,
        steps: int,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        schedule: Literal["constant", "linear"] = "constant",
        clip_norm: float | None = None,
        dropout: bool = False,
        seed: int = 0,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model, self.objective, self.autocast = model, objective, autocast
        self.lr, self.steps, self.schedule = lr, steps, schedule
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
        lr = self._scheduled(step)
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
        with seeded(seeds.derive(self.seed, "dropout", step), self.parameters[0].device):
            self.model.train(self.dropout)
            with self.autocast():
                for part in self.objective(batch):
                    part.sum().backward()  # type: ignore[no-untyped-call]
                    losses.append(part.detach().sum())
            self.model.eval()
        return torch.stack(losses).sum()

    def _scheduled(self, step: int) -> float:
        return self.lr * (1 - step / self.steps) if self.schedule == "linear" else self.lr


def decays(theta: Tensor) -> bool:
    """Weight decay spares biases and norm gains: the tensors of one dimension."""
    return theta.ndim > 1


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
