"""A backend against the twin, bit for bit, on tensors that have numbers of every size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lezo.noise import philox
from lezo.noise.seeds import derive

KEY = derive(5, "layers.0.weight")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZES = [1, 1024, 1025, 5000]
LARGE = (1 << 17) + 3  # which is shared out to threads


def weights(*shape: int, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """From 1e-9, subnormal in fp16, to about 10, with zeros of both signs."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(shape, generator=generator) * 10 ** (torch.rand(shape, generator=generator) * 10 - 9)
    theta.view(-1)[::13] = 0.0
    theta.view(-1)[5::17] = -0.0
    return theta.to(dtype).to(device)


def same_bits(given: Tensor, expected: Tensor) -> bool:
    return given.dtype == expected.dtype and torch.equal(given.view(torch.uint8), expected.view(torch.uint8))


def assert_perturbs_alike(
    perturb: Callable[..., None],
    theta: Tensor,
    *,
    rows: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Both results, and theta is left alone."""
    before = theta.clone()
    shape = theta.shape if rows is None else (len(rows), theta.shape[1])
    results = [torch.full(shape, 7.0, dtype=dtype or theta.dtype, device=theta.device) for _ in range(4)]
    eps = philox.fp32(1e-3)
    perturb(theta, KEY, eps, rows, *results[:2])
    philox.perturb(theta, KEY, eps, rows, *results[2:])
    assert same_bits(results[0], results[2])
    assert same_bits(results[1], results[3])
    assert not torch.equal(results[0], results[1])
    assert same_bits(theta, before)


def assert_updates_alike(
    update: Callable[..., None], theta: Tensor, *, stochastic: bool, c: float = 3e-3, decay: float = 0.01
) -> None:
    given, expected = theta.clone(), theta.clone()
    coefficient = torch.tensor(c, device=theta.device)
    update(given, KEY, coefficient, philox.fp32(decay), stochastic)
    philox.update(expected, KEY, coefficient, philox.fp32(decay), stochastic)
    assert same_bits(given, expected)
    assert not torch.equal(given, theta)


def assert_a_null_step_leaves_the_bits(
    update: Callable[..., None], theta: Tensor, *, stochastic: bool
) -> None:
    """c = d = 0, and every c that is not finite; also of infinities and of zeros' signs."""
    theta.view(-1)[:2] = torch.tensor([float("inf"), float("-inf")])
    for c, decay in (
        (0.0, 0.0),
        (-0.0, 0.0),
        (float("nan"), 0.01),
        (float("inf"), 0.01),
        (float("-inf"), 0.0),
    ):
        given = theta.clone()
        update(given, KEY, torch.tensor(c, device=theta.device), decay, stochastic)
        assert same_bits(given, theta), (c, decay)
