"""theta <- theta - (c z + d theta) in place on CUDA: theta is read and written once, z is nowhere stored."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lezo.noise.kernels import normal
from lezo.noise.kernels.normal import groups_from, normals, words


@triton.jit(do_not_specialize=["key"])
def _update(theta, coefficient, key: tl.int64, decay, numel, STOCHASTIC: tl.constexpr, GROUPS: tl.constexpr):
    """theta <- theta - (c z + d theta), in fp32, rounded once; nothing is written where c = d = 0 or c is not finite.

    Program i: GROUPS groups, from the i-th stretch of as many. STOCHASTIC: up or down, so that the mean is exact.
    """
    key = key.to(tl.int64)
    chunk = tl.program_id(0).to(tl.int64) * (GROUPS // 256)
    group, offset = groups_from(chunk, GROUPS)
    c = tl.load(coefficient).to(tl.float32)
    limit = tl.minimum(numel - chunk * 1024, GROUPS * 4).to(tl.int32)
    moves = ((c != 0) | (decay != 0)) & (tl.abs(c) < float("inf"))  # false for NaN too
    limit = tl.where(moves, limit, 0)
    theta = theta + chunk * 1024
    z0, z1, z2, z3 = normals(key, group)
    x0, x1, x2, x3 = words(key, 1, group) if STOCHASTIC else (group, group, group, group)
    _step(theta, offset, limit, c, decay, z0, x0, STOCHASTIC)
    _step(theta, offset + 256, limit, c, decay, z1, x1, STOCHASTIC)
    _step(theta, offset + 512, limit, c, decay, z2, x2, STOCHASTIC)
    _step(theta, offset + 768, limit, c, decay, z3, x3, STOCHASTIC)


@triton.jit
def _step(theta, offset, limit, c, decay, z, bits, STOCHASTIC: tl.constexpr):
    """One lane; of its offsets, those below ``limit``."""
    mask = offset < limit
    wide = tl.load(theta + offset, mask).to(tl.float32)
    new = wide - (z * c + wide * decay)
    if STOCHASTIC:
        new = _rounded(new, bits, theta.dtype.element_ty)
    tl.store(theta + offset, new.to(theta.dtype.element_ty), mask)


@triton.jit
def _rounded(x, bits, dtype: tl.constexpr):
    """x on the grid of ``dtype``, still fp32: random bits are added below the kept ones, and cut off.

    fp16 below 2^-14 is a grid of step 2^-24: up with the probability of the fraction, else down.
    """
    pattern = x.to(tl.uint32, bitcast=True)
    if dtype == tl.bfloat16:
        moved = ((pattern + (bits & 0xFFFF)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    elif dtype == tl.float16:
        moved = ((pattern + (bits & 0x1FFF)) & 0xFFFFE000).to(tl.float32, bitcast=True)
        scaled = x * 2.0**24
        floor = tl.floor(scaled)
        up = (bits >> 8).to(tl.float32) * 2.0**-24 < scaled - floor
        moved = tl.where(tl.abs(x) < 2.0**-14, tl.where(up, floor + 1.0, floor) * 2.0**-24, moved)
    else:
        moved = x
    return tl.where((pattern & 0x7F800000) != 0x7F800000, moved, x)


def update(theta: Tensor, key: int, coefficient: Tensor, decay: float, stochastic: bool) -> None:
    """theta <- theta - (c z + d theta); bit-identical where c = d = 0 or c is not finite.

    theta contiguous, fp32, fp16 or bf16, not empty; c = ``coefficient`` a tensor of one element on its device;
    decay an fp32 number.
    """
    programs = triton.cdiv(theta.numel(), 4 * normal.GROUPS)
    with torch.cuda.device_of(theta):
        _update[(programs,)](
            theta, coefficient, key, decay, theta.numel(), stochastic, normal.GROUPS, **normal.EXACT
        )
