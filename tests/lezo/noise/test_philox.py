"""The definition of z: the generator against published vectors, the normals against fp64 and statistics."""

import math

import numpy as np
import pytest
import torch

from lezo.noise import philox
from lezo.noise.seeds import derive

KEY = derive(1, "w")
SIZE = 1 << 20


@pytest.fixture(scope="module")
def z():
    return philox.normals(KEY, torch.arange(SIZE))


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [
        ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_known_answers_of_its_authors(key, counter, words):
    given = philox.philox(key, tuple(torch.tensor([word]) for word in counter))
    assert tuple(word.item() for word in given) == words


def test_the_key_goes_low_word_first():
    low, high = 0x01234567, 0x89ABCDEF >> 1
    group = torch.tensor([7])
    zero = torch.tensor([0])
    expected = philox.philox((low, high), (group, torch.tensor([1]), zero, zero))
    assert philox.words((high << 32) + low, 1, group) == expected


def test_a_chunk_is_four_lanes_of_256_each_from_one_word(z):
    x0, x1, x2, x3 = philox.words(KEY, philox.NORMALS, torch.arange(256, 512))  # the groups of chunk 1
    lanes = torch.cat([*philox.box_muller(x0, x1), *philox.box_muller(x2, x3)])
    assert torch.equal(z[1024:2048], lanes)
    bits = torch.cat(philox.words(KEY, philox.ROUNDING, torch.arange(256, 512)))
    assert torch.equal(philox.random_bits(KEY, torch.arange(1024, 2048)), bits)


def test_z_is_frozen(z):
    """Journals are replayed from z: these bits never change."""
    elements = torch.tensor([0, 255, 256, 1023, 1024, SIZE - 1])
    bits = [0x3F1FE58D, 0xBEEFA556, 0x3F6979B1, 0x4000F870, 0xBC1BD7A5, 0x3F9AA23D]
    assert [bit & 0xFFFFFFFF for bit in z.view(torch.int32)[elements].tolist()] == bits


def test_an_element_alone_is_the_element_of_the_whole(z):
    elements = torch.tensor([[SIZE - 1, 0, 1023], [4097, 4097, 256]])
    assert torch.equal(philox.normals(KEY, elements), z[elements])


@pytest.mark.parametrize("number", [*philox.LOG, *philox.SIN, *philox.COS, philox.LN2, philox.TURN])
def test_constants_are_fp32_numbers(number):
    assert number == float(np.float32(number))


def test_normals_agree_with_box_muller_in_fp64():
    generator = torch.Generator().manual_seed(0)
    edges = torch.tensor(
        [0, 1, 2**29 - 1, 2**29, 2**30, 2**31 - 1, 2**31, 3 * 2**30, 2**32 - 129, 2**32 - 128, 2**32 - 1]
    )
    draws = torch.randint(0, 1 << 32, (2, 1 << 18), generator=generator)
    radius = torch.cat([edges.repeat_interleave(len(edges)), draws[0]])
    angle = torch.cat([edges.repeat(len(edges)), draws[1]])
    u = radius.to(torch.float32) * 2.0**-32 + 2.0**-33  # part of the definition: fp32
    r = (-2 * u.double().log()).sqrt()
    a = angle.double() * (2 * math.pi / 2**32)
    cos, sin = (value.double() for value in philox.box_muller(radius, angle))
    for value, exact in ((cos, r * a.cos()), (sin, r * a.sin())):
        assert ((value - exact).abs() <= 3e-7 * r).all()


def test_z_is_finite_at_the_ends():
    words = torch.tensor([0, 2**32 - 1])
    cos, sin = philox.box_muller(words, torch.zeros(2, dtype=torch.int64))
    assert cos[0].item() == pytest.approx(math.sqrt(66 * math.log(2)))  # the largest |z| there is: 6.76
    assert cos[1] == 0
    assert (sin == 0).all()


def test_moments(z):
    wide, error = z.double(), 1 / math.sqrt(SIZE)
    assert abs(wide.mean()) < 5 * error
    assert abs(wide.var() - 1) < 5 * error * math.sqrt(2)
    assert abs((wide**3).mean()) < 5 * error * math.sqrt(15)
    assert abs((wide**4).mean() - 3) < 5 * error * math.sqrt(96)


def test_the_distribution_is_normal(z):
    """Kolmogorov-Smirnov at p = 1e-4."""
    cdf = (1 + torch.erf(z.double().sort().values / math.sqrt(2))) / 2
    ranks = torch.arange(SIZE + 1, dtype=torch.float64) / SIZE
    distance = max((ranks[1:] - cdf).max(), (cdf - ranks[:-1]).max())
    assert distance * math.sqrt(SIZE) < 2.23


@pytest.mark.parametrize("bound", [3.0, 4.0, 4.5])
def test_tails(z, bound):
    expected = math.erfc(bound / math.sqrt(2)) * SIZE
    assert abs((z.abs() > bound).sum() - expected) < 5 * math.sqrt(expected)


@pytest.mark.parametrize("lag", [1, 2, 256, 512, 768, 1024])
def test_elements_are_independent_of_those_beside_them_and_in_other_lanes(z, lag):
    """Correlations of z, and of z^2, which share a radius if lanes of a pair were not independent."""
    for value in (z, z**2):
        assert abs(correlation(value[:-lag], value[lag:])) < 5 / math.sqrt(SIZE)


@pytest.mark.parametrize("other", [derive(2, "w"), derive(1, "v"), KEY + 1, KEY ^ (1 << 62)])
def test_other_keys_are_independent(z, other):
    assert abs(correlation(z, philox.normals(other, torch.arange(SIZE)))) < 5 / math.sqrt(SIZE)


def test_the_bits_of_rounding_are_uniform_and_independent_of_z(z):
    bits = philox.random_bits(KEY, torch.arange(SIZE))
    assert bits.min() >= 0
    assert bits.max() < 1 << 32
    shares = torch.stack([(bits >> i & 1).double().mean() for i in range(32)])
    assert ((shares - 0.5).abs() < 2.5 / math.sqrt(SIZE)).all()
    assert abs(correlation(z, (bits & 0xFFFF).float())) < 5 / math.sqrt(SIZE)


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1]


@pytest.mark.parametrize(
    ("dtype", "value", "below", "above"),
    [
        (torch.bfloat16, 1 + 2**-9, 1.0, 1 + 2**-7),
        (torch.bfloat16, -3e-39, -3.03059e-39, -2.93874e-39),
        (torch.float16, 1 + 2**-12, 1.0, 1 + 2**-10),
        (torch.float16, -1000.1, -1000.5, -1000.0),
        (torch.float16, 1.25 * 2**-24, 2**-24, 2**-23),
        (torch.float16, -(2**-30), -(2**-24), 0.0),
        (torch.float16, 2**-14 - 2**-26, 2**-14 - 2**-24, 2**-14),
    ],
)
def test_stochastic_rounding_keeps_the_mean(dtype, value, below, above):
    x = torch.full((1 << 18,), value)
    given = philox.stochastically_rounded(x, dtype, philox.random_bits(KEY, torch.arange(len(x))))
    assert torch.equal(given, given.to(dtype).float())
    assert given.unique().tolist() == pytest.approx([below, above], rel=1e-4)
    low, high = given.min().double(), given.max().double()
    share = ((given.double() - low) / (high - low)).mean()
    expected = (x[0].double() - low) / (high - low)
    assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / len(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [0, 0xFFFFFFFF])
def test_stochastic_rounding_leaves_what_is_representable(dtype, bits):
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    given = philox.stochastically_rounded(every.float(), dtype, torch.full((1 << 16,), bits)).to(dtype)
    assert torch.equal(given.isnan(), every.isnan())
    real = ~every.isnan()
    assert torch.equal(given.view(torch.int16)[real], every.view(torch.int16)[real])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stochastic_rounding_is_for_sixteen_bits(dtype):
    x = torch.randn(10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(philox.stochastically_rounded(x, dtype, torch.full((10,), 0xFFFFFFFF)), x)
