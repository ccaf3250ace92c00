"""Along which z a step perturbs and updates: Gaussian (`lezo.noise.directions`), or from an installed package."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from lezo.noise import directions


class Direction(Protocol):
    """z, a function of (seed, tensor's name, element) alone: what is drawn to perturb is drawn again to update.

    Both methods as in `lezo.noise.directions`, which says dtypes, rounding and what is refused.
    """

    def perturb(
        self,
        theta: Tensor,
        seed: int,
        name: str,
        eps: float,
        *,
        rows: Tensor | None = None,
        dtype: torch.dtype | None = None,
        out: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """theta + eps z and theta - eps z; theta is only read."""

    def update_(
        self,
        theta: Tensor,
        seed: int,
        name: str,
        coefficient: Tensor,
        decay: float,
        *,
        rounding: Literal["nearest", "stochastic"] = "nearest",
    ) -> None:
        """theta <- theta - (c z + d theta) in place; nothing where c is not finite."""


GAUSSIAN: Direction = directions
