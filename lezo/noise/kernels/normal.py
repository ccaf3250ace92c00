"""The noise on CUDA: Triton functions for the kernels beside this, with the bits of the twin in ``lezo.noise.philox``."""

from __future__ import annotations

import triton
import triton.language as tl

from lezo.noise import philox

GROUPS = 512  # a program's groups of four elements, whole chunks
EXACT = {"enable_fp_fusion": False}  # of every launch: a fused multiply-add would round differently

ROUNDS = tl.constexpr(philox.ROUNDS)
M0, M1 = (tl.constexpr(word) for word in philox.MULTIPLIERS)
LOW = tl.constexpr(philox.LOW)
W0, W1 = (tl.constexpr(word) for word in philox.WEYL)
SQRT_HALF, LN2, TURN = tl.constexpr(philox.SQRT_HALF), tl.constexpr(philox.LN2), tl.constexpr(philox.TURN)
L0, L1, L2, L3, L4, L5, L6, L7 = (tl.constexpr(number) for number in philox.LOG)
S0, S1, S2 = (tl.constexpr(number) for number in philox.SIN)
C0, C1, C2 = (tl.constexpr(number) for number in philox.COS)


@triton.jit
def words(key, stream, group):
    """The four words of each uint32 ``group``: Philox-4x32-10 of the counter (group, stream, 0, 0).

    Sums and products are those of 64 bits, cut to 32: nothing overflows, and a product has both its halves.
    """
    k0, k1 = key & LOW, key >> 32
    c0, c1, c2, c3 = group, group * 0 + stream, group * 0, group * 0
    for _ in tl.static_range(ROUNDS):
        a, b = c0.to(tl.uint64) * M0, c2.to(tl.uint64) * M1
        c0 = (b >> 32).to(tl.uint32) ^ c1 ^ k0.to(tl.uint32)
        c2 = (a >> 32).to(tl.uint32) ^ c3 ^ k1.to(tl.uint32)
        c1, c3 = b.to(tl.uint32), a.to(tl.uint32)
        k0, k1 = (k0 + W0) & LOW, (k1 + W1) & LOW
    return c0, c1, c2, c3


@triton.jit
def box_muller(radius, angle):
    """r cos a and r sin a of two blocks of words: ln u, cos and sin as ``lezo.noise.philox`` writes them."""
    u = radius.to(tl.float32) * 2.0**-32 + 2.0**-33
    bits = u.to(tl.int32, bitcast=True) - SQRT_HALF
    f = ((bits & 0x7FFFFF) + SQRT_HALF).to(tl.float32, bitcast=True) - 1.0
    log = ((((((f * L7 + L6) * f + L5) * f + L4) * f + L3) * f + L2) * f + L1) * f + L0
    ln = (bits >> 23).to(tl.float32) * LN2 + (f + (f * f) * log)
    r = tl.sqrt_rn(ln * -2.0)
    turned = (angle.to(tl.uint64) + (1 << 29)).to(tl.uint32)
    t = ((turned & 0x3FFFFFFF).to(tl.int32) - (1 << 29)).to(tl.float32) * TURN
    t2 = t * t
    sin = t + (t * t2) * ((t2 * S2 + S1) * t2 + S0)
    cos = (t2 * -0.5 + 1.0) + (t2 * t2) * ((t2 * C2 + C1) * t2 + C0)
    quadrant = (turned >> 30).to(tl.int32)
    odd = (quadrant & 1) != 0
    x, y = tl.where(odd, sin, cos), tl.where(odd, cos, sin)
    x, y = tl.where(((quadrant + 1) & 2) != 0, x * -1.0, x), tl.where((quadrant & 2) != 0, y * -1.0, y)
    return r * x, r * y


@triton.jit
def normals(key, group):
    """The four lanes of z of each uint32 ``group``."""
    x0, x1, x2, x3 = words(key, 0, group)
    z0, z1 = box_muller(x0, x1)
    z2, z3 = box_muller(x2, x3)
    return z0, z1, z2, z3


@triton.jit
def groups_from(chunk, GROUPS: tl.constexpr):
    """The groups of chunk, chunk + 1, ... (uint32), and their elements of lane 0, counted from the chunk's start."""
    i = tl.arange(0, GROUPS)
    return (chunk * 256).to(tl.uint32) + i.to(tl.uint32), i // 256 * 1024 + i % 256
