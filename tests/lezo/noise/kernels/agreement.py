"""A backend against the twin, bit for bit, on tensors that have numbers of every size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lezo.noise import philox
from lezo.noise.operands import Copies, Step
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
    perturbations: Callable[..., Any],
    theta: Tensor,
    *,
    rows: Tensor | None = None,
    dtype: torch.dtype | None = None,
    draw: int = philox.NORMALS,
) -> None:
    """Both results, and theta is left alone."""
    before = theta.clone()
    shape = theta.shape if rows is None else (len(rows), theta.shape[1])
    results = [torch.full(shape, 7.0, dtype=dtype or theta.dtype, device=theta.device) for _ in range(4)]
    for made, copies in ((perturbations, results[:2]), (philox.perturbations, results[2:])):
        made([[Copies(theta, KEY, rows, *copies)]], philox.fp32(1e-3), draw)[0]()
    assert same_bits(results[0], results[2])
    assert same_bits(results[1], results[3])
    assert not torch.equal(results[0], results[1])
    assert same_bits(theta, before)


def assert_updates_alike(
    update: Callable[..., None],
    theta: Tensor,
    *,
    stochastic: bool,
    c: float = 3e-3,
    decay: float = 0.01,
    draw: int = philox.NORMALS,
) -> None:
    given, expected = theta.clone(), theta.clone()
    coefficient = torch.tensor(c, device=theta.device)
    update([Step(given, KEY, philox.fp32(decay))], coefficient, stochastic, draw)
    philox.update([Step(expected, KEY, philox.fp32(decay))], coefficient, stochastic, draw)
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
        update([Step(given, KEY, decay)], torch.tensor(c, device=theta.device), stochastic)
        assert same_bits(given, theta), (c, decay)


SHAPES = [(1,), (3, 1000), (1024,), (2500,), (40, 64)]
"""Of tensors that share a launch: one element, a size that no wide access divides, whole chunks and parts of some."""


def assert_perturbs_many_alike(
    perturbations: Callable[..., Any], dtype: torch.dtype, device: str, draw: int = philox.NORMALS
) -> None:
    """Several tensors in several groups, made in another order; every other result in fp32, one of rows."""

    def groups() -> Iterator[list[Copies]]:
        for number in range(2):
            group = []
            for key, shape in enumerate(SHAPES):
                theta = weights(*shape, dtype=dtype, device=device)
                rows = torch.tensor([2, 0], device=device) if shape == (3, 1000) else None
                size = shape if rows is None else (2, 1000)
                wide = torch.float32 if key % 2 else dtype
                pair = (torch.full(size, 7.0, dtype=wide, device=device) for _ in range(2))
                group.append(Copies(theta, KEY + 10 * number + key, rows, *pair))
            yield group

    given, expected = list(groups()), list(groups())
    for made, copies in ((perturbations, given), (philox.perturbations, expected)):
        for call in reversed(made(copies, philox.fp32(1e-3), draw)):
            call()
    for found, right in zip(sum(given, []), sum(expected, []), strict=True):
        assert same_bits(found.plus, right.plus) and same_bits(found.minus, right.minus)
        assert not torch.equal(found.plus, found.minus)


def assert_updates_many_alike(
    update: Callable[..., None], dtype: torch.dtype, device: str, draw: int = philox.NORMALS
) -> None:
    """Several tensors, of which some decay."""

    def steps() -> list[Step]:
        thetas = [weights(*shape, dtype=dtype, device=device) for shape in SHAPES]
        return [Step(theta, KEY + key, philox.fp32(0.01 * (key % 2))) for key, theta in enumerate(thetas)]

    given, expected = steps(), steps()
    for made, those in ((update, given), (philox.update, expected)):
        made(those, torch.tensor(3e-3, device=device), False, draw)
    for found, right in zip(given, expected, strict=True):
        assert same_bits(found.theta, right.theta)
