"""u v^T of random signs: what they are bit by bit, unbiased, and summed to the same bits in any order."""

import itertools
import math

import pytest
import torch

from lezo.noise import philox
from lezo.noise.rank_one import RankOne, on_grid, sides
from lezo.noise.seeds import derive, direction_seed

CPU = torch.device("cpu")
SEEDS = [direction_seed(9, number) for number in range(5)]


def sign(seed: int, name: str, side: int, element: int) -> float:
    """By the definition, one at a time."""
    words = philox.philox(
        (seed & philox.LOW, seed >> 32),
        tuple(torch.tensor([n]) for n in (element // 128, philox.RANK_ONE, derive(name) & philox.LOW, side)),  # type: ignore[arg-type]
    )
    return 1.0 - 2.0 * ((int(words[element % 128 // 32]) >> (element % 32)) & 1)


def test_signs_are_as_defined_whatever_is_drawn_beside_them() -> None:
    shapes = {"a.weight": (300, 7), "b.weight": (3, 129)}
    together = sides(SEEDS, shapes, CPU)
    for name, shape in shapes.items():
        assert all(
            torch.equal(one, both)
            for one, both in zip(sides(SEEDS, {name: shape}, CPU)[name], together[name], strict=True)
        )
        for side, size in enumerate(shape):
            for number, element in itertools.product(
                (0, 4), {0, 31, 32, 127, 128, size - 1} & {*range(size)}
            ):
                found = together[name][side][number, element]
                assert found == sign(SEEDS[number], name, side, element)


def test_directions_are_independent_and_unbiased() -> None:
    seeds = [direction_seed(1, number) for number in range(4000)]
    u, v = sides(seeds, {"w": (4, 3)}, CPU)["w"]
    z = u[:, :, None] * v[:, None, :]
    gradient = torch.arange(12.0).reshape(4, 3) - 5
    estimates = (z * gradient).sum((1, 2))[:, None, None] * z
    error = estimates.std(0) / math.sqrt(len(seeds))
    assert ((estimates.mean(0) - gradient).abs() < 5 * error).all()
    assert (torch.einsum("qr,qs->rs", u, u) / len(seeds) - torch.eye(4)).abs().max() < 0.1


@pytest.mark.parametrize("count", [1, 16, 33])
def test_a_sum_has_the_same_bits_in_any_order(count: int) -> None:
    draw = torch.Generator().manual_seed(count)
    c = on_grid(torch.randn(count, generator=draw) * 3e-7)
    signs = torch.randint(0, 2, (count, 200), generator=draw).float() * 2 - 1
    exact = (c.double()[:, None] * signs.double()).sum(0)
    for order in (torch.arange(count), torch.randperm(count, generator=draw)):
        total = torch.zeros(200)
        for number in order.tolist():
            total += c[number] * signs[number]
        assert torch.equal(total.double(), exact)
    assert (c - on_grid(c)).abs().max() == 0


def test_what_is_rounded_off_is_little() -> None:
    c = torch.randn(16, generator=torch.Generator().manual_seed(0))
    assert (on_grid(c) - c).abs().max() < 16 * 2**-22 * c.abs().max()
    assert on_grid(torch.zeros(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_an_update_is_the_sum_rounded_once(dtype: torch.dtype) -> None:
    theta = torch.randn(6, 5, generator=torch.Generator().manual_seed(3)).to(dtype)
    c = torch.tensor([0.25, -0.5, 0.125, 1.0, 0.0625])
    u, v = sides(SEEDS, {"w": (6, 5)}, CPU)["w"]
    wide = theta.to(philox.compute_dtype(theta))
    expected = wide - ((c[:, None, None] * u[:, :, None] * v[:, None, :]).sum(0).to(wide.dtype) + wide * 0.5)
    RankOne().update_along_({"w": theta}, SEEDS, c, {"w": 0.5})
    assert torch.equal(theta, expected.to(dtype))


def test_a_coefficient_that_is_not_finite_moves_nothing() -> None:
    theta = torch.ones(4, 4)
    RankOne().update_along_({"w": theta}, SEEDS[:2], torch.tensor([1.0, math.nan]), {"w": 0.5})
    assert torch.equal(theta, torch.ones(4, 4))


def test_stochastic_rounding_keeps_small_updates_in_the_mean() -> None:
    theta = torch.ones(64, 64, dtype=torch.bfloat16)
    for step in range(40):
        RankOne().update_along_({"w": theta}, [step], torch.tensor([1e-4]), {"w": 0.0}, rounding="stochastic")
    moved = (theta.float() - 1).abs()
    assert moved.max() > 0 and abs(float((theta.float() - 1).mean())) < 1e-3


def test_a_direction_alone_perturbs_along_what_it_updates() -> None:
    for theta in (torch.zeros(5, 4), torch.zeros(7), torch.zeros(2, 3, 2)):
        plus, minus = RankOne().perturb(theta, 5, "w", 0.5)
        moved = theta.clone()
        RankOne().update_(moved, 5, "w", torch.tensor(-0.5), 0.0)
        assert torch.equal(plus, moved) and torch.equal(minus, -plus) and (plus.abs() == 0.5).all()
    rows = torch.tensor([3, 0])
    whole = RankOne().perturb(torch.ones(5, 4), 5, "w", 0.5)[0]
    assert torch.equal(RankOne().perturb(torch.ones(5, 4), 5, "w", 0.5, rows=rows)[0], whole[rows])
