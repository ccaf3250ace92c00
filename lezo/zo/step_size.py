"""How much of the learning rate a step takes: all of it, a schedule's share, or what its measures ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class StepSize(Protocol):
    """From a step's number and what it measured to a factor of the learning rate."""

    def share(self, step: int) -> float:
        """By the number alone, counted from 0: so much of the weight decay too, also in a replay."""
        return 1.0

    def __call__(self, step: int, slopes: Tensor) -> float | Tensor:
        """``slopes``: (q,), dL/dz of the step's directions, on the device. A number, or a () tensor there."""
        return self.share(step)


@dataclass(frozen=True)
class Constant(StepSize):
    """All of it in every step."""


@dataclass(frozen=True)
class Linear(StepSize):
    """From all of it in the first of ``steps`` steps down to nothing after the last."""

    steps: int

    def share(self, step: int) -> float:
        return 1 - step / self.steps
