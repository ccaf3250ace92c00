"""Along which z a step perturbs and updates: Gaussian (`lezo.noise.directions`), or from an installed package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lezo.model.layout import Layout
from lezo.noise import directions
from lezo.noise.directions import Pair


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


@runtime_checkable
class Grouped(Protocol):
    """A `Direction` that perturbs and updates many tensors at once, as in `lezo.noise.directions`."""

    def perturbations(
        self, groups: Sequence[Sequence[Pair]], seed: int, eps: float
    ) -> list[Callable[[], None]]:
        """For each group a call that perturbs its tensors."""

    def update_all_(
        self,
        thetas: Mapping[str, Tensor],
        seed: int,
        coefficient: Tensor,
        decays: Mapping[str, float],
        *,
        rounding: Literal["nearest", "stochastic"] = "nearest",
    ) -> None:
        """`Direction.update_` of all."""


@runtime_checkable
class Partial(Protocol):
    """A `Direction` that is zero on some tensors, which then neither move nor decay."""

    def layout(self, model: nn.Module, tensors: Layout) -> Layout:
        """Of the tensors those that move. Raises ModelError where there are none."""


@runtime_checkable
class Joint(Protocol):
    """A `Direction` that makes a step's update along all of its directions at once."""

    def update_along_(
        self,
        thetas: Mapping[str, Tensor],
        seeds: Sequence[int],
        coefficients: Tensor,
        decays: Mapping[str, float],
        *,
        rounding: Literal["nearest", "stochastic"] = "nearest",
    ) -> None:
        """theta <- theta - (sum of c_i z(seed_i) + d theta) of all, rounded once; nothing where a c is not finite."""


def moving(direction: Direction, model: nn.Module, tensors: Layout) -> Layout:
    """Of the tensors those on which z is not zero."""
    return direction.layout(model, tensors) if isinstance(direction, Partial) else tensors


def perturbations(
    direction: Direction, groups: Sequence[Sequence[Pair]], seed: int, eps: float
) -> list[Callable[[], None]]:
    """For each group a call that perturbs its tensors along z(seed), each into its pair."""
    if isinstance(direction, Grouped):
        return direction.perturbations(groups, seed, eps)

    def each(group: Sequence[Pair]) -> None:
        for pair in group:
            out = pair.plus, pair.minus
            direction.perturb(pair.theta.detach(), seed, pair.name, eps, dtype=pair.plus.dtype, out=out)

    return [partial(each, group) for group in groups]


def update_all_(
    direction: Direction,
    thetas: Mapping[str, Tensor],
    seed: int,
    coefficient: Tensor,
    decays: Mapping[str, float],
    *,
    rounding: Literal["nearest", "stochastic"] = "nearest",
) -> None:
    """theta <- theta - (c z(seed) + d theta) of all, each with its own d; c may be wider than the weights."""
    if isinstance(direction, Grouped):
        direction.update_all_(thetas, seed, coefficient, decays, rounding=rounding)
        return
    for name, theta in thetas.items():
        c = coefficient.to(theta.device, torch.promote_types(theta.dtype, torch.float32), non_blocking=True)
        direction.update_(theta, seed, name, c, decays[name], rounding=rounding)


GAUSSIAN: Direction = directions
