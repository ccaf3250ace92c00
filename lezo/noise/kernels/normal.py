"""The noise on CUDA: Triton functions for the kernels beside this, with the bits of the twin in ``lezo.noise.philox``.

Its numbers stand here as literals: Triton compares each global at every launch.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

GROUPS = 512  # a program's groups of four elements, whole chunks
LAUNCH = {"enable_fp_fusion": False, "num_warps": 2}
"""Options of every launch: a fused multiply-add would round differently; two warps a program took least on an H100."""

COMPILED = tl.constexpr(os.environ.get("TRITON_INTERPRET") != "1")
"""Whether instructions may be named, which the interpreter has none of; it does the same by its own means."""


@triton.jit
def words(key, stream, group):
    """The four words of each uint32 ``group``: Philox-4x32-10 of the counter (group, stream, 0, 0).

    Sums and products are those of 64 bits, cut to 32: nothing overflows, and a product has both its halves.
    """
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    c0, c1, c2, c3 = group, group * 0 + stream, group * 0, group * 0
    for _ in tl.static_range(10):
        a, b = _product(c0, 0xD2511F53), _product(c2, 0xCD9E8D57)
        c0 = (b >> 32).to(tl.uint32) ^ c1 ^ k0.to(tl.uint32)
        c2 = (a >> 32).to(tl.uint32) ^ c3 ^ k1.to(tl.uint32)
        c1, c3 = b.to(tl.uint32), a.to(tl.uint32)
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


@triton.jit
def _product(word, factor):
    """The 64 bits of a product of 32-bit numbers, by one instruction: LLVM makes a product of 64-bit ones, and adds."""
    if COMPILED:
        return tl.inline_asm_elementwise(
            "mul.wide.u32 $0, $1, $2;", "=l,r,r", [word, factor], dtype=tl.uint64, is_pure=True, pack=1
        )
    return word.to(tl.uint64) * factor


@triton.jit
def _root(x):
    """The square root, correctly rounded, of 0 or of x from 2^-100 on.

    It is what `sqrt.rn.f32` does of such x, without the branch for others: an estimate, and one step of Newton's.
    """
    if COMPILED:
        root = tl.inline_asm_elementwise(
            """{
            .reg .f32 estimate, half, near, rest;
            rsqrt.approx.ftz.f32 estimate, $1;
            mul.rn.f32 near, $1, estimate;
            mul.rn.f32 half, estimate, 0f3F000000;
            neg.f32 rest, near;
            fma.rn.f32 rest, rest, near, $1;
            fma.rn.f32 $0, rest, half, near;
            }""",
            "=f,f",
            [x],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
        return tl.where(x == 0, x, root)
    return tl.sqrt_rn(x)


@triton.jit
def box_muller(radius, angle):
    """r cos a and r sin a of two blocks of words: ln u, cos and sin as ``lezo.noise.philox`` writes them."""
    u = radius.to(tl.float32) * 2.0**-32 + 2.0**-33
    bits = u.to(tl.int32, bitcast=True) - 0x3F3504F3
    f = ((bits & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    log = f * 0.08738832175731659 + -0.14307741820812225
    log = ((log * f + 0.14916352927684784) * f + -0.16570311784744263) * f + 0.19962239265441895
    log = ((log * f + -0.25001776218414307) * f + 0.3333394527435303) * f + -0.49999991059303284
    ln = (bits >> 23).to(tl.float32) * 0.693147182464599609375 + (f + (f * f) * log)
    r = _root(ln * -2.0)
    turned = (angle.to(tl.uint64) + (1 << 29)).to(tl.uint32)
    t = ((turned & 0x3FFFFFFF).to(tl.int32) - (1 << 29)).to(tl.float32) * (
        1.57079637050628662109375 * 2.0**-30
    )
    t2 = t * t
    sin = t + (t * t2) * ((t2 * -0.00019496136519592255 + 0.008331983350217342) * t2 + -0.16666650772094727)
    cos = (t2 * 2.4430661142105237e-05 + -0.00138873013202101) * t2 + 0.04166664555668831
    cos = (t2 * -0.5 + 1.0) + (t2 * t2) * cos
    odd = (turned & 0x40000000) != 0  # the quadrant's bits are the two highest, and its signs theirs
    x, y = tl.where(odd, sin, cos), tl.where(odd, cos, sin)
    return r * _signed(x, turned ^ (turned << 1)), r * _signed(y, turned)


@triton.jit
def _signed(x, bits):
    """x, negated where the highest of ``bits`` is set."""
    return (x.to(tl.uint32, bitcast=True) ^ (bits & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def normals(key, group):
    """The four lanes of z of each uint32 ``group``."""
    x0, x1, x2, x3 = words(key, 0, group)
    z0, z1 = box_muller(x0, x1)
    z2, z3 = box_muller(x2, x3)
    return z0, z1, z2, z3


@triton.jit
def signs(key, group):
    """The four lanes of signs of each uint32 ``group``, -1 or 1: a bit of words that 32 chunks share."""
    chunk = group >> 8
    x0, x1, x2, x3 = words(key, 2, ((chunk >> 5) << 8) | (group & 255))
    place = 31 - (chunk & 31)
    return _sign(x0, place), _sign(x1, place), _sign(x2, place), _sign(x3, place)


@triton.jit
def _sign(word, place):
    """1 with the sign of the bit of ``word`` that ``place`` steps up bring to the top."""
    return (((word << place) & 0x80000000) | 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit
def drawn(key, group, SIGNS: tl.constexpr):
    """The four lanes of z of each uint32 ``group``."""
    if SIGNS:
        z0, z1, z2, z3 = signs(key, group)
    else:
        z0, z1, z2, z3 = normals(key, group)
    return z0, z1, z2, z3


@triton.jit
def groups_from(chunk, GROUPS: tl.constexpr):
    """The groups of chunk, chunk + 1, ... (uint32), and their elements of lane 0, counted from the chunk's start."""
    i = tl.arange(0, GROUPS)
    return (chunk * 256).to(tl.uint32) + i.to(tl.uint32), i // 256 * 1024 + i % 256
