import math
from collections import Counter
from itertools import combinations

import pytest
import torch

from lezo.noise import directions, seeds
from tests.lezo.refusals import refused


def draw(seed=1, name="w", size=200_000):
    return directions.normal(seed, name, torch.empty(size))


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
    z = directions.normal(1, "w", torch.empty(100, dtype=dtype))
    assert z.dtype == torch.float32
    assert torch.equal(z, draw(size=100))


def test_noise_for_fp64_is_the_fp32_draw_widened():
    assert torch.equal(
        directions.normal(1, "w", torch.empty(100, dtype=torch.float64)), draw(size=100).double()
    )


@pytest.fixture
def theta():
    return torch.randn(40, 50, generator=torch.Generator().manual_seed(0))


def same_bits(given, expected):
    return given.dtype == expected.dtype and torch.equal(given.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_perturb_adds_and_subtracts_the_same_draw(theta, dtype):
    theta = theta.to(dtype)
    before = theta.clone()
    plus, minus = directions.perturb(theta, 1, "w", 0.01)
    eps = 0.01 if dtype == torch.float64 else torch.tensor(0.01).item()
    step = directions.normal(1, "w", theta) * eps
    wide = theta.to(step.dtype)
    assert same_bits(plus, (wide + step).to(dtype))
    assert same_bits(minus, (wide - step).to(dtype))
    assert same_bits(theta, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_rows_have_the_bits_of_the_whole(theta, dtype):
    theta, rows = theta.to(dtype), torch.tensor([39, 0, 7, 7])
    for whole, part in zip(
        directions.perturb(theta, 1, "w", 0.01),
        directions.perturb(theta, 1, "w", 0.01, rows=rows),
        strict=True,
    ):
        assert same_bits(whole[rows], part)


def test_perturb_to_fp32_is_not_rounded_to_sixteen_bits(theta):
    half = theta.half()
    given = directions.perturb(half, 1, "w", 1e-4, dtype=torch.float32)
    expected = directions.perturb(half.float(), 1, "w", 1e-4)
    assert all(same_bits(a, b) for a, b in zip(given, expected, strict=True))


def test_perturb_writes_into_out(theta):
    out = (torch.empty(40, 50), torch.empty(40, 50))
    given = directions.perturb(theta, 1, "w", 0.01, out=out)
    expected = directions.perturb(theta, 1, "w", 0.01)
    assert [tensor.data_ptr() for tensor in given] == [tensor.data_ptr() for tensor in out]
    assert all(same_bits(a, b) for a, b in zip(out, expected, strict=True))


@pytest.mark.parametrize(
    "wrong", [torch.empty(50, 40), torch.empty(50, 40).t(), torch.empty(40, 50, dtype=torch.float16)]
)
def test_perturb_refuses_an_out_that_does_not_fit(theta, wrong):
    with refused(ValueError, "out for w", "torch.float32 (40, 50)"):
        directions.perturb(theta, 1, "w", 0.01, out=(torch.empty(40, 50), wrong))


def test_perturb_refuses_rows_of_no_matrix(theta):
    for tensor, rows in ((theta[0], torch.tensor([1])), (theta, torch.tensor([1], dtype=torch.int32))):
        with refused(ValueError, "rows is torch.int", "w has shape"):
            directions.perturb(tensor, 1, "w", 0.01, rows=rows)


def test_elements_count_in_row_major_order_however_the_tensor_lies(theta):
    given = directions.perturb(theta.t(), 1, "w", 0.01)
    expected = directions.perturb(theta.t().contiguous(), 1, "w", 0.01)
    assert all(same_bits(a, b) for a, b in zip(given, expected, strict=True))
    expected = theta.t().contiguous()
    for tensor in (theta.t(), expected):
        directions.update_(tensor, 1, "w", torch.tensor(0.1), 0.0)
    assert same_bits(theta, expected.t().contiguous())


def test_nothing_is_drawn_for_nothing(theta):
    plus, _ = directions.perturb(theta, 1, "w", 0.01, rows=torch.empty(0, dtype=torch.int64))
    assert plus.shape == (0, 50)
    directions.update_(torch.empty(0, 3), 1, "w", torch.tensor(1.0), 0.1)


def test_parameters_are_updated_and_no_graph_is_built(theta):
    parameter = torch.nn.Parameter(theta.clone())
    plus, _ = directions.perturb(parameter, 1, "w", 0.01)
    directions.update_(parameter, 1, "w", torch.tensor(0.1), 0.0)
    assert not plus.requires_grad
    assert parameter.requires_grad and not torch.equal(parameter, theta)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_update_subtracts_the_draw_and_the_decay(theta, dtype):
    theta, c = theta.to(dtype), torch.tensor(0.02)
    z = directions.normal(1, "w", theta)
    decay = 0.03 if dtype == torch.float64 else torch.tensor(0.03).item()
    expected = (theta.to(z.dtype) - (z * c.to(z.dtype) + theta.to(z.dtype) * decay)).to(dtype)
    directions.update_(theta, 1, "w", c, 0.03)
    assert same_bits(theta, expected)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_null_step_leaves_the_bits(theta, dtype, rounding):
    theta = (theta * 1e-6).to(dtype)
    theta[0, :4] = torch.tensor([0.0, -0.0, float("inf"), float("nan")])
    before = theta.clone()
    for c, decay in ((0.0, 0.0), (float("nan"), 0.1), (float("inf"), 0.1)):
        directions.update_(theta, 1, "w", torch.tensor(c), decay, rounding=rounding)
        assert same_bits(theta, before)


@pytest.mark.parametrize(("dtype", "ulp"), [(torch.float16, 2**-10), (torch.bfloat16, 2**-7)])
def test_stochastic_rounding_realises_the_step_that_rounding_to_nearest_loses(dtype, ulp):
    """A step of a hundredth of an ulp: rounded to nearest it never happens, stochastically it does in the mean."""
    size, c = 200_000, torch.tensor(0.01 * ulp)
    start = torch.full((size,), 1.5, dtype=dtype)
    nearest, stochastic = start.clone(), start.clone()
    directions.update_(nearest, 1, "w", c, 0.0)
    directions.update_(stochastic, 1, "w", c, 0.0, rounding="stochastic")
    assert same_bits(nearest, start)
    z, moved = draw(size=size).double(), (start - stochastic).double()
    realised = (moved @ z) / (z @ z)
    assert set((moved / ulp).tolist()) == {-1.0, 0.0, 1.0}
    assert abs(realised / c - 1) < 5 * math.sqrt(0.01 / size) / 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stochastic_rounding_is_rounding_to_nearest_where_there_are_bits_enough(theta, dtype):
    nearest, stochastic = theta.to(dtype), theta.to(dtype).clone()
    directions.update_(nearest, 1, "w", torch.tensor(0.1), 0.01)
    directions.update_(stochastic, 1, "w", torch.tensor(0.1), 0.01, rounding="stochastic")
    assert same_bits(nearest, stochastic)


def test_a_rounding_of_another_name_is_refused(theta):
    with refused(ValueError, "rounding is 'random'"):
        directions.update_(theta, 1, "w", torch.tensor(0.1), 0.0, rounding="random")


def test_derived_seeds_are_the_same_everywhere():
    assert seeds.step_seed(0, 0) == 4433896974232160741
    assert seeds.subset(0, 8, 2) == (0, 5)
    assert seeds.permutation(0, 0, 5) == [1, 2, 4, 3, 0]


def test_subset_is_uniform_and_without_replacement():
    """Chi-square tests of single blocks (7 degrees of freedom) and pairs (27), at p = 1e-4."""
    draws = [seeds.subset(seeds.step_seed(3, step), 8, 2) for step in range(8000)]
    assert all(len(set(d)) == 2 for d in draws)
    singles, pairs = Counter(b for d in draws for b in d), Counter(draws)
    expected = 8000 * 2 / 8
    # Inclusion without replacement has variance n (K/N) (1 - K/N), correlated so that (N-1)/N restores chi-square.
    statistic = sum((singles[b] - expected) ** 2 for b in range(8)) / (expected * (1 - 2 / 8)) * 7 / 8
    assert statistic < 29.9
    by_pair = sum((pairs[p] - 8000 / 28) ** 2 for p in combinations(range(8), 2)) / (8000 / 28)
    assert by_pair < 62


def test_permutations_cover_everything_and_differ_by_epoch():
    first, second = seeds.permutation(0, 0, 100), seeds.permutation(0, 1, 100)
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second


def test_uniform_numbers_are_uniform_and_follow_from_their_key():
    like = torch.empty(50_000)
    drawn = directions.uniform(3, "a", like)
    assert drawn.dtype == torch.float32 and drawn.min() >= 0 and drawn.max() < 1
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.006)
    assert drawn.var().item() == pytest.approx(1 / 12, rel=0.03)
    assert torch.equal(drawn, directions.uniform(3, "a", like)) and torch.equal(
        drawn[:7], directions.uniform(3, "a", like[:7])
    )
    assert not torch.equal(drawn, directions.uniform(4, "a", like)) and not torch.equal(
        drawn, directions.uniform(3, "b", like)
    )
