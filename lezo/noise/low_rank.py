"""z of low rank: of a matrix U V^T / sqrt(r), as LOZO draws it (arXiv 2410.07698); of a tensor of one dimension normals.

U (rows, r) is a step's own; V (columns, r) is kept for ``period`` steps. Both are normals (`lezo.noise.philox`), drawn under
"<name>/U" of the step's seed and "<name>/V" of the period's. Entries of z have variance one: a product of two independent normals
has, and a mean of r of them times sqrt(r). So E[z z^T] = I, and g z is as unbiased, up to eps^2, as along any other z.

z is the sum u_1 v_1 + u_2 v_2 + ... in this order, times 1/sqrt(r), each product and sum rounded by itself in fp32 (fp64 for fp64
weights): the same bits on every device, which no matrix product promises. A tensor of more dimensions is a matrix of its first one
and all others. z is made for some rows at a time and nowhere stored; U and V are.

LOZO perturbs by eps' U V^T and steps by lr g' U V^T / r, with g' = (l+ - l-) / (2 eps'). That is along this z with
eps = sqrt(r) eps', for then eps z = eps' U V^T, g = g' / sqrt(r), and lr g z = lr g' U V^T / r: the same lr.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from lezo.noise import directions, philox
from lezo.noise.seeds import derive

_SLICE = 1 << 22  # elements of z at a time: 16 MB of fp32 in each of a few temporaries


class LowRank:
    """The direction of rank ``rank``, whose V are drawn anew where it is told to ``begin`` a period of ``period`` steps.

    Methods as in `lezo.noise.directions`, but by plain operators of torch. Raises ValueError for a rank or period below 1.
    """

    def __init__(self, rank: int = 2, period: int = 50) -> None:
        if min(rank, period) < 1:
            raise ValueError(f"rank={rank}, period={period}: expected whole numbers from 1")
        self.rank, self.period, self._kept = rank, period, 0

    def begin(self, seed: int) -> None:
        """The V of the period whose first step has this seed."""
        self._kept = seed

    @torch.no_grad()
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
        """theta + eps z and theta - eps z, each rounded once; with ``rows`` of those rows alone."""
        if theta.dim() < 2:
            return directions.perturb(theta, seed, name, eps, rows=rows, dtype=dtype, out=out)
        chosen = (theta if rows is None else theta[rows]).contiguous()
        wanted = dtype or theta.dtype
        plus, minus = out or (torch.empty_like(chosen, dtype=wanted), torch.empty_like(chosen, dtype=wanted))
        for part, z in self._slices(theta, seed, name, _SLICE, rows):
            wide, step = _rows(chosen)[part].to(z.dtype), z * _scalar(eps, theta)
            _rows(plus)[part] = wide + step
            _rows(minus)[part] = wide - step
        return plus, minus

    @torch.no_grad()
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
        """theta <- theta - (c z + d theta) in place; bit-identical where c = d = 0 or c is not finite."""
        if theta.dim() < 2:
            directions.update_(theta, seed, name, coefficient, decay, rounding=rounding)
            return
        stochastic = rounding == "stochastic" and theta.dtype.itemsize == 2
        flat, key = _rows(theta.contiguous()), derive(seed, name) if stochastic else None
        c = coefficient.to(theta.device, philox.compute_dtype(theta), non_blocking=True)
        right = c.isfinite() & (c != 0 if decay == 0 else torch.ones_like(c, dtype=torch.bool))
        for part, z in self._slices(theta, seed, name, philox.SLICE if stochastic else _SLICE):
            first = part.start * flat.shape[1]
            philox.descend_(flat[part], z * c, _scalar(decay, theta), right, key=key, first=first)
        if not theta.is_contiguous():
            theta.copy_(flat.view(theta.shape))

    def _slices(
        self, theta: Tensor, seed: int, name: str, size: int, rows: Tensor | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """z of some rows after the other, of about ``size`` elements, and which rows those are of the whole or of ``rows``."""
        columns = theta.numel() // max(len(theta), 1)
        u = _normals(theta, len(theta), self.rank, seed, f"{name}/U", rows)
        v = _normals(theta, columns, self.rank, self._kept, f"{name}/V").T.contiguous()
        for start in range(0, len(u), many := max(size // max(columns, 1), 1)):
            own = u[start : start + many]
            z = own[:, :1] * v[0]
            for k in range(1, self.rank):
                z = z + own[:, k : k + 1] * v[k]
            yield slice(start, start + len(own)), z * _scalar(1 / math.sqrt(self.rank), theta)


def _normals(
    like: Tensor, rows: int, rank: int, seed: int, name: str, chosen: Tensor | None = None
) -> Tensor:
    """(rows or those chosen, rank) normals in the precision of steps on ``like``, by the fastest kernels: 0 + 1 z."""
    zeros = torch.zeros(rows, rank, dtype=philox.compute_dtype(like), device=like.device)
    return directions.perturb(zeros, seed, name, 1.0, rows=chosen)[0]


def _rows(theta: Tensor) -> Tensor:
    """A matrix of its first dimension and all others."""
    return theta.view(len(theta), -1) if theta.numel() else theta.view(len(theta), 0)


def _scalar(value: float, theta: Tensor) -> float:
    """``value`` in the precision of steps on theta."""
    return value if theta.dtype == torch.float64 else philox.fp32(value)
