"""Zeroth-order SGD with heavy-ball momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from lezo.zo.methods.moments import Moments
from lezo.zo.rule import Move


class Momentum(Moments):
    """m <- beta m + u, then theta <- theta - (m + decay theta), u = lr g z: heavy ball as in Sutskever et al. 2013, eq. 1.

    The learning rate is inside m, so that the journal's c = lr g says all; with a constant one it is `torch.optim.SGD`'s
    momentum (dampening 0), and where it changes m keeps what earlier steps had. A tensor's m is as it was through steps
    that skip it. The limit of a step is lr / (1 - beta): a learning rate of MeZO's is to be taken times 1 - beta.

    Memory: 4 bytes a trainable weight (8 in fp64), and one tensor in fp32 four times while it is updated. z is drawn into
    m by the direction's own update, all tensors at once.
    """

    kinds: ClassVar[tuple[str, ...]] = ("m",)

    def __init__(self, beta: float = 0.9) -> None:
        super().__init__()
        if not 0 <= beta < 1:
            raise ValueError(f"beta={beta}: expected a number from 0 to below 1")
        self.beta = beta

    @torch.no_grad()
    def move(self, thetas: Mapping[str, Tensor], homes: Mapping[str, Tensor], by: Move) -> None:
        """See `lezo.zo.rule.Rule`."""
        held = {name: self.held("m", name, homes[name]) for name in thetas}
        here = {name: m.to(thetas[name].device) for name, m in held.items()}
        by.take_(here, dict.fromkeys(here, 1 - self.beta), scale=-1.0)  # m - (-u + (1 - beta) m)
        for name, theta in thetas.items():
            by.descend_(name, theta, here[name])
            if here[name] is not held[name]:
                held[name].copy_(here[name])

    def __str__(self) -> str:
        return f"momentum {self.beta:g}"
