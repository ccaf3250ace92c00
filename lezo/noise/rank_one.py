"""z = u v^T of random signs, and the sum of many of them in one product: the same bits on every device.

A direction has a seed of its own (`lezo.noise.seeds.direction_seed`). The signs of a matrix's rows, u, and columns, v,
are bits of Philox (`lezo.noise.philox`): sign e of a side is bit e % 32 of word e % 128 // 32 of the call with the counter
(e // 128, RANK_ONE, name, side) and the direction's seed as key; 0 is +1. ``name``: 32 bits of a hash of the tensor's name.

Every element of z is +1 or -1, so that E[<G, z> z] = G for any G, as for Gaussian elements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from lezo.noise import philox
from lezo.noise.operands import sent
from lezo.noise.seeds import derive

CALL = 128  # bits that one call gives

Sides = tuple[Tensor, Tensor]
"""u, (directions, rows), and v, (directions, columns), of one matrix, in fp32."""


def sides(
    seeds: Sequence[int], shapes: Mapping[str, tuple[int, int]], device: torch.device
) -> dict[str, Sides]:
    """The signs of all directions, whose seeds these are, for matrices of these names and (rows, columns)."""
    return split(signs(seeds, shapes, device), shapes)


def signs(seeds: Sequence[int], shapes: Mapping[str, tuple[int, int]], device: torch.device) -> Tensor:
    """The same in one tensor, (directions, bits drawn) fp32, which `split` takes apart."""
    keys = torch.tensor([(seed & philox.LOW, seed >> 32) for seed in seeds], dtype=torch.int64)
    keys = sent(keys, device)
    counters = _counters(tuple(shapes.items()), device)
    words = philox.philox((keys[:, :1], keys[:, 1:]), counters)  # type: ignore[arg-type] # tensors count as numbers
    places = torch.arange(32, device=device, dtype=torch.int32)
    bits = (torch.stack(words, 2).to(torch.int32)[..., None] >> places) & 1  # (directions, calls, 4, 32)
    return torch.sub(1.0, bits.flatten(1), alpha=2)


def split(drawn: Tensor, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Sides]:
    """u and v of each matrix, which are parts of ``drawn``."""
    sizes = [size for both in shapes.values() for size in both]
    padded = torch.split(drawn, [-(-size // CALL) * CALL for size in sizes], 1)
    each = [part[:, :size] for part, size in zip(padded, sizes, strict=True)]
    return dict(zip(shapes, zip(each[::2], each[1::2], strict=True), strict=True))


@lru_cache(maxsize=64)
def _counters(
    shapes: tuple[tuple[str, tuple[int, int]], ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The counters of all calls, (1, calls) each."""
    parts = [(derive(name) & philox.LOW, side, n) for name, both in shapes for side, n in enumerate(both)]
    calls = [-(-size // CALL) for *_, size in parts]
    number = torch.cat([torch.arange(n) for n in calls])
    name = torch.tensor([name for name, *_ in parts]).repeat_interleave(torch.tensor(calls))
    side = torch.tensor([side for _, side, _ in parts]).repeat_interleave(torch.tensor(calls))
    c0, c1, c2, c3 = (
        sent(n[None], device) for n in (number, torch.full_like(number, philox.RANK_ONE), name, side)
    )
    return c0, c1, c2, c3


class RankOne:
    """A `Direction` along u v^T (`lezo.zo.direction`); of a tensor of one dimension along u. theta is a matrix or a vector."""

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
    ) -> Sides:
        """theta + eps z and theta - eps z, as `lezo.noise.directions.perturb`; slowly, by z as a whole."""
        z, theta = _whole(seed, name, theta), theta.detach()
        if rows is not None:
            z, theta = z[rows], theta[rows]
        wide = theta.to(philox.compute_dtype(theta))
        step = z.to(wide.dtype) * eps
        pair = (wide + step).to(dtype or theta.dtype), (wide - step).to(dtype or theta.dtype)
        return pair if out is None else (out[0].copy_(pair[0]), out[1].copy_(pair[1]))

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
        """theta <- theta - (c z + d theta), as `lezo.noise.directions.update_`."""
        self.update_along_({name: theta}, [seed], coefficient.reshape(1), {name: decay}, rounding=rounding)

    @torch.no_grad()
    def update_along_(
        self,
        thetas: Mapping[str, Tensor],
        seeds: Sequence[int],
        coefficients: Tensor,
        decays: Mapping[str, float],
        *,
        rounding: Literal["nearest", "stochastic"] = "nearest",
    ) -> None:
        """theta <- theta - (sum of c_i z_i + d theta) of all ``thetas``, each with its own decay; nothing if a c is not finite.

        ``coefficients``: (directions,), rounded to multiples of a power of two (`on_grid`), so that their sum is exact in
        whatever order a matrix product adds; then as `lezo.noise.directions.update_all_`, rounded once.
        """
        drawn = _drawn(seeds, thetas)
        rounded: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}
        for name, theta in thetas.items():
            kind = theta.device, philox.compute_dtype(theta)
            if kind not in rounded:
                c = on_grid(coefficients.to(*kind))
                rounded[kind] = c, c.isfinite().all()
            c, right = rounded[kind]
            u, v = drawn[name]
            step = ((u.to(c.dtype) * c[:, None]).mT @ v.to(c.dtype)).view(theta.shape)
            key = derive(seeds[0], name) if rounding == "stochastic" else None
            philox.descend_(theta, step, decays[name], right, key=key)


def on_grid(coefficients: Tensor) -> Tensor:
    """(q,) coefficients as multiples of one power of two, so coarse that any sum of q of them, in any order, is exact.

    At most 2^-22 q of the largest is rounded off in fp32. What is not finite stays so.
    """
    _, exponent = torch.frexp(coefficients.abs().max())
    bits = 24 if coefficients.dtype == torch.float32 else 53
    grid = torch.ldexp(
        torch.ones_like(coefficients[0]), exponent + (len(coefficients) - 1).bit_length() - bits
    )
    return (coefficients / grid).round() * grid


def _drawn(seeds: Sequence[int], thetas: Mapping[str, Tensor]) -> dict[str, Sides]:
    """u and v of all, each where its tensor is; the v of a tensor of one dimension is 1."""
    found: dict[str, Sides] = {}
    for device in dict.fromkeys(theta.device for theta in thetas.values()):
        here = {
            name: theta.flatten(1) if theta.ndim > 1 else theta[:, None]
            for name, theta in thetas.items()
            if theta.device == device
        }
        drawn = sides(seeds, {name: (theta.shape[0], theta.shape[1]) for name, theta in here.items()}, device)
        found |= {
            name: (u, v if thetas[name].ndim > 1 else torch.ones_like(v)) for name, (u, v) in drawn.items()
        }
    return found


def _whole(seed: int, name: str, theta: Tensor) -> Tensor:
    """z of theta's shape, in fp32."""
    u, v = _drawn([seed], {name: theta.detach()})[name]
    return (u[0][:, None] * v[0]).view(theta.shape)
