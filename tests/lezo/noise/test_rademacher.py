"""Signs as z: frozen bits, their statistics, and the same functions as the Gaussian has."""

import math

import pytest
import torch

from lezo.noise import philox
from lezo.noise.directions import Pair
from lezo.noise.rademacher import Rademacher
from lezo.noise.seeds import derive
from lezo.zo.direction import Grouped
from lezo.zo.parts import DIRECTIONS

KEY = derive(1, "w")
SIZE = 1 << 18
FIRST = "++---+-++-+++--+----+--+-+++---++++-----"
SUMS = [22, -10, 0, -4]


@pytest.fixture(scope="module")
def z():
    return philox.signs(KEY, torch.arange(SIZE))


def test_the_signs_are_frozen(z):
    """Journals are replayed from them: these never change."""
    assert "".join("+" if sign > 0 else "-" for sign in z[:40].tolist()) == FIRST
    assert [int(z[at : at + 1024].sum()) for at in (0, 1024, 31 * 1024, 32 * 1024)] == SUMS


def test_each_is_a_bit_of_its_word_whatever_is_asked_for_beside_it(z):
    elements = torch.tensor([[SIZE - 1, 0, 1023], [33 * 1024 + 700, 31 * 1024 + 700, 256]])
    alone = philox.signs(KEY, elements)
    assert torch.equal(alone, z[elements])
    x = philox.words(KEY, 2, torch.tensor([256 + 700 % 256]))  # chunk 33 is the second of its words' 32
    assert alone[1, 0] == (-1 if int(x[700 // 256]) >> 1 & 1 else 1)


def test_they_are_plus_and_minus_one_in_equal_shares_and_independent(z):
    assert set(z.unique().tolist()) == {-1.0, 1.0}
    error = 5 / math.sqrt(SIZE)
    assert abs(z.mean()) < error
    for lag in (1, 255, 256, 1024, 32 * 1024):
        assert abs((z[lag:] * z[:-lag]).mean()) < 2 * error, lag
    assert abs((z * philox.normals(KEY, torch.arange(SIZE))).mean()) < error


def test_another_key_draws_other_signs(z):
    other = philox.signs(derive(2, "w"), torch.arange(SIZE))
    assert abs((z * other).mean()) < 5 / math.sqrt(SIZE)


def test_it_perturbs_and_updates_one_tensor_and_many_along_the_same_signs():
    direction = DIRECTIONS["rademacher"]()
    assert isinstance(direction, Grouped)
    theta, seed = torch.randn(3, 700), 5
    expected = philox.signs(derive(seed, "w"), torch.arange(2100).view(3, 700))
    plus, minus = Rademacher().perturb(theta, seed, "w", 0.5)
    assert torch.equal(plus, theta + 0.5 * expected) and torch.equal(minus, theta - 0.5 * expected)
    pair = Pair("w", theta, torch.empty_like(theta), torch.empty_like(theta))
    (call,) = direction.perturbations([[pair]], seed, 0.5)
    call()
    assert torch.equal(pair.plus, plus) and torch.equal(pair.minus, minus)
    for moved in (theta.clone(), theta.clone()):
        direction.update_(moved, seed, "w", torch.tensor(0.5), 0.0)
        assert torch.equal(moved, minus)
    moved = theta.clone()
    direction.update_all_({"w": moved}, seed, torch.tensor(0.5), {"w": 0.0})
    assert torch.equal(moved, minus)
