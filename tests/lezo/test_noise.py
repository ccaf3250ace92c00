import math
from collections import Counter
from itertools import combinations

import pytest
import torch

from lezo import noise


def draw(seed=1, name="w", size=200_000):
    return noise.normal(seed, name, torch.empty(size))


def test_noise_is_standard_normal():
    z = draw().double()
    error = 1 / math.sqrt(len(z))
    assert abs(z.mean()) < 5 * error
    assert abs(z.var() - 1) < 5 * error * math.sqrt(2)
    assert abs((z**4).mean() - 3) < 5 * error * math.sqrt(96)


def test_noise_depends_on_seed_and_name_alone():
    torch.manual_seed(0)
    first, state = draw(), torch.random.get_rng_state()
    torch.manual_seed(99)
    assert torch.equal(first, draw())
    torch.manual_seed(0)
    assert torch.equal(state, torch.random.get_rng_state())  # the global generator was not touched


@pytest.mark.parametrize("other", [{"seed": 2}, {"name": "v"}])
def test_noise_of_other_keys_is_independent(other):
    correlation = torch.corrcoef(torch.stack([draw(), draw(**other)]))[0, 1]
    assert abs(correlation) < 5 / math.sqrt(200_000)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_noise_is_fp32_and_the_same_whatever_the_tensors_dtype(dtype):
    z = noise.normal(1, "w", torch.empty(100, dtype=dtype))
    assert z.dtype == torch.float32
    assert torch.equal(z, draw(size=100))


def test_noise_for_fp64_is_the_fp32_draw_widened():
    assert torch.equal(noise.normal(1, "w", torch.empty(100, dtype=torch.float64)), draw(size=100).double())


def test_derived_seeds_are_the_same_everywhere():
    assert noise.step_seed(0, 0) == 4433896974232160741
    assert noise.subset(0, 8, 2) == (0, 5)
    assert noise.permutation(0, 0, 5) == [1, 2, 4, 3, 0]


def test_subset_is_uniform_and_without_replacement():
    """Chi-square tests of single blocks (7 degrees of freedom) and pairs (27), at p = 1e-4."""
    draws = [noise.subset(noise.step_seed(3, step), 8, 2) for step in range(8000)]
    assert all(len(set(d)) == 2 for d in draws)
    singles, pairs = Counter(b for d in draws for b in d), Counter(draws)
    expected = 8000 * 2 / 8
    # Inclusion without replacement has variance n (K/N) (1 - K/N), correlated so that (N-1)/N restores chi-square.
    statistic = sum((singles[b] - expected) ** 2 for b in range(8)) / (expected * (1 - 2 / 8)) * 7 / 8
    assert statistic < 29.9
    by_pair = sum((pairs[p] - 8000 / 28) ** 2 for p in combinations(range(8), 2)) / (8000 / 28)
    assert by_pair < 62


def test_permutations_cover_everything_and_differ_by_epoch():
    first, second = noise.permutation(0, 0, 100), noise.permutation(0, 1, 100)
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second
