"""Zeroth-order Adam, as MeZO-Adam has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Context, Decimal
from typing import ClassVar

import torch
from torch import Tensor

from lezo.zo.methods.moments import Moments, chunks
from lezo.zo.rule import Move


class Adam(Moments):
    """MeZO-Adam (arXiv 2305.17333, section 2.2 and appendix B.2): Adam on the estimate G = g z.

    m <- beta1 m + (1 - beta1) G, v <- beta2 v + (1 - beta2) G^2, theta <- theta - (lr m^ / (sqrt(v^) + eps) + decay theta),
    with m^ and v^ corrected for their beginning at 0 by how often the tensor has moved: one that a step skips keeps its moments
    and its count. MEAZO (arXiv 2605.03869) finds that Adam's moments of each weight bring ZO no faster convergence than a tuned
    learning rate of ZO-SGD does, and that one number for all weights does as well; so begin with MeZO.

    Different from the paper: moments are kept, not made again from the journal in each step, and the decay is apart from
    the moments. ``lr`` is a setting, for G = u / lr, u = lr g z what the journal says; a schedule's share counts. At a rate of 0
    u says nothing of G, so such a step is none: moments and counts stay (torch's Adam renews them).

    Memory: 8 bytes a trainable weight (16 in fp64), and for an update G of 2^26 weights, or of the largest tensor, and six
    times one tensor in fp32. Bits: products, sums, quotients and roots, each rounded, so that all devices agree.
    """

    kinds: ClassVar[tuple[str, ...]] = ("m", "v")

    def __init__(self, lr: float, beta1: float = 0.9, beta2: float = 0.999, adam_eps: float = 1e-8) -> None:
        super().__init__()
        if not (0 <= beta1 < 1 and 0 <= beta2 < 1 and adam_eps > 0 and lr > 0):
            given = f"lr={lr}, beta1={beta1}, beta2={beta2}, adam_eps={adam_eps}"
            raise ValueError(f"{given}: expected lr and adam_eps above 0, betas from 0 to below 1")
        self.lr, self.betas, self.eps = lr, (beta1, beta2), adam_eps
        self._rests = False  # whether the latest step was at a rate of 0

    @torch.no_grad()
    def move(self, thetas: Mapping[str, Tensor], homes: Mapping[str, Tensor], by: Move) -> None:
        """See `lezo.zo.rule.Rule`."""
        rate = self.lr * by.share
        self._rests = not rate
        if self._rests:
            return
        for part in chunks(thetas):
            dtypes = {name: self.held("m", name, homes[name]).dtype for name in part}
            estimates = {n: torch.zeros(p.shape, dtype=dtypes[n], device=p.device) for n, p in part.items()}
            by.take_(estimates, dict.fromkeys(part, 0.0), scale=-1 / rate)
            for name, theta in part.items():
                held = [self.held(kind, name, homes[name]) for kind in self.kinds]
                m, v = (moment.to(theta.device) for moment in held)
                by.descend_(
                    name, theta, self._step(estimates.pop(name), m, v, self.moves.get(name, 0) + 1, rate, by)
                )
                for moment, here in zip(held, (m, v), strict=True):
                    if moment is not here:
                        moment.copy_(here)

    def made(self, names: Iterable[str], finite: bool) -> None:
        """See `Rule.made`."""
        super().made(names, finite and not self._rests)

    def _step(self, estimate: Tensor, m: Tensor, v: Tensor, count: int, rate: float, by: Move) -> Tensor:
        """Renew the moments in place, where c is finite; the step, of their shape."""
        (beta1, beta2), finite = self.betas, by.finite(m.device)
        first, second = (1 - _power(beta, count) for beta in self.betas)
        m.copy_(torch.where(finite, m * beta1 + estimate * (1 - beta1), m))
        v.copy_(torch.where(finite, v * beta2 + estimate.square_() * (1 - beta2), v))
        root = (v * (1 / second)).double().sqrt_().to(v.dtype)  # of fp32 not correctly rounded on every CPU
        return m * (rate / first) / root.add_(self.eps)

    def __str__(self) -> str:
        return f"Adam with betas {self.betas[0]:g} and {self.betas[1]:g}"


def _power(beta: float, count: int) -> float:
    """beta^count, the same on every machine, which a library's power need not be."""
    return float(Context(prec=20).power(Decimal(beta), count))
