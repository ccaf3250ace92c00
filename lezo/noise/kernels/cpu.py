"""The noise on the CPU: numba loops over chunks, the same bits as the twin in ``lezo.noise.philox``.

Each loop runs over the 256 groups of a chunk and is written so that LLVM vectorises it. The kernels are serial and
let go of the interpreter lock; large work is shared out to as many threads as torch uses. Whole fp32 tensors are
worked on by their addresses, all in one call: what a call costs is more than a small tensor takes. The machine code
is kept in numba's cache (beside this file, else in the user's cache folder), so only a first run waits for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import numba
import numpy as np
import torch
from numba import carray
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from lezo.noise import philox
from lezo.noise.operands import Copies, Step

Float = np.float32
SMALL = 1 << 15  # elements: below, a tensor is done before a thread has started
SIGNS = philox.SIGNS
NEAREST, FP16, BF16 = 0, 1, 2  # the grids of stochastic rounding; NEAREST leaves the rounding to torch

# numba freezes globals as constants of their own type, and widens a product of two types: hence all these.
M0, M1 = np.uint64(philox.MULTIPLIERS[0]), np.uint64(philox.MULTIPLIERS[1])
W0, W1 = np.uint32(philox.WEYL[0]), np.uint32(philox.WEYL[1])
WORD, EIGHTH, SQRT_HALF = np.uint64(32), np.uint32(1 << 29), np.int32(philox.SQRT_HALF)
UNIT, HALF_UNIT, LN2, TURN = Float(2.0**-32), Float(2.0**-33), Float(philox.LN2), Float(philox.TURN)
L0, L1, L2, L3, L4, L5, L6, L7 = map(Float, philox.LOG)
S0, S1, S2 = map(Float, philox.SIN)
C0, C1, C2 = map(Float, philox.COS)
SIGN, ONES = np.uint32(1 << 31), np.uint32(0x3F800000)  # of fp32: the sign, and the rest of 1
ONE, MINUS_HALF, MINUS_TWO = Float(1), Float(-0.5), Float(-2)
FP16_NORMAL, STEP, STEPS = Float(2.0**-14), Float(2.0**-24), Float(2.0**24)  # fp16 below it goes in STEPs


def compiled(loop: Callable[..., None]) -> Any:
    """``loop`` in machine code, no fastmath: every operation rounds as written. Cached where that can be written."""
    try:
        return numba.njit(loop, nogil=True, cache=True)
    except RuntimeError:  # numba found no folder for its cache
        return numba.njit(loop, nogil=True)


@compiled
def _words(key, stream, chunk, x):
    """x (4, 256) uint32 <- Philox's words of the chunk's groups."""
    first = np.uint32(chunk * 256)
    for place in range(256):
        c0, c1, c2, c3 = np.uint32(first + np.uint32(place)), np.uint32(stream), np.uint32(0), np.uint32(0)
        k0, k1 = np.uint32(key), np.uint32(key >> 32)
        for _ in range(10):
            a, b = M0 * np.uint64(c0), M1 * np.uint64(c2)
            c0, c2 = np.uint32(np.uint32(b >> WORD) ^ c1 ^ k0), np.uint32(np.uint32(a >> WORD) ^ c3 ^ k1)
            c1, c3 = np.uint32(b), np.uint32(a)
            k0, k1 = np.uint32(k0 + W0), np.uint32(k1 + W1)
        x[0, place], x[1, place], x[2, place], x[3, place] = c0, c1, c2, c3


@compiled
def _box_muller(radius, angle, cosine, sine):
    """Two lanes of z, (256,) float32, from two lanes of words, (256,) uint32."""
    for place in range(256):
        u = Float(radius[place]) * UNIT + HALF_UNIT
        bits = np.int32(np.float32(u).view(np.int32) - SQRT_HALF)
        f = np.int32((bits & 0x7FFFFF) + SQRT_HALF).view(np.float32) - ONE
        log = ((((((L7 * f + L6) * f + L5) * f + L4) * f + L3) * f + L2) * f + L1) * f + L0
        r = np.sqrt((Float(np.int32(bits >> 23)) * LN2 + (f + (f * f) * log)) * MINUS_TWO)
        turned = np.uint32(angle[place] + EIGHTH)
        t = Float(np.int32(np.int32(turned & 0x3FFFFFFF) - np.int32(EIGHTH))) * TURN
        t2 = t * t
        sin = t + (t * t2) * ((S2 * t2 + S1) * t2 + S0)
        cos = (t2 * MINUS_HALF + ONE) + (t2 * t2) * ((C2 * t2 + C1) * t2 + C0)
        quadrant = np.int32(turned >> 30)
        x, y = (sin, cos) if quadrant & 1 else (cos, sin)
        cosine[place] = r * (-x if (quadrant + 1) & 2 else x)
        sine[place] = r * (-y if quadrant & 2 else y)


@compiled
def _normals(key, chunk, x, z):
    """z (4, 256) float32 <- the chunk's noise; x (4, 256) uint32 is room for its words."""
    _words(key, 0, chunk, x)
    _box_muller(x[0], x[1], z[0], z[1])
    _box_muller(x[2], x[3], z[2], z[3])


@compiled
def _signs(key, chunk, before, x, z):
    """z (4, 256) float32 <- the chunk's signs; x (4, 256) uint32 <- their words, unless chunk ``before`` has the same."""
    if before < 0 or before // 32 != chunk // 32:
        _words(key, 2, chunk // 32, x)
    bit = np.uint32(31 - chunk % 32)
    flat, out = x.reshape(1024), z.reshape(1024).view(np.uint32)
    for i in range(1024):
        out[i] = (np.uint32(flat[i] << bit) & SIGN) | ONES


@compiled
def _drawn(draw, key, chunk, before, x, z):
    """z (4, 256) float32 <- the chunk's z; ``x`` is as chunk ``before``, the latest with this key, left it (-1: none)."""
    if draw == SIGNS:
        _signs(key, chunk, before, x, z)
    else:
        _normals(key, chunk, x, z)


@compiled
def _perturb(draw, key, starts, width, theta, eps, plus, minus):
    """plus, minus (n,) <- theta (n,) +- eps z, in rows of ``width``; row i is elements starts[i], ...

    All float32, or (theta, eps, plus, minus) all float64.
    """
    x, z = np.empty((4, 256), np.uint32), np.empty((4, 256), np.float32)
    flat, before = z.reshape(1024), -1
    for row in range(len(starts)):
        first, here = starts[row], row * width
        last = first + min(width, len(theta) - here)
        for chunk in range(first // 1024, (last + 1023) // 1024):
            _drawn(draw, key, chunk, before, x, z)
            before = chunk
            low, high = max(first, chunk * 1024), min(last, chunk * 1024 + 1024)
            a, b = here + low - first, here + high - first
            _plus_minus(flat[low - chunk * 1024 :], theta[a:b], eps, plus[a:b], minus[a:b])


@compiled
def _plus_minus(z, theta, eps, plus, minus):
    for i in range(len(theta)):
        step = eps * z[i]
        plus[i], minus[i] = theta[i] + step, theta[i] - step


@compiled
def _update(draw, key, first, theta, coefficient, decay, grid):
    """theta (n,) <- theta - (c z + d theta), elements first, ...; first is a multiple of 1024.

    All float32, or (theta, coefficient, decay) all float64. With ``grid`` FP16 or BF16 theta is rounded
    stochastically to numbers of that dtype.
    """
    x, z = np.empty((4, 256), np.uint32), np.empty((4, 256), np.float32)
    bits, before = np.empty((4, 256), np.uint32), -1
    for low in range(0, len(theta), 1024):
        _drawn(draw, key, (first + low) // 1024, before, x, z)
        before = (first + low) // 1024
        part = theta[low : low + 1024]
        _step(z.reshape(1024), part, coefficient, decay)
        if grid != NEAREST:
            _words(key, 1, (first + low) // 1024, bits)
            if grid == FP16:
                _round_fp16(bits.reshape(1024), part)
            else:
                _round_bf16(bits.reshape(1024), part)


@compiled
def _step(z, theta, coefficient, decay):
    for i in range(len(theta)):
        theta[i] = theta[i] - (coefficient * z[i] + decay * theta[i])


@compiled
def _round_bf16(bits, theta):
    for i in range(len(theta)):
        pattern = np.float32(theta[i]).view(np.uint32)
        moved = np.uint32(pattern + (bits[i] & 0xFFFF)) & np.uint32(0xFFFF0000)
        if pattern & 0x7F800000 != 0x7F800000:
            theta[i] = np.uint32(moved).view(np.float32)


@compiled
def _round_fp16(bits, theta):
    for i in range(len(theta)):
        value = theta[i]
        pattern = np.float32(value).view(np.uint32)
        moved = np.uint32(np.uint32(pattern + (bits[i] & 0x1FFF)) & np.uint32(0xFFFFE000)).view(np.float32)
        floor = np.floor(value * STEPS)
        up = Float(bits[i] >> 8) * STEP < value * STEPS - floor
        small = (floor + ONE if up else floor) * STEP
        rounded = moved if abs(value) >= FP16_NORMAL else small
        theta[i] = rounded if pattern & 0x7F800000 != 0x7F800000 else value


@intrinsic
def _pointer(context, address):
    """An address as a pointer, of which numba makes an array."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@compiled
def _perturb_whole(draw, table, first, last, eps):
    """plus <- theta +- eps z of the chunks from ``first`` to ``last``, counted over all tensors of ``table``.

    Its rows: the tensor's first chunk, addresses of theta, plus and minus, key, number of elements; all fp32.
    """
    x, z = np.empty((4, 256), np.uint32), np.empty((4, 256), np.float32)
    for start, theta_at, plus_at, minus_at, key, size in table:
        theta = carray(_pointer(theta_at), size, np.float32)
        plus = carray(_pointer(plus_at), size, np.float32)
        minus = carray(_pointer(minus_at), size, np.float32)
        before = -1
        for chunk in range(max(first - start, 0), min(last - start, (size + 1023) // 1024)):
            low, high = chunk * 1024, min(chunk * 1024 + 1024, size)
            _drawn(draw, key, chunk, before, x, z)
            before = chunk
            _plus_minus(z.reshape(1024), theta[low:high], eps, plus[low:high], minus[low:high])


@compiled
def _update_whole(draw, table, decays, first, last, coefficient):
    """theta <- theta - (c z + d theta) of the chunks from ``first`` to ``last``, counted over all tensors of ``table``.

    Its rows: the tensor's first chunk, address of theta, key, number of elements; all fp32, and so are c and d.
    """
    for row in range(len(table)):
        start, key, size = table[row, 0], table[row, 2], table[row, 3]
        theta = carray(_pointer(table[row, 1]), size, np.float32)
        low, high = max(first - start, 0) * 1024, min((last - start) * 1024, size)
        if low < high:
            _update(draw, key, low, theta[low:high], coefficient, decays[row], NEAREST)


def perturbations(
    groups: Sequence[Sequence[Copies]], eps: float, draw: int = philox.NORMALS
) -> list[Callable[[], None]]:
    """What makes the copies of each group: plus <- theta + eps z, minus <- theta - eps z."""
    return [partial(_perturb_group, group, eps, draw) for group in groups]


def _perturb_group(group: Sequence[Copies], eps: float, draw: int) -> None:
    whole = [copies for copies in group if _is_whole(copies)]
    for copies in group:
        if not _is_whole(copies):
            _perturb_one(copies, eps, draw)
    if whole:
        addresses = [[tensor.data_ptr() for tensor in (c.theta, c.plus, c.minus)] for c in whole]
        table, chunks = _table([[*a, c.key, c.theta.numel()] for a, c in zip(addresses, whole, strict=True)])
        _share(lambda first, last: _perturb_whole(draw, table, first, last, Float(eps)), chunks, philox.CHUNK)


def _is_whole(copies: Copies) -> bool:
    return copies.rows is None and copies.theta.dtype == copies.plus.dtype == torch.float32


def _table(rows: list[list[int]]) -> tuple[Any, int]:
    """int64 rows, each with the number of its first chunk before it, and how many chunks all have; sizes come last."""
    starts = np.cumsum([0, *(-(-row[-1] // philox.CHUNK) for row in rows)])
    table = np.array([[start, *row] for start, row in zip(starts, rows, strict=False)], np.int64)
    return table, int(starts[-1])


def update(steps: Sequence[Step], coefficient: Tensor, stochastic: bool, draw: int = philox.NORMALS) -> None:
    """theta <- theta - (c z + d theta) of all; bit-identical where c = d = 0 or c is not finite."""
    c = coefficient.item()
    moving = [step for step in steps if math.isfinite(c) and (c != 0 or step.decay != 0)]
    whole = [step for step in moving if step.theta.dtype == torch.float32]
    for step in moving:
        if step.theta.dtype != torch.float32:
            _update_one(step, c, stochastic, draw)
    if whole:
        table, chunks = _table([[theta.data_ptr(), key, theta.numel()] for theta, key, _ in whole])
        decays = np.array([step.decay for step in whole], np.float32)
        _share(lambda a, b: _update_whole(draw, table, decays, a, b, Float(c)), chunks, philox.CHUNK)


def _perturb_one(copies: Copies, eps: float, draw: int) -> None:
    """Of rows, or of a tensor that is not fp32 or whose copies are not."""
    theta, key, rows, plus, minus = copies
    chosen = (theta if rows is None else theta.index_select(0, rows)).to(philox.compute_dtype(theta))
    wide = [out if out.dtype == chosen.dtype else torch.empty_like(chosen) for out in (plus, minus)]
    read, up, down = (tensor.view(-1).numpy() for tensor in (chosen, *wide))
    width = philox.CHUNK if rows is None else theta.shape[1]
    starts = np.arange(0, theta.numel(), width) if rows is None else (rows * width).numpy()

    def work(first: int, last: int) -> None:
        here = slice(first * width, last * width)
        _perturb(draw, key, starts[first:last], width, read[here], read.dtype.type(eps), up[here], down[here])

    _share(work, len(starts), width)
    for out, result in zip((plus, minus), wide, strict=True):
        out.copy_(result)


def _update_one(step: Step, c: float, stochastic: bool, draw: int) -> None:
    """Of a tensor that is not fp32."""
    theta, key, decay = step
    wide = theta.to(philox.compute_dtype(theta))
    flat = wide.view(-1).numpy()
    number = flat.dtype.type
    grid = {torch.float16: FP16, torch.bfloat16: BF16}.get(theta.dtype, NEAREST) if stochastic else NEAREST

    def work(first: int, last: int) -> None:
        start = first * philox.CHUNK
        _update(draw, key, start, flat[start : last * philox.CHUNK], number(c), number(decay), grid)

    _share(work, -(-theta.numel() // philox.CHUNK), philox.CHUNK)
    if wide is not theta:
        theta.copy_(wide)


def _share(work: Callable[[int, int], None], items: int, width: int) -> None:
    """``work(first, last)`` over all items, of ``width`` elements each, on as many threads as torch uses."""
    workers = torch.get_num_threads()
    if workers == 1 or items * width < SMALL:
        return work(0, items)
    size = max(-(-items // (4 * workers)), -(-SMALL // (2 * width)))  # a few parts a thread: speeds differ
    parts = range(0, items, size)
    list(_threads(workers).map(lambda first: work(first, min(first + size, items)), parts))


@cache
def _threads(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="lezo-noise")
