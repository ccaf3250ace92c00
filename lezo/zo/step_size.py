"""How much of the learning rate a step takes: all of it, a schedule's share, or what its measures ask for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor


class StepSize(Protocol):
    """From a step's number and what it measured to a factor of the learning rate."""

    def share(self, step: int) -> float:
        """By the number alone, counted from 0: so much of the weight decay too, also in a replay."""
        return 1.0

    def __call__(self, step: int, slopes: Tensor) -> float | Tensor:
        """``slopes``: (q,), dL/dz of the step's directions, on the device. A number, or a () tensor there."""
        return self.share(step)


@runtime_checkable
class Clipping(Protocol):
    """A `StepSize` that bounds the slopes before the step takes them."""

    def clipped(self, slopes: Tensor) -> Tensor:
        """(q,) of (q,); what is not finite stays so."""


@dataclass(frozen=True)
class Constant(StepSize):
    """All of it in every step."""


@dataclass(frozen=True)
class Linear(StepSize):
    """From all of it in the first of ``steps`` steps down to nothing after the last."""

    steps: int

    def share(self, step: int) -> float:
        return 1 - step / self.steps


@dataclass(frozen=True)
class Scheduled(StepSize):
    """Linearly up over ``warmup`` steps, from 1/warmup; then by ``schedule`` down to nothing after step ``steps``.

    ``clip``: slopes are at most so large, up or down.
    """

    schedule: Literal["constant", "linear", "cosine"] = "constant"
    steps: int | None = None
    warmup: int = 0
    clip: float | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a schedule that is none, or does not know its end."""
        if self.schedule not in ("constant", "linear", "cosine"):
            raise ValueError(f"schedule={self.schedule!r}: expected constant, linear or cosine")
        if self.schedule != "constant" and not (self.steps and self.steps > self.warmup):
            raise ValueError(
                f"schedule={self.schedule}: expected more steps than the warm-up's {self.warmup}"
            )

    def share(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "constant" or self.steps is None:
            return 1.0
        left = 1 - (step - self.warmup) / (self.steps - self.warmup)
        return left if self.schedule == "linear" else _exact((1 - math.cos(math.pi * left)) / 2)

    def clipped(self, slopes: Tensor) -> Tensor:
        return slopes if self.clip is None else slopes.clamp(-self.clip, self.clip)


def _exact(share: float) -> float:
    """To 32 bits: the last ones of a cosine differ from machine to machine, and a replay takes the same share."""
    return round(share * 2**32) / 2**32
