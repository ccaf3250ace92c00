"""What is z, exactly? The definition of the noise, and its slow twin in torch that every kernel matches bit for bit.

**Words.** Element e of a tensor (its flat, row-major index) belongs to chunk e // 1024, within it to lane
(e % 1024) // 256 and place e % 256. Group = 256 chunk + place. One call of Philox-4x32-10 (Salmon et al. 2011)
with the counter (group, stream, 0, 0) and the 63-bit key, low word first, gives a group four words, one for each
lane. So 256 groups in a row fill a chunk in four contiguous stretches. Stream 0 makes z, stream 1 the bits of
stochastic rounding, stream 2 signs.

**Normals.** Words x0 and x1 give lanes 0 and 1 by Box-Muller, x2 and x3 give lanes 2 and 3: r cos a and r sin a with
r = sqrt(-2 ln u). The first word is u = fp32(x) 2^-32 + 2^-33. The second is the angle a = 2 pi x / 2^32: adding an
eighth of a turn, the two top bits are the quadrant, and the rest, recentred, is an angle t of at most pi/4.
ln u comes from u = 2^e (1 + f), sqrt(1/2) <= 1 + f < sqrt(2), and a polynomial in f; cos t and sin t from
polynomials in t^2.

**Signs.** A Rademacher z takes one bit an element: 32 chunks in a row share 256 groups of stream 2, group = 256
(chunk // 32) + place, and chunk takes bit chunk % 32 of the lane's word; z is -1 where it is set, else 1.

**Bits.** Only operations that IEEE 754 and integers pin down: fp32 products and sums in the order written here,
each rounded (no fused multiply-add), and a correctly rounded square root; no division and no library function.
Polynomials go by Horner's rule. z is within 3e-7 r of Box-Muller in exact arithmetic on the same u and x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lezo.noise.operands import Copies, Step

CHUNK, LANE = 1024, 256
NORMALS, ROUNDING, SIGNS, RANK_ONE = 0, 1, 2, 3  # streams; of the last see `lezo.noise.rank_one`
PACKED = 32  # chunks whose signs are bits of the same words
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
LOW = 0xFFFFFFFF

# Every float below is an fp32 number. The polynomials are minimax fits: ln(1 + f) = f + f^2 LOG(f),
# sin t = t + t^3 SIN(t^2), cos t = 1 - t^2/2 + t^4 COS(t^2); lowest power first.
LN2 = 0.693147182464599609375
TURN = 1.57079637050628662109375 * 2.0**-30  # radians a unit of the angle's thirty bits
SQRT_HALF = 0x3F3504F3  # the bits of sqrt(1/2)
LOG = (
    -0.49999991059303284,
    0.3333394527435303,
    -0.25001776218414307,
    0.19962239265441895,
    -0.16570311784744263,
    0.14916352927684784,
    -0.14307741820812225,
    0.08738832175731659,
)
SIN = (-0.16666650772094727, 0.008331983350217342, -0.00019496136519592255)
COS = (0.04166664555668831, -0.00138873013202101, 2.4430661142105237e-05)

SLICE = 1 << 18  # elements drawn at once: about 50 MB of temporaries


def words(key: int, stream: int, groups: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox-4x32-10 of int64 ``groups``: the four words of each, in [0, 2^32), as int64."""
    return philox((key & LOW, key >> 32), (groups, torch.full_like(groups, stream), groups * 0, groups * 0))


def philox(
    key: tuple[int, int], counter: tuple[Tensor, Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The generator itself; words of 32 bits in int64 (whose products wrap, and so keep their 64 bits)."""
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(ROUNDS):
        a, b = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (b >> 32) & LOW ^ c1 ^ k0, b & LOW, (a >> 32) & LOW ^ c3 ^ k1, a & LOW
        k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW
    return c0, c1, c2, c3


def box_muller(radius: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """r cos a and r sin a in fp32, from two int64 tensors of words."""
    u = radius.to(torch.float32) * 2.0**-32 + 2.0**-33
    minus_two_ln = _ln(u) * -2.0
    r = minus_two_ln.double().sqrt().float()  # torch's fp32 square root is not correctly rounded on every CPU
    turned = (angle + (1 << 29)) & LOW
    cos, sin = _turn((turned >> 30), ((turned & 0x3FFFFFFF) - (1 << 29)).to(torch.float32) * TURN)
    return r * cos, r * sin


def _ln(u: Tensor) -> Tensor:
    """ln u of fp32 u in (0, 1]."""
    bits = u.view(torch.int32) - SQRT_HALF
    f = ((bits & 0x7FFFFF) + SQRT_HALF).view(torch.float32) - 1.0
    return (bits >> 23).to(torch.float32) * LN2 + (f + (f * f) * _polynomial(f, LOG))


def _turn(quadrant: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of ``quadrant`` quarter turns plus t radians, |t| <= pi/4."""
    t2 = t * t
    sin = t + (t * t2) * _polynomial(t2, SIN)
    cos = (t2 * -0.5 + 1.0) + (t2 * t2) * _polynomial(t2, COS)
    odd = (quadrant & 1) != 0
    x, y = torch.where(odd, sin, cos), torch.where(odd, cos, sin)
    return torch.where(((quadrant + 1) & 2) != 0, -x, x), torch.where((quadrant & 2) != 0, -y, y)


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    total = x * coefficients[-1] + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        total = total * x + coefficient
    return total


def _place(elements: Tensor) -> tuple[Tensor, Tensor]:
    """Group and lane of int64 ``elements``."""
    return elements // CHUNK * LANE + elements % LANE, elements % CHUNK // LANE


def normals(key: int, elements: Tensor) -> Tensor:
    """z of any int64 ``elements`` in fp32, in their shape and on their device."""
    return torch.cat([_normals(key, part) for part in torch.split(elements.flatten(), SLICE)]).view(
        elements.shape
    )


def _normals(key: int, elements: Tensor) -> Tensor:
    group, lane = _place(elements)
    x = words(key, NORMALS, group)
    cos, sin = box_muller(torch.where(lane < 2, x[0], x[2]), torch.where(lane < 2, x[1], x[3]))
    return torch.where(lane % 2 == 0, cos, sin)


def signs(key: int, elements: Tensor) -> Tensor:
    """z(key) of any int64 ``elements`` by one bit each: -1 or 1, as fp32 in their shape."""
    return torch.cat([_signs(key, part) for part in torch.split(elements.flatten(), SLICE)]).view(
        elements.shape
    )


def _signs(key: int, elements: Tensor) -> Tensor:
    chunk, (_, lane) = elements // CHUNK, _place(elements)
    x = torch.stack(words(key, SIGNS, chunk // PACKED * LANE + elements % LANE))
    return 1.0 - 2.0 * (x.gather(0, lane[None])[0] >> chunk % PACKED & 1).to(torch.float32)


def drawn(key: int, elements: Tensor, draw: int) -> Tensor:
    """z(key) of any int64 ``elements``, by the stream that makes it: NORMALS or SIGNS."""
    return normals(key, elements) if draw == NORMALS else signs(key, elements)


def random_bits(key: int, elements: Tensor) -> Tensor:
    """The 32 bits that round each of ``elements`` stochastically, as int64."""
    group, lane = _place(elements)
    return torch.stack(words(key, ROUNDING, group)).gather(0, lane[None])[0]


def compute_dtype(theta: Tensor) -> torch.dtype:
    """In what dtype steps on ``theta`` are computed: fp32, or fp64 for fp64."""
    return torch.promote_types(theta.dtype, torch.float32)


def perturbations(
    groups: Sequence[Sequence[Copies]], eps: float, draw: int = NORMALS
) -> list[Callable[[], None]]:
    """What makes the copies of each group: plus <- theta + eps z, minus <- theta - eps z; slowly, as a reference."""

    def make(group: Sequence[Copies]) -> None:
        for copies in group:
            _perturb(*copies, eps, draw)

    return [partial(make, group) for group in groups]


def update(steps: Sequence[Step], coefficient: Tensor, stochastic: bool, draw: int = NORMALS) -> None:
    """theta <- theta - (c z + d theta) of all; bit-identical where c = d = 0 or c is not finite. Slowly, as a reference."""
    for step in steps:
        _update(*step, coefficient, stochastic, draw)


def _perturb(
    theta: Tensor, key: int, rows: Tensor | None, plus: Tensor, minus: Tensor, eps: float, draw: int
) -> None:
    elements = torch.arange(theta.numel(), device=theta.device).view(theta.shape)
    if rows is not None:
        theta, elements = theta[rows], elements[rows]
    wide = theta.to(compute_dtype(theta))
    step = drawn(key, elements, draw).to(wide.dtype) * eps
    plus.copy_(wide + step)
    minus.copy_(wide - step)


def _update(theta: Tensor, key: int, decay: float, coefficient: Tensor, stochastic: bool, draw: int) -> None:
    elements = torch.arange(theta.numel(), device=theta.device).view(theta.shape)
    wide = theta.to(compute_dtype(theta))
    step = drawn(key, elements, draw).to(wide.dtype) * coefficient.to(wide.dtype) + wide * decay
    new = wide - step
    new = stochastically_rounded(new, theta.dtype, random_bits(key, elements)) if stochastic else new
    still = ((coefficient == 0) & (decay == 0)) | ~coefficient.isfinite()
    theta.copy_(torch.where(still, theta, new.to(theta.dtype)))


@torch.no_grad()
def descend_(
    theta: Tensor, step: Tensor, decay: float, right: Tensor, *, key: int | None = None, first: int = 0
) -> None:
    """theta <- theta - (step + decay theta) in place, each operation rounded, and once more to theta's dtype; where not ``right`` nothing.

    ``step``: of theta's shape, in the dtype that steps on theta are computed in. ``key``: that of the tensor in its step, for stochastic
    rounding of 16 bits; None to nearest. ``first``: theta's first element in the whole tensor, where it is a part.
    """
    wide = theta.to(step.dtype)
    new = wide - (step + wide * decay if decay else step)
    if key is not None and theta.dtype.itemsize == 2:
        flat = new.flatten()
        for start in range(0, len(flat), SLICE):
            part = flat[start : start + SLICE]
            elements = torch.arange(first + start, first + start + len(part), device=theta.device)
            part.copy_(stochastically_rounded(part, theta.dtype, random_bits(key, elements)))
        new = flat.view(new.shape)
    theta.copy_(torch.where(right, new.to(theta.dtype), theta))


def stochastically_rounded(x: Tensor, dtype: torch.dtype, bits: Tensor) -> Tensor:
    """fp32 ``x`` moved to one of its two neighbours in fp16 or bf16, so that the mean is x; still fp32.

    What the dtype can represent, infinities and NaN stay. Other dtypes: x itself.
    """
    if dtype == torch.bfloat16:
        moved = _cut(x, bits, 16)
    elif dtype == torch.float16:
        moved = torch.where(x.abs() >= 2.0**-14, _cut(x, bits, 13), _subnormal(x, bits))
    else:
        return x
    return torch.where(x.isfinite(), moved, x)


def _cut(x: Tensor, bits: Tensor, lost: int) -> Tensor:
    """Random bits added below the kept ones, where the kept grid is x without its ``lost`` low bits."""
    mask = (1 << lost) - 1
    return ((x.view(torch.int32) + (bits & mask).to(torch.int32)) & ~mask).view(torch.float32)


def _subnormal(x: Tensor, bits: Tensor) -> Tensor:
    """fp16 below 2^-14 is a grid of step 2^-24: up with the probability of the fraction, else down."""
    scaled = x * 2.0**24
    floor = scaled.floor()
    up = (bits >> 8).to(torch.float32) * 2.0**-24 < scaled - floor
    return torch.where(up, floor + 1.0, floor) * 2.0**-24


def fp32(value: float) -> float:
    """The fp32 number nearest to ``value``."""
    return float(np.float32(value))
