"""theta <- theta - (c z + d theta) in place, of several tensors in one launch on CUDA: each is read and written once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from lezo.noise import philox
from lezo.noise.kernels import normal, table
from lezo.noise.kernels.normal import drawn, groups_from, words
from lezo.noise.kernels.perturb import DTYPES
from lezo.noise.kernels.table import row_of
from lezo.noise.operands import Step

COLUMNS = 5
"""Of a table: first program, theta, key, number of elements, the bits of decay."""


@triton.jit(do_not_specialize=["tensors"])
def _update(
    tensors_table,
    tensors,
    coefficient,
    DTYPE: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    ALIGNED: tl.constexpr,
    SIGNS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """theta <- theta - (c z + d theta), in fp32, rounded once; nothing is written where c = d = 0 or c is not finite.

    A tensor's program i: GROUPS groups, from the i-th stretch of as many. STOCHASTIC: up or down, so that the mean is
    exact. theta is of ``DTYPE``. ALIGNED: it begins where wide accesses may. SIGNS: z is
    of signs, not of normals.
    """
    program = tl.program_id(0)
    entry = tensors_table + row_of(program, tensors_table, tensors, COLUMNS) * COLUMNS
    chunk = (program - tl.load(entry)) * (GROUPS // 256)
    theta = tl.load(entry + 1).to(tl.pointer_type(DTYPE)) + chunk * 1024
    key, decay = tl.load(entry + 2), tl.load(entry + 4).to(tl.int32).to(tl.float32, bitcast=True)
    group, offset = groups_from(chunk, GROUPS)
    c = tl.load(coefficient).to(tl.float32)
    limit = tl.minimum(tl.load(entry + 3) - chunk * 1024, GROUPS * 4).to(tl.int32)
    moves = ((c != 0) | (decay != 0)) & (tl.abs(c) < float("inf"))  # false for NaN too
    limit = tl.where(moves, limit, 0)
    z0, z1, z2, z3 = drawn(key, group, SIGNS)
    x0, x1, x2, x3 = words(key, 1, group) if STOCHASTIC else (group, group, group, group)
    if ALIGNED:
        theta, limit = tl.multiple_of(theta, 16), tl.multiple_of(limit, 8)
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


def update(steps: Sequence[Step], coefficient: Tensor, stochastic: bool, draw: int = philox.NORMALS) -> None:
    """theta <- theta - (c z + d theta) of all; bit-identical where c = d = 0 or c is not finite.

    All thetas are on one device and of one dtype: fp32, fp16 or bf16. c = ``coefficient``, one fp32 number there.
    """
    theta, rows, first, odd, bits = steps[0].theta, [], 0, 0, dict[float, int]()
    for own, key, decay in steps:
        if decay not in bits:
            bits[decay] = int(np.float32(decay).view(np.int32))
        address, size = own.data_ptr(), own.numel()
        rows.append([first, address, key, size, bits[decay]])
        odd |= address % 16 | size % 8
        first += -(-size // (4 * normal.GROUPS))
    with torch.cuda.device_of(theta):
        _update[(first,)](
            table.upload(rows, theta.device),
            len(rows),
            coefficient,
            DTYPES[theta.dtype],
            stochastic,
            not odd,
            draw == philox.SIGNS,
            COLUMNS,
            normal.GROUPS,
            **normal.LAUNCH,
        )
