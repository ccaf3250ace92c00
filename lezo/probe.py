"""The two losses at theta + eps z and theta - eps z, with theta read-only (design section 1).

The plain form: perturbed copies of the active tensors stand in for theta during one forward. Theta is never
written, so nothing has to be restored and a crash in mid-step harms nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lezo.noise import normal

Objective = Callable[[Callable[..., object]], Tensor]


@torch.no_grad()
def two_point(
    model: nn.Module, active: Sequence[str], objective: Objective, *, seed: int, eps: float
) -> tuple[Tensor, Tensor]:
    """(l+, l-), each () fp32. ``objective`` maps a stand-in for ``model`` to the loss.

    Memory beyond the forward's: one copy of the active tensors.
    """
    return loss_at(model, active, objective, seed, eps), loss_at(model, active, objective, seed, -eps)


def loss_at(model: nn.Module, active: Sequence[str], objective: Objective, seed: int, scale: float) -> Tensor:
    """The loss at theta + scale z, z on the active tensors only."""
    moved = {name: perturbed(model.get_parameter(name), name, seed, scale) for name in active}

    def forward(*args: object, **kwargs: object) -> object:
        return functional_call(model, moved, args, kwargs)

    return objective(forward)


def perturbed(theta: Tensor, name: str, seed: int, scale: float) -> Tensor:
    """theta + scale z, computed in fp32 and rounded once to theta's dtype."""
    z = normal(seed, name, theta)
    return (theta.to(z.dtype) + scale * z).to(theta.dtype)
